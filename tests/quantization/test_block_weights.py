"""Weights in blocks: exact integers, error bounds, and the operators that read them."""

import importlib.util
import tracemalloc
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from graphopt.errors import InvalidModelError, OptionError
from graphopt.quantization import block_weights, scale_search
from graphopt.quantization.block_weights import (
    METHODS,
    BlockScheme,
    Parts,
    dequantize,
    fitting_block,
    num_blocks,
    pack,
    quantize_blocks,
    quantize_matrix,
    stored_bytes,
    unpack,
)

RNG = np.random.default_rng(0)
SCHEMES = [
    BlockScheme(bits, block, symmetric, method)
    for bits in (4, 8)
    for block in (16, 64)
    for symmetric in (False, True)
    for method in METHODS
]


def some(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def label(scheme: BlockScheme) -> str:
    kind = "symmetric" if scheme.symmetric else "zero points"
    return f"{scheme.bits} bits, {scheme.block}, {kind}, {scheme.method}"


every_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=label)


def test_the_low_half_of_a_byte_comes_first() -> None:
    integers = np.array([[1, 2, 15, 0, 7]], np.uint8)
    packed = pack(integers, 4)
    assert packed.tolist() == [[0x21, 0x0F, 0x07]]
    assert unpack(packed, 4, 5).tolist() == integers.tolist()
    assert pack(integers, 8) is integers


def test_the_extremes_become_the_ends_of_the_range() -> None:
    values = np.array([[-1.0, 0.0, 0.6, 2.0]], np.float32)
    integers, scales, zeros = quantize_blocks(values, BlockScheme(4, 16, method="rtn"))
    assert integers.tolist() == [[0, 5, 8, 15]]
    assert scales == pytest.approx([0.2])
    assert zeros.tolist() == [5]


def test_a_range_always_holds_zero() -> None:
    values = np.array([[3.0, 4.0, 5.0, 6.0]], np.float32)
    integers, scales, zeros = quantize_blocks(values, BlockScheme(4, 16, method="rtn"))
    assert zeros.tolist() == [0]
    assert scales == pytest.approx([0.4])
    assert integers.tolist() == [[8, 10, 12, 15]]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_symmetric_block_uses_the_far_end_for_its_largest_magnitude(sign: float) -> None:
    values = np.array([[0.0, -3.0, 8.0, 1.0]], np.float32) * np.float32(sign)
    integers, scales, zeros = quantize_blocks(values, BlockScheme(4, 16, True, "rtn"))
    assert scales.tolist() == [-sign]
    assert zeros.tolist() == [8]
    assert integers.tolist() == [[8, 11, 0, 7]]


def test_a_narrow_block_has_a_positive_scale_and_leaves_the_lowest_integer_out() -> None:
    scheme = BlockScheme(8, 0, True, "rtn", narrow=True)
    integers, scales, zeros = quantize_blocks(np.array([[-12.7, 12.7, 1.0]], np.float32), scheme)
    assert integers.tolist() == [[1, 255, 138]]
    assert scales == pytest.approx([0.1])
    assert zeros.tolist() == [128]


@every_scheme
def test_no_number_is_further_off_than_half_a_step(scheme: BlockScheme) -> None:
    rounding = BlockScheme(scheme.bits, scheme.block, scheme.symmetric, "rtn")
    matrix = some(24, 100)
    parts = quantize_matrix(matrix, rounding)
    steps = np.repeat(np.abs(parts.scales), scheme.block, 1)[:, :100]
    # A symmetric block has one integer less on one side: what is cut there is below one step.
    allowed = steps * (1.0 if scheme.symmetric else 0.5) * 1.001
    assert (np.abs(matrix - dequantize(parts, rounding, 100)) <= allowed + 1e-7).all()


@every_scheme
def test_columns_are_the_rows_of_the_transposed_matrix(scheme: BlockScheme) -> None:
    matrix = some(70, 33)
    by_column = quantize_matrix(matrix, scheme, by_column=True)
    by_row = quantize_matrix(np.ascontiguousarray(matrix.T), scheme)
    for one, other in ((by_column.data, by_row.data), (by_column.scales, by_row.scales)):
        assert np.array_equal(one, other)
    assert np.array_equal(by_column.zero_points, by_row.zero_points)


@pytest.mark.parametrize("by_column", [False, True])
def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch, by_column: bool) -> None:
    matrix, scheme = some(90, 150), BlockScheme(4, 32)
    whole = quantize_matrix(matrix, scheme, by_column=by_column)
    monkeypatch.setattr(block_weights, "TILE", 200)
    monkeypatch.setattr(block_weights, "_LEAST_COLUMNS", 2)
    pieces = quantize_matrix(matrix, scheme, by_column=by_column)
    assert np.array_equal(whole.data, pieces.data)
    assert np.array_equal(whole.scales, pieces.scales)
    assert np.array_equal(whole.zero_points, pieces.zero_points)


def errors(matrix: np.ndarray, scheme: BlockScheme) -> np.ndarray:
    """Return the squared error of every block."""
    parts = quantize_matrix(matrix, scheme)
    left = (matrix - dequantize(parts, scheme, matrix.shape[1])).astype(np.float64) ** 2
    found: np.ndarray = left.reshape(len(matrix), -1, scheme.block).sum(-1)
    return found


@pytest.mark.parametrize("method", ["mse", "hqq"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_better_methods_worsen_no_block(method: str, symmetric: bool) -> None:
    matrix = RNG.standard_t(4, (64, 256)).astype(np.float32)
    rounded = errors(matrix, BlockScheme(4, 32, symmetric, "rtn"))
    fitted = errors(matrix, BlockScheme(4, 32, symmetric, method))
    assert (fitted <= rounded * (1 + 1e-5)).all()
    decibels = 10 * np.log10(rounded.sum() / fitted.sum())
    assert decibels > 0.2


def test_mse_comes_close_to_the_best_of_a_full_search() -> None:
    matrix = some(32, 128)
    scheme = BlockScheme(4, 32, True, "rtn")
    values = matrix.reshape(32, 4, 32)
    scales, zeros = block_weights.fitted_scales(values, scheme)
    best = np.full(scales.shape, np.inf, np.float32)
    for part in np.linspace(0.5, 1.2, 400, dtype=np.float32):
        tried = block_weights._squared_error(values, scales * part, zeros, scheme)
        best = np.minimum(best, tried)
    found = errors(matrix, BlockScheme(4, 32, True, "mse")).sum()
    assert 10 * np.log10(found / best.sum()) < 0.15


def test_zeros_and_next_to_nothing_stay_finite() -> None:
    matrix = np.zeros((2, 32), np.float32)
    matrix[1, :16] = 1e-42
    for method in METHODS:
        for symmetric in (False, True):
            scheme = BlockScheme(4, 16, symmetric, method)
            parts = quantize_matrix(matrix, scheme)
            assert np.isfinite(parts.scales).all()
            assert np.abs(dequantize(parts, scheme, 32)).max() <= 1e-30


@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
def test_what_no_scale_fits_is_refused(number: float) -> None:
    matrix = some(4, 32)
    matrix[2, 5] = number
    with pytest.raises(InvalidModelError) as caught:
        quantize_matrix(matrix, BlockScheme())
    assert caught.value.code == "weight-not-finite"


def test_integers_fit_the_scales_as_they_are_stored() -> None:
    matrix = some(16, 64).astype(np.float16)
    scheme = BlockScheme(8, 64, method="rtn")
    parts = quantize_matrix(matrix, scheme)
    assert parts.scales.dtype == np.float16
    steps = np.repeat(parts.scales.astype(np.float32), 64, 1)
    left = np.abs(matrix.astype(np.float32) - dequantize(parts, scheme, 64))
    # The scale is rounded to 11 bits, so the far ends of the range are cut by a part of a step.
    assert (left <= steps * 0.65).all()


@pytest.mark.parametrize(
    ("inner", "block", "wanted"),
    [
        (4096, 128, 128),
        (64, 128, 64),
        (172, 128, 64),  # three blocks of 64 fill up less than two of 128
        (172, 32, 32),
        (16, 32, 16),
        (5, 32, 16),
    ],
)
def test_the_block_with_the_fewest_bytes_is_taken(inner: int, block: int, wanted: int) -> None:
    scheme = BlockScheme(4, block)
    assert fitting_block(inner, scheme, 4) == wanted
    sizes = {
        b: stored_bytes(1, inner, BlockScheme(4, b), 4) for b in (16, 32, 64, 128) if b <= block
    }
    assert sizes[wanted] == min(sizes.values())


def test_a_block_that_divides() -> None:
    assert fitting_block(96, BlockScheme(4, 128), 4, dividing=True) == 32
    assert fitting_block(50, BlockScheme(4, 128), 4, dividing=True) == 0


def test_stored_bytes_are_those_of_the_parts() -> None:
    for scheme in SCHEMES:
        parts = quantize_matrix(some(7, 100), scheme)
        total = parts.data.nbytes + parts.scales.nbytes
        if not scheme.symmetric:
            total += pack(parts.zero_points, scheme.bits).nbytes
        assert stored_bytes(7, 100, scheme, 4) == total


@pytest.mark.parametrize(
    "wrong", [{"bits": 3}, {"block": 24}, {"block": 8}, {"block": 512}, {"method": "best"}]
)
def test_schemes_that_do_not_exist_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError) as caught:
        BlockScheme(**wrong)
    assert caught.value.code == "weight-scheme"


needs_numba = pytest.mark.skipif(
    importlib.util.find_spec("numba") is None, reason="numba is not installed"
)


@pytest.mark.parametrize("by_column", [False, True])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_numba)])
def test_memory_is_that_of_the_result(
    by_column: bool, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops = scale_search._Compiled()
    loops._present, loops._needed = compiled, 0
    monkeypatch.setattr(scale_search, "_COMPILED", loops)
    monkeypatch.setattr(scale_search, "_COMPILING_PAYS", 0)
    # What numba itself takes is not that of a matrix.
    quantize_matrix(np.zeros((64, 64), np.float32), BlockScheme(4, 32), by_column=by_column)
    assert bool(loops._loops) is compiled
    matrix = np.zeros((4096, 2048), np.float32)
    tracemalloc.start()
    try:
        quantize_matrix(matrix, BlockScheme(4, 32), by_column=by_column)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    result = stored_bytes(4096, 2048, BlockScheme(4, 32), 4)
    assert peak < result + 24e6 < matrix.nbytes


def run(nodes: list[Any], tensors: dict[str, Any], feeds: dict[str, np.ndarray]) -> np.ndarray:
    helper = onnx.helper
    kinds = {name: helper.np_dtype_to_tensor_dtype(a.dtype) for name, a in feeds.items()}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, kinds[n], a.shape) for n, a in feeds.items()],
        [helper.make_tensor_value_info("y", 1, None)],
        [onnx.numpy_helper.from_array(a, n) for n, a in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, feeds)[0]
    return result


def operands(parts: Parts, scheme: BlockScheme, inputs: list[str]) -> dict[str, np.ndarray]:
    tensors = {inputs[0]: parts.data, "s": parts.scales}
    if not scheme.symmetric:
        tensors["z"] = pack(parts.zero_points, scheme.bits)
    return tensors


@every_scheme
@pytest.mark.parametrize("inner", [64, 100, 15])
def test_onnxruntime_multiplies_by_these_weights(scheme: BlockScheme, inner: int) -> None:
    matrix, x = some(5, inner), some(2, 3, inner)
    parts = quantize_matrix(matrix, scheme)
    names = ["x", "b", "s"] + ([] if scheme.symmetric else ["z"])
    node = onnx.helper.make_node(
        "MatMulNBits",
        names,
        ["y"],
        domain="com.microsoft",
        K=inner,
        N=5,
        bits=scheme.bits,
        block_size=scheme.block,
        accuracy_level=1,
    )
    found = run([node], operands(parts, scheme, ["b"]), {"x": x})
    wanted = x @ dequantize(parts, scheme, inner).T
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


@every_scheme
def test_onnxruntime_looks_up_these_rows(scheme: BlockScheme) -> None:
    matrix, indices = some(9, 64), np.array([[0, 8, -1], [3, 3, 2]])
    parts = quantize_matrix(matrix, scheme)
    parts = Parts(parts.data.reshape(9, -1), parts.scales, parts.zero_points)
    names = ["d", "i", "s"] + ([] if scheme.symmetric else ["z"])
    node = onnx.helper.make_node(
        "GatherBlockQuantized",
        names,
        ["y"],
        domain="com.microsoft",
        gather_axis=0,
        quantize_axis=1,
        bits=scheme.bits,
        block_size=scheme.block,
    )
    found = run([node], operands(parts, scheme, ["d"]), {"i": indices})
    shaped = Parts(
        parts.data.reshape(9, num_blocks(64, scheme.block), -1), parts.scales, parts.zero_points
    )
    wanted = dequantize(shaped, scheme, 64)[indices]
    assert np.abs(found - wanted).max() <= 1e-6


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_is_as_good_as_that_of_onnxruntime(bits: int, symmetric: bool) -> None:
    theirs = pytest.importorskip("onnxruntime.quantization.matmul_nbits_quantizer")
    config = theirs.DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=symmetric, bits=bits)
    matrix = some(256, 96)
    packed, scales, zeros = theirs.DefaultWeightOnlyQuantizer(config).qbits_block_quant(matrix)
    blocks = 256 // 32
    points = np.full((96, blocks), 1 << (bits - 1), np.uint8)
    if not symmetric:
        points = unpack(zeros.reshape(96, -1), bits, blocks)
    scheme = BlockScheme(bits, 32, symmetric, "rtn")
    rival = dequantize(Parts(packed, scales.reshape(96, blocks), points), scheme, 256)
    ours = dequantize(quantize_matrix(matrix, scheme, by_column=True), scheme, 256)
    wanted = matrix.T.astype(np.float64)
    assert ((wanted - ours) ** 2).sum() <= 1.001 * ((wanted - rival) ** 2).sum()
