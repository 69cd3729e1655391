"""Local rewriting of ``onnx_ir`` graphs: the edits that every pass needs, and their bookkeeping.

A ``Rewriter`` belongs to one run of one pass. It counts what was rewritten, records what was left
alone and why, keeps names unique over the whole model (a nested graph may not reuse an outer
name), and keeps the names and types of graph inputs and outputs. All edits take constant time,
apart from the first request for a fresh name, which looks at every name once.
"""

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import onnx_ir as ir

from graphopt.ir.dims import Bounds
from graphopt.ir.program import Program, bodies_of, graphs_of, tag

Table = dict[Hashable, Any]


def program_of(model: ir.Model) -> Program:
    """Return the program around ``model``; it shares the symbol table of the one it came from."""
    bounds = model.meta.get("graphopt.bounds")
    table: dict[str, Bounds] = bounds if isinstance(bounds, dict) else {}
    return Program(model, table)


def nodes_of(model: ir.Model) -> Iterator[ir.Node]:
    """Yield every node of the main graph and of nested graphs, in order within each graph.

    Nodes may be removed, and added before or after the current one, while iterating.
    """
    for graph in graphs_of(model.graph):
        yield from graph


def scoped_nodes(model: ir.Model) -> Iterator[tuple[ir.Node, list[Table]]]:
    """Yield every node with the tables of the graphs it sees, its own last.

    A table holds what the caller puts in. At a node of a nested graph the tables of the graphs
    around it are as the node that holds the nested graph finds them, so what they name is visible.
    """
    frames: list[tuple[Iterator[ir.Node], Table]] = [(iter(model.graph), {})]
    while frames:
        node = next(frames[-1][0], None)
        if node is None:
            frames.pop()
            continue
        yield node, [table for _, table in frames]
        # A body that waits below another one has an empty table, so bodies of one node do not see
        # each other.
        if node.attributes and node.graph is not None:
            frames.extend((iter(body), {}) for body in reversed(bodies_of(node)))


def sole_user(value: ir.Value) -> ir.Node | None:
    """Return the only node that reads ``value``, if it is read once and is no graph output."""
    if value.is_graph_output():
        return None
    uses = value.uses()
    return next(iter(uses)).node if len(uses) == 1 else None


class Names:
    """The names in use in a model; graphs that do not see each other may share one."""

    def __init__(self, model: ir.Model) -> None:
        self._values: Counter[str] = Counter()
        self._nodes: Counter[str] = Counter()
        self._numbers: Counter[str] = Counter()
        for graph in graphs_of(model.graph):
            values = dict.fromkeys((*graph.inputs, *graph.initializers.values()))
            for node in graph:
                self._nodes[node.name or ""] += 1
                values.update((v, None) for v in node.outputs)
            self._values.update(v.name or "" for v in values)

    def fresh_value(self, stem: str) -> str:
        """Return and reserve a name for a value: ``stem``, or ``stem_1`` and so on."""
        return self._fresh(self._values, stem)

    def fresh_node(self, stem: str) -> str:
        """Return and reserve a name for a node: ``stem``, or ``stem_1`` and so on."""
        return self._fresh(self._nodes, stem)

    def release_value(self, name: str) -> None:
        """Forget one value called ``name``."""
        self._values[name] -= 1

    def renamed_value(self, name: str) -> str:
        """Forget one value called ``name``; return and reserve another name for it."""
        self.release_value(name)
        return self.fresh_value(name)

    def is_shared(self, name: str) -> bool:
        """Return whether several values of graphs that do not see each other have ``name``."""
        return self._values[name] > 1

    def _fresh(self, taken: Counter[str], stem: str) -> str:
        name = stem
        while not name or taken[name] > 0:
            # Numbers go on from the last one, so many names with one stem cost no search each.
            self._numbers[stem] += 1
            name = f"{stem}_{self._numbers[stem]}"
        taken[name] += 1
        return name


class Rewriter:
    """The edits of one run of a pass over a model.

    Attributes:
        model: The model that is rewritten.
        rewrites: Number of sites rewritten so far; the pass adds to it.
    """

    def __init__(self, model: ir.Model, pass_name: str) -> None:
        self.model = model
        self.pass_name = pass_name
        self.rewrites = 0
        self._skips: dict[ir.Node, tuple[str, str, str]] = {}
        self._names: Names | None = None
        self._positions: dict[ir.Graph, dict[ir.Value, list[int]]] = {}

    @property
    def names(self) -> Names:
        """The names in use."""
        if self._names is None:
            self._names = Names(self.model)
        return self._names

    @property
    def skips(self) -> list[tuple[str, str, str]]:
        """Sites left alone, one entry a node: (reason code, node name, detail)."""
        return list(self._skips.values())

    def skip(self, reason: str, node: ir.Node, detail: str = "") -> None:
        """Record that ``node`` was looked at and left alone; the last reason of a node stays."""
        self._skips[node] = (reason, node.name or node.op_type, detail)

    def can_redirect(self, old: ir.Value, new: ir.Value) -> bool:
        """Return whether every read of ``old`` may become a read of ``new``.

        A graph output keeps its name. So its place can only be taken by a value that a node of the
        same graph makes and that has no name to keep itself.
        """
        if not old.is_graph_output():
            return True
        return new.producer() is not None and new.graph is old.graph and not new.is_graph_output()

    def redirect(self, old: ir.Value, new: ir.Value) -> bool:
        """Make every reader of ``old`` read ``new``; False, and nothing done, where it cannot.

        The caller drops the node that makes ``old``, and knows that ``new`` is visible wherever
        ``old`` is read.
        """
        if not self.can_redirect(old, new):
            return False
        if new.shape is None:
            new.shape = old.shape
        if new.type is None:
            new.type = old.type
        if old.is_graph_output():
            self._take_place(old, new)
            name, freed = old.name, new.name
            old.name = None
            new.name, new.type, new.shape = name, old.type, old.shape
            if self._names is not None and freed:
                self._names.release_value(freed)
        for node, index in tuple(old.uses()):
            node.replace_input_with(index, new)
        return True

    def _take_place(self, old: ir.Value, new: ir.Value) -> None:
        """Put ``new`` where ``old`` is in the outputs of the graph."""
        graph = old.graph
        assert graph is not None, "a graph output has a graph"
        if graph not in self._positions:
            positions: dict[ir.Value, list[int]] = {}
            for index, value in enumerate(graph.outputs):
                positions.setdefault(value, []).append(index)
            self._positions[graph] = positions
        places = self._positions[graph].pop(old)
        for index in places:
            graph.outputs[index] = new
        self._positions[graph][new] = places

    def drop(self, node: ir.Node) -> None:
        """Remove a node whose outputs nobody reads, with everything in its bodies."""
        assert node.graph is not None, "the node is in a graph"
        bodies = bodies_of(node)
        for body in bodies:
            detach(body)
        node.graph.remove(node, safe=True)
        self._skips.pop(node, None)
        if self._names is not None:
            gone = list(node.outputs)
            for graph in (inner for body in bodies for inner in graphs_of(body)):
                gone += [*graph.inputs, *graph.initializers.values()]
                gone += [value for inner in graph for value in inner.outputs]
            for value in gone:
                self._names.release_value(value.name or "")

    def constant(self, stem: str, tensor: ir.TensorProtocol) -> ir.Value:
        """Return a value of the main graph that holds ``tensor``, named after ``stem``."""
        name = self.names.fresh_value(stem)
        tensor.name = name
        value = ir.Value(
            name=name,
            shape=ir.Shape(tensor.shape.numpy()),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.model.graph.register_initializer(value)
        return value

    def become_constant(self, value: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
        """Return a constant that takes over the name and the readers of ``value``.

        The caller drops what ``value`` belonged to. A value of a nested graph gets a number in its
        name where another nested graph uses the same one.
        """
        name = value.name or "constant"
        self.names.release_value(name)
        value.name = None
        constant = self.constant(name, tensor)
        constant.metadata_props.update(value.metadata_props)
        for user, index in tuple(value.uses()):
            user.replace_input_with(index, constant)
        return constant

    def insert(
        self,
        before: ir.Node,
        result: ir.Value,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Sequence[ir.Attr] = (),
        *,
        replaced: Sequence[ir.Node],
        domain: str = "",
    ) -> ir.Node:
        """Insert a node that makes what ``result`` was.

        Args:
            before: The node to insert before.
            result: The value that the output stands in for: name, type, shape, readers and place
                among the graph outputs go over. The caller drops its node.
            op_type: The operator.
            inputs: What the node reads.
            attributes: The attributes of the node.
            replaced: Nodes that it stands for; it takes name and metadata of the first.
            domain: The domain of the operator.
        """
        assert before.graph is not None, "the node is in a graph"
        first = replaced[0]
        node = ir.Node(
            domain,
            op_type,
            inputs,
            attributes,
            num_outputs=1,
            name=first.name,
            metadata_props=dict(first.metadata_props),
        )
        new = node.outputs[0]
        new.name, new.type, new.shape = result.name, result.type, result.shape
        new.metadata_props.update(result.metadata_props)
        result.name = None
        before.graph.insert_before(before, node)
        if result.is_graph_output():
            self._take_place(result, new)
        for user, index in tuple(result.uses()):
            user.replace_input_with(index, new)
        return tag(node, self.pass_name, replaced)

    def replace(
        self,
        nodes: Sequence[ir.Node],
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Sequence[ir.Attr],
        *,
        domain: str = "",
    ) -> ir.Node:
        """Put one node in the place of ``nodes``, the last of which makes the result.

        The node takes the name and the metadata of the first, and output 0 of the last, name, type
        and shape included. Each of ``nodes`` but the last is read by the next one only.
        """
        last = nodes[-1]
        node = self.insert(
            last, last.outputs[0], op_type, inputs, attributes, replaced=nodes, domain=domain
        )
        for gone in reversed(nodes):
            self.drop(gone)
        return node


def detach(graph: ir.Graph) -> None:
    """Make the nodes of ``graph`` and of its nested graphs read nothing, so it can be dropped."""
    for inner in graphs_of(graph):
        for node in inner:
            for index in range(len(node.inputs)):
                node.replace_input_with(index, None)
