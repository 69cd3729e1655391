"""What shape rules compute with dimensions: order, broadcasting, exact quotients.

In: dimensions (``graphopt.ir.dims``) and the bounds of their symbols. Out: dimensions that hold for
every value within the bounds; a simplification is made only where it is exact.
"""

from collections.abc import Mapping, Sequence
from typing import NoReturn

from graphopt.errors import UnsupportedError
from graphopt.ir.dims import (
    Bounds,
    Call,
    Dim,
    Expr,
    Monomial,
    add,
    bounds_of,
    floordiv,
    maximum,
    minimum,
    mul,
)

Table = Mapping[str, Bounds]

MAX_TERMS = 256
MAX_OPERANDS = 16


class UnequalError(Exception):
    """Two dimensions that must agree cannot; the rule adds which node and which axis."""


def sub(left: Dim, right: Dim) -> Dim:
    """Return ``left - right``."""
    if isinstance(left, int) and isinstance(right, int):
        return left - right
    return add(left, mul(right, -1))


def lowest(dim: Dim, bounds: Table) -> int | None:
    """Return a number that ``dim`` never goes below (it may be negative); None for unknown."""
    if isinstance(dim, int):
        return dim
    negated = bounds_of(mul(dim, -1), bounds).upper
    return None if negated is None else -negated


def highest(dim: Dim, bounds: Table) -> int | None:
    """Return a number that ``dim`` never exceeds; None for unknown."""
    return dim if isinstance(dim, int) else bounds_of(dim, bounds).upper


def at_least(left: Dim, right: Dim, bounds: Table) -> bool:
    """Return whether ``left >= right`` holds for every value within the bounds."""
    low = lowest(sub(left, right), bounds)
    return low is not None and low >= 0


def is_one(dim: Dim) -> bool:
    """Return whether ``dim`` is the number 1."""
    return isinstance(dim, int) and dim == 1


def operands(dim: Dim, function: str) -> tuple[Dim, ...]:
    """Return the dimensions that ``dim`` is the ``function`` ("max" or "min") of."""
    found: list[Dim] = []
    pending = [dim]
    while pending:
        current = pending.pop()
        if isinstance(current, Expr) and len(current.terms) == 1:
            (monomial, coefficient) = current.terms[0]
            if coefficient == 1 and len(monomial) == 1:
                atom = monomial[0]
                if isinstance(atom, Call) and atom.function == function:
                    pending += [atom.right, atom.left]
                    continue
        found.append(current)
    return tuple(found)


def larger(left: Dim, right: Dim, bounds: Table) -> Dim:
    """Return ``max(left, right)``, simplified where the bounds decide."""
    if isinstance(left, int) and isinstance(right, int):
        return max(left, right)
    return _extreme("max", left, right, bounds)


def smaller(left: Dim, right: Dim, bounds: Table) -> Dim:
    """Return ``min(left, right)``, simplified where the bounds decide."""
    if isinstance(left, int) and isinstance(right, int):
        return min(left, right)
    return _extreme("min", left, right, bounds)


def _extreme(function: str, left: Dim, right: Dim, bounds: Table) -> Dim:
    """Return the max or min of two dimensions, without operands that never decide it."""
    combine = maximum if function == "max" else minimum
    candidates = (*operands(left, function), *operands(right, function))
    if len(candidates) > MAX_OPERANDS:
        return combine(left, right)
    kept: list[Dim] = []
    for dim in candidates:
        if any(_decides(function, other, dim, bounds) for other in kept):
            continue
        kept = [other for other in kept if not _decides(function, dim, other, bounds)]
        kept.append(dim)
    kept.sort(key=str)
    result = kept[0]
    for dim in kept[1:]:
        result = combine(result, dim)
    return result


def _decides(function: str, winner: Dim, loser: Dim, bounds: Table) -> bool:
    """Return whether ``loser`` never matters in a max or min that has ``winner``."""
    if winner == loser:
        return True
    high, low = (winner, loser) if function == "max" else (loser, winner)
    return (
        at_least(high, low, bounds) or low in operands(high, "max") or high in operands(low, "min")
    )


def unify(left: Dim, right: Dim) -> Dim:
    """Return the more specific of two dimensions that are equal in every valid run.

    Raises:
        UnequalError: they differ in every run.
    """
    if left == right:
        return left
    if isinstance(sub(left, right), int):
        raise UnequalError
    return right if isinstance(right, int) else left


def broadcast_dim(left: Dim, right: Dim, bounds: Table) -> Dim:
    """Return the broadcast of two dimensions.

    Two symbols that cannot be compared give their maximum: in a valid run they are equal or one of
    them is 1. (An axis of size 0 against one of size 1 is 0, where the maximum says 1.)

    Raises:
        UnequalError: the two can never be broadcast.
    """
    if left == right or is_one(right):
        return left
    if is_one(left):
        return right
    if isinstance(left, int):
        left, right = right, left
    if isinstance(right, int):
        if isinstance(left, int) or (lowest(left, bounds) or 0) > max(right, 1):
            raise UnequalError
        return right
    low_left, low_right = lowest(left, bounds), lowest(right, bounds)
    if low_right is not None and low_right >= 2:
        return right
    if low_left is not None and low_left >= 2:
        return left
    difference = sub(left, right)
    if isinstance(difference, int):
        # Unequal by a constant: the smaller one must be the 1.
        return left if difference > 0 else right
    return larger(left, right, bounds)


def broadcast(left: tuple[Dim, ...], right: tuple[Dim, ...], bounds: Table) -> tuple[Dim, ...]:
    """Return the broadcast of two shapes, aligned at their last axes.

    Raises:
        UnequalError: two axes can never be broadcast.
    """
    if left == right or not right:
        return left
    if not left:
        return right
    extra = len(left) - len(right)
    if extra < 0:
        left, right, extra = right, left, -extra
    return left[:extra] + tuple(
        broadcast_dim(a, b, bounds) for a, b in zip(left[extra:], right, strict=True)
    )


def _too_large(what: str) -> NoReturn:
    raise UnsupportedError(
        "shape-too-complex",
        f"a {what} has more than {MAX_TERMS} terms",
        hint="give the symbols of the inputs fixed sizes",
    )


def times(left: Dim, right: Dim) -> Dim:
    """Return ``left * right``.

    Raises:
        UnsupportedError: the product has so many terms that only an attack would need it.
    """
    if (
        isinstance(left, Expr)
        and isinstance(right, Expr)
        and len(left.terms) * len(right.terms) > MAX_TERMS
    ):
        _too_large("product of dimensions")
    return mul(left, right)


def volume(dims: Sequence[Dim]) -> Dim:
    """Return the number of elements of a shape; a 0 anywhere wins.

    Raises:
        UnsupportedError: the product has so many terms that only an attack would need it.
    """
    number = 1
    symbolic: list[Dim] = []
    for dim in dims:
        if isinstance(dim, int):
            number *= dim
        else:
            symbolic.append(dim)
    result: Dim = number
    if number:
        for dim in symbolic:
            result = times(result, dim)
    return result


def quotient(whole: Sequence[Dim], parts: Sequence[Dim]) -> Dim:
    """Return the product of ``whole`` over the product of ``parts``, which is a whole number.

    Equal factors cancel first; what is left is divided as polynomials, and only when that leaves a
    remainder as a floor division.

    Raises:
        UnequalError: both are numbers, and the division has a remainder.
        UnsupportedError: a part is 0, or the product is too large.
    """
    rest = list(whole)
    divisors: list[Dim] = []
    for part in parts:
        if isinstance(part, Expr) and part in rest:
            rest.remove(part)
        else:
            divisors.append(part)
    numerator, divisor = volume(rest), volume(divisors)
    if isinstance(numerator, int) and isinstance(divisor, int):
        if divisor == 0 or numerator % divisor:
            raise UnequalError
        return numerator // divisor
    exact = polynomial_quotient(numerator, divisor)
    return floordiv(numerator, divisor) if exact is None else exact


def polynomial_quotient(left: Dim, right: Dim) -> Dim | None:
    """Return ``left / right`` when the division of the polynomials leaves no remainder.

    Division by the leading term in graded lexicographic order, the order that ``Expr.terms`` is
    sorted in.
    """
    if isinstance(right, int) or not isinstance(left, Expr):
        return 0 if left == 0 and right != 0 else None
    lead, lead_coefficient = right.terms[0]
    result: Dim = 0
    rest: Dim = left
    for _ in range(MAX_TERMS):
        if rest == 0:
            return result
        if not isinstance(rest, Expr):
            return None
        monomial, coefficient = rest.terms[0]
        left_over = _without(monomial, lead)
        if left_over is None or coefficient % lead_coefficient:
            return None
        term: Dim = coefficient // lead_coefficient
        if left_over:
            term = Expr(((left_over, coefficient // lead_coefficient),))
        result = add(result, term)
        rest = sub(rest, times(term, right))
    return None


def _without(monomial: Monomial, factors: Monomial) -> Monomial | None:
    rest = list(monomial)
    for atom in factors:
        if atom not in rest:
            return None
        rest.remove(atom)
    return tuple(rest)


def truncated_quotient(left: Dim, right: Dim, bounds: Table) -> Dim | None:
    """Return ``left / right`` rounded towards zero, as integer ``Div`` does; None when unknown."""
    if isinstance(left, int) and isinstance(right, int):
        if right == 0:
            return None
        magnitude = abs(left) // abs(right)
        return magnitude if (left < 0) == (right < 0) else -magnitude
    low = lowest(right, bounds)
    if low is None or low <= 0:
        if isinstance(right, int) and right < 0:
            negated = truncated_quotient(left, -right, bounds)
            return None if negated is None else mul(negated, -1)
        exact = polynomial_quotient(left, right)
        return exact if exact is not None and low is not None and low >= 0 else None
    if at_least(left, 0, bounds):
        exact = polynomial_quotient(left, right)
        return floordiv(left, right) if exact is None else exact
    up = floordiv(maximum(left, 0), right)
    return sub(up, floordiv(maximum(mul(left, -1), 0), right))
