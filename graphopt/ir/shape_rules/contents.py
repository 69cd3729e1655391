"""Contents of small tensors, as far as they are known: what shape arithmetic computes with.

In: entries that are numbers, dimensions, or dimensions over a number (``h / 2`` before it is
rounded). Out: the entries of the result, None where nothing exact can be said.

Numbers in floating-point tensors are computed in the type of the tensor, so that the rounding is
that of the run. A symbolic entry of a floating-point tensor stands for its exact value; an
operation keeps it only where a run computes that value exactly (`exact`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd, prod
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.ir.dims import (
    Dim,
    Expr,
    add,
    ceildiv,
    floordiv,
    mod,
    mul,
)
from graphopt.ir.shape_rules.algebra import (
    Table,
    at_least,
    highest,
    larger,
    lowest,
    polynomial_quotient,
    smaller,
    sub,
    times,
    truncated_quotient,
)

MAX_ENTRIES = 1024
MAX_RANK = 16
MAX_FLOAT_ENTRIES = 64


@dataclass(frozen=True)
class KnownTensor:
    """Contents of a small integer or bool tensor.

    Attributes:
        dims: Its shape.
        entries: Its entries in row-major order, at most 1,024; a bool is 0 or 1.
    """

    dims: tuple[int, ...]
    entries: tuple[Dim, ...]


class Ratio(NamedTuple):
    """A symbolic dimension over a number above 1 that does not divide it."""

    numerator: Expr
    divisor: int


Entry = int | float | Expr | Ratio | None


class Contents(NamedTuple):
    """Contents of a small tensor; None stands for an entry that is not known."""

    dims: tuple[int, ...]
    entries: tuple[Entry, ...]


def is_integer(dtype: ir.DataType) -> bool:
    """Return whether entries of ``dtype`` are kept as whole numbers (bool included)."""
    return dtype in _LIMITS


_LIMITS: Mapping[ir.DataType, tuple[int, int]] = {
    ir.DataType.BOOL: (0, 1),
    ir.DataType.INT8: (-(2**7), 2**7 - 1),
    ir.DataType.INT16: (-(2**15), 2**15 - 1),
    ir.DataType.INT32: (-(2**31), 2**31 - 1),
    ir.DataType.INT64: (-(2**63), 2**63 - 1),
    ir.DataType.UINT8: (0, 2**8 - 1),
    ir.DataType.UINT16: (0, 2**16 - 1),
    ir.DataType.UINT32: (0, 2**32 - 1),
    ir.DataType.UINT64: (0, 2**64 - 1),
}
_MANTISSA: Mapping[ir.DataType, int] = {
    ir.DataType.FLOAT16: 11,
    ir.DataType.BFLOAT16: 8,
    ir.DataType.FLOAT: 24,
    ir.DataType.DOUBLE: 53,
}


def capacity(dtype: ir.DataType) -> int:
    """Return how many entries a tensor of ``dtype`` may have to be followed; 0 for never."""
    if dtype in _LIMITS:
        return MAX_ENTRIES
    return MAX_FLOAT_ENTRIES if dtype in _MANTISSA else 0


def small(dims: Sequence[Dim], limit: int) -> bool:
    """Return whether a shape is static, of few axes, and has at most ``limit`` elements."""
    count = 1
    for dim in dims:
        if not isinstance(dim, int) or dim > limit:
            return False
        count *= dim
    return count <= limit and len(dims) <= MAX_RANK


def read_tensor(tensor: ir.TensorProtocol) -> Contents | None:
    """Return the contents of ``tensor`` when it is small and numeric; reads its data."""
    dims = tuple(tensor.shape.numpy())
    if not small(dims, capacity(tensor.dtype)):
        return None
    array = tensor.numpy()
    if array.dtype.kind in "biu":
        return Contents(dims, tuple(int(x) for x in array.reshape(-1).tolist()))
    return Contents(dims, tuple(float(x) for x in array.reshape(-1).tolist()))


def exact(entry: Entry, dtype: ir.DataType, bounds: Table) -> Entry:
    """Return ``entry`` when a tensor of ``dtype`` holds it exactly, else None.

    A symbolic entry without an upper bound passes when it is linear and ``dtype`` has at least the
    24 bits of a float32: an axis of 2**24 elements is not expected.
    """
    if entry is None or isinstance(entry, float):
        return entry
    if dtype in _LIMITS:
        low, high = _LIMITS[dtype]
        if isinstance(entry, int):
            return entry if low <= entry <= high else None
        if isinstance(entry, Ratio):
            return None
        return entry if high >= 2**31 - 1 or (highest(entry, bounds) or high + 1) <= high else None
    bits = _MANTISSA.get(dtype)
    if bits is None:
        return None
    size = entry.numerator if isinstance(entry, Ratio) else entry
    limit = highest(size, bounds)
    if limit is not None:
        return entry if limit < 2**bits else None
    linear = isinstance(size, Expr) and all(len(m) <= 1 for m, _ in size.terms)
    return entry if bits >= 53 or (bits >= 24 and linear) else None


def as_ratio(entry: Entry) -> tuple[Dim, int] | None:
    """Return ``entry`` as numerator and a divisor that is a power of two, None when it is not."""
    if entry is None:
        return None
    if isinstance(entry, float):
        if not np.isfinite(entry):
            return None
        top, bottom = entry.as_integer_ratio()
        return (top, bottom) if bottom <= 1024 and abs(top) < 2**24 else None
    if isinstance(entry, Ratio):
        power_of_two = entry.divisor & (entry.divisor - 1) == 0
        return (entry.numerator, entry.divisor) if power_of_two else None
    return entry, 1


def ratio(numerator: Dim, divisor: int) -> Entry:
    """Return ``numerator / divisor`` in lowest terms; a number becomes a float."""
    if divisor < 0:
        numerator, divisor = mul(numerator, -1), -divisor
    if isinstance(numerator, int):
        return numerator / divisor
    common = gcd(divisor, *(coefficient for _, coefficient in numerator.terms))
    reduced = floordiv(numerator, common)
    if not isinstance(reduced, Expr):
        return float(reduced)
    return reduced if divisor == common else Ratio(reduced, divisor // common)


def binary(op: str, left: Entry, right: Entry, dtype: ir.DataType, bounds: Table) -> Entry:
    """Return ``op`` of two entries of tensors of ``dtype``; None when it is not known exactly."""
    if left is None or right is None:
        return _absorbing(op, left, right)
    if is_integer(dtype):
        if isinstance(left, int | Expr) and isinstance(right, int | Expr):
            function = _INTEGER.get(op)
            return None if function is None else function(left, right, bounds)
        return None
    if isinstance(left, float) and isinstance(right, float):
        return _float_numbers(op, left, right, dtype)
    first, second = as_ratio(left), as_ratio(right)
    if first is None or second is None:
        return None
    return _ratios(op, first, second, bounds)


def _absorbing(op: str, left: Entry, right: Entry) -> Entry:
    known = right if left is None else left
    if op == "And" and known == 0:
        return 0
    return 1 if op == "Or" and known == 1 else None


def _float_numbers(op: str, left: float, right: float, dtype: ir.DataType) -> Entry:
    compare = _COMPARE.get(op)
    if compare is not None:
        return int(compare(left, right))
    function = _FLOAT.get(op)
    if function is None:
        return None
    kind = dtype.numpy()
    with np.errstate(all="ignore"):
        return float(function(kind.type(left), kind.type(right)))


def _ratios(op: str, left: tuple[Dim, int], right: tuple[Dim, int], bounds: Table) -> Entry:
    (a, b), (c, d) = left, right
    if op in ("Add", "Sub"):
        second = times(c, b)
        return ratio(add(times(a, d), second if op == "Add" else mul(second, -1)), b * d)
    if op == "Mul":
        return ratio(times(a, c), b * d)
    if op == "Div":
        if isinstance(c, int):
            return ratio(times(a, d), b * c) if c else None
        whole = polynomial_quotient(a, c) if b == d == 1 else None
        return float(whole) if isinstance(whole, int) else whole
    if op in ("Min", "Max") and b == d == 1:
        chosen = (smaller if op == "Min" else larger)(a, c, bounds)
        return float(chosen) if isinstance(chosen, int) else chosen
    if op in _COMPARE:
        return _decide(op, times(a, d), times(c, b), bounds)
    return None


def _decide(op: str, left: Dim, right: Dim, bounds: Table) -> int | None:
    """Return whether the comparison holds, None when some bindings say yes and others no."""
    difference = sub(left, right)
    low, high = lowest(difference, bounds), highest(difference, bounds)
    above = low is not None and low > 0
    below = high is not None and high < 0
    not_below = low is not None and low >= 0
    not_above = high is not None and high <= 0
    holds, fails = {
        "Equal": (not_below and not_above, above or below),
        "Less": (below, not_below),
        "LessOrEqual": (not_above, above),
        "Greater": (above, not_above),
        "GreaterOrEqual": (not_below, below),
    }[op]
    return 1 if holds else (0 if fails else None)


def _comparison(op: str) -> Callable[[Dim, Dim, Table], Entry]:
    return lambda left, right, bounds: _decide(op, left, right, bounds)


def _numbers(function: Callable[[int, int], int]) -> Callable[[Dim, Dim, Table], Entry]:
    def apply(left: Dim, right: Dim, bounds: Table) -> Entry:
        if isinstance(left, int) and isinstance(right, int):
            return function(left, right)
        return None

    return apply


def _power(left: Dim, right: Dim, bounds: Table) -> Entry:
    if not isinstance(right, int) or not 0 <= right <= 64:
        return None
    if isinstance(left, int):
        return left**right if abs(left) <= 2**32 else None
    result: Dim = 1
    for _ in range(right if right <= 8 else 0):
        result = times(result, left)
    return result if right <= 8 else None


def _modulo(left: Dim, right: Dim, bounds: Table) -> Entry:
    if right == 0 or (not isinstance(right, int) and not at_least(right, 1, bounds)):
        return None
    return mod(left, right)


def _remainder(left: Dim, right: Dim, bounds: Table) -> Entry:
    whole = truncated_quotient(left, right, bounds)
    return None if whole is None else sub(left, times(whole, right))


_INTEGER: Mapping[str, Callable[[Dim, Dim, Table], Entry]] = {
    "Add": lambda a, b, _: add(a, b),
    "Sub": lambda a, b, _: sub(a, b),
    "Mul": lambda a, b, _: times(a, b),
    "Div": truncated_quotient,
    "Mod": _modulo,
    "Remainder": _remainder,
    "Pow": _power,
    "Min": smaller,
    "Max": larger,
    "And": _numbers(lambda a, b: int(bool(a) and bool(b))),
    "Or": _numbers(lambda a, b: int(bool(a) or bool(b))),
    "Xor": _numbers(lambda a, b: int(bool(a) != bool(b))),
    "BitwiseAnd": _numbers(lambda a, b: a & b),
    "BitwiseOr": _numbers(lambda a, b: a | b),
    "BitwiseXor": _numbers(lambda a, b: a ^ b),
    "Equal": _comparison("Equal"),
    "Less": _comparison("Less"),
    "LessOrEqual": _comparison("LessOrEqual"),
    "Greater": _comparison("Greater"),
    "GreaterOrEqual": _comparison("GreaterOrEqual"),
}
_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "Equal": lambda a, b: a == b,
    "Less": lambda a, b: a < b,
    "LessOrEqual": lambda a, b: a <= b,
    "Greater": lambda a, b: a > b,
    "GreaterOrEqual": lambda a, b: a >= b,
}
_FLOAT: Mapping[str, Callable[[Any, Any], Any]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": lambda a, b: a / b,
    "Min": np.minimum,
    "Max": np.maximum,
}


def unary(op: str, entry: Entry, dtype: ir.DataType, bounds: Table) -> Entry:
    """Return ``op`` of an entry of a tensor of ``dtype``; None when it is not known exactly."""
    if entry is None:
        return None
    if op == "Not":
        return 1 - entry if isinstance(entry, int) else None
    if op == "Neg":
        return _negative(entry)
    if op == "Abs":
        return _absolute(entry, bounds)
    if op in ("Floor", "Ceil", "Round"):
        return _rounded(op, entry)
    if op == "Sign" and isinstance(entry, int):
        return (entry > 0) - (entry < 0)
    if op in ("Sqrt", "Reciprocal") and isinstance(entry, float):
        kind = dtype.numpy().type
        with np.errstate(all="ignore"):
            value = np.sqrt(kind(entry)) if op == "Sqrt" else kind(1) / kind(entry)
            return float(value)
    return None


def _negative(entry: int | float | Expr | Ratio) -> Entry:
    if isinstance(entry, float):
        return -entry
    if isinstance(entry, Ratio):
        return ratio(mul(entry.numerator, -1), entry.divisor)
    return mul(entry, -1)


def _absolute(entry: int | float | Expr | Ratio, bounds: Table) -> Entry:
    if isinstance(entry, int | float):
        return abs(entry)
    if isinstance(entry, Ratio):
        return entry if at_least(entry.numerator, 0, bounds) else None
    return larger(entry, mul(entry, -1), bounds)


def _rounded(op: str, entry: int | float | Expr | Ratio) -> Entry:
    if isinstance(entry, float):
        function = {"Floor": np.floor, "Ceil": np.ceil, "Round": np.rint}[op]
        return float(function(entry))
    if isinstance(entry, int | Expr):
        return entry
    if op == "Round":
        return None
    whole = (floordiv if op == "Floor" else ceildiv)(entry.numerator, entry.divisor)
    return float(whole) if isinstance(whole, int) else whole


def cast(entry: Entry, source: ir.DataType, target: ir.DataType, bounds: Table) -> Entry:
    """Return ``entry`` of a tensor of ``source`` converted to ``target``."""
    if entry is None:
        return None
    if target is ir.DataType.BOOL:
        return _truth(entry, bounds)
    if is_integer(target):
        if isinstance(entry, float):
            return exact(int(entry), target, bounds) if np.isfinite(entry) else None
        if isinstance(entry, Ratio):
            return truncated_quotient(entry.numerator, entry.divisor, bounds)
        return exact(entry, target, bounds)
    if target not in _MANTISSA:
        return None
    if isinstance(entry, int | float):
        with np.errstate(all="ignore"):
            return float(target.numpy().type(entry))
    return exact(entry, target, bounds)


def _truth(entry: int | float | Expr | Ratio, bounds: Table) -> Entry:
    if isinstance(entry, int | float):
        return int(entry != 0)
    size = entry.numerator if isinstance(entry, Ratio) else entry
    same = _decide("Equal", size, 0, bounds)
    return None if same is None else 1 - same


def positions(contents: Contents) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Return the row-major numbers of the entries in the shape of the tensor.

    Rules move these numbers with numpy the way the operator moves data, then `pick` the entries.
    """
    return np.arange(len(contents.entries)).reshape(contents.dims)


def pick(contents: Contents, where: "np.ndarray[Any, Any]") -> tuple[Entry, ...]:
    """Return the entries at the row-major numbers ``where``, in its row-major order."""
    entries = contents.entries
    return tuple(entries[i] for i in where.reshape(-1).tolist())


def spread(contents: Contents, dims: tuple[int, ...]) -> tuple[Entry, ...]:
    """Return the entries of ``contents`` broadcast to ``dims``."""
    if contents.dims == dims:
        return contents.entries
    if len(contents.entries) == 1:
        return contents.entries * prod(dims)
    return pick(contents, np.broadcast_to(positions(contents), dims))


def add_up(left: Entry, right: Entry) -> Entry:
    """Return the sum of two whole entries, None when one is not whole or not known."""
    if isinstance(left, int | Expr) and isinstance(right, int | Expr):
        return add(left, right)
    return None
