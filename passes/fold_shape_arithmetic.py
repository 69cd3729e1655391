"""Tensors that hold sizes become constants where shape inference knows what they hold."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ir.constants import constant_of, ints_of
from graphopt.ir.program import bounds_in, dims_of, is_onnx, tag
from graphopt.ir.rewrite import nodes_of, scoped_nodes
from graphopt.ir.shapes import KnownTensor
from graphopt.passes._edit import Edit
from graphopt.passes._infer import infer_counted
from graphopt.passes._reshape import reshape_target, target_tensor
from graphopt.pipeline.base import Pass, PassResult

_TO_THE_END = 2**63 - 1
Known = dict[ir.Value, KnownTensor]


@dataclass(frozen=True)
class FoldShapeArithmetic(Pass):
    """Replace computed sizes by constants, so that what computed them dies.

    Fires when:
        1. A node reads a small integer tensor whose elements are all known numbers.
        2. A ``Reshape`` computes its target, and a constant gives the same dimensions: numbers, 0
           where an axis is copied, and at most one -1.
        3. A ``Slice`` computes its ends, and each is a number or the size of its axis.
        4. An ``Expand`` computes its shape, and each entry is a number or the size of its axis.
        5. A small integer tensor holds the same expressions as one that was computed before: its
           readers read that one.

    Leaves alone:
        1. ``graph-output``: the known tensor is a result of its graph.
        2. ``depends-on-input-size``: no constant says it, since two or more sizes are symbols; or
           the rest (-1) of an empty axis would not be defined.

    Preserves:
        Every bit of every output. Nodes that nobody reads any more are left to
        ``eliminate-dead-nodes``.

    Options:
        None.

    Example:
        ``s = Shape (x)``, ``y = Reshape (z, s)`` with ``float[n, 2, 3] x`` and ``float[n, 6] z``
        becomes ``y = Reshape (z, {0, 2, 3})``.
    """

    name: ClassVar[str] = "fold-shape-arithmetic"
    runs_after: ClassVar[tuple[str, ...]] = ("lift-constants",)

    def call(self, model: ir.Model) -> PassResult:
        """Fold the shape arithmetic of ``model``.

        Raises:
            InvalidModelError: the shapes at some node are impossible.
        """
        edit = Edit(self, model)
        report, edit.rewrites = infer_counted(model)
        _fold_numbers(edit, report.known)
        _merge_equal(edit, report.known)
        for node in nodes_of(model):
            rule = _RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            if rule is not None:
                _fold_operand(edit, node, rule, report.known)
        return edit.result()


def _fold_numbers(edit: Edit, known: Known) -> None:
    decided = {
        value: tensor
        for value, tensor in known.items()
        if all(isinstance(size, int) for size in (*tensor.dims, *tensor.entries))
    }
    for value, tensor in decided.items():
        # A reader whose own outputs are all replaced will be dead: leave it what it reads.
        readers = [use for use in value.uses() if not _is_replaced(use.node, decided)]
        node = value.producer()
        if node is None or value.dtype is None:
            continue
        if value.is_graph_output() and not is_onnx(node, "Constant"):
            edit.skip("graph-output", node)
        if not readers:
            continue
        array = np.array(tensor.entries, dtype=value.dtype.numpy()).reshape(tensor.dims)
        constant = edit.constant(f"{value.name}_known", ir.Tensor(array, dtype=value.dtype))
        for user, index in readers:
            user.replace_input_with(index, constant)
        edit.rewrites += 1


def _is_replaced(node: ir.Node, decided: Known) -> bool:
    return all(
        value in decided and not value.is_graph_output() for value in node.outputs if value.name
    )


def _merge_equal(edit: Edit, known: Known) -> None:
    for node, tables in scoped_nodes(edit.model):
        for value in node.outputs:
            tensor = known.get(value)
            if tensor is None or all(isinstance(entry, int) for entry in tensor.entries):
                continue
            key = (value.dtype, tensor.dims, tensor.entries)
            earlier = next((table[key] for table in tables if key in table), None)
            if earlier is None:
                tables[-1][key] = value
            elif value.uses() and not value.is_graph_output():
                edit.redirect(value, earlier)
                edit.rewrites += 1


def _reshape(edit: Edit, node: ir.Node, known: Known) -> tuple[int, list[int] | None] | None:
    source = node.inputs[0]
    before, after = (None if source is None else dims_of(source)), dims_of(node.outputs[0])
    if before is None or after is None or constant_of(node.inputs[1]) is not None:
        return None
    # Dimensions that follow from the contents of the target, not those that the file declares: a
    # file may declare what is only right for the size it was exported with.
    if node.inputs[1] not in known:
        return None
    return 1, reshape_target(before, after, bounds_in(edit.model))


def _slice(edit: Edit, node: ir.Node, known: Known) -> tuple[int, list[int] | None] | None:
    ends = None if len(node.inputs) < 3 or node.inputs[2] is None else known.get(node.inputs[2])
    source = node.inputs[0]
    dims = None if source is None else dims_of(source)
    if ends is None or dims is None or all(isinstance(e, int) for e in ends.entries):
        return None
    count = len(ends.entries)
    axes = ints_of(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] else range(count)
    steps = ints_of(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] else (1,)
    if axes is None or steps is None or min(steps) < 1:
        return 2, None
    found = []
    for axis, end in zip(axes, ends.entries, strict=True):
        if isinstance(end, int):
            found.append(end)
        elif end == dims[axis]:
            found.append(_TO_THE_END)
        else:
            return 2, None
    return 2, found


def _expand(edit: Edit, node: ir.Node, known: Known) -> tuple[int, list[int] | None] | None:
    shape = known.get(node.inputs[1]) if node.inputs[1] is not None else None
    source = node.inputs[0]
    dims = None if source is None else dims_of(source)
    if shape is None or dims is None or all(isinstance(e, int) for e in shape.entries):
        return None
    found = []
    for index, entry in enumerate(reversed(shape.entries)):
        if isinstance(entry, int):
            found.append(entry)
        elif index < len(dims) and dims[len(dims) - 1 - index] == entry:
            found.append(1)
        else:
            return 1, None
    return 1, found[::-1]


Rule = Callable[[Edit, ir.Node, Known], tuple[int, list[int] | None] | None]
# Each returns None where there is nothing to do, else the operand to replace and its elements, None
# for those where no constant will do.
_RULES: dict[str, Rule] = {"Reshape": _reshape, "Slice": _slice, "Expand": _expand}


def _fold_operand(edit: Edit, node: ir.Node, rule: Rule, known: Known) -> None:
    found = rule(edit, node, known)
    if found is None:
        return
    index, elements = found
    if elements is None:
        edit.skip("depends-on-input-size", node)
        return
    operand = node.inputs[index]
    tensor = target_tensor(elements)
    if operand is not None and operand.dtype is ir.DataType.INT32:
        limit = np.iinfo(np.int32).max
        tensor = ir.tensor([min(e, limit) for e in elements], dtype=ir.DataType.INT32)
    constant = edit.constant(f"{node.outputs[0].name}_{node.op_type.lower()}", tensor)
    node.replace_input_with(index, constant)
    # With allowzero, 0 is a size and copies nothing.
    node.attributes.pop("allowzero", None)
    tag(node, edit.pass_name, [node])
    edit.rewrites += 1
