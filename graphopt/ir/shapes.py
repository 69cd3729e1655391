"""Symbolic shape inference: the type and shape of every value, in pure Python.

In: a ``Program`` whose inputs have complete shapes, functions inlined. Out: dtype and dims on every
value of every graph, and a report that names what stays unknown, what depends on data, and the
contents of small tensors that shape arithmetic computes.

The rules live in ``graphopt.ir.shape_rules``, one function for each family of operators. This file
walks the graphs, falls back to what the file declares where no rule decides, and writes the
result. ONNX's own inference is not used: it runs in C++ on files we do not trust, and it drops
symbols as soon as a shape is computed.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import onnx_ir as ir

import graphopt.ir.shape_rules.catalogue  # noqa: F401 - fills the table of rules
from graphopt.errors import GraphoptError, UnsupportedError
from graphopt.ir.dims import Bounds, Dim, Expr, symbols_of
from graphopt.ir.program import Program, bodies_of, bounds_in, graphs_of, is_onnx, set_dims
from graphopt.ir.shape_rules.contents import Contents, KnownTensor, is_integer
from graphopt.ir.shape_rules.facts import (
    Facts,
    UnresolvedError,
    hint_of,
    is_tensor,
    type_of,
)
from graphopt.ir.shape_rules.registry import find_rule
from graphopt.ir.shape_rules.view import NodeView

__all__ = ["KnownTensor", "ShapeReport", "infer_node", "infer_shapes"]

_EARLIER_KEY = "graphopt.data_dependent"


@dataclass
class ShapeReport:
    """What an inference found besides the shapes themselves.

    Attributes:
        unresolved: Name of a value whose dtype or dims stay unknown -> reason.
        data_dependent: Symbol that no input size decides -> what decides it.
        upper_bounds: Data-dependent symbol -> expression it never exceeds.
        known: Contents of small integer and bool tensors that nodes compute.
        contradictions: Where the file declares something else than what was inferred.
        impossible: Branch of an ``If`` that cannot run at these sizes -> why; what it computes
            is unresolved, and it is never taken.
    """

    unresolved: dict[str, str] = field(default_factory=dict)
    data_dependent: dict[str, str] = field(default_factory=dict)
    upper_bounds: dict[str, Dim] = field(default_factory=dict)
    known: dict[ir.Value, KnownTensor] = field(default_factory=dict)
    contradictions: list[str] = field(default_factory=list)
    impossible: dict[ir.Graph, str] = field(default_factory=dict)


def infer_shapes(program: Program) -> ShapeReport:
    """Give every value of ``program`` its dtype and shape.

    Shapes that the file declares are believed only where no rule decides. An axis of an input
    without a name becomes a symbol of ``program.bounds``; so does a size that depends on data. A
    second inference gives the same names.

    Raises:
        InvalidModelError: the shapes at some node are impossible, or a node is malformed.
    """
    earlier = program.model.meta.get(_EARLIER_KEY)
    before = dict(program.bounds)
    facts = Facts(
        program.bounds,
        earlier=earlier if isinstance(earlier, dict) else None,
        constant_inputs=(program.model.ir_version or 0) < 4,
    )
    inputs = [v for v in program.graph.inputs if v.const_value is None]
    for value in inputs:
        for dim in hint_of(value)[1] or ():
            for name in sorted(symbols_of(dim)) if dim is not None else ():
                facts.bounds.setdefault(name, Bounds())
    for value in inputs:
        facts.declare(value)
    engine = _Engine(facts, program.graph.opset_imports)
    with _restored_on_error(before, program.bounds):
        engine.run_graph(program.graph)
    report = ShapeReport(contradictions=list(facts.contradictions), impossible=facts.impossible)
    used = _write(program, facts, report)
    _keep_used_symbols(facts, used, report)
    program.model.meta[_EARLIER_KEY] = dict(report.data_dependent)
    return report


def infer_node(
    node: ir.Node,
    model: ir.Model,
    *,
    known: Mapping[ir.Value, KnownTensor] | None = None,
) -> dict[ir.Value, KnownTensor]:
    """Give the outputs of ``node`` their dtype and shape, and return their contents if small.

    The inputs must have theirs already. Contents are read from initializers, from ``Constant``
    nodes and from ``known``.

    Args:
        node: The node; it need not be in a graph yet.
        model: The model it belongs to, for its operator sets and symbols.
        known: Contents of further values, as ``infer_shapes`` reports them.

    Raises:
        InvalidModelError: the shapes are impossible, or the node is malformed.
        UnsupportedError: no rule decides the outputs.
    """
    found = bounds_in(model)
    bounds = found if isinstance(found, dict) else dict(found)
    earlier = model.meta.get(_EARLIER_KEY)
    before = dict(bounds)
    facts = Facts(
        bounds,
        earlier=earlier if isinstance(earlier, dict) else None,
        standalone=True,
        constant_inputs=(model.ir_version or 0) < 4,
    )
    engine = _Engine(facts, model.graph.opset_imports)
    for value in node.inputs:
        producer = None if value is None else value.producer()
        if producer is not None and is_onnx(producer, "Constant"):
            engine.run_node(producer)
    for value, tensor in (known or {}).items():
        facts.contents[value] = Contents(tensor.dims, tensor.entries)
    with _restored_on_error(before, bounds):
        engine.run_node(node)
        _require_outputs(node, facts)
    for value in (*node.outputs, *_values(bodies_of(node))):
        _write_value(value, facts)
    if facts.data_dependent:
        model.meta[_EARLIER_KEY] = {**(earlier or {}), **facts.data_dependent}
    return {v: t for v in node.outputs if (t := _known(v, facts)) is not None}


def _require_outputs(node: ir.Node, facts: Facts) -> None:
    for value in node.outputs:
        reason = facts.reasons.get(value)
        if reason is not None and value not in facts.elements:
            raise UnsupportedError(
                "no-shape-rule",
                f"the shape of output '{value.name}' of {node.op_type} '{node.name}' is not known: "
                f"{reason}",
                hint="declare the shape in the file, or leave the operator as it is",
                node=node.name,
            )


@contextmanager
def _restored_on_error(before: dict[str, Bounds], bounds: dict[str, Bounds]) -> Iterator[None]:
    """Take the symbols of an inference that failed out of the bounds again."""
    try:
        yield
    except GraphoptError:
        bounds.clear()
        bounds.update(before)
        raise


class _Engine:
    """Walks graphs in order and applies the rules.

    Args:
        facts: Where the rules read and record.
        opsets: Versions of the operator sets of the model.
    """

    def __init__(self, facts: Facts, opsets: Mapping[str, int]) -> None:
        self._facts = facts
        self._opsets = dict(opsets)
        if "" not in self._opsets:
            self._opsets[""] = self._opsets.get("ai.onnx", 0)
        self._opsets["ai.onnx"] = self._opsets[""]
        self._visited: set[ir.Graph] = set()

    def run_graph(self, graph: ir.Graph) -> None:
        """Infer all nodes of ``graph``; a second run starts afresh."""
        if graph in self._visited:
            for node in graph:
                for value in node.outputs:
                    self._facts.forget(value)
        self._visited.add(graph)
        for node in graph:
            self.run_node(node)

    def run_node(self, node: ir.Node) -> None:
        """Infer the outputs of ``node``; what no rule decides falls back to the declaration."""
        facts = self._facts
        domain = node.domain
        rule = find_rule(domain, node.op_type)
        reason = "the rule does not cover this output"
        if rule is None:
            reason = f"there is no rule for {f'{domain}:' if domain else ''}{node.op_type}"
        else:
            opset = node.version or self._opsets.get(domain, 1)
            view = NodeView(node, facts, opset, self.run_graph)
            try:
                rule(view)
            except UnresolvedError as error:
                reason = str(error)
            except UnsupportedError as error:
                if error.code != "shape-too-complex":
                    # A size is divided by 0, which only a malformed node can ask for.
                    view.malformed(error.message)
                reason = error.message
        dims = facts.dims
        for value in node.outputs:
            if value not in dims or value not in facts.dtypes:
                facts.fall_back(value, reason)


def _values(graphs: Iterable[ir.Graph]) -> Iterator[ir.Value]:
    for outer in graphs:
        for graph in graphs_of(outer):
            yield from graph.inputs
            yield from graph.initializers.values()
            for node in graph:
                yield from node.outputs


def _write(program: Program, facts: Facts, report: ShapeReport) -> set[str]:
    """Write all facts to the values; return the symbols that occur in them."""
    expressions: set[Expr] = set()
    for value in _values([program.graph]):
        if value not in facts.dims and value not in facts.reasons:
            # An initializer that no rule looked at, or a graph that no rule entered.
            facts.fall_back(value, "no rule looked into the graph that holds it")
        _write_value(value, facts)
        dims = facts.dims.get(value)
        if dims is not None:
            expressions.update(d for d in dims if not isinstance(d, int))
        if (dims is None or value not in facts.dtypes) and (value.name or value.uses()):
            name = value.name or f"output {value.index()} of {value.producer()}"
            report.unresolved[name] = facts.reasons.get(value, "its type is not known")
        known = _known(value, facts)
        if known is not None:
            report.known[value] = known
            expressions.update(e for e in known.entries if not isinstance(e, int))
    return {name for dim in expressions for name in symbols_of(dim)}


def _write_value(value: ir.Value, facts: Facts) -> None:
    dtype = facts.dtypes.get(value)
    element = facts.elements.get(value)
    if element is not None:
        kind = type_of(element)
        if kind is not None:
            value.type = kind
        return
    is_input = value.producer() is None
    if not is_tensor(value) and is_input:
        # A sparse tensor stays one.
        return
    if dtype is not None and (value.dtype is not dtype or not is_tensor(value)):
        # A new type object: values read from a file may share one.
        value.type = ir.TensorType(dtype)
    dims = facts.dims.get(value)
    if dims is not None:
        set_dims(value, dims)


def _known(value: ir.Value, facts: Facts) -> KnownTensor | None:
    contents = facts.contents.get(value)
    dtype = facts.dtypes.get(value)
    if contents is None or dtype is None or value.const_value is not None or not is_integer(dtype):
        return None
    entries = tuple(e for e in contents.entries if isinstance(e, int | Expr))
    if len(entries) != len(contents.entries):
        return None
    return KnownTensor(contents.dims, entries)


def _keep_used_symbols(facts: Facts, used: set[str], report: ShapeReport) -> None:
    """Report the data-dependent symbols that occur, and take the others out of the bounds."""
    pending = sorted(used)
    while pending:
        upper = facts.upper_bounds.get(pending.pop())
        for name in sorted(symbols_of(upper)) if upper is not None else ():
            if name not in used:
                used.add(name)
                pending.append(name)
    for name, reason in facts.data_dependent.items():
        if name in used:
            report.data_dependent[name] = reason
            if name in facts.upper_bounds:
                report.upper_bounds[name] = facts.upper_bounds[name]
        else:
            facts.bounds.pop(name, None)
    for name in facts.stale(used):
        facts.bounds.pop(name, None)
