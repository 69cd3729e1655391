"""A half-precision program in 32-bit floats, to see on the processor what a target will compute.

Every value that is a half in the program becomes a float32 that holds a number of that type: what a
node computes is rounded by a pair of ``Cast``. So each node computes in float32 and stores a half,
which is what graphics processors do: their matrix kernels add up in float32.
"""

from functools import partial

import onnx_ir as ir

from graphopt.ir.constants import read_array
from graphopt.ir.half_facts import CONTROL_FLOW, FLOAT, rounds_nothing
from graphopt.ir.program import Program, graphs_of, is_onnx
from graphopt.ir.rewrite import Rewriter


def emulated(program: Program, dtype: ir.DataType) -> Program:
    """Return a copy of ``program`` that computes in float32 what it computes in ``dtype``.

    Inputs of ``dtype`` become float32, too; the caller rounds what goes in.
    """
    model = program.model.clone()
    edit = Rewriter(model, "half-emulation")
    for graph in list(graphs_of(model.graph)):
        for value in graph.initializers.values():
            if value.const_value is not None and value.dtype is dtype:
                value.const_value = _widened(value.const_value)
                value.type = ir.TensorType(FLOAT)
        for value in graph.inputs:
            if value.dtype is dtype:
                value.type = ir.TensorType(FLOAT)
        for node in list(graph):
            _emulate(edit, node, dtype)
    return Program(model, dict(program.bounds), program.source, program.states)


def _emulate(edit: Rewriter, node: ir.Node, dtype: ir.DataType) -> None:
    attribute = node.attributes.get("value")
    if is_onnx(node, "Constant", "ConstantOfShape") and attribute is not None:
        tensor = attribute.as_tensor()
        if tensor.dtype is dtype:
            node.attributes["value"] = ir.AttrTensor("value", _widened(tensor))
    if is_onnx(node, "Cast") and node.attributes["to"].as_int() == int(dtype):
        node.attributes["to"] = ir.AttrInt64("to", int(FLOAT))
    exact = rounds_nothing(node) or is_onnx(node, "Constant", *CONTROL_FLOW)
    for value in node.outputs:
        if value.dtype is not dtype:
            continue
        value.type = ir.TensorType(FLOAT)
        if not exact and (value.uses() or value.is_graph_output()):
            _round(edit, node, value, dtype)


def _round(edit: Rewriter, node: ir.Node, value: ir.Value, dtype: ir.DataType) -> None:
    """Let the readers of ``value`` read it rounded to ``dtype``."""
    pair: list[ir.Node] = []
    for number, kind in enumerate((dtype, FLOAT)):
        to = ir.AttrInt64("to", int(kind))
        name = edit.names.fresh_node(f"{value.name}_round_{number}")
        cast = ir.Node("", "Cast", [pair[0].outputs[0] if pair else None], [to], name=name)
        cast.outputs[0].name = edit.names.fresh_value(f"{value.name}_round_{number}")
        cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(kind), value.shape
        pair.append(cast)
    assert node.graph is not None, "the node is in a graph"
    node.graph.insert_after(node, pair)
    stem = f"{value.name}_exact"
    redirected = edit.redirect(value, pair[1].outputs[0])
    assert redirected, "a new value may take any place"
    if value.name is None:
        value.name = edit.names.fresh_value(stem)
    pair[0].replace_input_with(0, value)


def _widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.LazyTensor(
        partial(_float_tensor, tensor), FLOAT, ir.Shape(tensor.shape.numpy()), name=tensor.name
    )


def _float_tensor(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(read_array(tensor, lambda array: array.astype(FLOAT.numpy())))
