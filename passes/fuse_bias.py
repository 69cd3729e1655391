"""Constants added per channel become the bias of the node before."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ir.program import dims_of, is_onnx, tag
from graphopt.ir.rewrite import nodes_of, sole_user
from graphopt.passes._edit import Edit
from graphopt.passes._linear import Linear, bias_of, channel_vector, linear_of, set_bias
from graphopt.pipeline.base import Pass, PassResult

_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_GEMM_TYPES = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16)


@dataclass(frozen=True)
class FuseBias(Pass):
    """Make a constant that is added per channel the bias input.

    Fires when:
        1. ``Conv``, ``ConvTranspose`` or ``Gemm`` is followed by ``Add`` or ``Sub`` of a constant
           with one number or one for each channel.
        2. ``MatMul`` of two matrices is followed by such an ``Add``: both become ``Gemm``.

    Leaves alone:
        1. ``output-used-elsewhere``: the result without bias has other readers.
        2. ``weight-not-constant``, ``bias-not-constant``: computed, or quantized.
        3. ``not-per-channel``: the constant has no number for each channel.
        4. ``not-a-matrix``: a ``MatMul`` of higher rank, which ``Gemm`` does not compute.
        5. ``not-finite``: the sum of both biases is infinite in the type of the weights.

    Preserves:
        Outputs within rounding: runtimes add a bias before they round, or after.

    Options:
        None.

    Example:
        ``c = Conv (x, w)``, ``y = Add (c, b)`` with ``float[1, 8, 1, 1] b`` becomes
        ``y = Conv (x, w, y_bias)``.
    """

    name: ClassVar[str] = "fuse-bias"
    runs_after: ClassVar[tuple[str, ...]] = ("lift-constants",)
    preserves_bits: ClassVar[bool] = False

    def call(self, model: ir.Model) -> PassResult:
        """Fuse the biases of ``model``."""
        edit = Edit(self, model)
        for node in nodes_of(model):
            if not is_onnx(node, "Add", "Sub"):
                continue
            for place in (0, 1) if is_onnx(node, "Add") else (0,):
                value = node.inputs[place]
                before = None if value is None else value.producer()
                if before is None or before.graph is not node.graph:
                    continue
                other = node.inputs[1 - place]
                if is_onnx(before, *_LINEAR) and other is not None and other.is_initializer():
                    reason = _fuse(edit, before, node, other)
                    if reason:
                        edit.skip(reason, node)
                    break
        return edit.result()


def _fuse(edit: Edit, before: ir.Node, node: ir.Node, constant: ir.Value) -> str:
    """Fuse ``node`` into ``before``; return why not, or ""."""
    linear = linear_of(before)
    if sole_user(before.outputs[0]) is not node:
        return "output-used-elsewhere"
    if isinstance(linear, str):
        return "not-a-matrix" if linear == "weight-not-a-matrix" else linear
    shift = channel_vector(constant, linear)
    if shift is None:
        return "not-per-channel"
    if is_onnx(before, "MatMul"):
        return _to_gemm(edit, linear, node, constant)
    bias = bias_of(linear)
    if bias is None:
        return "bias-not-constant"
    bias = bias + (-shift if is_onnx(node, "Sub") else shift)
    with np.errstate(over="ignore"):
        rounded = bias.astype(linear.tensor.dtype.numpy()).astype(np.float64)
    if not np.isfinite(rounded).all():
        return "not-finite"
    set_bias(edit, linear, bias)
    edit.redirect(node.outputs[0], before.outputs[0])
    tag(before, edit.pass_name, [before, node])
    edit.drop(node)
    edit.rewrites += 1
    return ""


def _to_gemm(edit: Edit, linear: Linear, node: ir.Node, constant: ir.Value) -> str:
    left = linear.node.inputs[0]
    dims = None if left is None else dims_of(left)
    supported = linear.tensor.dtype in _GEMM_TYPES and is_onnx(node, "Add")
    if dims is None or len(dims) != 2 or linear.rank != 2 or not supported:
        return "not-a-matrix"
    inputs = [left, linear.weight, constant]
    edit.replace([linear.node, node], "Gemm", inputs, [])
    edit.rewrites += 1
    return ""
