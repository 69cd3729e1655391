"""Element-wise operators: arithmetic, comparisons, activations, casts."""

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows it by
from torch import Tensor

from graphopt.backends.torch_ops.dtypes import (
    BYTE_TYPES,
    NUMBERS,
    TORCH_TYPES,
    as_type,
    is_float8,
    to_computable,
    torch_type,
)
from graphopt.backends.torch_ops.registry import op
from graphopt.backends.torch_ops.small import (
    Number,
    Small,
    broadcast,
    divide,
    maximum,
    minimum,
    numbers_of,
    opposite,
    tensor_of,
    whole,
)
from graphopt.errors import UnsupportedError

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseNot": torch.bitwise_not,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Det": torch.det,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "HardSwish": F.hardswish,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": F.mish,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}


def _in_computable_type(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def run(x: Tensor) -> Tensor:
        return as_type(function(to_computable(x)), x.dtype)

    run.__name__ = run.__qualname__ = f"_{getattr(function, '__name__', 'unary')}"
    return run


def _plain(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def run(x: Tensor) -> Tensor:
        return function(x)

    run.__name__ = run.__qualname__ = f"_{getattr(function, '__name__', 'unary')}"
    return run


for _name, _function in _UNARY.items():
    _same = _name not in ("IsNaN", "Det")
    op(_name)(_in_computable_type(_function) if _same else _plain(_function))


def _integer_safe(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        return as_type(function(to_computable(x)), x.dtype)

    return run


@op("Abs")
def _abs(x: Tensor) -> Tensor:
    return _integer_safe(torch.abs)(x)


@op("Ceil", small=True)
def _ceil(x: Any) -> Any:
    return _rounded(x, torch.ceil)


@op("Floor", small=True)
def _floor(x: Any) -> Any:
    return _rounded(x, torch.floor)


def _rounded(x: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if not isinstance(x, Small):
        return function(x)
    items: list[Number] = []
    for item in x.items:
        if isinstance(item, Tensor):
            items.append(function(item))
        elif isinstance(item, float):
            items.append(float(function(torch.tensor(item, dtype=torch.float64))))
        else:
            ceil = whole(-whole(-item)) if function is torch.ceil else None
            items.append(whole(item) if ceil is None else ceil)
    return x.like(items)


@op("Neg", small=True)
def _neg(x: Any) -> Any:
    return x.like([-item for item in x.items]) if isinstance(x, Small) else torch.neg(x)


@op("Not", small=True)
def _not(x: Any) -> Any:
    if isinstance(x, Small) and all(isinstance(item, (bool, torch.SymBool)) for item in x.items):
        return x.like([opposite(item) for item in x.items])
    return torch.logical_not(tensor_of(x))


@op("Sign")
def _sign(x: Tensor) -> Tensor:
    return _integer_safe(torch.sign)(x)


@op("Identity", small=True)
def _identity(x: Any) -> Any:
    return x


def _binary(a: Any, b: Any, numbers: Any, tensors: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """Compute with numbers when both operands are numbers, else with tensors."""
    if isinstance(a, Small) and isinstance(b, Small):
        left, right, scalar = broadcast(a, b)
        items = [numbers(x, y) for x, y in zip(left, right, strict=True)]
        return a.like(items, scalar)
    first, second = tensor_of(a), tensor_of(b)
    return as_type(tensors(to_computable(first), to_computable(second)), first.dtype)


def _in_order(a: Any, b: Any, axis: int | None) -> Any:
    """Place ``b`` as opset 6 and earlier say: its dimensions start at ``axis`` of ``a``."""
    if axis is None or isinstance(b, Small):
        return b
    missing = tensor_of(a).dim() - axis - b.dim()
    return b.reshape([*b.shape, *(1 for _ in range(missing))]) if missing > 0 else b


def _aligned(a: Any, b: Any, broadcast: int, axis: int | None) -> Any:
    return _in_order(a, tensor_of(b), axis) if broadcast and axis is not None else b


@op("Add", small=True)
def _add(a: Any, b: Any, *, broadcast: int = 0, axis: int | None = None) -> Any:
    return _binary(a, _aligned(a, b, broadcast, axis), operator.add, _added)


def _added(a: Tensor, b: Tensor) -> Tensor:
    return torch.logical_or(a, b) if a.dtype is torch.bool else torch.add(a, b)


@op("Sub", small=True)
def _sub(a: Any, b: Any, *, broadcast: int = 0, axis: int | None = None) -> Any:
    return _binary(a, _aligned(a, b, broadcast, axis), operator.sub, torch.sub)


@op("Mul", small=True)
def _mul(a: Any, b: Any, *, broadcast: int = 0, axis: int | None = None) -> Any:
    return _binary(a, _aligned(a, b, broadcast, axis), operator.mul, torch.mul)


@op("Div", small=True)
def _div(a: Any, b: Any, *, broadcast: int = 0, axis: int | None = None) -> Any:
    other = _aligned(a, b, broadcast, axis)
    if isinstance(a, Small) and a.dtype.is_floating_point:
        return _binary(a, other, operator.truediv, _divided)
    return _binary(a, other, divide, _divided)


def _divided(a: Tensor, b: Tensor) -> Tensor:
    if a.dtype.is_floating_point or a.dtype.is_complex:
        return torch.div(a, b)
    return torch.div(a, b, rounding_mode="trunc")


@op("Mod", small=True)
def _mod(a: Any, b: Any, *, fmod: int = 0) -> Any:
    if fmod:
        return _binary(tensor_of(a), b, None, torch.fmod)
    return _binary(a, b, operator.mod, torch.remainder)


@op("Pow")
def _pow(a: Tensor, b: Tensor, *, broadcast: int = 0, axis: int | None = None) -> Tensor:
    exponent = _aligned(a, b, broadcast, axis)
    base = to_computable(a)
    exponent = to_computable(exponent)
    if exponent.dtype.is_floating_point and not base.dtype.is_floating_point:
        return torch.pow(base.to(exponent.dtype), exponent).to(a.dtype)
    return as_type(torch.pow(base, exponent), a.dtype)


@op("Max", small=True)
def _max(*inputs: Any) -> Any:
    return reduce(lambda a, b: _binary(a, b, maximum, torch.maximum), inputs)


@op("Min", small=True)
def _min(*inputs: Any) -> Any:
    return reduce(lambda a, b: _binary(a, b, minimum, torch.minimum), inputs)


@op("Sum", small=True)
def _sum(*inputs: Any) -> Any:
    return reduce(_add, inputs)


@op("Mean")
def _mean(*inputs: Tensor) -> Tensor:
    total: Tensor = reduce(torch.add, inputs)
    return total / len(inputs)


def _compare(a: Any, b: Any, numbers: Any, tensors: Callable[[Tensor, Tensor], Tensor]) -> Any:
    if isinstance(a, Small) and isinstance(b, Small):
        left, right, scalar = broadcast(a, b)
        items = [numbers(x, y) for x, y in zip(left, right, strict=True)]
        # Of open sizes it is symbolic: who reads it as a number has torch narrow the sizes.
        return Small(tuple(items), torch.bool, scalar)
    return tensors(to_computable(tensor_of(a)), to_computable(tensor_of(b)))


@op("Equal", small=True)
def _equal(a: Any, b: Any, *, broadcast: int = 0, axis: int | None = None) -> Any:
    return _compare(a, _aligned(a, b, broadcast, axis), operator.eq, torch.eq)


@op("Greater", small=True)
def _greater(a: Any, b: Any, *, broadcast: int = 0, axis: int | None = None) -> Any:
    return _compare(a, _aligned(a, b, broadcast, axis), operator.gt, torch.gt)


@op("GreaterOrEqual", small=True)
def _greater_or_equal(a: Any, b: Any) -> Any:
    return _compare(a, b, operator.ge, torch.ge)


@op("Less", small=True)
def _less(a: Any, b: Any, *, broadcast: int = 0, axis: int | None = None) -> Any:
    return _compare(a, _aligned(a, b, broadcast, axis), operator.lt, torch.lt)


@op("LessOrEqual", small=True)
def _less_or_equal(a: Any, b: Any) -> Any:
    return _compare(a, b, operator.le, torch.le)


@op("And")
def _and(a: Tensor, b: Tensor, *, broadcast: int = 0, axis: int | None = None) -> Tensor:
    return torch.logical_and(a, _aligned(a, b, broadcast, axis))


@op("Or")
def _or(a: Tensor, b: Tensor, *, broadcast: int = 0, axis: int | None = None) -> Tensor:
    return torch.logical_or(a, _aligned(a, b, broadcast, axis))


@op("Xor")
def _xor(a: Tensor, b: Tensor, *, broadcast: int = 0, axis: int | None = None) -> Tensor:
    return torch.logical_xor(a, _aligned(a, b, broadcast, axis))


def _bitwise(a: Tensor, b: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    return as_type(function(to_computable(a), to_computable(b)), a.dtype)


@op("BitwiseAnd")
def _bitwise_and(a: Tensor, b: Tensor) -> Tensor:
    return _bitwise(a, b, torch.bitwise_and)


@op("BitwiseOr")
def _bitwise_or(a: Tensor, b: Tensor) -> Tensor:
    return _bitwise(a, b, torch.bitwise_or)


@op("BitwiseXor")
def _bitwise_xor(a: Tensor, b: Tensor) -> Tensor:
    return _bitwise(a, b, torch.bitwise_xor)


@op("BitShift")
def _bit_shift(a: Tensor, b: Tensor, *, direction: str) -> Tensor:
    left = direction == "LEFT"
    return _bitwise(a, b, torch.bitwise_left_shift if left else torch.bitwise_right_shift)


@op("Where", small=True)
def _where(condition: Any, a: Any, b: Any) -> Any:
    if isinstance(condition, Small) and isinstance(a, Small) and isinstance(b, Small):
        length = max(len(condition.items), len(a.items), len(b.items))
        c, x, y = (list(v.items) * (length if len(v.items) == 1 else 1) for v in (condition, a, b))
        items = [_picked(*three) for three in zip(c, x, y, strict=True)]
        return a.like(items, condition.scalar and a.scalar and b.scalar)
    return torch.where(tensor_of(condition), tensor_of(a), tensor_of(b))


def _picked(condition: Any, a: Any, b: Any) -> Any:
    if isinstance(condition, Tensor):
        return torch.where(condition, torch.as_tensor(a), torch.as_tensor(b))
    return a if condition else b


@op("Relu")
def _relu(x: Tensor) -> Tensor:
    return torch.relu(x)


@op("LeakyRelu")
def _leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return F.leaky_relu(x, alpha)


@op("PRelu")
def _prelu(x: Tensor, slope: Tensor, *, opset: int) -> Tensor:
    if opset < 7 and slope.dim() == 1 and x.dim() > 1:
        slope = slope.reshape([-1] + [1] * (x.dim() - 2))
    return torch.where(x < 0, x * slope, x)


@op("Elu")
def _elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.elu(x, alpha)


@op("Celu")
def _celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.celu(x, alpha)


@op("Selu")
def _selu(
    x: Tensor, *, alpha: float = 1.67326319217681885, gamma: float = 1.05070102214813232
) -> Tensor:
    return gamma * F.elu(x, alpha)


@op("Gelu")
def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


@op("Gelu", domain="com.microsoft")
def _microsoft_gelu(x: Tensor) -> Tensor:
    return F.gelu(x)


@op("FastGelu", domain="com.microsoft")
def _fast_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


@op("BiasGelu", domain="com.microsoft")
def _bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(x + bias)


@op("QuickGelu", domain="com.microsoft")
def _quick_gelu(x: Tensor, *, alpha: float = 1.702) -> Tensor:
    return x * torch.sigmoid(alpha * x)


@op("Swish")
def _swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x)


@op("SwiGLU")
def _swiglu(x: Tensor, gate: Tensor | None = None, *, alpha: float = 1.0, axis: int = -1) -> Tensor:
    if gate is None:
        x, gate = x.chunk(2, axis)
    return _swish(x, alpha=alpha) * gate


@op("HardSigmoid")
def _hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return torch.clamp(alpha * x + beta, 0, 1)


@op("Softplus")
def _softplus(x: Tensor) -> Tensor:
    # torch's own softplus is linear above a threshold.
    return torch.logaddexp(x, torch.zeros_like(x))


@op("Shrink")
def _shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    wide = to_computable(x)
    shrunk = torch.where(wide < -lambd, wide + bias, torch.where(wide > lambd, wide - bias, 0))
    return shrunk.to(x.dtype)


@op("ThresholdedRelu")
def _thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return torch.where(x > alpha, x, torch.zeros_like(x))


@op("Clip", small=True)
def _clip(
    x: Any,
    low: Any = None,
    high: Any = None,
    *,
    min: float | None = None,
    max: float | None = None,
) -> Tensor:
    x = tensor_of(x)
    wide = to_computable(x)
    bounds: list[Any] = []
    for bound, attribute in ((low, min), (high, max)):
        if isinstance(bound, Small) and bound.is_plain:
            bounds.append(bound.items[0])
        else:
            bounds.append(attribute if bound is None else to_computable(tensor_of(bound)))
    if any(isinstance(bound, Tensor) for bound in bounds):
        lower, upper = bounds
        if lower is not None:
            wide = torch.maximum(wide, torch.as_tensor(lower, dtype=wide.dtype))
        if upper is not None:
            wide = torch.minimum(wide, torch.as_tensor(upper, dtype=wide.dtype))
        return as_type(wide, x.dtype)
    if bounds == [None, None]:
        return x  # type: ignore[no-any-return]  # numbers are Any
    return as_type(torch.clamp(wide, *bounds), x.dtype)


@op("IsInf")
def _is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    x = to_computable(x)
    if detect_negative and detect_positive:
        return torch.isinf(x)
    if detect_positive:
        return torch.isposinf(x)
    return torch.isneginf(x) if detect_negative else torch.zeros_like(x, dtype=torch.bool)


@op("Cast", small=True)
def _cast(x: Any, *, to: int, saturate: int = 1, round_mode: str = "up") -> Any:
    if isinstance(x, Small) and to in (1, 6, 7, 9, 11):
        return _cast_numbers(x, torch_type(to))
    x = tensor_of(x)
    if to not in TORCH_TYPES:
        raise UnsupportedError(
            "torch-operator-form", f"torch has no type for ONNX data type number {to}"
        )
    dtype = TORCH_TYPES[to]
    if dtype is torch.float8_e8m0fnu:
        return _to_e8m0(x, bool(saturate), round_mode)
    if is_float8(dtype):
        return to_float8(x, dtype, bool(saturate))
    if x.dtype is dtype:
        return x
    if x.dtype.is_floating_point and not dtype.is_floating_point and dtype.itemsize < 4:
        # Through a wide integer, whose low bits are kept: what runtimes do.
        return x.to(torch.float32).to(torch.int64).to(dtype) if dtype is not torch.bool else x != 0
    return x.to(dtype)


def _float(item: Number) -> Number:
    convert: Callable[[Number], Number] = torch.sym_float
    return convert(item)


def _cast_numbers(x: Small, dtype: torch.dtype) -> Small:
    items: list[Number] = []
    for given in x.items:
        item = bool(given) if isinstance(given, torch.SymBool) else given
        if isinstance(item, Tensor):
            items.append(item.to(dtype))
        elif dtype is torch.bool:
            items.append(bool(item != 0))
        elif dtype.is_floating_point:
            items.append(_float(item))
        else:
            items.append(int(item) if isinstance(item, (bool, float)) else whole(item))
    return Small(tuple(items), dtype, x.scalar)


def to_float8(x: Tensor, dtype: torch.dtype, saturate: bool) -> Tensor:
    """Round to a floating-point type of one byte; out of range is the largest value, or not."""
    x = x.to(torch.float32)
    if saturate:
        largest = torch.finfo(dtype).max
        return torch.clamp(x, -largest, largest).to(dtype)
    return x.to(dtype)


def _to_e8m0(x: Tensor, saturate: bool, round_mode: str) -> Tensor:
    raise UnsupportedError("torch-operator-form", "rounding to float8e8m0 is not lowered to torch")


@op("CastLike", small=True)
def _cast_like(
    x: Any, like: Any, *, saturate: int = 1, round_mode: str = "up", like_number: int = 0
) -> Any:
    to = like_number or NUMBERS[like.dtype]
    return _cast(x, to=to, saturate=saturate, round_mode=round_mode)


@op("BitCast")
def _bit_cast(x: Tensor, *, to: int) -> Tensor:
    if to in BYTE_TYPES:
        raise UnsupportedError("torch-operator-form", "torch has no types below one byte")
    return x.view(torch_type(to))


@op("Dropout", several=True)
def _dropout(
    x: Tensor,
    ratio: Any = None,
    training: Any = None,
    *,
    seed: int = 0,
    attribute_ratio: float | None = None,
    is_test: int = 0,
    opset: int,
    count: int,
) -> tuple[Tensor, ...]:
    trains = not is_test if opset < 7 else training is not None and bool(numbers_of(training)[0])
    if trains and (ratio is None or float(numbers_of(ratio)[0]) != 0):
        raise UnsupportedError("torch-operator-form", "Dropout that trains draws random numbers")
    return (x, torch.ones_like(x, dtype=torch.bool if opset >= 10 else x.dtype))[:count]
