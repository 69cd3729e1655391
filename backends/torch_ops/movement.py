"""Operators that copy elements to other places: slices, concatenation, padding, transposes."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows it by
from torch import Tensor

from graphopt.backends.torch_ops.registry import op
from graphopt.backends.torch_ops.small import (
    Number,
    Small,
    ceil_divide,
    cut_index,
    is_known,
    maximum,
    minimum,
    numbers_of,
    plain_ints,
    product,
    shape_numbers,
    tensor_of,
)
from graphopt.errors import UnsupportedError


@op("Transpose")
def _transpose(x: Tensor, *, perm: list[int] | None = None) -> Tensor:
    return x.permute(list(reversed(range(x.dim()))) if perm is None else list(perm))


@op("Concat", small=True)
def _concat(*inputs: Any, axis: int = 1) -> Any:
    if all(isinstance(x, Small) for x in inputs):
        return inputs[0].like([item for x in inputs for item in x.items], scalar=False)
    return torch.cat([tensor_of(x) for x in inputs], axis)


@op("Split", small=True, several=True)
def _split(
    x: Any,
    sizes: Any = None,
    *,
    axis: int = 0,
    split: list[int] | None = None,
    num_outputs: int | None = None,
    count: int,
) -> tuple[Any, ...]:
    if isinstance(x, Small):
        given = plain_ints(sizes) if sizes is not None else split
        lengths = _equal_parts(len(x.items), count) if given is None else given
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        return tuple(x.like(x.items[s : s + n]) for s, n in zip(starts, lengths, strict=True))
    if sizes is not None:
        return tuple(torch.split(x, numbers_of(sizes), axis))
    if split is not None:
        return tuple(torch.split(x, list(split), axis))
    size = x.shape[axis]
    if isinstance(size, int):
        return tuple(torch.split(x, _equal_parts(size, count), axis))
    return tuple(torch.split(x, ceil_divide(size, count), axis))


def _equal_parts(size: int, count: int) -> list[int]:
    chunk = -(-size // count)
    return [min(chunk, max(size - i * chunk, 0)) for i in range(count)]


@op("Slice", small=True)
def _slice(
    x: Any,
    starts: Any = None,
    ends: Any = None,
    axes: Any = None,
    steps: Any = None,
    *,
    attribute_axes: list[int] | None = None,
    attribute_starts: list[int] | None = None,
    attribute_ends: list[int] | None = None,
) -> Any:
    first = numbers_of(starts) if attribute_starts is None else attribute_starts
    last = numbers_of(ends) if attribute_ends is None else attribute_ends
    where = attribute_axes if axes is None else plain_ints(axes)
    if where is None:
        where = list(range(len(first)))
    step = [1] * len(first) if steps is None else plain_ints(steps)
    if isinstance(x, Small):
        if all(isinstance(n, int) for n in (*first, *last)):
            return x.like(x.items[_python_slice(len(x.items), first[0], last[0], step[0])])
        x = tensor_of(x)
    for axis, a, b, s in zip(where, first, last, step, strict=True):
        x = slice_axis(x, axis, a, b, s)
    return x


def _python_slice(size: int, start: int, end: int, step: int) -> slice:
    if step < 0 and end < -size:
        return slice(start, None, step)
    return slice(start, end, step)


def slice_axis(x: Tensor, axis: int, start: Number, end: Number, step: int) -> Tensor:
    """Slice one axis with the rules of ONNX: bounds are cut, negative ones count from the end."""
    axis = axis + x.dim() if axis < 0 else axis
    if step < 0:
        size = x.shape[axis]
        x = x.flip(axis)
        start, end = _mirrored(start, size), _mirrored(end, size)
        step = -step
    if is_known(start, 0) and type(end) is int and end >= 2**31 - 1 and step == 1:
        return x
    return x[(*[slice(None)] * axis, slice(start, end, step))]


def _mirrored(bound: Number, size: Number) -> Number:
    """Return where a bound lies in the flipped axis."""
    if type(bound) is int and bound < 0:
        return -bound - 1
    if type(bound) is int and bound >= 2**31 - 1:
        return 0
    return maximum(size - 1 - bound, 0)


@op("Pad", small=True)
def _pad(
    x: Any,
    pads: Any = None,
    value: Any = None,
    axes: Any = None,
    *,
    mode: str = "constant",
    attribute_pads: list[int] | None = None,
    paddings: list[int] | None = None,
    attribute_value: float | None = None,
) -> Tensor:
    x = tensor_of(x)
    amounts = (attribute_pads or paddings) if pads is None else numbers_of(pads)
    assert amounts is not None
    where = list(range(x.dim())) if axes is None else plain_ints(axes)
    count = len(where)
    before, after = [0] * x.dim(), [0] * x.dim()
    for i, axis in enumerate(where):
        before[axis], after[axis] = amounts[i], amounts[i + count]
    if mode != "constant":
        return _pad_by_index(x, before, after, mode)
    fill: Any = attribute_value if value is None else numbers_of(value)[0]
    flat = [n for axis in reversed(range(x.dim())) for n in (before[axis], after[axis])]
    while len(flat) > 2 and is_known(flat[-1], 0) and is_known(flat[-2], 0):
        flat = flat[:-2]
    if fill is None:
        fill = False if x.dtype is torch.bool else 0
    if isinstance(fill, Tensor):
        return _pad_with_tensor(x, flat, fill)
    if x.dtype is torch.bool:
        return F.pad(x.to(torch.uint8), flat, value=float(bool(fill))).to(torch.bool)
    return F.pad(x, flat, value=fill)


def _pad_with_tensor(x: Tensor, flat: list[Number], fill: Tensor) -> Tensor:
    inside = F.pad(torch.ones_like(x, dtype=torch.bool), flat, value=False)
    return torch.where(inside, F.pad(x, flat), fill.to(x.dtype))


def _pad_by_index(x: Tensor, before: list[Number], after: list[Number], mode: str) -> Tensor:
    """Pad with elements of the tensor: by taking, on every axis, the element each place shows."""
    for axis in range(x.dim()):
        low, high, size = before[axis], after[axis], x.shape[axis]
        if is_known(low, 0) and is_known(high, 0):
            continue
        places = torch.arange(size + low + high) - low
        if mode == "edge":
            places = cut_index(places, size)
        elif mode == "wrap":
            places = torch.remainder(places, size)
        else:
            period = maximum(2 * (size - 1), 1)
            places = torch.remainder(places, period)
            places = torch.minimum(places, period - places)
        x = x.index_select(axis, places)
    return x


@op("Tile", small=True)
def _tile(x: Any, repeats: Any, tiles_axis: Any = None) -> Any:
    if tiles_axis is not None:  # opset 1: how often, along which axis
        counts: list[Number] = [1] * tensor_of(x).dim()
        counts[plain_ints(tiles_axis)[0]] = numbers_of(repeats)[0]
    else:
        counts = numbers_of(repeats)
    return tensor_of(x).repeat(counts)


@op("DepthToSpace")
def _depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    batch, channels, height, width = shape_numbers(x)
    block, depth = blocksize, _whole(channels, blocksize * blocksize)
    if mode == "CRD":
        return F.pixel_shuffle(x, block)
    y = x.reshape([batch, block, block, depth, height, width]).permute(0, 3, 4, 1, 5, 2)
    return y.reshape([batch, depth, height * block, width * block])


@op("SpaceToDepth")
def _space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    batch, channels, height, width = shape_numbers(x)
    b = blocksize
    y = x.reshape([batch, channels, _whole(height, b), b, _whole(width, b), b])
    y = y.permute(0, 1, 3, 5, 2, 4) if mode == "CRD" else y.permute(0, 3, 5, 1, 2, 4)
    return y.reshape([batch, channels * (b * b), _whole(height, b), _whole(width, b)])


def _whole(size: Number, divisor: int) -> Number:
    if isinstance(size, Tensor):
        return torch.div(size, divisor, rounding_mode="floor")
    return size // divisor


@op("Trilu", small=True)
def _trilu(x: Any, k: Any = None, *, upper: int = 1) -> Tensor:
    x = tensor_of(x)
    shift = 0 if k is None else numbers_of(k)[0]
    if isinstance(shift, int):
        return torch.triu(x, shift) if upper else torch.tril(x, shift)
    row, column = torch.arange(x.shape[-2]).unsqueeze(1), torch.arange(x.shape[-1]).unsqueeze(0)
    kept = column - row >= shift if upper else column - row <= shift
    return torch.where(kept, x, torch.zeros_like(x))


@op("CenterCropPad", small=True)
def _center_crop_pad(x: Any, shape: Any, *, axes: list[int] | None = None) -> Tensor:
    x = tensor_of(x)
    wanted = numbers_of(shape)
    for axis, size in zip(axes or range(x.dim()), wanted, strict=True):
        have = x.shape[axis]
        cut, extra = maximum(have - size, 0), maximum(size - have, 0)
        start = _whole(cut, 2)
        x = slice_axis(x, axis, start, start + minimum(size, have), 1)
        low = _whole(extra, 2)
        flat: list[Number] = [0] * (2 * (x.dim() - 1 - (axis % x.dim())))
        x = F.pad(x, [*flat, low, extra - low])
    return x  # type: ignore[no-any-return]  # numbers are Any


@op("ReverseSequence")
def _reverse_sequence(
    x: Tensor, lengths: Tensor, *, batch_axis: int = 1, time_axis: int = 0
) -> Tensor:
    y = x.movedim((batch_axis, time_axis), (0, 1))
    time = torch.arange(y.shape[1]).unsqueeze(0)
    limit = lengths.unsqueeze(1)
    places = torch.where(time < limit, limit - 1 - time, time)
    places = places.reshape([*shape_numbers(places), *[1] * (y.dim() - 2)]).expand_as(y)
    return y.gather(1, places).movedim((0, 1), (batch_axis, time_axis))


@op("Col2Im", small=True)
def _col2im(
    x: Any,
    image_shape: Any,
    block_shape: Any,
    *,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    x = tensor_of(x)
    image, block = numbers_of(image_shape), plain_ints(block_shape)
    rank = len(block)
    spread, edge, step = dilations or [1] * rank, pads or [0] * 2 * rank, strides or [1] * rank
    if rank == 2 and edge[:2] == edge[2:]:
        return torch._C._nn.col2im(x, image, block, spread, edge[:2], step)
    return _col2im_any(x, plain_ints(image), block, spread, edge, step)


def _col2im_any(
    x: Tensor,
    image: list[int],
    block: list[int],
    spread: list[int],
    edge: list[int],
    step: list[int],
) -> Tensor:
    """Add every block at its place of a padded image; sizes are those of the sample."""
    rank = len(block)
    padded = [image[i] + edge[i] + edge[i + rank] for i in range(rank)]
    index = torch.zeros([1, 1], dtype=torch.int64)
    for i in range(rank):
        places = (padded[i] - spread[i] * (block[i] - 1) - 1) // step[i] + 1
        own = torch.arange(block[i]).unsqueeze(1) * spread[i] + torch.arange(places) * step[i]
        combined = index[:, None, :, None] * padded[i] + own[None, :, None, :]
        index = combined.reshape(index.shape[0] * block[i], index.shape[1] * places)
    channels = x.shape[1] // product(block)
    columns = x.reshape([x.shape[0], channels, -1])
    flat = torch.zeros([x.shape[0], channels, product(padded)], dtype=x.dtype)
    flat = flat.index_add(2, index.reshape(-1), columns)
    result = flat.reshape([x.shape[0], channels, *padded])
    for i in range(rank):
        result = result.narrow(2 + i, edge[i], image[i])
    return result


@op("TensorScatter")
def _tensor_scatter(
    past: Tensor,
    update: Tensor,
    write: Tensor | None = None,
    *,
    axis: int = -2,
    mode: str = "linear",
) -> Tensor:
    axis = axis + past.dim() if axis < 0 else axis
    length = update.shape[axis]
    start = torch.zeros([past.shape[0]], dtype=torch.int64) if write is None else write
    places = start.unsqueeze(1) + torch.arange(length)
    if mode == "circular":
        places = torch.remainder(places, past.shape[axis])
    elif mode != "linear":
        raise UnsupportedError("torch-operator-form", f"TensorScatter of mode '{mode}'")
    between, after = axis - 1, past.dim() - axis - 1
    index = places.reshape([places.shape[0], *[1] * between, length, *[1] * after])
    return past.scatter(axis, index.expand_as(update), update)
