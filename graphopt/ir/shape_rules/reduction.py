"""Rules for reductions, arg-reductions and losses."""

import numpy as np
import onnx_ir as ir

from graphopt.ir.dims import Dim
from graphopt.ir.shape_rules.algebra import larger, smaller, times
from graphopt.ir.shape_rules.contents import Entry, add_up, positions
from graphopt.ir.shape_rules.facts import UnresolvedError
from graphopt.ir.shape_rules.layout import axes_of, without_unknown_axes
from graphopt.ir.shape_rules.registry import rule
from graphopt.ir.shape_rules.view import NodeView, Shape

INT64 = ir.DataType.INT64

# The opset from which on the axes are an input.
_AXES_INPUT = {"ReduceSum": 13}


@rule(
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
def reduce(view: NodeView) -> None:
    """The axes named become 1 or are dropped; without axes all of them."""
    view.types(view.dtype(0))
    dims = view.dims(0)
    keep = bool(view.int_("keepdims", 1))
    try:
        axes = axes_of(view, 1, _AXES_INPUT.get(view.node.op_type, 18))
    except UnresolvedError:
        view.out(0, _reduced_by_data(view, dims, keep=keep))
        return
    if not axes:
        # Since the axes may be an input, a flag says what no axes mean.
        axes = () if view.int_("noop_with_empty_axes", 0) else tuple(range(len(dims)))
    dropped = view.axes(axes, len(dims))
    view.out(0, _without(dims, dropped, keep=keep))
    if view.followed() is not None:
        _reduce_contents(view, dropped)


def _without(dims: Shape, axes: tuple[int, ...], *, keep: bool) -> Shape:
    if keep:
        return tuple(1 if i in axes else d for i, d in enumerate(dims))
    return tuple(d for i, d in enumerate(dims) if i not in axes)


def _reduced_by_data(view: NodeView, dims: Shape, *, keep: bool) -> Shape:
    """Return the shape when the axes are computed: each axis is either kept or 1."""
    if not keep:
        return without_unknown_axes(view, dims, 1)
    count = view.dims_or_none(1)
    if count is not None and len(count) == 1 and count[0] == len(dims):
        return (1,) * len(dims)
    reason = "the axes to reduce are computed from data"
    return tuple(
        1 if d == 1 else view.fresh(0, i, reason, larger(d, 1, view.bounds), weak=True)
        for i, d in enumerate(dims)
    )


def _reduce_contents(view: NodeView, axes: tuple[int, ...]) -> None:
    op = view.node.op_type
    contents = view.contents(0)
    if contents is None or op not in ("ReduceSum", "ReduceProd", "ReduceMax", "ReduceMin"):
        return
    kept = [i for i in range(len(contents.dims)) if i not in axes]
    order = positions(contents).transpose([*kept, *axes])
    width = int(np.prod([contents.dims[a] for a in axes], dtype=np.int64))
    if width == 0:
        return
    rows = order.reshape(-1, width).tolist()
    view.know([_combine(view, op, [contents.entries[i] for i in row]) for row in rows])


def _combine(view: NodeView, op: str, entries: list[Entry]) -> Entry:
    whole: list[Dim] = [e for e in entries if e is not None and not isinstance(e, float | tuple)]
    if len(whole) != len(entries):
        return None
    result: Entry = whole[0]
    for entry in whole[1:]:
        if op == "ReduceSum":
            result = add_up(result, entry)
        elif isinstance(result, float | tuple) or result is None:
            return None
        elif op == "ReduceProd":
            result = times(result, entry)
        else:
            result = (larger if op == "ReduceMax" else smaller)(result, entry, view.bounds)
    return result


@rule("ArgMax", "ArgMin")
def arg_reduce(view: NodeView) -> None:
    """Indices along one axis, which becomes 1 or is dropped."""
    view.types(INT64)
    dims = view.dims(0)
    axis = view.axis(view.int_("axis", 0), len(dims))
    view.out(0, _without(dims, (axis,), keep=bool(view.int_("keepdims", 1))))


@rule("SoftmaxCrossEntropyLoss")
def cross_entropy(view: NodeView) -> None:
    """A number for each label unless they are reduced; the log-probabilities."""
    dtype = view.dtype(0)
    view.types(dtype, dtype)
    scores = view.ranked(0, 2)
    view.out(0, _loss(view, scores))
    view.out(1, scores)


@rule("NegativeLogLikelihoodLoss")
def likelihood(view: NodeView) -> None:
    """A number for each label unless they are reduced."""
    view.types(view.dtype(0))
    view.out(0, _loss(view, view.ranked(0, 2)))


def _loss(view: NodeView, scores: Shape) -> Shape:
    labels = view.ranked(1, len(scores) - 1, len(scores) - 1)
    for i, size in enumerate(labels):
        view.same(size, scores[i + 1 if i else 0], f"sizes of axis {i} of labels and scores")
    return labels if view.string("reduction", "mean") == "none" else ()
