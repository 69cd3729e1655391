"""The placement problem and its answer: plain data that knows no graph.

Words: an *item* is one buffer to place. It is alive during the half-open interval ``[start,
end)`` of steps and takes ``size`` bytes at an offset that is a multiple of ``alignment``. Two
items whose lifetimes intersect may not share a byte. The *height* of a placement is the largest
``offset + size``.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Item:
    """One buffer to place.

    Attributes:
        id: Unique name.
        start: First step at which the buffer is alive.
        end: First step at which it is no longer alive (half-open); ``end > start``.
        size: Bytes, at least 1.
        alignment: The offset must be a multiple of this power of two.
        offset: A pinned offset, or None when the planner chooses.
    """

    id: str
    start: int
    end: int
    size: int
    alignment: int = 1
    offset: int | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """Items to place in one arena.

    Attributes:
        items: The buffers, in the order that placements use.
        capacity: Bytes the arena may have, or None when only the height counts.
    """

    items: tuple[Item, ...]
    capacity: int | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """Where each item of a problem lies.

    Attributes:
        offsets: One offset per item, in the order of ``Problem.items``.
        height: The largest ``offset + size``; 0 without items.
        planner: Name of the planner that found it.
        lower_bound: A proven lower bound of the height, in bytes.
        optimal: True when the height is proven minimal.
    """

    offsets: tuple[int, ...]
    height: int
    planner: str
    lower_bound: int
    optimal: bool


Planner = Callable[[Problem], Placement]


def lower_bound_bytes(problem: Problem) -> int:
    """Return the largest sum of the sizes of items that are alive together: no placement is lower.

    Alignment padding is not counted, pinned items count with the top they reach. O(n log n).
    """
    events: list[tuple[int, int]] = []
    pinned_top = 0
    for item in problem.items:
        events.append((item.start, item.size))
        events.append((item.end, -item.size))
        if item.offset is not None:
            pinned_top = max(pinned_top, item.offset + item.size)
    events.sort()
    live = peak = 0
    for _, change in events:
        live += change
        peak = max(peak, live)
    return max(peak, pinned_top)
