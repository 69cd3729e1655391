"""Which operators compute in half precision, and what stays a 32-bit float around them.

In: a node, the opset, float16 or bfloat16. Out: whether the node has a half form
(``has_half_form``), and which of its inputs and outputs keep 32 bits in that form. The facts are
the type constraints of the ONNX schemas from opset 7 on (a test compares them with the schemas of
the installed onnx), less operators that no runtime has half kernels for.

``Cast``, ``Constant``, ``Shape`` and ``Size`` are not in the table: they read any type, or are made
in the one that their readers want.
"""

import onnx_ir as ir

from graphopt.ir.constants import constant_of
from graphopt.ir.op_facts import is_data_movement, is_elementwise
from graphopt.ir.program import graphs_of, is_onnx

FLOAT = ir.DataType.FLOAT
# By the name of the type as options and descriptors spell it.
HALF_TYPES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
CONTROL_FLOW = ("If", "Loop", "Scan")
_NEVER = 1 << 30


def _since(opset: int, names: str) -> dict[str, int]:
    return dict.fromkeys(names.split(), opset)


# Operator -> first opset in which everything it converts may be float16; 7 stands for "ever since".
_FLOAT16 = {
    **_since(
        7,
        "Abs Acos Acosh Add ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization "
        "CastLike Ceil CenterCropPad Clip Compress Concat ConstantOfShape Conv ConvTranspose Cos "
        "Cosh DepthToSpace Div Dropout Einsum Elu Equal Erf Exp Expand Flatten Floor GRU Gather "
        "GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual "
        "GroupNormalization HardSigmoid HardSwish Hardmax Identity If InstanceNormalization IsNaN "
        "LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop MatMul Max "
        "MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg NonZero OneHot PRelu Pad Pow "
        "RMSNormalization RNN Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax "
        "ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize "
        "ReverseSequence RoiAlign RotaryEmbedding Round Scan Scatter ScatterElements ScatterND "
        "Selu Shrink Sigmoid Sign Sin Sinh Slice Softmax Softplus Softsign SpaceToDepth Split "
        "Sqrt Squeeze Sub Sum SwiGLU Swish Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu "
        "Unsqueeze Upsample Where",
    ),
    **_since(14, "CumSum"),
    **_since(20, "IsInf"),
    **_since(23, "Attention"),
    **_since(24, "TensorScatter"),
    **_since(28, "Celu"),
}
# The same for bfloat16, where it is not opset 13.
_BFLOAT16 = {
    **_since(14, "BatchNormalization CumSum"),
    **_since(15, "Pow"),
    **_since(16, "GreaterOrEqual If LeakyRelu LessOrEqual Loop PRelu Scan Where"),
    **_since(20, "ConstantOfShape IsInf"),
    **_since(
        22,
        "Acos Acosh Asin Asinh Atan Atanh AveragePool Conv ConvTranspose Cos Cosh Elu GRU "
        "GlobalAveragePool GlobalMaxPool HardSigmoid HardSwish InstanceNormalization LSTM MaxPool "
        "Mish RNN RoiAlign Round Selu Sin Sinh Softplus Softsign Tan ThresholdedRelu",
    ),
    **_since(23, "Attention"),
    **_since(24, "TopK"),
    **_since(28, "Celu Compress Einsum OneHot ReverseSequence"),
    **_since(_NEVER, "Scatter Shrink Upsample"),
}
# Parameters that the schema, or their meaning, keeps at 32 bits: sizes, coordinates, indices.
_FLOAT_INPUTS = {"Dropout": (1,), "OneHot": (0, 1), "Resize": (1, 2), "Upsample": (1,)}
_FLOAT_OUTPUTS = {"LayerNormalization": (1, 2)}
# Operators of ONNX Runtime's own domain that take float16 in every float input and output.
_MICROSOFT = ("BiasGelu", "FastGelu", "FusedMatMul", "Gelu", "QuickGelu")
# They round nothing, so between float32 neighbours they are not worth two conversions.
_EXACT = ("Abs", "Clip", "GlobalMaxPool", "Max", "MaxPool", "Min", "Neg", "Relu", "Upsample")


def half_since(op_type: str, dtype: ir.DataType) -> int | None:
    """Return the first opset with a half form of an ONNX operator, None for none at all."""
    since = _FLOAT16.get(op_type)
    if since is None:
        return None
    if dtype is ir.DataType.FLOAT16:
        return since
    found = max(since, _BFLOAT16.get(op_type, 13))
    return None if found == _NEVER else found


def has_half_form(node: ir.Node, opset: int, dtype: ir.DataType) -> bool:
    """Return whether ``node`` may compute in ``dtype`` where it computes in float32 now."""
    if node.domain == "com.microsoft":
        return node.op_type in _MICROSOFT and dtype is ir.DataType.FLOAT16
    if node.domain not in ("", "ai.onnx"):
        return False
    since = half_since(node.op_type, dtype)
    return since is not None and opset >= since


def keeps_input(node: ir.Node, index: int) -> bool:
    """Return whether input ``index`` stays float32 in the half form of ``node``."""
    return is_onnx(node, *_FLOAT_INPUTS) and index in _FLOAT_INPUTS[node.op_type]


def keeps_output(node: ir.Node, index: int) -> bool:
    """Return whether output ``index`` stays float32 in the half form of ``node``."""
    return is_onnx(node, *_FLOAT_OUTPUTS) and index in _FLOAT_OUTPUTS[node.op_type]


def rounds_nothing(node: ir.Node) -> bool:
    """Return whether ``node`` only copies or selects elements."""
    return is_data_movement(node) or is_onnx(node, *_EXACT)


def reads_any_type(node: ir.Node) -> bool:
    """Return whether it costs nothing that ``node`` reads halves in place of floats, or floats."""
    return is_onnx(node, "Cast", "Shape", "Size")


def _keeps_integers(node: ir.Node) -> bool:
    """Return whether ``node`` may be a step of index arithmetic: from integers to integers."""
    return is_data_movement(node) or is_elementwise(node) or is_onnx(node, "Range")


def is_float(value: ir.Value | None) -> bool:
    """Return whether ``value`` is a tensor of 32-bit floats."""
    return value is not None and value.dtype is FLOAT and isinstance(value.type, ir.TensorType)


def mask_values(graph: ir.Graph) -> set[ir.Value]:
    """Return the values of which only ``Softmax`` uses what becomes of them by adding and moving.

    A very negative number among them means "not this element". Any number far below the others
    means the same, so those below the range of float16 may be replaced by one inside.
    """
    found: set[ir.Value] = set()
    # Readers come after what they read, and those in a body are inside of it.
    for inner in reversed(list(graphs_of(graph))):
        for node in reversed(inner):
            found.update(value for value in node.outputs if _is_mask(value, found))
        for value in (*inner.inputs, *inner.initializers.values()):
            if _is_mask(value, found):
                found.add(value)
    return found


def _is_mask(value: ir.Value, found: set[ir.Value]) -> bool:
    """Return whether every reader of ``value`` is ``Softmax`` or makes nothing but masks of it."""
    if not is_float(value) or value.is_graph_output():
        return False
    users = [user for user, _ in value.uses()]
    return bool(users) and all(_passes_masks_on(user, found) for user in users)


def _passes_masks_on(node: ir.Node, found: set[ir.Value]) -> bool:
    if is_onnx(node, "Softmax"):
        return True
    # A product with 0 or 1 switches a number on or off; Where chooses it.
    if not is_onnx(node, "Add", "Mul", "Where") and not is_data_movement(node):
        return False
    return all(value in found for value in node.outputs if value.uses() or value.is_graph_output())


def counting_nodes(model: ir.Model) -> set[ir.Node]:
    """Return the nodes that compute sizes or indices: from integers, and back to integers.

    Half precision has no integers above 2048 (256 for bfloat16), and one off is another element.
    """
    counted: set[ir.Value] = set()
    nodes = [node for graph in graphs_of(model.graph) for node in graph]
    for node in nodes:
        source = node.inputs[0] if node.inputs else None
        if is_onnx(node, "Cast"):
            integer = source is not None and source.dtype is not None and source.dtype.is_integer()
            counted.update(node.outputs if integer else ())
        elif _keeps_integers(node):
            floats = [v for v in node.inputs if v is not None and is_float(v)]
            computed = [v for v in floats if constant_of(v) is None]
            if computed and all(value in counted for value in computed):
                counted.update(node.outputs)
    found: set[ir.Node] = set()
    wanted: set[ir.Value] = set()
    for node in reversed(nodes):
        results = any(value in wanted for value in node.outputs)
        if is_onnx(node, "Cast"):
            becomes = node.attributes["to"].as_int() if "to" in node.attributes else 0
            results = results or ir.DataType(becomes).is_integer()
        elif results and any(value in counted for value in node.outputs):
            found.add(node)
        wanted.update(
            value
            for index, value in enumerate(node.inputs)
            if value is not None and (keeps_input(node, index) or (results and value in counted))
        )
    return found
