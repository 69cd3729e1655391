"""Reductions, arg-reductions, softmax, cumulative sums, matrix products."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from graphopt.backends.torch_ops.dtypes import as_type, to_computable
from graphopt.backends.torch_ops.registry import op
from graphopt.backends.torch_ops.small import Small, plain_ints, product, tensor_of

Reduce = Callable[[Tensor, list[int], bool], Tensor]


def _extreme(function: Callable[..., Tensor]) -> Reduce:
    def run(x: Tensor, axes: list[int], keep: bool) -> Tensor:
        if 0 in [size for size in x.shape if isinstance(size, int)]:
            return _extreme_of_none(x, axes, keep, function is torch.amax)
        if x.dtype is torch.bool:
            return function(x.to(torch.uint8), axes, keep).to(torch.bool)
        return function(x, axes, keep)

    return run


def _extreme_of_none(x: Tensor, axes: list[int], keep: bool, largest: bool) -> Tensor:
    """Return the neutral element where an axis has no elements."""
    if x.dtype is torch.bool:
        return torch.full_like(torch.sum(x, axes, keep), not largest, dtype=x.dtype)
    info = torch.finfo(x.dtype) if x.dtype.is_floating_point else torch.iinfo(x.dtype)
    fill: Any = info.min if largest else info.max
    if x.dtype.is_floating_point:
        fill = float("-inf") if largest else float("inf")
    return torch.full_like(torch.sum(x, axes, keep), fill, dtype=x.dtype)


def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keep)
    return x


_KINDS: dict[str, Reduce] = {
    "ReduceL1": lambda x, axes, keep: torch.sum(torch.abs(x), axes, keep),
    "ReduceL2": lambda x, axes, keep: torch.sqrt(torch.sum(x * x, axes, keep)),
    "ReduceLogSum": lambda x, axes, keep: torch.log(torch.sum(x, axes, keep)),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keep),
    "ReduceMax": _extreme(torch.amax),
    "ReduceMean": lambda x, axes, keep: torch.mean(x, axes, keep),
    "ReduceMin": _extreme(torch.amin),
    "ReduceProd": _prod,
    "ReduceSum": lambda x, axes, keep: torch.sum(x, axes, keep),
    "ReduceSumSquare": lambda x, axes, keep: torch.sum(x * x, axes, keep),
}
_OF_FLOATS = ("ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean")


def _reduction(name: str) -> Callable[..., Any]:
    compute = _KINDS[name]

    def run(
        x: Any,
        axes: Any = None,
        *,
        attribute_axes: list[int] | None = None,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Any:
        if isinstance(x, Small) and name == "ReduceProd" and not x.scalar:
            return x.like([product(x.items)], scalar=not keepdims)
        x = tensor_of(x)
        given = attribute_axes if axes is None else plain_ints(axes)
        if not given and noop_with_empty_axes:
            given = []
        elif not given:
            given = list(range(x.dim()))
        wide = to_computable(x)
        if name in _OF_FLOATS and not wide.dtype.is_floating_point:
            wide = wide.to(torch.float64)
        if not given:
            # torch takes an empty list for all axes.
            return as_type(compute(wide.unsqueeze(0), [0], False), x.dtype)
        return as_type(compute(wide, list(given), bool(keepdims)), x.dtype)

    run.__name__ = run.__qualname__ = f"_{name.lower()}"
    return run


for _name in _KINDS:
    op(_name, small=True)(_reduction(_name))


def _arg(x: Tensor, axis: int, keep: bool, last: bool, function: Callable[..., Tensor]) -> Tensor:
    x = to_computable(x)
    if last:
        places = function(x.flip(axis), axis, keep)
        return x.shape[axis] - 1 - places
    return function(x, axis, keep)


@op("ArgMax")
def _arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return _arg(x, axis, bool(keepdims), bool(select_last_index), torch.argmax)


@op("ArgMin")
def _arg_min(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return _arg(x, axis, bool(keepdims), bool(select_last_index), torch.argmin)


def _flat_softmax(x: Tensor, axis: int, function: Callable[..., Tensor]) -> Tensor:
    """Compute over all axes from ``axis`` on, as opset 12 and earlier say."""
    axis = axis + x.dim() if axis < 0 else axis
    if axis == x.dim() - 1:
        return function(x, axis)
    return function(x.flatten(axis), axis).reshape(x.shape)


@op("Softmax")
def _softmax(x: Tensor, *, axis: int | None = None, opset: int) -> Tensor:
    if opset < 13:
        return _flat_softmax(x, 1 if axis is None else axis, torch.softmax)
    return torch.softmax(x, -1 if axis is None else axis)


@op("LogSoftmax")
def _log_softmax(x: Tensor, *, axis: int | None = None, opset: int) -> Tensor:
    if opset < 13:
        return _flat_softmax(x, 1 if axis is None else axis, torch.log_softmax)
    return torch.log_softmax(x, -1 if axis is None else axis)


def _one_at_maximum(x: Tensor, axis: int) -> Tensor:
    places = torch.argmax(x, axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, places, 1.0)


@op("Hardmax")
def _hardmax(x: Tensor, *, axis: int | None = None, opset: int) -> Tensor:
    if opset < 13:
        return _flat_softmax(x, 1 if axis is None else axis, _one_at_maximum)
    return _one_at_maximum(x, -1 if axis is None else axis)


def _cumulative(
    x: Tensor,
    axis: int,
    exclusive: int,
    reverse: int,
    function: Callable[..., Tensor],
    neutral: int,
) -> Tensor:
    wide = x.flip(axis) if reverse else x
    result = function(wide, axis)
    if exclusive:
        first = torch.full_like(wide.narrow(axis, 0, 1), neutral)
        result = torch.cat([first, result.narrow(axis, 0, x.shape[axis] - 1)], axis)
    return (result.flip(axis) if reverse else result).to(x.dtype)


@op("CumSum", small=True)
def _cumsum(x: Any, axis: Any, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    where = plain_ints(axis)[0]
    return _cumulative(tensor_of(x), where, exclusive, reverse, torch.cumsum, 0)


@op("CumProd", small=True)
def _cumprod(x: Any, axis: Any, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    where = plain_ints(axis)[0]
    return _cumulative(tensor_of(x), where, exclusive, reverse, torch.cumprod, 1)


@op("MatMul")
def _matmul(a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


@op("Gemm")
def _gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803 - ONNX's name
    transB: int = 0,  # noqa: N803
    broadcast: int = 0,
) -> Tensor:
    left = a.transpose(0, 1) if transA else a
    right = b.transpose(0, 1) if transB else b
    if not a.dtype.is_floating_point:
        product_ = torch.matmul(left, right) * int(alpha)
        return product_ if c is None else product_ + c * int(beta)
    if c is not None:
        return torch.addmm(c, left, right, alpha=alpha, beta=beta)
    result = torch.matmul(left, right)
    return result if alpha == 1.0 else alpha * result


@op("FusedMatMul", domain="com.microsoft")
def _fused_matmul(
    a: Tensor,
    b: Tensor,
    *,
    alpha: float = 1.0,
    transA: int = 0,  # noqa: N803 - ONNX's name
    transB: int = 0,  # noqa: N803
) -> Tensor:
    left = a.transpose(-2, -1) if transA else a
    right = b.transpose(-2, -1) if transB else b
    return alpha * torch.matmul(left, right)


@op("Einsum")
def _einsum(*inputs: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation.replace(" ", ""), *inputs)
