"""Searches for scales: what each of several ranges loses, in tiles that stay in a cache.

In: a tile of numbers whose columns share a scale. Out: the best scale of each column, or the
squared errors of all that were tried.

The loops exist twice: in numpy, and in ``compiled_search`` for numba, seven times faster, because
a number is read once for all operations on it. Both make the same bits. numba is imported only
when enough was searched in this process that it pays; what it compiles is cached on disk, and
where it is not cached yet, much more must have been searched.
"""

import importlib
import importlib.util
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.quantization import compiled_search

# Numbers times ranges after which the import of numba (half a second) pays, and after which
# compiling (two seconds, once for each installation) pays as well.
_CACHED_PAYS = 1 << 27
_COMPILING_PAYS = 1 << 31
# Rows whose squares are summed in float32.
HEIGHT = 32
# Numbers of a tile.
TILE = 1 << 17

Floats = npt.NDArray[np.float32]
_TINY = np.finfo(np.float32).tiny


class _Compiled:
    """The compiled loops, once they pay; one for the process, like the modules it loads."""

    def __init__(self) -> None:
        self._searched = 0
        self._needed = _CACHED_PAYS
        self._loops: dict[str, Callable[..., None]] = {}
        self._lock = threading.Lock()
        self._present = importlib.util.find_spec("numba") is not None

    def loop(self, name: str, searched: int) -> Callable[..., None] | None:
        """Return a loop of ``compiled_search``, None as long as numpy is to be used.

        Args:
            name: Which one.
            searched: Numbers times ranges that are about to be searched.
        """
        if not self._present:
            return None
        with self._lock:
            self._searched += searched
            if name not in self._loops and self._searched >= self._needed:
                self._load(name)
            return self._loops.get(name)

    def _load(self, name: str) -> None:
        numba = importlib.import_module("numba")
        try:
            made: Any = numba.njit(cache=True, nogil=True, error_model="numpy")(
                getattr(compiled_search, name)
            )
        except RuntimeError:
            # No folder for the cache can be written: every process would compile.
            self._present = False
            return
        stored = Path(made.stats.cache_path).glob(f"compiled_search.{name}-*.nbi")
        if self._searched < _COMPILING_PAYS and not any(stored):
            self._needed = _COMPILING_PAYS
            return
        self._loops[name] = made


_COMPILED = _Compiled()


def usable(scales: Floats) -> Floats:
    """Return ``scales`` that one can divide by; a block of zeros has scale 1."""
    found: Floats = np.where(np.abs(scales) < _TINY, np.float32(1), scales)
    return found


def best_scales(
    columns: Floats, scales: Floats, low: Floats, high: Floats, parts: Floats
) -> Floats:
    """Return the scale of each column whose integers lose least, fitted to the integers.

    With ``y = v / t - q``, what a range ``t`` leaves of numbers ``v`` beside integers ``q``, the
    best scale for the integers is ``t * (1 + yq / qq)``; its error is ``t^2 * (yy - yq^2 / qq)``.

    Args:
        columns: [rows, columns].
        scales: Of each column, one can divide by them.
        low: Smallest integer of each column, counted from zero.
        high: Largest integer of each column.
        parts: Ranges to try, as parts of ``scales``; of equals the first is kept.
    """
    best = scales.copy()
    compiled = _COMPILED.loop("best_scales", columns.size * len(parts))
    if compiled is not None:
        work = np.empty((6, columns.shape[1]), np.float32)
        compiled(columns, scales, low, high, parts, work, best)
        return best
    if columns.shape[1] == 1:
        # numpy would sum a single column in another order.
        twice, ends = np.repeat(columns, 2, 1), (np.repeat(low, 2), np.repeat(high, 2))
        return best_scales(twice, np.repeat(scales, 2), *ends, parts)[:1]
    left, integers, products = (np.empty_like(columns) for _ in range(3))
    least = np.full(scales.shape, np.inf, np.float32)
    for part in parts:
        tried = usable(scales * part)
        np.multiply(columns, 1 / tried, out=left)
        np.rint(left, out=integers)
        # Several times faster than ``clip`` with bounds that differ.
        np.maximum(integers, low, out=integers)
        np.minimum(integers, high, out=integers)
        np.subtract(left, integers, out=left)
        crossed = np.add.reduce(np.multiply(left, integers, out=products), axis=0)
        errors = np.add.reduce(np.multiply(left, left, out=left), axis=0)
        squares = np.add.reduce(np.multiply(integers, integers, out=integers), axis=0)
        # Without integers there is nothing to divide.
        moved = crossed / np.where(squares > 0, squares, np.float32(1))
        errors -= crossed * moved
        errors *= tried * tried
        better = errors < least
        np.copyto(least, errors, where=better)
        np.copyto(best, usable(tried * (1 + moved)), where=better)
    return best


def squared_errors(columns: Floats, scales: Floats, limit: int) -> npt.NDArray[np.float64]:
    """Return the squared error of each column with each scale, [ranges, columns].

    Args:
        columns: [rows, columns].
        scales: [ranges, columns]; one can divide by them.
        limit: The largest integer; the smallest is its negative.
    """
    rows, count = columns.shape
    height = min(rows, HEIGHT)
    if rows % height:
        # Zeros lose nothing.
        filled = np.zeros((-(-rows // height) * height, count), np.float32)
        filled[:rows] = columns
        columns = filled
    sums = _rests(columns, np.float32(1) / scales, limit, height)
    wide = scales.astype(np.float64)
    found: npt.NDArray[np.float64] = sums.sum(axis=1, dtype=np.float64) * (wide * wide)
    return found


def _rests(columns: Floats, inverses: Floats, limit: int, height: int) -> Floats:
    """Return the squares that integers leave, in steps, over ``height`` rows each."""
    sums = np.empty((len(inverses), len(columns) // height, columns.shape[1]), np.float32)
    compiled = _COMPILED.loop("rests", columns.size * len(inverses))
    if compiled is not None:
        compiled(columns, inverses, np.float32(limit), height, sums)
        return sums
    if columns.shape[1] == 1:
        return _rests(np.repeat(columns, 2, 1), np.repeat(inverses, 2, 1), limit, height)[..., :1]
    left, integers = np.empty_like(columns), np.empty_like(columns)
    for inverse, total in zip(inverses, sums, strict=True):
        np.multiply(columns, inverse, out=left)
        np.rint(left, out=integers)
        np.clip(integers, -limit, limit, out=integers)
        np.subtract(left, integers, out=left)
        np.multiply(left, left, out=left)
        np.add.reduce(left.reshape(len(total), height, -1), axis=1, out=total)
    return sums


def packed_integers(
    columns: Floats, scales: Floats, zeros: Floats, smallest: int, largest: int, bits: int
) -> npt.NDArray[np.uint8]:
    """Return integers, those of 4 bits two rows in one, the first in the low half of a byte.

    Args:
        columns: [rows, columns]; used up.
        scales: Of each column.
        zeros: Of each column, an integer.
        smallest: The smallest integer.
        largest: The largest integer.
        bits: 4 or 8.
    """
    rows, count = columns.shape
    compiled = None
    if bits == 4 and not rows % 2:
        compiled = _COMPILED.loop("packed_integers", columns.size)
    if compiled is not None:
        packed = np.empty((rows // 2, count), np.uint8)
        compiled(columns, scales, zeros, np.float32(smallest), np.float32(largest), packed)
        return packed
    steps = np.divide(columns, scales, out=columns)
    np.rint(steps, out=steps)
    steps += zeros
    integers = np.clip(steps, smallest, largest, out=steps).astype(np.uint8)
    if bits == 8:
        return integers
    if rows % 2:
        integers = np.concatenate([integers, np.zeros_like(integers[:1])])
    return integers[0::2] | (integers[1::2] << np.uint8(4))
