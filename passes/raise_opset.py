"""Models of old opsets are rewritten to opset 13, from which scales per channel exist."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ir.program import dims_of, is_onnx, opset_of, tag
from graphopt.ir.rewrite import nodes_of
from graphopt.passes._edit import Edit
from graphopt.pipeline.base import Pass, PassResult

OPSET = 13
_OLDEST = 7


@dataclass(frozen=True)
class RaiseOpset(Pass):
    """Rewrite a model of opset 7 to 12 in the operators of opset 13.

    Fires when:
        1. The model imports an opset from 7 to 12. Attributes that became inputs become
           constants, ``Upsample`` becomes ``Resize``, ``Softmax`` gets the one axis it works on.

    Leaves alone:
        1. ``softmax-over-several-axes``: an old ``Softmax`` flattens axes, and more than one is
           larger than 1 or of unknown size. The whole model keeps its opset.
        2. ``no-form-in-opset-13``: the operator, or this use of it, ended before. The whole model
           keeps its opset.

    Preserves:
        Every bit of every output.

    Options:
        None.

    Example:
        ``y = Clip <min = 0, max = 6> (x)`` becomes ``y = Clip (x, y_min, y_max)``.
    """

    name: ClassVar[str] = "raise-opset"
    runs_after: ClassVar[tuple[str, ...]] = ("lift-constants",)

    def call(self, model: ir.Model) -> PassResult:
        """Raise the opset of ``model``."""
        edit = Edit(self, model)
        opset = opset_of(model)
        if not _OLDEST <= opset < OPSET:
            return edit.result()
        nodes = [node for node in nodes_of(model) if node.domain in ("", "ai.onnx")]
        blocked = False
        for node in nodes:
            reason = _refusal(node, opset)
            if reason:
                edit.skip(reason, node)
                blocked = True
        if blocked:
            return edit.result()
        for node in nodes:
            convert = _CONVERSIONS.get(node.op_type)
            if convert is not None and convert(edit, node, opset):
                edit.rewrites += 1
        for graph in {id(node.graph): node.graph for node in nodes_of(model)}.values():
            if graph is not None and "" in graph.opset_imports:
                graph.opset_imports[""] = OPSET
        model.graph.opset_imports.pop("ai.onnx", None)
        model.graph.opset_imports[""] = OPSET
        edit.rewrites += 1
        return edit.result()


def _refusal(node: ir.Node, opset: int) -> str:
    """Return why ``node`` has no form in opset 13, or ""."""
    if is_onnx(node, "Softmax", "LogSoftmax", "Hardmax") and _softmax_axis(node) is None:
        return "softmax-over-several-axes"
    ended = is_onnx(node, "Scan") and opset < 9
    spatial = node.attributes.get("spatial")
    ended = ended or (spatial is not None and spatial.as_int() == 0)
    ended = ended or (is_onnx(node, "Upsample") and _mode(node) not in ("nearest", "linear"))
    return "no-form-in-opset-13" if ended else ""


def _softmax_axis(node: ir.Node) -> int | None:
    """Return the one axis that an old ``Softmax`` works on, None for several."""
    value = node.inputs[0]
    dims = None if value is None else dims_of(value)
    attribute = node.attributes.get("axis")
    axis = 1 if attribute is None else attribute.as_int()
    if dims is None:
        return None
    axis += len(dims) if axis < 0 else 0
    large = [index for index in range(axis, len(dims)) if dims[index] != 1]
    return None if len(large) > 1 else large[0] if large else min(axis, len(dims) - 1)


def _mode(node: ir.Node) -> str:
    attribute = node.attributes.get("mode")
    return "nearest" if attribute is None else attribute.as_string()


def _ints(edit: Edit, node: ir.Node, name: str) -> ir.Value | None:
    """Take the integers of attribute ``name`` out of ``node`` and return them as a constant."""
    attribute = node.attributes.pop(name, None)
    if attribute is None:
        return None
    numbers = np.atleast_1d(np.array(attribute.value, np.int64))
    return edit.constant(f"{node.outputs[0].name}_{name}", ir.Tensor(numbers))


def _float(edit: Edit, node: ir.Node, name: str) -> ir.Value | None:
    attribute = node.attributes.pop(name, None)
    value = node.inputs[0]
    if attribute is None or value is None:
        return None
    dtype = value.dtype or ir.DataType.FLOAT
    number = np.array(attribute.as_float(), dtype.numpy())
    return edit.constant(f"{node.outputs[0].name}_{name}", ir.Tensor(number, dtype=dtype))


def _set_inputs(edit: Edit, node: ir.Node, *more: ir.Value | None) -> bool:
    """Give ``node`` further inputs after its first; trailing ones that are missing are left out."""
    kept = list(more)
    while kept and kept[-1] is None:
        kept.pop()
    if not kept:
        return False
    node.resize_inputs(1 + len(kept))
    for index, value in enumerate(kept, start=1):
        node.replace_input_with(index, value)
    tag(node, edit.pass_name, [node])
    return True


def _axes(edit: Edit, node: ir.Node, opset: int) -> bool:
    return _set_inputs(edit, node, _ints(edit, node, "axes"))


def _split(edit: Edit, node: ir.Node, opset: int) -> bool:
    return _set_inputs(edit, node, _ints(edit, node, "split"))


def _slice(edit: Edit, node: ir.Node, opset: int) -> bool:
    if opset >= 10:
        return False
    parts = [_ints(edit, node, name) for name in ("starts", "ends", "axes")]
    return _set_inputs(edit, node, *parts)


def _clip(edit: Edit, node: ir.Node, opset: int) -> bool:
    if opset >= 11:
        return False
    return _set_inputs(edit, node, _float(edit, node, "min"), _float(edit, node, "max"))


def _pad(edit: Edit, node: ir.Node, opset: int) -> bool:
    if opset >= 11:
        return False
    return _set_inputs(edit, node, _ints(edit, node, "pads"), _float(edit, node, "value"))


def _top_k(edit: Edit, node: ir.Node, opset: int) -> bool:
    return opset < 10 and _set_inputs(edit, node, _ints(edit, node, "k"))


def _without(name: str) -> Callable[[Edit, ir.Node, int], bool]:
    """Return a conversion that drops an attribute which says nothing in inference."""

    def convert(edit: Edit, node: ir.Node, opset: int) -> bool:
        return node.attributes.pop(name, None) is not None

    return convert


def _softmax(edit: Edit, node: ir.Node, opset: int) -> bool:
    axis = _softmax_axis(node)
    assert axis is not None, "refused before"
    node.attributes["axis"] = ir.AttrInt64("axis", axis)
    return True


def _upsample(edit: Edit, node: ir.Node, opset: int) -> bool:
    scales = node.inputs[1] if len(node.inputs) > 1 else None
    attribute = node.attributes.get("scales")
    if attribute is not None:
        numbers = np.array(attribute.value, np.float32)
        scales = edit.constant(f"{node.outputs[0].name}_scales", ir.Tensor(numbers))
    return _resized(edit, node, scales)


def _resize(edit: Edit, node: ir.Node, opset: int) -> bool:
    return opset < 11 and _resized(edit, node, node.inputs[1])


def _resized(edit: Edit, node: ir.Node, scales: ir.Value | None) -> bool:
    """Put the ``Resize`` of opset 11, which kept the old grid as an option, in its place."""
    attributes = [
        ir.AttrString("mode", _mode(node)),
        ir.AttrString("coordinate_transformation_mode", "asymmetric"),
    ]
    if _mode(node) == "nearest":
        attributes.append(ir.AttrString("nearest_mode", "floor"))
    edit.replace([node], "Resize", [node.inputs[0], None, scales], attributes)
    return True


def _scatter(edit: Edit, node: ir.Node, opset: int) -> bool:
    edit.replace([node], "ScatterElements", list(node.inputs), list(node.attributes.values()))
    return True


_CONVERSIONS: dict[str, Callable[[Edit, ir.Node, int], bool]] = {
    "BatchNormalization": _without("spatial"),
    "Clip": _clip,
    "Dropout": _without("ratio"),
    "Hardmax": _softmax,
    "LogSoftmax": _softmax,
    "Pad": _pad,
    "ReduceSum": _axes,
    "Resize": _resize,
    "Scatter": _scatter,
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Squeeze": _axes,
    "TopK": _top_k,
    "Unsqueeze": _axes,
    "Upsample": _upsample,
}
