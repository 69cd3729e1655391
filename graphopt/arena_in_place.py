"""Whether a step may write an output over bytes that it reads: found out by running it.

Executing element by element, in any order, element i of the output destroys the bytes it is written
to. So no other element may depend on them. To see whether one does, those bytes are changed for
some elements and the node runs again: all other elements must stay. For few elements the choices
tell every pair apart, for many two random halves change in turn. Other outputs of the step must not
change at all.

This can miss a dependence only where the changed bytes happen to give the same result.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.arena_kernels import Array, KernelMissingError, Value, bytes_of
from graphopt.arena_memory import Bytes

_FEW_ELEMENTS = 16
_PIECE_WORDS = 1 << 16
# Part of the elements that moving must change; below it, most elements are alike.
_ENOUGH_CHANGED = 0.25
# A kernel may round an element differently beside other neighbours.
_ROUNDING = 1e-6
Mask = npt.NDArray[np.bool_]


def proves_in_place(
    memory: Bytes,
    overlaps: Iterable[tuple[int, int]],
    name: str,
    values: Mapping[str, Value],
    run: Callable[[], Mapping[str, Value]],
    random: np.random.Generator,
) -> bool:
    """Return whether output ``name`` may be written to ``memory`` while the step reads it.

    Args:
        memory: Where the output goes; changed while this runs, restored at the end.
        overlaps: The parts ``[start, end)`` of ``memory`` that the step reads.
        name: Name of the output.
        values: All outputs of the step.
        run: Runs the step again on what is in memory then.
        random: Chooses what to change.
    """
    dtype = values[name].dtype
    before = memory.copy()
    words, width = _words(before, dtype)
    inside = np.zeros(words.size // width, np.bool_)
    for start, end in overlaps:
        if start % dtype.itemsize or end % dtype.itemsize:
            return False
        inside[start // dtype.itemsize : end // dtype.itemsize] = True
    flip = words ^ _replacement(words, width, dtype, random)
    try:
        for mask in _masks(inside.size, random):
            chosen = mask & inside
            _change(memory, words, flip, chosen if width == 1 else np.repeat(chosen, width))
            again = run()
            for other, value in values.items():
                if not _same(value, again[other], mask if other == name else None):
                    return False
    except KernelMissingError:
        # The kernel refuses the changed bytes: they are no mere elements, an index for instance.
        return False
    finally:
        memory[:] = before
    return True


def _change(memory: Bytes, words: Array, flip: Array, chosen: Mask) -> None:
    """Write ``words`` to ``memory``, the chosen ones flipped; in pieces that a cache holds."""
    size = words.itemsize
    for low in range(0, words.size, _PIECE_WORDS):
        piece = slice(low, low + _PIECE_WORDS)
        # All bits of a chosen word, without a branch: the choice is random.
        select = np.negative(chosen[piece].astype(words.dtype))
        changed = words[piece] ^ (flip[piece] & select)
        memory[low * size : low * size + changed.nbytes] = changed.view(np.uint8)


def _words(data: Bytes, dtype: np.dtype[Any]) -> tuple[Array, int]:
    """Return ``data`` as words, and how many make an element; packed elements: a byte each."""
    word = min(dtype.itemsize, 8)
    return data.view(f"u{word}"), dtype.itemsize // word


def _masks(count: int, random: np.random.Generator) -> Iterator[Mask]:
    if count <= _FEW_ELEMENTS:
        numbers = np.arange(count)
        halves = [(numbers >> bit) % 2 == 1 for bit in range(max(1, count - 1).bit_length())]
    else:
        bits = np.frombuffer(random.bytes(-(-count // 8)), np.uint8)
        halves = [np.unpackbits(bits)[:count].view(np.bool_)]
    for half in halves:
        yield half
        yield ~half


def _replacement(
    words: Array, width: int, dtype: np.dtype[Any], random: np.random.Generator
) -> Array:
    """Return other bytes for the same elements: moved, or changed where most are alike."""
    moved = np.roll(words, width * int(random.integers(1, max(2, words.size // width))))
    if np.count_nonzero(moved != words) > _ENOUGH_CHANGED * words.size:
        return moved
    if dtype.kind not in "fiu":
        return words ^ np.ones((), words.dtype)
    with np.errstate(all="ignore"):
        # Never zero for integers: a divisor may be among them.
        changed = (words.view(dtype) * 2 + 1).astype(dtype)
    return changed.view(words.dtype)


def _same(first: Value, second: Value, free: Mask | None) -> bool:
    """Return whether two outputs agree, but for rounding and for the elements ``free``."""
    if not isinstance(first, np.ndarray) or not isinstance(second, np.ndarray):
        return False
    if first.shape != second.shape or first.dtype != second.dtype or first.dtype == "O":
        return False
    (a, width), (b, _) = (_words(bytes_of(array), first.dtype) for array in (first, second))
    differing = a != b
    if width > 1:
        differing = differing.reshape(-1, width).any(axis=1)
    if free is not None:
        differing &= ~free
    if not differing.any():
        return True
    if first.dtype.kind not in "fc":
        return False
    x, y = first.reshape(-1)[differing], second.reshape(-1)[differing]
    finite = np.abs(first[np.isfinite(first)])
    with np.errstate(all="ignore"):
        return bool((np.abs(x - y) <= _ROUNDING * (finite.max() if finite.size else 0.0)).all())
