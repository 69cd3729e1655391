"""Operators that pick elements by index or by value: gather, scatter, top-k, unique."""

from typing import Any

import torch
from torch import Tensor

from graphopt.backends.torch_ops.dtypes import to_computable
from graphopt.backends.torch_ops.registry import op
from graphopt.backends.torch_ops.shapes import merge
from graphopt.backends.torch_ops.small import (
    Number,
    Small,
    numbers_of,
    product,
    shape_numbers,
    tensor_of,
    whole,
)
from graphopt.errors import UnsupportedError


def _wrapped(index: Tensor, size: Number) -> Tensor:
    """Count negative indices from the end."""
    index = index.to(torch.int64)
    return torch.where(index < 0, index + size, index)


@op("Gather", small=True)
def _gather(x: Any, indices: Any, *, axis: int = 0) -> Any:
    if isinstance(x, Small) and isinstance(indices, Small) and indices.is_plain:
        return x.like([x.items[i] for i in indices.items], indices.scalar)
    x = tensor_of(x)
    if isinstance(indices, Small) and indices.scalar and indices.is_plain:
        return x.select(axis, indices.items[0])
    index = _wrapped(tensor_of(indices), x.shape[axis])
    axis = axis + x.dim() if axis < 0 else axis
    if index.dim() == 1:
        return x.index_select(axis, index)
    if axis == 0 and x.dim() == 2 and x.dtype.is_floating_point and x.dtype.itemsize > 1:
        return torch.nn.functional.embedding(index, x)
    picked = x.index_select(axis, index.reshape(-1))
    sizes = shape_numbers(x)
    return picked.reshape([*sizes[:axis], *shape_numbers(index), *sizes[axis + 1 :]])


@op("GatherElements")
def _gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    return x.gather(axis, _wrapped(indices, x.shape[axis]))


@op("GatherND")
def _gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    depth = int(indices.shape[-1])
    sizes = shape_numbers(indices)
    if batch_dims == 0:
        parts = [_wrapped(indices[..., i], x.shape[i]) for i in range(depth)]
        return x[tuple(parts)]
    flat_x, flat_index = merge(x, 0, batch_dims), merge(indices, 0, batch_dims)
    rank = flat_index.dim()
    batch = torch.arange(flat_x.shape[0]).reshape([-1, *[1] * (rank - 2)])
    parts = [_wrapped(flat_index[..., i], flat_x.shape[i + 1]) for i in range(depth)]
    picked = flat_x[(batch, *parts)]
    return picked.reshape([*sizes[:batch_dims], *shape_numbers(picked)[1:]])


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@op("ScatterElements", "Scatter")
def _scatter_elements(
    x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    index = _wrapped(indices, x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, index, updates)
    return x.scatter_reduce(axis, index, updates, _REDUCTIONS[reduction], include_self=True)


@op("ScatterND")
def _scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    depth = int(indices.shape[-1])
    parts = tuple(_wrapped(indices[..., i], x.shape[i]) for i in range(depth))
    if reduction in ("none", "add"):
        return x.index_put(parts, updates, accumulate=reduction == "add")
    sizes = shape_numbers(x)
    flat = torch.zeros_like(parts[0])
    for part, size in zip(parts, sizes, strict=False):
        flat = flat * size + part
    inner = product(sizes[depth:])
    places = flat.reshape([-1, 1]) * inner + torch.arange(inner)
    result = x.reshape(-1).scatter_reduce(
        0, places.reshape(-1), updates.reshape(-1), _REDUCTIONS[reduction], include_self=True
    )
    return result.reshape(sizes)


@op("OneHot", small=True)
def _one_hot(indices: Any, depth: Any, values: Any, *, axis: int = -1) -> Tensor:
    index = tensor_of(indices)
    size: Number = numbers_of(depth)[0]
    size = size if isinstance(size, Tensor) else whole(size)
    place = index.unsqueeze(axis if axis >= 0 else axis + index.dim() + 1)
    axis = axis + place.dim() if axis < 0 else axis
    choices = torch.arange(size).reshape([-1, *[1] * (place.dim() - 1 - axis)])
    on = torch.remainder(place.to(torch.int64), size) == choices
    inside = (place >= -size) & (place < size)
    off_value, on_value = tensor_of(values).unbind(0)
    return torch.where(on & inside, on_value, off_value)


@op("NonZero")
def _non_zero(x: Tensor) -> Tensor:
    if x.dim() == 0:
        x = x.reshape([1])
    return torch.nonzero(x).transpose(0, 1)


@op("TopK", small=True, several=True)
def _top_k(
    x: Any,
    k: Any = None,
    *,
    axis: int = -1,
    largest: int = 1,
    sorted: int = 1,
    attribute_k: int | None = None,
    count: int,
) -> tuple[Tensor, ...]:
    x = tensor_of(x)
    number = numbers_of(k)[0] if attribute_k is None else attribute_k
    # A stable sort: of equal elements the one with the lower index comes first.
    values, places = torch.sort(to_computable(x), dim=axis, descending=bool(largest), stable=True)
    values, places = values.narrow(axis, 0, number), places.narrow(axis, 0, number)
    return (values.to(x.dtype), places)[:count]


@op("Unique", several=True)
def _unique(
    x: Tensor, *, axis: int | None = None, sorted: int = 1, count: int
) -> tuple[Tensor, ...]:
    flat = x.reshape(-1) if axis is None else x
    dim = 0 if axis is None else axis
    values, inverse, counts = torch.unique(
        flat, sorted=True, return_inverse=True, return_counts=True, dim=dim
    )
    length = flat.shape[dim]
    first = torch.full([values.shape[dim]], length, dtype=torch.int64)
    first = first.scatter_reduce(0, inverse, torch.arange(length), "amin", include_self=True)
    if not sorted:
        order = torch.argsort(first)
        values, first, counts = values.index_select(dim, order), first[order], counts[order]
        inverse = torch.argsort(order)[inverse]
    return (values, first, inverse, counts)[:count]


@op("Compress")
def _compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    kept = torch.nonzero(condition).reshape(-1)
    return x.reshape(-1)[kept] if axis is None else x.index_select(axis, kept)


@op("NonMaxSuppression", small=True)
def _non_max_suppression(
    boxes: Any,
    scores: Any,
    most: Any = None,
    overlap: Any = None,
    least: Any = None,
    *,
    center_point_box: int = 0,
) -> Tensor:
    limit = 0 if most is None else int(numbers_of(most)[0])
    threshold = 0.0 if overlap is None else float(numbers_of(overlap)[0])
    floor = float("-inf") if least is None else float(numbers_of(least)[0])
    if torch.compiler.is_compiling():
        raise UnsupportedError(
            "torch-operator-form",
            "NonMaxSuppression picks a number of boxes that only the data tell; torch.export "
            "cannot follow it",
        )
    corners = tensor_of(boxes)
    if center_point_box:
        middle, half = corners[..., :2], corners[..., 2:] / 2
        corners = torch.cat([middle - half, middle + half], -1)
    else:
        a, b = corners[..., :2], corners[..., 2:]
        corners = torch.cat([torch.minimum(a, b), torch.maximum(a, b)], -1)
    return suppress(corners, tensor_of(scores), limit, threshold, floor)


def _suppress(boxes: Tensor, scores: Tensor, limit: int, threshold: float, floor: float) -> Tensor:
    picked = []
    for batch in range(scores.shape[0]):
        for label in range(scores.shape[1]):
            points = boxes[batch]
            areas = (points[:, 2] - points[:, 0]) * (points[:, 3] - points[:, 1])
            order = torch.argsort(scores[batch, label], descending=True, stable=True)
            order = order[scores[batch, label][order] > floor]
            number = 0
            while order.numel() > 0 and number < limit:
                best = order[0]
                picked.append(torch.stack([torch.tensor(batch), torch.tensor(label), best]))
                number += 1
                order = order[1:]
                low = torch.maximum(points[order, :2], points[best, :2])
                high = torch.minimum(points[order, 2:], points[best, 2:])
                common = torch.clamp(high - low, min=0).prod(1)
                union = areas[order] + areas[best] - common
                order = order[common <= threshold * union]
    if len(picked) == 0:
        return torch.zeros([0, 3], dtype=torch.int64)
    return torch.stack(picked)


suppress = _suppress
