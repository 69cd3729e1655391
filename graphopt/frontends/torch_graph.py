"""What the exporter's ONNX graph still needs: states, outputs of their own, distinct names.

The exporter takes names from three places, arguments, attributes and operators, and does not
compare them; it returns whatever value ``forward`` returns, be it an input or returned twice; and
it drops what ``forward`` writes to buffers. Imports nothing of torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.ir.program import graphs_of


@dataclass
class State:
    """A buffer that ``forward`` writes.

    Attributes:
        target: Its name in the module.
        reads: Name of the input that carries it in.
        writes: Name of the output that carries it out.
    """

    target: str
    reads: str
    writes: str


def declare_states(
    model: ir.Model, pairs: list[tuple[str, str]], reads: Mapping[str, str]
) -> list[State]:
    """Put the states behind the caller's own inputs and outputs, under the names of the buffers.

    Args:
        model: Its outputs begin with the values that are written, in the order of ``pairs``.
        pairs: Name of each written buffer, and of the value written to it.
        reads: Name of the input that each buffer is, by name of the buffer.
    """
    graph = model.graph
    inputs = {value.name: value for value in graph.inputs}
    carried = [inputs[reads[target]] for target, _ in pairs]
    states_in = set(carried)
    own = [value for value in graph.inputs if value not in states_in]
    outputs = list(graph.outputs)
    written, returned = outputs[: len(pairs)], outputs[len(pairs) :]
    graph.inputs.clear()
    graph.inputs.extend([*own, *carried])
    graph.outputs.clear()
    graph.outputs.extend([*returned, *written])
    separate_outputs(graph)
    states = []
    written = list(graph.outputs)[len(returned) :]
    taken = {value.name for value in (*own, *graph.outputs[: len(returned)])}
    for (target, _), read, write in zip(pairs, carried, written, strict=True):
        read.name = _free_name(target, taken)
        write.name = _free_name(f"{target}_next", taken)
        states.append(State(target, read.name, write.name))
    return states


def separate_outputs(graph: ir.Graph) -> None:
    """Give every output a value of its own that a node writes, by copies where it needs them."""
    taken = {value.name for value in (*graph.inputs, *graph.outputs)}
    seen: set[ir.Value] = set()
    for index, value in enumerate(list(graph.outputs)):
        if value in seen or value.is_graph_input() or value.is_initializer():
            name = _free_name(f"{value.name}_out", taken)
            copied = ir.Value(name=name, type=value.type, shape=value.shape)
            graph.append(ir.Node("", "Identity", [value], outputs=[copied], name=f"copy_{name}"))
            graph.outputs[index] = copied
        seen.add(value)


def separate_initializers(graph: ir.Graph) -> None:
    """Rename weights that are called like an input or like the result of a node.

    The exporter names the one after attributes of the module, the others after arguments and
    operators, and does not compare them.
    """
    others = {value.name for value in graph.inputs}
    others |= {value.name for inner in graphs_of(graph) for n in inner for value in n.outputs}
    taken: set[str | None] = {*others, *graph.initializers}
    for value in list(graph.initializers.values()):
        if value.name in others:
            value.name = _free_name(str(value.name), taken)


def _free_name(stem: str, taken: set[str | None]) -> str:
    name, count = stem, 1
    while name in taken:
        count += 1
        name = f"{stem}_{count}"
    taken.add(name)
    return name
