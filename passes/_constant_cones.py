"""Constant nodes that together make the model no larger, although one by one they would.

An exporter that cuts a weight into pieces and joins them in another order makes every piece as a
node of its own: the first piece folded is growth as long as the others still need the weight. A
*cone* is a set of such nodes connected through what they compute or through a large weight that
they share. In: a graph. Out: the nodes of all cones whose results, those that something outside
reads, take no more bytes than the weights that only the cone reads.
"""

from collections.abc import Callable, Iterable

import onnx_ir as ir
from networkx.utils import UnionFind

from graphopt.ir.constants import constant_of, static_dims
from graphopt.ir.program import bodies_of, graphs_of


def neutral_cones(
    graph: ir.Graph, may_fold: Callable[[ir.Node], bool], small_bytes: int
) -> frozenset[ir.Node]:
    """Return the nodes below ``graph`` that may be folded together.

    Args:
        graph: The main graph, in topological order; nested graphs are looked at, too.
        may_fold: Whether a node whose inputs are all constant can be computed, bytes apart.
        small_bytes: Constants of up to this size are not counted.
    """
    inside: dict[ir.Node, None] = {}
    cones: UnionFind[ir.Node] = UnionFind()
    first_reader: dict[ir.Value, ir.Node] = {}
    for node in (node for inner in graphs_of(graph) for node in inner):
        if not _is_constant(node, inside) or not may_fold(node) or _bytes(node.outputs) is None:
            continue
        inside[node] = None
        cones[node]
        for value in node.inputs:
            producer = None if value is None else value.producer()
            if producer is not None and producer in inside:
                cones.union(producer, node)
            elif value is not None and _held(value) > small_bytes:
                cones.union(first_reader.setdefault(value, node), node)
    growth: dict[ir.Node, int] = {}
    for value, node in first_reader.items():
        if all(use.node in inside for use in value.uses()) and not value.is_graph_output():
            growth[cones[node]] = growth.get(cones[node], 0) - _held(value)
    for node in inside:
        kept = [v for v in node.outputs if any(use.node not in inside for use in v.uses())]
        made = _bytes(kept) or 0
        growth[cones[node]] = growth.get(cones[node], 0) + (made if made > small_bytes else 0)
    return frozenset(node for node in inside if growth[cones[node]] <= 0)


def _is_constant(node: ir.Node, inside: dict[ir.Node, None]) -> bool:
    if not node.inputs or bodies_of(node) or any(v.is_graph_output() for v in node.outputs):
        return False
    return all(
        value is None or constant_of(value) is not None or value.producer() in inside
        for value in node.inputs
    )


def _held(value: ir.Value) -> int:
    tensor = constant_of(value)
    return 0 if tensor is None else tensor.nbytes


def _bytes(values: Iterable[ir.Value]) -> int | None:
    total = 0
    for value in values:
        dims = static_dims(value)
        if dims is None or value.dtype is None:
            return None
        count = 1
        for dim in dims:
            count *= dim
        total += (count * value.dtype.bitwidth + 7) // 8
    return total
