"""Normalizations."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows it by
from torch import Tensor

from graphopt.backends.torch_ops.dtypes import torch_type
from graphopt.backends.torch_ops.registry import op
from graphopt.backends.torch_ops.small import is_tracing, shape_numbers
from graphopt.errors import UnsupportedError


def per_channel(parameter: Tensor, rank: int) -> Tensor:
    """Return a vector of channels so that it broadcasts with (N, C, ...)."""
    return parameter.reshape([-1, *[1] * (rank - 2)])


@op("BatchNormalization", several=True)
def _batch_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
    spatial: int = 1,
    is_test: int | None = None,
    consumed_inputs: list[int] | None = None,
    opset: int,
    count: int,
) -> tuple[Tensor, ...]:
    if not spatial:
        raise UnsupportedError("torch-operator-form", "BatchNormalization that is not spatial")
    trains = training_mode or (opset < 14 and count > 1) or (opset < 7 and not is_test)
    if not trains:
        if scale.dtype is x.dtype and mean.dtype is x.dtype:
            return (torch.batch_norm(x, scale, bias, mean, var, False, 0.0, epsilon, False),)
        return (_normalized(x, mean, var, scale, bias, epsilon),)
    axes = [axis for axis in range(x.dim()) if axis != 1]
    now = torch.mean(x, axes)
    spread = torch.var(x, axes, correction=0)
    result = _normalized(x, now, spread, scale, bias, epsilon)
    running = (mean * momentum + now * (1 - momentum), var * momentum + spread * (1 - momentum))
    return (result, *running)[:count]


def _normalized(
    x: Tensor, mean: Tensor, var: Tensor, scale: Tensor, bias: Tensor, epsilon: float
) -> Tensor:
    rank = x.dim()
    factor = per_channel(scale * torch.rsqrt(var + epsilon), rank)
    shifted = (x - per_channel(mean, rank)) * factor + per_channel(bias, rank)
    return shifted.to(x.dtype)


@op("InstanceNormalization")
def _instance_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    epsilon: float = 1e-5,
    consumed_inputs: list[int] | None = None,
) -> Tensor:
    axes = list(range(2, x.dim()))
    centred = x - torch.mean(x, axes, keepdim=True)
    spread = torch.mean(centred * centred, axes, keepdim=True)
    factor = per_channel(scale, x.dim()) * torch.rsqrt(spread + epsilon)
    return centred * factor + per_channel(bias, x.dim())


@op("GroupNormalization")
def _group_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    opset: int,
) -> Tensor:
    if opset >= 21:
        return F.group_norm(x, num_groups, scale, bias, epsilon)
    normal = F.group_norm(x, num_groups, None, None, epsilon)
    sizes = shape_numbers(normal)
    grouped = normal.reshape([sizes[0], num_groups, -1, *sizes[2:]])
    shape = [1, num_groups, *[1] * (x.dim() - 1)]
    return (grouped * scale.reshape(shape) + bias.reshape(shape)).reshape(sizes)


@op("LayerNormalization", several=True)
def _layer_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    count: int,
) -> tuple[Tensor, ...]:
    kind = torch_type(stash_type)
    axes = list(range(axis + x.dim() if axis < 0 else axis, x.dim()))
    if count == 1 and kind is x.dtype and scale.dim() == len(axes) and _plain_sizes(scale):
        return (F.layer_norm(x, list(scale.shape), scale, bias, epsilon),)
    wide = x.to(kind)
    mean = torch.mean(wide, axes, keepdim=True)
    centred = wide - mean
    factor = torch.rsqrt(torch.mean(centred * centred, axes, keepdim=True) + epsilon)
    result = (centred * factor).to(x.dtype) * scale
    return (result if bias is None else result + bias, mean, factor)[:count]


def _plain_sizes(scale: Tensor) -> bool:
    # A weight: sizes of a tensor that is computed would have to be asked from the tracer.
    return isinstance(scale, torch.nn.Parameter) and not is_tracing()


@op("RMSNormalization")
def _rms_normalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    axes = list(range(axis + x.dim() if axis < 0 else axis, x.dim()))
    wide = x.to(torch_type(stash_type))
    factor = torch.rsqrt(torch.mean(wide * wide, axes, keepdim=True) + epsilon)
    return (wide * factor).to(scale.dtype) * scale


@op("LRN")
def _lrn(
    x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Tensor:
    squares = (x * x).unsqueeze(1)
    pads = [0, 0] * (x.dim() - 2) + [(size - 1) // 2, size // 2]
    around = F.pad(squares, pads)
    count = x.shape[1]
    total = around.narrow(2, 0, count)
    for shift in range(1, size):
        total = total + around.narrow(2, shift, count)
    return x / torch.pow(bias + (alpha / size) * total.squeeze(1), beta)


@op("LpNormalization")
def _lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    total = torch.abs(x).sum(axis, True) if p == 1 else torch.sqrt((x * x).sum(axis, True))
    return torch.where(total == 0, torch.zeros_like(x), x / total)


@op("MeanVarianceNormalization")
def _mean_variance_normalization(x: Tensor, *, axes: list[int] | None = None) -> Tensor:
    where = [0, 2, 3] if axes is None else list(axes)
    centred = x - torch.mean(x, where, keepdim=True)
    return centred / (torch.sqrt(torch.mean(centred * centred, where, keepdim=True)) + 1e-9)


@op("SkipLayerNormalization", domain="com.microsoft")
def _skip_layer_normalization(
    x: Tensor,
    skip: Tensor,
    gamma: Tensor,
    beta: Any = None,
    bias: Any = None,
    *,
    epsilon: float = 1e-12,
) -> Tensor:
    total = x + skip if bias is None else x + skip + bias
    return F.layer_norm(total, [int(gamma.shape[0])], gamma, beta, epsilon)
