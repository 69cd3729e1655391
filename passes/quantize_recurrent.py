"""LSTM layers multiply in integers: weights stored as int8, activations rounded in each run."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

import onnx_ir as ir

from graphopt.ir.constants import constant_of
from graphopt.ir.program import is_onnx, tag
from graphopt.ir.rewrite import nodes_of
from graphopt.passes._edit import Edit
from graphopt.pipeline.base import Pass, PassResult
from graphopt.quantization.recurrent import gate_scales, transposed_integers
from graphopt.quantization.weight_emission import drop_unread
from graphopt.quantization.weights import WeightScheme

DOMAIN = "com.microsoft"
RECURRENT = ("GRU", "LSTM", "RNN")
# Where LSTM has what stands behind its weights, and where the scales of the weights follow.
_PLAIN_INPUTS = 8
_WEIGHTS = (1, 2)


@dataclass(frozen=True)
class QuantizeRecurrent(Pass):
    """Store the weights of ``LSTM`` as int8, one scale a gate and unit, and multiply in integers.

    Fires when:
        1. Both weights of an ``LSTM`` are constants of 32-bit floats: it becomes
           ``com.microsoft::DynamicQuantizeLSTM``, which finds the range of its input and of its
           state in each step, so it needs no calibration.

    Leaves alone:
        1. ``kept``: ``keep`` names the node or its operator.
        2. ``no-operator``: ``GRU`` and ``RNN``; onnxruntime has no integer kernel for them.
        3. ``weight-not-constant``: a weight is computed.
        4. ``type-without-kernel``: weights of another type than 32-bit floats.
        5. ``form-without-kernel``: ``layout`` puts the batch first.
        6. ``small``: both weights together have fewer than ``min_elements`` elements.
        7. ``read-elsewhere``: another operator needs the floats, so integers would come on top.

    Preserves:
        Names, types and shapes of all activations. Numbers change by the rounding of the weights
        and of what they are multiplied with.

    Options:
        reduce_range: Leave room for kernels that add two products in 16 bits.
        min_elements: Layers with fewer weights stay.
        keep: Names of nodes, globs, or operator types to leave alone.

    Example:
        ``y = LSTM (x, w, r, b)`` becomes ``y = com.microsoft.DynamicQuantizeLSTM (x, w_int8,
        r_int8, b, , , , , w_scales, w_zero_points, r_scales, r_zero_points)``.
    """

    name: ClassVar[str] = "quantize-recurrent"
    runs_after: ClassVar[tuple[str, ...]] = ("drop-zero-states", "fold-constants", "lift-constants")
    preserves_bits: ClassVar[bool] = False

    reduce_range: bool = False
    min_elements: int = 1024
    keep: tuple[str, ...] = ()

    def call(self, model: ir.Model) -> PassResult:
        """Quantize the recurrent layers of ``model``."""
        edit = Edit(self, model)
        layers = self.layers_of(model, edit)
        weights: dict[ir.Value, list[ir.Value]] = {}
        for node in layers:
            self._rewrite(edit, node, weights)
        for value in weights:
            drop_unread(edit, value)
        if layers:
            model.graph.opset_imports.setdefault(DOMAIN, 1)
        return edit.result()

    def layers_of(self, model: ir.Model, edit: Edit | None = None) -> list[ir.Node]:
        """Return the layers of ``model`` that become integer; the others go to ``edit``."""
        layers = []
        for node in nodes_of(model):
            if not is_onnx(node, *RECURRENT):
                continue
            reason = self._refusal(node)
            if not reason:
                layers.append(node)
            elif edit is not None:
                edit.skip(reason, node)
        return layers

    def _refusal(self, node: ir.Node) -> str:
        name = node.name or ""
        if any(entry in (name, node.op_type) or fnmatchcase(name, entry) for entry in self.keep):
            return "kept"
        if node.op_type != "LSTM":
            return "no-operator"
        values = [node.inputs[index] for index in _WEIGHTS]
        tensors = [tensor for value in values if (tensor := constant_of(value)) is not None]
        if len(tensors) < len(values):
            return "weight-not-constant"
        if any(tensor.dtype is not ir.DataType.FLOAT for tensor in tensors):
            return "type-without-kernel"
        if node.attributes.get_int("layout", 0):
            return "form-without-kernel"
        if sum(tensor.size for tensor in tensors) < self.min_elements:
            return "small"
        return "" if all(_only_for_layers(value) for value in values) else "read-elsewhere"

    def _rewrite(self, edit: Edit, node: ir.Node, weights: dict[ir.Value, list[ir.Value]]) -> None:
        scheme = WeightScheme(per_channel=True, pairs_in_16_bits=self.reduce_range)
        inputs = list(node.inputs) + [None] * (_PLAIN_INPUTS - len(node.inputs))
        for index in _WEIGHTS:
            value = inputs[index]
            assert value is not None, "the weights are constants"
            if value not in weights:
                weights[value] = _stored(edit, value, scheme)
            integers, *scales = weights[value]
            inputs[index] = integers
            inputs += scales
        node.resize_inputs(len(inputs))
        for index, value in enumerate(inputs):
            node.replace_input_with(index, value)
        node.domain, node.op_type, node.version = DOMAIN, "DynamicQuantizeLSTM", None
        node.attributes.pop("layout", None)
        tag(node, self.name, [node])
        edit.rewrites += 1


def _only_for_layers(value: ir.Value | None) -> bool:
    """Return whether ``value`` is a weight of LSTM layers and nothing else."""
    if value is None or value.is_graph_output():
        return False
    return all(is_onnx(use.node, "LSTM") and use.idx in _WEIGHTS for use in value.uses())


def _stored(edit: Edit, value: ir.Value, scheme: WeightScheme) -> list[ir.Value]:
    """Return the integers, scales and zero points of the weight ``value``, in one place."""
    tensor = constant_of(value)
    assert tensor is not None, "the weight is a constant"
    scales = gate_scales(tensor, scheme)
    name = value.name or "weight"
    return [
        edit.constant(f"{name}_int8", transposed_integers(tensor, scales)),
        edit.constant(f"{name}_scales", ir.Tensor(scales)),
        edit.constant(f"{name}_zero_points", ir.Tensor(scales.astype("int8") * 0)),
    ]
