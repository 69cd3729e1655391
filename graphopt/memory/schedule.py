"""The order of steps: the lowest peak that is found, and how far it is proven.

``best_order`` never returns an order above the given one, and keeps the given order wherever
another one would not lower the peak. What is searched are costs that depend on sets of steps only
(:mod:`graphopt.memory.ordering.costs`); every order that is returned was judged by
``peak_of_order``, which is the planner's own liveness.

Node counts decide what is found, so equal input gives equal output; the clock is a second guard,
and ``Schedule.stopped`` says when it was the one that ended the search.
"""

import heapq
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from graphopt.errors import OptionError
from graphopt.memory.dataflow import Dataflow
from graphopt.memory.liveness import lifetimes, live_bytes
from graphopt.memory.ordering.board import Board
from graphopt.memory.ordering.costs import Costs, Sharing, costs_of
from graphopt.memory.ordering.groups import Groups, groups_of
from graphopt.memory.ordering.handover import Handover, handover_of
from graphopt.memory.ordering.improve import improve
from graphopt.memory.ordering.regions import cut_positions
from graphopt.memory.ordering.search import Effort
from graphopt.memory.ordering.wholes import joined, placed_parts, relaxed
from graphopt.memory.placing import Rules, padded_size, segment_of
from graphopt.memory.planning import aliasings, best_aliasing

SearchEffort = Literal["greedy", "exact"]
NODE_LIMITS: dict[str, int] = {"greedy": 500, "exact": 200_000}
"""Nodes that the exact search may visit, by effort."""

# How often the parts that the planner placed for one order may start the search for another.
_ROUNDS = 3


@dataclass(frozen=True)
class Schedule:
    """An order of the steps of a dataflow.

    Attributes:
        order: Indices of the steps, in execution order.
        peak_bytes: Most arena bytes alive at a step, as the planner counts them.
        method: What found the order; "given" when the given order is kept.
        optimal: True when no order has a lower peak: proven.
        lower_bound_bytes: Bytes that every order needs: proven.
        nodes: Nodes that the search visited.
        stopped: "" when the search ended by itself, "nodes" or "seconds" for the limit that ended
            it, "sizes" when sizes are unknown and nothing was tried.
    """

    order: tuple[int, ...]
    peak_bytes: int
    method: str
    optimal: bool
    lower_bound_bytes: int
    nodes: int = 0
    stopped: Literal["", "nodes", "seconds", "sizes"] = ""


def peak_of_order(flow: Dataflow, rules: Rules) -> int:
    """Return the most arena bytes alive at a step when the steps run in the order of ``flow``."""
    scratch = [
        (number, number + 1, padded_size(step.scratch_bytes, rules.alignment))
        for number, step in enumerate(flow.steps)
    ]
    peaks = []
    for aliasing in aliasings(flow, rules):
        spans = [
            (life.start, life.end, padded_size(life.size_bytes, rules.alignment))
            for life in lifetimes(flow, aliasing)
            if segment_of(life.role, rules) == "arena"
        ]
        peaks.append(max(live_bytes(spans + scratch, len(flow.steps)), default=0))
    return min(peaks)


def best_order(
    flow: Dataflow,
    rules: Rules,
    *,
    effort: SearchEffort = "exact",
    node_limit: int | None = None,
    seconds: float = 60.0,
) -> Schedule:
    """Return the order with the lowest peak that is found; never above the order of ``flow``.

    Args:
        flow: Values and steps. With values of unknown size it is returned as it is: what reads
            such a value is not recorded, so another order might be wrong.
        rules: What the runtime does.
        effort: "greedy" tries simple rules and searches little; "exact" searches until the order is
            proven or a limit is reached.
        node_limit: Nodes that the search may visit; None for the default of the effort.
        seconds: Wall-clock guard, for machines too slow to reach the node limit in that time.

    Raises:
        OptionError: ``effort-unknown``: no such effort.
    """
    if effort not in NODE_LIMITS:
        raise OptionError(
            "effort-unknown", f"unknown effort '{effort}'", hint="use 'greedy' or 'exact'"
        )
    given = _Candidate(tuple(range(len(flow.steps))), peak_of_order(flow, rules), "given")
    if flow.not_planned:
        return Schedule(given.order, given.peak_bytes, given.method, False, 0, 0, "sizes")
    nodes = NODE_LIMITS[effort] if node_limit is None else node_limit
    return _Scheduler(flow, rules, given, Effort(nodes, time.monotonic() + seconds)).run()


@dataclass(frozen=True)
class _Candidate:
    """An order that was judged."""

    order: tuple[int, ...]
    peak_bytes: int
    method: str


class _Scheduler:
    """Searches one dataflow, under as many costs as it takes to cover what orders can do."""

    def __init__(self, flow: Dataflow, rules: Rules, given: _Candidate, effort: Effort) -> None:
        self.flow = flow
        self.rules = rules
        self.best = given
        self.effort = effort
        self.bound = 0
        self.groups: Groups = groups_of(flow, rules)
        self.plain: Costs = costs_of(flow, self.groups, rules)
        self.handover: Handover = handover_of(self.groups, self.plain.preds, self.plain.succs)

    def run(self) -> Schedule:
        """Search and return the best order."""
        if len(cut_positions(self.plain, self.best.order)) == len(self.best.order) + 1:
            # Every step is before or after every other one: there is no other order.
            self.bound = self.best.peak_bytes
        elif self.handover.is_complete and not self.groups.parts:
            self._search_variants()
        else:
            self._search_relaxed()
        best = self.best
        self.bound = min(self.bound, best.peak_bytes)
        stopped: Literal["", "nodes", "seconds"] = ""
        if best.peak_bytes > self.bound and self.effort.is_limited:
            stopped = "seconds" if self.effort.is_late else "nodes"
        return Schedule(
            best.order,
            best.peak_bytes,
            best.method,
            best.peak_bytes == self.bound,
            self.bound,
            self.effort.nodes,
            stopped,
        )

    def _search_variants(self) -> None:
        """Search costs that are the real ones, in one or several variants."""
        variants = self.handover.variants
        bounds = [
            self._try(sharing, 1 / (len(variants) - number))
            for number, sharing in enumerate(variants)
        ]
        self.bound = min(bounds)

    def _search_relaxed(self) -> None:
        """Search costs that are below and above the real ones, until the two meet."""
        base = self.handover.variants[0]
        self.bound = self._try(relaxed(self.groups, self.handover.relaxed), 0.25)
        guesses = [base]
        if self.groups.parts:
            guesses.append(joined(self.groups, base))
        for guess in guesses:
            if self.best.peak_bytes > self.bound:
                self._try(guess, 0.5)
        for _ in range(_ROUNDS if self.groups.parts else 0):
            before = self.best
            if before.peak_bytes <= self.bound:
                break
            aliasing = best_aliasing(self.flow.reordered(before.order), self.rules)
            self._try(joined(self.groups, base, placed_parts(self.groups, aliasing)), 0.5)
            if self.best is before:
                break

    def _try(self, sharing: Sharing, share: float) -> int:
        """Improve the given order under ``sharing``, judge the result and return the bound."""
        costs = self.plain
        if sharing != Sharing():
            costs = costs_of(self.flow, self.groups, self.rules, sharing)
        effort = self.effort.part(share)
        start = self._start(costs, sharing)
        result = improve(Board(costs, start), effort, enough=self.bound)
        self.effort.add(effort)
        self._judge(result.order, result.method)
        return result.bound_bytes

    def _start(self, costs: Costs, sharing: Sharing) -> Sequence[int]:
        """Return the given order, changed as little as the extra edges ask."""
        if not sharing.edges:
            return range(costs.num_steps)
        return _stable_order(costs)

    def _judge(self, order: Sequence[int], method: str) -> None:
        if tuple(order) == self.best.order:
            return
        peak = peak_of_order(self.flow.reordered(order), self.rules)
        if peak < self.best.peak_bytes:
            self.best = _Candidate(tuple(order), peak, method)


def _stable_order(costs: Costs) -> list[int]:
    """Return the valid order that takes the ready step with the smallest number."""
    missing = [len(before) for before in costs.preds]
    ready = [step for step, count in enumerate(missing) if not count]
    order = []
    while ready:
        step = heapq.heappop(ready)
        order.append(step)
        for later in costs.succs[step]:
            missing[later] -= 1
            if not missing[later]:
                heapq.heappush(ready, later)
    return order
