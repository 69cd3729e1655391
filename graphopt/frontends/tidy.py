"""What a freshly read graph needs before a pass may rely on it: names, order, plain inputs."""

from collections.abc import Container, Iterator
from typing import Any

import onnx_ir as ir

from graphopt.errors import InvalidModelError
from graphopt.ir.program import Program, bodies_of, graphs_of


def drop_input_initializers(program: Program) -> None:
    """Make constants of the graph inputs that have an initializer.

    Until IR version 3 every initializer had to be an input as well; later it marks a default that
    the caller may replace. A constant is what optimizers and runtimes take it for, once removed
    from the inputs. The inputs of a nested graph are always fed by its node, so there the
    initializer goes.
    """
    for graph in graphs_of(program.graph):
        for value in graph.inputs if graph is not program.graph else ():
            if value.is_initializer():
                del graph.initializers[value.name or ""]
                value.const_value = None
    graph = program.graph
    kept = [value for value in graph.inputs if not value.is_initializer()]
    count = len(graph.inputs) - len(kept)
    if count:
        graph.inputs[:] = kept
        why = "" if program.model.ir_version < 4 else ", so they can no longer be fed"
        program.notes.append(f"{count} inputs with an initializer became constants{why}")


def settle_types(model: ir.Model) -> None:
    """Give initializers the type of their data; forget types and sizes that say nothing."""
    for graph in graphs_of(model.graph):
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None:
                value.type = ir.TensorType(tensor.dtype)
                value.shape = ir.Shape(tensor.shape.numpy())
        for value in _plain_values(graph):
            if value.type is None or _undefined(value.type):
                value.type, value.shape = None, None
            shape = value.shape
            if shape is not None and any(isinstance(d, int) and d < 0 for d in shape.dims):
                value.shape = ir.Shape(
                    [None if isinstance(d, int) and d < 0 else d for d in shape.dims]
                )


def _undefined(value_type: Any) -> bool:
    return isinstance(value_type, ir.TensorType) and value_type.dtype is ir.DataType.UNDEFINED


def _plain_values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def name_nodes(program: Program, *, tell: bool) -> None:
    """Give every node a name that no other node has; the first bearer of a name keeps it.

    Args:
        program: Its nodes are named.
        tell: Whether to note renamed nodes; copies of a function's body repeat names by nature.
    """
    taken: set[str] = set()
    nameless: list[ir.Node] = []
    repeated = 0
    next_number: dict[str, int] = {}
    for graph in graphs_of(program.graph):
        for node in graph:
            if not node.name:
                nameless.append(node)
            elif node.name in taken:
                node.name = _free_name(node.name, taken, next_number)
                repeated += 1
            taken.add(node.name or "")
    for node in nameless:
        node.name = _free_name(node.op_type, taken, next_number)
        taken.add(node.name)
    if repeated and tell:
        program.notes.append(f"{repeated} nodes with the name of another node were renamed")


def _free_name(stem: str, taken: Container[str], next_number: dict[str, int]) -> str:
    number = next_number.get(stem, 1)
    while f"{stem}_{number}" in taken:
        number += 1
    next_number[stem] = number + 1
    return f"{stem}_{number}"


def name_values(model: ir.Model) -> None:
    """Rename inner values that have the name of a value around them, or none.

    Graph inputs and outputs of the main graph keep their names. Unused outputs keep the empty one.
    """
    visible: set[str] = set()
    for value in (*model.graph.inputs, *model.graph.outputs):
        visible.add(value.name or "")
    fixed = {*model.graph.inputs, *model.graph.outputs}
    next_number: dict[str, int] = {}
    # A graph is on the stack twice: to enter it, and with its names to leave it.
    stack: list[tuple[ir.Graph, list[str] | None]] = [(model.graph, None)]
    while stack:
        graph, own = stack.pop()
        if own is not None:
            visible.difference_update(own)
            continue
        own = []
        stack.append((graph, own))
        for value in (*graph.initializers.values(), *_plain_values(graph)):
            if value in fixed:
                continue
            if not value.name and not value.uses() and not value.is_graph_output():
                continue
            if not value.name or value.name in visible:
                taken = _Either(visible, graph.initializers)
                value.name = _free_name(value.name or "value", taken, next_number)
            visible.add(value.name)
            own.append(value.name)
        stack += [(body, None) for node in graph for body in bodies_of(node)]


class _Either:
    """The names of two collections."""

    def __init__(self, first: Container[str], second: Container[str]) -> None:
        self._first = first
        self._second = second

    def __contains__(self, name: object) -> bool:
        return name in self._first or name in self._second


def make_text_plain(model: ir.Model) -> None:
    """Replace documentation and metadata that is no UTF-8 text by what can be read of it."""
    for owner in (model, *graphs_of(model.graph)):
        _plain(owner)
    for graph in graphs_of(model.graph):
        for node in graph:
            _plain(node)
            for attribute in node.attributes.values():
                if isinstance(attribute.doc_string, bytes):
                    attribute.doc_string = _text(attribute.doc_string)
        for value in (*_plain_values(graph), *graph.initializers.values()):
            _plain(value)
    for key in ("producer_name", "producer_version", "domain"):
        if isinstance(getattr(model, key), bytes):
            setattr(model, key, _text(getattr(model, key)))


def _plain(owner: Any) -> None:
    if isinstance(owner.doc_string, bytes):
        owner.doc_string = _text(owner.doc_string)
    properties = owner.metadata_props
    if any(isinstance(t, bytes) for pair in properties.items() for t in pair):
        plain = {_text(key): _text(value) for key, value in properties.items()}
        properties.clear()
        properties.update(plain)


def _text(text: Any) -> str:
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)


def sort_nodes(program: Program) -> None:
    """Sort the nodes so that every value is written before it is read; the order is stable.

    Raises:
        InvalidModelError: there is no such order.
    """
    try:
        for function in program.model.functions.values():
            function.sort()
        program.graph.sort()
    except ValueError as error:
        raise InvalidModelError("graph-cyclic", "nodes wait for each other") from error
    program.notes.append("the nodes were not in an order that can be run, and were sorted")
