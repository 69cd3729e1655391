"""Memory whose every byte is accounted for: what holds no value holds ``POISON``.

A ``Segment`` is an arena of exactly the planned size between two guards. It knows which values it
holds, where, and a digest of their bytes. The digests are what makes damage visible: a value that
was written over, freed too early or touched by a kernel no longer matches its own, whether the
numbers computed from it would have shown that or not.
"""

import zlib
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# As float32 -2.7e7, as int32 -8.8e8, as bool neither 0 nor 1: hardly a plausible value anywhere.
POISON = 0xCB
_GUARD_BYTES = 4096
_BASE_ALIGNMENT = 64
_CHUNK_BYTES = 1 << 20

Bytes = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]


def digest_of(data: Bytes) -> int:
    """Return the CRC-32 of ``data``; two contents that differ share it once in 2**32."""
    return zlib.crc32(data.data)


@dataclass(frozen=True, slots=True)
class Held:
    """A value in a segment, at the bytes ``[start, end)``.

    Attributes:
        name: Name of the value.
        start: First byte.
        end: First byte after it.
        digest: Digest of its bytes as they were written.
        written_at: Step that wrote it, -1 for what came from outside.
        last_use: Last step of the model that reads it; larger than all steps for what must be
            intact at the end.
        dtype: Element type.
        shape: Its sizes in this run.
    """

    name: str
    start: int
    end: int
    digest: int
    written_at: int
    last_use: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class Segment:
    """A run of ``size`` bytes, poisoned, with the values it holds.

    Args:
        label: For messages: "arena of pool 'sram'".
        size: Bytes; the memory starts at a multiple of 64, so planned alignments are real ones.
    """

    def __init__(self, label: str, size: int) -> None:
        self.label = label
        self.size = size
        raw = np.empty(size + 2 * _GUARD_BYTES + _BASE_ALIGNMENT, np.uint8)
        raw.fill(POISON)
        first = _GUARD_BYTES + -(raw.ctypes.data + _GUARD_BYTES) % _BASE_ALIGNMENT
        self._raw = raw
        self._first = first
        self.bytes: Bytes = raw[first : first + size]
        self.high_water = 0
        self._held: list[tuple[int, int, str, Held]] = []
        self._longest = 0

    def hold(self, held: Held) -> None:
        """Record a value whose bytes are in place."""
        insort(self._held, (held.start, held.end, held.name, held))
        self._longest = max(self._longest, held.end - held.start)
        self.high_water = max(self.high_water, held.end)

    def release(self, held: Held) -> None:
        """Forget a value that nobody needs any more; its bytes stay."""
        at = bisect_left(self._held, (held.start, held.end, held.name))
        if at < len(self._held) and self._held[at][3] is held:
            del self._held[at]

    def held_over(self, start: int, end: int) -> Iterator[Held]:
        """Yield the values that have a byte in ``[start, end)``."""
        if start >= end:
            return
        at = bisect_left(self._held, (end,)) - 1
        while at >= 0 and self._held[at][0] + self._longest > start:
            if self._held[at][1] > start:
                yield self._held[at][3]
            at -= 1

    def is_intact(self, held: Held) -> bool:
        """Return whether the bytes of a value are those that were written."""
        return digest_of(self.bytes[held.start : held.end]) == held.digest

    def write(self, start: int, data: Bytes) -> None:
        """Write ``data`` from ``start`` on; the caller has checked the range."""
        self.bytes[start : start + data.size] = data
        self.high_water = max(self.high_water, start + data.size)

    def poison(self, start: int, end: int) -> None:
        """Give ``[start, end)`` back."""
        self.bytes[start:end] = POISON

    def first_stray(self, occupied: Iterable[tuple[int, int]]) -> int | None:
        """Return the first byte outside of ``occupied`` that is not poison, None when all are.

        The guards before and after the segment count: positions are then negative, or not less
        than ``size``. Reads every free byte.
        """
        position = -_GUARD_BYTES
        for start, end in (*sorted(occupied), (self.size + _GUARD_BYTES, 0)):
            stray = self._first_not_poison(position, start)
            if stray is not None:
                return stray
            position = max(position, end)
        return None

    def _first_not_poison(self, start: int, end: int) -> int | None:
        for low in range(start, end, _CHUNK_BYTES):
            part = self._raw[self._first + low : self._first + min(end, low + _CHUNK_BYTES)]
            if part.min() != POISON or part.max() != POISON:
                return low + int(np.argmax(part != POISON))
        return None


class MappedWeights:
    """A segment of weights whose bytes stay in their file, read-only; only the places are kept."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._spans: list[tuple[str, Bytes, int]] = []

    def put(self, name: str, start: int, data: Bytes) -> str | None:
        """Place a weight; returns the name of one that has a byte there already, else None."""
        at = bisect_left(self._starts, start)
        if at < len(self._starts) and self._starts[at] < start + data.size:
            return self._spans[at][0]
        if at and self._starts[at - 1] + self._spans[at - 1][1].size > start:
            return self._spans[at - 1][0]
        self._starts.insert(at, start)
        self._spans.insert(at, (name, data, digest_of(data)))
        return None

    def part(self, start: int, end: int) -> Bytes | None:
        """Return the bytes ``[start, end)`` when they lie inside one weight."""
        at = bisect_left(self._starts, start + 1) - 1
        if at < 0:
            return None
        first, data = self._starts[at], self._spans[at][1]
        return data[start - first : end - first] if end <= first + data.size else None

    def first_changed(self) -> str | None:
        """Return the name of a weight that is not what it was, None when all are."""
        changed = (name for name, data, digest in self._spans if digest_of(data) != digest)
        return next(changed, None)
