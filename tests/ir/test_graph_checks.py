"""Each way in which a pass can break a graph is noticed, and a sound graph is accepted."""

import time
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.errors import InvariantError
from graphopt.ir.graph_checks import check_links, check_structure

TEXT = """
<ir_version: 10, opset_import: ["": 21]>
g (float[2] x, bool c) => (float[2] y, float[2] s) <float[2] w = {1, 2}> {
    [n0] a = Add (x, w)
    [n1] b = Relu (a)
    [n2] y = If (c) <
        then_branch = then () => (float[2] t) { [t0] u = Neg (b)  [t1] t = Abs (u) },
        else_branch = other () => (float[2] e) { [e0] e = Identity (a) }
    >
    [n3] s = Sum (a, b, a)
}
"""


@pytest.fixture
def model() -> ir.Model:
    return ir.from_onnx_text(TEXT)


def node(model: ir.Model, name: str) -> ir.Node:
    return next(n for n in model.graph.all_nodes() if n.name == name)


def body(model: ir.Model, attribute: str) -> ir.Graph:
    return node(model, "n2").attributes[attribute].as_graph()


def test_a_sound_model_passes_every_level(model: ir.Model) -> None:
    check_structure(model)
    check_structure(model, level=2)
    check_links(model)


def swap_order(m: ir.Model) -> None:
    last = node(m, "n1")
    m.graph.remove(last)
    m.graph.insert_before(node(m, "n0"), last)


def read_from_a_body(m: ir.Model) -> None:
    node(m, "n3").replace_input_with(0, node(m, "t0").outputs[0])


def read_from_the_other_body(m: ir.Model) -> None:
    node(m, "e0").replace_input_with(0, node(m, "t0").outputs[0])


def read_own_output_in_a_body(m: ir.Model) -> None:
    node(m, "e0").replace_input_with(0, node(m, "n2").outputs[0])


def read_nothing(m: ir.Model) -> None:
    node(m, "n1").replace_input_with(0, ir.Value(name="ghost"))


def read_a_removed_node(m: ir.Model) -> None:
    m.graph.remove(node(m, "n1"))


def remove_a_writer_of_an_output(m: ir.Model) -> None:
    m.graph.remove(node(m, "n3"))


def return_twice(m: ir.Model) -> None:
    m.graph.outputs.append(m.graph.outputs[0])


def return_an_outer_value(m: ir.Model) -> None:
    graph = body(m, "else_branch")
    graph.outputs[0] = ir.Value(name="elsewhere")


def return_an_unknown_value(m: ir.Model) -> None:
    m.graph.outputs[0] = ir.Value(name="elsewhere")


def same_node_name(m: ir.Model) -> None:
    node(m, "n3").name = "t1"


def no_node_name(m: ir.Model) -> None:
    node(m, "n3").name = None


def same_value_name(m: ir.Model) -> None:
    node(m, "n1").outputs[0].name = "a"


def name_of_an_outer_value(m: ir.Model) -> None:
    node(m, "t0").outputs[0].name = "a"


def name_of_the_initializer(m: ir.Model) -> None:
    node(m, "n1").outputs[0].name = "w"


def no_value_name(m: ir.Model) -> None:
    node(m, "n1").outputs[0].name = ""


def initializer_under_another_key(m: ir.Model) -> None:
    m.graph.initializers.data["v"] = m.graph.initializers.data.pop("w")


def initializer_without_data(m: ir.Model) -> None:
    m.graph.initializers["w"].const_value = None


def forgotten_initializer(m: ir.Model) -> None:
    del m.graph.initializers["w"]


def initializer_of_another_graph(m: ir.Model) -> None:
    m.graph.initializers["w"]._graph = body(m, "then_branch")


def lost_use(m: ir.Model) -> None:
    m.graph.inputs[0]._uses.clear()


def wrong_use(m: ir.Model) -> None:
    value = m.graph.inputs[0]
    value._uses.clear()
    value._add_usage(node(m, "n3"), 1)


def use_by_a_node_outside(m: ir.Model) -> None:
    ir.Node("", "Abs", [m.graph.inputs[0]], name="outside")


def node_of_no_graph(m: ir.Model) -> None:
    node(m, "n1")._graph = None


def wrong_producer(m: ir.Model) -> None:
    node(m, "n1").outputs[0]._producer = node(m, "n0")


def wrong_output_index(m: ir.Model) -> None:
    node(m, "n1").outputs[0]._index = 3


def input_that_is_an_output(m: ir.Model) -> None:
    m.graph.inputs[0]._producer = node(m, "n0")


def input_without_graph(m: ir.Model) -> None:
    m.graph.inputs[0]._graph = None


def output_without_graph(m: ir.Model) -> None:
    m.graph.outputs[0]._is_graph_output = False


def input_twice(m: ir.Model) -> None:
    m.graph.inputs.append(m.graph.inputs[0])


def unknown_domain(m: ir.Model) -> None:
    node(m, "n1").domain = "com.microsoft"


def function_parameter(m: ir.Model) -> None:
    node(m, "n1").attributes.add(ir.RefAttr("alpha", "outer", ir.AttributeType.FLOAT))


DAMAGES: list[tuple[Callable[[ir.Model], None], str]] = [
    (swap_order, "node 'n1' reads 'a' before it is defined"),
    (read_from_a_body, "in graph 'then': value 'u' lists 2 uses ('t1', 'n3'), but 1"),
    (read_from_the_other_body, "in graph 'then': value 'u' lists 2 uses ('t1', 'e0'), but 1"),
    (read_own_output_in_a_body, "node 'e0' reads 'y'"),
    (read_nothing, "reads 'ghost'"),
    (read_a_removed_node, "reads 'b'"),
    (remove_a_writer_of_an_output, "output 's' is not defined"),
    (return_twice, "'y' is returned twice"),
    (return_an_outer_value, "in graph 'other': output 'elsewhere' is not defined"),
    (return_an_unknown_value, "output 'elsewhere' is not defined"),
    (same_node_name, "two nodes are called 't1'"),
    (no_node_name, "type Sum has no name"),
    (same_value_name, "two values are called 'a'"),
    (name_of_an_outer_value, "two values are called 'a'"),
    (name_of_the_initializer, "two values are called 'w'"),
    (no_value_name, "has no name"),
    (initializer_under_another_key, "initializer 'v' is called 'w'"),
    (initializer_without_data, "initializer 'w' has no data"),
    (forgotten_initializer, "reads 'w' before"),
    (initializer_of_another_graph, "initializer 'w' does not know its graph"),
    (lost_use, "'x' lists 0 uses (), but 1"),
    (wrong_use, "'x' lists a use that is none"),
    (use_by_a_node_outside, "'x' lists 2 uses ('n0', 'outside'), but 1"),
    (node_of_no_graph, "node 'n1' does not know its graph"),
    (wrong_producer, "output 0 of node 'n1' has another producer"),
    (wrong_output_index, "output 0 of node 'n1' has another producer"),
    (input_that_is_an_output, "input 'x' is also the output of a node"),
    (input_without_graph, "input 'x' does not know its graph"),
    (output_without_graph, "output 'y' does not know its graph"),
    (input_twice, "'x' is defined twice"),
    (unknown_domain, "domain 'com.microsoft' of node 'n1' is not imported"),
    (function_parameter, "refers to a parameter of a function"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=[d.__name__ for d, _ in DAMAGES])
def test_damage_is_noticed(
    model: ir.Model, damage: Callable[[ir.Model], None], message: str
) -> None:
    damage(model)
    with pytest.raises(InvariantError) as caught:
        check_structure(model)
    assert caught.value.code == "graph-invalid"
    assert message in caught.value.message


def test_names_are_not_asked_of_a_model_that_needs_none(model: ir.Model) -> None:
    no_node_name(model)
    same_value_name(model)
    check_links(model)
    swap_order(model)
    with pytest.raises(InvariantError):
        check_links(model)


def test_level_2_compares_initializers_with_their_data(model: ir.Model) -> None:
    value = model.graph.initializers["w"]
    value.shape = ir.Shape([3])
    check_structure(model, level=1)
    with pytest.raises(InvariantError, match=r"shape \[3\], its data \[2\]"):
        check_structure(model, level=2)
    value.shape = ir.Shape([2])
    value.const_value = ir.tensor(np.zeros(2, np.int64), name="w")
    with pytest.raises(InvariantError, match="has type FLOAT, its data INT64"):
        check_structure(model, level=2)


def test_types_are_required_on_demand(model: ir.Model) -> None:
    with pytest.raises(InvariantError, match="value 'a' has no type or no shape"):
        check_structure(model, require_types=True)
    for inner in model.graph.all_nodes():
        for value in inner.outputs:
            value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([2])
    check_structure(model, require_types=True)
    node(model, "n1").outputs[0].type = ir.TensorType(ir.DataType.UNDEFINED)
    with pytest.raises(InvariantError, match="value 'b'"):
        check_structure(model, require_types=True)
    # A sequence has no shape of its own.
    node(model, "n1").outputs[0].type = ir.SequenceType(ir.TensorType(ir.DataType.FLOAT))
    node(model, "n1").outputs[0].shape = None
    check_structure(model, require_types=True)


def test_unused_outputs_need_no_name() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["": 21]>'
        "g (float[4] x) => (float[2] a) { a, b = Split <num_outputs = 2> (x) }"
    )
    split = model.graph[0]
    split.name = "split"
    split.outputs[1].name = ""
    check_structure(model)


def chain(count: int, damaged: int | None = None) -> ir.Model:
    x = ir.val("x", ir.DataType.FLOAT, [2])
    nodes: list[ir.Node] = []
    value = x
    for index in range(count):
        node = ir.Node("", "Add", [value, x if index else value], name=f"n{index}")
        node.outputs[0].name = f"v{index}"
        value = node.outputs[0]
        nodes.append(node)
    if damaged is not None:
        nodes[damaged], nodes[damaged + 1] = nodes[damaged + 1], nodes[damaged]
    graph = ir.Graph([x], [value], nodes=nodes, opset_imports={"": 21}, name="g")
    return ir.Model(graph, ir_version=10)


def test_the_error_shows_five_nodes_on_either_side() -> None:
    with pytest.raises(InvariantError) as caught:
        check_structure(chain(100, damaged=50))
    lines = caught.value.message.splitlines()[1:]
    assert len(lines) == 11
    assert [line.strip() for line in lines if line.startswith("  >")] == [
        "> 50: v51 = Add(v50, x)  # n51"
    ]
    assert lines[0].strip() == "45: v45 = Add(v44, x)  # n45"
    assert caught.value.node == "n51"


def test_time_is_linear_in_nodes() -> None:
    small, large = chain(5_000), chain(20_000)
    times = []
    for model in (small, large):
        best = min(_seconds(model) for _ in range(3))
        times.append(best)
    assert times[1] < 10 * times[0], "four times the nodes; a square would be sixteen times"
    assert times[1] < 5


def _seconds(model: ir.Model) -> float:
    started = time.process_time()
    check_structure(model)
    return time.process_time() - started


def test_nesting_needs_no_recursion() -> None:
    # Deeper than the interpreter's recursion limit allows any walk that calls itself per level.
    inner = ir.Node("", "Identity", [ir.val("c", ir.DataType.BOOL, [])], name="leaf")
    condition = inner.inputs[0]
    assert condition is not None
    inner.outputs[0].name = "o"
    graph = ir.Graph([], [inner.outputs[0]], nodes=[inner], name="leaf")
    for depth in range(2_000):
        outer = ir.Node(
            "", "If", [condition], [ir.AttrGraph("then_branch", graph)], name=f"if{depth}"
        )
        outer.outputs[0].name = f"o{depth}"
        graph = ir.Graph(
            [condition] if depth == 1_999 else [],
            [outer.outputs[0]],
            nodes=[outer],
            opset_imports={"": 21},
            name=f"g{depth}",
        )
    check_structure(ir.Model(graph, ir_version=10))
