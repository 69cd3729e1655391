"""One node as a shape rule sees it: checked access to inputs and attributes, typed outputs.

An accessor that finds the node malformed raises ``InvalidModelError``; one that finds a fact
missing raises ``UnresolvedError``, so that a rule reads as if everything were known.
"""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import onnx_ir as ir

from graphopt.errors import InvalidModelError
from graphopt.ir.dims import Dim, Expr
from graphopt.ir.shape_rules.algebra import UnequalError, broadcast, unify, volume
from graphopt.ir.shape_rules.contents import Contents, Entry, Ratio, capacity, exact, small
from graphopt.ir.shape_rules.facts import (
    Element,
    Facts,
    ImpossibleSizeError,
    UnresolvedError,
    hint_of,
    text_of,
)

_DATA_TYPES = {int(dtype): dtype for dtype in ir.DataType}

_NOT_KNOWN = " is not known: "

Shape = tuple[Dim, ...]
RunBody = Callable[[ir.Graph], None]


class NodeView:
    """A node with the facts about its inputs; its outputs are what the rule records.

    Attributes:
        node: The node.
        facts: Where facts are read and recorded.
        opset: Version of the operator set of the node's domain.
        inputs: Its inputs; None for one that is left out.
        outputs: Its outputs.
        bounds: Bounds of the symbols.
    """

    __slots__ = (
        "_attributes",
        "_run_body",
        "bounds",
        "facts",
        "inputs",
        "node",
        "opset",
        "outputs",
    )

    def __init__(self, node: ir.Node, facts: Facts, opset: int, run_body: RunBody) -> None:
        self.node = node
        self.facts = facts
        self.opset = opset
        self.bounds = facts.bounds
        self.inputs = node.inputs
        self.outputs = node.outputs
        self._attributes = node.attributes
        self._run_body = run_body

    # Inputs

    def has(self, index: int) -> bool:
        """Return whether input ``index`` is connected."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def value(self, index: int) -> ir.Value:
        """Return input ``index``, which the operator requires."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            self.malformed(f"input {index} is missing")
        return value

    def dims(self, index: int) -> Shape:
        """Return the shape of input ``index``."""
        value = self.value(index)
        dims = self.facts.dims_of(value)
        if dims is None:
            raise UnresolvedError(self._unknown(value))
        return dims

    def dims_or_none(self, index: int) -> Shape | None:
        """Return the shape of input ``index``; None when it is left out or not known."""
        value = self.inputs[index] if index < len(self.inputs) else None
        return None if value is None else self.facts.dims_of(value)

    def dtype(self, index: int) -> ir.DataType:
        """Return the element type of input ``index``."""
        value = self.value(index)
        dtype = self.facts.dtype_of(value)
        if dtype is None:
            raise UnresolvedError(self._unknown(value))
        return dtype

    def element(self, index: int) -> Element:
        """Return what input ``index``, a sequence or an optional, holds."""
        value = self.value(index)
        self.facts.dims_of(value)
        element = self.facts.elements.get(value)
        if element is None:
            raise UnresolvedError(f"nothing says what its input '{value.name}' holds")
        return element

    def _unknown(self, value: ir.Value) -> str:
        reason = self.facts.reasons.get(value, "")
        if value in self.facts.elements:
            return f"its input '{value.name}' is no tensor"
        # The reason at the end of a chain of values is the one that helps.
        _, _, root = reason.partition(_NOT_KNOWN)
        return f"its input '{value.name}'{_NOT_KNOWN}{root or reason}"

    def ranked(self, index: int, lowest: int, highest: int | None = None) -> Shape:
        """Return the shape of input ``index``, whose rank must lie in the range given.

        Args:
            index: Which input.
            lowest: Smallest rank allowed.
            highest: Largest rank allowed; None for no limit.
        """
        dims = self.dims(index)
        if len(dims) < lowest or (highest is not None and len(dims) > highest):
            wanted = f"{lowest}" if highest == lowest else f"at least {lowest}"
            if highest is not None and highest != lowest:
                wanted = f"{lowest} to {highest}"
            self.impossible(f"input {index} has rank {len(dims)}, expected {wanted}")
        return dims

    def contents(self, index: int) -> Contents | None:
        """Return what is known about the contents of input ``index``; None for nothing."""
        value = self.inputs[index] if index < len(self.inputs) else None
        return None if value is None else self.facts.contents_of(value)

    def entries(self, index: int) -> tuple[Entry, ...] | None:
        """Return the entries of input ``index`` in row-major order.

        Entries that are not known are None; the result is None when even their number is not.
        """
        contents = self.contents(index)
        if contents is not None:
            return contents.entries
        dims = self.dims_or_none(index)
        count = None if dims is None else volume(dims)
        return (None,) * count if isinstance(count, int) and count <= 1024 else None

    def numbers(self, index: int) -> tuple[int, ...] | None:
        """Return the entries of input ``index`` when all of them are whole numbers."""
        contents = self.contents(index)
        if contents is None:
            return None
        numbers = tuple(e for e in contents.entries if isinstance(e, int))
        return numbers if len(numbers) == len(contents.entries) else None

    def scalar(self, index: int) -> Entry:
        """Return the only entry of input ``index``; None when it is not known."""
        contents = self.contents(index)
        if contents is None:
            return None
        if len(contents.entries) != 1:
            self.impossible(f"input {index} must hold one number")
        return contents.entries[0]

    # Attributes

    def _attribute(self, name: str, *kinds: ir.AttributeType) -> Any:
        attribute = self._attributes.get(name)
        if attribute is None:
            return None
        if attribute.type not in kinds or attribute.is_ref():
            self.malformed(f"attribute '{name}' has type {attribute.type.name}")
        return attribute.value

    def int_(self, name: str, default: int) -> int:
        """Return an integer attribute."""
        found = self._attribute(name, ir.AttributeType.INT)
        return default if found is None else int(found)

    def int_or_none(self, name: str) -> int | None:
        """Return an integer attribute, None when it is left out."""
        found = self._attribute(name, ir.AttributeType.INT)
        return None if found is None else int(found)

    def float_(self, name: str, default: float) -> float:
        """Return a floating-point attribute."""
        found = self._attribute(name, ir.AttributeType.FLOAT)
        return default if found is None else float(found)

    def ints(self, name: str) -> tuple[int, ...] | None:
        """Return a list of integers, None when it is left out."""
        found = self._attribute(name, ir.AttributeType.INTS, ir.AttributeType.FLOATS)
        if found is None:
            return None
        if found and not isinstance(found[0], int):
            self.malformed(f"attribute '{name}' holds no whole numbers")
        return tuple(found)

    def floats(self, name: str) -> tuple[float, ...] | None:
        """Return a list of floating-point numbers, None when it is left out."""
        found = self._attribute(name, ir.AttributeType.FLOATS, ir.AttributeType.INTS)
        return None if found is None else tuple(float(x) for x in found)

    def string(self, name: str, default: str) -> str:
        """Return a text attribute."""
        found = self._attribute(name, ir.AttributeType.STRING)
        return default if found is None else str(found)

    def strings(self, name: str) -> tuple[str, ...] | None:
        """Return a list of texts, None when it is left out."""
        found = self._attribute(name, ir.AttributeType.STRINGS, ir.AttributeType.INTS)
        return None if found is None else tuple(str(x) for x in found)

    def tensor(self, name: str) -> ir.TensorProtocol | None:
        """Return a tensor attribute, None when it is left out."""
        found: ir.TensorProtocol | None = self._attribute(name, ir.AttributeType.TENSOR)
        return found

    def graph(self, name: str) -> ir.Graph:
        """Return a sub-graph attribute, which the operator requires."""
        found = self._attribute(name, ir.AttributeType.GRAPH)
        if found is None:
            self.malformed(f"attribute '{name}' is missing")
        body: ir.Graph = found
        return body

    def has_attribute(self, name: str) -> bool:
        """Return whether attribute ``name`` is present."""
        return name in self._attributes

    def data_type(self, name: str, default: ir.DataType | None = None) -> ir.DataType:
        """Return an attribute that is the number of a data type."""
        found = self.int_or_none(name)
        if found is None:
            if default is None:
                self.malformed(f"attribute '{name}' is missing")
            return default
        dtype = _DATA_TYPES.get(found)
        if dtype is None:
            self.malformed(f"attribute '{name}' is {found}, which is no data type")
        return dtype

    def required_ints(self, name: str) -> tuple[int, ...]:
        """Return a list of integers that the operator requires."""
        found = self.ints(name)
        if found is None:
            self.malformed(f"attribute '{name}' is missing")
        return found

    def axis(self, axis: int, rank: int) -> int:
        """Return ``axis`` counted from the front; it must lie in a shape of ``rank`` axes."""
        if not -rank <= axis < rank:
            self.impossible(f"axis {axis} is outside rank {rank}")
        return axis % rank

    def axes(self, axes: Sequence[int], rank: int) -> tuple[int, ...]:
        """Return ``axes`` counted from the front, in the order given; none may repeat."""
        result = tuple(self.axis(a, rank) for a in axes)
        if len(set(result)) != len(result):
            self.impossible(f"axes {list(axes)} name an axis twice")
        return result

    # Outputs

    def wants(self, index: int) -> bool:
        """Return whether the node has an output ``index``."""
        return index < len(self.outputs)

    def types(self, *dtypes: ir.DataType | None) -> None:
        """Record the element types of the first outputs."""
        for value, dtype in zip(self.outputs, dtypes, strict=False):
            if dtype is not None:
                self.facts.set_dtype(value, dtype)

    def out(self, index: int, dims: Shape) -> None:
        """Record the shape of output ``index``, if the node has one."""
        if index < len(self.outputs):
            try:
                self.facts.set_dims(self.outputs[index], dims)
            except ImpossibleSizeError:
                self.impossible(f"output {index} has the impossible shape {text_of(dims)}")

    def holds(self, index: int, element: Element) -> None:
        """Record what output ``index``, a sequence or an optional, holds."""
        if index < len(self.outputs):
            value = self.outputs[index]
            self.facts.elements[value] = element
            if element.dtype is not None:
                self.facts.dtypes[value] = element.dtype
            self.facts.reasons[value] = f"a value of type {element.kind} has no single shape"

    def unknown(self, index: int, reason: str) -> None:
        """Record why the shape of output ``index`` is not known, while others may be."""
        self.facts.reasons[self.outputs[index]] = reason

    def followed(self, index: int = 0) -> tuple[int, ...] | None:
        """Return the shape of output ``index`` when its contents are small enough to follow."""
        if index >= len(self.outputs):
            return None
        value = self.outputs[index]
        dims, dtype = self.facts.dims.get(value), self.facts.dtypes.get(value)
        if dims is None or dtype is None or not small(dims, capacity(dtype)):
            return None
        return tuple(d for d in dims if isinstance(d, int))

    def know(self, entries: Sequence[Entry], index: int = 0) -> None:
        """Record the contents of output ``index``, whose shape and type are recorded already."""
        dims = self.followed(index)
        if dims is None or all(e is None for e in entries):
            return
        value = self.outputs[index]
        dtype = self.facts.dtypes[value]
        kept = tuple(self._kept(entry, dtype) for entry in entries)
        self.facts.contents[value] = Contents(dims, kept)

    def _kept(self, entry: Entry, dtype: ir.DataType) -> Entry:
        if isinstance(entry, int) and -(2**31) <= entry < 2**31 and dtype == ir.DataType.INT64:
            return entry
        entry = exact(entry, dtype, self.bounds)
        size = entry.numerator if isinstance(entry, Ratio) else entry
        return None if isinstance(size, Expr) and not self.facts.is_short(size) else entry

    def fresh(
        self, index: int, axis: int, reason: str, upper: Dim | None = None, *, weak: bool = False
    ) -> Dim:
        """Return the data-dependent size of one axis of an output.

        Args:
            index: Which output.
            axis: Which axis of it.
            reason: What decides the size.
            upper: A dimension it never exceeds.
            weak: Believe the size that the file declares there, if it does.
        """
        if index < len(self.outputs):
            value = self.outputs[index]
            _, declared = hint_of(value)
            hint = declared[axis] if declared is not None and axis < len(declared) else None
            stem = f"{value.name or self.name}_dim{axis}"
        else:
            hint, stem = None, f"{self.name}_{index}_dim{axis}"
        text = f"{reason} ({self.label})"
        return self.facts.fresh(self.node, stem, text, upper, hint, weak)

    def size_entry(self, input_index: int, position: int, entry: Entry, what: str) -> Dim:
        """Return an entry that is used as a size; one that is not known becomes a symbol.

        The symbol belongs to the tensor and the position, so that two operators that read the
        same tensor agree.
        """
        if isinstance(entry, int | Expr):
            return entry
        value = self.value(input_index)
        reason = f"{what} is entry {position} of '{value.name}', which is computed from data"
        return self.facts.fresh(value, f"{value.name}_{position}", reason, None, None, False)

    # Shapes

    def broadcast(self, *shapes: Shape) -> Shape:
        """Return the broadcast of ``shapes``."""
        result = shapes[0] if shapes else ()
        try:
            for shape in shapes[1:]:
                result = broadcast(result, shape, self.bounds)
        except UnequalError:
            self.impossible("the shapes cannot be broadcast")
        return result

    def same(self, left: Dim, right: Dim, what: str) -> Dim:
        """Return one of two dimensions that must be equal, the more specific one."""
        try:
            return unify(left, right)
        except UnequalError:
            self.impossible(f"{what} differ: {left} and {right}")

    def run_body(self, body: ir.Graph) -> None:
        """Infer the shapes inside ``body``, whose inputs are known."""
        self._run_body(body)

    # Errors

    @property
    def name(self) -> str:
        """Name of the node; the name of its first output for a node without one."""
        if self.node.name:
            return self.node.name
        names = [value.name for value in self.outputs if value.name]
        return names[0] if names else self.node.op_type

    @property
    def label(self) -> str:
        """The node as error messages name it."""
        return f"{self.node.op_type} '{self.name}'"

    def impossible(self, what: str) -> NoReturn:
        """Raise for shapes that no run can have.

        Raises:
            InvalidModelError: always.
        """
        shapes = []
        for value in self.inputs:
            dims = None if value is None else self.facts.dims_of(value)
            shapes.append("?" if dims is None else text_of(dims))
        raise InvalidModelError(
            "shape-mismatch",
            f"{self.label}: {what}; the inputs have shapes {', '.join(shapes) or 'none'}",
            hint="the model cannot run at these input sizes",
            node=self.name,
        )

    def malformed(self, what: str) -> NoReturn:
        """Raise for a node that the operator's definition does not allow.

        Raises:
            InvalidModelError: always.
        """
        raise InvalidModelError(
            "malformed-node",
            f"{self.label} of opset {self.opset}: {what}",
            hint="the file was not written by a working exporter; onnx.checker says more",
            node=self.name,
        )
