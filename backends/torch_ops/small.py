"""Numbers of a graph: sizes, axes and bounds as a short list, each a number that torch can trace.

ONNX computes shapes with tensors, torch with numbers. A ``Small`` is a tensor of rank 0 or 1 kept
as numbers: plain ones; symbolic ones under ``torch.export``; tensors of rank 0 under
``torch.jit.trace``, which is how the tracer hands out sizes and takes them back. So a computed
shape stays dynamic in both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_SYMBOLIC: Any = torch  # these functions have no annotations
Number = Any  # int, float, bool, the symbolic form of one of them, or a Tensor of rank 0


@dataclass(frozen=True)
class Small:
    """A tensor of rank 0 or 1 as numbers."""

    items: tuple[Number, ...]
    dtype: torch.dtype
    scalar: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether every item is a plain number."""
        return all(isinstance(item, (int, float)) for item in self.items)

    def like(self, items: Sequence[Number], scalar: bool | None = None) -> "Small":
        """Return other items of the same type."""
        return Small(tuple(items), self.dtype, self.scalar if scalar is None else scalar)


def small(items: Sequence[Number], dtype: torch.dtype, scalar: bool) -> Small:
    """Make a ``Small``; a function, so that a graph can call it."""
    return Small(tuple(items), dtype, scalar)


def tensor_of(value: Any) -> Tensor:
    """Return ``value`` as a tensor."""
    if not isinstance(value, Small):
        return value  # type: ignore[no-any-return]  # a tensor, or a sequence of them
    if value.is_plain and not (value.items and torch.compiler.is_compiling()):
        # A capture would keep the tensor, and a branch cannot be stored with one.
        return torch.tensor(value.items[0] if value.scalar else value.items, dtype=value.dtype)
    parts = [_rank_0(item, value.dtype) for item in value.items]
    return parts[0] if value.scalar else torch.stack(parts)


def _rank_0(item: Number, dtype: torch.dtype) -> Tensor:
    if isinstance(item, Tensor):
        return item.to(dtype)
    number = bool(item) if isinstance(item, torch.SymBool) else item
    return torch.scalar_tensor(number, dtype=dtype)


def numbers_of(value: Any) -> list[Number]:
    """Return the elements of a ``Small``, a list, or a tensor of rank 0 or 1 as numbers."""
    if isinstance(value, Small):
        return list(value.items)
    if not isinstance(value, Tensor):
        return list(value)
    if is_tracing():
        return list(value.reshape(-1).unbind(0))
    flat = value.reshape(-1)
    if torch.compiler.is_compiling():
        return [_symbol(flat[i]) for i in range(flat.shape[0])]
    return list(flat.tolist())


def _symbol(element: Tensor) -> Number:
    number = element.item()
    if isinstance(number, torch.SymInt):
        torch._check(number >= 0)
    return number


def plain_ints(value: Any) -> list[int]:
    """Return the elements as plain integers; under a tracer they are those of the sample."""
    return [int(number) for number in numbers_of(value)]


def plain_floats(value: Any) -> list[float]:
    """Return the elements as plain floats; under a tracer they are those of the sample."""
    return [float(number) for number in numbers_of(value)]


def shape_numbers(x: Tensor) -> list[Number]:
    """Return the sizes of ``x``."""
    return [x.shape[axis] for axis in range(x.dim())]


def product(items: Sequence[Number]) -> Number:
    """Return the product, 1 for none."""
    result: Number = 1
    for item in items:
        result = item if isinstance(result, int) and result == 1 else result * item
    return result


def is_known(item: Number, number: int) -> bool:
    """Return whether ``item`` is the plain number ``number``; no symbol is asked."""
    return isinstance(item, int) and item == number


def maximum(a: Number, b: Number) -> Number:
    """Return the larger of two numbers of any kind."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return torch.maximum(torch.as_tensor(a), torch.as_tensor(b))
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        # Not max(): torch's capture of a branch was seen to compute min() in its place.
        return a if a >= b else b
    return _SYMBOLIC.sym_max(a, b)


def minimum(a: Number, b: Number) -> Number:
    """Return the smaller of two numbers of any kind."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return torch.minimum(torch.as_tensor(a), torch.as_tensor(b))
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return a if a <= b else b
    return _SYMBOLIC.sym_min(a, b)


def is_tracing() -> bool:
    """Return whether ``torch.jit.trace`` runs."""
    return torch._C._get_tracing_state() is not None


def opposite(condition: Number) -> Number:
    """Return whether ``condition`` does not hold; symbolic when it is symbolic."""
    return _SYMBOLIC.sym_not(condition) if isinstance(condition, torch.SymBool) else not condition


def require(condition: torch.SymBool, text: str) -> None:
    """Have the file check a condition on open sizes when it runs, without narrowing the sizes."""
    held = _SYMBOLIC.sym_ite(condition, 1, 0)
    torch._assert_async(torch.scalar_tensor(held, dtype=torch.bool), text)


def whole(number: Number) -> Number:
    """Return a number cut to an integer, symbolic when it is symbolic."""
    cut: Callable[[Number], Number] = torch.sym_int
    return cut(number)


def cut_index(index: Tensor, size: Number) -> Tensor:
    """Return indices cut to an axis of ``size``."""
    if isinstance(size, Tensor):
        return torch.minimum(index.clamp(min=0), size - 1)
    return index.clamp(0, size - 1)


def divide(a: Number, b: Number) -> Number:
    """Return the integer quotient, cut towards zero."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return torch.div(torch.as_tensor(a), torch.as_tensor(b), rounding_mode="trunc")
    if isinstance(a, int) and isinstance(b, int):
        quotient = abs(a) // abs(b)
        return quotient if (a < 0) == (b < 0) else -quotient
    return a // b  # sizes are not negative


def ceil_divide(a: Number, b: int) -> Number:
    """Return the quotient of sizes, rounded up."""
    return floor_divide(a + (b - 1), b)


def floor_divide(a: Number, b: int) -> Number:
    """Return the quotient, rounded down."""
    if isinstance(a, Tensor):
        return torch.div(a, b, rounding_mode="floor")
    return a // b


def broadcast(left: Small, right: Small) -> tuple[list[Number], list[Number], bool]:
    """Return the items of both at one length, and whether both are scalars."""
    a, b = list(left.items), list(right.items)
    if len(a) == 1 and len(b) != 1:
        a = a * len(b)
    elif len(b) == 1 and len(a) != 1:
        b = b * len(a)
    return a, b, left.scalar and right.scalar
