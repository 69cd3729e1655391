"""The rule table: how each operator may be computed in integers, and what that asks of its tensors.

One row per operator. A target's descriptor narrows the table to the operators its runtime has
integer kernels for; an operator without a row stays float. The facts behind the rows were read in
the selectors of onnxruntime 1.31 (``qdq_selectors.cc``) and checked against the graphs that it
makes.
"""

import math
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from graphopt.ir.constants import array_of
from graphopt.ir.program import is_onnx

Kind = Literal["linear", "compute", "move", "join", "clamp"]


@dataclass(frozen=True)
class Rule:
    """How one operator is quantized.

    Attributes:
        kind: ``linear``: multiplies by constant weights, always worth it. ``compute``: has an
            integer kernel that pays between other integer kernels only. ``move``: copies elements,
            so both sides share scale and zero point. ``join``: as ``move``, from several inputs.
            ``clamp``: what saturation does anyway, absorbed into the range of its result.
        inputs: Which inputs are quantized; None for all.
        float_output: Whether a kernel exists that gives its result as float.
        fixed: Range of the result whatever the input, None when it is observed.
    """

    kind: Kind
    inputs: tuple[int, ...] | None = (0,)
    float_output: bool = False
    fixed: tuple[float, float] | None = None


RULES: dict[str, Rule] = {
    "Conv": Rule("linear"),
    "Gemm": Rule("linear", float_output=True),
    "MatMul": Rule("linear", float_output=True),
    "Add": Rule("compute", inputs=(0, 1)),
    "Mul": Rule("compute", inputs=(0, 1)),
    "AveragePool": Rule("compute"),
    "GlobalAveragePool": Rule("compute"),
    "LeakyRelu": Rule("compute"),
    "Sigmoid": Rule("compute", fixed=(0.0, 1.0)),
    "Softmax": Rule("compute", fixed=(0.0, 1.0)),
    "Concat": Rule("join", inputs=None),
    "Expand": Rule("move"),
    "Flatten": Rule("move"),
    "Gather": Rule("move"),
    "MaxPool": Rule("move"),
    "Reshape": Rule("move"),
    "Resize": Rule("move"),
    "Slice": Rule("move"),
    "Split": Rule("move"),
    "Squeeze": Rule("move"),
    "Tile": Rule("move"),
    "Transpose": Rule("move"),
    "Unsqueeze": Rule("move"),
    "Clip": Rule("clamp"),
    "Relu": Rule("clamp"),
}
# What a target gets whose descriptor names no operators. Softmax stays float: eight bits of it cost
# accuracy and save little.
DEFAULT_OPERATORS = tuple(name for name in RULES if name != "Softmax")


def rule_of(node: ir.Node, operators: frozenset[str]) -> Rule | None:
    """Return the rule of ``node`` where the target has an integer kernel for it."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in operators:
        return None
    return RULES.get(node.op_type)


def unsupported_form(node: ir.Node) -> str:
    """Return what about ``node`` no integer kernel computes, or ""."""
    if is_onnx(node, "Gemm"):
        attributes = {name: a.value for name, a in node.attributes.items()}
        if attributes.get("transA", 0) or attributes.get("alpha", 1.0) != 1.0:
            return "transA or alpha"
    if is_onnx(node, "MaxPool") and len(node.outputs) > 1 and node.outputs[1].name:
        return "indices"
    if is_onnx(node, "Resize"):
        mode = node.attributes.get("mode")
        if mode is not None and mode.as_string() == "cubic":
            return "cubic interpolation"
    return ""


def clamp_bounds(node: ir.Node) -> tuple[float, float] | None:
    """Return the constant bounds of a ``clamp`` node; None when they are computed."""
    if is_onnx(node, "Relu"):
        return 0.0, math.inf
    bounds = []
    for index, default in ((1, -math.inf), (2, math.inf)):
        value = node.inputs[index] if len(node.inputs) > index else None
        if value is None:
            bounds.append(default)
            continue
        array = array_of(value)
        if array is None:
            return None
        bounds.append(float(array.reshape(())))
    return bounds[0], bounds[1]


def weight_axis(node: ir.Node) -> int:
    """Return the axis of the weights of a ``linear`` node that the output channels are on."""
    if is_onnx(node, "Conv"):
        return 0
    if is_onnx(node, "Gemm"):
        transposed = node.attributes.get("transB")
        return 0 if transposed is not None and transposed.as_int() else 1
    return 1


def channel_axis(node: ir.Node) -> int:
    """Return the axis of the input of a ``linear`` node that its weights are multiplied along."""
    return 1 if is_onnx(node, "Conv") else -1


def is_depthwise(node: ir.Node) -> bool:
    """Return whether ``node`` is a convolution with one input and one output channel per group."""
    group = node.attributes.get("group")
    weight = node.inputs[1]
    if not is_onnx(node, "Conv") or group is None or weight is None or weight.shape is None:
        return False
    return weight.shape[1] == 1 and weight.shape[0] == group.as_int()


def is_gated(value: ir.Value) -> bool:
    """Return whether all that is used of ``value`` is its product with its own sigmoid."""
    users = [use.node for use in value.uses()]
    if len(users) != 2 or value.is_graph_output():
        return False
    gates = [node for node in users if is_onnx(node, "Sigmoid")]
    products = [node for node in users if is_onnx(node, "Mul")]
    if len(gates) != 1 or len(products) != 1:
        return False
    gate = gates[0].outputs[0]
    return gate in products[0].inputs and len(gate.uses()) == 1 and not gate.is_graph_output()
