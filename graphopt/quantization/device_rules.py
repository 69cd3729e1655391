"""The rule table of targets that compute nothing but integers: compilers for NPUs, MCU kernels.

One row per operator that any of them has an integer kernel for; which of them a target has, its
descriptor says. Where devices differ, a row asks what the strictest one does: inputs and results of
operators that copy, choose or average elements share one scale, as the 8-bit quantization
specification of TensorFlow Lite asks of ``AVERAGE_POOL_2D``, ``CONCATENATION``, ``MAX_POOL_2D``,
``PAD``, ``RESHAPE``, ``RESIZE_BILINEAR``, ``SLICE``, ``TRANSPOSE`` and Vela of ``MAXIMUM`` and
``MINIMUM``. From there, too, the scales that do not depend on what was observed.
"""

import onnx_ir as ir

from graphopt.ir.constants import constant_of
from graphopt.ir.op_facts import views
from graphopt.ir.program import is_onnx
from graphopt.quantization.ranges import Params, Scheme, params_for
from graphopt.quantization.rule import Rule

_LINEAR, _MOVE, _JOIN = Rule("linear"), Rule("move"), Rule("join", inputs=None)
_COMPUTE, _PAIR = Rule("compute"), Rule("compute", inputs=(0, 1))
_ROWS: tuple[tuple[Rule, str], ...] = (
    (_LINEAR, "Conv ConvTranspose Gemm MatMul"),
    (_PAIR, "Add Div Mul PRelu Pow Sub"),
    (Rule("compute", inputs=None), "Mean Sum"),
    (_COMPUTE, "Abs ArgMax ArgMin Ceil Cos Elu Erf Exp Floor Gelu GlobalAveragePool HardSigmoid"),
    (_COMPUTE, "HardSwish LeakyRelu Log LogSoftmax Neg Reciprocal ReduceMean ReduceSum Relu"),
    (_COMPUTE, "Round Sigmoid Sin Softmax Softplus Sqrt Tanh"),
    (_MOVE, "AveragePool Clip DepthToSpace Expand Gather GlobalMaxPool MaxPool Pad ReduceMax"),
    (_MOVE, "ReduceMin Resize Slice SpaceToDepth Split Tile Transpose"),
    (_JOIN, "Concat Max Min"),
    (Rule("join", inputs=(1, 2)), "Where"),
)
DEVICE_RULES: dict[str, Rule] = {name: rule for rule, names in _ROWS for name in names.split()}
# Results that lie in [low, low + 255 steps] whatever the input: operator -> (low, steps in 1.0).
_FIXED = {
    "HardSigmoid": (0.0, 256),
    "LogSoftmax": (-255 / 16, 16),
    "Sigmoid": (0.0, 256),
    "Softmax": (0.0, 256),
    "Tanh": (-1.0, 128),
}


def device_rule(node: ir.Node, operators: frozenset[str]) -> Rule | None:
    """Return the rule of ``node`` where the target has an integer kernel for it, or needs none.

    What gives the same bytes another shape needs no kernel.
    """
    if views(node):
        return _MOVE
    if node.domain not in ("", "ai.onnx") or node.op_type not in operators:
        return None
    if is_onnx(node, "MatMul") and not has_matrix(node):
        return _PAIR
    return DEVICE_RULES.get(node.op_type)


def has_matrix(node: ir.Node) -> bool:
    """Return whether the second factor of ``node`` is a constant matrix of 32-bit floats."""
    tensor = constant_of(node.inputs[1])
    return tensor is not None and tensor.dtype is ir.DataType.FLOAT and len(tensor.shape) == 2


def fixed_params(node: ir.Node, scheme: Scheme) -> Params | None:
    """Return scale and zero point of what ``node`` makes, where they follow from the operator."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in _FIXED:
        return None
    low, steps = _FIXED[node.op_type]
    smallest = scheme.limits[0]
    if scheme.symmetric:
        return params_for(low, low + 255 / steps, scheme)
    return Params(1 / steps, smallest - round(low * steps))
