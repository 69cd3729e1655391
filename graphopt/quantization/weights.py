"""Weights and biases as integers: scales, the 7-bit rule, and the bias that repairs the mean.

Weights are symmetric with zero point 0 in [-127, 127]. They are read once for the scales; the
integers are computed when the file is written, one tensor at a time.
"""

from collections.abc import Iterator
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
# Elements that are widened to float64 at a time.
_PIECE = 1 << 20
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


def _pieces(array: npt.NDArray[np.floating], axis: int) -> Iterator[slice]:
    """Yield slices of ``axis`` that hold about a million elements each."""
    length = array.shape[axis]
    step = max(1, _PIECE // max(1, array.size // max(1, length)))
    for start in range(0, max(1, length), step):
        yield slice(start, start + step)


def _rows(array: npt.NDArray[np.floating], axis: int) -> Iterator[Floats]:
    """Yield the channels on ``axis`` as rows of float64, some at a time."""
    channels_first = np.moveaxis(array, axis, 0)
    for piece in _pieces(array, axis):
        part = channels_first[piece]
        yield part.reshape(len(part), -1).astype(np.float64)


def _two_largest(rows: Floats) -> Floats:
    """Return the second largest and the largest magnitude of each row."""
    magnitudes = np.abs(rows)
    # Two searches for the largest are several times faster than a partition.
    places = magnitudes.argmax(axis=1)[:, None]
    largest = np.take_along_axis(magnitudes, places, 1)
    np.put_along_axis(magnitudes, places, 0.0, 1)
    return np.concatenate([magnitudes.max(axis=1, keepdims=True), largest], axis=1)


def _squared_errors(rows: Floats, scales: Floats) -> Floats:
    """Return the error of each row with each of ``scales``, whose last axis is the rows or 1."""
    found = []
    for tried in scales:
        integers = np.clip(np.rint(rows / tried[:, None]), -_LARGEST, _LARGEST)
        found.append(((rows - integers * tried[:, None]) ** 2).sum(axis=1))
    return np.stack(found)


def weight_scales(
    array: npt.NDArray[np.floating], axis: int, scheme: WeightScheme
) -> npt.NDArray[np.float32]:
    """Return the scale of each channel with the smallest squared error that ``scheme`` allows.

    The weights are read a few channels at a time: their wide copies are small however large a
    tensor is.
    """
    ends = np.concatenate([_two_largest(rows) for rows in _rows(array, axis)])
    if not scheme.per_channel:
        ends = np.sort(ends, axis=None)[None, -2:]
    largest = ends[:, 1]
    # Two weights that a kernel adds in 16 bits meet the same bound as one that is stored alone.
    bounded = ends.sum(axis=1) / _LARGEST_PAIR if scheme.pairs_in_16_bits else largest / _LARGEST
    best = np.maximum(bounded, _LEAST_SCALE)
    if scheme.pairs_in_16_bits:
        # Cutting the range here would make the two largest weights meet the bound again.
        return _used(best, largest)
    tried = np.maximum(best * _CUTS[:, None], _LEAST_SCALE)
    errors = np.zeros(tried.shape)
    for piece, rows in zip(_pieces(array, axis), _rows(array, axis), strict=True):
        if scheme.per_channel:
            errors[:, piece] = _squared_errors(rows, tried[:, piece])
        else:
            errors += _squared_errors(rows, tried).sum(axis=1, keepdims=True)
    least, scales = errors[0], best
    for error, other in zip(errors[1:], tried[1:], strict=True):
        better = error < least * (1 - 1e-9)
        least, scales = np.where(better, error, least), np.where(better, other, scales)
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
    wide = scales.astype(np.float64).reshape(shape)
    integers = np.empty(array.shape, np.int8)
    for piece in _pieces(array, 0):
        divisor = wide[piece] if wide.shape[0] > 1 else wide
        steps = np.rint(array[piece] / divisor)
        integers[piece] = np.clip(steps, -_LARGEST, _LARGEST)
    return integers


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
    channels_first = np.moveaxis(array, axis, 0)
    input_axis += input_axis < axis
    others = tuple(i for i in range(1, array.ndim) if i != input_axis)
    per_group = means.reshape(groups, -1)
    group_of = np.repeat(np.arange(groups), len(channels_first) // groups)
    total: Floats = np.zeros(len(channels_first))
    for piece in _pieces(array, axis):
        part, scale = channels_first[piece], scales[piece] if len(scales) > 1 else scales
        wide = scale.astype(np.float64).reshape(-1, *[1] * (array.ndim - 1))
        lost = (part.astype(np.float64) - integers_of(part, scale, 0) * wide).sum(axis=others)
        total[piece] = (lost * per_group[group_of[piece]]).sum(axis=1)
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
