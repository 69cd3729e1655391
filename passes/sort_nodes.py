"""Nodes come after the nodes they read from."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.errors import InvalidModelError
from graphopt.ir.program import graphs_of
from graphopt.passes._edit import Edit
from graphopt.pipeline.base import Pass, PassResult


@dataclass(frozen=True)
class SortNodes(Pass):
    """Put the nodes of every graph in an order in which each one finds its inputs made.

    Fires when:
        1. A node stands before a node that it reads from.

    Leaves alone:
        1. A graph in a valid order: the sort is stable.

    Preserves:
        Nodes, values and names; only the order changes.

    Options:
        None.

    Example:
        ``y = Relu (a)``, ``a = Neg (x)`` becomes ``a = Neg (x)``, ``y = Relu (a)``.
    """

    name: ClassVar[str] = "sort-nodes"

    def call(self, model: ir.Model) -> PassResult:
        """Sort the nodes of ``model``.

        Raises:
            InvalidModelError: nodes read from each other in a circle.
        """
        edit = Edit(self, model)
        before = {graph: list(graph) for graph in graphs_of(model.graph)}
        try:
            model.graph.sort()
        except ValueError as error:
            raise InvalidModelError(
                "graph-has-cycle",
                f"nodes of graph '{model.graph.name}' read from each other in a circle",
                hint="an ONNX graph has no circles; export the model again",
            ) from error
        for graph, nodes in before.items():
            edit.rewrites += sum(a is not b for a, b in zip(nodes, graph, strict=True))
        return edit.result()
