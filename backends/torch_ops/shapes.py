"""Operators that read or change shapes; sizes stay numbers of the graph."""

from typing import Any

import torch
from torch import Tensor

from graphopt.backends.torch_ops.dtypes import torch_type
from graphopt.backends.torch_ops.registry import op
from graphopt.backends.torch_ops.small import (
    Number,
    Small,
    is_known,
    maximum,
    numbers_of,
    plain_ints,
    product,
    require,
    shape_numbers,
    tensor_of,
)
from graphopt.errors import UnsupportedError

# Computed integers of at most this many elements stay numbers.
MOST_NUMBERS = 64


@op("Shape")
def _shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Small:
    return Small(tuple(shape_numbers(x)[start:end]), torch.int64)


@op("Size")
def _size(x: Tensor) -> Small:
    return Small((product(shape_numbers(x)),), torch.int64, scalar=True)


@op("Reshape", small=True)
def _reshape(
    x: Any,
    target: Any = None,
    *,
    shape: list[int] | None = None,
    allowzero: int = 0,
    consumed_inputs: list[int] | None = None,
) -> Any:
    sizes = numbers_of(target) if shape is None else list(shape)
    if isinstance(x, Small):
        if not sizes:
            return x.like(x.items, scalar=True)
        if len(sizes) == 1:
            return x.like(x.items, scalar=False)
        x = tensor_of(x)
    if not allowzero:
        sizes = [x.shape[i] if is_known(size, 0) else size for i, size in enumerate(sizes)]
    return x.reshape(sizes)


def merge(x: Tensor, first: int, last: int) -> Tensor:
    """Merge the axes from ``first`` up to but not including ``last``; none give an axis of 1."""
    sizes = shape_numbers(x)
    return x.reshape([*sizes[:first], product(sizes[first:last]), *sizes[last:]])


@op("Flatten")
def _flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    axis = axis + x.dim() if axis < 0 else axis
    sizes = shape_numbers(x)
    return x.reshape([product(sizes[:axis]), product(sizes[axis:])])


def _axes(axes: Any, attribute: Any, rank: int) -> list[int] | None:
    given = attribute if axes is None else plain_ints(axes)
    return None if given is None else [axis + rank if axis < 0 else axis for axis in given]


@op("Squeeze", small=True)
def _squeeze(x: Any, axes: Any = None, *, attribute_axes: list[int] | None = None) -> Any:
    if isinstance(x, Small):
        if x.scalar or len(x.items) != 1:
            return x
        return x.like(x.items, scalar=True)
    given = _axes(axes, attribute_axes, x.dim())
    if given is None:
        given = [axis for axis in range(x.dim()) if int(x.shape[axis]) == 1]
    for axis in sorted(given, reverse=True):
        x = _without(x, axis)
    return x


def _without(x: Tensor, axis: int) -> Tensor:
    """Return ``x`` without an axis of size 1."""
    is_one = x.shape[axis] == 1
    if isinstance(is_one, torch.SymBool):
        require(is_one, f"an axis that is removed must be 1: axis {axis}")
        # The strides of a part are sizes of the whole, which torch would compare with 1.
        return x.select(axis, 0).clone(memory_format=torch.contiguous_format)
    # Not squeeze, which keeps an axis that is not 1.
    return x.select(axis, 0) if is_one else x.squeeze(axis)


@op("Unsqueeze", small=True)
def _unsqueeze(x: Any, axes: Any = None, *, attribute_axes: list[int] | None = None) -> Any:
    count = len(attribute_axes if attribute_axes is not None else plain_ints(axes))
    if isinstance(x, Small) and x.scalar and count == 1:
        return x.like(x.items, scalar=False)
    x = tensor_of(x)
    for axis in sorted(_axes(axes, attribute_axes, x.dim() + count) or []):
        x = x.unsqueeze(axis)
    return x


@op("Expand", small=True)
def _expand(x: Any, shape: Any) -> Any:
    sizes = numbers_of(shape)
    if isinstance(x, Small) and len(sizes) == 1 and len(x.items) == 1 and isinstance(sizes[0], int):
        return x.like(x.items * sizes[0], scalar=False)
    return expand(tensor_of(x), sizes)


def expand(x: Tensor, sizes: list[Number]) -> Tensor:
    """Broadcast ``x`` with a tensor of ``sizes``; a size of 1 keeps that of ``x``."""
    missing = len(sizes) - x.dim()
    own = [1] * max(missing, 0) + shape_numbers(x)
    wanted = [1] * max(-missing, 0) + list(sizes)
    result = []
    for axis, (mine, other) in enumerate(zip(own, wanted, strict=True)):
        if is_known(other, 1):
            result.append(mine)
        elif is_known(mine, 1) or axis < missing:
            result.append(other)
        else:
            result.append(_common(mine, other))
    return x.expand(result)


def _common(mine: Number, other: Number) -> Number:
    """Return the size that two sizes broadcast to: the larger, or the one that is not 1."""
    if isinstance(mine, int) and isinstance(other, int):
        return mine if other == 1 else other
    if isinstance(mine, Tensor) or isinstance(other, Tensor):
        return maximum(mine, other)
    return mine if other == 1 else other


@op("ConstantOfShape", small=True)
def _constant_of_shape(shape: Any, *, value: Any = None) -> Any:
    sizes = numbers_of(shape)
    dtype = torch.float32 if value is None else value.dtype
    if isinstance(value, Small):
        fill: Any = value.items[0]
    else:
        fill = 0.0 if value is None else _constant(value.reshape(-1)[0])
    length = sizes[0] if len(sizes) == 1 else None
    if dtype in (torch.int64, torch.int32) and type(length) is int and length <= MOST_NUMBERS:
        return Small((int(fill),) * length, dtype)
    if value is not None and dtype in (torch.uint16, torch.uint32, torch.uint64):
        return torch.full(sizes, int(fill), dtype=torch.int64).to(dtype)
    return torch.full(sizes, fill, dtype=dtype)


def _constant(element: Tensor) -> Any:
    """Return the number in a tensor of one element that no input changes."""
    return element.to(torch.float32).item() if element.dtype.itemsize == 1 else element.item()


@op("Range", small=True)
def _range(start: Any, limit: Any, delta: Any) -> Tensor:
    first, last, step = (numbers_of(v)[0] for v in (start, limit, delta))
    dtype = start.dtype
    if dtype.is_floating_point:
        count = torch.ceil((tensor_of(limit) - tensor_of(start)) / tensor_of(delta))
        steps = torch.arange(0, numbers_of(torch.clamp(count, min=0).to(torch.int64))[0])
        return tensor_of(start) + steps.to(dtype) * tensor_of(delta)
    if isinstance(first, int) and isinstance(last, int) and (last - first) * step <= 0:
        return torch.empty([0], dtype=dtype)
    return torch.arange(first, last, step, dtype=dtype)


@op("EyeLike")
def _eye_like(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    rows, columns = x.shape
    kind = x.dtype if dtype is None else torch_type(dtype)
    row, column = torch.arange(rows), torch.arange(columns)
    return (column.unsqueeze(0) - row.unsqueeze(1) == k).to(kind)


@op("Constant", small=True)
def _constant_node(
    *,
    value: Tensor | None = None,
    value_float: float | None = None,
    value_floats: list[float] | None = None,
    value_int: int | None = None,
    value_ints: list[int] | None = None,
) -> Any:
    if value is not None:
        return value
    if value_float is not None:
        return torch.tensor(value_float, dtype=torch.float32)
    if value_floats is not None:
        return torch.tensor(value_floats, dtype=torch.float32)
    if value_int is not None:
        return Small((value_int,), torch.int64, scalar=True)
    if value_ints is not None:
        return Small(tuple(value_ints), torch.int64)
    raise UnsupportedError("torch-operator-form", "a Constant without a dense tensor")
