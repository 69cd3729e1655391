"""int8 for Arm: what onnxruntime makes of the files where int8 activations have kernels."""

import platform
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import graphopt
from graphopt.isolation import Worker
from tests.quantization.test_compile_encoder import compiled

RNG = np.random.default_rng(0)
WIDTH, HIDDEN, ROWS = 32, 64, 16
FLOAT = onnx.TensorProto.FLOAT


def layers(lead: list[Any], activation: str) -> onnx.ModelProto:
    """Return two layers around an activation, with a residual, and a third behind."""
    weights = {
        "w1": RNG.standard_normal((WIDTH, HIDDEN)) / 6,
        "b1": RNG.standard_normal(HIDDEN) / 2,
        "w2": RNG.standard_normal((HIDDEN, WIDTH)) / 8,
        "b2": RNG.standard_normal(WIDTH) / 2,
        "w3": RNG.standard_normal((WIDTH, WIDTH)) / 6,
        "b3": RNG.standard_normal(WIDTH),
    }
    node, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    nodes = [
        node("MatMul", ["x", "w1"], ["m1"], name="one"),
        node("Add", ["m1", "b1"], ["a1"], name="add1"),
        node(activation, ["a1"], ["r1"], name="act"),
        node("MatMul", ["r1", "w2"], ["m2"], name="two"),
        node("Add", ["m2", "b2"], ["a2"], name="add2"),
        node("Add", ["a2", "x"], ["s"], name="residual"),
        node("MatMul", ["s", "w3"], ["m3"], name="three"),
        node("Add", ["m3", "b3"], ["y"], name="add3"),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "layers",
        [info("x", FLOAT, [*lead, WIDTH])],
        [info("y", FLOAT, [*lead, WIDTH])],
        [onnx.numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 20)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)


def quantized(lead: list[Any], activation: str, folder: Path) -> tuple[Any, Path]:
    onnx.save(layers(lead, activation), folder / "m.onnx")
    sizes = [ROWS if isinstance(size, str) else size for size in (*lead, WIDTH)]
    data = [{"x": RNG.standard_normal(sizes).astype(np.float32)} for _ in range(8)]
    result = graphopt.compile(
        folder / "m.onnx", target="arm64-cpu", precision="int8", calibration_data=data
    )
    result.save(folder / "q.onnx")
    return result.quantization, folder / "q.onnx"


@pytest.mark.parametrize("length", [16, "length"])
@pytest.mark.parametrize("target", ["arm64-cpu", "raspberry-pi-5"])
def test_an_encoder_is_integer_at_fixed_and_free_lengths(
    length: int | str, target: str, tmp_path: Path
) -> None:
    result, path = compiled(length, tmp_path, target=target)
    report = result.quantization
    assert report.activation == "int8"
    assert report.returned == ()
    assert report.worst_db > 32
    assert report.kernels.float_nodes == {}
    assert report.kernels.kernels == {
        "lookup": "Gather",
        "widen": "MatMulIntegerToFloat",
        "narrow": "MatMulIntegerToFloat",
    }
    onnx.checker.check_model(onnx.load(path), full_check=True)


@pytest.mark.parametrize("length", [ROWS, "length"])
@pytest.mark.parametrize("rank", [2, 3, 4])
@pytest.mark.parametrize("activation", ["Relu", "Sigmoid"])
def test_linear_layers_are_integer_at_every_rank(
    activation: str, rank: int, length: int | str, tmp_path: Path
) -> None:
    report, _ = quantized([*([1] * (rank - 2)), length], activation, tmp_path)
    assert report.returned == ()
    assert report.worst_db > 32
    product = "QGemm" if rank == 2 else "MatMulIntegerToFloat"
    wanted = dict.fromkeys(("one", "two", "three"), product) | {"residual": "QLinearAdd"}
    wanted |= {"act": "QLinearSigmoid"} if activation == "Sigmoid" else {}
    assert report.kernels.kernels == wanted
    assert report.kernels.float_nodes == {}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only there int8 becomes uint8 first")
def test_what_this_processor_would_do_differs(tmp_path: Path) -> None:
    _, path = quantized([1, ROWS], "Relu", tmp_path)
    with Worker() as worker:
        there, here = (
            [node["op"] for node in worker.call("kernels", {"model": path, "int8": int8})["nodes"]]
            for int8 in (True, False)
        )
    assert there.count("QLinearAdd") == 1
    assert there.count("DequantizeLinear") == 0
    assert here.count("QLinearAdd") == 0
    assert here.count("DequantizeLinear") > 0
