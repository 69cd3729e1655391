"""Nodes that are linear in their input, with constant weights: scaling them and adding a bias.

A per-channel affine map after such a node is absorbed: ``a * (W x + b) + s = (a W) x + (a b + s)``.
All arithmetic is in double precision and rounded once, to the type of the weights.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from graphopt.ir.constants import Array, array_of, constant_of, read_array
from graphopt.ir.program import dims_of, is_onnx
from graphopt.ir.rewrite import Rewriter, sole_user

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16)
_PIECE_ELEMENTS = 1 << 20
_LAZY_BYTES = 1 << 16


@dataclass(frozen=True)
class Linear:
    """A ``Conv``, ``ConvTranspose``, ``Gemm`` or ``MatMul`` with a constant weight.

    Attributes:
        node: The node.
        weight: The weight value.
        tensor: What it holds.
        channels: Number of output channels.
        rank: Rank of the output.
        axis: Axis of the output that the channels are on.
    """

    node: ir.Node
    weight: ir.Value
    tensor: ir.TensorProtocol
    channels: int
    rank: int
    axis: int


def linear_of(node: ir.Node) -> Linear | str:
    """Return what ``node`` computes, or a reason code when its channels cannot be told."""
    weight = node.inputs[1]
    tensor = constant_of(weight)
    if weight is None or tensor is None or tensor.dtype not in FLOATS:
        return "weight-not-constant"
    shape = tuple(tensor.shape.numpy())
    if is_onnx(node, "Conv"):
        return Linear(node, weight, tensor, shape[0], len(shape), 1)
    if is_onnx(node, "ConvTranspose"):
        return Linear(node, weight, tensor, shape[1] * group_of(node), len(shape), 1)
    if is_onnx(node, "Gemm"):
        return Linear(node, weight, tensor, shape[0 if _is_transposed(node) else 1], 2, 1)
    dims = dims_of(node.outputs[0])
    if len(shape) != 2 or dims is None or len(dims) < 2:
        return "weight-not-a-matrix"
    return Linear(node, weight, tensor, shape[1], len(dims), len(dims) - 1)


def group_of(node: ir.Node) -> int:
    """Return the number of groups of a convolution."""
    attribute = node.attributes.get("group")
    return 1 if attribute is None else attribute.as_int()


def _is_transposed(node: ir.Node) -> bool:
    attribute = node.attributes.get("transB")
    return attribute is not None and attribute.as_int() != 0


def channel_vector(value: ir.Value | None, linear: Linear) -> Array | None:
    """Return a constant that has one number for each channel, in double precision, else None.

    A constant of one element is repeated; one that would widen the output is none.
    """
    array = array_of(value, most_bytes=1 << 24)
    if array is None or array.ndim > linear.rank or value is None or value.dtype not in FLOATS:
        return None
    shape = (1,) * (linear.rank - array.ndim) + array.shape
    others = shape[: linear.axis] + shape[linear.axis + 1 :]
    if any(size != 1 for size in others) or shape[linear.axis] not in (1, linear.channels):
        return None
    return np.broadcast_to(array.astype(np.float64).ravel(), (linear.channels,))


def bias_of(linear: Linear) -> Array | None:
    """Return the bias per channel in double precision, zeros for none; None when not constant."""
    node = linear.node
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return np.zeros(linear.channels)
    array = array_of(value, most_bytes=1 << 24)
    if array is None:
        return None
    array = array.astype(np.float64)
    if not is_onnx(node, "Gemm"):
        return array
    beta = node.attributes.get("beta")
    rows = (1,) * (2 - array.ndim) + array.shape
    if rows[0] != 1 or rows[1] not in (1, linear.channels):
        return None
    flat = np.broadcast_to(array.ravel(), (linear.channels,))
    return flat * (1.0 if beta is None else beta.as_float())


def set_bias(edit: Rewriter, linear: Linear, bias: Array) -> None:
    """Make ``bias`` the bias of the node."""
    node = linear.node
    old = node.inputs[2] if len(node.inputs) > 2 else None
    tensor = ir.Tensor(bias.astype(linear.tensor.dtype.numpy()), dtype=linear.tensor.dtype)
    if old is not None and old.shape == tensor.shape and sole_user(old) is node:
        tensor.name = old.name
        old.const_value = tensor
    else:
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        node.replace_input_with(2, edit.constant(f"{node.outputs[0].name}_bias", tensor))
    node.attributes.pop("beta", None)


def scale_weight(linear: Linear, factor: Array) -> None:
    """Multiply the weights of each output channel, when they are read if they are large."""
    old = linear.tensor
    compute = partial(_scaled, old, linear, np.array(factor))
    if old.nbytes > _LAZY_BYTES:
        shape = ir.Shape(old.shape.numpy())
        linear.weight.const_value = ir.LazyTensor(compute, old.dtype, shape, name=old.name)
    else:
        linear.weight.const_value = compute()
        linear.weight.const_value.name = old.name


def wide_product(array: Array, spread: Array) -> Array:
    """Return ``array * spread``, made in float64 a piece at a time."""
    made = np.empty_like(array, order="C")
    along = spread.ndim == array.ndim and len(spread) > 1
    step = max(1, _PIECE_ELEMENTS // max(1, array.size // max(1, len(array))))
    for start in range(0, len(array), step):
        some = slice(start, start + step)
        made[some] = array[some].astype(np.float64) * (spread[some] if along else spread)
    return made


def _scaled(old: ir.TensorProtocol, linear: Linear, factor: Array) -> ir.TensorProtocol:
    def multiply(array: Array) -> Array:
        shape = array.shape
        if is_onnx(linear.node, "ConvTranspose"):
            # Weights are [in, out / groups, ...]; group g holds rows of in and its own outputs.
            groups = linear.channels // shape[1]
            array = array.reshape(groups, shape[0] // groups, *shape[1:])
            spread = factor.reshape(groups, 1, shape[1], *(1,) * (len(shape) - 2))
        elif is_onnx(linear.node, "Conv") or _is_transposed(linear.node):
            spread = factor.reshape(-1, *(1,) * (len(shape) - 1))
        else:
            spread = factor
        return wide_product(array, spread).reshape(shape)

    return ir.Tensor(read_array(old, multiply), dtype=old.dtype)
