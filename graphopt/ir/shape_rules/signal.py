"""Rules for Fourier transforms."""

from graphopt.ir.dims import Dim, Expr, add, floordiv, mul
from graphopt.ir.shape_rules.algebra import larger, sub
from graphopt.ir.shape_rules.registry import rule
from graphopt.ir.shape_rules.view import NodeView


def _entry(view: NodeView, index: int, what: str) -> Dim:
    entry = view.scalar(index)
    if isinstance(entry, int | Expr):
        return entry
    return view.size_entry(index, 0, None, what)


@rule("DFT")
def dft(view: NodeView) -> None:
    """The axis becomes the length of the transform, halved if one-sided; complex last."""
    view.types(view.dtype(0))
    dims = view.ranked(0, 2)
    one_sided, inverse = bool(view.int_("onesided", 0)), bool(view.int_("inverse", 0))
    axis: object = view.int_("axis", 1) if view.opset < 20 else -2
    if view.opset >= 20 and view.has(2):
        axis = view.scalar(2)
    if not isinstance(axis, int):
        _any_axis(view, one_sided=one_sided, inverse=inverse)
        return
    place = view.axis(axis, len(dims))
    if view.has(1):
        length = _entry(view, 1, "the length of the transform")
    elif one_sided and inverse:
        length = mul(sub(dims[place], 1), 2)
    else:
        length = dims[place]
    complex_size = 2
    if one_sided and inverse:
        complex_size = 1
    elif one_sided:
        length = add(floordiv(length, 2), 1)
    result = [*dims[:-1], complex_size]
    result[place] = length
    view.out(0, tuple(result))


def _any_axis(view: NodeView, *, one_sided: bool, inverse: bool) -> None:
    """Record the output when the axis is computed: each axis may be the one that changes."""
    dims = view.dims(0)
    result = list(dims[:-1])
    if view.has(1) or one_sided:
        for i, dim in enumerate(dims[:-1]):
            upper = larger(
                mul(sub(dim, 1), 2) if inverse else dim, larger(dim, 1, view.bounds), view.bounds
            )
            reason = "the axis of the transform is computed from data"
            result[i] = view.fresh(0, i, reason, None if view.has(1) else upper, weak=True)
    view.out(0, (*result, 1 if one_sided and inverse else 2))


@rule("STFT")
def stft(view: NodeView) -> None:
    """Batch, frames, frequencies, complex."""
    view.types(view.dtype(0))
    dims = view.ranked(0, 2, 3)
    step = _entry(view, 1, "the step between frames")
    if view.has(3):
        length = _entry(view, 3, "the length of a frame")
    else:
        length = view.ranked(2, 1, 1)[0] if view.has(2) else dims[1]
    if isinstance(step, int) and step < 1:
        view.impossible(f"the step between frames is {step}")
    frames = add(floordiv(sub(dims[1], length), step), 1)
    bins = add(floordiv(length, 2), 1) if view.int_("onesided", 1) else length
    view.out(0, (dims[0], frames, bins, 2))
