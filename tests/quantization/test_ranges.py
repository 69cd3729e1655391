"""Ranges: what each method keeps, and scale and zero point of it."""

import numpy as np
import pytest

from graphopt.quantization.histogram import histogram_of
from graphopt.quantization.ranges import (
    METHODS,
    Params,
    Scheme,
    params_for,
    quantize_array,
    range_of,
)

U8, S8 = Scheme("uint8"), Scheme("int8", symmetric=True)


def error(array: np.ndarray, method: str, scheme: Scheme) -> float:
    params = params_for(*range_of(histogram_of(array), method, scheme), scheme)
    integers = quantize_array(array, params, scheme).astype(np.float64)
    back = (integers - params.zero_point) * params.scale
    return float(np.square(back - array).mean())


@pytest.mark.parametrize(
    ("low", "high", "scheme", "scale", "zero"),
    [
        (0.0, 2.55, U8, 0.01, 0),
        (-2.55, 0.0, U8, 0.01, 255),
        (1.0, 2.55, U8, 0.01, 0),
        (-1.0, 1.55, U8, 0.01, 100),
        (0.0, 2.55, Scheme("int8"), 0.01, -128),
        (-1.0, 1.27, S8, 0.01, 0),
        (0.0, 0.0, U8, 1e-4 / 255, 0),
    ],
)
def test_params(low: float, high: float, scheme: Scheme, scale: float, zero: int) -> None:
    found = params_for(low, high, scheme)
    assert found.zero_point == zero
    assert found.scale == pytest.approx(scale, rel=1e-6)
    assert found.scale == float(np.float32(found.scale))


def test_zero_is_exact_for_every_range() -> None:
    for low, high in ((-0.3, 5.1), (-7.7, 0.1), (2.0, 3.0)):
        params = params_for(low, high, U8)
        integers = quantize_array(np.zeros(1, np.float32), params, U8)
        assert int(integers[0]) == params.zero_point


def test_symmetric_integers_never_reach_minus_128() -> None:
    integers = quantize_array(np.array([-9.0, 9.0], np.float32), Params(0.01, 0), S8)
    assert integers.tolist() == [-127, 127]


@pytest.mark.parametrize("scheme", [U8, S8])
def test_with_an_outlier_the_least_error_beats_min_max(scheme: Scheme) -> None:
    array = np.random.default_rng(0).standard_normal(400_000).astype(np.float32)
    array[0] = 12.0
    assert error(array, "mse", scheme) < 0.7 * error(array, "min-max", scheme)
    low, high = range_of(histogram_of(array), "percentile", scheme)
    assert -6 < low < -3
    assert 3 < high < 6
    assert range_of(histogram_of(array), "min-max", scheme) == (float(array.min()), 12.0)


@pytest.mark.parametrize("scheme", [U8, S8])
def test_entropy_differs_from_min_max_and_keeps_the_bulk(scheme: Scheme) -> None:
    array = np.random.default_rng(0).laplace(size=100_000).astype(np.float32)
    low, high = range_of(histogram_of(array), "entropy", scheme)
    assert high < float(array.max())
    assert high > 3.0
    assert low < -3.0


@pytest.mark.parametrize("method", METHODS)
def test_ranges_hold_zero_and_stay_inside_what_was_seen(method: str) -> None:
    rng = np.random.default_rng(3)
    for shift in (-3.0, 0.0, 3.0):
        array = (rng.standard_normal(5000) * 0.5 + shift).astype(np.float32)
        for scheme in (U8, S8):
            low, high = range_of(histogram_of(array), method, scheme)
            assert min(0.0, float(array.min())) <= low <= 0.0 <= high
            assert high <= max(0.0, float(array.max()))
