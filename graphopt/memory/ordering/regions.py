"""A region: steps to be ordered between two fixed sets of steps, and units of such steps.

Within a region only three kinds of groups matter: those that a step opens, those that may end in
it, and those that may be written over. What is alive across the whole region is one number,
``base_bytes``.

A *unit* is a run of steps that is executed without interruption. What it costs depends on what ran
before it only through *favours*: one bit per group that ends in the unit because all other readers
ran, and one per group that the unit need not open because another opener ran. Each favour lowers
the bytes after the unit by the size of the group, and the most bytes during it by no more than
that.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from graphopt.memory.ordering.costs import Costs


@dataclass(frozen=True)
class Region:
    """Steps to be ordered while everything before and after stays as it is.

    Attributes:
        costs: The costs of the whole flow.
        steps: The steps of the region, in a valid order.
        opens: Per step the groups it opens, or may open.
        openers: Per group opened in the region how many of its openers are in it.
        reads: Per step the groups it reads that may end in the region.
        readers: Per group that may end in the region how many steps of the region read it.
        kept: Groups touched in the region that are needed after it.
        base_bytes: Bytes alive at the start.
        first_bytes: Bytes alive only during the very first step, if that is in the region.
    """

    costs: Costs
    steps: tuple[int, ...]
    opens: Mapping[int, tuple[int, ...]]
    openers: Mapping[int, int]
    reads: Mapping[int, tuple[int, ...]]
    readers: Mapping[int, int]
    kept: frozenset[int]
    base_bytes: int
    first_bytes: int

    def run(
        self,
        order: Iterable[int],
        *,
        ended_by: Mapping[int, int] | None = None,
        is_open: Iterable[int] = (),
    ) -> tuple[list[int], list[int]]:
        """Return the bytes added while each step of ``order`` runs, and after each step.

        Args:
            order: Steps of the region, in a valid order; not necessarily all.
            ended_by: Per group how many reads in ``order`` end it; None for all its readers.
            is_open: Groups that are open before the first step.
        """
        costs, size = self.costs, self.costs.size
        left = dict(self.readers if ended_by is None else ended_by)
        opened_already = set(is_open)
        level = 0
        runs, levels = [], []
        for step in order:
            opened = ended = 0
            for group in self.opens[step]:
                if group in opened_already:
                    continue
                if self.openers[group] > 1:
                    opened_already.add(group)
                opened += size[group]
                if group not in self.readers and group not in self.kept:
                    ended += size[group]
            dying = []
            for group in self.reads[step]:
                left[group] -= 1
                if not left[group]:
                    dying.append(group)
                    ended += size[group]
            saved = costs.saved_bytes(step, dying) if dying else 0
            runs.append(level + opened + costs.scratch[step] - saved)
            level += opened - ended
            levels.append(level)
        return runs, levels

    def runs_of(self, order: Sequence[int]) -> list[int]:
        """Return the bytes alive while each step of ``order`` runs; all steps of the region."""
        runs, _ = self.run(order)
        absolute = [self.base_bytes + bytes_ for bytes_ in runs]
        if absolute:
            absolute[0] += self.first_bytes
        return absolute


class Unit:
    """A run of steps with its cost as a function of its favours.

    Attributes:
        steps: The steps, in execution order.
        ending: Groups that it reads and other units as well; favour bit i for the i-th.
        joint: Groups that it opens unless another unit did; the favour bits after those.
    """

    __slots__ = ("_cost", "_region", "ending", "joint", "steps")

    def __init__(self, region: Region, steps: tuple[int, ...]) -> None:
        self.steps = steps
        self._region = region
        reading = _counted(group for step in steps for group in region.reads[step])
        opening = _counted(group for step in steps for group in region.opens[step])
        self.ending = tuple(g for g, count in reading.items() if count < region.readers[g])
        self.joint = tuple(g for g, count in opening.items() if count < region.openers[g])
        self._cost: dict[int, tuple[int, int]] = {}

    @property
    def all_favours(self) -> int:
        """All favour bits."""
        return (1 << len(self.ending) + len(self.joint)) - 1

    def cost(self, favours: int) -> tuple[int, int]:
        """Return (hill, net): bytes added at the worst moment, and bytes added at the end."""
        known = self._cost.get(favours)
        if known is None:
            known = self._cost[favours] = self._simulate(favours)
        return known

    def _simulate(self, favours: int) -> tuple[int, int]:
        region = self._region
        left = _counted(group for step in self.steps for group in region.reads[step])
        for bit, group in enumerate(self.ending):
            if not favours >> bit & 1:
                left[group] += 1
        shift = len(self.ending)
        is_open = [g for bit, g in enumerate(self.joint) if favours >> shift + bit & 1]
        runs, levels = region.run(self.steps, ended_by=left, is_open=is_open)
        return max(runs), levels[-1]


def _counted(groups: Iterable[int]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for group in groups:
        counts[group] = counts.get(group, 0) + 1
    return counts


def region_of(
    costs: Costs, order: Sequence[int], start: int, end: int, position: Sequence[int], base: int
) -> Region:
    """Return the region of the steps ``order[start:end]``.

    Args:
        costs: The costs of the flow.
        order: A valid order of all steps.
        start: First position of the region.
        end: First position after it.
        position: Position of each step in ``order``.
        base: Bytes alive before the step at ``start``.
    """
    steps = tuple(order[start:end])
    touched = dict.fromkeys(g for s in steps for g in (*costs.opens[s], *costs.reads[s]))
    kept = frozenset(
        group
        for group in touched
        if costs.kept[group]
        # Late readers stand at the end, so a group that lives on is mostly seen at once.
        or any(position[reader] >= end for reader in reversed(costs.readers[group]))
    )
    is_open = {
        group
        for group in touched
        if len(costs.openers[group]) > 1
        and any(position[opener] < start for opener in costs.openers[group])
    }
    opens = {s: tuple(g for g in costs.opens[s] if g not in is_open) for s in steps}
    reads = {s: tuple(g for g in costs.reads[s] if g not in kept) for s in steps}
    return Region(
        costs=costs,
        steps=steps,
        opens=opens,
        openers=_counted(group for step in steps for group in opens[step]),
        reads=reads,
        readers=_counted(group for step in steps for group in reads[step]),
        kept=kept,
        base_bytes=base,
        first_bytes=costs.first_bytes if start == 0 else 0,
    )


def cut_positions(costs: Costs, order: Sequence[int]) -> list[int]:
    """Return the positions where every order has run the same steps, ends included, ascending.

    A step that is an ancestor or a descendant of every other one has the same steps before it in
    every order. In a given order it is found by two scans: all later steps descend from it when
    each of them has a predecessor no earlier than it, and the same backwards. O(steps + edges).
    """
    count = len(order)
    position = [0] * count
    for place, step in enumerate(order):
        position[step] = place
    last_pred = [max((position[p] for p in costs.preds[s]), default=-1) for s in order]
    first_succ = [min((position[q] for q in costs.succs[s]), default=count) for s in order]
    lowest = [count] * (count + 1)
    for place in range(count - 1, -1, -1):
        lowest[place] = min(lowest[place + 1], last_pred[place])
    cuts = {0, count}
    highest = -1
    for place in range(count):
        if lowest[place + 1] >= place and highest <= place:
            cuts.update((place, place + 1))
        highest = max(highest, first_succ[place])
    return sorted(cuts)
