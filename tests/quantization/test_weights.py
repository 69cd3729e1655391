"""Weights and biases as integers."""

import tracemalloc

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.quantization import weights as weights_module
from graphopt.quantization.weights import (
    WeightScheme,
    integer_bias,
    integers_of,
    lost_by_rounding,
    quantized_tensor,
    weight_scales,
    widen_for_bias,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_are_within_half_a_step_or_clipped_for_less_error(
    axis: int, per_channel: bool
) -> None:
    array = RNG.standard_normal((6, 5)).astype(np.float32) * np.arange(1, 6)
    scales = weight_scales(array, axis, WeightScheme(per_channel))
    assert scales.shape == ((array.shape[axis] if per_channel else 1),)
    integers = integers_of(array, scales, axis)
    assert int(np.abs(integers.astype(int)).max()) <= 127
    shape = [1, 1]
    shape[axis] = -1
    back = integers * scales.reshape(shape)
    plain = np.abs(array).max(axis=1 - axis if per_channel else None) / 127
    naive = np.rint(array / plain.reshape(shape)) * plain.reshape(shape)
    assert np.square(back - array).sum() <= np.square(naive - array).sum() * (1 + 1e-4)


def test_two_products_fit_sixteen_bits() -> None:
    """The largest sum that kernels without VNNI can meet stays below saturation."""
    for _ in range(200):
        array = RNG.standard_t(2, (3, 4, 3)).astype(np.float32)
        scales = weight_scales(array, 0, WeightScheme(pairs_in_16_bits=True))
        integers = np.abs(integers_of(array, scales, 0).astype(int)).reshape(3, -1)
        two = np.sort(integers, axis=1)[:, -2:].sum(axis=1)
        assert (255 * two <= 2**15 - 1).all()
        assert int(integers.max()) > 60


def test_without_the_bound_two_products_would_not_fit() -> None:
    array = np.ones((1, 2), np.float32)
    integers = integers_of(array, weight_scales(array, 0, WeightScheme()), 0)
    assert 255 * int(integers.astype(int).sum()) > 2**15 - 1


def test_a_channel_of_zeros_has_scale_one() -> None:
    scales = weight_scales(np.array([[0, 0], [1, 2]], np.float32), 0, WeightScheme())
    assert scales[0] == 1.0
    assert scales[1] == pytest.approx(2 / 127, rel=0.31)


def test_large_weights_are_computed_when_they_are_read() -> None:
    array = RNG.standard_normal((300, 200)).astype(np.float32)
    scales = weight_scales(array, 0, WeightScheme())
    tensor = quantized_tensor(ir.Tensor(array), scales, 0)
    assert isinstance(tensor, ir.LazyTensor)
    np.testing.assert_array_equal(tensor.numpy(), integers_of(array, scales, 0))
    assert not isinstance(quantized_tensor(ir.Tensor(array[:3]), scales[:3], 0), ir.LazyTensor)


def test_the_lost_mean_of_a_grouped_convolution() -> None:
    weights = RNG.standard_normal((4, 3, 2, 2)).astype(np.float32)
    means = RNG.standard_normal(6)
    scales = np.full(4, 0.5, np.float32)
    lost = lost_by_rounding(weights, scales, 0, means, 1, 2)
    rounded = np.rint(weights / 0.5) * 0.5
    for channel in range(4):
        group = means[:3] if channel < 2 else means[3:]
        expected = ((weights - rounded)[channel] * group[:, None, None]).sum()
        assert lost[channel] == pytest.approx(expected, rel=1e-5)


def test_the_lost_mean_of_a_matrix_multiplication() -> None:
    weights = RNG.standard_normal((3, 4)).astype(np.float32)
    means = RNG.standard_normal(3)
    lost = lost_by_rounding(weights, np.full(4, 0.5, np.float32), 1, means, 0, 1)
    np.testing.assert_allclose(lost, means @ (weights - np.rint(weights * 2) / 2), rtol=1e-6)


def test_a_bias_that_does_not_fit_widens_the_scale_of_its_channel() -> None:
    scales = np.array([1e-9, 0.01], np.float32)
    bias = np.array([1e4, 1e4])
    wide = widen_for_bias(scales, bias, 1e-3)
    assert wide[1] == scales[1]
    integers, scale = integer_bias(bias, 1e-3, wide)
    np.testing.assert_allclose(integers * scale.astype(np.float64), bias, rtol=1e-6)
    clipped, scale = integer_bias(bias, 1e-3, scales)
    assert abs(float(clipped[0]) * scale[0] - 1e4) > 1e3


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("pairs", [True, False])
def test_pieces_change_nothing(
    axis: int, per_channel: bool, pairs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = RNG.standard_normal((8, 6, 3)).astype(np.float32)
    means = RNG.standard_normal((array.shape[1 - axis],))
    scheme = WeightScheme(per_channel, pairs)

    def everything() -> list[np.ndarray]:
        scales = weight_scales(array, axis, scheme)
        lost = lost_by_rounding(array, scales, axis, means, 1 - axis, 1)
        return [scales, integers_of(array, scales, axis), lost]

    whole = everything()
    monkeypatch.setattr(weights_module, "_PIECE", 20)
    assert len(list(weights_module._pieces(array, axis))) > 3
    for expected, found in zip(whole, everything(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)


def test_wide_copies_are_small_however_large_the_weights() -> None:
    array = RNG.standard_normal((4096, 2048)).astype(np.float32)
    for scheme in (WeightScheme(), WeightScheme(pairs_in_16_bits=True)):
        tracemalloc.start()
        integers_of(array, weight_scales(array, 1, scheme), 1)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < array.size + (56 << 20)


@pytest.mark.parametrize("shape", [(1, 4), (2, 3), (5, 1), (3, 7), (1001, 33)])
def test_the_two_largest_of_columns(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read in pieces of some rows; ties, zeros, and both in one piece or in two."""
    monkeypatch.setattr(weights_module, "_CACHED", 7 * shape[1])
    for _ in range(20):
        array = np.rint(RNG.standard_normal(shape) * 3).astype(np.float32)
        ends = weights_module._ends(array, 1)
        ordered = np.sort(np.abs(array), axis=0)
        wanted = np.vstack([np.zeros((1, shape[1])), ordered])[-2:].T
        assert np.array_equal(ends, wanted)


def test_lost_means_of_columns_are_those_of_rows() -> None:
    array, means = RNG.standard_normal((70, 40)).astype(np.float32), RNG.random(70)
    scales = weight_scales(array, 1, WeightScheme())
    by_column = lost_by_rounding(array, scales, 1, means, 0, 1)
    by_row = lost_by_rounding(np.ascontiguousarray(array.T), scales, 0, means, 1, 1)
    assert np.allclose(by_column, by_row, rtol=0, atol=1e-6 * np.abs(by_row).max())
    assert np.abs(by_row).max() > 0
