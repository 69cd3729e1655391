"""Quantized graphs run: the fused form computes what Q/DQ says, at every rank and dtype."""

import time

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from graphopt.errors import OptionError, UnsupportedError
from graphopt.ir.program import Program
from graphopt.ir.shapes import infer_shapes
from graphopt.passes.fuse_qdq import FuseQdq
from graphopt.passes.insert_qdq import InsertQdq
from graphopt.pipeline.base import PassResult
from graphopt.quantization.description import META_KEY, Description
from tests.passes.graphs import graph, ops_of, run

RNG = np.random.default_rng(0)


def quantized(text: str, ranges: dict[str, float], **weights: np.ndarray) -> ir.Model:
    model = graph(text, **{name: w.astype(np.float32) for name, w in weights.items()})
    infer_shapes(Program(model))
    clamped = {node.outputs[0].name for node in model.graph if node.op_type == "Relu"}
    options = tuple(f"{n}={0 if n in clamped else -b}:{b}" for n, b in ranges.items())
    result = InsertQdq(ranges=options)(model)
    assert result.modified
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return model


def optimized(model: ir.Model, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    data = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    outputs: list[np.ndarray] = session.run(None, feed)
    return outputs


CASES = {
    "conv": (
        (
            "g (float[n,3,5,5] x, float[4,3,3,3] w, float[4] b) => (float[n,4,3,3] y)"
            "{ c = Conv (x, w, b) y = Relu (c) }"
        ),
        {"x": 3.0, "c": 8.0, "y": 8.0},
        {"w": RNG.standard_normal((4, 3, 3, 3)) / 5, "b": RNG.standard_normal(4)},
        (2, 3, 5, 5),
        ["QuantizeLinear", "QLinearConv", "DequantizeLinear"],
    ),
    "depthwise": (
        (
            "g (float[n,4,5,5] x, float[4,1,3,3] w) => (float[n,4,3,3] y)"
            "{ y = Conv <group = 4> (x, w) }"
        ),
        {"x": 3.0, "y": 9.0},
        {"w": RNG.standard_normal((4, 1, 3, 3)) / 3},
        (1, 4, 5, 5),
        ["QuantizeLinear", "QLinearConv", "DequantizeLinear"],
    ),
    "rank 3": (
        "g (float[n,6,8] x, float[8,4] w) => (float[n,6,4] y) { y = MatMul (x, w) }",
        {"x": 3.0, "y": 9.0},
        {"w": RNG.standard_normal((8, 4)) / 3},
        (2, 6, 8),
        ["QuantizeLinear", "MatMulIntegerToFloat"],
    ),
    "two matrices": (
        (
            "g (float[n,8] x, float[8,4] w, float[4,4] v) => (float[n,4] y)"
            "{ h = MatMul (x, w) y = MatMul (h, v) }"
        ),
        {"x": 3.0, "h": 9.0, "y": 20.0},
        {"w": RNG.standard_normal((8, 4)) / 3, "v": RNG.standard_normal((4, 4))},
        (2, 8),
        ["QuantizeLinear", "QLinearMatMul", "MatMulIntegerToFloat"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_runtime_computes_the_fused_form(name: str) -> None:
    text, ranges, weights, shape, ops = CASES[name]
    model = quantized(text, ranges, **weights)
    feed = {"x": np.clip(RNG.standard_normal(shape), -3, 3).astype(np.float32)}
    simulated = run(model, feed)[0]
    deployed = optimized(model, feed)[0]
    fused = model.clone()
    assert FuseQdq()(fused).modified
    assert ops_of(fused) == ops
    step = 2 * ranges["y"] / 255
    assert np.abs(optimized(fused, feed)[0] - deployed).max() <= 1.01 * step
    assert np.abs(simulated - deployed).max() <= 1.01 * step
    float_model = graph(text, **{n: w.astype(np.float32) for n, w in weights.items()})
    wanted = run(float_model, feed)[0]
    assert 10 * np.log10(np.square(wanted).sum() / np.square(wanted - simulated).sum()) > 20


def test_an_old_opset_is_refused_with_what_to_do() -> None:
    model = graph(
        '<ir_version: 8, opset_import: ["" : 12]> g (float[1] x) => (float[1] y) {y = Relu (x)}'
    )
    with pytest.raises(UnsupportedError) as caught:
        InsertQdq(ranges=("x=0:1",))(model)
    assert caught.value.code == "quantization-opset"
    assert "raise-opset" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({}, "calibration-missing"),
        ({"ranges": ("x",)}, "quantization-range"),
        ({"ranges": ("x=0:1",), "activation": "uint4"}, "quantization-type"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], code: str) -> None:
    with pytest.raises((OptionError, ir.passes.PassError)) as caught:
        InsertQdq(**options)(graph("g (float[1] x) => (float[1] y) { y = Relu (x) }"))  # type: ignore[arg-type]
    found = caught.value if isinstance(caught.value, OptionError) else caught.value.__cause__
    assert isinstance(found, OptionError)
    assert found.code == code


def test_weights_that_two_nodes_share_are_stored_once() -> None:
    model = quantized(
        (
            "g (float[1,1,2,2] x, float[2,1,1,1] w) => (float[1,2,2,2] y, float[1,2,2,2] z)"
            "{ y = Conv (x, w) z = Conv (x, w) }"
        ),
        {"x": 1.0, "y": 2.0, "z": 2.0},
        w=RNG.standard_normal((2, 1, 1, 1)),
    )
    stored = [v for v in model.graph.initializers.values() if v.dtype is ir.DataType.INT8]
    assert sum(len(v.shape or ()) == 4 for v in stored) == 1


def test_a_mean_that_rounding_takes_comes_back_in_the_bias() -> None:
    weights = (RNG.standard_normal((4, 64, 1, 1)) * 0.02).astype(np.float32)
    weights[:, 0] = 1.0
    text = "g (float[n,64,1,1] x, float[4,64,1,1] w) => (float[n,4,1,1] y) { y = Conv (x, w) }"
    inputs = (RNG.standard_normal((64, 64, 1, 1)) * 0.05 + 2).astype(np.float32)
    wanted = run(graph(text, w=weights), {"x": inputs})[0].mean(axis=0)
    errors = []
    for means in ({}, {"x": inputs.mean(axis=(0, 2, 3)).astype(np.float64)}):
        model = graph(text, w=weights)
        infer_shapes(Program(model))
        ranges = {"x": (0.0, 2.5), "y": (-2.0, 8.0)}
        model.meta[META_KEY] = Description(ranges, means)
        InsertQdq()(model)
        got = run(model, {"x": inputs})[0].mean(axis=0)
        errors.append(float(np.abs(got - wanted).max()))
    assert errors[1] < 0.5 * errors[0]


def test_twenty_thousand_nodes_in_seconds() -> None:
    size = 5000
    weight = ir.Value(
        name="w",
        shape=ir.Shape([2, 2, 1, 1]),
        type=ir.TensorType(ir.DataType.FLOAT),
        const_value=ir.Tensor(np.ones((2, 2, 1, 1), np.float32), name="w"),
    )
    shape, kind = ir.Shape([1, 2, 4, 4]), ir.TensorType(ir.DataType.FLOAT)
    x = last = ir.Value(name="x", shape=shape, type=kind)
    nodes: list[ir.Node] = []

    def node(op_type: str, *inputs: ir.Value) -> ir.Value:
        number = len(nodes)
        attributes = {"kernel_shape": [1, 1]} if op_type == "MaxPool" else {}
        made = ir.node(op_type, list(inputs), attributes, name=f"{op_type}_{number}")
        made.outputs[0].name, made.outputs[0].shape = f"v{number}", shape
        made.outputs[0].type = kind
        nodes.append(made)
        return made.outputs[0]

    for _ in range(size):
        clamped = node("Relu", node("Conv", last, weight))
        last = node("MaxPool", node("Add", clamped, last))
    graph_ = ir.Graph(
        [x], [last], nodes=nodes, initializers=[weight], opset_imports={"": 13}, name="g"
    )
    model = ir.Model(graph_, ir_version=8)
    ranges = {v.name or "": (0.0, 1.0) for n in nodes for v in n.outputs} | {"x": (0.0, 1.0)}
    model.meta[META_KEY] = Description(ranges)
    started = time.process_time()
    result = InsertQdq()(model)
    assert isinstance(result, PassResult)
    # The tail after the last convolution, a sum and a move, stays float.
    assert result.rewrites == 3 * size - 2
    fused = FuseQdq()(model)
    assert isinstance(fused, PassResult)
    assert fused.rewrites == 3 * size - 2
    assert time.process_time() - started < 20
