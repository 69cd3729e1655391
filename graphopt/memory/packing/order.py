"""Which item comes first among those that could lie at the same offset.

Ranks are given anew to every component when it splits off. Four lexicographic orders by W (sections
or steps spanned), A (size times W) and T (largest sum of unplaced sizes in a section it crosses),
all descending; three of them from Moffitt, "MiniMalloc" (ASPLOS 2023). What failed often moves
forward: the position in the order, from 1 down to 0, plus ``blame_weight`` times the item's share
of blame. Blame outlives restarts, so each restart avoids what broke the ones before (Boussemart et
al., "Boosting systematic search by weighting constraints", ECAI 2004).
"""

from graphopt.memory.packing.jit import jit
from graphopt.memory.packing.state import BY_DURATION, ORDER, State

#: Values of ``control[ORDER]``.
TWA, WAT, ATW, TAW = 0, 1, 2, 3


@jit
def sort_positions(state: State, begin: int, end: int) -> None:
    """Sort a list by (least, rank); linear when it is nearly sorted."""
    for at in range(begin + 1, end):
        item, rest, least = state.item[at], state.rest[at], state.least[at]
        barred, rank = state.barred[at], state.rank[at]
        to = at
        while to > begin and (
            state.least[to - 1] > least
            or (state.least[to - 1] == least and state.rank[to - 1] > rank)
        ):
            state.item[to], state.rest[to] = state.item[to - 1], state.rest[to - 1]
            state.least[to], state.barred[to] = state.least[to - 1], state.barred[to - 1]
            state.rank[to] = state.rank[to - 1]
            to -= 1
        if to < at:
            state.item[to], state.rest[to], state.least[to] = item, rest, least
            state.barred[to], state.rank[to] = barred, rank


@jit
def rank_items(state: State, begin: int, end: int) -> None:
    """Rank the items of a component by the order that ``control`` names, and sort the list."""
    _score(state, begin, end)
    _sort_by_score(state, begin, end)
    count, most = end - begin, 0.0
    for at in range(begin, end):
        most = max(most, state.blame[state.item[at]])
    if most > 0.0 and state.blame_weight[0] > 0.0:
        for place in range(count):
            i = state.moved[place]
            state.moved_rest[i] = place
        for k in range(count):
            i = state.item[begin + k]
            state.score_1[k] = (
                state.blame_weight[0] * state.blame[i] / most - state.moved_rest[i] / count
            )
        _sort_by_score(state, begin, end)
    for place in range(count):
        state.moved_rest[state.moved[place]] = place
    for at in range(begin, end):
        state.rank[at] = state.moved_rest[state.item[at]]
    sort_positions(state, begin, end)


@jit
def _score(state: State, begin: int, end: int) -> None:
    total, first, last = state.section, state.first, state.last
    for at in range(begin, end):
        for section in range(first[state.item[at]], last[state.item[at]]):
            total[section] = 0
    for at in range(begin, end):
        i = state.item[at]
        for section in range(first[i], last[i]):
            total[section] += state.size[i]
    for at in range(begin, end):
        i, peak = state.item[at], 0
        for section in range(first[i], last[i]):
            peak = max(peak, total[section])
        width = state.duration[i] if state.control[BY_DURATION] else last[i] - first[i]
        tall, wide, area = float(peak), float(width), float(width) * state.size[i]
        k, order = at - begin, state.control[ORDER]
        if order == TWA:
            state.score_1[k], state.score_2[k], state.score_3[k] = tall, wide, area
        elif order == WAT:
            state.score_1[k], state.score_2[k], state.score_3[k] = wide, area, tall
        elif order == ATW:
            state.score_1[k], state.score_2[k], state.score_3[k] = area, tall, wide
        else:
            state.score_1[k], state.score_2[k], state.score_3[k] = tall, area, wide


@jit
def _sort_by_score(state: State, begin: int, end: int) -> None:
    """Fill ``state.moved`` with the items by descending scores, ties by index (shell sort)."""
    count = end - begin
    for k in range(count):
        state.moved_rank[k] = k
    gap = count // 2
    while gap > 0:
        for k in range(gap, count):
            one, to = state.moved_rank[k], k
            while to >= gap and _comes_before(state, begin, one, state.moved_rank[to - gap]):
                state.moved_rank[to] = state.moved_rank[to - gap]
                to -= gap
            state.moved_rank[to] = one
        gap //= 2
    for k in range(count):
        state.moved[k] = state.item[begin + state.moved_rank[k]]


@jit
def _comes_before(state: State, begin: int, one: int, other: int) -> bool:
    if state.score_1[one] != state.score_1[other]:
        return state.score_1[one] > state.score_1[other]
    if state.score_2[one] != state.score_2[other]:
        return state.score_2[one] > state.score_2[other]
    if state.score_3[one] != state.score_3[other]:
        return state.score_3[one] > state.score_3[other]
    return state.item[begin + one] < state.item[begin + other]
