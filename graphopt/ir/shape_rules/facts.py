"""What is known about the values of a program while shapes are inferred.

In: what rules find out. Out: dims, dtypes, contents and the data-dependent symbols. Shapes that
the file declares are read here as hints; the values themselves are only written when the
inference is over, so a hint stays what the file said.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import onnx_ir as ir

from graphopt.ir.dims import Bounds, Dim, Expr, parse_dim, symbol, symbols_of
from graphopt.ir.program import fresh_symbol
from graphopt.ir.shape_rules.algebra import highest
from graphopt.ir.shape_rules.contents import Contents, capacity, read_tensor, small

MAX_TEXT = 1000
MAX_SIZE = 2**63 - 1


class UnresolvedError(Exception):
    """A rule cannot say what an output looks like; the text is the reason."""


class ImpossibleSizeError(Exception):
    """A size is negative or too large for the format; the view adds which node."""


@dataclass(frozen=True)
class Element:
    """What a sequence or an optional holds.

    Attributes:
        kind: "sequence" or "optional".
        dtype: Of the tensors inside.
        dims: Of the tensors inside, None when they differ or are not known.
        inner: What is inside when that is no tensor.
        parts: The dims of each tensor of a sequence, None when their number is not known.
    """

    kind: str
    dtype: ir.DataType | None = None
    dims: tuple[Dim, ...] | None = None
    inner: "Element | None" = None
    parts: tuple[tuple[Dim, ...], ...] | None = None


class Snapshot(NamedTuple):
    """All facts about one value."""

    dtype: ir.DataType | None
    dims: tuple[Dim, ...] | None
    contents: Contents | None
    element: Element | None


class Facts:
    """Facts by value; a value that was not met yet is read from the model on first use.

    Args:
        bounds: The symbol table, extended by data-dependent symbols.
        earlier: Data-dependent symbols of an earlier inference, which keep their names.
        standalone: Trust the shapes on values that a node computes (inference of one node).
        constant_inputs: Whether an initializer that is also a graph input is constant.
    """

    def __init__(
        self,
        bounds: dict[str, Bounds],
        *,
        earlier: Mapping[str, object] | None = None,
        standalone: bool = False,
        constant_inputs: bool = False,
    ) -> None:
        self.bounds = bounds
        self.dims: dict[ir.Value, tuple[Dim, ...]] = {}
        self.dtypes: dict[ir.Value, ir.DataType] = {}
        self.contents: dict[ir.Value, Contents | None] = {}
        self.elements: dict[ir.Value, Element] = {}
        self.reasons: dict[ir.Value, str] = {}
        self.contradictions: dict[str, None] = {}
        self.data_dependent: dict[str, str] = {}
        self.upper_bounds: dict[str, Dim] = {}
        self.impossible: dict[ir.Graph, str] = {}
        self.widened: dict[ir.Node, set[tuple[int, int]]] = {}
        self._earlier = dict(earlier or {})
        # Bounds that an earlier inference or its user gave to the symbols that keep their names.
        self._given = {name: bounds[name] for name in self._earlier if name in bounds}
        self._adopted: set[str] = set()
        self._fresh: dict[tuple[object, str], Dim] = {}
        self._stems: dict[str, int] = {}
        self._short: set[Expr] = set()
        self._standalone = standalone
        self._constant_inputs = constant_inputs

    def stale(self, used: set[str]) -> list[str]:
        """Return data-dependent symbols of an earlier inference that do not occur any more."""
        return [name for name in self._earlier if name not in used]

    def dims_of(self, value: ir.Value) -> tuple[Dim, ...] | None:
        """Return the dims of ``value``, None when they are not known."""
        dims = self.dims.get(value)
        if dims is None and value not in self.reasons:
            self._load(value)
            dims = self.dims.get(value)
        return dims

    def dtype_of(self, value: ir.Value) -> ir.DataType | None:
        """Return the element type of ``value``, None when it is not known."""
        dtype = self.dtypes.get(value)
        if dtype is None and value not in self.reasons:
            self._load(value)
            dtype = self.dtypes.get(value)
        return dtype

    def contents_of(self, value: ir.Value) -> Contents | None:
        """Return what is known about the contents of ``value``; reads small initializers."""
        if value in self.contents:
            return self.contents[value]
        tensor = value.const_value
        found = None
        if tensor is not None and (self._constant_inputs or not value.is_graph_input()):
            found = read_tensor(tensor)
        if tensor is not None:
            self.contents[value] = found
        return found

    def may_have_contents(self, value: ir.Value) -> bool:
        """Return whether ``value`` is small enough for its contents to be followed."""
        dims, dtype = self.dims.get(value), self.dtypes.get(value)
        if dims is None or dtype is None:
            return False
        return small(dims, capacity(dtype))

    def declare(self, value: ir.Value) -> None:
        """Take the type and shape of an input as declared; anonymous dims become symbols."""
        dtype, declared = hint_of(value)
        if dtype is not None:
            self.dtypes[value] = dtype
        element = element_of(value.type, _complete(declared))
        if element is not None:
            self.elements[value] = element
            self.reasons[value] = f"an input of type {element.kind} has no single shape"
        elif declared is None:
            self.reasons[value] = "the input declares no rank"
        else:
            dims: list[Dim] = []
            for axis, dim in enumerate(declared):
                if dim is None:
                    dim = fresh_symbol(self.bounds, f"{value.name}_dim{axis}", Bounds())
                dims.append(dim)
                for name in sorted(symbols_of(dim)):
                    self.bounds.setdefault(name, Bounds())
            self.dims[value] = tuple(dims)

    def _load(self, value: ir.Value) -> None:
        tensor = value.const_value
        if tensor is not None:
            self.dtypes[value] = tensor.dtype
            self.dims[value] = tuple(tensor.shape.numpy())
            return
        if not self._standalone and value.producer() is not None:
            self.reasons[value] = "it is read before it is computed"
            return
        dtype, declared = hint_of(value)
        if dtype is not None:
            self.dtypes[value] = dtype
        dims = _complete(declared)
        element = element_of(value.type, dims)
        if element is not None:
            self.elements[value] = element
        if dims is not None and element is None:
            self.dims[value] = dims
        else:
            self.reasons[value] = "its shape is not declared"

    def fall_back(self, value: ir.Value, reason: str) -> None:
        """Believe what the file declares about a value that no rule decides.

        Args:
            value: The value.
            reason: Why no rule decides it, recorded when the declaration is not complete.
        """
        if value in self.elements:
            return
        if value.const_value is not None:
            self._load(value)
        dtype, declared = hint_of(value)
        if value not in self.dtypes and dtype is not None:
            self.dtypes[value] = dtype
        dims = _complete(declared)
        if value not in self.dims and dims is not None and is_tensor(value):
            for dim in dims:
                self.adopt(dim)
            self.dims[value] = dims
        if value not in self.dims or value not in self.dtypes:
            self.reasons.setdefault(value, reason)

    def forget(self, value: ir.Value) -> None:
        """Drop what an earlier run of the same body found out about ``value``."""
        self.dims.pop(value, None)
        self.dtypes.pop(value, None)
        self.contents.pop(value, None)
        self.elements.pop(value, None)
        self.reasons.pop(value, None)

    def snapshot(self, value: ir.Value) -> Snapshot:
        """Return all facts about ``value``."""
        dims, dtype = self.dims_of(value), self.dtype_of(value)
        contents = self.contents_of(value) if self.may_have_contents(value) else None
        return Snapshot(dtype, dims, contents, self.elements.get(value))

    def assign(
        self, value: ir.Value, facts: Snapshot, reason: str, *, believe: bool = True
    ) -> None:
        """Give the input of a body the facts of what is passed to it.

        Args:
            value: The input.
            facts: What is passed.
            reason: Why the dims are not known, if they stay so.
            believe: Believe a complete declaration where nothing is known about what is passed.
        """
        self.forget(value)
        declared_dtype, declared = hint_of(value)
        dtype = facts.dtype or declared_dtype
        if dtype is not None:
            self.dtypes[value] = dtype
        if facts.element is not None:
            self.elements[value] = facts.element
            self.reasons[value] = f"a value of type {facts.element.kind} has no single shape"
            return
        dims = facts.dims
        if dims is None and believe:
            dims = _complete(declared)
            for dim in dims or ():
                self.adopt(dim)
        if dims is None:
            self.reasons[value] = reason
        else:
            self.dims[value] = dims
        if facts.contents is not None:
            self.contents[value] = facts.contents

    def set_dtype(self, value: ir.Value, dtype: ir.DataType) -> None:
        """Record the inferred element type of ``value``."""
        declared = value.dtype
        if declared is not None and declared is not dtype and declared != ir.DataType.UNDEFINED:
            self.contradictions[
                f"'{value.name}': declared {declared.name}, inferred {dtype.name}"
            ] = None
        self.dtypes[value] = dtype

    def set_dims(self, value: ir.Value, dims: tuple[Dim, ...]) -> None:
        """Record the inferred dims of ``value`` and compare them with what the file declares.

        Raises:
            ImpossibleSizeError: a size is negative or above 2**63 - 1.
        """
        static = True
        for dim in dims:
            if not isinstance(dim, int):
                static = False
            elif not 0 <= dim <= MAX_SIZE:
                raise ImpossibleSizeError
        if not static:
            dims = self._shortened(value, dims)
        if value.shape is not None:
            self._compare(value, dims)
        self.dims[value] = dims

    def _shortened(self, value: ir.Value, dims: tuple[Dim, ...]) -> tuple[Dim, ...]:
        """Return ``dims`` with expressions of unreasonable length replaced by symbols."""
        result = list(dims)
        for axis, dim in enumerate(dims):
            if isinstance(dim, int) or dim in self._short:
                continue
            if len(str(dim)) <= MAX_TEXT:
                self._short.add(dim)
                continue
            reason = f"the expression of '{value.name}' is longer than {MAX_TEXT} characters"
            result[axis] = self.fresh(
                value, f"{value.name}_dim{axis}", reason, highest(dim, self.bounds), None, False
            )
        return tuple(result)

    def is_short(self, dim: Expr) -> bool:
        """Return whether the text of ``dim`` has a reasonable length."""
        if dim not in self._short:
            if len(str(dim)) > MAX_TEXT:
                return False
            self._short.add(dim)
        return True

    def _compare(self, value: ir.Value, dims: tuple[Dim, ...]) -> None:
        _, declared = hint_of(value)
        if declared is None:
            return
        differs = len(declared) != len(dims)
        for old, new in zip(declared, dims, strict=False):
            if isinstance(old, int) and old != new:
                differs |= isinstance(new, int) or (
                    value.is_graph_output() and not self._depends_on_data(new)
                )
        if differs:
            self.contradictions[
                f"'{value.name}': declared {text_of(declared)}, inferred {text_of(dims)}"
            ] = None

    def _depends_on_data(self, dim: Dim) -> bool:
        return any(name in self.data_dependent for name in symbols_of(dim))

    def fresh(
        self, key: object, stem: str, reason: str, upper: Dim | None, hint: Dim | None, weak: bool
    ) -> Dim:
        """Return the data-dependent dimension of ``key``, the same at every call.

        Args:
            key: Identifies the dimension.
            stem: How the name of a new symbol starts.
            reason: Why it depends on data.
            upper: A dimension that it never exceeds.
            hint: What the file declares there.
            weak: The operator itself would allow a fixed size, so a declared size is believed.
        """
        dim = self._fresh.get((key, stem))
        if dim is None:
            dim = self._from_hint(hint, weak, reason, upper)
            if dim is None:
                dim = self._new_symbol(stem, reason, upper)
            self._fresh[key, stem] = dim
        elif isinstance(dim, Expr) and dim == _lone(dim):
            # A body runs again with wider states, which may raise the upper bound.
            (name,) = symbols_of(dim)
            if self.data_dependent.get(name) == reason:
                self.limit(name, upper)
        return dim

    def limit(self, name: str, upper: Dim | None) -> None:
        """Record what a data-dependent symbol never exceeds, None for nothing known."""
        if upper is None:
            self.upper_bounds.pop(name, None)
        else:
            self.upper_bounds[name] = upper
        limits = Bounds(0, None if upper is None else highest(upper, self.bounds))
        given = self._given.get(name)
        if given is not None:
            uppers = [u for u in (given.upper, limits.upper) if u is not None]
            limits = Bounds(given.lower, min(uppers) if uppers else None)
        self.bounds[name] = limits

    def _from_hint(
        self, hint: Dim | None, weak: bool, reason: str, upper: Dim | None
    ) -> Dim | None:
        if hint is None:
            return None
        if isinstance(hint, Expr) and len(hint.terms) == 1 and hint == _lone(hint):
            (name,) = symbols_of(hint)
            ours = name in self._earlier or name not in self.bounds
            if ours and name not in self._adopted:
                self._adopted.add(name)
                self.data_dependent[name] = reason
                self.limit(name, upper)
                return hint
        if not weak:
            return None
        limit = None if upper is None else highest(upper, self.bounds)
        if isinstance(hint, int) and limit is not None and hint > limit:
            return None
        self.adopt(hint)
        return hint

    def adopt(self, declared: Dim) -> None:
        """Make the symbols of a declared dimension, which nothing infers, known."""
        for name in sorted(symbols_of(declared)):
            if name not in self.bounds or name in self._earlier:
                self.bounds.setdefault(name, Bounds())
                self.data_dependent.setdefault(name, "the file declares it and nothing infers it")

    def _new_symbol(self, stem: str, reason: str, upper: Dim | None) -> Dim:
        count = self._stems.get(stem, 0) + 1
        self._stems[stem] = count
        wanted = stem if count == 1 else f"{stem}_{count}"
        result = fresh_symbol(self.bounds, wanted, Bounds())
        (name,) = symbols_of(result)
        self.data_dependent[name] = reason
        self.limit(name, upper)
        return result


def _complete(declared: list[Dim | None] | None) -> tuple[Dim, ...] | None:
    if declared is None or None in declared:
        return None
    return tuple(d for d in declared if d is not None)


def _lone(dim: Expr) -> Dim | None:
    names = symbols_of(dim)
    return symbol(next(iter(names))) if len(names) == 1 else None


def is_tensor(value: ir.Value) -> bool:
    """Return whether ``value`` is declared as a tensor, or not declared at all."""
    return value.type is None or isinstance(value.type, ir.TensorType)


def hint_of(value: ir.Value) -> tuple[ir.DataType | None, list[Dim | None] | None]:
    """Return the dtype and the dims that ``value`` declares; None for what it leaves open."""
    dtype = value.dtype
    if dtype == ir.DataType.UNDEFINED:
        dtype = None
    shape = value.shape
    if shape is None:
        return dtype, None
    dims: list[Dim | None] = []
    for dim in shape.dims:
        parsed: Dim | None = None
        if isinstance(dim, int):
            parsed = dim
        elif dim.value is not None:
            parsed = parse_dim(dim.value)
        dims.append(None if isinstance(parsed, int) and parsed < 0 else parsed)
    return dtype, dims


def element_of(kind: ir.TypeProtocol | None, dims: tuple[Dim, ...] | None = None) -> Element | None:
    """Return what a declared sequence or optional type holds; None for a tensor type.

    Args:
        kind: The type.
        dims: The shape declared for the tensors inside.
    """
    if isinstance(kind, ir.SequenceType | ir.OptionalType):
        name = "sequence" if isinstance(kind, ir.SequenceType) else "optional"
        inner = kind.elem_type
        held = None if isinstance(inner, ir.DataType) else element_of(inner, dims)
        return Element(name, kind.dtype, None if held is not None else dims, held)
    return None


def type_of(element: Element) -> ir.TypeProtocol | None:
    """Return the ``onnx_ir`` type that ``element`` describes; None when its dtype is unknown."""
    inner: ir.TypeProtocol | None
    if element.inner is not None:
        inner = type_of(element.inner)
    else:
        inner = None if element.dtype is None else ir.TensorType(element.dtype)
    if inner is None:
        return None
    return ir.SequenceType(inner) if element.kind == "sequence" else ir.OptionalType(inner)


def text_of(dims: "tuple[Dim, ...] | list[Dim | None]") -> str:
    """Return a shape as text."""
    return "[" + ", ".join("?" if d is None else str(d) for d in dims) + "]"
