"""Rules for operators that work on one element at a time: activations, arithmetic, comparisons."""

from math import prod

import onnx_ir as ir

from graphopt.ir.shape_rules.contents import Entry, binary, cast, spread, unary
from graphopt.ir.shape_rules.registry import rule
from graphopt.ir.shape_rules.view import NodeView

BOOL = ir.DataType.BOOL


@rule(
    "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Celu", "Cos", "Cosh", "Elu",
    "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mish", "Relu", "Selu",
    "Shrink", "Sigmoid", "Sin", "Sinh", "Softplus", "Softsign", "Swish", "Tan", "Tanh",
    "ThresholdedRelu", "PRelu",
)  # fmt: skip
def unchanged(view: NodeView) -> None:
    """The output looks like the first input."""
    view.types(view.dtype(0))
    view.out(0, view.dims(0))


@rule("Softmax", "LogSoftmax", "Hardmax")
def along_axis(view: NodeView) -> None:
    """The output looks like the input, and the axis must exist."""
    view.types(view.dtype(0))
    dims = view.dims(0)
    if dims or view.has_attribute("axis"):
        view.axis(view.int_("axis", 1 if view.opset < 13 else -1), max(len(dims), 1))
    view.out(0, dims)


@rule("Abs", "Ceil", "Floor", "Neg", "Not", "Reciprocal", "Round", "Sign", "Sqrt")
def followed_unary(view: NodeView) -> None:
    """As `unchanged`; the contents of small tensors are followed."""
    unchanged(view)
    contents = view.contents(0) if view.followed() is not None else None
    if contents is not None:
        op, dtype = view.node.op_type, view.dtype(0)
        view.know([unary(op, e, dtype, view.bounds) for e in contents.entries])


@rule("Identity")
def identity(view: NodeView) -> None:
    """The output is the input, of whatever type."""
    element = view.facts.elements.get(view.value(0))
    if element is not None:
        view.holds(0, element)
        return
    unchanged(view)
    contents = view.contents(0) if view.followed() is not None else None
    if contents is not None:
        view.know(contents.entries)


@rule("Add", "Sub", "Mul", "Div", "Pow")
def arithmetic(view: NodeView) -> None:
    """The broadcast of both inputs, in the type of the first."""
    view.types(view.dtype(0))
    _broadcast_two(view)
    follow_two(view, view.node.op_type)


@rule("Mod")
def modulo(view: NodeView) -> None:
    """As `arithmetic`; ``fmod`` chooses the sign of the result."""
    view.types(view.dtype(0))
    _broadcast_two(view)
    follow_two(view, "Remainder" if view.int_("fmod", 0) else "Mod")


@rule("BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitShift")
def bitwise(view: NodeView) -> None:
    """The broadcast of both inputs, in the type of the first."""
    view.types(view.dtype(0))
    _broadcast_two(view)
    follow_two(view, view.node.op_type)


@rule("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor")
def comparison(view: NodeView) -> None:
    """The broadcast of both inputs, as bool."""
    view.types(BOOL)
    _broadcast_two(view)
    follow_two(view, view.node.op_type)


@rule("IsInf", "IsNaN")
def classification(view: NodeView) -> None:
    """A bool for each element."""
    view.types(BOOL)
    view.out(0, view.dims(0))


def _broadcast_two(view: NodeView) -> None:
    left, right = view.dims(0), view.dims(1)
    if left == right or view.opset < 7:
        # Before opset 7 the second input is broadcast to the first.
        view.out(0, left)
    else:
        view.out(0, view.broadcast(left, right))


def follow_two(view: NodeView, op: str) -> None:
    """Record the contents of the output of a broadcasting operator with two inputs."""
    dims = view.followed()
    if dims is None or view.opset < 7:
        return
    left, right = view.contents(0), view.contents(1)
    if left is None and right is None:
        return
    unknown: tuple[Entry, ...] = (None,) * prod(dims)
    first = spread(left, dims) if left is not None else unknown
    second = spread(right, dims) if right is not None else unknown
    dtype = view.dtype(0)
    view.know([binary(op, a, b, dtype, view.bounds) for a, b in zip(first, second, strict=True)])


@rule("Max", "Min", "Sum", "Mean")
def variadic(view: NodeView) -> None:
    """The broadcast of all inputs."""
    if not view.inputs:
        view.malformed("there is no input")
    view.types(view.dtype(0))
    view.out(0, view.broadcast(*(view.dims(i) for i in range(len(view.inputs)))))
    dims = view.followed()
    op = {"Sum": "Add", "Mean": None}.get(view.node.op_type, view.node.op_type)
    contents = [view.contents(i) for i in range(len(view.inputs))] if dims is not None else [None]
    if op is None or dims is None or None in contents:
        return
    dtype = view.dtype(0)
    rows = [spread(c, dims) for c in contents if c is not None]
    result = list(rows[0])
    for row in rows[1:]:
        result = [binary(op, a, b, dtype, view.bounds) for a, b in zip(result, row, strict=True)]
    view.know(result)


@rule("Where")
def where(view: NodeView) -> None:
    """The broadcast of all three inputs, in the type of the second."""
    view.types(view.dtype(1))
    view.out(0, view.broadcast(view.dims(0), view.dims(1), view.dims(2)))
    dims = view.followed()
    chosen = [view.contents(i) for i in range(3)] if dims is not None else [None]
    if dims is None or chosen[1] is None or chosen[2] is None:
        return
    yes, no = spread(chosen[1], dims), spread(chosen[2], dims)
    if chosen[0] is None:
        view.know([a if a == b else None for a, b in zip(yes, no, strict=True)])
        return
    condition = spread(chosen[0], dims)
    view.know(
        [
            (a if c else b) if c is not None else (a if a == b else None)
            for c, a, b in zip(condition, yes, no, strict=True)
        ]
    )


@rule("Clip")
def clip(view: NodeView) -> None:
    """The output looks like the input; whole numbers are followed."""
    unchanged(view)
    contents = view.contents(0) if view.followed() is not None else None
    if contents is None or view.opset < 11:
        return
    dtype = view.dtype(0)
    entries = list(contents.entries)
    for index, op in ((1, "Max"), (2, "Min")):
        if view.has(index):
            limit = view.scalar(index)
            entries = [binary(op, e, limit, dtype, view.bounds) for e in entries]
    view.know(entries)


@rule("Cast")
def cast_to(view: NodeView) -> None:
    """The type that the attribute names."""
    _cast(view, view.data_type("to"))


@rule("CastLike")
def cast_like(view: NodeView) -> None:
    """The type of the second input."""
    _cast(view, view.dtype(1))


def _cast(view: NodeView, target: ir.DataType) -> None:
    view.types(target)
    view.out(0, view.dims(0))
    contents = view.contents(0) if view.followed() is not None else None
    if contents is not None:
        source = view.dtype(0)
        view.know([cast(e, source, target, view.bounds) for e in contents.entries])


@rule("BitCast")
def bit_cast(view: NodeView) -> None:
    """Another type of the same width."""
    view.types(view.data_type("to"))
    view.out(0, view.dims(0))


@rule("Dropout")
def dropout(view: NodeView) -> None:
    """The input, and a mask that is bool since opset 10."""
    dtype = view.dtype(0)
    view.types(dtype, BOOL if view.opset >= 10 else dtype)
    view.out(0, view.dims(0))
    view.out(1, view.dims(0))


@rule("SwiGLU")
def swiglu(view: NodeView) -> None:
    """The output looks like the input."""
    unchanged(view)
