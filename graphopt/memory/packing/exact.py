"""Drives the exact search: which capacity, which order, how many nodes, when to stop.

The time one search takes is heavy-tailed: the order that needs millions of nodes on one problem
needs hundreds on the next. So a portfolio of orders runs in turn, each restart with a budget a
little larger than the last, all sharing the memo of failed states; each order keeps its own blame.
Limits count nodes, so the same problem gets the same answer on every machine that is fast enough
to reach them within ``seconds``.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from graphopt.memory.packing.instance import Instance, build_instance
from graphopt.memory.packing.jit import IS_COMPILED
from graphopt.memory.packing.order import ATW, TAW, TWA, WAT
from graphopt.memory.packing.search import FOUND, INFEASIBLE, PAUSED, run, start
from graphopt.memory.packing.state import (
    BY_DURATION,
    CAPACITY,
    NODES,
    ORDER,
    State,
    new_state,
    with_own_memo,
)
from graphopt.memory.problem import Item, Placement, Problem

# Nodes times items that a call may visit when the caller does not say: a few seconds either way,
# well before the clock of the caller, so that results do not depend on it.
_DEFAULT_WORK = 160_000_000 if IS_COMPILED else 500_000
# Above this many free items the search has no chance, and its lists take n^2 * 20 bytes.
_MAX_ITEMS = 2_500 if IS_COMPILED else 600

# Order, and whether its width counts steps instead of sections.
_ORDERS = ((WAT, 0), (TWA, 0), (WAT, 1), (TWA, 1))
_BLAME_WEIGHTS = (0.3, 1.0, 3.0)
# Orders that win seldom, but then where no other does.
_LAST_ORDERS = ((TAW, 0), (ATW, 0))
_FIRST_BUDGET_PER_ITEM = 1.5
_BUDGET_GROWTH = 1.2
_BLAME_KEPT = 0.8
_NUM_RUNGS = 4
_FAVOURED_NODES_PER_ITEM = 500
_NODES_BETWEEN_CLOCKS = 500


def improve_placement(
    problem: Problem, best: Placement, *, seconds: float, node_limit: int | None
) -> Placement:
    """Return a lower placement than ``best``, or ``best`` with what was proven about it.

    Args:
        problem: The items, checked. With a capacity, the search stops at the first placement
            that fits it; without one it goes on to the lowest.
        best: A valid placement.
        seconds: Wall-clock guard.
        node_limit: Search nodes, None for a few seconds of them.
    """
    instance = build_instance(problem)
    if len(instance.free) > _MAX_ITEMS:
        return best
    limit = node_limit
    if limit is None:
        limit = _DEFAULT_WORK // max(len(instance.free), 1)
    if IS_COMPILED:
        _compile_search()
    hunt = _Hunt(problem, instance, best, limit, time.monotonic() + seconds)
    if problem.capacity is not None:
        hunt.reach(problem.capacity)
    else:
        hunt.minimize()
    return hunt.best


@cache
def _compile_search() -> None:
    """Run every function once, so that compiling (once per installation) costs no search time."""
    # Two that overlap leave room for one more on a side; the third has no room at all.
    items = tuple(Item(name, start, start + 2, 2) for name, start in (("a", 0), ("b", 1)))
    tight = Item("c", 1, 2, 1)
    for problem in (Problem(items), Problem((*items, tight))):
        instance = build_instance(problem)
        tallest = sum(item.size for item in problem.items)
        best = Placement((0,) * len(problem.items), tallest + 1, "", 1, optimal=False)
        _Hunt(problem, instance, best, _NODES_BETWEEN_CLOCKS, float("inf")).minimize()


@dataclass
class _Strategy:
    order: int
    by_duration: int
    blame_weight: float
    blame: list[float]


class _Rung:
    """The search at one capacity: restarts that learn from each other, with growing budgets."""

    def __init__(self, capacity: int, state: State) -> None:
        num_items = len(state.size)
        self.capacity = capacity
        self.state = with_own_memo(state)
        strategies = [(*order, weight) for weight in _BLAME_WEIGHTS for order in _ORDERS]
        strategies += [(*order, _BLAME_WEIGHTS[0]) for order in _LAST_ORDERS]
        self.strategies = [_Strategy(*strategy, [0.0] * num_items) for strategy in strategies]
        self.budget = num_items * _FIRST_BUDGET_PER_ITEM
        self.round = 0
        self.nodes = 0

    def next_round(self) -> None:
        """Let the next restarts run longer."""
        self.round += 1
        self.budget *= _BUDGET_GROWTH

    def active(self) -> Iterator[_Strategy]:
        """Yield the strategies to run: before anything is learned, one of each order."""
        first_of_order: dict[tuple[int, int], _Strategy] = {}
        for own in self.strategies:
            first = first_of_order.setdefault((own.order, own.by_duration), own)
            if self.round == 0 and own is not first:
                own.blame = list(first.blame)
            else:
                yield own


class _Hunt:
    """One problem and the best placement so far."""

    def __init__(
        self,
        problem: Problem,
        instance: Instance,
        best: Placement,
        node_limit: int,
        deadline: float,
    ) -> None:
        self.problem = problem
        self.instance = instance
        self.best = best
        self.nodes_left = node_limit
        self.deadline = deadline
        self.state: State = new_state(instance)

    @property
    def is_over(self) -> bool:
        """True when nothing is left to find or to spend."""
        spent = self.nodes_left <= 0 or time.monotonic() >= self.deadline
        return spent or self.best.optimal

    def reach(self, capacity: int) -> None:
        """Search for a height of at most ``capacity`` bytes."""
        rung = _Rung(capacity, self.state)
        while self.best.height > capacity >= self.best.lower_bound and not self.is_over:
            self._run_round(rung)

    def minimize(self) -> None:
        """Lower the height until it is proven minimal.

        How hard a capacity is does not grow steadily as it shrinks: much lower is often easier,
        because more is pruned. So rungs spread over the gap between bound and height are searched
        in turn. The bound itself is the lowest rung and gets a third of all nodes.
        """
        rungs: list[_Rung] = []
        while not self.is_over:
            rungs = self._spread(rungs)
            lowest, others = rungs[0], rungs[1:]
            rung = min(others, key=lambda rung: rung.nodes, default=lowest)
            favour = 2 if lowest.nodes < _FAVOURED_NODES_PER_ITEM * len(lowest.state.size) else 6
            if favour * lowest.nodes <= sum(other.nodes for other in others):
                rung = lowest
            self._run_round(rung)

    def _spread(self, rungs: list[_Rung]) -> list[_Rung]:
        """Drop rungs that are answered, add some in the widest gaps; return them, lowest first."""
        bound, height, unit = self.best.lower_bound, self.best.height, self.instance.unit
        rungs = [rung for rung in rungs if bound <= rung.capacity < height]
        if not rungs or rungs[0].capacity > bound:
            rungs.insert(0, _Rung(bound, self.state))
        while len(rungs) < _NUM_RUNGS:
            tops = [rung.capacity for rung in rungs[1:]] + [height]
            gap, at = max(
                (top - rung.capacity, -at)
                for at, (rung, top) in enumerate(zip(rungs, tops, strict=True))
            )
            if gap < 2 * unit:
                break
            below = rungs[-at].capacity
            rungs.insert(1 - at, _Rung(below + gap // 2 // unit * unit, self.state))
        return rungs

    def _run_round(self, rung: _Rung) -> None:
        """Run the strategies of a rung once; stop at the first answer, keep what it says."""
        for strategy in rung.active():
            if self.is_over:
                return
            status = self._restart(rung, strategy)
            if status == FOUND:
                self._keep()
            elif status == INFEASIBLE:
                self._raise_bound(rung.capacity)
            if status != PAUSED:
                return
        rung.next_round()

    def _restart(self, rung: _Rung, strategy: _Strategy) -> int:
        state, instance, highest = rung.state, self.instance, 0
        for at, size in enumerate(instance.sizes):
            # The highest offset within the capacity, and the units above it.
            top = (rung.capacity - instance.bytes[at]) // instance.unit + size
            state.limit[at] = top
            state.blame[at] = strategy.blame[at] * _BLAME_KEPT
            highest = max(highest, top)
        state.control[CAPACITY] = highest
        state.control[ORDER] = strategy.order
        state.control[BY_DURATION] = strategy.by_duration
        state.blame_weight[0] = strategy.blame_weight
        start(state, len(instance.sizes))
        budget = min(int(rung.budget), self.nodes_left)
        status, allowed = PAUSED, 0
        while status == PAUSED and allowed < budget and time.monotonic() < self.deadline:
            allowed = min(budget, allowed + _NODES_BETWEEN_CLOCKS)
            status = run(state, len(instance.sizes), allowed)
        rung.nodes += state.control[NODES]
        self.nodes_left -= max(1, state.control[NODES])
        strategy.blame = [float(share) for share in state.blame]
        return status

    def _keep(self) -> None:
        offsets = [item.offset or 0 for item in self.problem.items]
        for at, index in enumerate(self.instance.free):
            offsets[index] = int(self.state.offset[at]) * self.instance.unit
        height = max(
            offset + item.size for offset, item in zip(offsets, self.problem.items, strict=True)
        )
        bound = self.best.lower_bound
        self.best = Placement(tuple(offsets), height, "exact", bound, height == bound)

    def _raise_bound(self, infeasible: int) -> None:
        """Nothing fits ``infeasible`` bytes: the height is more, a whole unit more if all are."""
        bound = infeasible + 1
        if self.instance.exact_units:
            bound = -(-bound // self.instance.unit) * self.instance.unit
        self.best = replace(self.best, lower_bound=bound, optimal=self.best.height == bound)
