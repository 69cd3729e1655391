"""What passes raise, and what they are told not to believe."""

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.errors import InvalidModelError, InvariantError, OptionError
from graphopt.passes.fold_constants import FoldConstants
from graphopt.passes.fuse_activation import FuseActivation
from graphopt.passes.fuse_pad import FusePad
from graphopt.passes.infer_shapes import InferShapes
from graphopt.passes.sort_nodes import SortNodes
from tests.passes.graphs import assert_equal, graph, ops_of, random_inputs, run


def test_a_circle_is_refused() -> None:
    model = graph("g (float[2] x) => (float[2] y) { a = Add (x, x) b = Neg (a) y = Abs (b) }")
    first, second, _ = model.graph
    first.replace_input_with(1, second.outputs[0])
    with pytest.raises(InvalidModelError) as caught:
        SortNodes()(model)
    assert caught.value.code == "graph-has-cycle"


def test_an_activation_that_cannot_be_fused_is_refused() -> None:
    model = graph("g (float[2] x) => (float[2] y) { y = Gelu (x) }")
    with pytest.raises(OptionError) as caught:
        FuseActivation(activations=("Relu", "Gelu"))(model)
    assert caught.value.code == "activation-unknown"
    assert "Gelu" in str(caught.value)


def test_only_the_named_activations_are_fused() -> None:
    text = """g (float[1, 1, 4, 4] x, float[1, 1, 1, 1] w) => (float[1, 1, 4, 4] y) {
        a = Conv (x, w) b = Relu (a) c = Conv (b, w) y = Tanh (c) }"""
    model = graph(text, w=np.ones((1, 1, 1, 1), np.float32))
    InferShapes()(model)
    assert FuseActivation(activations=("Tanh",))(model).modified
    assert ops_of(model) == ["Conv", "Relu", "FusedConv"]
    assert model.graph.opset_imports["com.microsoft"] == 1


def test_a_result_that_is_not_as_declared_is_found_when_it_is_read() -> None:
    text = """g (float[300, 300] x, float[300, 300] w) => (float[300, 300] y) {
        a = Neg (w) y = Add (x, a) }"""
    model = graph(text, w=np.ones((300, 300), np.float32))
    wrong = model.graph.node(0).outputs[0]
    wrong.type, wrong.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([100, 900])
    FoldConstants()(model)
    tensor = model.graph.initializers["a"].const_value
    assert tensor is not None
    with pytest.raises(InvariantError) as caught:
        tensor.numpy()
    assert caught.value.code == "constant-not-as-inferred"
    assert "(300, 300)" in str(caught.value)


def test_the_budget_is_one_for_all_runs() -> None:
    text = """g (float[1, 600] x, float[1000] w) => (float[2, 600] y, float[1000] z) {
        a = Expand (one, shape) b = Mul (x, a) z = Neg (w) y = Identity (b) }"""
    text = text.replace(
        "g (float[1, 600] x,", "g (float[1, 600] x, float[1, 1] one, int64[2] shape,"
    )
    constants = {
        "one": np.ones((1, 1), np.float32),
        "shape": np.array([2, 600]),
        "w": np.ones(1000, np.float32),
    }
    model = graph(text, **constants)
    InferShapes()(model)
    # 4800 bytes grow the model of about 4 kB by more than all of it.
    assert not FoldConstants(max_growth=1.0)(model).modified
    assert FoldConstants(max_growth=1.5)(model).modified
    account = model.meta["graphopt.fold-constants"]
    assert account.growth == 4800
    assert account.weight_bytes == 4 + 16 + 4000


def test_padding_in_a_row_is_fused_at_once() -> None:
    text = """g (float[1, 1, 3, 3] x, float[1, 1, 3, 3] w, int64[8] p) => (float[1, 1, 5, 5] y) {
        a = Pad (x, p) b = Pad (a, p) y = Conv (b, w) }"""
    pads = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    model = graph(text, w=np.ones((1, 1, 3, 3), np.float32), p=pads)
    InferShapes()(model)
    feeds = random_inputs(model)
    wanted = run(model, feeds)
    assert FusePad()(model).modified
    assert ops_of(model) == ["Conv"]
    assert_equal(run(model, feeds), wanted, exact=False)
