"""Models with nested bodies, in the isolated child: values of branches, nodes of all bodies.

An ``If`` gives what its branches give. So a value inside a branch is seen from outside when it is
one more output of the branch, and of the ``If``; the other branch gives a tensor without elements
in its place, which ONNX allows to have another shape. Branches inside branches follow from the same
rule, from the inside out. What is inside a ``Loop`` or a ``Scan`` has a value for each turn and is
not shown.
"""

from collections import ChainMap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import onnx

# Between the name of a value and a number: what an ``If`` calls it outside.
_MARK = "/outside/"


@dataclass(eq=False)
class _Body:
    """A graph of a model.

    Attributes:
        graph: The graph itself.
        holder: The node that holds it, None for the main graph.
        around: The body that the node is in.
        shown: What its ``If`` is to show: (name in this graph, name of the value, type).
    """

    graph: onnx.GraphProto
    holder: onnx.NodeProto | None = None
    around: "_Body | None" = None
    shown: list[tuple[str, str, int]] = field(default_factory=list)


def add_outputs(model: onnx.ModelProto, names: Iterable[str]) -> None:
    """Make more values outputs of ``model``, also such of branches; see ``shown_name``.

    Raises:
        ValueError: one is inside a loop, or inside a branch and of unknown type; or an output has a
            name that one of them would get.
    """
    present = {info.name for info in model.graph.output}
    wanted = dict.fromkeys(name for name in names if name not in present)
    if any(shown_name(name, wanted) != name for name in present):
        raise ValueError(f"an output has '{_MARK}' in its name, which values of branches get")
    bodies = list(_bodies(model.graph))
    inside = _find(bodies[1:], wanted)
    known = {name for own in inside.values() for name in own}
    for name in wanted:
        if name not in known:
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    for body, own in inside.items():
        types = _types_in(body.graph)
        for name in own:
            if name not in types:
                raise ValueError(f"'{name}' is inside a branch, and its type is not known")
            body.shown.append((name, name, types[name]))
    _show(bodies)


def shown_name(name: str, asked: Iterable[str]) -> str:
    """Return which of the values in ``asked`` the output ``name`` shows, else ``name`` itself."""
    value, mark, _ = name.rpartition(_MARK)
    return value if mark and value in asked else name


def _bodies(graph: onnx.GraphProto) -> Iterator[_Body]:
    """Yield the main graph and every nested one, each behind the one around it."""
    pending = [_Body(graph)]
    while pending:
        body = pending.pop()
        yield body
        inner = [_Body(one, node, body) for node in body.graph.node for one in _graphs_of(node)]
        pending.extend(reversed(inner))


def _graphs_of(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _find(bodies: Iterable[_Body], wanted: Iterable[str]) -> dict[_Body, list[str]]:
    """Return which of ``wanted`` each body makes; of several with one name, the first has it."""
    left = set(wanted)
    found: dict[_Body, list[str]] = {}
    for body in bodies:
        for name in (name for node in body.graph.node for name in node.output):
            if name in left:
                left.discard(name)
                found.setdefault(body, []).append(name)
    return found


def _types_in(graph: onnx.GraphProto) -> dict[str, int]:
    """Return the types of the tensors that ``graph`` tells, by name."""
    types = {i.name: i.type.tensor_type.elem_type for i in (*graph.value_info, *graph.output)}
    return {name: int(data_type) for name, data_type in types.items() if data_type}


def _show(bodies: list[_Body]) -> None:
    """Let each ``If`` give what its branches are to show, from the inside out."""
    number = 0
    for body in reversed(bodies):
        holder = body.holder
        if not body.shown or holder is None:
            continue
        assert body.around is not None, "who has a holder is in its graph"
        if holder.op_type != "If" or holder.domain not in ("", "ai.onnx"):
            raise ValueError(f"'{body.shown[0][1]}' is inside {holder.op_type} '{holder.name}'")
        given = {info.name for info in body.graph.output}
        for inner, value, data_type in body.shown:
            number += 1
            outside = f"{value}{_MARK}{number}"
            for graph in _graphs_of(holder):
                name = f"{outside}/empty"
                if graph is not body.graph:
                    empty = onnx.TensorProto(data_type=data_type, dims=[0])
                    graph.node.append(onnx.helper.make_node("Constant", [], [name], value=empty))
                elif inner in given:
                    # A graph gives no value twice.
                    name = f"{outside}/copy"
                    graph.node.append(onnx.helper.make_node("Identity", [inner], [name]))
                else:
                    name = inner
                info = onnx.helper.make_tensor_value_info(name, data_type, None)
                graph.output.append(info)
            holder.output.append(outside)
            body.around.shown.append((outside, value, data_type))
    for name, _, data_type in bodies[0].shown:
        info = onnx.helper.make_tensor_value_info(name, data_type, None)
        bodies[0].graph.output.append(info)


def flat_nodes(graph: onnx.GraphProto) -> list[dict[str, Any]]:
    """Return the nodes of ``graph`` and of its bodies as plain data.

    Values of bodies that do not see each other may have one name: it is told with a number then.
    """
    nodes: list[dict[str, Any]] = []
    taken: set[str] = set()
    names: dict[_Body, ChainMap[str, str]] = {}
    for number, body in enumerate(_bodies(graph)):
        outer = ChainMap[str, str]() if body.around is None else names[body.around]
        visible = names[body] = outer.new_child()
        for node in body.graph.node:
            for name in node.output:
                visible[name] = f"{name} in graph {number}" if name in taken else name
        taken.update(visible.maps[0])
        nodes += [
            {
                "name": node.name,
                "op": node.op_type,
                "domain": node.domain,
                "inputs": [visible.get(name, name) for name in node.input],
                "outputs": [visible[name] for name in node.output],
            }
            for node in body.graph.node
        ]
    return nodes
