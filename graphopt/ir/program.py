"""Program: the one dialect that is rewritten (``onnx_ir.Model``) and the facts that belong to it.

A ``Program`` is made by a front end and rewritten in place by passes. Shapes live on the values
themselves, as ``onnx_ir`` shapes whose symbolic dimensions are expressions that
``graphopt.ir.dims`` reads and writes; this file is the only place that converts between the two.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from graphopt.ir.dims import Bounds, Dim, ceildiv, mul, parse_dim, product, symbol

# Opset 7 changed broadcasting, and most operators with it: shape rules and operator facts hold from
# there on.
OLDEST_OPSET_OF_FACTS = 7
# In the meta of a model: expressions that data-dependent symbols never exceed, by symbol.
UPPER_BOUNDS_KEY = "graphopt.upper_bounds"
# In the meta of a sub-graph that cannot run at the sizes of the program: the reason.
IMPOSSIBLE_KEY = "graphopt.impossible"
# Ranges of symbols in a model file, in the form torch.export uses; read back by the loader.
RANGES_KEY = "pkg.torch.export.ExportedProgram.range_constraints"
FROM_PASS_KEY = "pkg.graphopt.pass"
FROM_NODES_KEY = "pkg.graphopt.from"


@dataclass(frozen=True)
class Source:
    """Where a program came from.

    Attributes:
        kind: "onnx" or "torch".
        path: The file, when it came from one.
        sha256: Digest of the graph file, or of the serialized graph without weights.
        external_files: Files that hold its external tensors, resolved.
    """

    kind: str
    path: Path | None = None
    sha256: str = ""
    external_files: tuple[Path, ...] = ()


@dataclass
class Program:
    """A model with the facts that passes and analyses need.

    Attributes:
        model: The graph; functions are inlined by the front end.
        bounds: Bounds of each named dimension.
        source: Where it came from.
        states: Pairs (input name, output name) of state carried from one run to the next.
        notes: Sentences for the report: what the front end had to assume or change.
    """

    model: ir.Model
    bounds: dict[str, Bounds] = field(default_factory=dict)
    source: Source = field(default_factory=lambda: Source("onnx"))
    states: tuple[tuple[str, str], ...] = ()
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model.meta["graphopt.bounds"] = self.bounds

    @property
    def graph(self) -> ir.Graph:
        """The main graph."""
        return self.model.graph

    @property
    def opset(self) -> int:
        """The version of the default operator set."""
        return opset_of(self.model)


def opset_of(model: ir.Model) -> int:
    """Return the version of the default ONNX operator set that ``model`` imports; 0 for none."""
    imports = model.graph.opset_imports
    return imports.get("", imports.get("ai.onnx", 0))


def bounds_in(model: ir.Model) -> Mapping[str, Bounds]:
    """Return the bounds of the symbols of the program that ``model`` belongs to; empty for none."""
    bounds = model.meta.get("graphopt.bounds")
    return bounds if isinstance(bounds, dict) else {}


def is_onnx(node: ir.Node, *op_types: str) -> bool:
    """Return whether ``node`` is one of ``op_types`` of the default operator set."""
    return node.domain in ("", "ai.onnx") and node.op_type in op_types


def graphs_of(graph: ir.Graph) -> Iterator[ir.Graph]:
    """Yield ``graph`` and every graph nested in it, outermost first; no recursion limit."""
    pending = [graph]
    while pending:
        current = pending.pop()
        yield current
        inner = [body for node in current for body in bodies_of(node)]
        pending.extend(reversed(inner))


def bodies_of(node: ir.Node) -> list[ir.Graph]:
    """Return the sub-graphs that ``node`` holds, in attribute order."""
    bodies: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type is ir.AttributeType.GRAPH:
            bodies.append(attribute.as_graph())
        elif attribute.type is ir.AttributeType.GRAPHS:
            bodies.extend(attribute.as_graphs())
    return bodies


def outer_reads(node: ir.Node) -> list[ir.Value]:
    """Return the values that the bodies of ``node`` read from outside, each once, in order."""
    found: dict[ir.Value, None] = {}
    for body in bodies_of(node):
        inside: set[ir.Value] = set()
        for graph in graphs_of(body):
            inside.update(graph.inputs)
            inside.update(graph.initializers.values())
            for inner in graph:
                inside.update(inner.outputs)
        for graph in graphs_of(body):
            for inner in graph:
                for value in inner.inputs:
                    if value is not None and value not in inside:
                        found[value] = None
            for value in graph.outputs:
                if value is not None and value not in inside:
                    found[value] = None
    return list(found)


def dims_of(value: ir.Value) -> tuple[Dim, ...] | None:
    """Return the dimensions of ``value``; None when its rank or a dimension is unknown."""
    shape = value.shape
    if shape is None:
        return None
    result: list[Dim] = []
    for dim in shape.dims:
        if isinstance(dim, int):
            result.append(dim)
            continue
        text = dim.value
        parsed = None if text is None else parse_dim(text)
        if parsed is None or (isinstance(parsed, int) and parsed < 0):
            return None
        result.append(parsed)
    return tuple(result)


def shape_from(dims: Sequence[Dim]) -> ir.Shape:
    """Return ``dims`` as an ``onnx_ir`` shape."""
    return ir.Shape([d if isinstance(d, int) else ir.SymbolicDim(str(d)) for d in dims])


def set_dims(value: ir.Value, dims: Sequence[Dim]) -> None:
    """Give ``value`` the dimensions ``dims``."""
    value.shape = shape_from(dims)


def size_bytes(dtype: ir.DataType, dims: Sequence[Dim]) -> Dim | None:
    """Return the bytes of a dense tensor; None for types without a fixed size (strings).

    Types below one byte are packed, the last byte padded, as in the ONNX specification.
    """
    if dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED):
        return None
    bits = dtype.bitwidth
    elements = product(tuple(dims))
    return mul(elements, bits // 8) if bits % 8 == 0 else ceildiv(mul(elements, bits), 8)


def tag(node: ir.Node, pass_name: str, replaced: Sequence[ir.Node]) -> ir.Node:
    """Record on ``node`` which pass made it and from which nodes; returns ``node``.

    The names recorded are those of the model as it came in: what a replaced node itself recorded
    is carried over, so provenance survives several passes.
    """
    names: dict[str, None] = {}
    for old in replaced:
        recorded = old.metadata_props.get(FROM_NODES_KEY)
        for name in recorded.split(",") if recorded else [old.name or old.op_type]:
            names[name] = None
    node.metadata_props[FROM_PASS_KEY] = pass_name
    node.metadata_props[FROM_NODES_KEY] = ",".join(names)
    return node


def fresh_symbol(bounds: dict[str, Bounds], stem: str, limits: Bounds) -> Dim:
    """Register and return a symbol whose name starts with ``stem`` and is not taken.

    Args:
        bounds: The symbol table that receives it.
        stem: Wanted name; characters that no identifier may hold become ``_``.
        limits: Bounds of the new symbol.
    """
    base = "".join(c if c.isalnum() and c.isascii() else "_" for c in stem).strip("_") or "dim"
    base = base if not base[0].isdigit() else f"d{base}"
    name, count = base, 1
    while name in bounds:
        count += 1
        name = f"{base}_{count}"
    bounds[name] = limits
    return symbol(name)
