"""Wide float results between integer products are computed in parts, so that few floats exist."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ir.constants import constant_of, read_array
from graphopt.ir.op_facts import may_overwrite
from graphopt.ir.program import dims_of, is_onnx, tag
from graphopt.ir.rewrite import sole_user
from graphopt.passes._edit import Edit
from graphopt.pipeline.base import Pass, PassResult

_DOMAIN = "com.microsoft"
# Columns of a part are a multiple of what the kernels of the runtime compute at a time.
_COLUMNS = 16
# Inputs of the product that have one element, or one column, for each column of the result.
_PER_COLUMN = (1, 3, 5, 6)
_LAZY_BYTES = 1 << 16


class Parts(dict[tuple[ir.Value, int, int], ir.Value]):
    """Columns of constants: (constant, first column, number of columns) -> the part."""


@dataclass(frozen=True)
class SplitProducts(Pass):
    """Compute a wide product of integers in parts of its columns, up to where it is narrow again.

    The hidden layer of a transformer is four times as wide as its input, and its floats are the
    largest tensor of a quantized encoder. Computed a part at a time, they need not exist together.

    Fires when:
        1. The result of a ``MatMulIntegerToFloat`` with constant weights, at least ``width`` times
           as wide as its input, is read by one ``QuantizeLinear`` only, with at most two
           elementwise operators of one input between them. ``Concat`` joins the integers of the
           parts, of which there are as few as make each narrower than that.

    Leaves alone:
        1. ``float-reader``: the float result has other readers, or is a graph output.
        2. ``narrow``: the result is less than ``width`` times as wide as the input.
        3. ``shared-weight``: something else reads the weights, or they are computed.
        4. ``uneven``: no such parts have a multiple of 16 columns, or the shape is not known.

    Preserves:
        Every bit of every output: a column of a product does not depend on the others.

    Options:
        width: How many times as wide as the input a result is that is split.

    Example:
        ``q = QuantizeLinear (Gelu (MatMulIntegerToFloat (x, w, ...)))`` becomes two of these chains
        with half of the columns of ``w`` each, and ``q = Concat <axis = -1> (q_part, q_part_1)``.
    """

    name: ClassVar[str] = "split-products"
    runs_after: ClassVar[tuple[str, ...]] = ("insert-qdq",)

    width: int = 2

    def call(self, model: ir.Model) -> PassResult:
        """Split the products of the main graph."""
        edit, known = Edit(self, model), Parts()
        products = [
            node
            for node in model.graph
            if node.op_type == "MatMulIntegerToFloat" and node.domain == _DOMAIN
        ]
        for node in products:
            chain = _chain(node)
            found = self._parts(node) if chain else "float-reader"
            if isinstance(found, str):
                edit.skip(found, node)
            else:
                _split(edit, chain, found, known)
        return edit.result()

    def _parts(self, node: ir.Node) -> int | str:
        """Return the number of parts, or why there are none."""
        weight = node.inputs[1]
        tensor = constant_of(weight)
        constants = [node.inputs[i] for i in _PER_COLUMN if i < len(node.inputs)]
        if tensor is None or weight is None or sole_user(weight) is None or len(tensor.shape) != 2:
            return "shared-weight"
        if any(value is not None and constant_of(value) is None for value in constants):
            return "shared-weight"
        rows, columns = (int(size) for size in tensor.shape.numpy())
        limit = max(2, self.width) * rows
        if columns < limit:
            return "narrow"
        least = columns // limit + 1
        for parts in range(least, 4 * least):
            if columns % (parts * _COLUMNS) == 0 and dims_of(node.outputs[0]) is not None:
                return parts
        return "uneven"


def _chain(node: ir.Node) -> list[ir.Node]:
    """Return the nodes from ``node`` to the one that rounds its result; none if others read it."""
    chain = [node]
    while len(chain) < 4:
        user = sole_user(chain[-1].outputs[0])
        if user is None or user.graph is not node.graph or len(user.outputs) != 1:
            return []
        chain.append(user)
        if is_onnx(user, "QuantizeLinear"):
            scale = user.inputs[1]
            one = scale is not None and scale.shape is not None and len(scale.shape) == 0
            return chain if one else []
        if len(user.inputs) != 1 or (0, 0) not in may_overwrite(user):
            return []
    return []


def _split(edit: Edit, chain: list[ir.Node], parts: int, known: Parts) -> None:
    first, last = chain[0], chain[-1]
    weight = constant_of(first.inputs[1])
    assert weight is not None, "the weights are constant"
    size = int(weight.shape.numpy()[1]) // parts
    old = [value for value in first.inputs if value is not None and value.is_initializer()]
    joined = []
    for part in range(parts):
        value: ir.Value | None = None
        for node in chain:
            inputs = list(node.inputs)
            if node is first:
                for index in _PER_COLUMN:
                    if index < len(inputs):
                        inputs[index] = _columns(edit, known, inputs[index], part * size, size)
            else:
                inputs[0] = value
            value = _copy(edit, node, inputs, size, last)
        joined.append(value)
    axis = ir.AttrInt64("axis", -1)
    edit.insert(last, last.outputs[0], "Concat", joined, [axis], replaced=[last])
    for gone in reversed(chain):
        edit.drop(gone)
    _forget(edit, old)
    edit.rewrites += 1


def _copy(
    edit: Edit, node: ir.Node, inputs: list[ir.Value | None], size: int, before: ir.Node
) -> ir.Value:
    """Insert a copy of ``node`` that makes ``size`` columns; returns its result."""
    attributes = list(node.attributes.values())
    metadata = dict(node.metadata_props)
    new = ir.Node(
        node.domain, node.op_type, inputs, attributes, num_outputs=1, metadata_props=metadata
    )
    old, result = node.outputs[0], new.outputs[0]
    new.name = edit.names.fresh_node(f"{node.name}_part")
    result.name = edit.names.fresh_value(f"{old.name}_part")
    result.type = old.type
    result.shape = None if old.shape is None else ir.Shape([*old.shape[:-1], size])
    assert before.graph is not None, "the node is in a graph"
    before.graph.insert_before(before, tag(new, edit.pass_name, [node]))
    return result


def _columns(
    edit: Edit, known: Parts, value: ir.Value | None, start: int, size: int
) -> ir.Value | None:
    """Return ``size`` columns of a constant from ``start``; one number is for all columns."""
    tensor = constant_of(value)
    if value is None or tensor is None or len(tensor.shape) == 0 or tensor.shape[-1] == 1:
        return value
    if (value, start, size) in known:
        return known[value, start, size]

    def compute() -> ir.TensorProtocol:
        part = read_array(tensor, lambda array: np.array(array[..., start : start + size]))
        return ir.Tensor(part, dtype=tensor.dtype)

    shape = [*tensor.shape.numpy()[:-1], size]
    large = tensor.nbytes > _LAZY_BYTES
    part = ir.LazyTensor(compute, tensor.dtype, ir.Shape(shape)) if large else compute()
    known[value, start, size] = edit.constant(f"{value.name}_part", part)
    return known[value, start, size]


def _forget(edit: Edit, values: list[ir.Value]) -> None:
    """Remove the constants of which only parts are read now."""
    for value in values:
        if not value.uses() and not value.is_graph_output() and value.name:
            edit.model.graph.initializers.pop(value.name, None)
            edit.names.release_value(value.name)
