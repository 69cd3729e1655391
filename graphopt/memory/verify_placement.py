"""Checks a placement from its definition alone; shares no code with any planner.

A sweep over lifetimes keeps the items that are alive, sorted by offset. As long as no two of them
overlap, an item that becomes alive can only collide with its two neighbours in that order, so one
binary search per event decides the whole placement: O(n log n) comparisons.
"""

from bisect import bisect_left
from typing import NoReturn

from graphopt.errors import InvariantError
from graphopt.memory.problem import Item, Placement, Problem


def verify_placement(problem: Problem, placement: Placement) -> None:
    """Check that ``placement`` answers ``problem``: every rule of the contract, or an error.

    The capacity counts as a rule when the problem states one; a caller who wants to look at a
    placement that does not fit verifies it against a problem without a capacity.

    Raises:
        InvariantError: code ``placement-invalid``; ``details["rule"]`` is one of ``count``,
            ``item``, ``offset``, ``alignment``, ``pin``, ``height``, ``capacity``, ``bound``,
            ``optimal`` and ``overlap``, and the text names the items at fault.
    """
    _check_items(problem, placement)
    _check_height(problem, placement)
    _check_overlaps(problem, placement)


def _check_items(problem: Problem, placement: Placement) -> None:
    if len(placement.offsets) != len(problem.items):
        _reject(
            "count",
            f"the problem has {len(problem.items)} items, "
            f"the placement {len(placement.offsets)} offsets",
        )
    for item, offset in zip(problem.items, placement.offsets, strict=True):
        if item.size < 1 or item.end <= item.start:
            _reject("item", f"'{item.id}' has size {item.size} and lifetime {_span(item)}", item)
        if offset < 0:
            _reject("offset", f"'{item.id}' lies at the negative offset {offset}", item)
        if offset % item.alignment:
            _reject(
                "alignment",
                f"'{item.id}' lies at {offset}, which is no multiple of {item.alignment}",
                item,
            )
        if item.offset is not None and offset != item.offset:
            _reject("pin", f"'{item.id}' is pinned to {item.offset} but lies at {offset}", item)


def _check_height(problem: Problem, placement: Placement) -> None:
    height = 0
    for item, offset in zip(problem.items, placement.offsets, strict=True):
        height = max(height, offset + item.size)
    if placement.height != height:
        _reject("height", f"the items reach {height}, the placement says {placement.height}")
    if placement.lower_bound > height:
        _reject("bound", f"the lower bound {placement.lower_bound} is above the height {height}")
    if placement.lower_bound == height and not placement.optimal:
        _reject("optimal", f"the height {height} meets the bound and is not called optimal")
    if placement.lower_bound < height and placement.optimal:
        _reject("optimal", f"the height {height} is called optimal above the bound")
    if problem.capacity is not None and height > problem.capacity:
        _reject("capacity", f"the items reach {height}, the capacity is {problem.capacity}")


def _check_overlaps(problem: Problem, placement: Placement) -> None:
    events: list[tuple[int, int, int]] = []
    for index, item in enumerate(problem.items):
        events.append((item.start, 1, index))
        events.append((item.end, 0, index))
    # Lifetimes are half-open: at one step, items that end leave before others arrive.
    events.sort()
    alive: list[tuple[int, int, int]] = []  # (offset, top, index), pairwise disjoint
    for _, arrives, index in events:
        offset = placement.offsets[index]
        entry = (offset, offset + problem.items[index].size, index)
        at = bisect_left(alive, entry)
        if not arrives:
            del alive[at]
            continue
        if at > 0 and alive[at - 1][1] > offset:
            _reject_overlap(problem, alive[at - 1], entry)
        if at < len(alive) and alive[at][0] < entry[1]:
            _reject_overlap(problem, alive[at], entry)
        alive.insert(at, entry)


def _reject_overlap(
    problem: Problem, one: tuple[int, int, int], other: tuple[int, int, int]
) -> NoReturn:
    first, second = problem.items[one[2]], problem.items[other[2]]
    _reject(
        "overlap",
        f"'{first.id}' at [{one[0]}, {one[1]}) alive {_span(first)} overlaps "
        f"'{second.id}' at [{other[0]}, {other[1]}) alive {_span(second)}",
        second,
    )


def _span(item: Item) -> str:
    return f"[{item.start}, {item.end})"


def _reject(rule: str, text: str, item: Item | None = None) -> NoReturn:
    raise InvariantError(
        "placement-invalid",
        f"the placement is invalid ({rule}): {text}",
        hint="this is a bug in the planner: please report it with the problem as CSV",
        node=item.id if item is not None else None,
        details={"rule": rule},
    )
