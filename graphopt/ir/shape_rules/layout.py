"""Rules for operators that move or regroup elements without computing with them."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.ir.dims import Dim, Expr, add, ceildiv, floordiv, mul
from graphopt.ir.shape_rules.algebra import (
    UnequalError,
    larger,
    lowest,
    quotient,
    sub,
    times,
    volume,
)
from graphopt.ir.shape_rules.contents import Entry, pick, positions, spread
from graphopt.ir.shape_rules.elementwise import unchanged
from graphopt.ir.shape_rules.facts import UnresolvedError
from graphopt.ir.shape_rules.registry import rule
from graphopt.ir.shape_rules.view import NodeView, Shape

INT64 = ir.DataType.INT64


def as_vector(view: NodeView, index: int, what: str) -> tuple[Entry, ...]:
    """Return the entries of a one-dimensional input whose length must be known."""
    dims = view.dims_or_none(index)
    if dims is not None and len(dims) > 1:
        view.impossible(f"the {what} must have one axis")
    entries = view.entries(index)
    if entries is None:
        raise UnresolvedError(f"the length of the {what} depends on data")
    return entries


def axes_of(view: NodeView, index: int, since: int) -> tuple[int, ...] | None:
    """Return axes that are an attribute before opset ``since`` and input ``index`` from then on.

    Returns:
        The numbers as written, None when they are left out.

    Raises:
        UnresolvedError: the input is computed from data.
    """
    if view.opset < since:
        return view.ints("axes")
    if not view.has(index):
        return None
    numbers = view.numbers(index)
    if numbers is None:
        raise UnresolvedError(f"the axes of {view.label} are computed from data")
    return numbers


def count_of(view: NodeView, index: int) -> int:
    """Return how many entries input ``index``, whose contents are not known, has.

    Raises:
        UnresolvedError: not even that is known.
    """
    dims = view.ranked(index, 0, 1)
    count = volume(dims)
    if not isinstance(count, int):
        raise UnresolvedError(f"the number of axes depends on {count}")
    return count


def one_of(view: NodeView, axis: int, candidates: Sequence[Dim]) -> Dim:
    """Return the size of an output axis that is one of ``candidates``, decided by data."""
    first = candidates[0]
    upper: Dim = first
    for dim in candidates[1:]:
        upper = larger(upper, dim, view.bounds)
    if all(dim == first for dim in candidates):
        return first
    return view.fresh(0, axis, "the axes are computed from data", upper, weak=True)


def without_unknown_axes(view: NodeView, dims: Shape, index: int) -> Shape:
    """Return the shape that is left when input ``index`` names axes to drop, unknown ones."""
    dropped = count_of(view, index)
    if not 1 <= dropped <= len(dims):
        raise UnresolvedError(f"the axes of {view.label} are computed from data")
    kept = range(len(dims) - dropped)
    return tuple(one_of(view, i, dims[i : i + dropped + 1]) for i in kept)


def pass_through(view: NodeView) -> None:
    """Record that the output holds the entries of the first input in the same order."""
    contents = view.contents(0) if view.followed() is not None else None
    if contents is not None:
        view.know(contents.entries)


@rule("Reshape")
def reshape(view: NodeView) -> None:
    """The target, with at most one -1; 0 copies an axis unless ``allowzero`` is set."""
    view.types(view.dtype(0))
    target: tuple[Entry, ...] = view.required_ints("shape") if view.opset < 5 else ()
    if view.opset >= 5:
        target = as_vector(view, 1, "target shape")
    copies = view.opset < 14 or not view.int_("allowzero", 0)
    fixed = tuple(e for e in target if isinstance(e, Expr) or (isinstance(e, int) and e > 0))
    if len(fixed) == len(target):
        _check_total(view, fixed)
        view.out(0, fixed)
    else:
        view.out(0, _fill_target(view, view.dims(0), target, copies=copies))
    pass_through(view)


def _check_total(view: NodeView, target: Shape) -> None:
    dims = view.dims_or_none(0)
    if dims is None:
        return
    before, after = volume(dims), volume(target)
    if isinstance(before, int) and isinstance(after, int) and before != after:
        view.impossible(f"{before} elements cannot take the shape {list(target)}")


def _fill_target(view: NodeView, dims: Shape, target: tuple[Entry, ...], *, copies: bool) -> Shape:
    result: list[Dim | None] = []
    rest_is_derived = 0
    for position, entry in enumerate(target):
        if entry == 0 and copies:
            if position >= len(dims):
                view.impossible(f"entry {position} of the target is 0, the input has no such axis")
            result.append(dims[position])
        elif isinstance(entry, Expr) or (isinstance(entry, int) and entry >= 0):
            result.append(entry)
        elif isinstance(entry, int) and entry < -1:
            view.impossible(f"entry {position} of the target is {entry}")
        else:
            rest_is_derived += entry == -1
            result.append(None)
    if rest_is_derived > 1:
        view.impossible("the target has more than one -1")
    known = [d for d in result if d is not None]
    if len(known) == len(result):
        _check_total(view, tuple(known))
        return tuple(known)
    if len(result) - len(known) == 1:
        derived = _derived(view, dims, known)
        return tuple(derived if d is None else d for d in result)
    total = volume(dims)
    upper = total if (lowest(total, view.bounds) or 0) >= 1 else None
    reason = "the target shape is computed from data"
    return tuple(
        view.fresh(0, axis, reason, upper, weak=True) if d is None else d
        for axis, d in enumerate(result)
    )


def _derived(view: NodeView, dims: Shape, known: list[Dim]) -> Dim:
    if 0 in known:
        view.impossible("no size can be derived next to an axis of size 0")
    try:
        return quotient(dims, known)
    except UnequalError:
        view.impossible(f"{volume(dims)} elements are no multiple of {known}")


@rule("Flatten")
def flatten(view: NodeView) -> None:
    """Two axes: the product before the axis and the product from it on."""
    view.types(view.dtype(0))
    dims = view.dims(0)
    axis = view.int_("axis", 1)
    if not -len(dims) <= axis <= len(dims):
        view.impossible(f"axis {axis} is outside rank {len(dims)}")
    axis += len(dims) if axis < 0 else 0
    view.out(0, (volume(dims[:axis]), volume(dims[axis:])))
    pass_through(view)


@rule("Squeeze")
def squeeze(view: NodeView) -> None:
    """The axes named, which must be 1, are dropped; without axes every axis of size 1."""
    view.types(view.dtype(0))
    dims = view.dims(0)
    if view.opset >= 13 and view.has(1) and view.numbers(1) is None:
        view.out(0, without_unknown_axes(view, dims, 1))
        pass_through(view)
        return
    axes = axes_of(view, 1, 13)
    if not axes:
        # An empty list means the same as none, in runtimes if not in the specification.
        for dim in dims:
            if not isinstance(dim, int) and (lowest(dim, view.bounds) or 0) < 2:
                raise UnresolvedError(f"the rank depends on whether {dim} is 1")
        view.out(0, tuple(d for d in dims if d != 1))
    else:
        dropped = view.axes(axes, len(dims))
        for axis in dropped:
            view.same(dims[axis], 1, f"size of axis {axis} and 1")
        view.out(0, tuple(d for i, d in enumerate(dims) if i not in dropped))
    pass_through(view)


@rule("Unsqueeze")
def unsqueeze(view: NodeView) -> None:
    """Axes of size 1 at the places named, counted in the output."""
    view.types(view.dtype(0))
    dims = view.dims(0)
    if view.opset >= 13 and view.has(1) and view.numbers(1) is None:
        added_count = count_of(view, 1)
        padded = (1,) * added_count + dims + (1,) * added_count
        places = range(len(dims) + added_count)
        # Each axis is new, or one that moved back by at most the number of new ones.
        view.out(0, tuple(one_of(view, i, (*padded[i : i + added_count + 1], 1)) for i in places))
        pass_through(view)
        return
    axes = axes_of(view, 1, 13)
    if axes is None:
        view.malformed("the axes are missing")
    rank = len(dims) + len(axes)
    added = view.axes(axes, rank)
    rest = iter(dims)
    view.out(0, tuple(1 if i in added else next(rest) for i in range(rank)))
    pass_through(view)


@rule("Transpose")
def transpose(view: NodeView) -> None:
    """The axes in the order of ``perm``, reversed by default."""
    view.types(view.dtype(0))
    dims = view.dims(0)
    order = view.ints("perm")
    if order is None:
        order = tuple(reversed(range(len(dims))))
    if sorted(order) != list(range(len(dims))):
        view.impossible(f"perm {list(order)} is no order of {len(dims)} axes")
    view.out(0, tuple(dims[i] for i in order))
    contents = view.contents(0) if view.followed() is not None else None
    if contents is not None:
        view.know(pick(contents, positions(contents).transpose(order)))


@rule("Expand")
def expand(view: NodeView) -> None:
    """The broadcast of the input with the shape given."""
    view.types(view.dtype(0))
    dims = view.dims(0)
    target = [
        view.size_entry(1, i, e, "the shape") for i, e in enumerate(as_vector(view, 1, "shape"))
    ]
    if any(isinstance(d, int) and d < 0 for d in target):
        view.impossible(f"the shape {target} has a negative size")
    view.out(0, view.broadcast(dims, tuple(target)))
    wanted = view.followed()
    contents = view.contents(0) if wanted is not None else None
    if contents is not None and wanted is not None:
        view.know(spread(contents, wanted))


@rule("Tile")
def tile(view: NodeView) -> None:
    """Each axis times its number of repeats."""
    view.types(view.dtype(0))
    dims = view.dims(0)
    if view.opset < 6:
        count, axis = view.scalar(1), view.scalar(2)
        if not isinstance(axis, int):
            raise UnresolvedError("the axis to tile is computed from data")
        repeats: list[Dim] = [1] * len(dims)
        repeats[view.axis(axis, len(dims))] = view.size_entry(1, 0, count, "the number of tiles")
    else:
        entries = as_vector(view, 1, "repeats")
        if len(entries) != len(dims):
            view.impossible(f"there are {len(entries)} repeats for {len(dims)} axes")
        repeats = [view.size_entry(1, i, e, "a repeat") for i, e in enumerate(entries)]
    view.out(0, tuple(times(d, r) for d, r in zip(dims, repeats, strict=True)))
    contents = view.contents(0) if view.followed() is not None else None
    numbers = [r for r in repeats if isinstance(r, int)]
    if contents is not None and len(numbers) == len(repeats):
        view.know(pick(contents, np.tile(positions(contents), numbers)))


@rule("Concat")
def concat(view: NodeView) -> None:
    """The sum along the axis; all other axes must agree."""
    if not view.inputs:
        view.malformed("there is no input")
    view.types(view.dtype(0))
    shapes = [view.dims(i) for i in range(len(view.inputs))]
    rank = len(shapes[0])
    if view.opset >= 4 and not view.has_attribute("axis"):
        view.malformed("attribute 'axis' is missing")
    axis = view.axis(view.int_("axis", 1), rank)
    result = list(shapes[0])
    for shape in shapes[1:]:
        if len(shape) != rank:
            view.impossible("the ranks differ")
        if shape[:axis] != shapes[0][:axis] or shape[axis + 1 :] != shapes[0][axis + 1 :]:
            for i in range(rank):
                if i != axis:
                    result[i] = view.same(result[i], shape[i], f"sizes of axis {i}")
        result[axis] = add(result[axis], shape[axis])
    view.out(0, tuple(result))
    if view.followed() is not None:
        _concat_contents(view, shapes, axis)


def _concat_contents(view: NodeView, shapes: list[Shape], axis: int) -> None:
    parts = [view.contents(i) for i in range(len(shapes))]
    if not any(parts):
        return
    entries: list[Entry] = []
    numbers = []
    for shape, part in zip(shapes, parts, strict=True):
        sizes = tuple(d for d in shape if isinstance(d, int))
        count = int(np.prod(sizes, dtype=np.int64))
        numbers.append(np.arange(len(entries), len(entries) + count).reshape(sizes))
        entries += part.entries if part is not None else (None,) * count
    order = np.concatenate(numbers, axis=axis).reshape(-1).tolist()
    view.know([entries[i] for i in order])


@rule("Split")
def split(view: NodeView) -> None:
    """Parts along the axis: as listed, or equal with a smaller last one."""
    count = len(view.outputs)
    view.types(*[view.dtype(0)] * count)
    dims = view.dims(0)
    axis = view.axis(view.int_("axis", 0), len(dims))
    sizes = _split_sizes(view, dims[axis], count)
    for i, size in enumerate(sizes):
        view.out(i, (*dims[:axis], size, *dims[axis + 1 :]))
    contents = view.contents(0) if view.followed() is not None else None
    if contents is None:
        return
    numbers, start = positions(contents), 0
    for i, size in enumerate(sizes):
        if not isinstance(size, int):
            return
        part = np.take(numbers, np.arange(start, start + size), axis=axis)
        view.know(pick(contents, part), i)
        start += size


def _split_sizes(view: NodeView, whole: Dim, count: int) -> list[Dim]:
    listed: tuple[Entry, ...] | None = view.ints("split")
    if view.opset >= 13 and view.has(1):
        listed = as_vector(view, 1, "list of sizes")
    if listed is not None:
        if len(listed) != count:
            view.impossible(f"there are {len(listed)} sizes for {count} outputs")
        sizes = [view.size_entry(1, i, e, "a size") for i, e in enumerate(listed)]
        view.same(whole, volume_sum(sizes), "the size of the axis and the sum of the parts")
        return sizes
    parts = view.int_("num_outputs", count) if view.opset >= 18 else count
    if parts != count:
        view.impossible(f"num_outputs is {parts}, the node has {count} outputs")
    if view.opset < 18 and isinstance(whole, int) and whole % count:
        view.impossible(f"axis of size {whole} cannot be split into {count} equal parts")
    if view.opset < 18:
        return [floordiv(whole, count)] * count
    chunk = ceildiv(whole, count)
    last = sub(whole, mul(chunk, count - 1))
    if isinstance(last, int) and last < 0:
        view.impossible(f"axis of size {whole} cannot be split into {count} parts")
    return [chunk] * (count - 1) + [last]


def volume_sum(sizes: list[Dim]) -> Dim:
    """Return the sum of ``sizes``."""
    total: Dim = 0
    for size in sizes:
        total = add(total, size)
    return total


@rule("Shape")
def shape(view: NodeView) -> None:
    """The sizes from ``start`` to ``end`` as a vector."""
    view.types(INT64)
    dims = view.dims(0)
    rank = len(dims)
    start, end = view.int_("start", 0), view.int_("end", rank)
    part = dims[_clamp(start, rank) : _clamp(end, rank)]
    view.out(0, (len(part),))
    view.know(part)


def _clamp(position: int, rank: int) -> int:
    return min(max(position + rank if position < 0 else position, 0), rank)


@rule("Size")
def size(view: NodeView) -> None:
    """The number of elements as a scalar."""
    view.types(INT64)
    view.out(0, ())
    view.know([volume(view.dims(0))])


@rule("DepthToSpace")
def depth_to_space(view: NodeView) -> None:
    """Channels become blocks of pixels."""
    view.types(view.dtype(0))
    n, c, h, w = view.ranked(0, 4, 4)
    block = _block(view)
    view.out(0, (n, _divided(view, c, block * block), mul(h, block), mul(w, block)))


@rule("SpaceToDepth")
def space_to_depth(view: NodeView) -> None:
    """Blocks of pixels become channels."""
    view.types(view.dtype(0))
    n, c, h, w = view.ranked(0, 4, 4)
    block = _block(view)
    view.out(0, (n, mul(c, block * block), _divided(view, h, block), _divided(view, w, block)))


def _block(view: NodeView) -> int:
    block = view.int_("blocksize", 0)
    if block < 1:
        view.malformed(f"attribute 'blocksize' is {block}")
    return block


def _divided(view: NodeView, dim: Dim, divisor: int) -> Dim:
    if isinstance(dim, int) and dim % divisor:
        view.impossible(f"{dim} is no multiple of {divisor}")
    return floordiv(dim, divisor)


@rule("Pad")
def pad(view: NodeView) -> None:
    """Each axis plus its padding at both ends, which may be negative."""
    view.types(view.dtype(0))
    dims = view.dims(0)
    axes = tuple(range(len(dims)))
    entries: tuple[Entry, ...]
    if view.opset < 11:
        entries = view.required_ints("pads" if view.opset >= 2 else "paddings")
    else:
        if view.opset >= 18 and view.has(3) and view.numbers(3) is None:
            reason = "the axes to pad are computed from data"
            view.out(0, tuple(view.fresh(0, i, reason, weak=True) for i in axes))
            return
        if view.opset >= 18 and view.has(3):
            axes = view.axes(axes_of(view, 3, 18) or (), len(dims))
        known = view.entries(1)
        entries = known if known is not None else (None,) * (2 * len(axes))
    if len(entries) != 2 * len(axes):
        view.impossible(f"there are {len(entries)} paddings for {len(axes)} axes")
    result = list(dims)
    for i, axis in enumerate(axes):
        before, after = entries[i], entries[i + len(axes)]
        if isinstance(before, int | Expr) and isinstance(after, int | Expr):
            result[axis] = add(dims[axis], add(before, after))
        else:
            reason = "the padding is computed from data"
            result[axis] = view.fresh(0, axis, reason, weak=True)
    view.out(0, tuple(result))


@rule("CenterCropPad")
def center_crop_pad(view: NodeView) -> None:
    """The sizes given along the axes named."""
    view.types(view.dtype(0))
    dims = view.dims(0)
    named = view.ints("axes")
    axes = tuple(range(len(dims))) if named is None else view.axes(named, len(dims))
    entries = as_vector(view, 1, "shape")
    if len(entries) != len(axes):
        view.impossible(f"there are {len(entries)} sizes for {len(axes)} axes")
    result = list(dims)
    for i, (axis, entry) in enumerate(zip(axes, entries, strict=True)):
        result[axis] = view.size_entry(1, i, entry, "a size")
    view.out(0, tuple(result))


@rule("ReverseSequence", "Trilu")
def rearranged(view: NodeView) -> None:
    """The output looks like the input, which has at least two axes."""
    view.ranked(0, 2)
    unchanged(view)
