"""Convolutions and pooling."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows it by
from torch import Tensor

from graphopt.backends.torch_ops.registry import op
from graphopt.backends.torch_ops.small import (
    Number,
    ceil_divide,
    floor_divide,
    is_known,
    maximum,
    minimum,
    plain_ints,
    product,
    shape_numbers,
)
from graphopt.errors import UnsupportedError

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_MAX_POOL: dict[int, Callable[..., Any]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def same_pads(
    x: Tensor, kernel: list[int], strides: list[int], dilations: list[int], lower: bool
) -> tuple[list[Number], list[Number]]:
    """Return what is padded before and after each axis so that sizes are divided by strides."""
    before, after = [], []
    for i, (k, s, d) in enumerate(zip(kernel, strides, dilations, strict=True)):
        size = x.shape[2 + i]
        total = maximum((ceil_divide(size, s) - 1) * s + (k - 1) * d + 1 - size, 0)
        half = floor_divide(total + 1, 2) if lower else floor_divide(total, 2)
        before.append(half)
        after.append(total - half)
    return before, after


def resolve_pads(
    x: Tensor,
    kernel: list[int],
    strides: list[int],
    dilations: list[int],
    auto_pad: str,
    pads: list[int] | None,
) -> tuple[list[Number], list[Number]]:
    """Return what is padded before and after each axis."""
    rank = len(kernel)
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        return same_pads(x, kernel, strides, dilations, auto_pad == "SAME_LOWER")
    if auto_pad == "VALID" or pads is None:
        return [0] * rank, [0] * rank
    return list(pads[:rank]), list(pads[rank:])


def pad_spatial(x: Tensor, before: list[Number], after: list[Number], value: float = 0.0) -> Tensor:
    """Pad the axes behind (N, C) with a value."""
    flat = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
    return x if all(is_known(n, 0) for n in flat) else F.pad(x, flat, value=value)


def _symmetric(before: list[Number], after: list[Number]) -> bool:
    return all(isinstance(n, int) for n in (*before, *after)) and before == after


@op("Conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """Return the convolution of ONNX."""
    rank = x.dim() - 2
    if rank not in _CONV:
        raise UnsupportedError("torch-operator-form", f"Conv over {rank} axes")
    kernel = kernel_shape or plain_ints(list(weight.shape[2:]))
    step, spread = strides or [1] * rank, dilations or [1] * rank
    before, after = resolve_pads(x, kernel, step, spread, auto_pad, pads)
    if _symmetric(before, after):
        return _CONV[rank](x, weight, bias, step, before, spread, group)
    return _CONV[rank](pad_spatial(x, before, after), weight, bias, step, 0, spread, group)


@op("ConvTranspose")
def _conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    output_padding: list[int] | None = None,
    output_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    rank = x.dim() - 2
    step, spread = strides or [1] * rank, dilations or [1] * rank
    extra = list(output_padding or [0] * rank)
    kernel = kernel_shape or plain_ints(list(weight.shape[2:]))
    before: list[Number] = [0] * rank if pads is None else list(pads[:rank])
    after: list[Number] = [0] * rank if pads is None else list(pads[rank:])
    if output_shape is not None or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        for i in range(rank):
            size = x.shape[2 + i]
            wanted = size * step[i] if output_shape is None else output_shape[i - rank]
            full = (size - 1) * step[i] + extra[i] + (kernel[i] - 1) * spread[i] + 1
            total = maximum(full - wanted, 0)
            if output_shape is not None:
                extra[i] += maximum(wanted - full, 0)
            small, large = floor_divide(total, 2), total - floor_divide(total, 2)
            upper = auto_pad == "SAME_UPPER"
            before[i], after[i] = (small, large) if upper else (large, small)
    return _transposed(x, weight, bias, step, spread, group, extra, before, after)


def _transposed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    step: list[int],
    spread: list[int],
    group: int,
    extra: list[Number],
    before: list[Number],
    after: list[Number],
) -> Tensor:
    function = _CONV_TRANSPOSE[x.dim() - 2]
    if _symmetric(before, after) and all(
        isinstance(e, int) and e < max(s, d) for e, s, d in zip(extra, step, spread, strict=True)
    ):
        return function(x, weight, bias, step, before, extra, group, spread)
    # Compute everything, then cut; what is added at the end has no input below it: the bias.
    y = function(x, weight, None, step, 0, 0, group, spread)
    y = pad_spatial(y, [0] * len(extra), extra)
    for i, (low, high) in enumerate(zip(before, after, strict=True)):
        y = y.narrow(2 + i, low, y.shape[2 + i] - low - high)
    return y if bias is None else y + bias.reshape([1, -1, *[1] * (x.dim() - 2)])


@op("FusedConv", domain="com.microsoft")
def _fused_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    z: Tensor | None = None,
    *,
    activation: str = "",
    activation_params: list[float] | None = None,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    y = conv(
        x,
        weight,
        bias,
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
    )
    y = y if z is None else y + z
    if activation == "Relu":
        return torch.relu(y)
    raise UnsupportedError("torch-operator-form", f"FusedConv with activation '{activation}'")


def _ceil_pads(
    x: Tensor,
    kernel: list[int],
    step: list[int],
    spread: list[int],
    before: list[Number],
    after: list[Number],
) -> list[Number]:
    """Return how much more is padded at the end so that rounding down gives what ceil mode gives.

    A window that would start in the padding at the end does not count.
    """
    extra: list[Number] = []
    for i, (k, s, d) in enumerate(zip(kernel, step, spread, strict=True)):
        size = x.shape[2 + i]
        free = size + before[i] + after[i] - (k - 1) * d - 1
        windows = ceil_divide(free, s) + 1
        # (windows - 1) * s < size + before: the last window starts on an element or before it.
        windows = minimum(windows, ceil_divide(size + before[i], s))
        extra.append(maximum((windows - 1) * s - free, 0))
    return extra


def _windows(x: Tensor, kernel: list[int], step: list[int], spread: list[int]) -> list[Tensor]:
    """Return, for every place in the kernel, the element each window sees there."""
    places: list[tuple[int, ...]] = [()]
    for k in kernel:
        places = [(*p, i) for p in places for i in range(k)]
    results = []
    for place in places:
        y = x
        for i, offset in enumerate(place):
            span = (kernel[i] - 1) * spread[i]
            length = x.shape[2 + i] - span
            y = y.narrow(2 + i, offset * spread[i], length)
            y = y[(*[slice(None)] * (2 + i), slice(None, None, step[i]))]
        results.append(y)
    return results


@op("MaxPool", several=True)
def _max_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: list[int] | None = None,
    kernel_shape: list[int],
    pads: list[int] | None = None,
    storage_order: int = 0,
    strides: list[int] | None = None,
    count: int,
) -> tuple[Tensor, ...]:
    rank = len(kernel_shape)
    step, spread = strides or [1] * rank, dilations or [1] * rank
    before, after = resolve_pads(x, kernel_shape, step, spread, auto_pad, pads)
    if count == 1 and not ceil_mode and _symmetric(before, after) and rank in _MAX_POOL:
        fits = all(2 * p <= k for p, k in zip(before, kernel_shape, strict=True))
        if fits and x.dtype.is_floating_point:
            return (_MAX_POOL[rank](x, kernel_shape, step, before, spread, False),)
    if ceil_mode:
        extra = _ceil_pads(x, kernel_shape, step, spread, before, after)
        after = [a + e for a, e in zip(after, extra, strict=True)]
    wide = x if x.dtype.is_floating_point else x.to(torch.float64)
    padded = pad_spatial(wide, before, after, float("-inf"))
    if count == 1 and rank in _MAX_POOL:
        result = _MAX_POOL[rank](padded, kernel_shape, step, 0, spread, False)
        return (result.to(x.dtype),)
    index = _element_numbers(x, bool(storage_order))
    numbers = pad_spatial(index, before, after, -1)
    values = torch.stack(_windows(padded, kernel_shape, step, spread))
    places = torch.stack(_windows(numbers.expand_as(padded), kernel_shape, step, spread))
    best, which = torch.max(values, 0, keepdim=True)
    return (best.squeeze(0).to(x.dtype), places.gather(0, which).squeeze(0))[:count]


def _element_numbers(x: Tensor, column_major: bool) -> Tensor:
    """Return the number of each element of ``x``, counted over the whole tensor."""
    sizes = shape_numbers(x)
    inside = sizes[2:]
    numbers = torch.arange(product(inside))
    if column_major:
        numbers = numbers.reshape(list(reversed(inside)))
        numbers = numbers.permute(list(reversed(range(len(inside)))))
    else:
        numbers = numbers.reshape(inside)
    planes = torch.arange(sizes[0] * sizes[1]) * product(inside)
    return numbers + planes.reshape([sizes[0], sizes[1], *[1] * len(inside)])  # type: ignore[no-any-return]  # numbers are Any


def _pool_sum(x: Tensor, kernel: list[int], step: list[int], spread: list[int]) -> Tensor:
    parts = _windows(x, kernel, step, spread)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


_AVERAGE: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@op("AveragePool")
def _average_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: list[int] | None = None,
    kernel_shape: list[int],
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    rank = len(kernel_shape)
    step, spread = strides or [1] * rank, dilations or [1] * rank
    before, after = resolve_pads(x, kernel_shape, step, spread, auto_pad, pads)
    plain = all(d == 1 for d in spread) and rank in _AVERAGE
    if plain and not ceil_mode and _symmetric(before, after):
        fits = all(2 * p <= k for p, k in zip(before, kernel_shape, strict=True))
        if fits:
            return _AVERAGE[rank](x, kernel_shape, step, before, False, bool(count_include_pad))
    extra: list[Number] = [0] * rank
    if ceil_mode:
        extra = _ceil_pads(x, kernel_shape, step, spread, before, after)
    counted = torch.ones_like(x.narrow(0, 0, 1).narrow(1, 0, 1))
    counted = pad_spatial(counted, before, after, 1.0 if count_include_pad else 0.0)
    padded = pad_spatial(pad_spatial(x, before, after), [0] * rank, extra)
    counted = pad_spatial(counted, [0] * rank, extra)
    if plain:
        size = product(kernel_shape)
        pool = _AVERAGE[rank]
        return pool(padded, kernel_shape, step) * size / (pool(counted, kernel_shape, step) * size)  # type: ignore[no-any-return]  # numbers are Any
    return _pool_sum(padded, kernel_shape, step, spread) / _pool_sum(
        counted, kernel_shape, step, spread
    )


@op("LpPool")
def _lp_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: list[int] | None = None,
    kernel_shape: list[int],
    p: int = 2,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    rank = len(kernel_shape)
    step, spread = strides or [1] * rank, dilations or [1] * rank
    before, after = resolve_pads(x, kernel_shape, step, spread, auto_pad, pads)
    if ceil_mode:
        extra = _ceil_pads(x, kernel_shape, step, spread, before, after)
        after = [a + e for a, e in zip(after, extra, strict=True)]
    powers = pad_spatial(torch.pow(torch.abs(x), p), before, after)
    return torch.pow(_pool_sum(powers, kernel_shape, step, spread), 1.0 / p)


@op("GlobalAveragePool")
def _global_average_pool(x: Tensor) -> Tensor:
    return torch.mean(x, list(range(2, x.dim())), keepdim=True)


@op("GlobalMaxPool")
def _global_max_pool(x: Tensor) -> Tensor:
    return torch.amax(x, list(range(2, x.dim())), keepdim=True)


@op("GlobalLpPool")
def _global_lp_pool(x: Tensor, *, p: int = 2) -> Tensor:
    powers = torch.pow(torch.abs(x), p)
    return torch.pow(torch.sum(powers, list(range(2, x.dim())), keepdim=True), 1.0 / p)


@op("MaxUnpool")
def _max_unpool(
    x: Tensor,
    indices: Tensor,
    output_shape: Tensor | None = None,
    *,
    kernel_shape: list[int],
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    rank = len(kernel_shape)
    step, edge = strides or [1] * rank, pads or [0] * (2 * rank)
    sizes = shape_numbers(x)
    own = sizes[:2] + [
        (sizes[2 + i] - 1) * step[i] - edge[i] - edge[i + rank] + kernel_shape[i]
        for i in range(rank)
    ]
    flat = torch.zeros([product(own)], dtype=x.dtype)
    result = flat.scatter(0, indices.reshape(-1), x.reshape(-1)).reshape(own)
    if output_shape is None:
        return result
    wanted = plain_ints(output_shape)
    extra = [wanted[2 + i] - own[2 + i] for i in range(rank)]
    return pad_spatial(result, [0] * rank, extra)
