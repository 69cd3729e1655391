"""Which graphs of a model are quantized: the main one, and the branches of every ``If`` in them.

A branch computes at most once in a run, so its values are observed as those around it are. What is
inside a ``Loop`` or a ``Scan`` has other values in each turn, of which a run shows none.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.ir.program import graphs_of, is_onnx
from graphopt.ir.rewrite import Names


@dataclass(frozen=True, eq=False)
class Scope:
    """A graph, and where it stands.

    Attributes:
        graph: The graph itself.
        holder: The node whose body it is, None for the main graph.
        around: The scope of that node.
        role: What the holder calls it, as ``then_branch``.
        depth: Number of graphs around it.
        loop: The outermost ``Loop``, ``Scan`` or other node than an ``If`` that it is inside of.
    """

    graph: ir.Graph
    holder: ir.Node | None = None
    around: "Scope | None" = None
    role: str = ""
    depth: int = 0
    loop: ir.Node | None = None

    @property
    def where(self) -> str:
        """The branch in words, "" for the main graph."""
        return "" if self.holder is None else f"in {self.role} of '{self.holder.name}'"


def scopes_of(model: ir.Model) -> Iterator[Scope]:
    """Yield the scopes of all graphs, each behind the one around it."""
    pending = [Scope(model.graph)]
    while pending:
        scope = pending.pop()
        yield scope
        inner = [
            _inside(scope, node, *body) for node in scope.graph for body in _named_bodies(node)
        ]
        pending.extend(reversed(inner))


def _inside(around: Scope, node: ir.Node, role: str, body: ir.Graph) -> Scope:
    loop = around.loop or (None if is_onnx(node, "If") else node)
    return Scope(body, node, around, role, around.depth + 1, loop)


def _named_bodies(node: ir.Node) -> Iterator[tuple[str, ir.Graph]]:
    for name, attribute in node.attributes.items():
        if attribute.type is ir.AttributeType.GRAPH:
            yield name, attribute.as_graph()
        elif attribute.type is ir.AttributeType.GRAPHS:
            for body in attribute.as_graphs():
                yield name, body


def observable_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Yield the nodes whose values a run can show, each graph in order, outer graphs first."""
    for scope in scopes_of(model):
        if scope.loop is None:
            yield from scope.graph


def name_apart(model: ir.Model) -> None:
    """Rename what nodes of bodies make where another body has a value of that name.

    What calibration finds out belongs to a value by its name.
    """
    names = Names(model)
    seen: set[str] = set()
    for graph in graphs_of(model.graph):
        for node in graph:
            for value in node.outputs:
                if value.name and names.is_shared(value.name):
                    if value.name in seen and graph is not model.graph:
                        value.name = names.renamed_value(value.name)
                    seen.add(value.name)
