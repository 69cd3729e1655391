"""Rules for Slice and for the operators that gather or scatter by index."""

from typing import Any

import numpy as np

from graphopt.ir.dims import Dim, Expr, add, ceildiv, mul
from graphopt.ir.shape_rules.algebra import (
    Table,
    at_least,
    highest,
    larger,
    lowest,
    smaller,
    sub,
)
from graphopt.ir.shape_rules.contents import Contents, Entry, pick, positions
from graphopt.ir.shape_rules.elementwise import unchanged
from graphopt.ir.shape_rules.facts import UnresolvedError
from graphopt.ir.shape_rules.layout import as_vector
from graphopt.ir.shape_rules.registry import rule
from graphopt.ir.shape_rules.view import NodeView

# Exporters write "to the end" as the largest number of int32 or int64.
FAR = 2**31 - 1


@rule("Slice")
def slice_(view: NodeView) -> None:
    """The elements from start to end, clamped to the axis, in steps."""
    view.types(view.dtype(0))
    dims = view.dims(0)
    if view.opset >= 10 and view.has(3) and view.numbers(3) is None:
        reason = "the axes of the slice are computed from data"
        view.out(0, tuple(view.fresh(0, i, reason, d, weak=True) for i, d in enumerate(dims)))
        return
    starts, ends, axes, steps = _slice_arguments(view, len(dims))
    result = list(dims)
    for i, axis in enumerate(axes):
        step = steps[i]
        if step == 0:
            view.impossible("a step is 0")
        count = None
        if isinstance(step, int):
            count = _slice_count(dims[axis], starts[i], ends[i], step, view.bounds)
        if count is None:
            reason = "the range is computed from data"
            count = view.fresh(0, axis, reason, dims[axis], weak=True)
        result[axis] = count
    view.out(0, tuple(result))
    contents = view.contents(0) if view.followed() is not None else None
    if contents is not None:
        _slice_contents(view, contents, (starts, ends, axes, steps))


Arguments = tuple[tuple[Entry, ...], tuple[Entry, ...], tuple[int, ...], tuple[Entry, ...]]


def _slice_arguments(view: NodeView, rank: int) -> Arguments:
    starts: tuple[Entry, ...]
    ends: tuple[Entry, ...]
    if view.opset < 10:
        starts, ends = view.required_ints("starts"), view.required_ints("ends")
        named = view.ints("axes")
        steps: tuple[Entry, ...] = (1,) * len(starts)
    else:
        starts, ends = as_vector(view, 1, "starts"), as_vector(view, 2, "ends")
        named = view.numbers(3) if view.has(3) else None
        steps = as_vector(view, 4, "steps") if view.has(4) else (1,) * len(starts)
    axes = view.axes(range(len(starts)) if named is None else named, rank)
    if not len(starts) == len(ends) == len(axes) == len(steps):
        view.impossible("starts, ends, axes and steps differ in length")
    return starts, ends, axes, steps


def _slice_count(size: Dim, start: Entry, end: Entry, step: int, bounds: Table) -> Dim | None:
    """Return how many elements ``[start:end:step]`` takes of ``size``; None when not known."""
    if not isinstance(start, int | Expr) or not isinstance(end, int | Expr):
        return None
    if step < 0:
        return _backward_count(size, start, end, step, bounds)
    low, high = _clamped(start, size, bounds), _clamped(end, size, bounds)
    if low is None or high is None:
        return None
    if at_least(start, 0, bounds):
        # A start behind the end gives 0 either way, so it need not be clamped first.
        span = larger(sub(high, start), 0, bounds) if start != 0 else high
    elif high == size:
        span = smaller(mul(start, -1), size, bounds)
    else:
        span = larger(sub(high, low), 0, bounds)
    return ceildiv(span, step)


def _clamped(index: Dim, size: Dim, bounds: Table) -> Dim | None:
    """Return where ``index`` points on an axis of ``size``; None when its sign is not known."""
    if isinstance(index, int) and index >= FAR:
        return size
    if at_least(index, 0, bounds):
        return smaller(index, size, bounds)
    high = highest(index, bounds)
    if high is not None and high < 0:
        return larger(add(size, index), 0, bounds)
    return None


def _backward_count(size: Dim, start: Dim, end: Dim, step: int, bounds: Table) -> Dim | None:
    if isinstance(end, int) and end >= FAR:
        # Nothing by the specification, everything to the front in ONNX Runtime.
        return None
    last = sub(size, 1)
    high: Dim | None
    if start == -1 or (isinstance(start, int) and start >= FAR):
        high = last
    elif at_least(start, 0, bounds):
        high = smaller(start, last, bounds)
    else:
        # A start before the front is moved to the first element, which an empty axis has not.
        floor = smaller(last, 0, bounds)
        high = _from_back(start, size, floor, bounds)
    low = smaller(end, last, bounds) if at_least(end, 0, bounds) else None
    if low is None:
        low = _from_back(end, size, -1, bounds)
    if high is None or low is None:
        return None
    return ceildiv(larger(sub(high, low), 0, bounds), -step)


def _from_back(index: Dim, size: Dim, floor: Dim, bounds: Table) -> Dim | None:
    """Return ``size + index`` but not below ``floor``; None when ``index`` may be positive."""
    if isinstance(index, int) and index <= -FAR:
        return floor
    high = highest(index, bounds)
    if high is None or high >= 0:
        return None
    return larger(add(size, index), floor, bounds)


def _slice_contents(view: NodeView, contents: Contents, arguments: Arguments) -> None:
    where = positions(contents)
    for start, end, axis, step in zip(*arguments, strict=True):
        size = where.shape[axis]
        start, end = _literal(start, size, view.bounds), _literal(end, size, view.bounds)
        if not (isinstance(start, int) and isinstance(end, int) and isinstance(step, int)):
            return
        count = _slice_count(size, start, end, step, view.bounds)
        if not isinstance(count, int):
            return
        first = start + size if start < 0 else start
        first = min(max(first, 0), size if step > 0 else size - 1)
        taken = first + step * np.arange(count, dtype=np.int64)
        where = np.take(where, taken, axis=axis)
    view.know(pick(contents, where))


def _literal(entry: Entry, size: int, bounds: Table) -> Entry:
    """Return a symbolic bound as a number when it lies behind the end anyway."""
    if isinstance(entry, Expr) and (lowest(entry, bounds) or 0) >= size:
        return size
    return entry


@rule("Gather")
def gather(view: NodeView) -> None:
    """The indices' shape in place of the axis."""
    view.types(view.dtype(0))
    dims = view.ranked(0, 1)
    indices = view.dims(1)
    axis = view.axis(view.int_("axis", 0), len(dims))
    view.out(0, (*dims[:axis], *indices, *dims[axis + 1 :]))
    numbers, size, wanted = view.numbers(1), dims[axis], view.contents(1)
    if numbers is None or wanted is None:
        return
    if isinstance(size, int) and any(not -size <= n < size for n in numbers):
        view.impossible(f"an index is outside the axis of size {size}")
    contents = view.contents(0) if view.followed() is not None else None
    if contents is None:
        return
    chosen = np.array(numbers, dtype=np.int64).reshape(wanted.dims)
    view.know(pick(contents, np.take(positions(contents), chosen, axis=axis)))


@rule("GatherElements")
def gather_elements(view: NodeView) -> None:
    """The shape of the indices."""
    view.types(view.dtype(0))
    dims = view.ranked(0, 1)
    view.axis(view.int_("axis", 0), len(dims))
    view.out(0, view.ranked(1, len(dims), len(dims)))


@rule("GatherND")
def gather_nd(view: NodeView) -> None:
    """The indices without their last axis, then what that axis does not address."""
    view.types(view.dtype(0))
    dims, indices = view.ranked(0, 1), view.ranked(1, 1)
    batch = view.int_("batch_dims", 0)
    depth = indices[-1]
    if not isinstance(depth, int):
        raise UnresolvedError(f"the rank depends on the size {depth} of the last axis of indices")
    if not 0 <= batch < min(len(dims), len(indices)) or batch + depth > len(dims):
        view.impossible(f"indices address {batch}+{depth} axes")
    shared = tuple(view.same(dims[i], indices[i], "batch sizes") for i in range(batch))
    view.out(0, (*shared, *indices[batch:-1], *dims[batch + depth :]))
    contents, chosen = view.contents(0), view.numbers(1)
    if contents is None or chosen is None or batch or view.followed() is None:
        return
    rows = np.array(chosen, dtype=np.int64).reshape(-1, depth)
    if any(
        not -n <= i < n for row in rows.tolist() for i, n in zip(row, contents.dims, strict=False)
    ):
        view.impossible("an index is outside its axis")
    view.know(pick(contents, positions(contents)[tuple(rows.T)]))


@rule("ScatterND")
def scatter_nd(view: NodeView) -> None:
    """The output looks like the data; plain updates are followed."""
    unchanged(view)
    contents, updates, chosen = view.contents(0), view.contents(2), view.contents(1)
    if view.followed() is None or contents is None or chosen is None or not chosen.dims:
        return
    if updates is None or view.string("reduction", "none") != "none":
        return
    numbers = [e for e in chosen.entries if isinstance(e, int)]
    depth = chosen.dims[-1]
    if len(numbers) != len(chosen.entries) or not 1 <= depth <= len(contents.dims):
        return
    rows = np.array(numbers, dtype=np.int64).reshape(-1, depth)
    if any(
        not -n <= i < n for row in rows.tolist() for i, n in zip(row, contents.dims, strict=False)
    ):
        view.impossible("an index is outside its axis")
    _write(view, contents, positions(contents)[tuple(rows.T)], updates)


@rule("ScatterElements", "Scatter")
def scatter_elements(view: NodeView) -> None:
    """The output looks like the data; plain updates are followed."""
    unchanged(view)
    dims = view.ranked(0, 1)
    axis = view.axis(view.int_("axis", 0), len(dims))
    contents, updates, chosen = view.contents(0), view.contents(2), view.contents(1)
    if view.followed() is None or contents is None or chosen is None or updates is None:
        return
    if view.string("reduction", "none") != "none" or len(chosen.dims) != len(dims):
        return
    numbers = [e for e in chosen.entries if isinstance(e, int)]
    size = contents.dims[axis]
    if len(numbers) != len(chosen.entries):
        return
    if any(not -size <= n < size for n in numbers):
        view.impossible(f"an index is outside the axis of size {size}")
    where: list[Any] = list(np.indices(chosen.dims))
    where[axis] = np.array(numbers, dtype=np.int64).reshape(chosen.dims)
    if any(w.size and int(w.max()) >= n for w, n in zip(where, contents.dims, strict=True)):
        view.impossible("the indices do not fit the data")
    _write(view, contents, positions(contents)[tuple(where)], updates)


def _write(view: NodeView, contents: Contents, where: Any, updates: Contents) -> None:
    targets = where.reshape(-1).tolist()
    if len(targets) != len(updates.entries):
        view.impossible(f"{len(targets)} places receive {len(updates.entries)} updates")
    entries = list(contents.entries)
    for place, entry in zip(targets, updates.entries, strict=True):
        entries[place] = entry
    view.know(entries)


@rule("TensorScatter")
def tensor_scatter(view: NodeView) -> None:
    """The cache with some positions replaced."""
    unchanged(view)


@rule("OneHot")
def one_hot(view: NodeView) -> None:
    """A further axis of the depth given, in the type of the values."""
    view.types(view.dtype(2))
    indices = view.dims(0)
    depth = view.scalar(1)
    rank = len(indices) + 1
    axis = view.axis(view.int_("axis", -1), rank)
    if isinstance(depth, float) and depth.is_integer():
        depth = int(depth)
    if isinstance(depth, int | Expr):
        size: Dim = depth
    else:
        size = view.fresh(0, axis, "the depth is computed from data", weak=True)
    view.out(0, (*indices[:axis], size, *indices[axis:]))


@rule("ArrayFeatureExtractor", domain="ai.onnx.ml")
def array_feature_extractor(view: NodeView) -> None:
    """As many columns as there are indices."""
    view.types(view.dtype(0))
    dims = view.ranked(0, 1)
    indices = view.dims(1)
    count: Dim = 1
    for dim in indices:
        count = mul(count, dim)
    view.out(0, (1, count) if len(dims) == 1 else (*dims[:-1], count))
