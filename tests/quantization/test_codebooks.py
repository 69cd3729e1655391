"""Weights through a fixed table: what the kernel of onnxruntime computes, and what it costs."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import graphopt
from graphopt.errors import InvalidModelError, OptionError, UnsupportedError
from graphopt.numerics.sqnr import sqnr_db
from graphopt.quantization import codebooks
from graphopt.quantization.codebooks import (
    NF4,
    codebook_bytes,
    quantize_by_codebook,
    widen_codebook,
)

RNG = np.random.default_rng(0)
NODE = onnx.helper.make_node


def some(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def layers(width: int, count: int, bias: bool = False) -> onnx.ModelProto:
    info = onnx.helper.make_tensor_value_info
    nodes, weights, source = [], {}, "x"
    for index in range(count):
        weights[f"w{index}"] = some(width, width) / np.sqrt(width)
        inputs = [source, f"w{index}"]
        if bias:
            weights[f"b{index}"] = some(width)
            inputs.append(f"b{index}")
        kind = "Gemm" if bias else "MatMul"
        nodes.append(NODE(kind, inputs, [f"p{index}"], name=f"product{index}"))
        nodes.append(NODE("Tanh", [f"p{index}"], [f"h{index}"], name=f"tanh{index}"))
        source = f"h{index}"
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [info("x", 1, [2, width])],
        [info(source, 1, [2, width])],
        [onnx.numpy_helper.from_array(array.astype(np.float32), n) for n, array in weights.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 18)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, feed)
    array: np.ndarray = found
    return array


@pytest.mark.parametrize("block", [16, 64])
@pytest.mark.parametrize("shape", [(8, 64), (5, 44), (3, 7), (1, 33)])
def test_the_kernel_computes_with_the_widened_weights(shape: tuple[int, int], block: int) -> None:
    rows, inner = shape
    matrix = some(*shape)
    parts = quantize_by_codebook(matrix, block)
    info = onnx.helper.make_tensor_value_info
    node = NODE(
        "MatMulBnb4", ["x", "w", "s"], ["y"], domain="com.microsoft",
        K=inner, N=rows, block_size=block, quant_type=1,
    )  # fmt: skip
    tensors = [
        onnx.numpy_helper.from_array(parts.data, "w"),
        onnx.numpy_helper.from_array(parts.scales, "s"),
    ]
    ends = [info("x", 1, [4, inner]), info("y", 1, [4, rows])]
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:], tensors)
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    x = some(4, inner)
    wanted = x @ widen_codebook(parts, rows, inner, block).T
    assert np.abs(run(model, {"x": x}) - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert parts.data.nbytes + parts.scales.nbytes == codebook_bytes(rows, inner, block)


def test_values_of_the_table_stay() -> None:
    matrix = (NF4 * np.float32(3)).reshape(1, 16)
    parts = quantize_by_codebook(matrix, 16)
    assert parts.scales.tolist() == [3.0]
    # The first of two is the high half of a byte.
    assert parts.data.tolist() == [0x01, 0x23, 0x45, 0x67, 0x89, 0xAB, 0xCD, 0xEF]
    assert np.array_equal(widen_codebook(parts, 1, 16, 16), matrix)


@pytest.mark.parametrize("inner", [64, 44, 7])
def test_columns_are_the_rows_of_the_transposed(
    inner: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = some(70, inner)
    wanted = quantize_by_codebook(matrix, 16)
    # Several pieces.
    monkeypatch.setattr(codebooks, "_PIECE_ELEMENTS", 20 * inner)
    for found in (
        quantize_by_codebook(matrix, 16),
        quantize_by_codebook(np.ascontiguousarray(matrix.T), 16, by_column=True),
    ):
        assert np.array_equal(found.data, wanted.data)
        assert np.array_equal(found.scales, wanted.scales)


def test_every_number_gets_the_nearest_value_of_the_table() -> None:
    matrix = some(6, 64)
    parts = quantize_by_codebook(matrix, 64)
    wide = widen_codebook(parts, 6, 64, 64)
    choices = NF4 * parts.scales[:, None]
    nearest = np.abs(matrix[..., None] - choices[:, None]).min(-1)
    assert np.abs(matrix - wide) == pytest.approx(nearest, abs=1e-7)


def test_the_scale_loses_no_more_than_the_largest_magnitude() -> None:
    matrix = some(40, 64)
    parts = quantize_by_codebook(matrix, 64)
    ends = np.abs(matrix).max(1, keepdims=True)
    plain = NF4[np.abs((matrix / ends)[..., None] - NF4).argmin(-1)] * ends
    searched = np.square(widen_codebook(parts, 40, 64, 64) - matrix).sum(1)
    assert (searched <= np.square(plain - matrix).sum(1) * (1 + 1e-6)).all()
    assert searched.sum() < 0.97 * np.square(plain - matrix).sum()


def test_blocks_of_zeros_stay_zero() -> None:
    matrix = np.zeros((2, 64), np.float32)
    parts = quantize_by_codebook(matrix, 64)
    assert parts.scales.tolist() == [1.0, 1.0]
    assert not widen_codebook(parts, 2, 64, 64).any()


def test_infinite_weights_are_refused() -> None:
    with pytest.raises(InvalidModelError) as caught:
        quantize_by_codebook(np.full((2, 16), np.inf, np.float32), 16)
    assert caught.value.code == "weight-not-finite"


@pytest.mark.parametrize("bias", [False, True])
def test_a_compiled_model_runs(bias: bool, tmp_path: Path) -> None:
    original = layers(128, 4, bias)
    result = graphopt.compile(original, precision="nf4-weights")
    (path,) = result.save(tmp_path / "out.onnx")
    model = onnx.load(path)
    used = [node.op_type for node in model.graph.node]
    assert used.count("MatMulBnb4") == 4
    assert used.count("Add") == (4 if bias else 0)
    feed = {"x": some(2, 128)}
    name = model.graph.output[0].name
    decibels = sqnr_db([{name: run(original, feed)}], [{name: run(model, feed)}])[name]
    assert 13 < decibels < 40
    before = sum(pool.weight_bytes for pool in result.baseline.pools)
    after = sum(pool.weight_bytes for pool in result.plan.pools)
    assert after < 0.16 * before
    assert result.plan.not_planned == ()


def test_the_plan_holds_the_float_copy_that_the_kernel_makes() -> None:
    result = graphopt.compile(layers(128, 4), precision="nf4-weights")
    copies = [b for b in result.plan.buffers if b.kind == "scratch"]
    assert [copy.bytes for copy in copies] == [4 * 128 * 128] * 4
    assert result.plan.arena_bytes >= 4 * 128 * 128
    assert result.baseline.arena_bytes < 4 * 128 * 128


def test_one_weight_alone_would_gain_nothing() -> None:
    result = graphopt.compile(
        layers(64, 1), passes=["infer-shapes", "quantize-weights{block=64,form=nf4}"]
    )
    (skip,) = result.report[-1].skipped
    assert (skip.reason, skip.node) == ("widened-at-run", "product0")


def test_lookups_and_tied_heads_are_stored_in_8_bits(assets: Path, tmp_path: Path) -> None:
    path = assets / "models" / "stories260k_prefill.onnx"
    result = graphopt.compile(path, precision="nf4-weights")
    result.save(tmp_path / "out.onnx")
    nodes = onnx.load(tmp_path / "out.onnx").graph.node
    used = [node.op_type for node in nodes]
    assert used.count("MatMulBnb4") == 35
    assert used.count("MatMulNBits") == 1
    assert used.count("GatherBlockQuantized") == 1
    bits = {a.i for node in nodes for a in node.attribute if a.name == "bits"}
    assert bits == {8}


@pytest.mark.parametrize(
    ("precision", "target", "reason"),
    [
        ("kmeans-weights", "cpu", "a table of their own"),
        ("kmeans-weights", "ethos-u55", "a table of their own"),
        ("nf4-weights", "ethos-u55", "it stores int8"),
        ("nf4-weights", "nvidia-l4", "it stores float16"),
        ("nf4-weights", "apple-m4", "it stores float16"),
    ],
)
def test_targets_without_a_kernel_refuse(precision: str, target: str, reason: str) -> None:
    with pytest.raises(UnsupportedError, match=reason) as caught:
        graphopt.compile(layers(64, 2), precision=precision, target=target)
    assert caught.value.code == "codebook-no-kernel"


@pytest.mark.parametrize("target", ["cpu", "arm64-cpu", "raspberry-pi-5"])
def test_processors_take_the_fixed_table(target: str) -> None:
    result = graphopt.compile(layers(64, 3), precision="nf4-weights", target=target)
    assert sum("MatMulBnb4" in step.op for step in result.plan.steps) == 3


@pytest.mark.parametrize(
    ("keywords", "code"),
    [
        ({"precision": "nf4-weights", "calibration_data": [{}]}, "calibration-unused"),
        ({"passes": ["quantize-weights{form=nf4,bits=8}"]}, "weight-scheme"),
        ({"passes": ["quantize-weights{form=nf4,block=0}"]}, "weight-scheme"),
        ({"passes": ["quantize-weights{form=nf4,reconstruct=true}"]}, "weight-scheme"),
    ],
)
def test_options_that_make_no_sense_are_refused(keywords: dict[str, Any], code: str) -> None:
    with pytest.raises(OptionError) as caught:
        graphopt.compile(layers(64, 2), **keywords)
    assert caught.value.code == code


def test_halves_have_no_kernel() -> None:
    model = layers(64, 2)
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    result = graphopt.compile(
        model, passes=["infer-shapes", "quantize-weights{form=nf4,block=64}"], verify=False
    )
    found = {(skip.reason, skip.detail) for skip in result.report[-1].skipped}
    assert found == {("type-without-kernel", "FLOAT16")}
