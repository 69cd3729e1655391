"""Inference of one node, as passes use it for the nodes they make."""

import onnx_ir as ir
import pytest

from graphopt.errors import InvalidModelError, UnsupportedError
from graphopt.ir.dims import Bounds, add, mul, symbol
from graphopt.ir.program import Program, dims_of, set_dims
from graphopt.ir.shapes import KnownTensor, infer_node
from tests.ir.shape_models import inferred, ints, values_of, zeros

N = symbol("n")


def model_of(text: str) -> tuple[Program, ir.Model]:
    subject, _ = inferred(text)
    return subject, subject.model


def test_infer_node_types_the_outputs_of_a_new_node() -> None:
    subject, model = model_of("g (float[n, 3] x) => (y) { y = Relu (x) }")
    node = ir.node("Concat", [values_of(subject)["x"]] * 2, attributes={"axis": 0})
    assert infer_node(node, model) == {}
    assert dims_of(node.outputs[0]) == (mul(N, 2), 3)
    assert node.outputs[0].dtype is ir.DataType.FLOAT


def test_infer_node_reads_constants_and_returns_contents() -> None:
    subject, model = model_of("g (float[n, 3] x) => (y) { y = Relu (x) }")
    shape = ir.node("Shape", [values_of(subject)["x"]])
    known = infer_node(shape, model)
    assert known == {shape.outputs[0]: KnownTensor((2,), (N, 3))}
    one = ir.node("Constant", [], attributes={"value_ints": [1, 0]})
    added = ir.node("Add", [shape.outputs[0], one.outputs[0]])
    assert infer_node(added, model) == {}
    assert dims_of(added.outputs[0]) == (2,)
    assert infer_node(added, model, known=known) == {
        added.outputs[0]: KnownTensor((2,), (add(N, 1), 3))
    }
    weights = ir.Value(name="w", const_value=ir.tensor(ints(-1, 3, 1)))
    reshaped = ir.node("Reshape", [values_of(subject)["x"], weights])
    infer_node(reshaped, model)
    assert dims_of(reshaped.outputs[0]) == (N, 3, 1)


def test_infer_node_refuses_what_no_rule_decides() -> None:
    subject, model = model_of("g (float[n, 3] x) => (y) { y = Relu (x) }")
    node = ir.node("Magic", [values_of(subject)["x"]], domain="acme", name="m")
    with pytest.raises(UnsupportedError, match="there is no rule for acme:Magic") as caught:
        infer_node(node, model)
    assert caught.value.code == "no-shape-rule"
    assert caught.value.node == "m"


def test_infer_node_refuses_impossible_shapes() -> None:
    subject, model = model_of("g (float[n, 3] x) => (y) { y = Relu (x) }")
    wrong = ir.Value(name="w", const_value=ir.tensor(zeros(4, 4)))
    with pytest.raises(InvalidModelError, match="inner sizes differ: 3 and 4"):
        infer_node(ir.node("MatMul", [values_of(subject)["x"], wrong]), model)


def test_infer_node_registers_data_dependent_symbols() -> None:
    subject, model = model_of("g (float[n, 3] x) => (y) { y = Relu (x) }")
    node = ir.node("NonZero", [values_of(subject)["x"]], name="nz")
    infer_node(node, model)
    assert str(dims_of(node.outputs[0])) == "(2, Expr(nz_dim1))"
    assert subject.bounds["nz_dim1"] == Bounds(0, None)


@pytest.mark.parametrize(("opset", "expected"), [(11, (2, 1, 3)), (13, (2, 3))])
def test_infer_node_follows_the_opset_of_the_model(opset: int, expected: tuple[int, ...]) -> None:
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT))
    set_dims(x, (2, 1, 1, 3))
    model = ir.Model(ir.Graph([x], [], nodes=[], opset_imports={"": opset}), ir_version=10)
    # Since opset 13 the attribute means nothing, and every axis of size 1 goes.
    node = ir.node("Squeeze", [x], attributes={"axes": [1]})
    infer_node(node, model)
    assert dims_of(node.outputs[0]) == expected


def test_infer_node_types_the_bodies_of_control_flow() -> None:
    subject, model = model_of("g (float[n, 3] x, bool c) => (y) { y = Relu (x) }")
    x, condition = subject.graph.inputs
    bodies = []
    for op_type in ("Relu", "Abs"):
        inner = ir.node(op_type, [x])
        bodies.append(ir.Graph([], inner.outputs, nodes=[inner], name=op_type))
    node = ir.node(
        "If",
        [condition],
        attributes={"then_branch": bodies[0], "else_branch": bodies[1]},
    )
    infer_node(node, model)
    assert dims_of(node.outputs[0]) == (N, 3)
    assert [dims_of(body.outputs[0]) for body in bodies] == [(N, 3), (N, 3)]
