"""Bytes of a value under the sizes of a plan: exact for bindings, an upper bound for bounds.

In: the symbols of a program with their bounds, the sizes the user binds, and upper bounds of sizes
that depend on data. Out: a whole number of bytes, or the reason why there is none. A size is never
guessed; the one default is said in an assumption (see ``choose_bindings``).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from graphopt.errors import OptionError
from graphopt.ir.dims import Bounds, Dim, bounds_of, symbols_of
from graphopt.ir.program import Program, dims_of, size_bytes


class UnknownSizeError(Exception):
    """A size has no upper bound; the text is the reason, for the list of what is not planned."""


@dataclass
class Sizes:
    """The sizes at which a plan is made.

    Attributes:
        bounds: Interval of every symbol; a bound symbol has equal ends.
        bindings: What the plan states as its bindings: symbol to size.
        assumptions: Sentences to print with the plan.
    """

    bounds: dict[str, Bounds]
    bindings: dict[str, int]
    assumptions: list[str] = field(default_factory=list)

    def dim(self, dim: Dim) -> int:
        """Return the largest value that ``dim`` takes.

        Raises:
            UnknownSizeError: a symbol in it has no upper bound.
        """
        if isinstance(dim, int):
            return dim
        upper = bounds_of(dim, self.bounds).upper
        if upper is None:
            free = sorted(n for n in symbols_of(dim) if self.bounds.get(n, Bounds()).upper is None)
            named = ", ".join(f"'{name}'" for name in free) or f"'{dim}'"
            raise UnknownSizeError(f"size of {named} has no upper bound")
        return max(0, upper)

    def of(self, value: ir.Value) -> tuple[int, tuple[int, ...]]:
        """Return the bytes and the concrete shape of ``value`` at its largest.

        Raises:
            UnknownSizeError: its type, rank or a dimension is unknown.
        """
        if value.type is not None and not isinstance(value.type, ir.TensorType):
            raise UnknownSizeError(f"type is {type(value.type).__name__}, not a dense tensor")
        dims = dims_of(value)
        if dims is None:
            raise UnknownSizeError("shape is unknown")
        if value.dtype is None:
            raise UnknownSizeError("data type is unknown")
        total = size_bytes(value.dtype, dims)
        if total is None:
            raise UnknownSizeError(f"elements of type {value.dtype.name} have no fixed size")
        return self.dim(total), tuple(self.dim(d) for d in dims)

    def exact(self, dim: Dim) -> int | None:
        """Return the value of ``dim`` when it is the same at all planned sizes, else None."""
        if isinstance(dim, int):
            return dim
        lower, upper = bounds_of(dim, self.bounds)
        return lower if lower == upper else None

    def part_offset(self, whole: ir.Value, axis: int, before: Dim) -> int | None:
        """Return the byte in ``whole`` at which a piece starts; None when it is not contiguous.

        Args:
            whole: The value that holds the piece.
            axis: Axis along which the pieces lie.
            before: Elements along the axis before the piece.
        """
        dims = dims_of(whole)
        if dims is None or whole.dtype is None or any(self.exact(d) != 1 for d in dims[:axis]):
            return None
        start = self.exact(before)
        inner = [self.exact(d) for d in dims[axis + 1 :]]
        if start is None or start < 0 or (start and None in inner):
            return None
        bits = whole.dtype.bitwidth * start * math.prod(n for n in inner if n is not None)
        return bits // 8 if bits % 8 == 0 else None


def choose_bindings(
    program: Program, requested: Mapping[str, int] | None, upper_bounds: Mapping[str, Dim]
) -> Sizes:
    """Return the sizes to plan at.

    A symbol that the user binds has that size; any other ranges over its bounds, and the plan holds
    for every size in them. The first dimension of a graph input, when it has no upper bound, is
    planned at 1 and an assumption says so; every other symbol without an upper bound stays unknown.

    Args:
        program: The model with the bounds of its symbols.
        requested: Sizes by symbol name.
        upper_bounds: Expressions that data-dependent symbols never exceed.

    Raises:
        OptionError: a name is no symbol of the model, or a size is outside its bounds.
    """
    requested = dict(requested or {})
    sizes = Sizes(dict(program.bounds), {})
    for name, size in sorted(requested.items()):
        _check_binding(name, size, program.bounds, input_symbols(program.graph.inputs))
        sizes.bounds[name] = Bounds(size, size)
        sizes.bindings[name] = size
    leading = {
        name: value.name or ""
        for value in reversed(list(program.graph.inputs))
        for name in _leading_symbol(value)
    }
    for name in sorted(sizes.bounds):
        if name in sizes.bindings or name in upper_bounds:
            continue
        lower, upper = sizes.bounds[name]
        if upper is not None:
            sizes.bindings[name] = upper
        elif name in leading:
            size = max(1, lower)
            sizes.bounds[name] = Bounds(size, size)
            sizes.bindings[name] = size
            sizes.assumptions.append(
                f"'{name}', the first dimension of input '{leading[name]}', has no upper bound: "
                f"planned at {size}; bind it with --dim {name}=N"
            )
    # An upper bound may name another data-dependent symbol: n passes settle a chain of n.
    for _ in range(len(upper_bounds)):
        changed = False
        for name, limit in upper_bounds.items():
            upper = bounds_of(limit, sizes.bounds).upper
            if name not in sizes.bindings and sizes.bounds.get(name) != Bounds(0, upper):
                sizes.bounds[name] = Bounds(0, upper)
                changed = True
        if not changed:
            break
    return sizes


def input_symbols(inputs: Iterable[ir.Value]) -> tuple[str, ...]:
    """Return the names of the symbols in the shapes of ``inputs``, sorted."""
    names: set[str] = set()
    for value in inputs:
        for dim in dims_of(value) or ():
            names |= symbols_of(dim)
    return tuple(sorted(names))


def _leading_symbol(value: ir.Value) -> tuple[str, ...]:
    dims = dims_of(value)
    return tuple(symbols_of(dims[0])) if dims else ()


def _check_binding(
    name: str, size: int, bounds: Mapping[str, Bounds], choices: tuple[str, ...]
) -> None:
    if name not in bounds:
        listed = ", ".join(choices) or "none, the model is static"
        raise OptionError(
            "dimension-unknown",
            f"no dimension is called '{name}'",
            hint=f"named dimensions of the inputs: {listed}",
        )
    lower, upper = bounds[name]
    if size < max(0, lower) or (upper is not None and size > upper):
        raise OptionError(
            "dimension-out-of-bounds",
            f"dimension '{name}' = {size} is outside its bounds "
            f"{lower}..{'' if upper is None else upper}",
        )
