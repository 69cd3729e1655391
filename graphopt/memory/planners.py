"""Planners: functions from a placement problem to a placement, and the one call that picks.

``plan_placement`` takes the lower bound, runs a portfolio of greedy orders and stops as soon as a
placement meets the bound. With ``effort="exact"`` what is left open goes to the exact search in
:mod:`graphopt.memory.packing`.

The greedy family: put the items in an order, then place each in a gap between the items that are
alive with it and already placed. Size and breadth orders after Pisarchyk and Lee, "Efficient Memory
Management for Deep Neural Net Inference" (arXiv 2001.03288), sections 5.2 and 5.3.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from graphopt.errors import OptionError
from graphopt.memory.packing.first_fit import Ints, Overlaps, place_in_order
from graphopt.memory.problem import Item, Placement, Problem, lower_bound_bytes

# One sort key, a number per rank.
Keys = NDArray[np.int64] | NDArray[np.float64]

_NO_LIMIT = 1 << 62
# Microseconds the portfolio may cost per item, by the model of _cost_us: counted, not clocked, so
# that the same problem always meets the same planners.
_BUDGET_US_PER_ITEM = 70
_BUDGET_US_AT_LEAST = 1_000_000


def plan_placement(
    problem: Problem,
    *,
    effort: Literal["greedy", "exact"] = "greedy",
    seconds: float = 60.0,
    node_limit: int | None = None,
) -> Placement:
    """Return the lowest placement found.

    Args:
        problem: The items. With a capacity the exact search stops at the first placement that
            fits it; one above it is returned too, and the caller decides what that means.
        effort: ``greedy`` stops after the portfolio; ``exact`` searches on until the height is
            proven minimal or a limit is reached.
        seconds: Wall-clock guard of the exact search; it only matters on a machine too slow to
            reach ``node_limit`` in that time, so results do not depend on the clock otherwise.
        node_limit: Search nodes the exact search may visit; None for its default.

    Raises:
        OptionError: ``problem-invalid``: the items contradict each other or themselves;
            ``effort-unknown``: no such effort.
    """
    if effort not in ("greedy", "exact"):
        raise OptionError(
            "effort-unknown", f"unknown effort '{effort}'", hint="use 'greedy' or 'exact'"
        )
    best = _run_portfolio(problem)
    if best.optimal or effort == "greedy":
        return best
    from graphopt.memory.packing.exact import improve_placement

    return improve_placement(problem, best, seconds=seconds, node_limit=node_limit)


def plan_naive(problem: Problem) -> Placement:
    """Place every item on top of the one before: no reuse, the baseline of all comparisons."""
    check_problem(problem)
    top = max((i.offset + i.size for i in problem.items if i.offset is not None), default=0)
    offsets = []
    for item in problem.items:
        if item.offset is None:
            offset = -(-top // item.alignment) * item.alignment
            top = offset + item.size
        else:
            offset = item.offset
        offsets.append(offset)
    return _placement(problem, offsets, "naive", placement_bound(problem))


@dataclass(frozen=True)
class GreedyPlanner:
    """A planner that places items in one order.

    Attributes:
        name: ``greedy-<order>-<fit>``.
        key: Rank sequence for an overlap structure, best first; ties go to the earlier rank.
        best_fit: Smallest sufficient gap when True, lowest when False.
    """

    name: str
    key: Callable[[Overlaps], Sequence[Keys]]
    best_fit: bool

    def __call__(self, problem: Problem) -> Placement:
        """Return the placement of this planner, whatever its height.

        Raises:
            OptionError: ``problem-invalid``.
        """
        check_problem(problem)
        overlaps = Overlaps(problem)
        offsets = self.offsets(overlaps, _NO_LIMIT)
        assert offsets is not None, "nothing lies above 2**62 bytes"
        return _placement(problem, offsets, self.name, placement_bound(problem))

    def offsets(self, overlaps: Overlaps, give_up_above: int) -> list[int] | None:
        """Return the offsets by item, or None when the height exceeds ``give_up_above``."""
        # lexsort sorts by its last key first.
        order = np.lexsort(tuple(reversed(self.key(overlaps))))
        free = order[overlaps.pinned[order] < 0].tolist()
        by_rank = place_in_order(
            overlaps, free, best_fit=self.best_fit, give_up_above=give_up_above
        )
        if by_rank is None:
            return None
        offsets = [0] * len(by_rank)
        for item, offset in zip(overlaps.order.tolist(), by_rank, strict=True):
            offsets[item] = offset
        return offsets


def _by_size(overlaps: Overlaps) -> Sequence[Keys]:
    return (-overlaps.sizes, overlaps.starts - overlaps.ends)


def _by_duration(overlaps: Overlaps) -> Sequence[Keys]:
    return (overlaps.starts - overlaps.ends, -overlaps.sizes)


def _by_area(overlaps: Overlaps) -> Sequence[Keys]:
    # As floats: bytes times steps may pass 2**63, and only the order matters.
    return ((overlaps.starts - overlaps.ends).astype(np.float64) * overlaps.sizes,)


def _by_conflicts(overlaps: Overlaps) -> Sequence[Keys]:
    ended = np.searchsorted(np.sort(overlaps.ends), overlaps.starts, side="right")
    return (ended - overlaps.right, -overlaps.sizes)


def _by_breadth(overlaps: Overlaps) -> Sequence[Keys]:
    return (-_peak_during(overlaps), -overlaps.sizes)


def _by_execution(overlaps: Overlaps) -> Sequence[Keys]:
    return (overlaps.starts, -overlaps.sizes)


def _peak_during(overlaps: Overlaps) -> Ints:
    """Return, by rank, the largest sum of live sizes at any step of the item's lifetime."""
    num_items = len(overlaps.order)
    started = np.concatenate(([0], np.cumsum(overlaps.sizes)))
    by_end = np.argsort(overlaps.ends, kind="stable")
    ended = np.concatenate(([0], np.cumsum(overlaps.sizes[by_end])))
    # The sum only grows when items start, so the peak of a lifetime is at a start inside it.
    upto = np.searchsorted(overlaps.starts, overlaps.starts, side="right")
    gone = np.searchsorted(overlaps.ends[by_end], overlaps.starts, side="right")
    peak: Ints = started[upto] - ended[gone]
    # Sparse table: row r holds the maximum over 2**r neighbours; two of them cover any range.
    result = peak.copy()
    row, width = peak, 1
    lengths = overlaps.right - np.arange(num_items)
    while True:
        here = np.flatnonzero((lengths >= width) & (lengths < 2 * width))
        result[here] = np.maximum(row[here], row[overlaps.right[here] - width])
        if 2 * width > num_items:
            return result
        row = np.maximum(row[:-width], row[width:])
        width *= 2


_ORDERS: tuple[tuple[str, Callable[[Overlaps], Sequence[Keys]]], ...] = (
    ("size", _by_size),
    ("breadth", _by_breadth),
    ("duration", _by_duration),
    ("execution", _by_execution),
    ("area", _by_area),
    ("conflicts", _by_conflicts),
)

#: The portfolio in the order in which it runs: what most often meets the bound comes first.
GREEDY_PLANNERS: tuple[GreedyPlanner, ...] = tuple(
    GreedyPlanner(f"greedy-{name}-{fit}", key, fit == "best-fit")
    for fit in ("first-fit", "best-fit")
    for name, key in _ORDERS
)


def _run_portfolio(problem: Problem) -> Placement:
    """Return the lowest placement of all planners; ties go to the planner first by name."""
    best = plan_naive(problem)
    if best.optimal:
        return best
    overlaps = Overlaps(problem)
    left_us = max(_BUDGET_US_AT_LEAST, _BUDGET_US_PER_ITEM * len(problem.items))
    for planner in GREEDY_PLANNERS:
        left_us -= _cost_us(overlaps)
        if left_us < 0 and best.planner != "naive":
            break
        wins_tie = planner.name < best.planner
        offsets = planner.offsets(overlaps, best.height if wins_tie else best.height - 1)
        if offsets is not None:
            best = _placement(problem, offsets, planner.name, best.lower_bound)
        if best.optimal:
            break
    return best


def _cost_us(overlaps: Overlaps) -> int:
    """Return about how long one planner takes (measured: 2 us an item, 0.13 us an overlap)."""
    num_items, num_visits = len(overlaps.order), 2 * overlaps.num_pairs
    if overlaps.is_dense:
        return 20 * num_items + num_visits // 50
    return 2 * num_items + num_visits // 8


def placement_bound(problem: Problem) -> int:
    """Return a proven lower bound of the height that also counts unavoidable padding.

    Every free offset is a multiple of the smallest alignment, so of the items alive at one step all
    but the topmost take their size rounded up to it.
    """
    bound = lower_bound_bytes(problem)
    unit = min((item.alignment for item in problem.items), default=1)
    if unit == 1 or any(item.offset is not None for item in problem.items):
        return bound
    padding = [-item.size % unit for item in problem.items]
    if not any(padding):
        return bound
    rounded = tuple(
        Item(item.id, item.start, item.end, item.size + pad)
        for item, pad in zip(problem.items, padding, strict=True)
    )
    return max(bound, lower_bound_bytes(Problem(rounded)) - max(padding))


def check_problem(problem: Problem) -> None:
    """Check that the items of a problem make sense one by one and that its pins are compatible.

    Raises:
        OptionError: ``problem-invalid``.
    """
    seen: set[str] = set()
    for item in problem.items:
        if item.id in seen:
            raise _invalid(item, "the id is used twice")
        seen.add(item.id)
        if item.end <= item.start:
            raise _invalid(item, f"the lifetime [{item.start}, {item.end}) is empty")
        if item.size < 1:
            raise _invalid(item, f"size {item.size}, expected at least 1 byte")
        if item.alignment < 1 or item.alignment & (item.alignment - 1):
            raise _invalid(item, f"alignment {item.alignment}, expected a power of two")
        if item.offset is not None and (item.offset < 0 or item.offset % item.alignment):
            raise _invalid(
                item, f"pinned to {item.offset}, expected a multiple of {item.alignment}, 0 or more"
            )
    total = sum(item.size + item.alignment + (item.offset or 0) for item in problem.items)
    if total >= _NO_LIMIT:
        raise OptionError("problem-invalid", f"the items take {total} bytes in all, 2**62 or more")
    _check_pins(problem)


def _check_pins(problem: Problem) -> None:
    events: list[tuple[int, bool, int, int, Item]] = []
    for index, item in enumerate(problem.items):
        if item.offset is not None:
            events.append((item.start, True, item.offset, index, item))
            events.append((item.end, False, item.offset, index, item))
    events.sort(key=lambda event: event[:4])
    alive: list[tuple[int, int, Item]] = []  # (offset, index, item), pairwise disjoint
    for _, arrives, offset, index, item in events:
        at = bisect_left(alive, (offset, index), key=lambda entry: entry[:2])
        if not arrives:
            del alive[at]
            continue
        below, above = alive[max(0, at - 1) : at], alive[at : at + 1]
        for low, other in ((low, other) for low, _, other in (*below, *above)):
            if low < offset + item.size and offset < low + other.size:
                raise _invalid(item, f"pinned onto '{other.id}', which is alive with it")
        alive.insert(at, (offset, index, item))


def _invalid(item: Item, text: str) -> OptionError:
    return OptionError("problem-invalid", f"placement item '{item.id}': {text}", node=item.id)


def _placement(
    problem: Problem, offsets: Sequence[int], planner: str, lower_bound: int
) -> Placement:
    tops = (offset + item.size for item, offset in zip(problem.items, offsets, strict=True))
    height = max(tops, default=0)
    return Placement(tuple(offsets), height, planner, lower_bound, height == lower_bound)
