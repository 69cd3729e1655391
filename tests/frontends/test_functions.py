"""Functions of a model are inlined: same numbers, sound names, linear time."""

import copy
import time

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from graphopt.errors import InvalidModelError
from graphopt.frontends.onnx_loader import load_onnx
from tests.frontends.hostile_base import branches, functions, parse


def test_functions_are_inlined() -> None:
    model = functions(
        "f <k> (a) => (b) { t = LeakyRelu <alpha: float = @k> (a)  b = d.h (t) };"
        "h (a) => (b) { t = Abs (a)  b = Neg (t) };unused (a) => (b) { b = Abs (a) }",
        "t = d.f <k = 0.5> (x)  y = d.h (t)",
    )
    program = load_onnx(model)
    operators = [node.op_type for node in program.graph]
    assert operators == ["LeakyRelu", "Abs", "Neg", "Abs", "Neg"]
    assert program.graph[0].attributes["alpha"].as_float() == 0.5
    assert not program.model.functions
    assert program.notes == ["3 functions were inlined: 'f', 'h', 'unused'"]
    names = [value.name for node in program.graph for value in node.outputs]
    assert len(set(names)) == len(names)
    assert program.graph.outputs[0].name == "y"


def test_a_function_inlined_beside_a_nested_graph_clashes_with_nothing() -> None:
    model = functions("f (a) => (b) { t = Abs (a)  b = Neg (t) }", "y = d.f (x)")
    body = parse("g (float[2] t) => (float[2] z) { z = Abs (t) }").graph
    body.ClearField("input")
    body.node.insert(0, helper.make_node("Neg", ["x"], ["t"]))
    empty = helper.make_node("If", ["c"], ["w"], then_branch=body, else_branch=body)
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    model.graph.node.append(empty)
    program = load_onnx(model)
    names = [str(value.name) for node in program.graph.all_nodes() for value in node.outputs]
    assert sorted(names) == ["t", "t_1", "t_2", "w", "y", "z", "z"]


def test_a_function_that_returns_its_input_renames_nobody() -> None:
    model = functions("f (a, b) => (a, t, b) { t = Abs (a) }", "z, y, w = d.f (x, x)")
    model.graph.output.add().CopyFrom(helper.make_tensor_value_info("z", TensorProto.FLOAT, [2]))
    model.graph.output.add().CopyFrom(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2]))
    program = load_onnx(model)
    assert [value.name for value in program.graph.inputs] == ["x"]
    assert [value.name for value in program.graph.outputs] == ["y", "z", "w"]
    assert [node.op_type for node in program.graph] == ["Abs", "Identity", "Identity"]
    assert {node.inputs[0].name for node in program.graph if node.inputs[0]} == {"x"}


def test_what_a_call_omits_is_omitted_inside() -> None:
    text = (
        "f <k, m: int = 7> (a, lo, hi) => (b, c) { c = Foo <k: int = @k, m: int = @m> (a)"
        "  b = Clip (c, lo, hi) };g <q> (a) => (b) { b, c = d.f <k: int = @q> (a, , a) }"
    )
    program = load_onnx(functions(text, "y = d.g <q = 3> (x)"))
    assert [node.op_type for node in program.graph] == ["Foo", "Clip"]
    found = {key: attr.as_int() for key, attr in program.graph[0].attributes.items()}
    assert found == {"k": 3, "m": 7}
    assert [value and value.name for value in program.graph[1].inputs] == ["c", None, "x"]
    program = load_onnx(functions(text, "y = d.g (x)"))
    assert list(program.graph[0].attributes) == ["m"]


def test_calls_inside_nested_graphs_are_inlined() -> None:
    model = branches("t = d.f (x)", "t")
    model.opset_import.add(domain="d", version=1)
    model.functions.extend(functions("f (a) => (b) { b = Neg (a) }", "y = d.f (x)").functions)
    body = load_onnx(model).graph[0].attributes["then_branch"].as_graph()
    assert [node.op_type for node in body] == ["Neg"]
    assert body.outputs[0].name == "t"


def test_a_function_brings_its_imports_and_its_own_order() -> None:
    model = functions("f (a) => (b) { t = Abs (a)  b = e.Foo (t) }", "y = d.f (x)")
    first, second = (copy.deepcopy(node) for node in model.functions[0].node)
    del model.functions[0].node[:]
    model.functions[0].node.extend([second, first])
    model.functions[0].opset_import.add(domain="e", version=4)
    program = load_onnx(model)
    assert [node.op_type for node in program.graph] == ["Abs", "Foo"]
    assert program.model.opset_imports["e"] == 4


def test_many_calls_of_one_function_take_linear_time() -> None:
    def seconds(count: int) -> float:
        model = functions("f (a) => (b) { t = Abs (a)  b = Neg (t) }", "y = d.f (x)")
        for index in range(count):
            model.graph.node.add(domain="d", op_type="f", input=["x"], output=[f"o{index}"])
        started = time.process_time()
        assert len(load_onnx(model).graph) == 2 * count + 2
        return time.process_time() - started

    few, many = (min(seconds(count) for _ in range(3)) for count in (200, 2000))
    assert many < 40 * few, "ten times the calls; a square would be a hundred times as long"


def test_few_calls_may_be_many_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"f{i} (a) => (c) {{ b = d.f{i + 1} (a)  c = d.f{i + 1} (b) }}" for i in range(8)]
    model = functions(";".join([*lines, "f8 (a) => (b) { b = Abs (a) }"]), "y = d.f0 (x)")
    assert len(load_onnx(model).graph) == 256
    monkeypatch.setattr("graphopt.frontends.functions.MAX_INLINED_NODES", 255)
    with pytest.raises(InvalidModelError, match="256 nodes") as caught:
        load_onnx(model)
    assert caught.value.code == "function-expansion"


def test_numbers_stay_the_same() -> None:
    model = functions(
        "h (a) => (p, q) { p = Neg (a)  q = Mul (a, p) };"
        "f <k> (a, b) => (c, d) { t = LeakyRelu <alpha: float = @k> (a)  c = Sub (t, b)"
        "  u, d = d.h (c) }",
        "s, t = d.f <k = 0.25> (x, x)  u, v = d.f <k = 0.5> (t, s)  y = Sub (u, v)",
    )
    program = load_onnx(model)
    feed = {"x": np.array([-1.5, 2.0], np.float32)}
    expected, found = (
        np.asarray(onnxruntime.InferenceSession(m.SerializeToString()).run(["y"], feed)[0])
        for m in (model, ir.to_proto(program.model))
    )
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(expected)) == 2
