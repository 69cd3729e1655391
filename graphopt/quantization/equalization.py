"""Where channels can be evened out before quantization, and by how much.

A *region* is a node that can divide its output channels (the source), every value that carries them
on, and the linear nodes at the ends that multiply the same channels back through their weights.
What stands between must commute with a positive factor per channel: ``Relu`` and its kin, pools,
moves that keep the channels together, products with something else.

Two ways to choose the factors. From activations, ``max|x| ** alpha / max|w| ** (1 - alpha)`` moves
what activations have too much of into weights, which have a scale of their own per output channel
(Xiao et al., SmoothQuant, 2022). From weights, the ranges of both sides of a pair meet in the
middle (Nagel et al., Data-free quantization, 2019).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.ir.constants import array_of, constant_of, ints_of, read_array
from graphopt.ir.program import dims_of, is_onnx
from graphopt.ir.rewrite import sole_user
from graphopt.quantization.rules import weight_axis

# In the meta of a model: what the pass did, value name -> ``Divided``.
FACTS_KEY = "graphopt.equalized"
LINEAR = ("Conv", "Gemm", "MatMul")
_NORMALIZATIONS = {
    "LayerNormalization": -1,
    "RMSNormalization": -1,
    "SimplifiedLayerNormalization": -1,
    "GroupNormalization": 1,
    "InstanceNormalization": 1,
}
_SAME_AXIS = ("Abs", "Identity", "LeakyRelu", "PRelu", "Relu")
_POOLS = ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool")
_RESHAPES = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")
# They read one activation and bend it: no factor passes them.
_BENDS = (
    "Clip",
    "Elu",
    "Erf",
    "Exp",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Mish",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Swish",
    "Tanh",
)
MOST_VALUES = 64
# Factors beyond this ratio to their mean would cost float32 precision without gaining any range.
_LARGEST_FACTOR = 1e4
_LEAST = 1e-12

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Divided:
    """What became of a value: it is ``source`` divided by ``factors`` along its channels."""

    source: str
    factors: Floats


@dataclass
class Region:
    """Values whose channels can be divided together.

    Attributes:
        source: The node whose output channels are divided.
        channels: Their number.
        values: The values that carry them -> axis of the channels.
        shifts: Constants that are added on the way: (node, input).
        readers: Linear nodes that multiply the channels back.
        reason: Why nothing can be done, or "".
        detail: What shows it.
    """

    source: ir.Node
    channels: int
    values: dict[ir.Value, int] = field(default_factory=dict)
    shifts: list[tuple[ir.Node, int]] = field(default_factory=list)
    readers: list[ir.Node] = field(default_factory=list)
    reason: str = ""
    detail: str = ""

    def refuse(self, reason: str, detail: str) -> None:
        """Note why the region stays as it is; the first reason is kept."""
        if not self.reason:
            self.reason, self.detail = reason, detail


def regions(model: ir.Model) -> Iterator[Region]:
    """Yield the regions of the main graph that linear nodes read, and those cut off by a bend.

    Linear in the graph: each region is cut off after 64 values.
    """
    for node in model.graph:
        start = source_axis(node)
        if start is None:
            continue
        region = _grown(node, *start)
        if is_onnx(node, *LINEAR) and not owns_weight(node):
            region.refuse("weight-shared", node.name or "")
        if region.readers or region.reason == "not-homogeneous":
            yield region


def source_axis(node: ir.Node) -> tuple[int, int] | None:
    """Return (axis, number) of the output channels that ``node`` can divide, or None."""
    dims = dims_of(node.outputs[0]) if node.outputs else None
    if dims is None or node.outputs[0].dtype is not ir.DataType.FLOAT:
        return None
    axis: int | None = None
    if node.op_type in LINEAR and is_onnx(node, *LINEAR):
        if not has_float_weight(node) or not _constant_bias(node):
            return None
        axis = 1 if is_onnx(node, "Conv") else len(dims) - 1
    elif is_onnx(node, *_NORMALIZATIONS):
        axis = _normalized_axis(node, len(dims))
    elif is_onnx(node, "Mul", "Div"):
        axis = _factor_axis(node)
    size = None if axis is None or axis >= len(dims) else dims[axis]
    if axis is None or not isinstance(size, int) or size < 2:
        return None
    # Up to opset 20 a group normalization has one gain for each group.
    gain = node.inputs[1] if is_onnx(node, *_NORMALIZATIONS) else None
    return None if gain is not None and gain.shape != (size,) else (axis, size)


def has_float_weight(node: ir.Node) -> bool:
    """Return whether input 1 of a linear node is a float32 initializer: a filter or a matrix."""
    weight = node.inputs[1]
    tensor = constant_of(weight)
    if weight is None or tensor is None or tensor.dtype is not ir.DataType.FLOAT:
        return False
    if not weight.is_initializer():
        return False
    if is_onnx(node, "Gemm"):
        transposed = node.attributes.get("transA")
        return transposed is None or transposed.as_int() == 0
    return is_onnx(node, "Conv") or len(tensor.shape) == 2


def owns_weight(node: ir.Node) -> bool:
    """Return whether nobody but a linear node reads its weight."""
    weight = node.inputs[1]
    return weight is not None and sole_user(weight) is node


def _constant_bias(node: ir.Node) -> bool:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return bias is None or constant_of(bias) is not None


def _normalized_axis(node: ir.Node, rank: int) -> int | None:
    """Return the axis of gain and bias, where these are constant vectors along it."""
    for value in node.inputs[1:3]:
        if value is not None and (constant_of(value) is None or len(value.shape or ()) != 1):
            return None
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return None
    place = _NORMALIZATIONS[node.op_type]
    if place == -1:
        given = node.attributes.get("axis")
        place = rank - 1 if given is None else given.as_int() % rank
        return place if place == rank - 1 else None
    return place


def _factor_axis(node: ir.Node) -> int | None:
    """Return the only axis along which a constant operand of ``Mul`` or ``Div`` varies."""
    place = _constant_operand(node)
    dims = dims_of(node.outputs[0])
    if place is None or dims is None or (is_onnx(node, "Div") and place == 0):
        return None
    array = array_of(node.inputs[place], most_bytes=1 << 24)
    if array is None:
        return None
    long = [axis for axis, size in enumerate(array.shape) if size != 1]
    return long[0] + len(dims) - array.ndim if len(long) == 1 else None


def _constant_operand(node: ir.Node) -> int | None:
    """Return which of two inputs is constant; None when none or both are."""
    constant = [constant_of(value) is not None for value in node.inputs[:2]]
    return constant.index(True) if constant.count(True) == 1 else None


def _grown(source: ir.Node, axis: int, channels: int) -> Region:
    region = Region(source, channels)
    pending = [(source.outputs[0], axis)]
    reached: set[ir.Node] = set()
    while pending:
        value, axis = pending.pop()
        region.values[value] = axis
        if value.is_graph_output():
            region.refuse("graph-output", value.name or "")
        if len(region.values) > MOST_VALUES:
            region.refuse("read-elsewhere", f"more than {MOST_VALUES} values on the way")
            break
        for use in value.uses():
            node = use.node
            if node in reached or node.graph is not source.graph:
                # Twice into one product is a square; a body may do anything.
                region.refuse("read-elsewhere", node.name or node.op_type)
                continue
            reached.add(node)
            if reads_channels(node, use.idx, axis):
                _note_reader(region, node)
                continue
            after = _carried(region, node, use.idx, value, axis)
            if after is not None:
                pending.append((node.outputs[0], after))
    return region


def reads_channels(node: ir.Node, place: int, axis: int) -> bool:
    """Return whether a linear node with constant weights multiplies them along ``axis``."""
    value = node.inputs[place]
    if place != 0 or value is None or not is_onnx(node, *LINEAR):
        return False
    if constant_of(node.inputs[1]) is None:
        return False
    return axis == (1 if is_onnx(node, "Conv") else len(value.shape or ()) - 1)


def _note_reader(region: Region, node: ir.Node) -> None:
    region.readers.append(node)
    if not has_float_weight(node):
        region.refuse("weight-form", node.name or "")
    elif not owns_weight(node):
        region.refuse("weight-shared", node.name or "")


def _carried(region: Region, node: ir.Node, place: int, value: ir.Value, axis: int) -> int | None:
    """Return the axis of the channels in what ``node`` makes; refuses where they do not get on."""
    after: int | None = None
    before, dims = dims_of(value), dims_of(node.outputs[0])
    if before is None or dims is None:
        region.refuse("channels-unknown", node.name or "")
        return None
    from_end = axis - len(before)
    pools = is_onnx(node, *_POOLS) and axis == 1 and not any(o.uses() for o in node.outputs[1:])
    if pools or (is_onnx(node, *_SAME_AXIS) and place == 0):
        after = axis
    elif is_onnx(node, "Transpose"):
        perm = node.attributes.get("perm")
        order = list(range(len(before)))[::-1] if perm is None else list(perm.as_ints())
        after = order.index(axis)
    elif is_onnx(node, *_RESHAPES) and place == 0:
        after = _reshaped_axis(before, dims, axis)
    elif is_onnx(node, "ReduceMean", "ReduceMax", "ReduceSum") and place == 0:
        after = _reduced_axis(node, len(before), axis)
    elif is_onnx(node, "Add", "Sub") and _constant_operand(node) == 1 - place:
        constant = node.inputs[1 - place]
        if _lies_along(constant, from_end, region.channels):
            region.shifts.append((node, 1 - place))
            after = len(dims) + from_end
    elif is_onnx(node, "Mul") or (is_onnx(node, "Div") and place == 0):
        # A factor of its own ends a region: what it feeds is a region of its own.
        other = constant_of(node.inputs[1 - place])
        if other is None or other.size == 1:
            after = len(dims) + from_end
    if after is None or after >= len(dims) or dims[after] != region.channels:
        bends = is_onnx(node, *_BENDS)
        region.refuse("not-homogeneous" if bends else "read-elsewhere", node.op_type)
        return None
    return after


def _lies_along(value: ir.Value | None, from_end: int, channels: int) -> bool:
    """Return whether a constant is one number, or one for each channel, once it is broadcast."""
    array = array_of(value, most_bytes=1 << 24)
    if array is None:
        return False
    place = array.ndim + from_end
    return all(
        size == 1 or (axis == place and size == channels) for axis, size in enumerate(array.shape)
    )


def _reshaped_axis(before: tuple[object, ...], after: tuple[object, ...], axis: int) -> int | None:
    """Return where the channels are after a reshape that leaves them together.

    They are where as many elements stand behind them, or in front of them, as before.
    """
    size = before[axis]
    for place, other in enumerate(after):
        if other != size:
            continue
        if _sizes(before[axis + 1 :]) == _sizes(after[place + 1 :]):
            return place
        if _sizes(before[:axis]) == _sizes(after[:place]):
            return place
    return None


def _sizes(dims: tuple[object, ...]) -> list[str]:
    """Return the sizes other than 1: two runs of them that are equal hold as many elements."""
    return [str(dim) for dim in dims if dim != 1]


def _reduced_axis(node: ir.Node, rank: int, axis: int) -> int | None:
    given = node.attributes.get("axes")
    axes = given.as_ints() if given is not None else None
    if axes is None and len(node.inputs) > 1:
        axes = ints_of(node.inputs[1])
    if axes is None:
        return None
    gone = sorted(one % rank for one in axes)
    if axis in gone:
        return None
    keep = node.attributes.get("keepdims")
    kept = keep is None or keep.as_int() != 0
    return axis if kept else axis - sum(one < axis for one in gone)


def input_maxima(node: ir.Node, channels: int) -> Floats:
    """Return the largest weight that each input channel of a linear node meets."""
    tensor = constant_of(node.inputs[1])
    assert tensor is not None, "has_float_weight was asked"
    return read_array(tensor, lambda array: _input_maxima(node, array, channels))


def _input_maxima(node: ir.Node, array: npt.NDArray[np.floating], channels: int) -> Floats:
    if not is_onnx(node, "Conv"):
        return _largest(array, 1 - weight_axis(node))
    groups = channels // array.shape[1]
    shape = (groups, array.shape[0] // groups, array.shape[1], -1)
    parts = array.reshape(shape)
    high = np.maximum(parts.max(axis=(1, 3)), -parts.min(axis=(1, 3)))
    largest: Floats = high.reshape(-1).astype(np.float64)
    return largest


def output_maxima(node: ir.Node) -> Floats:
    """Return the largest weight of each output channel of a linear node."""
    tensor = constant_of(node.inputs[1])
    assert tensor is not None, "has_float_weight was asked"
    return read_array(tensor, lambda array: _largest(array, weight_axis(node)))


def _largest(array: npt.NDArray[np.floating], axis: int) -> Floats:
    """Return the largest magnitude along ``axis``; no copy as large as the weights is made."""
    others = tuple(i for i in range(array.ndim) if i != axis)
    largest: Floats = np.maximum(array.max(axis=others), -array.min(axis=others)).astype(np.float64)
    return largest


def factors_from(values: Floats, weights: Floats, alpha: float) -> Floats:
    """Return what each channel is divided by: ``values ** alpha / weights ** (1 - alpha)``.

    Their geometric mean is 1. A channel that is always zero, or that no weight reads, keeps 1.

    Args:
        values: Largest magnitude of each channel.
        weights: Largest weight that reads each channel.
        alpha: How much of the difference between channels goes into the weights.
    """
    used = (values > _LEAST) & (weights > _LEAST)
    if not used.any():
        return np.ones(len(values))
    logs = alpha * np.log(values[used]) - (1 - alpha) * np.log(weights[used])
    factors = np.ones(len(values))
    with np.errstate(over="ignore"):
        factors[used] = np.exp(logs - logs.mean())
    return np.clip(factors, 1 / _LARGEST_FACTOR, _LARGEST_FACTOR)
