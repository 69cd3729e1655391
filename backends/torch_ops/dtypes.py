"""Data types: of ONNX by number to torch, and what torch does not compute with."""

import torch
from torch import Tensor

# Numbers of onnx.TensorProto.DataType. Types of 2 and 4 bits that torch has no arithmetic for are
# kept one element a byte; a cast to them is not lowered.
TORCH_TYPES: dict[int, torch.dtype] = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    4: torch.uint16,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    12: torch.uint32,
    13: torch.uint64,
    14: torch.complex64,
    15: torch.complex128,
    16: torch.bfloat16,
    17: torch.float8_e4m3fn,
    18: torch.float8_e4m3fnuz,
    19: torch.float8_e5m2,
    20: torch.float8_e5m2fnuz,
    24: torch.float8_e8m0fnu,
}
BYTE_TYPES: dict[int, torch.dtype] = {
    21: torch.uint8,  # uint4
    22: torch.int8,  # int4
    25: torch.uint8,  # uint2
    26: torch.int8,  # int2
}
# Smallest and largest value of the integer types that a quantized value may have.
RANGES: dict[int, tuple[int, int]] = {
    2: (0, 255),
    3: (-128, 127),
    4: (0, 65535),
    5: (-32768, 32767),
    6: (-(2**31), 2**31 - 1),
    21: (0, 15),
    22: (-8, 7),
    25: (0, 3),
    26: (-2, 1),
}
NUMBERS = {dtype: number for number, dtype in TORCH_TYPES.items()}

_WIDE = (torch.uint16, torch.uint32, torch.uint64)
_NARROW = frozenset(
    dtype for dtype in TORCH_TYPES.values() if dtype.is_floating_point and dtype.itemsize == 1
)


def is_float8(dtype: torch.dtype) -> bool:
    """Return whether ``dtype`` is a floating-point type of one byte."""
    return dtype in _NARROW


def to_computable(x: Tensor) -> Tensor:
    """Return ``x`` in a type that torch computes with: unsigned 16 to 64 bits become int64."""
    if x.dtype in _WIDE:
        return x.to(torch.int64)
    return x.to(torch.float32) if x.dtype in _NARROW else x


def as_type(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``x`` in a type, without a call of torch where it has that type."""
    return x if x.dtype is dtype else x.to(dtype)


def torch_type(number: int) -> torch.dtype:
    """Return the torch type that keeps elements of an ONNX type; KeyError when there is none."""
    return TORCH_TYPES[number] if number in TORCH_TYPES else BYTE_TYPES[number]
