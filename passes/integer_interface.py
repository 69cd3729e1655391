"""Inputs and outputs become the integers that stand right behind and right in front of them."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ir.constants import array_of
from graphopt.ir.program import is_onnx
from graphopt.passes._edit import Edit
from graphopt.pipeline.base import Pass, PassResult
from graphopt.quantization.interface import Interface, Port, interface_of, record


@dataclass(frozen=True)
class IntegerInterface(Pass):
    """Take the conversions away that float inputs and outputs need.

    Scale and zero point of each are recorded in the metadata of the model, for those who convert
    samples outside of it.

    Fires when:
        1. ``QuantizeLinear`` alone reads a float input: the input becomes what it made.
        2. ``DequantizeLinear`` makes a float output: the output becomes what it read.

    Leaves alone:
        1. ``float-reader``: something else reads the input as floats.
        2. ``also-an-output``: what would become the output is one already.

    Preserves:
        Names and shapes of inputs and outputs; their types change. Integers between them stay.

    Options:
        None.

    Example:
        ``q = QuantizeLinear (x, s, z)`` and ``y = Neg (DequantizeLinear (q, s, z))`` becomes
        ``y = Neg (DequantizeLinear (x, s, z))`` with ``int8 x``.
    """

    name: ClassVar[str] = "integer-interface"
    runs_after: ClassVar[tuple[str, ...]] = ("insert-qdq",)
    preserves_bits: ClassVar[bool] = False
    changes_signature: ClassVar[bool] = True

    def call(self, model: ir.Model) -> PassResult:
        """Make the interface of ``model`` integer."""
        edit = Edit(self, model)
        known = interface_of(model)
        inputs = [port for value in model.graph.inputs if (port := _input(edit, value))]
        outputs = [
            port
            for index, value in enumerate(model.graph.outputs)
            if (port := _output(edit, index, value))
        ]
        edit.rewrites = len(inputs) + len(outputs)
        if edit.rewrites:
            record(model, Interface((*known.inputs, *inputs), (*known.outputs, *outputs)))
        return edit.result()


def _input(edit: Edit, value: ir.Value) -> Port | None:
    """Let ``value`` be what its only reader makes of it; return how it is stored then."""
    users = tuple(value.uses())
    readers = [user.node for user in users if is_onnx(user.node, "QuantizeLinear")]
    if not readers or value.dtype is not ir.DataType.FLOAT:
        return None
    node = readers[0]
    port = _port(value, node)
    if len(users) != 1 or value.is_graph_output() or node.outputs[0].is_graph_output():
        edit.skip("float-reader", node)
        return None
    if port is None:
        return None
    value.type, old = _type_of(port), node.outputs[0]
    for user, index in tuple(old.uses()):
        user.replace_input_with(index, value)
    edit.drop(node)
    return port


def _output(edit: Edit, index: int, value: ir.Value) -> Port | None:
    """Let what makes ``value`` be the output; return how it is stored then."""
    node = value.producer()
    if node is None or not is_onnx(node, "DequantizeLinear"):
        return None
    integers = node.inputs[0]
    assert integers is not None, "DequantizeLinear has an input"
    port, graph = _port(value, node), edit.model.graph
    taken = integers.is_graph_output() or integers.is_graph_input() or integers.is_initializer()
    if taken or sum(output is value for output in graph.outputs) > 1:
        edit.skip("also-an-output", node)
        return None
    if port is None:
        return None
    name = value.name or "value"
    edit.names.release_value(integers.name or "")
    graph.outputs[index] = integers
    if value.uses():
        value.name = edit.names.fresh_value(f"{name}_dequantized")
    else:
        value.name = None
        edit.drop(node)
    integers.name, integers.type = name, _type_of(port)
    if integers.shape is None:
        integers.shape = value.shape
    return port


def _type_of(port: Port) -> ir.TensorType:
    return ir.TensorType(ir.DataType[port.dtype.upper()])


def _port(value: ir.Value, node: ir.Node) -> Port | None:
    """Return how ``node`` converts ``value``; None where that is not by two single numbers."""
    scale = array_of(node.inputs[1])
    zero = array_of(node.inputs[2]) if len(node.inputs) > 2 else np.array(0, np.uint8)
    if scale is None or zero is None or scale.size != 1 or zero.size != 1:
        return None
    numbers = float(scale.reshape(())), int(zero.reshape(()))
    return Port(value.name or "", zero.dtype.name, *numbers)
