"""What the search can prove about one list of unplaced items; see :mod:`search` for the words."""

from graphopt.memory.packing.jit import jit
from graphopt.memory.packing.state import CAPACITY, State


@jit
def overlaps(state: State, i: int, k: int) -> bool:
    """True when the items are alive together."""
    return state.first[i] < state.last[k] and state.first[k] < state.last[i]


@jit
def lift(state: State, i: int, low: int) -> int:
    """Return the lowest aligned offset of item ``i`` at or above ``low`` clear of its obstacles."""
    align = state.align[i]
    offset = -(-low // align) * align
    for pin in range(state.item_pin[i], state.item_pin[i + 1]):
        if state.pin_low[pin] >= offset + state.size[i]:
            break
        if state.pin_top[pin] > offset:
            offset = -(-state.pin_top[pin] // align) * align
    return offset


@jit
def nests(state: State, k: int, low: int, i: int, rest: int) -> bool:
    """True when an item ``k`` at or above ``low`` could change places with ``i`` on top of it.

    Item ``i`` would drop to ``rest`` and ``k`` move up by the size of ``i``, inside sections that
    ``i`` covers; no obstacle may be there, and ``k`` must stay aligned and below its limit.
    """
    return (
        state.first[i] <= state.first[k]
        and state.last[k] <= state.last[i]
        and low >= rest
        and state.item_pin[i] == state.item_pin[i + 1]
        and state.size[i] % state.align[k] == 0
        and state.limit[k] >= state.limit[i]
    )


@jit
def raise_barred(state: State, begin: int, end: int) -> int:
    """Raise ``least`` of barred items to the lowest top of a neighbour that does not nest in them.

    Works on a sorted list and leaves it unsorted.

    Returns:
        How many were raised, listed in ``state.moved``; -1 when one of them no longer fits.
    """
    num_raised = 0
    for at in range(begin, end):
        if not state.barred[at]:
            continue
        i, rest, least = state.item[at], state.rest[at], state.least[at]
        lowest = state.limit[i] + 1
        for other in range(begin, end):
            if state.least[other] >= lowest:
                break
            k = state.item[other]
            top = state.least[other] + state.size[k]
            if (
                top < lowest
                and other != at
                and overlaps(state, i, k)
                and not nests(state, k, state.rest[other], i, rest)
            ):
                lowest = top
                if top <= least:
                    break
        if lowest > least:
            lowest = lift(state, i, lowest)
            if lowest + state.size[i] > state.limit[i]:
                blame_item(state, i)
                return -1
            state.moved[num_raised], state.moved_least[num_raised] = i, lowest
            state.moved_rest[num_raised] = at
            num_raised += 1
    # Only now: the loop above relies on the order of the list.
    for k in range(num_raised):
        state.least[state.moved_rest[k]] = state.moved_least[k]
    return num_raised


@jit
def fits_sections(state: State, begin: int, end: int, low: int, high: int) -> bool:
    """One-machine bound of the sections ``low .. high - 1`` over a list sorted by ``least``."""
    done = state.section
    for section in range(low, high):
        done[section] = 0
    has_pins = state.section_pin[0] < len(state.pin_low)
    for at in range(begin, end):
        i, least = state.item[at], state.least[at]
        size, top = state.size[i], 0
        for section in range(max(low, state.first[i]), min(high, state.last[i])):
            if has_pins:
                done[section] = _after_pins(state, section, max(done[section], least), size)
            else:
                done[section] = max(done[section], least) + size
            top = max(top, done[section])
        if top > state.control[CAPACITY]:
            _blame_section(state, begin, end, i)
            return False
    return True


@jit
def _after_pins(state: State, section: int, low: int, size: int) -> int:
    """Return where ``size`` units of work begun at ``low`` end when obstacles interrupt it."""
    end = low + size
    for pin in range(state.section_pin[section], state.section_pin[section + 1]):
        if state.pin_low[pin] >= end:
            break
        if state.pin_top[pin] > low:
            end += state.pin_top[pin] - max(low, state.pin_low[pin])
    return end


@jit
def blame_item(state: State, i: int) -> None:
    """Remember that item ``i`` did not fit."""
    state.blame[i] += 1.0


@jit
def _blame_section(state: State, begin: int, end: int, i: int) -> None:
    """Share one failure among the unplaced items of the first section that overflowed at ``i``."""
    section = state.first[i]
    while state.section[section] <= state.control[CAPACITY]:
        section += 1
    sharers = 0
    for at in range(begin, end):
        k = state.item[at]
        sharers += state.first[k] <= section < state.last[k]
    for at in range(begin, end):
        k = state.item[at]
        if state.first[k] <= section < state.last[k]:
            state.blame[k] += 1.0 / sharers
