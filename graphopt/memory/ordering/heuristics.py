"""Orders of the units of a region by simple rules, all close to linear.

The rules: least bytes after the step first (LPMF) and breadth first, as torch's inductor tries them
(``torch/_inductor/memory.py``); depth first from the results with the more demanding operand first,
after Sethi and Ullman, "The generation of optimal code for arithmetic expressions" (JACM 17, 1970);
and *on demand*, which keeps a given order but delays what adds bytes until somebody reads it.
"""

import heapq
from collections.abc import Callable, Iterable

from graphopt.memory.ordering.contract import UnitGraph

# Ready units that least-peak-first looks at when the best ones do not fit below the peak so far.
_ASIDE = 32


class Walk:
    """An order while it is made: what ran, what is ready, and the bytes alive.

    Attributes:
        level: Bytes alive now.
        peak: Most bytes alive so far.
        order: Units that ran.
        done: Whether each unit ran.
    """

    def __init__(self, graph: UnitGraph) -> None:
        self.graph = graph
        self.level = self.peak = graph.region.base_bytes
        self.order: list[int] = []
        self.done = [False] * len(graph.units)
        self.missing = [len(before) for before in graph.preds]
        self._left = {group: len(users) for group, users in graph.readers.items()}
        self._sum = {group: sum(users) for group, users in graph.readers.items()}
        self._open: set[int] = set()

    def cost(self, unit: int) -> tuple[int, int]:
        """Return (hill, net) of ``unit`` when it runs now."""
        found = self.graph.units[unit]
        favours = 0
        for bit, group in enumerate(found.ending):
            if self._left[group] == 1:
                favours |= 1 << bit
        for bit, group in enumerate(found.joint, len(found.ending)):
            if group in self._open:
                favours |= 1 << bit
        return found.cost(favours)

    def run(self, unit: int) -> tuple[list[int], list[int]]:
        """Run ``unit``; return the units that became ready, and those that cost less now."""
        hill, net = self.cost(unit)
        extra = 0 if self.order else self.graph.region.first_bytes
        self.peak = max(self.peak, self.level + hill + extra)
        self.level += net
        self.order.append(unit)
        self.done[unit] = True
        cheaper = []
        for group in self.graph.units[unit].ending:
            self._left[group] -= 1
            self._sum[group] -= unit
            if self._left[group] == 1:
                cheaper.append(self._sum[group])
        for group in self.graph.units[unit].joint:
            if group not in self._open:
                self._open.add(group)
                cheaper += self.graph.openers[group]
        ready = []
        for succ in self.graph.succs[unit]:
            self.missing[succ] -= 1
            if not self.missing[succ]:
                ready.append(succ)
        return ready, cheaper


def sources_of(graph: UnitGraph) -> list[int]:
    """Return the units that may run first."""
    return [unit for unit, before in enumerate(graph.preds) if not before]


def as_given(graph: UnitGraph) -> list[int]:
    """Return the units by the place of their first or last step in the order of the region."""
    return list(range(len(graph.units)))


def least_bytes_first(graph: UnitGraph) -> list[int]:
    """Return the order that takes, of the ready units below the peak so far, the least after it.

    When none stays below the peak so far, the one that needs least.
    """
    walk = Walk(graph)
    heap: list[tuple[int, int, int, int]] = []
    version = [0] * len(graph.units)

    def push(unit: int) -> None:
        hill, net = walk.cost(unit)
        version[unit] += 1
        heapq.heappush(heap, (net, hill, unit, version[unit]))

    for unit in sources_of(graph):
        push(unit)
    while heap:
        aside: list[tuple[int, int, int, int]] = []
        chosen = -1
        while heap and len(aside) < _ASIDE:
            entry = heapq.heappop(heap)
            _, hill, unit, stamp = entry
            if walk.done[unit] or stamp != version[unit]:
                continue
            if walk.level + hill <= walk.peak:
                chosen = unit
                break
            aside.append(entry)
        if chosen < 0:
            if not aside:
                break
            chosen = min(aside, key=lambda e: (e[1], e[0], e[2]))[2]
        ready, cheaper = walk.run(chosen)
        for entry in aside:
            if entry[2] != chosen:
                heapq.heappush(heap, entry)
        for unit in ready:
            push(unit)
        for unit in cheaper:
            if not walk.missing[unit] and not walk.done[unit]:
                push(unit)
    return walk.order


def breadth_first(graph: UnitGraph) -> list[int]:
    """Return the units by their distance from the start, ties as given."""
    depth = [0] * len(graph.units)
    for unit, before in enumerate(graph.preds):
        depth[unit] = max((depth[p] + 1 for p in before), default=0)
    return sorted(range(len(depth)), key=lambda unit: (depth[unit], unit))


def depth_first(graph: UnitGraph) -> list[int]:
    """Return a post-order from the results, the more demanding operand first."""
    need = _needs(graph)
    return _post_order(graph, lambda unit: sorted(graph.preds[unit], key=lambda p: (-need[p], p)))


def depth_first_as_given(graph: UnitGraph) -> list[int]:
    """Return a post-order from the results, operands as given."""
    return _post_order(graph, lambda unit: graph.preds[unit])


def _needs(graph: UnitGraph) -> list[int]:
    """Return per unit the bytes that making it takes beyond what it leaves, were it a tree."""
    count = len(graph.units)
    leaves, peak = [0] * count, [0] * count
    for unit, before in enumerate(graph.preds):
        held = highest = 0
        for pred in sorted(before, key=lambda p: (leaves[p] - peak[p], p)):
            highest = max(highest, held + peak[pred])
            held += leaves[pred]
        hill, _ = graph.units[unit].cost(graph.units[unit].all_favours)
        peak[unit] = max(highest, held + hill)
        size = graph.region.costs.size
        opened = 0
        for step in graph.units[unit].steps:
            for group in graph.region.opens[step]:
                users = graph.readers.get(group, ())
                if group in graph.region.kept or any(user != unit for user in users):
                    opened += size[group]
        leaves[unit] = opened
    return [peak[u] - leaves[u] for u in range(count)]


def _post_order(graph: UnitGraph, operands: Callable[[int], Iterable[int]]) -> list[int]:
    done = [False] * len(graph.units)
    order: list[int] = []
    for result in range(len(graph.units)):
        if graph.succs[result]:
            continue
        pending = [result]
        while pending:
            unit = pending[-1]
            if done[unit]:
                pending.pop()
                continue
            missing = [p for p in operands(unit) if not done[p]]
            if missing:
                pending.extend(reversed(missing))
            else:
                pending.pop()
                done[unit] = True
                order.append(unit)
    return order


def on_demand(graph: UnitGraph) -> list[int]:
    """Return the given order with what adds bytes delayed until a reader needs it.

    A unit that adds no bytes runs as soon as it is ready; one that adds some waits until a unit
    that reads it, directly or not, has its turn.
    """
    walk = Walk(graph)

    def run_with_operands(wanted: int) -> None:
        pending = [wanted]
        while pending:
            unit = pending[-1]
            if walk.done[unit]:
                pending.pop()
                continue
            missing = [p for p in graph.preds[unit] if not walk.done[p]]
            if missing:
                pending.extend(reversed(missing))
                continue
            pending.pop()
            run_and_settle(unit)

    def run_and_settle(first: int) -> None:
        waiting = [first]
        while waiting:
            unit = waiting.pop()
            if walk.done[unit]:
                continue
            ready, cheaper = walk.run(unit)
            waiting.extend(
                other
                for other in (*ready, *cheaper)
                if not walk.done[other] and not walk.missing[other] and walk.cost(other)[1] <= 0
            )

    for unit in range(len(graph.units)):
        if walk.done[unit]:
            continue
        if graph.succs[unit] and (walk.missing[unit] or walk.cost(unit)[1] > 0):
            continue
        run_with_operands(unit)
    for unit in range(len(graph.units)):
        if not walk.done[unit]:
            run_with_operands(unit)
    return walk.order


HEURISTICS: tuple[tuple[str, Callable[[UnitGraph], list[int]]], ...] = (
    ("as given", as_given),
    ("least bytes first", least_bytes_first),
    ("depth first", depth_first),
    ("depth first as given", depth_first_as_given),
    ("breadth first", breadth_first),
    ("on demand", on_demand),
)
"""Name and function of each rule, in the order in which ties are settled."""
