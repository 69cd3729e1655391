"""What constant nodes compute, in numpy.

Numbers come out as a runtime computes them: integer and bool results exactly, float arithmetic
rounded once. Functions that libraries round differently (``Exp``, ``Sin``, sums, ...) are computed
in double precision and rounded once; ``is_rounded`` knows them. What an operator leaves undefined
(division of integers by zero, a cast out of range) is not computed.
"""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.ir.constants import Array
from graphopt.passes._evaluate_moves import MOVES, NotComputableError, Operands

_FLOATS = (
    ir.DataType.FLOAT,
    ir.DataType.DOUBLE,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
)
_INTEGERS = (
    ir.DataType.INT8,
    ir.DataType.INT16,
    ir.DataType.INT32,
    ir.DataType.INT64,
    ir.DataType.UINT8,
    ir.DataType.UINT16,
    ir.DataType.UINT32,
    ir.DataType.UINT64,
)
NUMBERS = (*_FLOATS, *_INTEGERS, ir.DataType.BOOL)


def evaluate(node: ir.Node, inputs: Sequence[Array | None]) -> list[Array]:
    """Return the outputs of ``node`` for ``inputs``, each a new array.

    Raises:
        NotComputableError: the operator is not in the tables, or its result is not defined.
    """
    operands = Operands(node, inputs)
    try:
        with np.errstate(all="ignore"):
            if node.op_type in MOVES:
                outputs = MOVES[node.op_type](operands)
            elif node.op_type in _ARITHMETIC:
                outputs = [_ARITHMETIC[node.op_type](operands)]
            else:
                raise NotComputableError(node.op_type)
    except (ValueError, IndexError, TypeError, OverflowError) as error:
        raise NotComputableError(str(error)) from error
    return [np.array(a, order="C") for a in outputs]


def is_evaluable(node: ir.Node) -> bool:
    """Return whether ``evaluate`` has a rule for the operator of ``node``."""
    known = node.op_type in MOVES or node.op_type in _ARITHMETIC
    return known and node.domain in ("", "ai.onnx")


def _is_float(array: Array) -> bool:
    return ir.DataType.from_numpy(array.dtype) in _FLOATS


def _plain(function: Callable[..., Array]) -> Callable[[Operands], Array]:
    def rule(operands: Operands) -> Array:
        return function(*operands.given())

    return rule


def _wide(function: Callable[[Array], Array]) -> Callable[[Operands], Array]:
    def rule(operands: Operands) -> Array:
        source = operands.array(0)
        return function(source.astype(np.float64)).astype(source.dtype)

    return rule


def _fold(function: Callable[[Array, Array], Array]) -> Callable[[Operands], Array]:
    def rule(operands: Operands) -> Array:
        first, *others = operands.given()
        for other in others:
            first = function(first, other)
        return first

    return rule


def _divide(left: Array, right: Array) -> Array:
    if left.dtype.kind not in "iu":
        return left / right
    if (right == 0).any():
        raise NotComputableError("integer division by zero")
    quotient: Array = left // right
    remainder = left - quotient * right
    # numpy rounds down, ONNX towards zero.
    towards_zero: Array = quotient + ((remainder != 0) & ((left < 0) != (right < 0)))
    return towards_zero.astype(left.dtype)


def _power(base: Array, exponent: Array) -> Array:
    if base.dtype.kind in "iu" and exponent.dtype.kind in "iu":
        exact: Array = np.power(base, exponent.astype(base.dtype))
        return exact
    if not _is_float(base):
        raise NotComputableError("an integer to the power of a fraction")
    result: Array = np.power(base.astype(np.float64), exponent.astype(np.float64))
    return result.astype(base.dtype)


def _modulo(operands: Operands) -> Array:
    left, right = operands.array(0), operands.array(1)
    if left.dtype.kind in "iu" and (right == 0).any():
        raise NotComputableError("integer division by zero")
    return np.fmod(left, right) if operands.integer("fmod", 0) else np.mod(left, right)


def _cast(operands: Operands) -> Array:
    source = operands.array(0)
    target = ir.DataType(operands.integer("to", 0))
    if target not in NUMBERS or ir.DataType.from_numpy(source.dtype) not in NUMBERS:
        raise NotComputableError("cast of a type that is no plain number")
    if target is ir.DataType.BOOL:
        return np.not_equal(source, 0)
    if target in _INTEGERS and _is_float(source):
        limits, values = np.iinfo(target.numpy()), np.trunc(source.astype(np.float64))
        # The upper limit is no double for 64 bits, so the comparison leaves out the limit itself.
        if not ((values >= float(limits.min)) & (values < float(limits.max))).all():
            raise NotComputableError("cast out of range")
        return values.astype(target.numpy())
    return source.astype(target.numpy())


def _clip(operands: Operands) -> Array:
    source = operands.array(0)
    if source.dtype.kind not in "iu":
        # Runtimes disagree about the sign of a clipped zero.
        raise NotComputableError("clip of floats")
    low, high = operands.optional(1), operands.optional(2)
    result = source if low is None else np.maximum(source, low)
    return result if high is None else np.minimum(result, high)


def _range(operands: Operands) -> Array:
    start, limit, delta = (operands.array(i) for i in range(3))
    count = max(int(np.ceil((limit.item() - start.item()) / delta.item())), 0)
    steps = np.arange(count).astype(np.float64 if _is_float(start) else start.dtype)
    return np.asarray(start + steps * delta).astype(start.dtype).reshape(count)


def _reduce(function: Callable[..., Array]) -> Callable[[Operands], Array]:
    def rule(operands: Operands) -> Array:
        source = operands.array(0)
        axes = operands.integers("axes", 1)
        if axes is None or not axes:
            if operands.integer("noop_with_empty_axes", 0):
                return source
            axes = tuple(range(source.ndim))
        wide = source.astype(np.float64) if _is_float(source) else source
        keep = bool(operands.integer("keepdims", 1))
        return np.asarray(function(wide, axis=axes, keepdims=keep)).astype(source.dtype)

    return rule


def _mean(source: Array, **options: object) -> Array:
    if source.dtype.kind != "f":
        raise NotComputableError("mean of integers")
    return np.asarray(np.mean(source, **options))  # type: ignore[call-overload]  # axis and keepdims


def _arg(function: Callable[..., Array]) -> Callable[[Operands], Array]:
    def rule(operands: Operands) -> Array:
        if operands.integer("select_last_index", 0):
            raise NotComputableError("the last of equal elements")
        axis, keep = operands.integer("axis", 0), bool(operands.integer("keepdims", 1))
        return np.asarray(function(operands.array(0), axis=axis, keepdims=keep)).astype(np.int64)

    return rule


def _cumulative_sum(operands: Operands) -> Array:
    if operands.integer("exclusive", 0) or operands.integer("reverse", 0):
        raise NotComputableError("exclusive or reverse sums")
    source = operands.array(0)
    wide = source.astype(np.float64) if _is_float(source) else source
    return np.cumsum(wide, axis=operands.array(1).item()).astype(source.dtype)


def _sigmoid(source: Array) -> Array:
    half = np.exp(-np.abs(source))
    return np.where(source >= 0, 1 / (1 + half), half / (1 + half))


_ARITHMETIC: dict[str, Callable[[Operands], Array]] = {
    "Abs": _plain(np.abs),
    "Add": _plain(np.add),
    "And": _plain(np.logical_and),
    "ArgMax": _arg(np.argmax),
    "ArgMin": _arg(np.argmin),
    "Cast": _cast,
    "Ceil": _plain(np.ceil),
    "Clip": _clip,
    "Cos": _wide(np.cos),
    "CumSum": _cumulative_sum,
    "Div": _plain(_divide),
    "Equal": _plain(np.equal),
    "Exp": _wide(np.exp),
    "Floor": _plain(np.floor),
    "Greater": _plain(np.greater),
    "GreaterOrEqual": _plain(np.greater_equal),
    "Less": _plain(np.less),
    "LessOrEqual": _plain(np.less_equal),
    "Log": _wide(np.log),
    "Max": _fold(np.maximum),
    "Min": _fold(np.minimum),
    "Mod": _modulo,
    "Mul": _plain(np.multiply),
    "Neg": _plain(np.negative),
    "Not": _plain(np.logical_not),
    "Or": _plain(np.logical_or),
    "Pow": _plain(_power),
    "Range": _range,
    "Reciprocal": _plain(lambda a: (np.ones((), a.dtype) / a).astype(a.dtype)),
    "ReduceMax": _reduce(np.max),
    "ReduceMean": _reduce(_mean),
    "ReduceMin": _reduce(np.min),
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "Round": _plain(np.rint),
    "Sigmoid": _wide(_sigmoid),
    "Sign": _plain(np.sign),
    "Sin": _wide(np.sin),
    "Sqrt": _plain(np.sqrt),
    "Sub": _plain(np.subtract),
    "Tanh": _wide(np.tanh),
    "Where": _plain(np.where),
    "Xor": _plain(np.logical_xor),
}
_ROUNDED = ("Cos", "CumSum", "Exp", "Log", "Pow", "Range", "Sigmoid", "Sin", "Tanh")


def is_rounded(node: ir.Node) -> bool:
    """Return whether a runtime may round the result of ``node`` differently in the last place."""
    dtype = node.outputs[0].dtype
    rounded = node.op_type in _ROUNDED or node.op_type in ("ReduceMean", "ReduceProd", "ReduceSum")
    return rounded and (dtype is None or dtype in _FLOATS)
