"""Slices of different axes in a row become one, so that the larger intermediate is never made."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.ir.constants import ints_of
from graphopt.ir.program import dims_of, is_onnx
from graphopt.ir.rewrite import nodes_of
from graphopt.passes._edit import Edit
from graphopt.pipeline.base import Pass, PassResult


class _Range(NamedTuple):
    start: int
    end: int
    step: int


@dataclass(frozen=True)
class MergeSlices(Pass):
    """Merge a ``Slice`` into the slices that read it.

    Fires when:
        1. All readers of a ``Slice`` are slices of other axes, all with constant bounds: each
           reads the input of the first and cuts both.

    Leaves alone:
        1. ``used-elsewhere``: something else reads the first slice, so it is made anyway.
        2. ``not-constant``: bounds are computed.
        3. ``same-axis``: an axis is cut twice.

    Preserves:
        Every bit of every output.

    Options:
        None.

    Example:
        ``a = Slice (x, {0}, {9}, {2}, {2})``, ``y = Slice (a, {0}, {9}, {3}, {2})`` becomes
        ``y = Slice (x, {0, 0}, {9, 9}, {2, 3}, {2, 2})``.
    """

    name: ClassVar[str] = "merge-slices"
    runs_after: ClassVar[tuple[str, ...]] = ("lift-constants",)

    def call(self, model: ir.Model) -> PassResult:
        """Merge the slices of ``model``."""
        edit = Edit(self, model)
        for node in nodes_of(model):
            if is_onnx(node, "Slice"):
                _merge_into_readers(edit, node)
        return edit.result()


def _merge_into_readers(edit: Edit, first: ir.Node) -> None:
    value = first.outputs[0]
    readers = [use.node for use in value.uses()]
    slices = [node for node in readers if is_onnx(node, "Slice") and node.inputs[0] is value]
    if not slices:
        return
    if value.is_graph_output() or len(slices) < len(readers):
        edit.skip("used-elsewhere", slices[0])
        return
    before = _ranges(first)
    after = [_ranges(node) for node in slices]
    if before is None or any(ranges is None for ranges in after):
        edit.skip("not-constant", slices[0])
        return
    if any(before.keys() & (ranges or {}).keys() for ranges in after):
        edit.skip("same-axis", slices[0])
        return
    for node, ranges in zip(slices, after, strict=True):
        _replace(edit, first, node, {**before, **(ranges or {})})
    edit.drop(first)


def _replace(edit: Edit, first: ir.Node, node: ir.Node, ranges: dict[int, _Range]) -> None:
    axes = sorted(ranges)
    starts, ends, steps = zip(*(ranges[axis] for axis in axes), strict=True)
    columns = {"starts": starts, "ends": ends, "axes": axes, "steps": steps}
    inputs, attributes = [first.inputs[0]], []
    if "starts" in node.attributes:
        # Until opset 9 bounds are attributes, and there are no steps.
        del columns["steps"]
        attributes = [ir.AttrInt64s(name, list(numbers)) for name, numbers in columns.items()]
    else:
        stem = node.outputs[0].name
        for name, numbers in columns.items():
            tensor = ir.Tensor(np.array(numbers, dtype=np.int64), dtype=ir.DataType.INT64)
            inputs.append(edit.constant(f"{stem}_{name}", tensor))
    edit.insert(node, node.outputs[0], "Slice", inputs, attributes, replaced=[node, first])
    edit.drop(node)
    edit.rewrites += 1


def _ranges(node: ir.Node) -> dict[int, _Range] | None:
    """Return what ``node`` cuts by axis, counted from the front; None when it is computed."""
    dims = dims_of(node.outputs[0])
    columns: list[tuple[int, ...] | None] = []
    for index, name in enumerate(("starts", "ends", "axes", "steps"), start=1):
        attribute = node.attributes.get(name)
        value = node.inputs[index] if index < len(node.inputs) else None
        if attribute is not None:
            columns.append(tuple(attribute.as_ints()))
        elif value is not None:
            columns.append(ints_of(value))
        elif columns and columns[0] is not None and index > 2:
            count = len(columns[0])
            columns.append(tuple(range(count)) if name == "axes" else (1,) * count)
        else:
            columns.append(None)
    starts, ends, axes, steps = columns
    if dims is None or starts is None or ends is None or axes is None or steps is None:
        return None
    ranges = (_Range(*bounds) for bounds in zip(starts, ends, steps, strict=True))
    return {axis % len(dims): bounds for axis, bounds in zip(axes, ranges, strict=True)}
