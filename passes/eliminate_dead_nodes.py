"""What nobody reads goes away: nodes, optional outputs, initializers, imported operator sets."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.ir.op_facts import has_side_effects, optional_outputs
from graphopt.ir.program import graphs_of
from graphopt.ir.rewrite import nodes_of
from graphopt.passes._edit import Edit
from graphopt.pipeline.base import Pass, PassResult


@dataclass(frozen=True)
class EliminateDeadNodes(Pass):
    """Remove nodes, optional outputs, initializers and operator sets that nobody uses.

    Fires when:
        1. No output of a node is read or is a graph output.
        2. An optional output is neither (``LSTM``, ``MaxPool``, ``Dropout``, ...): it is left out,
           so that no runtime writes it.
        3. An initializer is neither, and is no graph input.
        4. No node uses an imported operator set other than the default one.

    Leaves alone:
        1. ``unknown-operator``: an unused node of an operator that graphopt does not know, or with
           one in its bodies; it may have an effect besides its outputs.

    Preserves:
        Every bit of every output; names and types of graph inputs and outputs.

    Options:
        None.

    Example:
        ``y, mask = Dropout (x)`` of which only ``y`` is read becomes ``y = Dropout (x)``.
    """

    name: ClassVar[str] = "eliminate-dead-nodes"

    def call(self, model: ir.Model) -> PassResult:
        """Remove what is unused in ``model``."""
        edit = Edit(self, model)
        # Inner graphs first: what they drop may be the last reader of an outer value. Within a
        # graph readers come last, so one sweep from the end removes whole chains.
        for graph in reversed(list(graphs_of(model.graph))):
            for node in reversed(graph):
                _visit(edit, node)
        for graph in graphs_of(model.graph):
            for name, value in tuple(graph.initializers.items()):
                if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
                    del graph.initializers[name]
                    edit.rewrites += 1
        _drop_imports(edit)
        return edit.result()


def _is_read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _visit(edit: Edit, node: ir.Node) -> None:
    read = [_is_read(value) for value in node.outputs]
    if not any(read):
        if has_side_effects(node):
            edit.skip("unknown-operator", node, f"{node.domain}.{node.op_type}")
            return
        edit.drop(node)
        edit.rewrites += 1
        return
    if all(read):
        return
    for index in optional_outputs(node):
        if index < len(node.outputs) and not read[index] and node.outputs[index].name != "":
            value = node.outputs[index]
            # An empty name is how ONNX writes an output that is not made.
            value.name, value.type, value.shape = "", None, None
            edit.rewrites += 1
    count = len(node.outputs)
    while count and node.outputs[count - 1].name == "":
        count -= 1
    if count < len(node.outputs):
        node.resize_outputs(count)


def _drop_imports(edit: Edit) -> None:
    model = edit.model
    used = {"", "ai.onnx"}
    used.update(node.domain for node in nodes_of(model))
    for function in model.functions.values():
        used.add(function.domain)
        used.update(node.domain for node in function.all_nodes())
    for domain in sorted(set(model.graph.opset_imports) - used):
        del model.graph.opset_imports[domain]
        edit.rewrites += 1
