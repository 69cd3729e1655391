"""Weights and biases as integers: scales, the 7-bit rule, and the bias that repairs the mean.

Weights are symmetric with zero point 0 in [-127, 127]. They are read once for the scales; the
integers are computed when the file is written, one tensor at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.ir.constants import read_array
from graphopt.quantization.scale_search import HEIGHT, TILE, squared_errors
from graphopt.quantization.threads import each

_LARGEST = 127
_LARGEST_BIAS = 2**31 - 1
_LEAST_SCALE = 1e-12
# 255 * (|a| + |b|) must stay below 2**15 for two weights that a kernel adds in 16 bits.
_LARGEST_PAIR = 127
_LAZY_BYTES = 1 << 16
# Elements that are widened to float64 at a time.
_PIECE = 1 << 20
# Elements that stay in the cache of a processor while several operations pass over them.
_CACHED = 1 << 17
# Tiles that are searched by several threads.
_TOGETHER = 8
# What a better range must gain of the error: less is chance in float32.
_CHANCE = 1e-6
# Parts of the largest weight that are tried as the end of the range.
_CUTS = np.linspace(1.0, 0.7, 13)

Floats = npt.NDArray[np.float64]
Tile = npt.NDArray[np.float32]


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


def row_pieces(array: npt.NDArray[np.floating]) -> Iterator[slice]:
    """Yield slices of the first axis that hold about a million elements each."""
    return _pieces(array, 0)


def _tiles(array: npt.NDArray[np.floating], axis: int) -> Iterator[tuple[slice, Tile]]:
    """Yield float32 tiles, [others, channels], and the channels on ``axis`` that each holds."""
    if array.ndim == 2 and axis == 1:
        step = max(HEIGHT, TILE // max(1, array.shape[1]) // HEIGHT * HEIGHT)
        for start in range(0, len(array), step):
            yield slice(None), np.ascontiguousarray(array[start : start + step], np.float32)
        return
    channels_first = np.moveaxis(array, axis, 0)
    others = array.size // max(1, len(channels_first))
    step = max(1, TILE // max(1, others))
    for start in range(0, len(channels_first), step):
        piece = slice(start, start + step)
        part = channels_first[piece]
        yield piece, np.ascontiguousarray(part.reshape(len(part), -1).T, np.float32)


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


def _two_largest_of_columns(array: npt.NDArray[np.floating]) -> Floats:
    """Return the second largest and the largest magnitude of each column, read row by row.

    Of some rows only the largest are kept. What is second is the largest of other rows, or stands
    beside the largest of all: those few rows are looked at again, column by column.
    """
    count = array.shape[1]
    height = min(len(array), HEIGHT)
    whole = len(array) // height * height
    step = max(1, TILE // (height * max(1, count)))
    groups = array[:whole].reshape(-1, height, count)

    def work(start: int) -> npt.NDArray[np.floating]:
        some = groups[start : start + step]
        low, high = some.min(axis=1), some.max(axis=1)
        largest: npt.NDArray[np.floating] = np.maximum(-low, high)
        return largest

    found = each(work, range(0, len(groups), step))
    first = np.concatenate([*found, np.abs(array[whole:])])
    places = first.argmax(axis=0)
    columns = np.arange(count)
    largest = first[places, columns]
    first[places, columns] = 0
    # Rows behind the last whole group are groups of their own.
    offsets = np.arange(height)[:, None]
    rows = np.where(places < len(groups), places * height + offsets, places + whole - len(groups))
    beside = np.abs(array[rows, columns])
    beside[beside.argmax(axis=0), columns] = 0
    alone = places >= len(groups)
    second = np.where(alone, 0, beside.max(axis=0))
    ends = np.stack([np.maximum(second, first.max(axis=0)), largest], axis=1)
    return ends.astype(np.float64)


def _ends(array: npt.NDArray[np.floating], axis: int) -> Floats:
    """Return the second largest and the largest magnitude of each channel."""
    if array.ndim == 2 and axis == 1 and len(array) > 1:
        return _two_largest_of_columns(array)
    return np.concatenate([_two_largest(rows) for rows in _rows(array, axis)])


def weight_scales(
    array: npt.NDArray[np.floating], axis: int, scheme: WeightScheme
) -> npt.NDArray[np.float32]:
    """Return the scale of each channel with the smallest squared error that ``scheme`` allows.

    The weights are read a few channels at a time: their wide copies are small however large a
    tensor is.
    """
    ends = _ends(array, axis)
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
    errors = _errors(array, axis, tried.astype(np.float32))
    least, scales = errors[0], best
    for error, other in zip(errors[1:], tried[1:], strict=True):
        better = error < least * (1 - _CHANCE)
        least, scales = np.where(better, error, least), np.where(better, other, scales)
    return _used(scales, largest)


def _errors(array: npt.NDArray[np.floating], axis: int, scales: Tile) -> Floats:
    """Return the squared error of each channel with each of its scales, or of all with one."""
    shared = scales.shape[1] == 1
    errors: Floats = np.zeros(scales.shape)

    def work(part: tuple[slice, Tile]) -> Floats:
        piece, tile = part
        some = np.repeat(scales, tile.shape[1], 1) if shared else scales[:, piece]
        return squared_errors(tile, np.ascontiguousarray(some), _LARGEST)

    tiles = _tiles(array, axis)
    while some := list(islice(tiles, _TOGETHER)):
        for (piece, _), found in zip(some, each(work, some), strict=True):
            if shared:
                errors += found.sum(axis=1, keepdims=True)
            else:
                errors[:, piece] += found
    return errors


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
    divisors = scales.reshape(shape)
    integers = np.empty(array.shape, np.int8)
    step = max(1, _CACHED // max(1, array.size // max(1, len(array))))

    def work(start: int) -> None:
        piece = slice(start, start + step)
        steps = array[piece] / (divisors[piece] if divisors.shape[0] > 1 else divisors)
        np.rint(steps, out=steps)
        np.clip(steps, -_LARGEST, _LARGEST, out=steps)
        integers[piece] = steps

    each(work, range(0, len(array), step))
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
    if array.ndim == 2 and axis == 1:
        return _lost_of_columns(array, scales, means)
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


def _lost_of_columns(
    array: npt.NDArray[np.floating], scales: npt.NDArray[np.float32], means: Floats
) -> Floats:
    """Return what ``lost_by_rounding`` does of the columns of a matrix, read row by row."""
    total: Floats = np.zeros(array.shape[1])
    step = max(1, _CACHED // max(1, array.shape[1]))
    for start in range(0, len(array), step):
        part = array[start : start + step]
        kept = integers_of(part, scales, 1) * scales.astype(np.float64)
        total += ((part - kept) * means[start : start + step, None]).sum(axis=0)
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
