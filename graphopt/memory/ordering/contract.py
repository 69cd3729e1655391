"""Joins steps that some best order runs back to back, so that the search has fewer units.

Let L(D) be the bytes alive after the set D of steps ran; L is submodular: what a step adds to L
only falls when more steps ran before it. A unit b is joined to its only predecessor a ...

1. *forwards*, when b never adds bytes (net(b) <= 0) and what b needs right after a is no more than
   a itself needs. In any order b can be moved to just behind a: the steps between see no more
   bytes, and more of their in-place writes are possible.
2. *backwards*, when b is the only successor of a, a adds at least the bytes of all that it reads,
   and a needs no more than b right after it. In any order a can be delayed to just before b: the
   steps between see at least as many bytes less as the in-place writes that they lose by it.

Both conditions must hold whatever the favours of a and b are (see :mod:`.regions`). In (1) the
worst case is that a has none: each lowers the bytes after a by a size and the need of a by no more.
In (2) it is that a has all. This is the contraction of hills and valleys of Liu, "An application of
generalized tree pebbling to sparse matrix factorization" (SIAM J. Algebraic Discrete Methods 8,
1987), section 3, for the chains inside of any graph.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graphopt.memory.ordering.regions import Region, Unit


@dataclass
class UnitGraph:
    """The units of a region and how they depend on each other.

    Attributes:
        region: The region.
        units: In a valid order.
        preds: Units that must run before each unit, ascending; ``succs`` is the reverse.
        readers: Units that read each group that may end in the region, ascending.
        openers: Units that may open each group that has several openers, ascending.
    """

    region: Region
    units: list[Unit]
    preds: list[tuple[int, ...]]
    succs: list[tuple[int, ...]]
    readers: dict[int, tuple[int, ...]]
    openers: dict[int, tuple[int, ...]]

    def steps_of(self, order: Sequence[int]) -> list[int]:
        """Return the steps of the units in ``order``."""
        return [step for unit in order for step in self.units[unit].steps]

    def runs_of(self, order: Sequence[int]) -> list[int]:
        """Return the most bytes alive while each unit of ``order`` runs; all units."""
        runs = self.region.runs_of(self.steps_of(order))
        highest, start = [], 0
        for unit in order:
            end = start + len(self.units[unit].steps)
            highest.append(max(runs[start:end]))
            start = end
        return highest


def unit_graph(region: Region, most_steps: int, *, contract: bool = True) -> UnitGraph:
    """Return the units of ``region``, joined where that loses nothing.

    Args:
        region: The steps.
        most_steps: Largest number of steps of a unit.
        contract: False leaves every step a unit of its own.
    """
    joiner = _Joiner(region, most_steps)
    if contract:
        joiner.run()
    return joiner.result()


class _Joiner:
    """Units under contraction."""

    def __init__(self, region: Region, most_steps: int) -> None:
        self.region = region
        self.most_steps = most_steps
        local = {step: number for number, step in enumerate(region.steps)}
        costs = region.costs
        self.units: list[Unit | None] = [Unit(region, (step,)) for step in region.steps]
        self.preds = [{local[p] for p in costs.preds[s] if p in local} for s in region.steps]
        self.succs = [{local[q] for q in costs.succs[s] if q in local} for s in region.steps]
        self.readers: dict[int, set[int]] = {}
        self.openers: dict[int, set[int]] = {}
        for number, step in enumerate(region.steps):
            for group in region.reads[step]:
                self.readers.setdefault(group, set()).add(number)
            for group in region.opens[step]:
                if region.openers[group] > 1:
                    self.openers.setdefault(group, set()).add(number)

    def run(self) -> None:
        """Join until no rule applies; every join puts the neighbours back in the queue."""
        queue = deque(range(len(self.units)))
        waiting = [True] * len(self.units)
        while queue:
            number = queue.popleft()
            waiting[number] = False
            if self.units[number] is None:
                continue
            joined = self._try_join(number)
            if joined is None:
                continue
            for other in sorted({joined, *self.preds[joined], *self.succs[joined]}):
                if not waiting[other]:
                    waiting[other] = True
                    queue.append(other)

    def _try_join(self, number: int) -> int | None:
        if len(self.preds[number]) == 1:
            (before,) = self.preds[number]
            if self._forwards(before, number):
                return self._join(before, number, keep=before, gone=number)
        if len(self.succs[number]) == 1:
            (after,) = self.succs[number]
            if self._backwards(number, after):
                return self._join(number, after, keep=after, gone=number)
        return None

    def _pair(self, first: int, second: int) -> tuple[Unit, Unit] | None:
        a, b = self.units[first], self.units[second]
        assert a is not None
        assert b is not None
        return (a, b) if len(a.steps) + len(b.steps) <= self.most_steps else None

    def _forwards(self, first: int, second: int) -> bool:
        pair = self._pair(first, second)
        if pair is None:
            return False
        a, b = pair
        favours = 0
        for bit, group in enumerate(b.ending):
            if self.readers[group] <= {first, second}:
                favours |= 1 << bit
        for bit, group in enumerate(b.joint, len(b.ending)):
            if first in self.openers[group]:
                favours |= 1 << bit
        hill_b, net_b = b.cost(favours)
        if net_b > 0:
            return False
        hill_a, net_a = a.cost(0)
        return net_a + hill_b <= hill_a

    def _backwards(self, first: int, second: int) -> bool:
        pair = self._pair(first, second)
        if pair is None or (self.region.first_bytes and not self.preds[first]):
            return False
        a, b = pair
        favours = a.all_favours
        for bit, group in enumerate(a.ending):
            if second in self.readers[group]:
                favours ^= 1 << bit
        hill_a, net_a = a.cost(favours)
        if net_a < 0:
            return False
        hill_b, _ = b.cost(b.all_favours)
        return hill_a <= net_a + hill_b

    def _join(self, first: int, second: int, *, keep: int, gone: int) -> int:
        # What moves gives up its number, so numbers stay a valid order: predecessors have smaller
        # ones and successors larger ones.
        a, b = self.units[first], self.units[second]
        assert a is not None
        assert b is not None
        moved = a if gone == first else b
        for users, groups in ((self.readers, moved.ending), (self.openers, moved.joint)):
            for group in groups:
                users[group].discard(gone)
                users[group].add(keep)
        self.units[gone] = None
        self.units[keep] = Unit(self.region, a.steps + b.steps)
        for forwards, backwards in ((self.preds, self.succs), (self.succs, self.preds)):
            for other in forwards[gone]:
                backwards[other].discard(gone)
                backwards[other].add(keep)
            forwards[keep] |= forwards[gone]
            forwards[keep] -= {first, second}
            backwards[keep] -= {gone, keep}
        return keep

    def result(self) -> UnitGraph:
        """Return the units that are left, numbered in a valid order."""
        order = [old for old, unit in enumerate(self.units) if unit is not None]
        number = {old: new for new, old in enumerate(order)}
        units = [unit for unit in (self.units[old] for old in order) if unit is not None]
        region = self.region
        readers = _users(units, region.reads)
        openers = _users(units, region.opens)
        return UnitGraph(
            region,
            units,
            [tuple(sorted(number[p] for p in self.preds[old])) for old in order],
            [tuple(sorted(number[q] for q in self.succs[old])) for old in order],
            readers,
            {group: users for group, users in openers.items() if region.openers[group] > 1},
        )


def _users(units: list[Unit], groups: Mapping[int, tuple[int, ...]]) -> dict[int, tuple[int, ...]]:
    users: dict[int, dict[int, None]] = {}
    for number, unit in enumerate(units):
        for step in unit.steps:
            for group in groups[step]:
                users.setdefault(group, {})[number] = None
    return {group: tuple(numbers) for group, numbers in users.items()}
