"""How large the result of a constant node is, told from the sizes of its inputs alone."""

import numpy as np
import onnx_ir as ir

from graphopt.ir.constants import constant_of, ints_of

_NAMES = (
    "Add And Div Equal Expand Greater GreaterOrEqual Less LessOrEqual Max Min Mod Mul Or Pow Sub "
    "Where Xor"
)
_BROADCAST = frozenset(_NAMES.split())


def most_elements(node: ir.Node) -> int | None:
    """Return the most elements that the outputs of ``node`` have together, None when not known.

    Only dimensions and small integer operands are read. All inputs are constants.
    """
    tensors = [constant_of(value) for value in node.inputs]
    shapes = [() if t is None else tuple(t.shape.numpy()) for t in tensors]
    sizes = [0 if t is None else _count(shape) for t, shape in zip(tensors, shapes, strict=True)]
    operands = [None if value is None else ints_of(value) for value in node.inputs]
    try:
        return _most(node, shapes, sizes, operands)
    except (IndexError, ValueError, TypeError):
        # A malformed node: the dimensions do not fit together, or an operand is missing.
        return None


Shapes = list[tuple[int, ...]]


def _most(
    node: ir.Node, shapes: Shapes, sizes: list[int], operands: list[tuple[int, ...] | None]
) -> int | None:
    match node.op_type:
        case "Expand":
            return _count(np.broadcast_shapes(shapes[0], operands[1] or ()))
        case op if op in _BROADCAST:
            return _count(np.broadcast_shapes(*shapes))
        case "ConstantOfShape":
            return None if operands[0] is None else _count(operands[0])
        case "Tile":
            return None if operands[1] is None else sizes[0] * _count(operands[1])
        case "Range":
            return _range(node)
        case "Pad":
            attribute = node.attributes.get("pads")
            pads = attribute.as_ints() if attribute is not None else operands[1]
            # An axis grows by no more than all padding together.
            return None if pads is None else _count([d + sum(pads) for d in shapes[0]])
        case "Gather":
            attribute = node.attributes.get("axis")
            axis = shapes[0][0 if attribute is None else attribute.as_int()]
            return sizes[1] * (sizes[0] // axis if axis else 0)
        case "GatherElements":
            return sizes[1]
        case "GatherND":
            return _count(shapes[1][:-1]) * _count(shapes[0][shapes[1][-1] :])
        case "OneHot":
            return None if operands[1] is None else sizes[0] * operands[1][0]
        case "NonZero" | "Shape" | "Size":
            return sizes[0] * max(1, len(shapes[0])) if node.op_type == "NonZero" else 64
    # The others move, combine or reduce elements, and make no more of them.
    return sum(sizes)


def _range(node: ir.Node) -> int | None:
    bounds = []
    for value in node.inputs[:3]:
        tensor = constant_of(value)
        if tensor is None or tensor.size != 1:
            return None
        bounds.append(float(tensor.numpy().astype(np.float64).item()))
    start, limit, delta = bounds
    if not np.isfinite(bounds).all() or delta == 0:
        return None
    return max(0, int(np.ceil((limit - start) / delta)))


def _count(dims: tuple[int, ...] | list[int]) -> int:
    # Python numbers do not wrap around, whatever a malformed model says.
    total = 1
    for dim in dims:
        total *= int(dim)
    return total
