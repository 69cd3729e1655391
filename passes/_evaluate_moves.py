"""What constant nodes compute that only move elements, or that describe shapes, in numpy."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.ir.constants import Array


class NotComputableError(Exception):
    """The result is not defined, or there is no rule for it; the text says why."""


class Operands:
    """The inputs and attributes of a node, as rules read them."""

    def __init__(self, node: ir.Node, inputs: Sequence[Array | None]) -> None:
        self.node = node
        self._inputs = inputs

    def given(self) -> list[Array]:
        """Return all inputs that are there."""
        return [array for array in self._inputs if array is not None]

    def optional(self, index: int) -> Array | None:
        """Return input ``index``, None when it is left out."""
        return self._inputs[index] if index < len(self._inputs) else None

    def array(self, index: int) -> Array:
        """Return input ``index``, which the operator requires."""
        found = self.optional(index)
        if found is None:
            raise NotComputableError(f"input {index} is missing")
        return found

    def integer(self, name: str, default: int) -> int:
        """Return an attribute that is a number."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.as_int()

    def text(self, name: str, default: str) -> str:
        """Return an attribute that is text."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.as_string()

    def integers(self, name: str, index: int) -> tuple[int, ...] | None:
        """Return numbers from attribute ``name`` or, in later opsets, from input ``index``."""
        attribute = self.node.attributes.get(name)
        if attribute is not None:
            return tuple(attribute.as_ints())
        found = self.optional(index)
        return None if found is None else tuple(int(x) for x in found.ravel().tolist())

    def required(self, name: str, index: int) -> tuple[int, ...]:
        """Return numbers as ``integers`` does; the operator requires them."""
        found = self.integers(name, index)
        if found is None:
            raise NotComputableError(f"'{name}' is missing")
        return found


def _reshape(operands: Operands) -> list[Array]:
    source, target = operands.array(0), list(operands.required("shape", 1))
    if not operands.integer("allowzero", 0):
        target = [source.shape[i] if size == 0 else size for i, size in enumerate(target)]
    return [source.reshape(target)]


def _flatten(operands: Operands) -> list[Array]:
    source = operands.array(0)
    axis = operands.integer("axis", 1)
    axis += source.ndim if axis < 0 else 0
    rows = int(np.prod(source.shape[:axis], dtype=np.int64))
    return [source.reshape(rows, int(np.prod(source.shape[axis:], dtype=np.int64)))]


def _squeeze(operands: Operands) -> list[Array]:
    return [np.squeeze(operands.array(0), axis=operands.integers("axes", 1))]


def _unsqueeze(operands: Operands) -> list[Array]:
    return [np.expand_dims(operands.array(0), operands.required("axes", 1))]


def _transpose(operands: Operands) -> list[Array]:
    order = operands.node.attributes.get("perm")
    return [np.transpose(operands.array(0), None if order is None else tuple(order.as_ints()))]


def _concat(operands: Operands) -> list[Array]:
    return [np.concatenate(operands.given(), axis=operands.integer("axis", 0))]


def _split(operands: Operands) -> list[Array]:
    source, axis = operands.array(0), operands.integer("axis", 0)
    count = len(operands.node.outputs)
    sizes = operands.integers("split", 1)
    if sizes is None:
        # The last part takes what is left.
        part = -(-source.shape[axis] // count)
        ends = [min(part * (i + 1), source.shape[axis]) for i in range(count - 1)]
    else:
        ends = np.cumsum(sizes)[:-1].tolist()
    return list(np.split(source, ends, axis=axis))


def _slice(operands: Operands) -> list[Array]:
    source = operands.array(0)
    starts, ends = operands.required("starts", 1), operands.required("ends", 2)
    axes = operands.integers("axes", 3) or tuple(range(len(starts)))
    steps = operands.integers("steps", 4) or (1,) * len(starts)
    where = [slice(None)] * source.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        # Bounds are cut and counted from the end exactly as Python does.
        where[axis] = slice(start, end, step)
    return [source[tuple(where)]]


def _gather(operands: Operands) -> list[Array]:
    return [np.take(operands.array(0), operands.array(1), axis=operands.integer("axis", 0))]


def _gather_elements(operands: Operands) -> list[Array]:
    axis = operands.integer("axis", 0)
    return [np.take_along_axis(operands.array(0), operands.array(1), axis=axis)]


def _gather_nd(operands: Operands) -> list[Array]:
    if operands.integer("batch_dims", 0):
        raise NotComputableError("batch dimensions")
    where = tuple(np.moveaxis(operands.array(1), -1, 0))
    return [operands.array(0)[where]]


def _scatter_nd(operands: Operands) -> list[Array]:
    if operands.text("reduction", "none") != "none":
        raise NotComputableError("a reduction")
    result = operands.array(0).copy()
    result[tuple(np.moveaxis(operands.array(1), -1, 0))] = operands.array(2)
    return [result]


def _expand(operands: Operands) -> list[Array]:
    source, shape = operands.array(0), operands.required("shape", 1)
    return [np.broadcast_to(source, np.broadcast_shapes(source.shape, shape))]


def _tile(operands: Operands) -> list[Array]:
    return [np.tile(operands.array(0), operands.required("repeats", 1))]


def _pad(operands: Operands) -> list[Array]:
    source = operands.array(0)
    pads = operands.required("pads", 1)
    given = operands.optional(2)
    if operands.text("mode", "constant") != "constant" or min(pads, default=0) < 0:
        raise NotComputableError("padding by anything but a number")
    attribute = operands.node.attributes.get("value")
    value = attribute.as_float() if attribute is not None else 0
    axes = operands.integers("axes", 3) or tuple(range(source.ndim))
    widths = [(0, 0)] * source.ndim
    for index, axis in enumerate(axes):
        widths[axis] = (pads[index], pads[index + len(axes)])
    return [np.pad(source, widths, constant_values=value if given is None else given.item())]


def _constant_of_shape(operands: Operands) -> list[Array]:
    attribute = operands.node.attributes.get("value")
    fill = np.zeros(1, np.float32) if attribute is None else attribute.as_tensor().numpy()
    return [np.full(operands.required("shape", 0), fill.ravel()[0], dtype=fill.dtype)]


def _shape(operands: Operands) -> list[Array]:
    shape = operands.array(0).shape
    end = operands.node.attributes.get("end")
    part = shape[operands.integer("start", 0) : None if end is None else end.as_int()]
    return [np.array(part, dtype=np.int64)]


def _one_hot(operands: Operands) -> list[Array]:
    indices, depth = operands.array(0), int(operands.array(1).item())
    off, on = operands.array(2)
    axis = operands.integer("axis", -1)
    places = np.where(indices < 0, indices + depth, indices).astype(np.int64)
    hot = np.expand_dims(places, axis) == np.arange(depth).reshape(
        [depth if a == axis % (indices.ndim + 1) else 1 for a in range(indices.ndim + 1)]
    )
    return [np.where(hot, on, off).astype(operands.array(2).dtype)]


def _trilu(operands: Operands) -> list[Array]:
    offset = operands.optional(1)
    k = 0 if offset is None else int(offset.item())
    source = operands.array(0)
    return [np.triu(source, k) if operands.integer("upper", 1) else np.tril(source, k)]


MOVES: dict[str, Callable[[Operands], list[Array]]] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Identity": lambda operands: [operands.array(0)],
    "NonZero": lambda operands: [np.array(np.nonzero(operands.array(0)), dtype=np.int64)],
    "OneHot": _one_hot,
    "Pad": _pad,
    "Reshape": _reshape,
    "ScatterND": _scatter_nd,
    "Shape": _shape,
    "Size": lambda operands: [np.array(operands.array(0).size, dtype=np.int64)],
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
