"""The units of a region as bit masks: what the exact search works on.

A set of units is a Python integer, unit i is bit i. Python integers have no width, so the same code
serves 10 and 2,000 units.
"""

from collections.abc import Sequence

from graphopt.memory.ordering.contract import UnitGraph


class MaskGraph:
    """A unit graph in bit masks.

    Attributes:
        graph: The units.
        preds: Per unit the mask of the units that must run before it; ``succs`` is the reverse.
        everything: The mask of all units.
        favours: Per unit its favours as (favour bit, users, is_ending): the group ends in the unit
            when no user is left, or is open when a user ran.
    """

    def __init__(self, graph: UnitGraph) -> None:
        self.graph = graph
        self.everything = (1 << len(graph.units)) - 1
        self.preds = [_mask(before) for before in graph.preds]
        self.succs = [_mask(after) for after in graph.succs]
        readers = {group: _mask(units) for group, units in graph.readers.items()}
        openers = {group: _mask(units) for group, units in graph.openers.items()}
        self.favours: list[tuple[tuple[int, int, bool], ...]] = []
        for unit in graph.units:
            endings = [(1 << bit, readers[g], True) for bit, g in enumerate(unit.ending)]
            shift = len(endings)
            joints = [(1 << shift + bit, openers[g], False) for bit, g in enumerate(unit.joint)]
            self.favours.append((*endings, *joints))

    def favours_of(self, unit: int, done: int) -> int:
        """Return the favours of ``unit`` when it runs after the units ``done``."""
        found = 0
        after = ~(done | 1 << unit)
        for bit, users, is_ending in self.favours[unit]:
            if not users & after if is_ending else users & done:
                found |= bit
        return found


def _mask(units: Sequence[int]) -> int:
    mask = 0
    for unit in units:
        mask |= 1 << unit
    return mask
