"""The rule table: how each operator may be computed in integers, and what that asks of its tensors.

One row per operator. A target's descriptor narrows the table to the operators its runtime has
integer kernels for; an operator without a row stays float. The facts behind the rows were read in
the selectors of onnxruntime 1.31 (``qdq_selectors.cc``) and checked against the graphs that it
makes.
"""

import math

import onnx_ir as ir

from graphopt.ir.constants import array_of, constant_of, static_dims
from graphopt.ir.program import is_onnx
from graphopt.quantization.device_rules import device_rule
from graphopt.quantization.rule import Rule

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
# How a Gather from a constant table is quantized. Its rows are widened where they are used: a
# DequantizeLinear in front of the Gather would widen the whole table in every run.
TABLE = Rule("compute", inputs=(), float_output=True, table=True)
# Smaller tables would save less than what the nodes that widen their rows take in the file.
_LEAST_TABLE_BYTES = 1 << 9

# Operators that a target may name beside those with a rule: its runtime is better off where they
# are written out. Products with a float result, with the bias that follows them: from Q/DQ around
# a MatMul of rank 3 and an Add, onnxruntime makes a Gemm between two Reshapes first, and then
# finds no Q/DQ around it.
INTEGER_MATMUL = "MatMulIntegerToFloat"
# The float sum in front of a LayerNormalization, which a runtime fuses where it is an Add.
FLOAT_SUM = "Sum"


# Stands among the operators of a target that computes nothing but integers: each node then has the
# rule of ``device_rule``.
EVERYTHING = "*"


def rule_of(node: ir.Node, operators: frozenset[str]) -> Rule | None:
    """Return the rule of ``node`` where the target has an integer kernel for it."""
    if EVERYTHING in operators:
        return device_rule(node, operators)
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


def is_table(node: ir.Node) -> bool:
    """Return whether ``node`` gathers whole rows of a constant table of 32-bit floats."""
    if not is_onnx(node, "Gather"):
        return False
    axis = node.attributes.get("axis")
    tensor = constant_of(node.inputs[0])
    return (
        (axis is None or axis.as_int() == 0)
        and tensor is not None
        and tensor.dtype is ir.DataType.FLOAT
        and len(tensor.shape) == 2
        and tensor.nbytes >= _LEAST_TABLE_BYTES
    )


def bias_after(product: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """Return the ``Add`` that gives the ``MatMul`` its bias, and the bias; None without one.

    The product has no other reader, and the bias has one element for each of its columns.
    """
    result, weight = product.outputs[0], static_dims(product.inputs[1])
    users = tuple(result.uses())
    if len(users) != 1 or result.is_graph_output() or weight is None or result.shape is None:
        return None
    add, index = users[0].node, users[0].idx
    if not is_onnx(add, "Add") or add.graph is not product.graph:
        return None
    bias = add.inputs[1 - index]
    tensor, dims = constant_of(bias), static_dims(bias)
    if bias is None or tensor is None or tensor.dtype is not ir.DataType.FLOAT or dims is None:
        return None
    fits = 0 < len(dims) <= len(result.shape) and dims[-1] == weight[-1]
    return (add, bias) if fits and all(dim == 1 for dim in dims[:-1]) else None


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


def saturates(clamp: ir.Node, known: tuple[float, float] | None) -> bool:
    """Return whether integers of the range ``known`` of its result clamp as ``clamp`` does."""
    bounds = clamp_bounds(clamp)
    return (
        bounds is not None
        and known is not None
        and bounds[0] <= min(known[0], 0.0)
        and max(known[1], 0.0) <= bounds[1]
    )


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
    return 1 if is_onnx(node, "Conv", "ConvTranspose") else -1


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
