"""The structural check of a graph: run after every pass, and on what a front end made.

A model is well-formed when, in the main graph and in every graph nested in a node:

1. every node belongs to the graph that lists it, every output knows its producer and index, and
   every input, output and initializer knows its graph;
2. a node reads only values that are visible to it: inputs and initializers of its graph, outputs
   of earlier nodes, and the same of the graphs around it;
3. a graph returns only values of its own, each once;
4. the uses that a value lists are exactly the reads of it;
5. every node has a name no other node has, every value a name no other visible value has;
6. every operator's domain is imported, and no attribute refers to a function's parameter.

One walk, linear in nodes, no recursion over nesting.
"""

from collections.abc import Iterator

import onnx_ir as ir

from graphopt.errors import InvariantError
from graphopt.ir.program import bodies_of

_WINDOW = 5


class _Frame:
    """A graph on the way from the main graph to the node in hand."""

    __slots__ = ("before", "bodies", "graph", "names", "nodes", "seen", "waiting")

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.nodes: Iterator[ir.Node] = iter(graph)
        self.seen: list[ir.Value] = []
        self.names: list[str] = []
        self.waiting: ir.Node | None = None
        self.bodies: list[ir.Graph] = []


class _Checker:
    def __init__(self, model: ir.Model, level: int, require_types: bool) -> None:
        self.model = model
        self.level = level
        self.names = level > 0
        self.require_types = require_types
        self.reads: dict[ir.Value, int] = {}
        self.visible_names: set[str] = set()
        self.node_names: set[str] = set()
        self.domains = {"", "ai.onnx", *model.graph.opset_imports}
        self.stack: list[_Frame] = []

    def run(self) -> None:
        self._enter(self.model.graph)
        while self.stack:
            frame = self.stack[-1]
            if frame.bodies:
                self._enter(frame.bodies.pop())
                continue
            if frame.waiting is not None:
                node, frame.waiting = frame.waiting, None
                self._define_outputs(frame, node)
            if not self._walk(frame):
                self._leave(frame)

    def _walk(self, frame: _Frame) -> bool:
        """Check nodes up to the next one with bodies; returns False at the end of the graph."""
        for node in frame.nodes:
            self._check_node(frame, node)
            bodies = bodies_of(node) if node.attributes else []
            if bodies:
                frame.waiting = node
                frame.bodies = bodies[::-1]
                return True
            self._define_outputs(frame, node)
        return False

    def _enter(self, graph: ir.Graph) -> None:
        frame = _Frame(graph)
        self.stack.append(frame)
        for value in graph.inputs:
            if value.graph is not graph or not value.is_graph_input():
                raise self._error(f"input '{value.name}' does not know its graph")
            if value.producer() is not None:
                raise self._error(f"input '{value.name}' is also the output of a node")
            self._define(frame, value)
        for name, value in graph.initializers.items():
            if name != value.name:
                raise self._error(f"initializer '{name}' is called '{value.name}'")
            if value.graph is not graph or not value.is_initializer():
                raise self._error(f"initializer '{name}' does not know its graph")
            if value.producer() is not None:
                raise self._error(f"initializer '{name}' is also the output of a node")
            if value.const_value is None:
                raise self._error(f"initializer '{name}' has no data")
            if not value.is_graph_input():
                self._define(frame, value)
            if self.level > 1:
                self._check_initializer(value)

    def _check_initializer(self, value: ir.Value) -> None:
        tensor = value.const_value
        assert tensor is not None
        if value.dtype is not tensor.dtype:
            raise self._error(
                f"initializer '{value.name}' has type {value.dtype}, its data {tensor.dtype}"
            )
        if value.shape is None or value.shape.dims != tensor.shape.dims:
            raise self._error(
                f"initializer '{value.name}' has shape {value.shape}, its data {tensor.shape}"
            )

    def _define(self, frame: _Frame, value: ir.Value, node: ir.Node | None = None) -> None:
        if value in self.reads:
            raise self._error(f"value '{value.name}' is defined twice", node)
        name = value.name
        if self.names:
            if not name:
                raise self._error("a value that is read has no name", node)
            if name in self.visible_names:
                raise self._error(f"two values are called '{name}'", node)
            self.visible_names.add(name)
            frame.names.append(name)
        if self.require_types and not _typed(value):
            raise self._error(f"value '{name}' has no type or no shape", node)
        self.reads[value] = 0
        frame.seen.append(value)

    def _check_node(self, frame: _Frame, node: ir.Node) -> None:
        if node.graph is not frame.graph:
            raise self._error(f"node '{node.name}' does not know its graph", node)
        name = node.name
        if self.names:
            if not name:
                raise self._error(f"a node of type {node.op_type} has no name", node)
            if name in self.node_names:
                raise self._error(f"two nodes are called '{name}'", node)
            self.node_names.add(name)
        if node.domain not in self.domains:
            raise self._error(f"domain '{node.domain}' of node '{name}' is not imported", node)
        reads = self.reads
        for value in node.inputs:
            if value is None:
                continue
            if value not in reads:
                raise self._error(
                    f"node '{name}' reads '{value.name}' before it is defined, "
                    "or from a graph it cannot see",
                    node,
                )
            reads[value] += 1
        for attribute in node.attributes.values() if node.attributes else ():
            if attribute.is_ref():
                raise self._error(
                    f"attribute '{attribute.name}' of node '{name}' refers to a parameter of a "
                    "function, but the node is in no function",
                    node,
                )

    def _define_outputs(self, frame: _Frame, node: ir.Node) -> None:
        for index, value in enumerate(node.outputs):
            if value.producer() is not node or value.index() != index:
                raise self._error(
                    f"output {index} of node '{node.name}' has another producer", node
                )
            if value.name or value.uses() or value.is_graph_output():
                self._define(frame, value, node)

    def _leave(self, frame: _Frame) -> None:
        graph = frame.graph
        own = set(frame.seen)
        returned: set[ir.Value] = set()
        for value in graph.outputs:
            if value not in own:
                raise self._error(f"output '{value.name}' is not defined in its graph")
            if value in returned:
                raise self._error(f"value '{value.name}' is returned twice")
            if value.graph is not graph or not value.is_graph_output():
                raise self._error(f"output '{value.name}' does not know its graph")
            returned.add(value)
        for value in frame.seen:
            uses = tuple(value.uses())
            if len(uses) != self.reads[value]:
                users = ", ".join(f"'{use.node.name}'" for use in uses[-5:])
                raise self._error(
                    f"value '{value.name}' lists {len(uses)} uses ({users}), but "
                    f"{self.reads[value]} inputs of nodes that can see it read it",
                    value.producer(),
                )
            for user, index in uses:
                if index >= len(user.inputs) or user.inputs[index] is not value:
                    raise self._error(f"value '{value.name}' lists a use that is none", user)
            del self.reads[value]
        self.visible_names.difference_update(frame.names)
        self.stack.pop()

    def _error(self, message: str, node: ir.Node | None = None) -> InvariantError:
        graph = self.stack[-1].graph
        where = "" if len(self.stack) == 1 else f" in graph '{graph.name}'"
        window = _window(node) if node is not None else []
        return InvariantError(
            "graph-invalid",
            "\n".join([f"the graph is not well-formed{where}: {message}", *window]),
            hint="this is a bug of the pass that ran last; please report it",
            node=node.name if node is not None else None,
        )


def _typed(value: ir.Value) -> bool:
    """Return whether the type is known, and for a tensor its shape too."""
    if value.type is None:
        return False
    return not isinstance(value.type, ir.TensorType) or (
        value.shape is not None and value.dtype is not ir.DataType.UNDEFINED
    )


def _window(node: ir.Node) -> list[str]:
    """Return ``node`` and the nodes around it as text, one line each."""
    graph = node.graph
    if graph is None:
        return [f"  > {_line(node)}"]
    nodes = list(graph)
    place = next((i for i, other in enumerate(nodes) if other is node), 0)
    first = max(0, place - _WINDOW)
    return [
        f"  {'>' if other is node else ' '} {first + offset}: {_line(other)}"
        for offset, other in enumerate(nodes[first : place + _WINDOW + 1])
    ]


def _line(node: ir.Node) -> str:
    reads = ", ".join("-" if v is None else str(v.name) for v in node.inputs[:8])
    writes = ", ".join(str(v.name) for v in node.outputs[:8])
    text = f"{writes} = {node.op_type}({reads})  # {node.name}"
    return text if len(text) <= 160 else f"{text[:157]}..."


def check_links(model: ir.Model) -> None:
    """Check points 1 to 4 and 6 only: for a model whose nodes and values may lack names.

    Raises:
        InvariantError: a point does not hold.
    """
    _Checker(model, 0, require_types=False).run()


def check_structure(model: ir.Model, level: int = 1, *, require_types: bool = False) -> None:
    """Check that ``model`` is well-formed, as the head of this file defines it.

    Args:
        model: The model; functions are not looked at.
        level: 1 checks the six points; 2 also that every initializer has the type and shape of
            its data.
        require_types: Also require a type on every value, and a shape on every tensor.

    Raises:
        InvariantError: a point does not hold; the text shows five nodes on either side.
    """
    _Checker(model, max(level, 1), require_types).run()
