"""Sequences and optional values, as lists and None: their lengths are those of the sample."""

from typing import Any

import torch
from torch import Tensor

from graphopt.backends.torch_ops.registry import op
from graphopt.backends.torch_ops.small import Small, plain_ints, tensor_of


@op("SequenceConstruct")
def _construct(*inputs: Tensor) -> list[Tensor]:
    return list(inputs)


@op("SequenceEmpty")
def _empty(*, dtype: int = 1) -> list[Tensor]:
    return []


@op("SequenceAt", small=True)
def _at(sequence: Any, position: Any) -> Any:
    return sequence[plain_ints(position)[0]]


@op("SequenceLength", small=True)
def _length(sequence: Any) -> Small:
    return Small((len(sequence),), torch.int64, scalar=True)


@op("SequenceInsert", small=True)
def _insert(sequence: Any, value: Any, position: Any = None) -> list[Any]:
    result = list(sequence)
    result.insert(len(result) if position is None else plain_ints(position)[0], tensor_of(value))
    return result


@op("SequenceErase", small=True)
def _erase(sequence: Any, position: Any = None) -> list[Any]:
    result = list(sequence)
    del result[-1 if position is None else plain_ints(position)[0]]
    return result


@op("ConcatFromSequence")
def _concat(sequence: list[Tensor], *, axis: int, new_axis: int = 0) -> Tensor:
    return torch.stack(sequence, axis) if new_axis else torch.cat(sequence, axis)


@op("SplitToSequence", small=True)
def _split(x: Any, split: Any = None, *, axis: int = 0, keepdims: int = 1) -> list[Tensor]:
    x = tensor_of(x)
    if split is None:
        parts = x.split(1, axis)
        return list(parts) if keepdims else [part.squeeze(axis) for part in parts]
    sizes = plain_ints(split)
    scalar = split.scalar if isinstance(split, Small) else split.dim() == 0
    return list(x.split(sizes[0] if scalar else sizes, axis))


@op("OptionalHasElement", small=True)
def _has_element(value: Any = None) -> Small:
    return Small((value is not None,), torch.bool, scalar=True)


@op("OptionalGetElement", small=True)
def _get_element(value: Any) -> Any:
    return value


@op("Optional", small=True)
def _optional(value: Any = None) -> Any:
    return value
