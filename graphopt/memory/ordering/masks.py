"""The units of a region as bit masks: what the exact search and its lower bound work on.

A set of units is a Python integer, unit i is bit i. Python integers have no width, so the same code
serves 10 and 2,000 units.
"""

from collections.abc import Sequence

from graphopt.memory.ordering.contract import UnitGraph


class MaskGraph:
    """A unit graph in bit masks.

    Attributes:
        graph: The units.
        preds: Per unit the mask of the units that must run before it.
        everything: The mask of all units.
        favours: Per unit its favours as (favour bit, users, is_ending): the group ends in the unit when
            no user is left, or is open when a user ran.
    """

    def __init__(self, graph: UnitGraph) -> None:
        self.graph = graph
        self.everything = (1 << len(graph.units)) - 1
        self.preds = [_mask(before) for before in graph.preds]
        self._readers = {group: _mask(units) for group, units in graph.readers.items()}
        self._openers = {group: _mask(units) for group, units in graph.openers.items()}
        self.favours: list[tuple[tuple[int, int, bool], ...]] = []
        for unit in graph.units:
            endings = [(1 << bit, self._readers[g], True) for bit, g in enumerate(unit.ending)]
            shift = len(endings)
            joints = [
                (1 << shift + bit, self._openers[g], False) for bit, g in enumerate(unit.joint)
            ]
            self.favours.append((*endings, *joints))
        self._relatives: tuple[list[int], list[int]] | None = None

    def favours_of(self, unit: int, done: int) -> int:
        """Return the favours of ``unit`` when it runs after the units ``done``."""
        found = 0
        after = ~(done | 1 << unit)
        for bit, users, is_ending in self.favours[unit]:
            if not users & after if is_ending else users & done:
                found |= bit
        return found

    def runs_of(self, order: Sequence[int]) -> list[int]:
        """Return the most bytes alive while each unit of ``order`` runs."""
        region = self.graph.region
        level, done, runs = region.base_bytes, 0, []
        for place, unit in enumerate(order):
            hill, net = self.graph.units[unit].cost(self.favours_of(unit, done))
            runs.append(level + hill)
            if not place and region.first_bytes:
                runs[0] += region.first_bytes
            level += net
            done |= 1 << unit
        return runs

    def lower_bound(self, order: Sequence[int], runs: Sequence[int]) -> int:
        """Return bytes that every order needs at some unit.

        While a unit runs, every buffer is alive that an ancestor opened (or that came from before
        the region) and that the unit or a descendant reads. A unit is looked at only when it could
        raise the bound, which its bytes in any valid ``order`` tell.
        """
        bound = 0
        for place in sorted(range(len(order)), key=lambda p: (-runs[p], p)):
            if runs[place] <= bound:
                break
            bound = max(bound, self._needed_at(order[place]))
        return bound

    def _needed_at(self, unit: int) -> int:
        region, units = self.graph.region, self.graph.units
        size = region.costs.size
        ancestors, descendants = self.relatives()
        before, after = ancestors[unit], descendants[unit]
        now_or_after = after | 1 << unit
        needed = region.base_bytes
        opened = {g for u in _bits(before) for s in units[u].steps for g in region.opens[s]}
        for group in opened:
            if group in region.kept or self._readers.get(group, 0) & now_or_after:
                needed += size[group]
        for group, readers in self._readers.items():
            if group not in region.openers and not readers & now_or_after:
                needed -= size[group]
        favours = 0
        for bit, users, is_ending in self.favours[unit]:
            if not users & after if is_ending else users & before:
                favours |= bit
        return needed + units[unit].cost(favours)[0]

    def relatives(self) -> tuple[list[int], list[int]]:
        """Return per unit the masks of its ancestors and of its descendants."""
        if self._relatives is None:
            count = len(self.preds)
            ancestors, descendants = [0] * count, [0] * count
            for unit in range(count):
                for pred in self.graph.preds[unit]:
                    ancestors[unit] |= ancestors[pred] | 1 << pred
            for unit in range(count - 1, -1, -1):
                for succ in self.graph.succs[unit]:
                    descendants[unit] |= descendants[succ] | 1 << succ
            self._relatives = ancestors, descendants
        return self._relatives


def _mask(units: Sequence[int]) -> int:
    mask = 0
    for unit in units:
        mask |= 1 << unit
    return mask


def _bits(mask: int) -> list[int]:
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found
