"""Sequences of known length become plain tensors, which can be planned."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ir.constants import ints_of
from graphopt.ir.program import dims_of, is_onnx, opset_of, set_dims, tag
from graphopt.ir.rewrite import nodes_of
from graphopt.passes._edit import Edit
from graphopt.pipeline.base import Pass, PassResult

# Beyond these a sequence is a list of data, not the parts of a network.
_MOST_MEMBERS = 256
_FIRST_OPSET_WITH_INPUTS = 13


@dataclass(frozen=True)
class DissolveSequences(Pass):
    """Replace sequences by the tensors they hold.

    Exporters write ``torch.chunk``, ``split`` and ``unbind`` as sequences, whose bytes nobody can
    plan; a ``Split`` has an output for each part.

    Fires when:
        1. A ``SplitToSequence`` makes parts of known sizes, and a ``SequenceConstruct`` any, that
           only ``SequenceAt`` of a constant position, ``SequenceLength`` and
           ``ConcatFromSequence`` read.

    Leaves alone:
        1. ``size-unknown``: how many parts there are, or their sizes, depends on the data.
        2. ``used-as-sequence``: something else reads the sequence, or it is a result.

    Preserves:
        Every bit of every output.

    Options:
        None.

    Example:
        ``s = SplitToSequence <axis = 1> (x, {2, 2})``, ``y = SequenceAt (s, {1})`` becomes
        ``s_0, y = Split <axis = 1> (x, {2, 2})``.
    """

    name: ClassVar[str] = "dissolve-sequences"
    runs_after: ClassVar[tuple[str, ...]] = ("infer-shapes", "lift-constants")

    def call(self, model: ir.Model) -> PassResult:
        """Dissolve the sequences of ``model``."""
        edit = Edit(self, model)
        for node in nodes_of(model):
            if is_onnx(node, "SplitToSequence", "SequenceConstruct"):
                _dissolve(edit, node)
        return edit.result()


def _dissolve(edit: Edit, node: ir.Node) -> None:
    sequence = node.outputs[0]
    sizes = None
    if node.op_type == "SplitToSequence":
        sizes = _sizes(node)
        if sizes is None:
            edit.skip("size-unknown", node)
            return
    count = len(node.inputs) if sizes is None else len(sizes)
    readers = list(dict.fromkeys(use.node for use in sequence.uses()))
    if sequence.is_graph_output() or not all(_is_plain(user, sequence, count) for user in readers):
        edit.skip("used-as-sequence", node)
        return
    if not readers:
        return
    members = [value for value in node.inputs if value is not None]
    if sizes is not None:
        members = _split(edit, node, sizes)
    for reader in readers:
        _serve(edit, reader, node, members)
    edit.drop(node)
    edit.rewrites += 1


def _is_plain(reader: ir.Node, sequence: ir.Value, count: int) -> bool:
    """Say whether ``reader`` asks a sequence of ``count`` tensors for something that is known."""
    if is_onnx(reader, "SequenceAt"):
        place = ints_of(reader.inputs[1])
        return reader.inputs[0] is sequence and place is not None and -count <= place[0] < count
    if is_onnx(reader, "ConcatFromSequence"):
        if reader.attributes.get_int("new_axis", 0) and dims_of(reader.outputs[0]) is None:
            return False
        # A joint of nothing is an error that the runtime has to raise.
        return count > 0
    return is_onnx(reader, "SequenceLength")


def _sizes(node: ir.Node) -> list[int] | None:
    """Return the size of every part along the axis; None when it depends on the data."""
    dims = dims_of(node.inputs[0]) if node.inputs[0] is not None else None
    if dims is None:
        return None
    whole = dims[_axis(node, len(dims))]
    lengths = node.inputs[1] if len(node.inputs) > 1 else None
    if lengths is None:
        sizes: list[int] | None = [1] * whole if isinstance(whole, int) else None
    else:
        numbers, rank = ints_of(lengths), dims_of(lengths)
        if numbers is None or rank is None:
            return None
        sizes = list(numbers)
        if not rank:
            step = numbers[0]
            if step < 1 or not isinstance(whole, int):
                return None
            if -(-whole // step) > _MOST_MEMBERS:
                return None
            sizes = [min(step, whole - start) for start in range(0, whole, step)]
    return sizes if sizes and len(sizes) <= _MOST_MEMBERS else None


def _split(edit: Edit, node: ir.Node, sizes: Sequence[int]) -> list[ir.Value]:
    """Insert a ``Split`` before ``node``; return its outputs, without the axis where it goes."""
    data = node.inputs[0]
    assert data is not None, "its sizes were looked at"
    assert node.graph is not None, "the node is in a graph"
    dims = dims_of(data) or ()
    axis = _axis(node, len(dims))
    stem = node.outputs[0].name or "split"
    inputs, attributes = _with_numbers(edit, [data], "split", list(sizes), stem)
    split = ir.Node(
        "",
        "Split",
        inputs,
        [ir.AttrInt64("axis", axis), *attributes],
        num_outputs=len(sizes),
        name=node.name,
        metadata_props=dict(node.metadata_props),
    )
    for index, (part, size) in enumerate(zip(split.outputs, sizes, strict=True)):
        part.name = edit.names.fresh_value(f"{stem}_{index}")
        part.type = data.type
        set_dims(part, [*dims[:axis], size, *dims[axis + 1 :]])
    node.graph.insert_before(node, tag(split, edit.pass_name, [node]))
    drops_axis = len(node.inputs) < 2 and not node.attributes.get_int("keepdims", 1)
    if not drops_axis:
        return list(split.outputs)
    return [_reshaped(edit, node, "Squeeze", part, axis) for part in split.outputs]


def _reshaped(edit: Edit, node: ir.Node, op_type: str, part: ir.Value, axis: int) -> ir.Value:
    """Insert a ``Squeeze`` or ``Unsqueeze`` of ``part`` at ``axis`` before ``node``."""
    assert node.graph is not None, "the node is in a graph"
    stem = part.name or "part"
    inputs, attributes = _with_numbers(edit, [part], "axes", [axis], stem)
    name = edit.names.fresh_node(f"{node.name}_{op_type}")
    made = ir.Node("", op_type, inputs, attributes, num_outputs=1, name=name)
    dims = dims_of(part)
    value = made.outputs[0]
    value.name = edit.names.fresh_value(f"{stem}_{op_type.lower()}d")
    value.type = part.type
    if dims is not None:
        rest = dims[axis + 1 :] if op_type == "Squeeze" else (1, *dims[axis:])
        set_dims(value, [*dims[:axis], *rest])
    node.graph.insert_before(node, tag(made, edit.pass_name, [node]))
    return value


def _with_numbers(
    edit: Edit, inputs: list[ir.Value | None], name: str, numbers: list[int], stem: str
) -> tuple[list[ir.Value | None], list[ir.Attr]]:
    """Return inputs and attributes with ``numbers`` where the opset wants them."""
    if opset_of(edit.model) < _FIRST_OPSET_WITH_INPUTS:
        return inputs, [ir.AttrInt64s(name, numbers)]
    tensor = ir.Tensor(np.array(numbers, dtype=np.int64), dtype=ir.DataType.INT64)
    return [*inputs, edit.constant(f"{stem}_{name}", tensor)], []


def _serve(edit: Edit, reader: ir.Node, node: ir.Node, members: Sequence[ir.Value]) -> None:
    """Give the readers of ``reader``, which asks the sequence, what it asked for."""
    result = reader.outputs[0]
    if reader.op_type == "SequenceLength":
        length = ir.Tensor(np.array(len(members), dtype=np.int64), dtype=ir.DataType.INT64)
        constant = edit.constant(f"{result.name}_length", length)
        edit.insert(reader, result, "Identity", [constant], replaced=[reader, node])
    elif reader.op_type == "SequenceAt":
        (place,) = ints_of(reader.inputs[1]) or (0,)
        member = members[place]
        if not edit.redirect(result, member):
            edit.insert(reader, result, "Identity", [member], replaced=[reader, node])
    else:
        axis = reader.attributes.get_int("axis", 0)
        parts = list(members)
        if reader.attributes.get_int("new_axis", 0):
            axis %= len(dims_of(result) or (1,))
            parts = [_reshaped(edit, reader, "Unsqueeze", part, axis) for part in parts]
        attributes = [ir.AttrInt64("axis", axis)]
        edit.insert(reader, result, "Concat", parts, attributes, replaced=[reader, node])
    edit.drop(reader)


def _axis(node: ir.Node, rank: int) -> int:
    axis = node.attributes.get_int("axis", 0)
    return axis + rank if axis < 0 else axis
