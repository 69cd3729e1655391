"""Sizes of dimensions: whole numbers and integer expressions over named symbols.

In: integers, symbol names, the text of ONNX ``dim_param``. Out: a canonical form that is equal
exactly when two expressions are the same polynomial, its value under a binding, and an interval
that contains every value within the bounds of the symbols.

A dimension is an ``int`` or an ``Expr``; an ``Expr`` is never constant, so code that only knows
numbers meets only numbers on a static model. An ``Expr`` is a polynomial with integer
coefficients over *atoms*: symbols, and the calls that are no polynomials (``//``, ``%``, ``max``,
``min``).

sympy, which ``onnx_ir.SymbolicDim`` uses, is not used here: it costs about 50 us an operation,
which is seconds on a graph of 20,000 nodes, and it does not give interval bounds of floor
division.
"""

import ast
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple

from graphopt.errors import UnsupportedError


class Bounds(NamedTuple):
    """Smallest and largest value of a symbol, both inclusive; no upper bound is None."""

    lower: int = 0
    upper: int | None = None


class Call(NamedTuple):
    """An atom that is no polynomial: ``//``, ``%``, ``max`` or ``min`` of two dimensions."""

    function: str
    left: "Dim"
    right: "Dim"


Atom = str | Call
Monomial = tuple[Atom, ...]


class Expr:
    """A polynomial that is not constant; hashable, equal when the canonical forms are equal."""

    __slots__ = ("_hash", "terms")

    def __init__(self, terms: tuple[tuple[Monomial, int], ...]) -> None:
        self.terms = terms
        self._hash = hash(terms)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expr) and self.terms == other.terms

    def __repr__(self) -> str:
        return f"Expr({self})"

    def __str__(self) -> str:
        parts: list[str] = []
        for monomial, coefficient in self.terms:
            body = "*".join(_atom_text(atom) for atom in monomial)
            if not monomial:
                text = str(abs(coefficient))
            elif abs(coefficient) == 1:
                text = body
            else:
                text = f"{abs(coefficient)}*{body}"
            sign = "-" if coefficient < 0 else "+"
            parts.append(f" {sign} {text}" if parts else (f"-{text}" if sign == "-" else text))
        return "".join(parts)

    def __add__(self, other: "Dim") -> "Dim":
        return add(self, other)

    __radd__ = __add__

    def __mul__(self, other: "Dim") -> "Dim":
        return mul(self, other)

    __rmul__ = __mul__

    def __sub__(self, other: "Dim") -> "Dim":
        return add(self, mul(other, -1))

    def __rsub__(self, other: "Dim") -> "Dim":
        return add(other, mul(self, -1))

    def __floordiv__(self, other: "Dim") -> "Dim":
        return floordiv(self, other)

    def __rfloordiv__(self, other: "Dim") -> "Dim":
        return floordiv(other, self)

    def __mod__(self, other: "Dim") -> "Dim":
        return mod(self, other)

    def __neg__(self) -> "Dim":
        return mul(self, -1)


Dim = int | Expr


def symbol(name: str) -> Expr:
    """Return the dimension that is the symbol ``name``."""
    return Expr((((name,), 1),))


def _atom_key(atom: Atom) -> tuple[int, str]:
    return (0, atom) if isinstance(atom, str) else (1, _atom_text(atom))


def _atom_text(atom: Atom) -> str:
    if isinstance(atom, str):
        return atom
    if atom.function in ("max", "min"):
        return f"{atom.function}({atom.left}, {atom.right})"
    return f"({_operand(atom.left)} {atom.function} {_operand(atom.right)})"


def _operand(dim: Dim) -> str:
    text = str(dim)
    return text if re.fullmatch(r"\w+", text) else f"({text})"


def _terms(dim: Dim) -> dict[Monomial, int]:
    if isinstance(dim, Expr):
        return dict(dim.terms)
    return {(): dim} if dim else {}


def _build(terms: Mapping[Monomial, int]) -> Dim:
    kept = {m: c for m, c in terms.items() if c}
    if not kept:
        return 0
    if len(kept) == 1 and () in kept:
        return kept[()]
    order = sorted(kept, key=lambda m: (-len(m), [_atom_key(a) for a in m]))
    return Expr(tuple((m, kept[m]) for m in order))


def add(left: Dim, right: Dim) -> Dim:
    """Return ``left + right``."""
    if isinstance(left, int) and isinstance(right, int):
        return left + right
    terms = _terms(left)
    for monomial, coefficient in _terms(right).items():
        terms[monomial] = terms.get(monomial, 0) + coefficient
    return _build(terms)


def mul(left: Dim, right: Dim) -> Dim:
    """Return ``left * right``."""
    if isinstance(left, int) and isinstance(right, int):
        return left * right
    terms: dict[Monomial, int] = {}
    for m1, c1 in _terms(left).items():
        for m2, c2 in _terms(right).items():
            monomial = tuple(sorted((*m1, *m2), key=_atom_key))
            terms[monomial] = terms.get(monomial, 0) + c1 * c2
    return _build(terms)


def _exact_quotient(left: Expr, right: Dim) -> Dim | None:
    """Return ``left / right`` when it is a polynomial and ``right`` is one term, else None."""
    divisor = _terms(right)
    if len(divisor) != 1:
        return None
    ((monomial, coefficient),) = divisor.items()
    quotient: dict[Monomial, int] = {}
    for m, c in left.terms:
        if c % coefficient:
            return None
        rest = list(m)
        for atom in monomial:
            if atom not in rest:
                return None
            rest.remove(atom)
        quotient[tuple(rest)] = c // coefficient
    return _build(quotient)


def floordiv(left: Dim, right: Dim) -> Dim:
    """Return ``left // right`` (rounded down).

    Raises:
        UnsupportedError: ``right`` is the number 0.
    """
    if right == 0:
        raise UnsupportedError("dimension-division-by-zero", f"dimension {left} // 0")
    if isinstance(left, int) and isinstance(right, int):
        return left // right
    if isinstance(right, int) and right < 0:
        return floordiv(mul(left, -1), -right)
    if right == 1:
        return left
    if left == right:
        return 1
    if isinstance(left, Expr):
        exact = _exact_quotient(left, right)
        if exact is not None:
            return exact
        if isinstance(right, int):
            # floor((q*d + r) / d) = q + floor(r / d) for whole q: take out what divides.
            whole = {m: c // right for m, c in left.terms if c % right == 0}
            rest = {m: c for m, c in left.terms if c % right}
            if whole and rest:
                return add(_build(whole), floordiv(_build(rest), right))
            constant = rest.pop((), 0)
            if constant and rest and not 0 <= constant < right:
                shifted = {**rest, (): constant % right}
                return add(constant // right, floordiv(_build(shifted), right))
    return Expr((((Call("//", left, right),), 1),))


def ceildiv(left: Dim, right: Dim) -> Dim:
    """Return ``left / right`` rounded up, for a positive ``right``."""
    return floordiv(add(left, add(right, -1)), right)


def mod(left: Dim, right: Dim) -> Dim:
    """Return ``left % right`` with the sign of ``right``."""
    if isinstance(left, int) and isinstance(right, int) and right:
        return left % right
    return add(left, mul(floordiv(left, right), mul(right, -1)))


def maximum(left: Dim, right: Dim) -> Dim:
    """Return the larger of two dimensions."""
    return _extreme("max", max, left, right)


def minimum(left: Dim, right: Dim) -> Dim:
    """Return the smaller of two dimensions."""
    return _extreme("min", min, left, right)


def _extreme(name: str, pick: Callable[[int, int], int], left: Dim, right: Dim) -> Dim:
    difference = add(left, mul(right, -1))
    if isinstance(difference, int):
        return left if pick(difference, 0) == difference else right
    first, second = sorted((left, right), key=str)
    return Expr((((Call(name, first, second),), 1),))


def product(dims: "tuple[Dim, ...] | list[Dim]") -> Dim:
    """Return the product of all dimensions; 1 for none."""
    result: Dim = 1
    for dim in dims:
        result = mul(result, dim)
    return result


def symbols_of(dim: Dim) -> frozenset[str]:
    """Return the names of the symbols in ``dim``."""
    if isinstance(dim, int):
        return frozenset()
    names: set[str] = set()
    for monomial, _ in dim.terms:
        for atom in monomial:
            if isinstance(atom, str):
                names.add(atom)
            else:
                names |= symbols_of(atom.left) | symbols_of(atom.right)
    return frozenset(names)


def evaluate(dim: Dim, bindings: Mapping[str, int]) -> int:
    """Return the value of ``dim`` with every symbol replaced by its binding.

    Raises:
        KeyError: a symbol has no binding.
        UnsupportedError: the bindings divide by zero.
    """
    result = substitute(dim, bindings)
    if isinstance(result, int):
        return result
    raise KeyError(sorted(symbols_of(result))[0])


def substitute(dim: Dim, replacements: Mapping[str, Dim]) -> Dim:
    """Return ``dim`` with symbols replaced by other dimensions; unnamed symbols stay."""
    if isinstance(dim, int):
        return dim
    total: Dim = 0
    for monomial, coefficient in dim.terms:
        term: Dim = coefficient
        for atom in monomial:
            if isinstance(atom, str):
                factor = replacements.get(atom)
                term = mul(term, symbol(atom) if factor is None else factor)
            else:
                left = substitute(atom.left, replacements)
                right = substitute(atom.right, replacements)
                term = mul(term, _FUNCTIONS[atom.function](left, right))
        total = add(total, term)
    return total


_FUNCTIONS: dict[str, Callable[[Dim, Dim], Dim]] = {
    "//": floordiv,
    "%": mod,
    "max": maximum,
    "min": minimum,
}


def bounds_of(dim: Dim, bounds: Mapping[str, Bounds]) -> Bounds:
    """Return an interval that contains every value of ``dim`` within the bounds of its symbols.

    Interval arithmetic, so the interval may be wider than the true range when a symbol occurs in
    several terms with different signs. A symbol without an entry may be any number from 0 on. The
    lower end is cut at 0, for a dimension is never negative.
    """
    lower, upper = _interval(dim, bounds)
    return Bounds(max(0, lower) if lower is not None else 0, upper)


_Range = tuple[int | None, int | None]


def _interval(dim: Dim, bounds: Mapping[str, Bounds]) -> _Range:
    if isinstance(dim, int):
        return dim, dim
    low: int | None = 0
    high: int | None = 0
    for monomial, coefficient in dim.terms:
        term: _Range = (coefficient, coefficient)
        for atom in monomial:
            term = _times(term, _atom_interval(atom, bounds))
        low = None if low is None or term[0] is None else low + term[0]
        high = None if high is None or term[1] is None else high + term[1]
    return low, high


def _atom_interval(atom: Atom, bounds: Mapping[str, Bounds]) -> _Range:
    if isinstance(atom, str):
        return bounds.get(atom, Bounds())
    (a, b), (c, d) = _interval(atom.left, bounds), _interval(atom.right, bounds)
    if atom.function == "max":
        lows = [x for x in (a, c) if x is not None]
        return (max(lows) if lows else None), (None if b is None or d is None else max(b, d))
    if atom.function == "min":
        highs = [x for x in (b, d) if x is not None]
        return (None if a is None or c is None else min(a, c)), (min(highs) if highs else None)
    if c is None or c <= 0:
        # A divisor that may be zero or negative: nothing is known.
        return None, None
    if atom.function == "//":
        low = None if a is None else (a // (d if a >= 0 and d is not None else c))
        if a is not None and a >= 0 and d is None:
            low = 0
        high = None if b is None else (b // (c if b >= 0 else (d if d is not None else 1)))
        if b is not None and b < 0 and d is None:
            high = -1
        return low, high
    return 0, (None if d is None else d - 1)


def _times(left: _Range, right: _Range) -> _Range:
    """Multiply two intervals; None is minus infinity on the left, plus infinity on the right."""
    if None not in (*left, *right):
        corners = [x * y for x in left for y in right]  # type: ignore[operator]  # None excluded
        return min(corners), max(corners)
    if left == (0, 0) or right == (0, 0):
        return 0, 0
    a, b = left
    c, d = right
    if a is not None and a >= 0 and c is not None and c >= 0:
        return a * c, None
    if b is not None and b <= 0 and c is not None and c >= 0:
        return None, b * c
    if a is not None and a >= 0 and d is not None and d <= 0:
        return None, a * d
    return None, None


@lru_cache(maxsize=65536)
def parse_dim(text: str) -> Dim | None:
    """Return the dimension written in ``text``, None when the text is no expression.

    Reads what this module and the exporter of torch write: names, whole numbers, ``+ - * //
    % **``, ``max``, ``min``, ``FloorDiv``, ``CeilDiv``, ``Mod``, ``floor(a/b)``, ``ceiling(a/b)``.
    """
    if len(text) > 10_000:
        return None
    try:
        tree = ast.parse(text.strip(), mode="eval")
        return _from_ast(tree.body, 0)
    except (SyntaxError, ValueError, _NoDimensionError, UnsupportedError, MemoryError):
        return None
    except RecursionError:
        return None


class _NoDimensionError(Exception):
    """The text is valid Python, but no dimension."""


def _from_ast(node: ast.expr, depth: int) -> Dim:
    if depth > 200:
        raise _NoDimensionError
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return value
        case ast.Name(id=name):
            return symbol(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return mul(_from_ast(operand, depth + 1), -1)
        case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=int(power))):
            if not 0 <= power <= 16:
                raise _NoDimensionError
            return product([_from_ast(left, depth + 1)] * power)
        case ast.BinOp(left=left, op=operator, right=right):
            function = _BINARY.get(type(operator))
            if function is None:
                raise _NoDimensionError
            return function(_from_ast(left, depth + 1), _from_ast(right, depth + 1))
        case ast.Call(func=ast.Name(id="floor"), args=[ast.BinOp(left=a, op=ast.Div(), right=b)]):
            return floordiv(_from_ast(a, depth + 1), _from_ast(b, depth + 1))
        case ast.Call(func=ast.Name(id="ceiling"), args=[ast.BinOp(left=a, op=ast.Div(), right=b)]):
            return ceildiv(_from_ast(a, depth + 1), _from_ast(b, depth + 1))
        case ast.Call(func=ast.Name(id=name), args=[first, *rest]) if name in _CALLS:
            result = _from_ast(first, depth + 1)
            for argument in rest:
                result = _CALLS[name](result, _from_ast(argument, depth + 1))
            return result
    raise _NoDimensionError


_BINARY: dict[type[ast.operator], Callable[[Dim, Dim], Dim]] = {
    ast.Add: add,
    ast.Sub: lambda a, b: add(a, mul(b, -1)),
    ast.Mult: mul,
    ast.FloorDiv: floordiv,
    ast.Mod: mod,
}
_CALLS: dict[str, Callable[[Dim, Dim], Dim]] = {
    "max": maximum,
    "min": minimum,
    "Max": maximum,
    "Min": minimum,
    "FloorDiv": floordiv,
    "CeilDiv": ceildiv,
    "Mod": mod,
    "PythonMod": mod,
}
