"""Histograms count exactly, whatever the order and the batches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.quantization.histogram import BINS, Histogram, histogram_of


def same(a: Histogram, b: Histogram) -> None:
    assert (a.exponent, a.first, a.zeros, a.low, a.high) == (
        b.exponent,
        b.first,
        b.zeros,
        b.low,
        b.high,
    )
    np.testing.assert_array_equal(a.counts, b.counts)


def merged(parts: list[np.ndarray]) -> Histogram:
    total = Histogram()
    for part in parts:
        total.merge(histogram_of(part))
    return total


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.floats(-8, 8), min_size=2, max_size=5))
def test_merging_does_not_depend_on_the_order(seed: int, exponents: list[float]) -> None:
    rng = np.random.default_rng(seed)
    parts = [(rng.standard_normal(50) * 10.0**e).astype(np.float32) for e in exponents]
    forward, backward = merged(parts), merged(parts[::-1])
    assert forward.exponent == backward.exponent
    same(forward, backward)
    assert forward.elements == 50 * len(parts)
    assert len(forward.counts) <= BINS


def test_every_count_is_in_the_bin_of_its_number() -> None:
    array = np.random.default_rng(1).standard_normal(4000).astype(np.float32)
    found = histogram_of(array)
    width = 2.0**found.exponent
    edges = (found.first + np.arange(len(found.counts) + 1)) * width
    expected, _ = np.histogram(array.astype(np.float64), edges)
    np.testing.assert_array_equal(found.counts, expected)
    assert len(found.counts) > BINS // 4


def test_zeros_and_what_is_not_finite_are_counted_apart() -> None:
    found = histogram_of(np.array([0.0, -0.0, 1.0, np.inf, np.nan], np.float32))
    assert (found.zeros, found.not_finite, int(found.counts.sum())) == (2, 2, 1)
    assert (found.low, found.high) == (0.0, 1.0)
    assert histogram_of(np.zeros(3, np.float32)).elements == 3
    assert histogram_of(np.zeros(0, np.float32)).elements == 0


@pytest.mark.parametrize("number", [1e-38, 1e-45, 3e38, 1.0, -7.5])
def test_one_number_far_from_one(number: float) -> None:
    found = histogram_of(np.full(7, number, np.float32))
    assert found.elements == 7
    assert len(found.counts) <= 2
    assert found.low == found.high == np.float32(number)


def test_channel_means_over_samples_of_different_shapes() -> None:
    total = Histogram()
    rng = np.random.default_rng(2)
    parts = [rng.standard_normal((2, 3, n)).astype(np.float32) for n in (4, 9)]
    for part in parts:
        total.merge(histogram_of(part, 1))
    flat = np.concatenate([part.transpose(1, 0, 2).reshape(3, -1) for part in parts], axis=1)
    assert total.channel_sums is not None
    np.testing.assert_allclose(
        total.channel_sums / total.channel_count, flat.mean(axis=1), rtol=1e-6
    )


def test_extremes_of_channels_do_not_grow_with_samples() -> None:
    rng = np.random.default_rng(3)
    arrays = [rng.standard_normal((n, 5, 4)).astype(np.float32) for n in (1, 7, 3)]
    merged = Histogram()
    for array in arrays:
        merged.merge(histogram_of(array, channel_axis=1))
    whole = np.concatenate(arrays)
    assert merged.channel_lows is not None
    assert merged.channel_highs is not None
    assert merged.channel_lows.tolist() == whole.min(axis=(0, 2)).tolist()
    assert merged.channel_highs.tolist() == whole.max(axis=(0, 2)).tolist()
    assert Histogram(**merged.to_dict()).channel_highs is merged.channel_highs
    # An empty sample says nothing.
    merged.merge(histogram_of(np.zeros((0, 5, 4), np.float32), channel_axis=1))
    assert merged.channel_highs.tolist() == whole.max(axis=(0, 2)).tolist()
