"""Searches for scales: both forms make the same bits, and what they make is the best that is."""

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt.quantization import scale_search
from graphopt.quantization.block_weights import BlockScheme, dequantize, quantize_matrix
from graphopt.quantization.scale_search import best_scales, packed_integers, squared_errors
from graphopt.quantization.weights import WeightScheme, integers_of, weight_scales

PARTS = np.linspace(0.7, 1.05, 8).astype(np.float32)
needs_numba = pytest.mark.skipif(
    importlib.util.find_spec("numba") is None, reason="numba is not installed"
)
SHAPES = [(32, 300), (16, 1), (1, 5), (257, 3), (30, 2), (128, 64)]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> scale_search._Compiled:
    """Return loops of which none is loaded and all are needed at once."""
    found = scale_search._Compiled()
    found._searched = scale_search._COMPILING_PAYS
    monkeypatch.setattr(scale_search, "_COMPILED", found)
    return found


def use_numpy(compiled: scale_search._Compiled) -> None:
    compiled._present = False


def columns_of(shape: tuple[int, int]) -> scale_search.Floats:
    rng = np.random.default_rng(shape[0])
    columns = rng.standard_normal(shape, np.float32)
    columns[:, 0] = 0
    columns[0] *= 100
    return columns


def starts_of(columns: scale_search.Floats) -> tuple[scale_search.Floats, ...]:
    low, high = np.minimum(columns.min(0), 0), np.maximum(columns.max(0), 0)
    scales = scale_search.usable((high - low) / np.float32(15))
    zeros = np.clip(np.rint(-low / scales), 0, 15)
    return scales, zeros, -zeros, np.float32(15) - zeros


@needs_numba
@pytest.mark.parametrize("shape", SHAPES)
def test_numpy_and_numba_make_the_same_bits(
    shape: tuple[int, int], compiled: scale_search._Compiled
) -> None:
    columns = columns_of(shape)
    scales, zeros, low, high = starts_of(columns)
    cuts = scales * np.linspace(1, 0.7, 13, dtype=np.float32)[:, None]

    def found() -> list[np.ndarray]:
        best = best_scales(columns, scales, low, high, PARTS)
        packed = [packed_integers(columns.copy(), best, zeros, 0, 15, bits) for bits in (4, 8)]
        return [best, squared_errors(columns, cuts, 127), *packed]

    fast = found()
    expected = {"best_scales", "rests"} | ({"packed_integers"} if shape[0] % 2 == 0 else set())
    assert set(compiled._loops) == expected
    use_numpy(compiled)
    for one, other in zip(fast, found(), strict=True):
        assert one.dtype == other.dtype
        assert one.tobytes() == other.tobytes()


def test_every_scale_is_the_best_of_those_tried(compiled: scale_search._Compiled) -> None:
    use_numpy(compiled)
    columns = columns_of((32, 40))
    scales, _, low, high = starts_of(columns)
    best = best_scales(columns, scales, low, high, PARTS)
    wide = columns.astype(np.float64)
    for j in range(40):
        least = np.inf
        for part in PARTS:
            steps = np.clip(np.rint(wide[:, j] / (scales[j] * part)), low[j], high[j])
            squares = steps @ steps
            fitted = wide[:, j] @ steps / squares if squares else scales[j] * part
            least = min(least, ((wide[:, j] - fitted * steps) ** 2).sum())
        steps = np.clip(np.rint(wide[:, j] / best[j]), low[j], high[j])
        # Numbers in the middle of two integers may go the other way with the fitted scale.
        assert ((wide[:, j] - best[j] * steps) ** 2).sum() <= least * 1.05 + 1e-9


def test_errors_are_those_of_wide_numbers(compiled: scale_search._Compiled) -> None:
    use_numpy(compiled)
    columns = columns_of((70, 9))
    scales = np.stack([np.full(9, 0.02, np.float32), np.full(9, 0.3, np.float32)])
    wide, steps = columns.astype(np.float64), scales.astype(np.float64)[:, None]
    rest = wide - np.clip(np.rint(wide / steps), -127, 127) * steps
    expected = (rest**2).sum(axis=1)
    assert expected[0].max() > 1000
    np.testing.assert_allclose(squared_errors(columns, scales, 127), expected, rtol=1e-4)


@needs_numba
def test_numba_waits_until_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    found = scale_search._Compiled()
    monkeypatch.setattr(scale_search, "_CACHED_PAYS", 100)
    found._needed = 100
    assert found.loop("rests", 60) is None
    assert found._loops == {}
    # What is not in the cache has to pay for the compiling, too.
    monkeypatch.setattr(scale_search, "_COMPILING_PAYS", 1000)
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(()))
    assert found.loop("rests", 60) is None
    assert found._needed == 1000
    assert found.loop("rests", 900) is not None


def test_without_numba_numpy_searches() -> None:
    found = scale_search._Compiled()
    use_numpy(found)
    assert found.loop("rests", scale_search._COMPILING_PAYS) is None


def decibels(wide: np.ndarray, found: np.ndarray) -> float:
    return float(10 * np.log10((wide**2).sum() / ((wide - found) ** 2).sum()))


def trained_weights(assets: Path) -> list[np.ndarray]:
    """Return the matrices of a trained language model and the filters of a trained network."""
    arrays = []
    for name in ("stories260k_decode.onnx", "resnet20_cifar10.onnx"):
        model = onnx.load(assets / "models" / name)
        arrays += [onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    return [a for a in arrays if a.ndim in (2, 4) and a.dtype == np.float32 and a.size >= 2048]


def test_trained_weights_in_8_bits_lose_no_more_than_a_wide_search(assets: Path) -> None:
    """All cuts in float64, a channel at a time; only the scales are stored as float32."""
    arrays = trained_weights(assets)
    assert len(arrays) > 40
    cuts = np.linspace(1.0, 0.7, 13)
    for array in arrays:
        wide = array.reshape(len(array), -1).astype(np.float64)
        largest = np.maximum(np.abs(wide).max(axis=1), 1e-12)
        tried = (largest / 127 * cuts[:, None])[..., None]
        kept = np.clip(np.rint(wide / tried), -127, 127) * tried
        best = ((wide - kept) ** 2).sum(axis=2).min(axis=0).sum()
        scales = weight_scales(array, 0, WeightScheme())
        rounded = integers_of(array, scales, 0).reshape(wide.shape) * scales[:, None].astype("f8")
        wanted = 10 * np.log10((wide**2).sum() / best)
        assert decibels(wide, rounded) > wanted - 0.001


def test_trained_weights_in_4_bits_lose_no_more_than_a_wide_search(assets: Path) -> None:
    scheme = BlockScheme(4, 32, False, "mse")
    for array in trained_weights(assets):
        matrix = array.reshape(len(array), -1)
        inner = matrix.shape[1] // 32 * 32
        if not inner:
            continue
        wide = matrix[:, :inner].reshape(-1, 32).astype(np.float64)
        low, high = np.minimum(wide.min(1), 0), np.maximum(wide.max(1), 0)
        scales = np.maximum((high - low) / 15, 1e-12)
        zeros = np.clip(np.rint(-low / scales), 0, 15)[:, None]
        least = np.full(len(wide), np.inf)
        for part in np.linspace(0.7, 1.05, 8):
            steps = np.rint(wide / (scales * part)[:, None])
            steps = np.clip(steps, -zeros, 15 - zeros)
            squares = (steps**2).sum(1)
            fitted = (wide * steps).sum(1) / np.where(squares > 0, squares, 1)
            least = np.minimum(least, ((wide - steps * fitted[:, None]) ** 2).sum(1))
        parts = quantize_matrix(np.ascontiguousarray(matrix[:, :inner]), scheme)
        found = dequantize(parts, scheme, inner).reshape(wide.shape)
        assert decibels(wide, found) > 10 * np.log10((wide**2).sum() / least.sum()) - 0.05
