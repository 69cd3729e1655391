"""Quantized operators in integer arithmetic: what onnxruntime computes, bit by bit.

Products of 8-bit integers are summed in double precision, which is exact below 2**53, because torch
has no integer convolution on every device. Scales are applied in the type they have, values rounded
half to even and cut to the range of the type.
"""

from typing import Any

import torch
from torch import Tensor

from graphopt.backends.torch_ops.convolution import conv
from graphopt.backends.torch_ops.dtypes import (
    NUMBERS,
    RANGES,
    is_float8,
    torch_type,
)
from graphopt.backends.torch_ops.elementwise import to_float8
from graphopt.backends.torch_ops.registry import op
from graphopt.backends.torch_ops.small import Number, shape_numbers
from graphopt.errors import UnsupportedError


def _spread(parameter: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """Return a scale or zero point so that it broadcasts with ``x``."""
    if parameter.dim() == 0 or (parameter.dim() == 1 and parameter.shape[0] == 1):
        return parameter.reshape([])
    axis = axis + x.dim() if axis < 0 else axis
    if parameter.dim() == 1 and not block:
        return parameter.reshape([*[1] * axis, -1, *[1] * (x.dim() - axis - 1)])
    return _blocked(parameter, x, axis, block)


def _blocked(parameter: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    size: Number = x.shape[axis]
    length = block or -(-size // parameter.shape[axis])
    return parameter.repeat_interleave(length, axis).narrow(axis, 0, size)


def quantize(x: Tensor, scale: Tensor, zero: Tensor | None, number: int) -> Tensor:
    """Return ``x / scale`` rounded half to even, plus the zero point, cut to the type."""
    low, high = RANGES[number]
    scaled = torch.round(x / scale)
    if zero is not None:
        scaled = scaled + zero.to(torch.int32).to(scaled.dtype)
    return torch.clamp(scaled, low, high).to(torch.int32).to(torch_type(number))


@op("QuantizeLinear")
def _quantize_linear(
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
    zero_number: int = 0,
) -> Tensor:
    number = output_dtype or zero_number or (2 if zero is None else NUMBERS[zero.dtype])
    if number not in RANGES and number not in (17, 18, 19, 20):
        raise UnsupportedError("torch-operator-form", f"QuantizeLinear to data type {number}")
    factor = _spread(scale, x, axis, block_size)
    wide = x.to(torch_type(precision)) if precision else x.to(torch.float32)
    factor = factor.to(wide.dtype)
    if is_float8(torch_type(number)):
        return to_float8(wide / factor, torch_type(number), bool(saturate))
    shift = None if zero is None else _spread(zero, x, axis, block_size)
    return quantize(wide, factor, shift, number)


@op("DequantizeLinear")
def _dequantize_linear(
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    factor = _spread(scale, x, axis, block_size)
    kind = torch_type(output_dtype) if output_dtype else scale.dtype
    if is_float8(x.dtype):
        return (x.to(torch.float32) * factor.to(torch.float32)).to(kind)
    values = x.to(torch.int32)
    if zero is not None:
        values = values - _spread(zero, x, axis, block_size).to(torch.int32)
    return (values.to(torch.float32) * factor.to(torch.float32)).to(kind)


@op("DynamicQuantizeLinear", several=True)
def _dynamic_quantize_linear(x: Tensor, *, count: int) -> tuple[Tensor, ...]:
    low = torch.clamp(torch.amin(x), max=0.0)
    high = torch.clamp(torch.amax(x), min=0.0)
    scale = (high - low) / 255.0
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.clamp(torch.round(-low / scale), 0, 255)
    result = torch.clamp(torch.round(x / scale) + zero, 0, 255)
    return (result.to(torch.uint8), scale, zero.to(torch.uint8))[:count]


def _centred(x: Tensor, zero: Tensor | None, shape: list[int] | None = None) -> Tensor:
    """Return ``x`` less its zero point as exact doubles."""
    values = x.to(torch.float64)
    if zero is None:
        return values
    shift = zero.to(torch.float64)
    return values - (shift if shape is None or shift.dim() == 0 else shift.reshape(shape))


def _requantized(total: Tensor, factor: Tensor, zero: Tensor) -> Tensor:
    number = NUMBERS[zero.dtype]
    low, high = RANGES[number]
    scaled = torch.round(total.to(torch.float32) * factor) + zero.to(torch.float32)
    return torch.clamp(scaled, low, high).to(torch.int32).to(zero.dtype)


@op("QLinearMatMul")
def _qlinear_matmul(
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
) -> Tensor:
    left = _centred(a, a_zero, _row_shape(a_zero))
    right = _centred(b, b_zero)
    factor = (
        _rows(a_scale).to(torch.float32) * b_scale.to(torch.float32) / y_scale.to(torch.float32)
    )
    return _requantized(torch.matmul(left, right), factor, y_zero)


def _row_shape(zero: Tensor | None) -> list[int] | None:
    return [-1, 1] if zero is not None and zero.dim() == 1 else None


def _rows(scale: Tensor) -> Tensor:
    return scale.reshape([-1, 1]) if scale.dim() == 1 else scale


@op("MatMulInteger")
def _matmul_integer(
    a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None
) -> Tensor:
    left = _centred(a, a_zero, _row_shape(a_zero))
    return torch.matmul(left, _centred(b, b_zero)).to(torch.int64).to(torch.int32)


@op("MatMulIntegerToFloat", domain="com.microsoft")
def _matmul_integer_to_float(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_zero: Tensor | None = None,
    b_zero: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    product = torch.matmul(_centred(a, a_zero), _centred(b, b_zero)).to(a_scale.dtype)
    result = product * (a_scale * b_scale)
    return result if bias is None else result + bias


def _channels(zero: Tensor | None, rank: int) -> list[int] | None:
    return None if zero is None or zero.dim() == 0 else [-1, *[1] * (rank - 1)]


@op("ConvInteger")
def _conv_integer(
    x: Tensor,
    w: Tensor,
    x_zero: Tensor | None = None,
    w_zero: Tensor | None = None,
    **attributes: Any,
) -> Tensor:
    weight = _centred(w, w_zero, _channels(w_zero, w.dim()))
    return conv(_centred(x, x_zero), weight, **attributes).to(torch.int64).to(torch.int32)


@op("QLinearConv")
def _qlinear_conv(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    bias: Tensor | None = None,
    **attributes: Any,
) -> Tensor:
    weight = _centred(w, w_zero, _channels(w_zero, w.dim()))
    shift = None if bias is None else bias.to(torch.float64)
    total = conv(_centred(x, x_zero), weight, shift, **attributes)
    factor = x_scale * w_scale / y_scale
    if factor.dim() == 1:
        factor = factor.reshape([-1, *[1] * (x.dim() - 2)])
    return _requantized(total, factor, y_zero)


@op("QLinearAdd", domain="com.microsoft")
def _qlinear_add(
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
) -> Tensor:
    left, right = _dequantize_linear(a, a_scale, a_zero), _dequantize_linear(b, b_scale, b_zero)
    return quantize(left + right, y_scale, y_zero, NUMBERS[y_zero.dtype])


@op("QLinearMul", domain="com.microsoft")
def _qlinear_mul(
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
) -> Tensor:
    left, right = _dequantize_linear(a, a_scale, a_zero), _dequantize_linear(b, b_scale, b_zero)
    return quantize(left * right, y_scale, y_zero, NUMBERS[y_zero.dtype])


@op("MatMulNBits", domain="com.microsoft")
def _matmul_nbits(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None = None,
    group: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    K: int,  # noqa: N803 - ONNX's names
    N: int,  # noqa: N803
    bits: int = 4,
    block_size: int,
    accuracy_level: int = 0,
) -> Tensor:
    if bits not in (4, 8):
        raise UnsupportedError("torch-operator-form", f"MatMulNBits of {bits} bits")
    blocks = -(-K // block_size)
    values = _unpacked(packed, bits).reshape([N, -1, block_size]).to(x.dtype)
    factor, shift = scales.reshape([N, blocks, 1]), None
    if zeros is not None and zeros.dtype is torch.uint8:
        if group is not None:
            # onnxruntime does not read packed zero points by group as its description says.
            raise UnsupportedError("torch-operator-form", "MatMulNBits of groups and packed zeros")
        shift = _unpacked(zeros.reshape([N, -1]), bits)[:, :blocks].unsqueeze(-1).to(x.dtype)
    elif zeros is not None:
        shift = zeros.reshape([N, blocks, 1])
    if group is not None:
        order = group[:K].to(torch.int64)
        values = values.reshape([N, -1, 1])[:, :K]
        factor = factor.index_select(1, order)
        shift = None if shift is None else shift.index_select(1, order)
    weight = (values - (float(2 ** (bits - 1)) if shift is None else shift)) * factor
    product = torch.matmul(x, weight.reshape([N, -1])[:, :K].transpose(0, 1))
    return product if bias is None else product + bias


_UINT4 = 21  # of TensorProto.DataType


@op("GatherBlockQuantized", domain="com.microsoft")
def _gather_block_quantized(
    data: Tensor,
    indices: Tensor,
    scales: Tensor,
    zeros: Tensor | None = None,
    *,
    bits: int = 4,
    block_size: int = 128,
    gather_axis: int = 0,
    quantize_axis: int = 1,
    data_number: int = 0,
) -> Tensor:
    if data_number == _UINT4:
        # One in a byte already, but in the type of packed pairs.
        raise UnsupportedError("torch-operator-form", "GatherBlockQuantized of type uint4")
    if bits not in (4, 8) or data.dtype not in (torch.int8, torch.uint8):
        text = f"GatherBlockQuantized of {bits} bits in {data.dtype}"
        raise UnsupportedError("torch-operator-form", text)
    gathered, blocked = gather_axis % data.dim(), quantize_axis % data.dim()
    # Integers of 4 bits in bytes; those of type int4 came here one in a byte of int8.
    packed = data.dtype is torch.uint8 and bits == 4
    if packed and (gathered != 0 or blocked != data.dim() - 1):
        raise UnsupportedError("torch-operator-form", "GatherBlockQuantized along a packed axis")
    size, last = data.shape[gathered], scales.shape[-1]
    index = indices.to(torch.int64)
    inside = (index >= -size) & (index < size)
    index = torch.where(inside, torch.where(index < 0, index + size, index), 0)
    values = _picked(data, index, gathered)
    # An axis both gathered and in blocks: the block of an index is a part of the index.
    index = index // block_size if gathered == blocked else index
    factor = _picked(scales, index, gathered)
    shift = None if zeros is None else _picked(zeros, index, gathered)
    if packed:
        values = _unpacked(values, bits)
        shift = None if shift is None else _unpacked(shift, bits).narrow(-1, 0, last)
    lead = shape_numbers(inside)
    tail = data.dim() - gathered - 1
    # An index outside gives zeros.
    factor = torch.where(inside.reshape([*lead, *[1] * tail]), factor, torch.zeros_like(factor))
    if gathered != blocked:
        axis = blocked + (len(lead) - 1 if blocked > gathered else 0)
        factor = _blocked(factor, values, axis, block_size)
        shift = None if shift is None else _blocked(shift, values, axis, block_size)
    wide = values.to(factor.dtype)
    if shift is not None:
        wide = wide - shift.to(factor.dtype)
    elif data.dtype is torch.uint8:
        wide = wide - float(2 ** (bits - 1))
    return wide * factor


def _picked(x: Tensor, index: Tensor, axis: int) -> Tensor:
    """Return what ``index`` names along ``axis``."""
    sizes = shape_numbers(x)
    taken = x.index_select(axis, index.reshape(-1))
    return taken.reshape([*sizes[:axis], *shape_numbers(index), *sizes[axis + 1 :]])


def _unpacked(packed: Tensor, bits: int) -> Tensor:
    """Return the integers of a packed tensor, the low half of a byte first, along its last axis."""
    if bits == 8:
        return packed
    pairs = torch.stack([packed & 15, packed >> 4], -1)
    return pairs.reshape([*shape_numbers(packed)[:-1], -1])
