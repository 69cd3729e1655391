"""What graphopt knows about each operator: the one table that passes and memory analysis share.

In: a node of ``onnx_ir``. Out: which outputs are other names for an input (``views``), which may
be written over an input (``may_overwrite``), whether two runs agree (``is_deterministic``),
whether the node may be dropped when nobody reads it (``has_side_effects``), and its kind.

An operator that is not in the table is opaque: it has no views, nothing may be written in place,
two runs may differ, and it is kept even when nobody reads it.

Facts hold for opset 7 and later. Where versions differ, the form of the node decides: an
attribute or an input that only one version has.
"""

import onnx_ir as ir

from graphopt.ir.constants import ints_of
from graphopt.ir.dims import Dim
from graphopt.ir.program import bodies_of, dims_of, graphs_of

Pairs = tuple[tuple[int, int], ...]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Element i of output 0 depends on element i of input 0; further inputs are parameters.
_UNARY = _names(
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast CastLike Ceil Celu Clip Cos Cosh Elu Erf "
    "Exp Floor Gelu HardSigmoid HardSwish IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu "
    "Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh "
    "ThresholdedRelu"
)
# Element i of output 0 depends on element i of every input, after broadcasting.
_BROADCAST = _names(
    "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less "
    "LessOrEqual Max Mean Min Mod Mul Or PRelu Pow Sub Sum Where Xor"
)
# One output with the elements of input 0 in the same order, always.
_RESHAPES = frozenset(("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"))
# Every element of the outputs is a copy of an element of an input, or a fill value.
_MOVES = _names(
    "CenterCropPad Col2Im Compress Concat ConcatFromSequence DepthToSpace Expand Flatten Gather "
    "GatherElements GatherND Identity MaxUnpool Pad Reshape ReverseSequence Scatter "
    "ScatterElements ScatterND SequenceAt SequenceConstruct SequenceErase SequenceInsert Slice "
    "SpaceToDepth Split SplitToSequence Squeeze TensorScatter Tile Transpose Trilu "
    "Unsqueeze"
)
# Draws new numbers each run, also with a seed: runtimes keep the state of the generator.
_RANDOM = _names(
    "Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike"
)
# Deterministic exactly when their bodies are; Dropout when it does not train.
_CONDITIONAL = frozenset(("Dropout", "If", "Loop", "Scan", "SequenceMap"))
_OTHERS = _names(
    "AffineGrid ArgMax ArgMin Attention AveragePool BatchNormalization BitCast BlackmanWindow "
    "CausalConvWithState Constant ConstantOfShape Conv ConvInteger ConvTranspose CumProd CumSum "
    "DFT DeformConv DequantizeLinear Det DynamicQuantizeLinear Einsum EyeLike GRU Gemm "
    "GlobalAveragePool GlobalLpPool GlobalMaxPool GridSample GroupNormalization HammingWindow "
    "HannWindow Hardmax ImageDecoder InstanceNormalization LRN LSTM LayerNormalization "
    "LinearAttention LogSoftmax LpNormalization LpPool MatMul MatMulInteger MaxPool MaxRoiPool "
    "MeanVarianceNormalization MelWeightMatrix NegativeLogLikelihoodLoss NonMaxSuppression NonZero "
    "OneHot Optional OptionalGetElement OptionalHasElement QLinearConv QLinearMatMul "
    "QuantizeLinear RMSNormalization RNN Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp "
    "ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare RegexFullMatch Resize "
    "RoiAlign RotaryEmbedding STFT SequenceEmpty SequenceLength Shape Size Softmax "
    "SoftmaxCrossEntropyLoss StringConcat StringNormalizer StringSplit SwiGLU TfIdfVectorizer TopK "
    "Unique Upsample"
)
_ONNX = _UNARY | _BROADCAST | _MOVES | _RANDOM | _CONDITIONAL | _OTHERS
# Operators of ONNX Runtime's own domain that are functions of their inputs.
_MICROSOFT = _names(
    "BiasGelu DynamicQuantizeLSTM FastGelu FusedConv FusedGemm FusedMatMul GatherBlockQuantized "
    "Gelu MatMulBnb4 MatMulIntegerToFloat MatMulNBits QLinearAdd QLinearAveragePool QLinearConcat "
    "QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul QLinearSigmoid QuickGelu"
)
# Outputs that a node may leave out. BatchNormalization is not here: before opset 14 its number of
# outputs selects the training form.
_OPTIONAL_OUTPUTS = {
    "Dropout": (1,),
    "DynamicQuantizeLSTM": (0, 1, 2),
    "GRU": (0, 1),
    "LSTM": (0, 1, 2),
    "LayerNormalization": (1, 2),
    "MaxPool": (1,),
    "RNN": (0, 1),
    "SoftmaxCrossEntropyLoss": (1,),
    "Unique": (1, 2, 3),
}


def is_known(node: ir.Node) -> bool:
    """Return whether the operator of ``node`` is in the table; its bodies may still hold others."""
    if node.domain in ("", "ai.onnx"):
        return node.op_type in _ONNX
    # All operators of ai.onnx.ml are functions of their inputs.
    return node.domain == "ai.onnx.ml" or (
        node.domain == "com.microsoft" and node.op_type in _MICROSOFT
    )


def is_deterministic(node: ir.Node) -> bool:
    """Return whether equal inputs give equal outputs, so that two such nodes may be merged."""
    for inner in _with_bodies(node):
        if not is_known(inner) or _is(inner, _RANDOM):
            return False
        if _is(inner, ("Dropout",)) and not is_inference_dropout(inner):
            return False
    return True


def has_side_effects(node: ir.Node) -> bool:
    """Return whether ``node`` must be kept when nobody reads its outputs.

    No operator that ONNX defines has an effect besides its outputs; one that is not in the table
    may have.
    """
    return not all(is_known(inner) for inner in _with_bodies(node))


def is_elementwise(node: ir.Node) -> bool:
    """Return whether each output element depends on one element of each input, or a parameter."""
    return _is(node, _UNARY) or _is(node, _BROADCAST)


def is_data_movement(node: ir.Node) -> bool:
    """Return whether outputs only hold copies of input elements and fill values."""
    return _is(node, _MOVES)


def is_inference_dropout(node: ir.Node) -> bool:
    """Return whether ``node`` is a Dropout that copies its input."""
    if not _is(node, ("Dropout",)):
        return False
    flag = node.attributes.get("is_test")  # up to opset 6, where the default is to train
    if flag is not None:
        return bool(flag.as_int())
    if _opset(node) in range(1, 7):
        return False
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return True
    return ints_of(node.inputs[2]) == (0,)


def is_inference_batch_norm(node: ir.Node) -> bool:
    """Return whether ``node`` is a BatchNormalization that uses the given mean and variance."""
    if not _is(node, ("BatchNormalization",)) or "is_test" in node.attributes:
        return False
    mode = node.attributes.get("training_mode")
    # Before opset 14 the number of outputs tells training from inference.
    outputs = [value for value in node.outputs if value.name]
    return (mode is None or mode.as_int() == 0) and len(outputs) == 1


def optional_outputs(node: ir.Node) -> tuple[int, ...]:
    """Return the indices of the outputs that ``node`` may leave out."""
    if node.domain not in ("", "ai.onnx"):
        return ()
    return _OPTIONAL_OUTPUTS.get(node.op_type, ())


def views(node: ir.Node) -> Pairs:
    """Return pairs (output, input) whose elements are the same bytes in the same order."""
    if node.domain not in ("", "ai.onnx") or not node.inputs or not node.outputs:
        return ()
    source, result = node.inputs[0], node.outputs[0]
    if source is None or not _is_tensor(source) or not _is_tensor(result):
        return ()
    return ((0, 0),) if _is_view(node, source, result) else ()


def _is_view(node: ir.Node, source: ir.Value, result: ir.Value) -> bool:
    match node.op_type:
        case op if op in _RESHAPES:
            return True
        case "Dropout":
            return is_inference_dropout(node)
        case "Cast" | "CastLike":
            return source.dtype is not None and source.dtype == _cast_type(node)
        case "Concat" | "Max" | "Mean" | "Min" | "Sum":
            return len(node.inputs) == 1
        case "Split":
            return len(node.outputs) == 1
        case "Expand" | "Tile":
            # Equal sizes leave no room for a second copy.
            return _same_dims(source, result)
        case "Transpose":
            return _keeps_order(node, source)
        case "Pad":
            return _pads_nothing(node)
        case "Slice":
            # A step of -1 keeps the size and reverses the elements.
            steps = ints_of(node.inputs[4]) if len(node.inputs) > 4 else (1,)
            return steps is not None and min(steps, default=1) > 0 and _same_dims(source, result)
    return False


def may_overwrite(node: ir.Node) -> Pairs:
    """Return pairs (output, input): the executor may write the output over that input.

    Element i of the output depends on no element of that input but i, and both have the same known
    size. That the input is needed by nobody else is for the caller to know. Views are not listed.
    """
    if len(node.outputs) < 1:
        return ()
    if _is(node, _UNARY) or is_inference_batch_norm(node):
        candidates: tuple[int, ...] = (0,)
    elif _is(node, _BROADCAST):
        candidates = tuple(range(len(node.inputs)))
    else:
        return ()
    if views(node):
        return ()
    parameters = [v for i, v in enumerate(node.inputs) if v is not None and i not in candidates]
    result = node.outputs[0]
    pairs = []
    for index in candidates:
        source = node.inputs[index]
        # A value that is also a parameter is read as a whole for every element.
        if source is None or any(source is p for p in parameters):
            continue
        if _same_storage(source, result):
            pairs.append((0, index))
    return tuple(pairs)


def _is(node: ir.Node, names: frozenset[str] | tuple[str, ...]) -> bool:
    return node.domain in ("", "ai.onnx") and node.op_type in names


def _with_bodies(node: ir.Node) -> list[ir.Node]:
    nodes = [node]
    for body in bodies_of(node):
        for graph in graphs_of(body):
            nodes.extend(graph)
    return nodes


def _opset(node: ir.Node) -> int:
    """Return the opset of a node; 0 inside a body, whose imports are those of the main graph."""
    if node.version is not None:
        return node.version
    imports = node.graph.opset_imports if node.graph is not None else {}
    return imports.get("", imports.get("ai.onnx", 0))


def _is_tensor(value: ir.Value) -> bool:
    return value.type is None or isinstance(value.type, ir.TensorType)


def _cast_type(node: ir.Node) -> ir.DataType | None:
    target = node.attributes.get("to")
    if target is not None:
        return ir.DataType(target.as_int())
    like = node.inputs[1] if len(node.inputs) > 1 else None
    return None if like is None else like.dtype


def _same_dims(left: ir.Value, right: ir.Value) -> bool:
    a, b = dims_of(left), dims_of(right)
    return a is not None and a == b


def _same_storage(source: ir.Value, result: ir.Value) -> bool:
    """Return whether both have the same number of elements at the same places, and equal bytes."""
    a, b = source.dtype, result.dtype
    opaque = (None, ir.DataType.STRING, ir.DataType.UNDEFINED)
    if a is None or b is None or a in opaque or b in opaque or a.bitwidth != b.bitwidth:
        return False
    if not _is_tensor(source) or not _is_tensor(result):
        return False
    left, right = dims_of(source), dims_of(result)
    # Broadcasting puts ones in front; they move no element.
    return left is not None and right is not None and _core(left) == _core(right)


def _core(dims: tuple[Dim, ...]) -> tuple[Dim, ...]:
    first = next((i for i, dim in enumerate(dims) if dim != 1), len(dims))
    return dims[first:]


def _keeps_order(node: ir.Node, source: ir.Value) -> bool:
    """Return whether a Transpose only moves axes of size 1."""
    attribute = node.attributes.get("perm")
    dims = dims_of(source)
    if attribute is None:
        # The default reverses all axes.
        return dims is not None and sum(dim != 1 for dim in dims) <= 1
    order = attribute.as_ints()
    if tuple(order) == tuple(range(len(order))):
        return True
    moved = [axis for axis in order if dims is None or dims[axis] != 1]
    return dims is not None and moved == sorted(moved)


def _pads_nothing(node: ir.Node) -> bool:
    attribute = node.attributes.get("pads")
    if attribute is not None:
        return not any(attribute.as_ints())
    pads = ints_of(node.inputs[1]) if len(node.inputs) > 1 else None
    return pads is not None and not any(pads)
