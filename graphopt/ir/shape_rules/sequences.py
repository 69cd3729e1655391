"""Rules for sequences and optionals; a tensor inside has dims only when they are certain."""

import onnx_ir as ir

from graphopt.ir.dims import Dim, add, symbols_of
from graphopt.ir.shape_rules.facts import Element, Snapshot, UnresolvedError, element_of
from graphopt.ir.shape_rules.registry import rule
from graphopt.ir.shape_rules.view import NodeView, Shape

BOOL = ir.DataType.BOOL
INT64 = ir.DataType.INT64

MAX_PARTS = 256


def _sequence(dtype: ir.DataType | None, parts: tuple[Shape, ...] | None) -> Element:
    """Return a sequence of tensors of the shapes ``parts``."""
    dims = parts[0] if parts and all(p == parts[0] for p in parts) else None
    kept = parts if parts is not None and len(parts) <= MAX_PARTS else None
    return Element("sequence", dtype, dims, None, kept)


def _tensor(view: NodeView, dtype: ir.DataType | None, dims: Shape | None, reason: str) -> None:
    if dtype is not None:
        view.types(dtype)
    if dims is None:
        raise UnresolvedError(reason)
    view.out(0, dims)


@rule("SequenceConstruct")
def sequence_construct(view: NodeView) -> None:
    """All inputs in order."""
    shapes = [view.dims_or_none(i) for i in range(len(view.inputs))]
    known = tuple(s for s in shapes if s is not None)
    dtype = view.dtype(0) if view.inputs else None
    view.holds(0, _sequence(dtype, known if len(known) == len(shapes) else None))


@rule("SequenceEmpty")
def sequence_empty(view: NodeView) -> None:
    """No tensors of the type given."""
    view.holds(0, _sequence(view.data_type("dtype", ir.DataType.FLOAT), ()))


def _place(view: NodeView, index: int, count: int) -> int | None:
    """Return the position that input ``index`` names among ``count``; None when not known."""
    entry = view.scalar(index)
    if not isinstance(entry, int):
        return None
    if not -count <= entry < count:
        view.impossible(f"position {entry} is outside a sequence of {count}")
    return entry % count


@rule("SequenceAt")
def sequence_at(view: NodeView) -> None:
    """The tensor at a position."""
    held = view.element(0)
    if held.inner is not None:
        view.holds(0, held.inner)
        return
    dims = held.dims
    if held.parts is not None:
        place = _place(view, 1, len(held.parts))
        dims = held.parts[place] if place is not None else dims
    _tensor(view, held.dtype, dims, "the tensors of the sequence differ in shape")


@rule("SequenceInsert")
def sequence_insert(view: NodeView) -> None:
    """The sequence with one more tensor."""
    held, added = view.element(0), view.dims_or_none(1)
    dtype = held.dtype or view.dtype(1)
    if held.parts is None or added is None:
        same = held.dims if held.dims == added else None
        view.holds(0, Element("sequence", dtype, same))
        return
    parts = list(held.parts)
    place: int | None = len(parts)
    if view.has(2):
        entry = view.scalar(2)
        if isinstance(entry, int) and not -len(parts) <= entry <= len(parts):
            view.impossible(f"position {entry} is outside a sequence of {len(parts)}")
        place = None
        if isinstance(entry, int):
            place = entry + len(parts) if entry < 0 else entry
    if place is None:
        alike = all(p == added for p in parts)
        place = 0 if alike else None
    if place is None:
        view.holds(0, Element("sequence", dtype))
        return
    view.holds(0, _sequence(dtype, (*parts[:place], added, *parts[place:])))


@rule("SequenceErase")
def sequence_erase(view: NodeView) -> None:
    """The sequence with one tensor less."""
    held = view.element(0)
    if not held.parts:
        view.holds(0, Element("sequence", held.dtype, held.dims, held.inner))
        return
    place = _place(view, 1, len(held.parts)) if view.has(1) else len(held.parts) - 1
    if place is None and held.dims is None:
        view.holds(0, Element("sequence", held.dtype))
        return
    place = place or 0
    view.holds(0, _sequence(held.dtype, held.parts[:place] + held.parts[place + 1 :]))


@rule("SequenceLength")
def sequence_length(view: NodeView) -> None:
    """The number of tensors."""
    view.types(INT64)
    view.out(0, ())
    held = view.element(0)
    if held.parts is not None:
        view.know([len(held.parts)])


@rule("SplitToSequence")
def split_to_sequence(view: NodeView) -> None:
    """Parts along the axis: of the sizes listed, of one size, or of size 1."""
    dims = view.dims(0)
    axis = view.axis(view.int_("axis", 0), len(dims))
    whole, dtype = dims[axis], view.dtype(0)
    drop = not view.has(1) and not view.int_("keepdims", 1)
    sizes = _split_sizes(view, whole)

    def part(size: Dim) -> Shape:
        return (*dims[:axis], *(() if drop else (size,)), *dims[axis + 1 :])

    if sizes is not None:
        view.holds(0, _sequence(dtype, tuple(part(size) for size in sizes)))
    else:
        dims_of_all = part(1) if not view.has(1) else None
        view.holds(0, Element("sequence", dtype, dims_of_all))


def _split_sizes(view: NodeView, whole: Dim) -> list[Dim] | None:
    if not view.has(1):
        count = whole if isinstance(whole, int) and whole <= MAX_PARTS else None
        return None if count is None else [1] * count
    numbers = view.numbers(1)
    if numbers is None or any(n < 0 for n in numbers):
        return None
    contents = view.contents(1)
    if contents is not None and contents.dims:
        view.same(whole, sum(numbers), "the size of the axis and the sum of the parts")
        return list(numbers)
    size = numbers[0]
    if size < 1 or not isinstance(whole, int):
        return None
    count = -(-whole // size)
    if count > MAX_PARTS:
        return None
    return [min(size, whole - i * size) for i in range(count)]


@rule("ConcatFromSequence")
def concat_from_sequence(view: NodeView) -> None:
    """All tensors concatenated, or stacked along a new axis."""
    held = view.element(0)
    if held.dtype is not None:
        view.types(held.dtype)
    new_axis = bool(view.int_("new_axis", 0))
    shapes = held.parts if held.parts else (None if held.dims is None else (held.dims,))
    if shapes is None:
        raise UnresolvedError("the tensors of the sequence differ in shape")
    rank = len(shapes[0])
    if any(len(shape) != rank for shape in shapes):
        view.impossible("the ranks of the tensors differ")
    axis = view.axis(view.int_("axis", 0), rank + new_axis)
    total = _total(view, shapes, axis, new_axis=new_axis)
    if not held.parts:
        total = view.fresh(0, axis, "the length of the sequence")
    result = list(shapes[0])
    for shape in shapes[1:]:
        for i in range(rank):
            if new_axis or i != axis:
                result[i] = view.same(result[i], shape[i], f"sizes of axis {i}")
    if new_axis:
        result.insert(axis, total)
    else:
        result[axis] = total
    view.out(0, tuple(result))


def _total(view: NodeView, shapes: tuple[Shape, ...], axis: int, *, new_axis: bool) -> Dim:
    total: Dim = 0
    for shape in shapes:
        total = add(total, 1 if new_axis else shape[axis])
    return total


@rule("SequenceMap")
def sequence_map(view: NodeView) -> None:
    """What the body makes of each tensor of the first sequence."""
    body = view.graph("body")
    if len(body.inputs) != len(view.inputs) or len(body.outputs) != len(view.outputs):
        view.malformed(f"the body has {len(body.inputs)} inputs and {len(body.outputs)} outputs")
    facts = view.facts
    for i, target in enumerate(body.inputs):
        value = view.value(i)
        source = facts.snapshot(value)
        held = source.element
        if held is not None and held.inner is None:
            source = Snapshot(held.dtype, held.dims, None, None)
        facts.assign(target, source, "the tensors of the sequence differ in shape")
    view.run_body(body)
    for i, result in enumerate(body.outputs):
        dims = facts.dims_of(result)
        if dims is not None and any(
            name in facts.data_dependent for dim in dims for name in symbols_of(dim)
        ):
            dims = None
        view.holds(i, Element("sequence", facts.dtype_of(result), dims))


@rule("Optional")
def optional(view: NodeView) -> None:
    """The input, or nothing of the type that the attribute names."""
    if view.has(0):
        source = view.facts.snapshot(view.value(0))
        inner = source.element
        dtype = source.dtype if inner is None else inner.dtype
        view.holds(0, Element("optional", dtype, source.dims, inner))
        return
    attribute = view.node.attributes.get("type")
    if attribute is None or attribute.type is not ir.AttributeType.TYPE_PROTO:
        view.malformed("an optional without an input needs attribute 'type'")
    held = element_of(attribute.value.type)
    dtype = held.dtype if held is not None else attribute.value.type.dtype
    view.holds(0, Element("optional", dtype, None, held))


@rule("OptionalHasElement")
def optional_has_element(view: NodeView) -> None:
    """A bool."""
    view.types(BOOL)
    view.out(0, ())
    value = view.inputs[0] if view.inputs else None
    if value is None:
        view.know([0])
        return
    held = view.facts.snapshot(value).element
    if held is None or held.kind != "optional":
        view.know([1])


@rule("OptionalGetElement")
def optional_get_element(view: NodeView) -> None:
    """What the optional holds; a value that is no optional stays what it is."""
    source = view.facts.snapshot(view.value(0))
    held = source.element
    if held is not None and held.kind == "optional" and held.inner is None:
        _tensor(view, held.dtype, held.dims, "nothing says which shape the optional holds")
    elif held is not None:
        view.holds(0, held.inner or held)
    else:
        _tensor(view, source.dtype, source.dims, "its input is not known")
