"""Weights and biases as integers: scales, the 7-bit rule, and the bias that repairs the mean.

Weights are symmetric with zero point 0 in [-127, 127]. They are read once for the scales; the
integers are computed when the file is written, one tensor at a time.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.ir.constants import read_array

_LARGEST = 127
_LARGEST_BIAS = 2**31 - 1
_LEAST_SCALE = 1e-12
# 255 * (|a| + |b|) must stay below 2**15 for two weights that a kernel adds in 16 bits.
_LARGEST_PAIR = 127
_LAZY_BYTES = 1 << 16
# Parts of the largest weight that are tried as the end of the range.
_CUTS = np.linspace(1.0, 0.7, 13)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class WeightScheme:
    """How weights are stored.

    Attributes:
        per_channel: One scale for each output channel, else one for all.
        pairs_in_16_bits: Kernels add two products in 16 bits: the two largest weights of a channel
            together must leave room for that.
    """

    per_channel: bool = True
    pairs_in_16_bits: bool = False


def weight_scales(
    array: npt.NDArray[np.floating], axis: int, scheme: WeightScheme
) -> npt.NDArray[np.float32]:
    """Return the scale of each channel with the smallest squared error that ``scheme`` allows."""
    rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1).astype(np.float64)
    if not scheme.per_channel:
        rows = rows.reshape(1, -1)
    magnitudes = np.abs(rows)
    largest = magnitudes.max(axis=1)
    least = np.full(len(rows), _LEAST_SCALE)
    if scheme.pairs_in_16_bits and rows.shape[1] > 1:
        two = np.partition(magnitudes, rows.shape[1] - 2, axis=1)[:, -2:].sum(axis=1)
        least = np.maximum(least, two / _LARGEST_PAIR)
    best = np.maximum(largest / _LARGEST, least)
    if scheme.pairs_in_16_bits:
        # Cutting the range here would make the two largest weights meet the bound again.
        return _used(best, largest)
    errors = np.full(len(rows), np.inf)
    scales = best.copy()
    for cut in _CUTS:
        tried = np.maximum(best * cut, _LEAST_SCALE)
        integers = np.clip(np.rint(rows / tried[:, None]), -_LARGEST, _LARGEST)
        error = ((rows - integers * tried[:, None]) ** 2).sum(axis=1)
        better = error < errors * (1 - 1e-9)
        errors, scales = np.where(better, error, errors), np.where(better, tried, scales)
    return _used(scales, largest)


def _used(scales: Floats, largest: Floats) -> npt.NDArray[np.float32]:
    """Return the scales as they are stored; a channel of zeros has scale 1."""
    return np.where(largest > 0, scales, 1.0).astype(np.float32)


def integers_of(
    array: npt.NDArray[np.floating], scales: npt.NDArray[np.float32], axis: int
) -> npt.NDArray[np.int8]:
    """Return the integers of ``array``."""
    shape = [1] * array.ndim
    if len(scales) > 1:
        shape[axis] = -1
    wide = np.rint(array.astype(np.float64) / scales.astype(np.float64).reshape(shape))
    return np.clip(wide, -_LARGEST, _LARGEST).astype(np.int8)


def quantized_tensor(
    tensor: ir.TensorProtocol, scales: npt.NDArray[np.float32], axis: int
) -> ir.TensorProtocol:
    """Return ``tensor`` as int8; one of more than 64 KiB is computed whenever it is read."""

    def compute() -> ir.TensorProtocol:
        integers = read_array(tensor, lambda array: integers_of(array, scales, axis))
        return ir.Tensor(integers, dtype=ir.DataType.INT8)

    if tensor.nbytes <= _LAZY_BYTES:
        return compute()
    return ir.LazyTensor(compute, ir.DataType.INT8, ir.Shape(tensor.shape.numpy()))


def lost_by_rounding(
    array: npt.NDArray[np.floating],
    scales: npt.NDArray[np.float32],
    axis: int,
    means: Floats,
    input_axis: int,
    groups: int,
) -> Floats:
    """Return the mean that each output channel loses to the rounding of the weights.

    Args:
        array: The weights.
        scales: Their scales.
        axis: Axis of the output channels.
        means: Mean of each input channel.
        input_axis: Axis of the weights that the input channels are on.
        groups: Groups of a convolution: channel ``c`` reads the inputs of its group only.
    """
    shape = [1] * array.ndim
    if len(scales) > 1:
        shape[axis] = -1
    used = integers_of(array, scales, axis) * scales.astype(np.float64).reshape(shape)
    lost = array.astype(np.float64) - used
    others = tuple(i for i in range(array.ndim) if i not in (axis, input_axis))
    lost = lost.sum(axis=others)
    lost = lost if axis < input_axis else lost.T
    per_group = means.reshape(groups, -1)
    rows = lost.reshape(groups, -1, lost.shape[1])
    total: Floats = np.matmul(rows, per_group[:, :, None]).reshape(-1)
    return total


def widen_for_bias(
    scales: npt.NDArray[np.float32], bias: Floats, input_scale: float
) -> npt.NDArray[np.float32]:
    """Return scales with which every bias fits 32 bits: a large bias widens its channel's."""
    needed = 2.0 * np.abs(bias) / input_scale / _LARGEST_BIAS
    if len(scales) == 1:
        needed = needed.max(keepdims=True)
    return np.maximum(scales, needed).astype(np.float32)


def integer_bias(
    bias: Floats, input_scale: float, scales: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Return the bias as int32 and its scale per channel: that of the products it is added to."""
    product = (np.float32(input_scale) * scales).astype(np.float32)
    scale = np.broadcast_to(product, bias.shape).astype(np.float32)
    wide = np.rint(bias / scale.astype(np.float64))
    return np.clip(wide, -_LARGEST_BIAS, _LARGEST_BIAS).astype(np.int32), scale
