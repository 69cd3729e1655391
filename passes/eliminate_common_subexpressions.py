"""Nodes that compute what an earlier node computed go away.

One forward sweep with a table of the expressions seen; nested graphs see the tables of the graphs
around them, in the state at the node that holds them. ``onnx_ir`` has a pass of that name; it does
not look into nested graphs, merges operators of unknown domains and misses some random ones.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.ir.constants import read_array
from graphopt.ir.op_facts import is_deterministic
from graphopt.ir.program import bodies_of, is_onnx
from graphopt.ir.rewrite import scoped_nodes
from graphopt.passes._edit import Edit
from graphopt.pipeline.base import Pass, PassResult

_MOST_ATTRIBUTE_BYTES = 4096


@dataclass(frozen=True)
class EliminateCommonSubexpressions(Pass):
    """Remove a node that an earlier node equals: same operator, inputs and attributes.

    Fires when:
        1. An earlier node of the same graph, or of a graph around it, has the same operator, reads
           the same values, has equal attributes and makes the same outputs. The operands of
           ``Add`` and ``Mul`` may be swapped.

    Leaves alone:
        1. ``not-deterministic``: random operators, ``Dropout`` that trains, unknown operators.
        2. ``graph-output``: the result has a name to keep, and so has the earlier one, or the
           earlier one belongs to another graph.
        3. Nodes that hold graphs, and attributes with tensors over 4 KiB, are not compared.

    Preserves:
        Every bit of every output; names and types of graph inputs and outputs.

    Options:
        None.

    Example:
        ``a = Relu (x)``, ``b = Relu (x)`` becomes ``a = Relu (x)``; readers of ``b`` read ``a``.
    """

    name: ClassVar[str] = "eliminate-common-subexpressions"

    def call(self, model: ir.Model) -> PassResult:
        """Merge equal nodes of ``model``."""
        edit = Edit(self, model)
        for node, tables in scoped_nodes(model):
            key = None if bodies_of(node) else _key(node)
            if key is None:
                continue
            earlier = next((table[key] for table in tables if key in table), None)
            if earlier is None:
                tables[-1][key] = node
            else:
                _merge(edit, node, earlier)
        return edit.result()


def _merge(edit: Edit, node: ir.Node, earlier: ir.Node) -> None:
    pairs = list(zip(node.outputs, earlier.outputs, strict=True))
    if not is_deterministic(node):
        edit.skip("not-deterministic", node)
    elif not all(edit.can_redirect(old, new) for old, new in pairs):
        edit.skip("graph-output", node)
    else:
        for old, new in pairs:
            edit.redirect(old, new)
        edit.drop(node)
        edit.rewrites += 1


def _key(node: ir.Node) -> Hashable | None:
    inputs = [0 if value is None else id(value) for value in node.inputs]
    if is_onnx(node, "Add", "Mul"):
        inputs.sort()
    attributes = []
    for name, attribute in sorted(node.attributes.items()):
        frozen = _frozen(attribute)
        if frozen is None:
            return None
        attributes.append((name, attribute.type.name, frozen))
    outputs = tuple(bool(value.name) for value in node.outputs)
    identity = (node.domain, node.op_type, node.overload)
    return (identity, tuple(inputs), tuple(attributes), outputs)


def _frozen(attribute: ir.Attr) -> Hashable | None:
    """Return the value of an attribute in a form that is equal exactly when the bits are."""
    if attribute.is_ref():
        return f"ref {attribute.ref_attr_name}"
    match attribute.type:
        case ir.AttributeType.INT:
            return attribute.as_int()
        case ir.AttributeType.FLOAT:
            return attribute.as_float().hex()  # tells -0.0 from 0.0
        case ir.AttributeType.STRING:
            return attribute.as_string()
        case ir.AttributeType.INTS:
            return tuple(attribute.as_ints())
        case ir.AttributeType.FLOATS:
            return tuple(x.hex() for x in attribute.as_floats())
        case ir.AttributeType.STRINGS:
            return tuple(attribute.as_strings())
        case ir.AttributeType.TENSOR:
            return _frozen_tensor(attribute.as_tensor())
    return None


def _frozen_tensor(tensor: ir.TensorProtocol) -> Hashable | None:
    if tensor.dtype is ir.DataType.STRING or tensor.nbytes > _MOST_ATTRIBUTE_BYTES:
        return None
    content = read_array(tensor, lambda array: array.tobytes())
    return (tensor.dtype.name, tuple(tensor.shape.numpy()), content)
