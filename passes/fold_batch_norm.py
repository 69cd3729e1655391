"""Batch normalizations and per-channel factors disappear into the weights in front of them."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ir.constants import Array
from graphopt.ir.op_facts import is_inference_batch_norm
from graphopt.ir.program import is_onnx, tag
from graphopt.ir.rewrite import nodes_of, sole_user
from graphopt.passes._edit import Edit
from graphopt.passes._linear import (
    Linear,
    bias_of,
    channel_vector,
    linear_of,
    scale_weight,
    set_bias,
)
from graphopt.pipeline.base import Pass, PassResult

_LINEAR = ("Conv", "ConvTranspose", "Gemm")


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold a ``BatchNormalization``, or a constant factor per channel, into the weights before it.

    Fires when:
        1. ``Conv``, ``ConvTranspose`` or ``Gemm``, grouped or with transposed weights too, is
           followed by a ``BatchNormalization`` with constant parameters; a missing bias is added.
        2. The same, or a ``MatMul`` by a matrix, is followed by ``Mul`` or ``Div`` by a constant
           with one number or one for each channel.

    Leaves alone:
        1. ``output-used-elsewhere``: the unscaled result has other readers.
        2. ``weight-not-constant``, ``bias-not-constant``: computed, or quantized.
        3. ``weight-shared``: another node reads the weight; scaling a copy would grow the model.
        4. ``parameters-not-constant``: the normalization computes its parameters.
        5. ``training-mode``: the normalization uses the statistics of the batch.
        6. ``not-per-channel``: the factor is no number for each channel, or ``spatial`` is 0.
        7. ``not-finite``: a factor or the new bias is infinite in the type of the weights.

    Preserves:
        Outputs within rounding: weights are scaled in double precision and rounded once. Weights of
        more than 64 KiB are scaled when they are read.

    Options:
        None.

    Example:
        ``c = Conv (x, w)``, ``y = BatchNormalization (c, scale, b, mean, var)`` becomes
        ``y = Conv (x, w, y_bias)``.
    """

    name: ClassVar[str] = "fold-batch-norm"
    runs_after: ClassVar[tuple[str, ...]] = ("lift-constants",)
    preserves_bits: ClassVar[bool] = False

    def call(self, model: ir.Model) -> PassResult:
        """Fold the normalizations of ``model``."""
        edit = Edit(self, model)
        for node in nodes_of(model):
            for place in _places(node):
                value = node.inputs[place]
                before = None if value is None else value.producer()
                if before is None or before.graph is not node.graph:
                    continue
                accepted = (*_LINEAR, "MatMul") if is_onnx(node, "Mul", "Div") else _LINEAR
                if is_onnx(before, *accepted):
                    reason = _fold(edit, before, node, place)
                    if reason:
                        edit.skip(reason, node)
                    break
        return edit.result()


def _places(node: ir.Node) -> tuple[int, ...]:
    """Return the inputs of ``node`` that may be the result of a linear node."""
    if is_onnx(node, "BatchNormalization"):
        return (0,)
    constant = [value is not None and value.is_initializer() for value in node.inputs]
    if is_onnx(node, "Div") and constant[1]:
        return (0,)
    if is_onnx(node, "Mul") and any(constant):
        return (1,) if constant[0] else (0,)
    return ()


def _fold(edit: Edit, before: ir.Node, node: ir.Node, place: int) -> str:
    """Fold ``node`` into ``before``; return why not, or ""."""
    linear = linear_of(before)
    if sole_user(before.outputs[0]) is not node:
        return "output-used-elsewhere"
    if isinstance(linear, str):
        return "weight-not-constant"
    if sole_user(linear.weight) is not before:
        return "weight-shared"
    found = _affine(node, linear, place)
    if isinstance(found, str):
        return found
    factor, shift = found
    bias = bias_of(linear)
    if bias is None:
        return "bias-not-constant"
    with np.errstate(over="ignore", invalid="ignore"):
        bias = bias * factor + shift
        rounded = np.stack([bias, factor]).astype(linear.tensor.dtype.numpy())
    if not np.isfinite(rounded.astype(np.float64)).all():
        return "not-finite"
    scale_weight(linear, factor)
    if bias.any() or (len(before.inputs) > 2 and before.inputs[2] is not None):
        set_bias(edit, linear, bias)
    edit.redirect(node.outputs[0], before.outputs[0])
    tag(before, edit.pass_name, [before, node])
    edit.drop(node)
    edit.rewrites += 1
    return ""


def _affine(node: ir.Node, linear: Linear, place: int) -> tuple[Array, Array] | str:
    """Return the factor and the shift for each channel that ``node`` applies, or why not."""
    if not is_onnx(node, "BatchNormalization"):
        factor = channel_vector(node.inputs[1 - place], linear)
        if factor is None:
            return "not-per-channel"
        with np.errstate(divide="ignore"):
            factor = 1 / factor if is_onnx(node, "Div") else factor
        return factor, np.zeros_like(factor)
    if not is_inference_batch_norm(node):
        return "training-mode"
    spatial = node.attributes.get("spatial")
    if spatial is not None and spatial.as_int() == 0:
        return "not-per-channel"
    vectors = [
        None if v is None or v.shape is None or len(v.shape) != 1 else _on_channels(v, linear)
        for v in node.inputs[1:5]
    ]
    scale, shift, mean, variance = vectors
    if scale is None or shift is None or mean is None or variance is None:
        return "parameters-not-constant"
    epsilon = node.attributes.get("epsilon")
    # The default of ONNX is the 32-bit number nearest to 1e-5.
    widened = variance + float(np.float32(1e-5 if epsilon is None else epsilon.as_float()))
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = scale / np.sqrt(widened)
        return factor, shift - mean * factor


def _on_channels(value: ir.Value, linear: Linear) -> Array | None:
    """Return a parameter vector, which lies along the channels whatever the rank."""
    flat = Linear(linear.node, linear.weight, linear.tensor, linear.channels, 1, 0)
    return channel_vector(value, flat)
