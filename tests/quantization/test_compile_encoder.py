"""``compile(precision="int8")`` of a small text encoder: table, rank 3, residual, hidden layer."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import graphopt
from graphopt import compiler

WORDS, WIDTH, HIDDEN = 512, 32, 128


def encoder(length: int | str) -> onnx.ModelProto:
    """Return ``norm(x + linear(gelu(linear(x))))`` of the words' rows."""
    rng, node = np.random.default_rng(0), onnx.helper.make_node
    weights = {
        "table": rng.standard_normal((WORDS, WIDTH)),
        "w1": rng.standard_normal((WIDTH, HIDDEN)) / WIDTH**0.5,
        "b1": rng.standard_normal(HIDDEN) / 2,
        "w2": rng.standard_normal((HIDDEN, WIDTH)) / HIDDEN**0.5,
        "b2": rng.standard_normal(WIDTH) / 2,
        "gain": np.ones(WIDTH),
    }
    nodes = [
        node("Gather", ["table", "words"], ["x"], name="lookup"),
        node("MatMul", ["x", "w1"], ["m1"], name="widen"),
        node("Add", ["m1", "b1"], ["a1"], name="add1"),
        node("Gelu", ["a1"], ["g"], name="gelu"),
        node("MatMul", ["g", "w2"], ["m2"], name="narrow"),
        node("Add", ["b2", "m2"], ["a2"], name="add2"),
        node("Add", ["x", "a2"], ["r"], name="residual"),
        node("LayerNormalization", ["r", "gain"], ["y"], name="norm"),
    ]
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "encoder",
        [info("words", onnx.TensorProto.INT64, [1, length])],
        [info("y", onnx.TensorProto.FLOAT, [1, length, WIDTH])],
        [onnx.numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 20)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)


def samples() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"words": rng.integers(0, WORDS, (1, 16))} for _ in range(8)]


def compiled(length: int | str, folder: Path, **options: Any) -> tuple[Any, Path]:
    onnx.save(encoder(length), folder / "model.onnx")
    result = graphopt.compile(
        folder / "model.onnx", precision="int8", calibration_data=samples(), **options
    )
    result.save(folder / "q.onnx")
    return result, folder / "q.onnx"


def optimized(path: Path, folder: Path) -> list[str]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]


@pytest.mark.parametrize("length", [16, "length"])
@pytest.mark.parametrize("target", ["cpu", "cpu-vnni"])
def test_everything_eligible_is_integer_at_fixed_and_free_lengths(
    length: int | str, target: str, tmp_path: Path
) -> None:
    result, path = compiled(length, tmp_path, target=target)
    report = result.quantization
    assert report is not None
    assert report.returned == ()
    assert report.worst_db > 32
    assert report.kernels is not None
    assert report.kernels.float_nodes == {}
    assert report.kernels.kernels == {
        "lookup": "Gather",
        "widen": "MatMulIntegerToFloat",
        "narrow": "MatMulIntegerToFloat",
    }
    ops = optimized(path, tmp_path)
    products = ops.count("MatMulIntegerToFloat")
    # One in front of the first product and one behind each part of the hidden layer.
    assert ops.count("QuantizeLinear") == products >= 3
    assert "Add" not in ops
    assert "SkipLayerNormalization" not in ops
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    read = {value for node in model.graph.node for value in node.input}
    assert [t.name for t in model.graph.initializer if t.name not in read] == []
    floats = [t for t in model.graph.initializer if t.data_type == 1 and np.prod(t.dims) > HIDDEN]
    # No float table or weight is left; a scale for each row may be.
    assert all(list(t.dims) == [WORDS, 1] for t in floats)


def test_back_off_returns_the_table(tmp_path: Path) -> None:
    """The table makes most of the noise of the residual: without it the goal is met."""
    free, _ = compiled(16, tmp_path)
    goal = free.quantization.worst_db + 3
    result, _ = compiled(16, tmp_path, verify=graphopt.Tolerance(sqnr_db=goal))
    report = result.quantization
    assert report.worst_db >= goal
    assert any(what == "int8 alone: lookup" for what, _ in report.tried)
    for name in report.returned:
        assert report.reasons[name][0] == "kept-float"


def test_the_hidden_layer_in_parts_computes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, parts = compiled("length", tmp_path)
    assert [one.name for one in result.report][-1] == "split-products"
    parts.rename(tmp_path / "parts.onnx")
    monkeypatch.setattr(compiler, "_has_products", lambda program: False)
    result, path = compiled("length", tmp_path)
    before = graphopt.plan(path, bindings={"length": 16})
    after = graphopt.plan(tmp_path / "parts.onnx", bindings={"length": 16})
    assert after.peak_bytes < 0.8 * before.peak_bytes
    feed = samples()[0]
    a, b = (
        ort.InferenceSession(str(file)).run(None, feed)[0]
        for file in (path, tmp_path / "parts.onnx")
    )
    assert np.array_equal(a, b)
