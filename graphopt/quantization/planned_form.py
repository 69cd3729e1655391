"""A model in integers as its device runs it: one step a node, integers between the steps.

In: a model in which Q/DQ stands around every node. Out: a copy for planning that no runtime loads:
a node between ``DequantizeLinear`` and ``QuantizeLinear`` reads and makes the integers themselves.
Nodes that only move elements keep their operator where both sides have one scale, so that views and
pieces of a whole are known as such. The others get a domain of their own: of their kernels it is
known what they read and make, and nothing else, neither that they may write over an input.
"""

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from graphopt.ir.constants import array_of
from graphopt.ir.op_facts import is_data_movement
from graphopt.ir.program import is_onnx
from graphopt.ir.rewrite import Rewriter, sole_user

DOMAIN = "graphopt.integer"
_PASS = "planned-form"


def planned_form(model: ir.Model, in_place_ops: Collection[str] = ()) -> ir.Model:
    """Return a copy of ``model`` in which each node computes in integers, where Q/DQ says so.

    Args:
        model: The model as it is emitted.
        in_place_ops: Operators whose integer kernels are known to allow what the facts about the
            float ones say: to write over an input that nobody else reads.
    """
    copy = model.clone()
    copy.meta.update(model.meta)
    edit = Rewriter(copy, _PASS)
    for node in tuple(copy.graph):
        if is_onnx(node, "QuantizeLinear"):
            _convert(edit, node)
        elif not is_onnx(node, "DequantizeLinear"):
            _fuse(edit, node, in_place_ops)
    _drop_unread(edit)
    copy.graph.opset_imports.setdefault(DOMAIN, 1)
    return copy


def _dequantizer(value: ir.Value | None) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and is_onnx(node, "DequantizeLinear") else None


def _quantizer(value: ir.Value) -> ir.Node | None:
    user = sole_user(value)
    return user if user is not None and is_onnx(user, "QuantizeLinear") else None


def _convert(edit: Rewriter, node: ir.Node) -> None:
    """Make one step of ``DequantizeLinear`` and ``QuantizeLinear`` that follow each other."""
    before = _dequantizer(node.inputs[0])
    if before is None:
        return
    inputs = [*before.inputs, *node.inputs[1:]]
    edit.replace([node], "Requantize", inputs, [], domain=DOMAIN)


def _fuse(edit: Rewriter, node: ir.Node, in_place_ops: Collection[str]) -> None:
    """Let ``node`` read and make integers, where each float of it is converted."""
    back = [_dequantizer(value) for value in node.inputs]
    made = [value for value in node.outputs if value.name]
    onward = [_quantizer(value) for value in made]
    floats = [v for v in node.inputs if v is not None and _is_float(v)]
    if not any(back) or any(q is None and _is_float(v) for q, v in zip(onward, made, strict=True)):
        return
    # Bytes that mean something else elsewhere are computed anew, not moved.
    moves = is_data_movement(node) and _one_scale([*back, *onward])
    if not moves and len(floats) != sum(one is not None for one in back):
        # A bound or a fill value is a parameter; a float that is computed is not.
        computed = [v for v in floats if _dequantizer(v) is None and not v.is_initializer()]
        if computed:
            return
    extra: list[ir.Value | None] = []
    for index, one in enumerate(back):
        if one is not None:
            node.replace_input_with(index, one.inputs[0])
            extra += one.inputs[1:]
    for value, quantizer in zip(made, onward, strict=True):
        if quantizer is not None:
            _take_over(edit, value, quantizer)
            extra += quantizer.inputs[1:]
    if not moves and node.op_type not in in_place_ops:
        node.domain = DOMAIN
        _read_also(node, extra)


def _one_scale(conversions: list[ir.Node | None]) -> bool:
    """Return whether all of ``conversions`` have one scale and zero point."""
    known = [node.inputs[1:] for node in conversions if node is not None]
    pairs = ((mine, first) for one in known for mine, first in zip(one, known[0], strict=False))
    return all(_equal(mine, first) for mine, first in pairs)


def _equal(left: ir.Value | None, right: ir.Value | None) -> bool:
    if left is right:
        return True
    a, b = array_of(left), array_of(right)
    return a is not None and b is not None and a.dtype == b.dtype and np.array_equal(a, b)


def _is_float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


def _take_over(edit: Rewriter, value: ir.Value, quantizer: ir.Node) -> None:
    """Let ``value`` be the integers that ``quantizer`` made of it."""
    result = quantizer.outputs[0]
    name, value.type = result.name, result.type
    if result.is_graph_output():
        outputs = edit.model.graph.outputs
        for index, output in enumerate(outputs):
            if output is result:
                outputs[index] = value
    for user, index in tuple(result.uses()):
        user.replace_input_with(index, value)
    result.name = None
    edit.drop(quantizer)
    edit.names.release_value(value.name or "")
    value.name = name


def _read_also(node: ir.Node, values: list[ir.Value | None]) -> None:
    """Let ``node`` read scales and zero points, too, each once."""
    known = list(dict.fromkeys(value for value in values if value is not None))
    first = len(node.inputs)
    node.resize_inputs(first + len(known))
    for index, value in enumerate(known, start=first):
        node.replace_input_with(index, value)


def _drop_unread(edit: Rewriter) -> None:
    """Remove conversions that nobody reads any more."""
    for node in reversed(edit.model.graph):
        if not is_onnx(node, "DequantizeLinear"):
            continue
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            edit.drop(node)
