"""Which operators of the installed torch really write where they are told to, found by trying.

In: a call of an operator on tensors, and functions (*forms*) that compute the same into tensors
they are given. Out: how many bytes each form takes besides. What always holds: a form is only
called true after it ran on tensors of exactly these sizes, strides, types and device, left the same
values as the operator, and torch's allocators saw no request of 4096 bytes or more meanwhile.
Nothing is known beforehand: an ``out=`` overload that computes elsewhere and copies shows its copy.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from graphopt.backends.torch_counts import requested_bytes
from graphopt.backends.torch_device import CPU

MOST_ERROR = 2e-6
"""Accepted difference of a form in float32 or float64, as a part of the largest result."""

# Writes the result of an operator into ``outs``: form(outs, args, kwargs).
Form = Callable[[Sequence[Tensor], tuple[Any, ...], dict[str, Any]], None]


@dataclass(frozen=True)
class Probe:
    """What a form did.

    Attributes:
        bytes: Sum of the requests of ``SMALL_BYTES`` or more.
        error: Largest difference from the operator, as a part of its largest result; infinite for
            integers and half floats that differ at all.
    """

    bytes: int
    error: float

    @property
    def agrees(self) -> bool:
        """Whether it computed what the operator computes."""
        return self.error <= MOST_ERROR


def probe_form(
    form: Form,
    expected: Sequence[Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    device: torch.device = CPU,
) -> Probe | None:
    """Try ``form`` on tensors like ``expected``; None when torch refuses the call.

    ``device`` is that of the tensors, whose allocator is watched.
    """
    outs = [poisoned(tensor) for tensor in expected]
    places = [_place(out) for out in outs]
    try:
        form(outs, args, kwargs)  # the first call may fill caches
        for out, tensor in zip(outs, expected, strict=True):
            _poison(out, tensor)
        requests = requested_bytes(lambda: form(outs, args, kwargs), device)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return None
    if places != [_place(out) for out in outs]:
        return None  # resized or moved: these are not the places it was given
    return Probe(sum(requests), max(map(difference, expected, outs), default=0.0))


def overwritable(
    form: Form, expected: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> frozenset[int]:
    """Return the positions of the arguments over which ``form`` may write its result.

    Only arguments that lie as the result lies are tried.
    """
    found = set()
    for position, argument in enumerate(args):
        if not isinstance(argument, Tensor) or not lies_like(argument, expected):
            continue
        place = poisoned(expected).copy_(argument)
        changed = tuple(place if other is argument else other for other in args)
        try:
            form([place], changed, kwargs)
        except (RuntimeError, TypeError, ValueError, IndexError):
            continue
        if difference(expected, place) <= MOST_ERROR:
            found.add(position)
    return frozenset(found)


def lies_like(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same sizes, strides, type and device."""
    return (
        one.dtype == other.dtype
        and one.size() == other.size()
        and one.stride() == other.stride()
        and one.device == other.device
    )


def poisoned(expected: Tensor) -> Tensor:
    """Return a tensor that lies as ``expected`` and holds other values."""
    made = torch.empty_strided(
        expected.size(), expected.stride(), dtype=expected.dtype, device=expected.device
    )
    _poison(made, expected)
    return made


def difference(expected: Tensor, found: Tensor) -> float:
    """Return the largest difference as a part of the largest expected value; see ``Probe``."""
    if not expected.numel():
        return 0.0
    if torch.equal(expected, found):
        return 0.0
    kind = expected.dtype
    if kind not in (torch.float32, torch.float64):
        nans = kind.is_floating_point and torch.equal(
            expected.nan_to_num(nan=0.0), found.nan_to_num(nan=0.0)
        )
        return 0.0 if nans and torch.equal(expected.isnan(), found.isnan()) else math.inf
    rest = expected.isfinite()
    if not torch.equal(rest, found.isfinite()):
        return math.inf
    odd = ~rest
    if not torch.equal(expected[odd].nan_to_num(nan=0.5), found[odd].nan_to_num(nan=0.5)):
        return math.inf
    scale = float(expected[rest].abs().max()) if bool(rest.any()) else 0.0
    largest = float((expected[rest] - found[rest]).abs().max()) if bool(rest.any()) else 0.0
    return 0.0 if largest == 0.0 else largest / scale if scale else math.inf


def _poison(place: Tensor, expected: Tensor) -> None:
    kind = place.dtype
    if kind.is_floating_point or kind.is_complex:
        place.fill_(float("nan"))
    elif kind is torch.bool:
        torch.logical_not(expected, out=place)
    else:
        torch.add(expected, 1, out=place)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tuple(tensor.size()), tuple(tensor.stride())
