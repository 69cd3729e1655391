"""Rules for operators whose output size depends on what is in their input, and their kin."""

import numpy as np
import onnx_ir as ir

from graphopt.ir.dims import Dim, Expr, ceildiv, mul
from graphopt.ir.shape_rules.algebra import larger, smaller, sub, volume
from graphopt.ir.shape_rules.contents import Entry, add_up, pick, positions
from graphopt.ir.shape_rules.elementwise import unchanged
from graphopt.ir.shape_rules.registry import rule
from graphopt.ir.shape_rules.view import NodeView

INT64 = ir.DataType.INT64


@rule("NonZero")
def non_zero(view: NodeView) -> None:
    """One row for each axis, one column for each element that is not 0."""
    view.types(INT64)
    dims = view.dims(0)
    numbers = view.numbers(0)
    count: Dim
    if numbers is None:
        count = view.fresh(0, 1, "number of elements that are not 0", volume(dims))
    else:
        count = sum(1 for n in numbers if n)
    # A scalar counts as a vector of one element.
    view.out(0, (max(len(dims), 1), count))
    contents = view.contents(0)
    if numbers is not None and contents is not None:
        found = np.nonzero(np.array(numbers).reshape(contents.dims or (1,)))
        view.know([int(i) for row in found for i in row])


@rule("Compress")
def compress(view: NodeView) -> None:
    """The slices, or elements, at which the condition holds."""
    view.types(view.dtype(0))
    dims = view.dims(0)
    axis = view.int_or_none("axis")
    axis = None if axis is None else view.axis(axis, len(dims))
    whole = volume(dims) if axis is None else dims[axis]
    numbers = view.numbers(1)
    kept: Dim
    if numbers is not None:
        kept = sum(1 for n in numbers if n)
    else:
        (length,) = view.ranked(1, 1, 1)
        upper = smaller(whole, length, view.bounds)
        place = 0 if axis is None else axis
        kept = view.fresh(0, place, "number of conditions that hold", upper)
    view.out(0, (kept,) if axis is None else (*dims[:axis], kept, *dims[axis + 1 :]))
    contents = view.contents(0) if view.followed() is not None else None
    if contents is None or numbers is None:
        return
    where = np.array([i for i, n in enumerate(numbers) if n], dtype=np.int64)
    if isinstance(whole, int) and where.size and int(where.max()) >= whole:
        view.impossible("the condition is longer than the axis")
    view.know(pick(contents, np.take(positions(contents), where, axis=axis)))


@rule("Unique")
def unique(view: NodeView) -> None:
    """The different elements or slices, and where each was found."""
    view.types(view.dtype(0), INT64, INT64, INT64)
    dims = view.dims(0)
    axis = view.int_or_none("axis")
    place = 0 if axis is None else view.axis(axis, len(dims))
    whole = volume(dims) if axis is None else dims[place]
    numbers = view.numbers(0) if axis is None else None
    count: Dim
    if numbers is not None:
        count = len(set(numbers))
    else:
        count = view.fresh(0, place, "number of different elements", whole)
    view.out(0, (count,) if axis is None else (*dims[:place], count, *dims[place + 1 :]))
    view.out(1, (count,))
    view.out(2, (whole,))
    view.out(3, (count,))


@rule("NonMaxSuppression")
def non_max_suppression(view: NodeView) -> None:
    """One row of three indices for each box that is kept."""
    view.types(INT64)
    boxes, scores = view.ranked(0, 3, 3), view.ranked(1, 3, 3)
    limit: Entry = view.scalar(2) if view.has(2) else 0
    per_class = view.same(boxes[1], scores[2], "numbers of boxes")
    if isinstance(limit, int | Expr):
        per_class = smaller(per_class, larger(limit, 0, view.bounds), view.bounds)
    groups = mul(view.same(boxes[0], scores[0], "batch sizes"), scores[1])
    upper = mul(groups, per_class)
    count = 0 if upper == 0 else view.fresh(0, 0, "number of boxes kept", upper)
    view.out(0, (count, 3))


@rule("TopK")
def top_k(view: NodeView) -> None:
    """The axis cut to k elements; values and indices."""
    view.types(view.dtype(0), INT64)
    dims = view.ranked(0, 1)
    axis = view.axis(view.int_("axis", -1), len(dims))
    size = dims[axis]
    entry: Entry = view.int_or_none("k") if view.opset < 10 else view.scalar(1)
    count: Dim
    if isinstance(entry, int):
        if entry < 0 or (isinstance(size, int) and entry > size):
            view.impossible(f"k is {entry} on an axis of size {size}")
        count = entry
    elif isinstance(entry, Expr):
        count = entry
    else:
        count = view.fresh(0, axis, "k is computed from data", size, weak=True)
    for index in range(2):
        view.out(index, (*dims[:axis], count, *dims[axis + 1 :]))


@rule("Range")
def range_(view: NodeView) -> None:
    """From start to limit, exclusive, in steps of delta."""
    view.types(view.dtype(0))
    start, limit, delta = view.scalar(0), view.scalar(1), view.scalar(2)
    count = _range_count(view, start, limit, delta)
    if count is None:
        count = view.fresh(0, 0, "the ends of the range are computed from data", weak=True)
    view.out(0, (count,))
    dims = view.followed()
    if dims is not None and isinstance(start, int | Expr) and isinstance(delta, int):
        view.know([add_up(start, i * delta) for i in range(dims[0])])


def _range_count(view: NodeView, start: Entry, limit: Entry, delta: Entry) -> Dim | None:
    if delta in (0, 0.0):
        view.impossible("the step of the range is 0")
    if isinstance(start, float) and isinstance(limit, float) and isinstance(delta, float):
        count = np.ceil((limit - start) / delta)
        return max(int(count), 0) if np.isfinite(count) else None
    if not (isinstance(start, int | Expr) and isinstance(limit, int | Expr)):
        return None
    if not isinstance(delta, int):
        return None
    span = sub(limit, start) if delta > 0 else sub(start, limit)
    return larger(ceildiv(span, abs(delta)), 0, view.bounds)


@rule("CumSum", "CumProd")
def cumulative(view: NodeView) -> None:
    """The output looks like the input; sums of vectors are followed."""
    unchanged(view)
    contents = view.contents(0) if view.followed() is not None else None
    axis = view.scalar(1)
    plain = not view.int_("exclusive", 0) and not view.int_("reverse", 0)
    if contents is None or len(contents.dims) != 1 or view.node.op_type != "CumSum" or not plain:
        return
    if axis not in (0, -1) or any(not isinstance(e, int | Expr) for e in contents.entries):
        return
    total: Entry = 0
    sums = []
    for entry in contents.entries:
        total = add_up(total, entry)
        sums.append(total)
    view.know(sums)
