"""Activations become part of the convolution before them, for runtimes that compute both at once.

Not in the default pipeline. ONNX has no operator for it: the result uses ONNX Runtime's own
``com.microsoft.FusedConv``, which other runtimes do not read, tools that quantize or inspect a
graph do not know, and which ONNX Runtime makes by itself when it loads a plain model. An executor
that may write in place needs no second buffer for the activation either. What is left are
executors without in-place writes whose kernels take an activation.
"""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.errors import OptionError
from graphopt.ir.constants import array_of
from graphopt.ir.program import is_onnx
from graphopt.ir.rewrite import nodes_of, sole_user
from graphopt.passes._edit import Edit
from graphopt.pipeline.base import Pass, PassResult

_DOMAIN = "com.microsoft"
# Defaults of the attributes that FusedConv takes as activation_params, in its order.
_PARAMETERS = {
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
    "LeakyRelu": (("alpha", 0.01),),
    "HardSigmoid": (("alpha", 0.2), ("beta", 0.5)),
}
# Limits of a Clip without bounds: the largest numbers of 32 bits.
_LARGEST = 3.4028234663852886e38


@dataclass(frozen=True)
class FuseActivation(Pass):
    """Turn a ``Conv`` and the activation after it into ``com.microsoft.FusedConv``.

    Fires when:
        1. A ``Conv`` of 32-bit floats is followed by one of ``activations``.

    Leaves alone:
        1. ``output-used-elsewhere``: the result before the activation has other readers.
        2. ``not-float``: the runtime has the fused kernel for 32-bit floats only.
        3. ``bounds-not-constant``: a ``Clip`` that computes its bounds.

    Preserves:
        Outputs within rounding of the runtime.

    Options:
        activations: Operators to fuse, as the target's runtime lists them.

    Example:
        ``c = Conv (x, w)``, ``y = Relu (c)`` becomes
        ``y = com.microsoft.FusedConv <activation = "Relu"> (x, w)``.
    """

    name: ClassVar[str] = "fuse-activation"
    runs_after: ClassVar[tuple[str, ...]] = ("fold-batch-norm", "fuse-bias", "fuse-pad")
    preserves_bits: ClassVar[bool] = False

    activations: tuple[str, ...] = ("Relu", "Clip", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid")

    def call(self, model: ir.Model) -> PassResult:
        """Fuse the activations of ``model``.

        Raises:
            OptionError: ``activations`` names an operator that FusedConv does not have.
        """
        for name in self.activations:
            if name != "Clip" and name not in _PARAMETERS:
                raise OptionError(
                    "activation-unknown",
                    f"'{name}' cannot be fused into a convolution",
                    hint=f"choose from {', '.join(sorted((*_PARAMETERS, 'Clip')))}",
                )
        edit = Edit(self, model)
        for node in nodes_of(model):
            if not is_onnx(node, *self.activations) or not node.inputs:
                continue
            value = node.inputs[0]
            before = None if value is None else value.producer()
            if before is not None and is_onnx(before, "Conv") and before.graph is node.graph:
                reason = _fuse(edit, before, node)
                if reason:
                    edit.skip(reason, node)
        if edit.rewrites:
            model.graph.opset_imports.setdefault(_DOMAIN, 1)
        return edit.result()


def _fuse(edit: Edit, before: ir.Node, node: ir.Node) -> str:
    """Fuse ``node`` into ``before``; return why not, or ""."""
    if sole_user(before.outputs[0]) is not node:
        return "output-used-elsewhere"
    if node.outputs[0].dtype is not ir.DataType.FLOAT:
        return "not-float"
    parameters = _parameters(node)
    if parameters is None:
        return "bounds-not-constant"
    attributes = [*before.attributes.values(), ir.AttrString("activation", node.op_type)]
    if parameters:
        attributes.append(ir.AttrFloat32s("activation_params", parameters))
    edit.replace([before, node], "FusedConv", list(before.inputs), attributes, domain=_DOMAIN)
    edit.rewrites += 1
    return ""


def _parameters(node: ir.Node) -> list[float] | None:
    """Return the numbers that describe the activation, None when they are computed."""
    if not is_onnx(node, "Clip"):
        found = []
        for name, default in _PARAMETERS.get(node.op_type, ()):
            attribute = node.attributes.get(name)
            found.append(default if attribute is None else attribute.as_float())
        return found
    bounds = []
    for index, (name, default) in enumerate((("min", -_LARGEST), ("max", _LARGEST)), start=1):
        attribute = node.attributes.get(name)
        operand = node.inputs[index] if len(node.inputs) > index else None
        if attribute is not None:
            bounds.append(attribute.as_float())
        elif operand is None:
            bounds.append(default)
        else:
            array = array_of(operand)
            if array is None:
                return None
            bounds.append(float(array.item()))
    return bounds
