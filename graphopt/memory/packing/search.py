"""Depth-first search for a placement under a capacity. No allocation, no recursion, resumable.

The code runs compiled by numba over arrays and, without numba, as plain Python over lists: it
only indexes, and keeps every value in 63 bits.

State. Each item that is not yet placed has a *rest*: the lowest offset at which nothing placed is
in its way, and a *least*: a proven lower bound of its final offset, at least rest. A frame holds
the items of one component (connected in time), sorted by (least, rank).

Step. Take the first item c with least == rest that is not blocked, and branch: either c lies at its
rest and everything unplaced that overlaps it lies above, or it does not and c is *barred*.
c is blocked by an overlapping k with rest[k] + size[k] <= rest[c]: k would fit below c.

Meaning of a bar. A failed frame says: if its items can be packed at all, then also in a packing
with some barred item at its rest. A bar is set when the branch with the item at its rest failed, so
at the root, which has no bars, failure is a proof. Each rule below keeps that sentence true.

- A barred j may only be placed after a neighbour that does not *nest* in it. If all neighbours
  between rest[j] and j's offset lie inside j's sections, j can swap with them as a block: j drops
  to its rest, they move up by size[j], and nothing else is touched. So a nesting neighbour does
  not lift the bar, and least[j] >= the lowest top any other neighbour can have.
- One-machine bound: the unplaced items of a section are jobs on one machine with release dates
  ``least`` and lengths ``size``; run in order of release they must end by the capacity.
- Twins (same sections, size, alignment, rest) are barred together.
- Components are independent: one fails, the frame fails; one is solved, it stays solved.
- A memo keeps the hashes of failed states {(item, rest, barred)}. The sentence above depends on
  nothing else, so entries hold across branches, orders, restarts and for smaller capacities.

Sections, bottom-up order, bound by sections and decomposition after Moffitt, "MiniMalloc: A
Lightweight Memory Allocator for Hardware-Accelerated Machine Learning" (ASPLOS 2023). The
one-machine bound is Jackson's rule; placing only unblocked items gives the active schedules of
Giffler and Thompson (1960). Bars with nesting, and their memo, are our own.
"""

from graphopt.memory.packing.bounds import (
    blame_item,
    fits_sections,
    lift,
    nests,
    overlaps,
    raise_barred,
)
from graphopt.memory.packing.jit import jit
from graphopt.memory.packing.order import rank_items, sort_positions
from graphopt.memory.packing.state import FRAME, MODE, NODES, State

INFEASIBLE, FOUND, PAUSED = 0, 1, 2

# What the loop does next, at the top frame.
_SPLIT, _OPEN, _BRANCH, _REFUTED, _FAILED, _SOLVED = 0, 1, 2, 3, 4, 5

_MASK = (1 << 62) - 1
_MIX_1, _MIX_2, _MIX_3 = 0x1E3779B97F4A7C15, 0x3F58476D1CE4E5B9, 0x14D049BB133111EB


@jit
def start(state: State, count: int) -> None:
    """Set up the root: every item rests at 0, or where obstacles and alignment first allow."""
    mode = _SPLIT
    for at in range(count):
        low = lift(state, at, 0)
        if low + state.size[at] > state.limit[at]:
            # Obstacles alone keep it above the capacity: the root fails.
            mode = _FAILED
        state.item[at] = at
        state.rest[at] = low
        state.least[at] = low
        state.barred[at] = 0
        state.rank[at] = at
    sort_positions(state, 0, count)
    state.control[FRAME] = -1
    state.control[NODES] = 0
    state.control[MODE] = mode


@jit
def run(state: State, count: int, node_limit: int) -> int:
    """Search on until an answer, or ``node_limit`` nodes since the start.

    Returns:
        FOUND (``state.offset`` is the answer in units), INFEASIBLE (a proof), or PAUSED.
    """
    frame, mode, nodes = state.control[FRAME], state.control[MODE], state.control[NODES]
    status = PAUSED
    while True:
        if mode == _SPLIT:
            frame, mode = _push(state, frame, count)
        elif mode == _OPEN:
            frame, mode = _open(state, frame)
        elif mode == _BRANCH:
            if nodes >= node_limit:
                break
            at = _choose(state, frame)
            if at < 0:
                _remember(state, frame)
                mode = _FAILED
            else:
                nodes += 1
                state.placed[frame] = at
                mode = _SPLIT if _place(state, frame, at) else _REFUTED
        elif mode == _REFUTED:
            if _bar(state, frame, state.placed[frame]):
                mode = _BRANCH
            else:
                _remember(state, frame)
                mode = _FAILED
        elif mode == _FAILED:
            frame -= 1
            while frame >= 0 and state.is_split[frame]:
                frame -= 1
            mode = _REFUTED
            if frame < 0:
                status = INFEASIBLE
                break
        else:
            while frame >= 0 and not state.is_split[frame]:
                frame -= 1
            mode = _OPEN
            if frame < 0:
                status = FOUND
                break
    state.control[FRAME], state.control[MODE], state.control[NODES] = frame, mode, nodes
    return status


@jit
def _push(state: State, frame: int, count: int) -> tuple[int, int]:
    """Push the list that the last placement left, split into components if it has several."""
    begin, end, parts = 0, count, 0
    if frame >= 0:
        begin = state.top[frame]
        end = begin + state.end[frame] - state.begin[frame] - 1
        parts = state.part_end[frame]
    if begin == end:
        return frame, _SOLVED
    num_parts = _label_parts(state, begin, end)
    frame += 1
    state.begin[frame], state.end[frame], state.top[frame] = begin, end, end
    state.is_split[frame] = 1 if num_parts > 1 else 0
    state.part[frame], state.part_end[frame] = parts, parts
    if num_parts > 1:
        _sort_into_parts(state, frame, num_parts)
    elif frame == 0:
        rank_items(state, begin, end)
    return frame, _OPEN


@jit
def _label_parts(state: State, begin: int, end: int) -> int:
    """Label each section with the component it lies in; return the number of components."""
    item, first, last, reach, part = (
        state.item,
        state.first,
        state.last,
        state.section,
        state.section_part,
    )
    low, high = first[item[begin]], last[item[begin]]
    for at in range(begin, end):
        low, high = min(low, first[item[at]]), max(high, last[item[at]])
    for section in range(low, high):
        reach[section] = 0
    for at in range(begin, end):
        i = item[at]
        reach[first[i]] = max(reach[first[i]], last[i])
    num_parts, until = 0, low
    for section in range(low, high):
        if reach[section] > 0 and section >= until:
            num_parts += 1
        until = max(until, reach[section])
        part[section] = num_parts - 1
    return num_parts


@jit
def _sort_into_parts(state: State, frame: int, num_parts: int) -> None:
    """Reorder the list of a split frame so that each component is one run; smallest run first."""
    begin, end = state.begin[frame], state.end[frame]
    for at in range(begin, end):
        _copy_to_moved(state, at, at - begin)
    out, parts = begin, state.part[frame]
    for label in range(num_parts):
        slot = parts + label
        state.part_from[slot] = out
        for k in range(end - begin):
            if state.section_part[state.first[state.moved[k]]] == label:
                _copy_from_moved(state, k, out)
                out += 1
        state.part_to[slot] = out
        while slot > parts and (
            state.part_to[slot] - state.part_from[slot]
            < state.part_to[slot - 1] - state.part_from[slot - 1]
        ):
            low, high = state.part_from[slot], state.part_to[slot]
            state.part_from[slot], state.part_to[slot] = (
                state.part_from[slot - 1],
                state.part_to[slot - 1],
            )
            state.part_from[slot - 1], state.part_to[slot - 1] = low, high
            slot -= 1
    state.part_end[frame] = parts + num_parts


@jit
def _open(state: State, frame: int) -> tuple[int, int]:
    """Begin a frame: a split one hands out its next part, a plain one asks the memo."""
    if state.is_split[frame]:
        part = state.part[frame]
        if part == state.part_end[frame]:
            return frame - 1, _SOLVED
        state.part[frame] = part + 1
        child = frame + 1
        state.begin[child], state.end[child] = state.part_from[part], state.part_to[part]
        state.top[child] = state.top[frame]
        state.is_split[child] = 0
        state.part_end[child] = state.part_end[frame]
        rank_items(state, state.begin[child], state.end[child])
        frame = child
    key = 0
    for at in range(state.begin[frame], state.end[frame]):
        mixed = (state.salt[state.item[at]] ^ (state.rest[at] * 2 + state.barred[at])) & _MASK
        mixed = (mixed * _MIX_1) & _MASK
        mixed = ((mixed ^ (mixed >> 29)) * _MIX_2) & _MASK
        mixed = ((mixed ^ (mixed >> 31)) * _MIX_3) & _MASK
        key = (key + (mixed ^ (mixed >> 30))) & _MASK
    state.key[frame] = key
    known = state.memo[key & (len(state.memo) - 1)] == key
    return frame, _FAILED if known else _BRANCH


@jit
def _remember(state: State, frame: int) -> None:
    key = state.key[frame]
    state.memo[key & (len(state.memo) - 1)] = key


@jit
def _choose(state: State, frame: int) -> int:
    """Return the position of the lowest item that may be placed, -1 when there is none."""
    begin, end = state.begin[frame], state.end[frame]
    for at in range(begin, end):
        if state.barred[at] or state.least[at] > state.rest[at]:
            continue
        bottom, i = state.rest[at], state.item[at]
        is_blocked = False
        for other in range(begin, end):
            k = state.item[other]
            if (
                state.rest[other] + state.size[k] <= bottom
                and other != at
                and overlaps(state, i, k)
            ):
                is_blocked = True
                break
        if not is_blocked:
            return at
    return -1


@jit
def _place(state: State, frame: int, at: int) -> bool:
    """Write the list that is left when the item at ``at`` lies at its rest; False when it fails."""
    placed, bottom = state.item[at], state.rest[at]
    top = bottom + state.size[placed]
    state.offset[placed] = bottom
    out, num_moved = state.top[frame], 0
    low, high = state.first[placed], state.last[placed]
    for k in range(state.begin[frame], state.end[frame]):
        if k == at:
            continue
        i, rest, least, barred = state.item[k], state.rest[k], state.least[k], state.barred[k]
        if rest < top and overlaps(state, i, placed):
            if barred and not nests(state, placed, bottom, i, rest):
                barred = 0
            rest = lift(state, i, top)
            if least < rest:
                if rest + state.size[i] > state.limit[i]:
                    blame_item(state, i)
                    return False
                low, high = min(low, state.first[i]), max(high, state.last[i])
                state.moved[num_moved], state.moved_rest[num_moved] = i, rest
                state.moved_least[num_moved], state.moved_barred[num_moved] = rest, barred
                state.moved_rank[num_moved] = state.rank[k]
                num_moved += 1
                continue
        state.item[out], state.rest[out], state.least[out] = i, rest, least
        state.barred[out], state.rank[out] = barred, state.rank[k]
        out += 1
    _merge_moved(state, state.top[frame], out, num_moved)
    return _tighten(state, state.top[frame], out + num_moved, low, high)


@jit
def _merge_moved(state: State, begin: int, end: int, num_moved: int) -> None:
    """Merge ``state.moved`` into the sorted list ``begin .. end - 1``, which grows."""
    for k in range(1, num_moved):
        item, rest, least = state.moved[k], state.moved_rest[k], state.moved_least[k]
        barred, rank, to = state.moved_barred[k], state.moved_rank[k], k
        while to > 0 and (
            state.moved_least[to - 1] > least
            or (state.moved_least[to - 1] == least and state.moved_rank[to - 1] > rank)
        ):
            state.moved[to], state.moved_rest[to] = state.moved[to - 1], state.moved_rest[to - 1]
            state.moved_least[to] = state.moved_least[to - 1]
            state.moved_barred[to] = state.moved_barred[to - 1]
            state.moved_rank[to] = state.moved_rank[to - 1]
            to -= 1
        state.moved[to], state.moved_rest[to], state.moved_least[to] = item, rest, least
        state.moved_barred[to], state.moved_rank[to] = barred, rank
    at, k, to = end - 1, num_moved - 1, end + num_moved - 1
    while k >= 0:
        if at >= begin and (
            state.least[at] > state.moved_least[k]
            or (state.least[at] == state.moved_least[k] and state.rank[at] > state.moved_rank[k])
        ):
            state.item[to], state.rest[to], state.least[to] = (
                state.item[at],
                state.rest[at],
                state.least[at],
            )
            state.barred[to], state.rank[to] = state.barred[at], state.rank[at]
            at -= 1
        else:
            _copy_from_moved(state, k, to)
            k -= 1
        to -= 1


@jit
def _bar(state: State, frame: int, at: int) -> bool:
    """Bar the item at ``at`` and its twins from their rest; False when the frame fails by that."""
    begin, end = state.begin[frame], state.end[frame]
    i, rest = state.item[at], state.rest[at]
    state.barred[at] = 1
    for other in range(begin, end):
        k = state.item[other]
        if (
            state.rest[other] == rest
            and state.size[k] == state.size[i]
            and state.first[k] == state.first[i]
            and state.last[k] == state.last[i]
            and state.align[k] == state.align[i]
            and state.limit[k] == state.limit[i]
        ):
            state.barred[other] = 1
    num_raised = raise_barred(state, begin, end)
    if num_raised < 0:
        return False
    low, high = _raised_sections(state, num_raised)
    sort_positions(state, begin, end)
    return _tighten(state, begin, end, low, high)


@jit
def _tighten(state: State, begin: int, end: int, low: int, high: int) -> bool:
    """Check the sections ``low .. high - 1``, raise what is barred, and check what that moved."""
    if not fits_sections(state, begin, end, low, high):
        return False
    num_raised = raise_barred(state, begin, end)
    if num_raised <= 0:
        return num_raised == 0
    low, high = _raised_sections(state, num_raised)
    sort_positions(state, begin, end)
    return fits_sections(state, begin, end, low, high)


@jit
def _raised_sections(state: State, num_raised: int) -> tuple[int, int]:
    low, high = len(state.section), 0
    for k in range(num_raised):
        i = state.moved[k]
        low, high = min(low, state.first[i]), max(high, state.last[i])
    return low, high


@jit
def _copy_to_moved(state: State, at: int, k: int) -> None:
    state.moved[k], state.moved_rest[k] = state.item[at], state.rest[at]
    state.moved_least[k], state.moved_barred[k] = state.least[at], state.barred[at]
    state.moved_rank[k] = state.rank[at]


@jit
def _copy_from_moved(state: State, k: int, at: int) -> None:
    state.item[at], state.rest[at] = state.moved[k], state.moved_rest[k]
    state.least[at], state.barred[at] = state.moved_least[k], state.moved_barred[k]
    state.rank[at] = state.moved_rank[k]
