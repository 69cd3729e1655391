"""The candidates: ways to compute an operator into tensors that are given.

In: an operator with its arguments. Out: forms, best first. What always holds: every form computes
the operator by definition, whatever the values; whether it takes bytes besides, and whether torch
takes it at all, is for the probe to find out. The one list typed in here is of *what to try*.

Two candidates need no list: the ``out=`` overload of the same operator, and its twin that writes
over its first argument. The others are the same computation under another name. An
operator without any form can still be *opened*: computed by the smaller operators that torch itself
defines it by, each of which is looked at in turn.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table

from graphopt.backends.torch_out_probe import Form
from graphopt.backends.torch_out_recurrent import lstm_layer

_ATEN: Any = torch.ops.aten
_OpOverload = Any  # torch._ops.OpOverload has no annotations
_FACTORY_ARGUMENTS = ("dtype", "layout", "device", "pin_memory")


def forms_of(op: _OpOverload) -> list[Form]:
    """Return the forms of an operator, in the order in which they are tried."""
    found: list[Any] = list(_EQUIVALENT.get(_name(op), ()))
    found += [functools.partial(_through_out, out, names) for out, names in out_overloads(op)]
    twin = in_place_twin(op)
    if twin is not None:
        found.append(functools.partial(_through_twin, twin))
    return found


def opening_of(op: _OpOverload) -> Callable[..., Any] | None:
    """Return a function that computes ``op`` by smaller operators, where torch has one."""
    if _name(op) in _LEAVES:
        return None
    found: Callable[..., Any] | None = _OPENINGS.get(_name(op)) or decomposition_table.get(op)
    return found


@functools.cache
def out_overloads(op: _OpOverload) -> tuple[tuple[_OpOverload, tuple[str, ...]], ...]:
    """Return the ``out=`` overloads with the arguments of ``op``, and the names of their outs."""
    wanted = [(a.name, str(a.type)) for a in op._schema.arguments]
    without = [pair for pair in wanted if pair[0] not in _FACTORY_ARGUMENTS]
    found = []
    packet = op.overloadpacket
    for name in packet.overloads():
        overload = getattr(packet, name)
        arguments = overload._schema.arguments
        outs = tuple(a.name for a in arguments if a.is_out)
        taken = [(a.name, str(a.type)) for a in arguments if not a.is_out]
        if outs and taken in (wanted, without) and len(outs) == len(op._schema.returns):
            found.append((overload, outs))
    return tuple(found)


@functools.cache
def in_place_twin(op: _OpOverload) -> _OpOverload | None:
    """Return the overload that writes the result over the first argument, where there is one."""
    namespace, _, name = op._schema.name.partition("::")
    packet = getattr(getattr(torch.ops, namespace), f"{name}_", None)
    if packet is None or op._overloadname not in packet.overloads():
        return None
    twin = getattr(packet, op._overloadname)
    same = [(a.name, str(a.type)) for a in twin._schema.arguments] == [
        (a.name, str(a.type)) for a in op._schema.arguments
    ]
    return twin if same else None


def _name(op: _OpOverload) -> str:
    return str(op._schema.name).removeprefix("aten::")


def _through_out(
    overload: _OpOverload,
    names: tuple[str, ...],
    outs: Sequence[Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    known = {a.name for a in overload._schema.arguments}
    taken = {name: value for name, value in kwargs.items() if name in known}
    overload(*args, **taken, **dict(zip(names, outs, strict=True)))


def _through_twin(
    twin: _OpOverload, outs: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    outs[0].copy_(args[0])
    twin(outs[0], *args[1:], **kwargs)


def _relu(outs: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    torch.clamp_min(args[0], 0, out=outs[0])


def _copy(outs: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    outs[0].copy_(args[0])


def _copy_view(
    view: Callable[..., Tensor], outs: Sequence[Tensor], args: tuple[Any, ...], kwargs: Any
) -> None:
    outs[0].copy_(view(*args, **kwargs))


def _fill(
    value: float | None, outs: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    outs[0].fill_(kwargs.get("fill_value", args[-1]) if value is None else value)


def _embedding(outs: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    rows, index = args[:2]
    torch.index_select(rows, 0, index.view(-1), out=outs[0].view(-1, rows.shape[1]))


def _pad(outs: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    x, pads = args[:2]
    middle, inner = outs[0], x
    for pair in range(len(pads) // 2):
        axis = x.dim() - 1 - pair
        before, after = pads[2 * pair : 2 * pair + 2]
        first, last = max(before, 0), max(after, 0)
        middle = middle.narrow(axis, first, middle.shape[axis] - first - last)
        inner = inner.narrow(axis, max(-before, 0), middle.shape[axis])
    outs[0].fill_(args[2] if len(args) > 2 else 0)
    middle.copy_(inner)


def _repeat(outs: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    x, times = args
    sizes = [1] * (len(times) - x.dim()) + list(x.shape)
    pairs = [n for time, size in zip(times, sizes, strict=True) for n in (time, size)]
    ones = [n for size in sizes for n in (1, size)]
    outs[0].view(pairs).copy_(x.reshape(ones).expand(pairs))


def _layer_norm(outs: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    x, sizes, weight, bias, eps = args
    out, mean, scale = outs
    _normalize((out, mean, scale), x, len(sizes), eps)
    _affine(out, weight, bias)


def _group_norm(outs: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    x, weight, bias, batch, channels, inner, groups, eps = args
    out, mean, scale = outs
    rows = [batch * groups, channels // groups * inner]
    parts = (out.view(rows), mean.view(-1, 1), scale.view(-1, 1))
    _normalize(parts, x.view(rows), 1, eps)
    per_channel = [1, channels, 1]
    _affine(
        out.view(batch, channels, inner),
        None if weight is None else weight.view(per_channel),
        None if bias is None else bias.view(per_channel),
    )


def _normalize(outs: Sequence[Tensor], x: Tensor, num_axes: int, eps: float) -> None:
    """Write ``x`` with mean 0 and variance 1 over its last axes, the mean, and the scale."""
    out, mean, scale = outs
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError("sums in half precision are too coarse")
    axes = list(range(-num_axes, 0))
    torch.mean(x, axes, True, out=mean)
    torch.sub(x, mean, out=out)
    # The norm of the centred values is the only reduction that torch both vectorizes and centres.
    torch.linalg.vector_norm(out, 2, axes, True, out=scale)
    least = torch.full((), eps, dtype=x.dtype, device=x.device)
    torch.addcmul(least, scale, scale, value=mean.numel() / max(x.numel(), 1), out=scale)
    torch.rsqrt(scale, out=scale)
    torch.mul(out, scale, out=out)


def _affine(out: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    if weight is not None and bias is not None:
        torch.addcmul(bias, out, weight, out=out)
    elif weight is not None:
        out.mul_(weight)
    elif bias is not None:
        out.add_(bias)


def _pixel_shuffle(outs: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    x, factor = args
    *batch, channels, height, width = x.shape
    channels //= factor * factor
    parts = x.view(*batch, channels, factor, factor, height, width)
    first = len(batch)
    order = [*range(first + 1), first + 3, first + 1, first + 4, first + 2]
    place = outs[0].view(*batch, channels, height, factor, width, factor)
    place.copy_(parts.permute(order))


def _one_dnn_convolution(
    outs: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    # oneDNN adds a convolution to a tensor that it is given: to zeros it is the convolution.
    x, weight, bias, stride, padding, dilation, transposed, _, groups = args
    if transposed or x.dim() != 4:
        raise ValueError("not a forward convolution of images")
    innermost = torch.channels_last
    if not (outs[0].is_contiguous() or x.is_contiguous(memory_format=innermost)):
        swapped = torch.empty_like(x, memory_format=innermost)
        x = swapped.copy_(x)
    outs[0].zero_()
    torch.ops.mkldnn._convolution_pointwise_.binary(
        outs[0], x, weight, bias, padding, stride, dilation, groups, "add", 1.0, None, [], None
    )


def _matrix_convolution(
    outs: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    x, weight, bias, stride, padding, dilation, transposed, _, groups = args
    if transposed or groups != 1 or x.dim() not in (3, 4) or set(dilation) != {1}:
        raise ValueError("not a plain convolution")
    if x.dim() == 3:  # a sequence is an image of one row
        args = (x.unsqueeze(2), weight.unsqueeze(2), bias, [1, *stride], [0, *padding], [1, 1])
        _matrix_convolution([outs[0].unsqueeze(2)], (*args, False, [0, 0], 1), kwargs)
        return
    kernel = list(weight.shape[2:])
    _ATEN._slow_conv2d_forward.output(x, weight, kernel, bias, stride, padding, output=outs[0])


def _transposed_convolution(
    outs: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    x, weight, bias, stride, padding, dilation, transposed, more, groups = args
    if not transposed or groups != 1 or x.dim() != 4:
        raise ValueError("not a transposed convolution of images")
    kernel = list(weight.shape[2:])
    _ATEN.slow_conv_transpose2d.out(
        x, weight, kernel, bias, stride, padding, more, dilation, out=outs[0]
    )


def _cudnn_convolution(
    outs: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    x, weight, bias, stride, padding, dilation, transposed, _, groups = args
    if transposed:
        raise ValueError("not a forward convolution")
    flags = (False, False, False)  # benchmark, deterministic, TF32
    _ATEN.cudnn_convolution.out(x, weight, padding, stride, dilation, groups, *flags, out=outs[0])
    if bias is not None:
        outs[0].add_(bias.view([1, -1] + [1] * (x.dim() - 2)))


_EQUIVALENT: dict[str, tuple[Callable[..., None], ...]] = {
    "_to_copy": (_copy,),
    "clone": (_copy,),
    "constant_pad_nd": (_pad,),
    "convolution": (
        _one_dnn_convolution,
        _matrix_convolution,
        _transposed_convolution,
        _cudnn_convolution,
    ),
    "embedding": (_embedding,),
    "full": (functools.partial(_fill, None),),
    "full_like": (functools.partial(_fill, None),),
    "lift_fresh_copy": (_copy,),
    "native_group_norm": (_group_norm,),
    "native_layer_norm": (_layer_norm,),
    "ones": (functools.partial(_fill, 1),),
    "ones_like": (functools.partial(_fill, 1),),
    "pixel_shuffle": (_pixel_shuffle,),
    "relu": (_relu,),
    "repeat": (_repeat,),
    "zeros": (functools.partial(_fill, 0),),
    "zeros_like": (functools.partial(_fill, 0),),
}
_OPENINGS: dict[str, Callable[..., Any]] = {"mkldnn_rnn_layer": lstm_layer}
# Torch opens these only to compute them by something slower or larger than their own kernel.
_LEAVES = frozenset({"convolution", "mm", "addmm", "bmm", "baddbmm"})
