"""The edits that all passes share."""

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.ir.graph_checks import check_structure
from graphopt.ir.program import FROM_NODES_KEY, FROM_PASS_KEY, Program, bounds_in
from graphopt.ir.rewrite import Names, Rewriter, nodes_of, program_of, scoped_nodes, sole_user
from tests.passes.graphs import assert_equal, graph, ops_of, random_inputs, run

CHAIN = """g (float[2] x) => (float[2] y) { a = Identity (x) b = Relu (a) y = Identity (b) }"""
BRANCHES = """g (float[2] x, bool p) => (float[2] y) {
    a = Relu (x)
    b = If (p) <then_branch = t () => (float[2] t2) { t1 = Neg (a) t2 = Abs (t1) },
                else_branch = e () => (float[2] e1) { e1 = Neg (a) }>
    y = Neg (b)
}"""


def node(model: ir.Model, name: str) -> ir.Node:
    return next(n for n in nodes_of(model) if any(v.name == name for v in n.outputs))


def value(model: ir.Model, name: str) -> ir.Value:
    return next(v for n in nodes_of(model) for v in n.outputs if v.name == name)


def test_redirect_moves_readers() -> None:
    model = graph(CHAIN)
    edit = Rewriter(model, "test")
    assert edit.redirect(value(model, "a"), model.graph.inputs[0])
    edit.drop(next(iter(model.graph)))
    check_structure(model)
    assert ops_of(model) == ["Relu", "Identity"]


def test_redirect_keeps_the_name_type_and_shape_of_a_graph_output() -> None:
    model = graph(CHAIN)
    edit = Rewriter(model, "test")
    old = value(model, "y")
    new = value(model, "b")
    assert edit.redirect(old, new)
    last = list(model.graph)[-1]
    edit.drop(last)
    check_structure(model)
    assert model.graph.outputs[0] is new
    assert new.name == "y"
    assert new.dtype is ir.DataType.FLOAT
    assert str(new.shape) == "[2]"


@pytest.mark.parametrize("target", ["x", "z"])
def test_redirect_refuses_what_would_lose_a_name(target: str) -> None:
    model = graph("g (float[2] x) => (float[2] y, float[2] z) { z = Relu (x) y = Identity (z) }")
    edit = Rewriter(model, "test")
    new = model.graph.inputs[0] if target == "x" else value(model, "z")
    old = value(model, "y")
    assert not edit.can_redirect(old, new)
    assert not edit.redirect(old, new)
    assert model.graph.outputs[0] is old
    check_structure(model)


def test_redirect_refuses_a_result_made_outside_the_body() -> None:
    model = graph(BRANCHES)
    edit = Rewriter(model, "test")
    assert not edit.redirect(value(model, "t2"), value(model, "a"))


def test_drop_takes_the_bodies_along() -> None:
    model = graph("""g (float[2] x, bool p) => (float[2] y) {
        a = Relu (x)
        b = If (p) <then_branch = t () => (float[2] t1) { t1 = Neg (a) },
                    else_branch = e () => (float[2] e1) { e1 = Neg (a) }>
        y = Neg (x)
    }""")
    edit = Rewriter(model, "test")
    edit.skip("reason", node(model, "b"))
    edit.drop(node(model, "b"))
    assert value(model, "a").uses() == ()
    assert edit.skips == []
    check_structure(model)


def test_drop_refuses_a_node_that_is_read() -> None:
    model = graph(CHAIN)
    with pytest.raises(ValueError, match="used"):
        Rewriter(model, "test").drop(node(model, "a"))


def test_replace_takes_name_place_and_readers() -> None:
    model = graph(CHAIN)
    nodes = list(model.graph)
    nodes[1].metadata_props["source"] = "line 1"
    made = Rewriter(model, "fuse").replace(
        [nodes[1], nodes[2]], "LeakyRelu", [nodes[1].inputs[0]], [ir.AttrFloat32("alpha", 0.0)]
    )
    check_structure(model)
    assert ops_of(model) == ["Identity", "LeakyRelu"]
    assert made.name == "Relu_2"
    assert made.metadata_props == {
        "source": "line 1",
        FROM_PASS_KEY: "fuse",
        FROM_NODES_KEY: "Relu_2,Identity_3",
    }
    assert model.graph.outputs[0] is made.outputs[0]
    assert (made.outputs[0].name, made.outputs[0].dtype) == ("y", ir.DataType.FLOAT)
    feeds = random_inputs(model)
    assert_equal(run(model, feeds), run(graph(CHAIN), feeds), exact=False)


def test_a_constant_gets_a_free_name() -> None:
    model = graph(BRANCHES)
    edit = Rewriter(model, "test")
    names = [edit.constant("t1", ir.tensor([1.0])).name for _ in range(3)]
    assert names == ["t1_1", "t1_2", "t1_3"]
    assert edit.constant("fresh", ir.tensor([1.0])).name == "fresh"
    check_structure(model, 2)


def test_a_constant_takes_the_name_of_what_it_replaces() -> None:
    model = graph(CHAIN)
    edit = Rewriter(model, "test")
    made = edit.become_constant(value(model, "a"), ir.Tensor(np.ones(2, np.float32)))
    edit.drop(next(iter(model.graph)))
    assert made.name == "a"
    assert [user.op_type for user, _ in made.uses()] == ["Relu"]
    check_structure(model, 2)


def test_names_that_nested_graphs_share_are_known() -> None:
    model = graph("""g (float[2] x, bool p) => (float[2] y) {
        y = If (p) <then_branch = t () => (float[2] u) { u = Neg (x) },
                    else_branch = e () => (float[2] u) { u = Abs (x) }>
    }""")
    names = Names(model)
    assert names.is_shared("u")
    assert not names.is_shared("y")
    assert names.renamed_value("u") == "u_1"
    assert not names.is_shared("u")
    assert names.fresh_node("If_1") == "If_1_1"


def test_many_names_with_one_stem_are_found_at_once() -> None:
    names = Names(graph(CHAIN))
    assert [names.fresh_value("a") for _ in range(20_000)][-1] == "a_20000"


def test_scoped_nodes_see_what_comes_before_them() -> None:
    model = graph(BRANCHES)
    seen = {}
    for visited, tables in scoped_nodes(model):
        result = visited.outputs[0].name
        seen[result] = [key for table in tables for key in table]
        tables[-1][result] = visited
    assert seen == {
        "a": [],
        "b": ["a"],
        "t1": ["a", "b"],
        "t2": ["a", "b", "t1"],
        "e1": ["a", "b"],
        "y": ["a", "b"],
    }


def test_sole_user() -> None:
    model = graph("""g (float[2] x) => (float[2] y, float[2] z, float[2] w) {
        z = Neg (x) a = Abs (z) y = Mul (a, a) b = Exp (x) w = Abs (b) }""")
    assert sole_user(value(model, "z")) is None  # a graph output
    assert sole_user(value(model, "a")) is None  # read twice
    assert sole_user(value(model, "b")) is node(model, "w")
    assert sole_user(value(model, "y")) is None


def test_a_program_around_a_model_shares_its_symbols() -> None:
    model = graph("g (float[n] x) => (float[n] y) { y = Neg (x) }")
    program = Program(model)
    again = program_of(model)
    assert again.bounds is program.bounds
    assert bounds_in(model) is program.bounds
    assert program_of(graph(CHAIN)).bounds == {}
