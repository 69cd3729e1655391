"""A node that pads becomes part of the convolution or pooling that reads the padded tensor."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ir.constants import array_of, ints_of
from graphopt.ir.program import dims_of, is_onnx, tag
from graphopt.ir.rewrite import nodes_of, sole_user
from graphopt.passes._edit import Edit
from graphopt.pipeline.base import Pass, PassResult

# Their results are never below zero.
_NOT_NEGATIVE = ("Relu", "Sigmoid", "HardSigmoid", "Abs", "Exp", "Sqrt", "Softplus", "Softmax")


@dataclass(frozen=True)
class FusePad(Pass):
    """Merge a ``Pad`` into the ``Conv``, ``AveragePool`` or ``MaxPool`` that reads it.

    Fires when:
        1. Zeros are added around the image, and a ``Conv`` reads it.
        2. The same, and an ``AveragePool`` without padding, or that counts its padding, reads it:
           it counts the padding then.
        3. A ``MaxPool`` reads it, and what is added is minus infinity, or zero where no element
           can be negative.

    Leaves alone:
        1. ``used-elsewhere``: the padded tensor has other readers.
        2. ``not-constant``: pads or value are computed, or the padding repeats the image.
        3. ``not-neutral``: the value changes the result.
        4. ``not-around-the-image``: batch or channels are padded, or a pad is negative.
        5. ``window-inside-padding``: pooling would see windows of nothing but padding.
        6. ``other-padding``: ``auto_pad`` or ``ceil_mode``, or padding that is not counted.
        7. ``indices-used``: the positions that ``MaxPool`` returns would move.

    Preserves:
        Outputs as numbers; a runtime may add the products in another order.

    Options:
        None.

    Example:
        ``p = Pad (x, {0,0,1,1, 0,0,1,1})``, ``y = Conv (p, w)`` becomes
        ``y = Conv <pads = [1, 1, 1, 1]> (x, w)``.
    """

    name: ClassVar[str] = "fuse-pad"
    runs_after: ClassVar[tuple[str, ...]] = ("lift-constants",)
    preserves_bits: ClassVar[bool] = False

    def call(self, model: ir.Model) -> PassResult:
        """Fuse the padding of ``model``."""
        edit = Edit(self, model)
        for node in nodes_of(model):
            if not is_onnx(node, "Conv", "AveragePool", "MaxPool"):
                continue
            # One after the other where several pad in a row.
            pad = _pad_before(node)
            while pad is not None:
                reason = _fuse(edit, pad, node)
                if reason:
                    edit.skip(reason, node)
                    break
                pad = _pad_before(node)
        return edit.result()


def _pad_before(node: ir.Node) -> ir.Node | None:
    """Return the ``Pad`` that makes what ``node`` reads, if it is in the same graph."""
    before = None if node.inputs[0] is None else node.inputs[0].producer()
    if before is None or not is_onnx(before, "Pad") or before.graph is not node.graph:
        return None
    return before


def _fuse(edit: Edit, pad: ir.Node, node: ir.Node) -> str:
    """Fuse ``pad`` into ``node``; return why not, or ""."""
    source = pad.inputs[0]
    if sole_user(pad.outputs[0]) is not node or source is None:
        return "used-elsewhere"
    mode = pad.attributes.get("mode")
    pads, value = _pads(pad), _value(pad)
    if (mode is not None and mode.as_string() != "constant") or pads is None or value is None:
        return "not-constant"
    begin, end = pads
    if any(begin[:2] + end[:2]) or min(begin + end) < 0:
        return "not-around-the-image"
    if not (value == 0 and (is_onnx(node, "Conv", "AveragePool") or _is_not_negative(source))) and (
        not (is_onnx(node, "MaxPool") and value == -np.inf)
    ):
        return "not-neutral"
    added = begin[2:] + end[2:]
    reason = _refusal(node, added)
    if reason:
        return reason
    old = node.attributes.get("pads")
    total = [a + b for a, b in zip(added, old.as_ints() if old else [0] * len(added), strict=True)]
    node.attributes.pop("auto_pad", None)
    node.attributes["pads"] = ir.AttrInt64s("pads", total)
    if is_onnx(node, "AveragePool"):
        node.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)
    node.replace_input_with(0, source)
    tag(node, edit.pass_name, [pad, node])
    edit.drop(pad)
    edit.rewrites += 1
    return ""


def _refusal(node: ir.Node, added: list[int]) -> str:
    """Return why ``node`` cannot pad by itself, or ""."""
    attributes = node.attributes
    auto = attributes.get("auto_pad")
    if auto is not None and auto.as_string() not in ("NOTSET", "VALID"):
        return "other-padding"
    if is_onnx(node, "Conv"):
        return ""
    ceil, old = attributes.get("ceil_mode"), attributes.get("pads")
    if ceil is not None and ceil.as_int():
        return "other-padding"
    if is_onnx(node, "MaxPool") and len(node.outputs) > 1 and node.outputs[1].name:
        return "indices-used"
    counted = attributes.get("count_include_pad")
    uncounted = counted is None or not counted.as_int()
    if is_onnx(node, "AveragePool") and uncounted and old is not None and any(old.as_ints()):
        return "other-padding"
    kernel = attributes["kernel_shape"].as_ints()
    total = [a + b for a, b in zip(added, old.as_ints() if old else [0] * len(added), strict=True)]
    if any(t >= k for t, k in zip(total, (*kernel, *kernel), strict=True)):
        return "window-inside-padding"
    return ""


def _pads(pad: ir.Node) -> tuple[list[int], list[int]] | None:
    """Return what is added before and after each axis, None when it is computed."""
    attribute = pad.attributes.get("pads")
    if attribute is not None:
        widths = tuple(attribute.as_ints())
        return list(widths[: len(widths) // 2]), list(widths[len(widths) // 2 :])
    found = ints_of(pad.inputs[1]) if len(pad.inputs) > 1 else None
    dims = None if pad.inputs[0] is None else dims_of(pad.inputs[0])
    if found is None or dims is None:
        return None
    rank = len(dims)
    axes: tuple[int, ...] | None = tuple(range(rank))
    if len(pad.inputs) > 3 and pad.inputs[3] is not None:
        axes = ints_of(pad.inputs[3])
    if axes is None:
        return None
    begin, end = [0] * rank, [0] * rank
    for index, axis in enumerate(axes):
        begin[axis], end[axis] = found[index], found[index + len(axes)]
    return begin, end


def _value(pad: ir.Node) -> float | None:
    """Return the number that is added, None when it is computed."""
    attribute = pad.attributes.get("value")
    if attribute is not None:
        return attribute.as_float()
    if len(pad.inputs) < 3 or pad.inputs[2] is None:
        return 0.0
    array = array_of(pad.inputs[2])
    return None if array is None else float(array.astype(np.float64).item())


def _is_not_negative(value: ir.Value) -> bool:
    node = value.producer()
    if node is None:
        return False
    if is_onnx(node, "Clip"):
        attribute = node.attributes.get("min")
        if attribute is not None:
            return attribute.as_float() >= 0
        low = array_of(node.inputs[1]) if len(node.inputs) > 1 else None
        return low is not None and bool((low >= 0).all())
    return is_onnx(node, *_NOT_NEGATIVE)
