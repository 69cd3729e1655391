"""A transposed matrix is not made where the product that reads it can read it transposed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.ir.dims import Dim, product
from graphopt.ir.program import dims_of, is_onnx, opset_of, set_dims, tag
from graphopt.ir.rewrite import nodes_of
from graphopt.passes._edit import Edit
from graphopt.passes._reshape import target_tensor
from graphopt.pipeline.base import Pass, PassResult

_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
# Since when Shape can leave the last axis out, which also implies a Reshape to size zero.
_FIRST_OPSET_OF_SHAPE_RANGE = 15


@dataclass(frozen=True)
class FuseTranspose(Pass):
    """Merge the ``Transpose`` of a matrix into the ``Gemm`` or ``MatMul`` that multiplies by it.

    The typical case is the last layer of a language model that shares its weight with the
    embedding: the transposed copy can neither be stored (the model would grow by its largest
    weight) nor thrown away.

    Fires when:
        1. A ``Gemm`` reads a transposed matrix: it reads the matrix, with ``transA`` or ``transB``
           turned over.
        2. A ``MatMul`` of two matrices does: it becomes such a ``Gemm``.
        3. The second factor of a ``MatMul`` of higher rank is a transposed matrix: a ``Gemm``
           between two ``Reshape``, which are views.

    Leaves alone:
        1. ``used-elsewhere``: another kind of node reads the transposed matrix, so it is made
           anyway.
        2. ``shape-unknown``: no ``Reshape`` gives the shape of the result back.
        3. ``no-kernel``: the type is none that runtimes have a ``Gemm`` for.

    Preserves:
        Outputs as numbers; a runtime may add the products in another order.

    Options:
        None.

    Example:
        ``t = Transpose <perm = [1, 0]> (w)``, ``y = Gemm (x, t)`` becomes
        ``y = Gemm <transB = 1> (x, w)``.
    """

    name: ClassVar[str] = "fuse-transpose"
    runs_after: ClassVar[tuple[str, ...]] = ("infer-shapes", "fold-constants")
    preserves_bits: ClassVar[bool] = False

    def call(self, model: ir.Model) -> PassResult:
        """Fuse the transposed matrices of ``model``."""
        edit = Edit(self, model)
        for node in nodes_of(model):
            if _turns_a_matrix(node):
                _fuse(edit, node)
        return edit.result()


def _turns_a_matrix(node: ir.Node) -> bool:
    if not is_onnx(node, "Transpose") or node.inputs[0] is None:
        return False
    dims = dims_of(node.inputs[0])
    if dims is None or len(dims) != 2:
        return False
    perm = node.attributes.get("perm")
    return perm is None or tuple(perm.as_ints()) == (1, 0)


def _fuse(edit: Edit, node: ir.Node) -> None:
    turned = node.outputs[0]
    uses = [(use.node, use.idx) for use in turned.uses()]
    if not any(is_onnx(reader, "Gemm", "MatMul") for reader, _ in uses):
        return
    if turned.is_graph_output() or not all(_is_factor(turned, *use) for use in uses):
        edit.skip("used-elsewhere", node)
        return
    if turned.dtype not in _TYPES:
        edit.skip("no-kernel", node)
        return
    readers = list(dict.fromkeys(reader for reader, _ in uses))
    if not all(_has_way_back(edit.model, reader) for reader in readers):
        edit.skip("shape-unknown", node)
        return
    for reader in readers:
        _multiply_as_is(edit, reader, node)
    edit.drop(node)
    edit.rewrites += 1


def _is_factor(turned: ir.Value, reader: ir.Node, index: int) -> bool:
    """Say whether input ``index`` of ``reader`` is a matrix factor that a ``Gemm`` can turn."""
    if is_onnx(reader, "Gemm"):
        return index < 2
    if not is_onnx(reader, "MatMul"):
        return False
    left, right = (None if v is None else dims_of(v) for v in reader.inputs)
    if index == 0 or reader.inputs[0] is turned:
        return right is not None and len(right) == 2
    return left is not None and len(left) >= 2


def _is_product_of_matrices(reader: ir.Node) -> bool:
    left = None if reader.inputs[0] is None else dims_of(reader.inputs[0])
    return is_onnx(reader, "Gemm") or (left is not None and len(left) == 2)


def _has_way_back(model: ir.Model, reader: ir.Node) -> bool:
    """Say whether the rows of a product of higher rank can get their shape back."""
    if _is_product_of_matrices(reader):
        return True
    left = None if reader.inputs[0] is None else dims_of(reader.inputs[0])
    result = dims_of(reader.outputs[0])
    if left is None or result is None or 0 in (*left, *result):
        return False
    if not (isinstance(left[-1], int) and isinstance(result[-1], int)):
        return False
    return _target(result) is not None or opset_of(model) >= _FIRST_OPSET_OF_SHAPE_RANGE


def _target(dims: Sequence[Dim]) -> list[int] | None:
    """Return the constant target of a ``Reshape`` to ``dims``; None with two open dimensions."""
    target = [dim if isinstance(dim, int) else -1 for dim in dims]
    return target if target.count(-1) < 2 else None


def _multiply_as_is(edit: Edit, reader: ir.Node, transpose: ir.Node) -> None:
    """Put a ``Gemm`` of what ``transpose`` reads in the place of ``reader``."""
    matrix, turned = transpose.inputs[0], transpose.outputs[0]
    factors = [matrix if value is turned else value for value in reader.inputs]
    attributes = [a for a in reader.attributes.values() if not a.name.startswith("trans")]
    for name, value in zip(("transA", "transB"), reader.inputs, strict=False):
        if reader.attributes.get_int(name, 0) != (value is turned):
            attributes.append(ir.AttrInt64(name, 1))
    result, replaced = reader.outputs[0], [reader, transpose]
    if _is_product_of_matrices(reader):
        edit.insert(reader, result, "Gemm", factors, attributes, replaced=replaced)
    else:
        rows = _as_rows(edit, reader, replaced)
        shape, back = _way_back(edit, reader, replaced)
        flat = _make(edit, reader, "Gemm", [rows, *factors[1:]], attributes, replaced)
        flat.type = result.type
        set_dims(flat, [(dims_of(rows) or (0,))[0], (dims_of(result) or (0,))[-1]])
        edit.insert(reader, result, "Reshape", [flat, shape], back, replaced=replaced)
    edit.drop(reader)


def _as_rows(edit: Edit, reader: ir.Node, replaced: Sequence[ir.Node]) -> ir.Value:
    """Insert the ``Reshape`` of the left factor to a matrix."""
    left = reader.inputs[0]
    assert left is not None, "a product has two factors"
    dims = dims_of(left) or ()
    columns = dims[-1]
    assert isinstance(columns, int), "it was looked at"
    target = edit.constant(f"{reader.outputs[0].name}_rows", target_tensor([-1, columns]))
    rows = _make(edit, reader, "Reshape", [left, target], [], replaced)
    rows.type = left.type
    set_dims(rows, [product(dims[:-1]), columns])
    return rows


def _way_back(
    edit: Edit, reader: ir.Node, replaced: Sequence[ir.Node]
) -> tuple[ir.Value, list[ir.Attr]]:
    """Return the target of the ``Reshape`` to the shape of the result, and its attributes."""
    result = dims_of(reader.outputs[0]) or ()
    stem = reader.outputs[0].name
    target = _target(result)
    if target is not None:
        return edit.constant(f"{stem}_shape", target_tensor(target)), []
    # Shape looks at no element, so reading the factor keeps nothing alive.
    lead = _make(edit, reader, "Shape", reader.inputs[:1], [ir.AttrInt64("end", -1)], replaced)
    columns = [dim for dim in result[-1:] if isinstance(dim, int)]
    last = edit.constant(f"{stem}_columns", target_tensor(columns))
    shape = _make(edit, reader, "Concat", [lead, last], [ir.AttrInt64("axis", 0)], replaced)
    for value, count in ((lead, len(result) - 1), (shape, len(result))):
        value.type = ir.TensorType(ir.DataType.INT64)
        set_dims(value, [count])
    return shape, [ir.AttrInt64("allowzero", 1)]


def _make(
    edit: Edit,
    before: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Sequence[ir.Attr],
    replaced: Sequence[ir.Node],
) -> ir.Value:
    """Insert a node with a new result."""
    assert before.graph is not None, "the node is in a graph"
    name = edit.names.fresh_node(f"{before.name}_{op_type}")
    node = ir.Node("", op_type, inputs, attributes, num_outputs=1, name=name)
    node.outputs[0].name = edit.names.fresh_value(f"{before.outputs[0].name}_{op_type.lower()}")
    before.graph.insert_before(before, tag(node, edit.pass_name, replaced))
    return node.outputs[0]
