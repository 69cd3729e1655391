"""Places the items of a problem one after the other in a given order.

Indices in this file are *ranks*: positions of the items sorted by (start, index). In that order the
items that overlap item i in time and start no earlier are a contiguous range right of i, and the
ones that start earlier are those alive when i starts. So all overlaps are known from one sweep, and
only the overlaps that exist are ever looked at.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from graphopt.memory.problem import Problem

Ints = NDArray[np.int64]

# Above this mean number of overlapping items, arrays beat lists (measured, numpy 2.4).
_DENSE_DEGREE = 250
# Left neighbours are kept as arrays up to this many pairs (200 MB), else found again every time.
_KEPT_PAIRS = 50_000_000


class Overlaps:
    """Which items of a problem are alive together.

    Attributes:
        order: Item index by rank.
        starts, ends, sizes, alignments: Columns of the problem by rank.
        pinned: Pinned offset by rank, -1 when free.
        right: The items ``rank + 1 .. right[rank] - 1`` start during the item's lifetime.
        num_pairs: Number of pairs of items that overlap in time.
    """

    def __init__(self, problem: Problem) -> None:
        items = problem.items
        starts = np.array([item.start for item in items], dtype=np.int64)
        self.order: Ints = np.argsort(starts, kind="stable")
        self.starts: Ints = starts[self.order]
        self.ends: Ints = np.array([item.end for item in items], dtype=np.int64)[self.order]
        self.sizes: Ints = np.array([item.size for item in items], dtype=np.int64)[self.order]
        alignments = np.array([item.alignment for item in items], dtype=np.int64)
        self.alignments: Ints = alignments[self.order]
        pinned = [-1 if item.offset is None else item.offset for item in items]
        self.pinned: Ints = np.array(pinned, dtype=np.int64)[self.order]
        self.right: Ints = np.searchsorted(self.starts, self.ends, side="left")
        self.num_pairs = int((self.right - np.arange(len(items)) - 1).sum())

    @property
    def is_dense(self) -> bool:
        """True when arrays are the faster way to walk the overlaps."""
        return self.num_pairs * 2 > _DENSE_DEGREE * len(self.order)

    @cached_property
    def left_lists(self) -> list[list[int]]:
        """The items that are alive when an item starts and started before it, by rank."""
        ends, starts = self.ends.tolist(), self.starts.tolist()
        alive: list[int] = []
        found = []
        for rank, start in enumerate(starts):
            alive = [other for other in alive if ends[other] > start]
            found.append(alive)
            alive = [*alive, rank]
        return found

    def left_array(self, rank: int) -> NDArray[np.integer]:
        """Return the same as ``left_lists[rank]``, as an array."""
        if self._left_arrays is not None:
            return self._left_arrays[rank]
        return np.flatnonzero(self.ends[:rank] > self.starts[rank])

    @cached_property
    def _left_arrays(self) -> list[NDArray[np.int32]] | None:
        if self.num_pairs > _KEPT_PAIRS:
            return None
        alive: Ints = np.zeros(0, dtype=np.int64)
        found = []
        for rank, start in enumerate(self.starts.tolist()):
            alive = alive[self.ends[alive] > start]
            found.append(alive.astype(np.int32))
            alive = np.append(alive, rank)
        return found


def place_in_order(
    overlaps: Overlaps, order: Sequence[int], *, best_fit: bool, give_up_above: int
) -> list[int] | None:
    """Return offsets by rank: pinned items first, then each item in ``order`` in a gap.

    Args:
        overlaps: The problem.
        order: Ranks of the items that are not pinned, each once.
        best_fit: Take the smallest gap that is large enough, not the lowest. Both take the space
            above everything alive when no gap is.
        give_up_above: Stop and return None as soon as an item ends above this many bytes.
    """
    if overlaps.is_dense:
        return _place_with_arrays(overlaps, order, best_fit, give_up_above)
    return _place_with_lists(overlaps, order, best_fit, give_up_above)


def _place_with_lists(
    overlaps: Overlaps, order: Sequence[int], best_fit: bool, give_up_above: int
) -> list[int] | None:
    left, right = overlaps.left_lists, overlaps.right.tolist()
    sizes, alignments = overlaps.sizes.tolist(), overlaps.alignments.tolist()
    offsets: list[int] = overlaps.pinned.tolist()
    for rank in order:
        placed = [(offsets[k], offsets[k] + sizes[k]) for k in left[rank] if offsets[k] >= 0]
        for k in range(rank + 1, right[rank]):
            if offsets[k] >= 0:
                placed.append((offsets[k], offsets[k] + sizes[k]))  # noqa: PERF401 - hot loop
        placed.sort()
        size, mask = sizes[rank], alignments[rank] - 1
        at, chosen, smallest = 0, -1, -1
        for low, top in placed:
            if low - at >= size:
                if not best_fit:
                    chosen = at
                    break
                if chosen < 0 or low - at < smallest:
                    chosen, smallest = at, low - at
            at = max(at, (top + mask) & ~mask)
        offset = at if chosen < 0 else chosen
        if offset + size > give_up_above:
            return None
        offsets[rank] = offset
    return offsets


def _place_with_arrays(
    overlaps: Overlaps, order: Sequence[int], best_fit: bool, give_up_above: int
) -> list[int] | None:
    sizes, right, offsets = overlaps.sizes, overlaps.right, overlaps.pinned.copy()
    for rank in order:
        near = np.concatenate((overlaps.left_array(rank), np.arange(rank + 1, right[rank])))
        low = offsets[near]
        is_placed = low >= 0
        low, near = low[is_placed], near[is_placed]
        by_offset = np.argsort(low)
        low, top = low[by_offset], (low + sizes[near])[by_offset]
        mask = int(overlaps.alignments[rank]) - 1
        gap_starts = np.zeros(len(low) + 1, dtype=np.int64)
        np.maximum.accumulate((top + mask) & ~mask, out=gap_starts[1:])
        gaps = low - gap_starts[:-1]
        large_enough = np.flatnonzero(gaps >= sizes[rank])
        if len(large_enough) == 0:
            offset = int(gap_starts[-1])
        elif best_fit:
            offset = int(gap_starts[large_enough[np.argmin(gaps[large_enough])]])
        else:
            offset = int(gap_starts[large_enough[0]])
        if offset + int(sizes[rank]) > give_up_above:
            return None
        offsets[rank] = offset
    placed: list[int] = offsets.tolist()
    return placed
