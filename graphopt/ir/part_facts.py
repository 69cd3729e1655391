"""Operators whose output is a contiguous piece of an input, or is made of its inputs in a row.

In: a node. Out: *cuts*, outputs that are a run of bytes inside an input (``Split``, ``Slice``,
``Gather`` of one position), and *joins*, inputs that are a run of bytes inside the output
(``Concat``). A run is contiguous when everything before the axis has one element, which for
images means batch 1.

The place of a run is stated by the axis and by the elements that come before it along that axis;
both must be known numbers. Whether the sizes around them are exact is for the caller to check, who
knows the sizes of the plan.
"""

from dataclasses import dataclass

import onnx_ir as ir

from graphopt.ir.constants import axes_of, constant_of, ints_of
from graphopt.ir.dims import Dim
from graphopt.ir.program import dims_of, is_onnx

_LARGEST = 1 << 31


@dataclass(frozen=True, slots=True)
class Part:
    """One value inside another.

    Attributes:
        output: Index of the output of the node.
        input: Index of the input of the node.
        axis: Axis along which the pieces lie, not negative.
        before: Elements along the axis before the piece.
    """

    output: int
    input: int
    axis: int
    before: Dim


def cuts(node: ir.Node) -> tuple[Part, ...]:
    """Return the outputs of ``node`` that are pieces of an input."""
    if is_onnx(node, "Split"):
        return _split(node)
    if is_onnx(node, "Slice"):
        return _slice(node)
    if is_onnx(node, "Gather"):
        return _gather(node)
    return ()


def joins(node: ir.Node) -> tuple[Part, ...]:
    """Return the inputs of ``node`` that are pieces of its output."""
    if not is_onnx(node, "Concat"):
        return ()
    dims = dims_of(node.outputs[0])
    axis = _axis(node, None if dims is None else len(dims))
    if axis is None:
        return ()
    found: list[Part] = []
    before: Dim = 0
    for index, value in enumerate(node.inputs):
        piece = None if value is None else dims_of(value)
        if piece is None:
            return tuple(found)
        found.append(Part(0, index, axis, before))
        before = before + piece[axis]
    return tuple(found)


def _axis(node: ir.Node, rank: int | None, default: int = 0) -> int | None:
    if rank is None:
        return None
    attribute = node.attributes.get("axis")
    axis = default if attribute is None else attribute.as_int()
    axis += rank if axis < 0 else 0
    return axis if 0 <= axis < rank else None


def _rank(value: ir.Value | None) -> int | None:
    dims = None if value is None else dims_of(value)
    return None if dims is None else len(dims)


def _split(node: ir.Node) -> tuple[Part, ...]:
    axis = _axis(node, _rank(node.inputs[0]))
    if axis is None:
        return ()
    found: list[Part] = []
    before: Dim = 0
    for index, value in enumerate(node.outputs):
        dims = dims_of(value)
        if dims is None:
            break
        found.append(Part(index, 0, axis, before))
        before = before + dims[axis]
    return tuple(found)


def _slice(node: ir.Node) -> tuple[Part, ...]:
    """A slice of one axis by step 1 whose start is a known number."""
    dims = dims_of(node.inputs[0]) if node.inputs[0] is not None else None
    if dims is None:
        return ()
    if "starts" in node.attributes:
        starts: tuple[int, ...] | None = tuple(node.attributes["starts"].as_ints())
        steps: tuple[int, ...] | None = None
        given = node.attributes.get("axes")
        axes = tuple(range(len(dims))) if given is None else tuple(given.as_ints())
    else:
        starts = ints_of(node.inputs[1])
        steps = ints_of(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] else None
        if len(node.inputs) > 4 and node.inputs[4] is not None and steps is None:
            return ()
        if len(node.inputs) > 3 and node.inputs[3] is not None:
            known = axes_of(node, 3)
            if known is None:
                return ()
            axes = known
        else:
            axes = tuple(range(len(starts or ())))
    if starts is None or any(step != 1 for step in steps or ()):
        return ()
    result = dims_of(node.outputs[0])
    if result is None:
        return ()
    moved = []
    for axis, start in zip(axes, starts, strict=False):
        axis += len(dims) if axis < 0 else 0
        if result[axis] == dims[axis]:
            continue  # the whole axis is taken
        size = dims[axis]
        if start < 0:
            # A start before the first element means the first element.
            begin: Dim = max(0, size + start) if isinstance(size, int) else size + start
        elif start < _LARGEST and isinstance(size, int):
            begin = min(start, size)
        elif start < _LARGEST:
            begin = start
        else:
            return ()
        moved.append(Part(0, 0, axis, begin))
    return tuple(moved) if len(moved) == 1 else ()


def _gather(node: ir.Node) -> tuple[Part, ...]:
    """One position of an axis, by a constant index."""
    dims = dims_of(node.inputs[0]) if node.inputs[0] is not None else None
    axis = _axis(node, None if dims is None else len(dims))
    indices = node.inputs[1]
    if dims is None or axis is None or constant_of(indices) is None:
        return ()
    numbers = ints_of(indices)
    if numbers is None or len(numbers) != 1:
        return ()
    start: Dim = numbers[0] if numbers[0] >= 0 else dims[axis] + numbers[0]
    return (Part(0, 0, axis, start),)
