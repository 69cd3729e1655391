"""Constants become initializers of the main graph, where every later pass looks for them."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.ir.constants import tensor_of_constant
from graphopt.ir.program import graphs_of, is_onnx
from graphopt.passes._edit import Edit
from graphopt.pipeline.base import Pass, PassResult


@dataclass(frozen=True)
class LiftConstants(Pass):
    """Turn ``Constant`` nodes and initializers of nested graphs into initializers.

    Fires when:
        1. A ``Constant`` node of any graph holds numbers, in any of its attribute forms.
        2. A nested graph has an initializer of its own.

    Leaves alone:
        1. ``not-a-dense-tensor``: strings, sparse tensors, and attributes of a function.
        2. ``graph-output``: the constant is a result of its graph, whose name must stay.
        3. ``graph-input``: the initializer is the default of an input of its nested graph.

    Preserves:
        Values, types and names; a name that two nested graphs share gets a number.

    Options:
        None.

    Example:
        ``c = Constant <value_ints = [2, 3]> ()`` becomes ``int64[2] c = {2, 3}``.
    """

    name: ClassVar[str] = "lift-constants"

    def call(self, model: ir.Model) -> PassResult:
        """Lift the constants of ``model``."""
        edit = Edit(self, model)
        for graph in graphs_of(model.graph):
            for node in graph:
                if is_onnx(node, "Constant"):
                    _lift_node(edit, node)
            if graph is not model.graph:
                for value in tuple(graph.initializers.values()):
                    _lift_initializer(edit, graph, value)
        return edit.result()


def _lift_node(edit: Edit, node: ir.Node) -> None:
    value = node.outputs[0]
    tensor = tensor_of_constant(node)
    if tensor is None:
        edit.skip("not-a-dense-tensor", node)
        return
    if value.is_graph_output():
        edit.skip("graph-output", node)
        return
    edit.become_constant(value, tensor)
    edit.drop(node)
    edit.rewrites += 1


def _lift_initializer(edit: Edit, graph: ir.Graph, value: ir.Value) -> None:
    tensor = value.const_value
    users = [use.node for use in value.uses()]
    if tensor is None:
        return
    if value.is_graph_output() or value.is_graph_input():
        for user in users[:1]:
            reason = "graph-output" if value.is_graph_output() else "graph-input"
            edit.skip(reason, user, value.name or "")
        return
    del graph.initializers[value.name or ""]
    edit.become_constant(value, tensor)
    edit.rewrites += 1
