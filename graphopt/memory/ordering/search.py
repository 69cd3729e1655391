"""Exact search: is there an order of the units that stays within a budget of bytes?

Depth first over sets of units that ran; L is the bytes alive after such a set:

1. A set is expanded once.
2. *Safe move*: a ready unit that stays within the budget and adds no bytes runs at once, without
   alternatives: since L is submodular, any order within the budget can be changed to run it now.
3. *Valleys*: the same holds for several units in a row. When a set is reached whose L is no more than
   that of a set on the path, every alternative of that earlier set is covered by what follows the
   later one. So the path keeps only sets with increasing L, and a failure falls back below the
   valley.

A search that ends without an order proves that none stays within the budget; the least excess seen
on the way is then what every order needs.
"""

import time
from dataclasses import dataclass, field

from graphopt.memory.ordering.masks import MaskGraph

# Looking at this many ready units counts as one more node: wide graphs cost more per set.
_LOOKS_PER_NODE = 32
_CLOCK_EVERY = 256


@dataclass
class Effort:
    """What the search may still spend; shared by all searches of one call.

    Attributes:
        nodes_left: Nodes that may still be visited; decides what is found.
        deadline: Time after which everything stops, as ``time.monotonic`` counts.
        nodes: Nodes visited so far.
        is_late: Whether the clock stopped a search; then another run may find something else.
    """

    nodes_left: int
    deadline: float
    nodes: int = field(default=0)
    is_late: bool = field(default=False)

    def spend(self, nodes: int) -> None:
        """Count ``nodes`` and look at the clock."""
        self.nodes_left -= nodes
        self.nodes += nodes
        if self.nodes_left > 0 and time.monotonic() > self.deadline:
            self.is_late = True
            self.nodes_left = 0

    @property
    def is_spent(self) -> bool:
        """Whether nothing may be spent any more."""
        return self.nodes_left <= 0


@dataclass(frozen=True)
class Answer:
    """Result of a search.

    Attributes:
        order: An order within the budget; None when there is none or the effort was spent.
        needed_bytes: When no order is within the budget: bytes that every order needs.
    """

    order: list[int] | None
    needed_bytes: int | None


def find_order(masks: MaskGraph, budget: int, effort: Effort, most_nodes: int) -> Answer:
    """Return an order of the units that needs at most ``budget`` bytes, or the proof of none.

    Args:
        masks: The units.
        budget: Bytes.
        effort: What may be spent in all.
        most_nodes: What this search may spend.
    """
    return _Search(masks, budget, effort, most_nodes).run()


# A set that ran, the bytes after it, the ready units, alternatives left, length of the path to it.
_Frame = tuple[int, int, tuple[int, ...], list[int], int]


class _Search:
    """One search: the current set (``done``, ``level``, ``ready``) and the path that led to it."""

    def __init__(self, masks: MaskGraph, budget: int, effort: Effort, most_nodes: int) -> None:
        region = masks.graph.region
        self.masks = masks
        self.units = masks.graph.units
        self.succs = masks.graph.succs
        self.budget = budget
        self.effort = effort
        self.most_nodes = most_nodes
        self.done = 0
        self.level = region.base_bytes
        self.first_bytes = region.first_bytes
        self.ready = tuple(u for u, preds in enumerate(masks.preds) if not preds)
        self.path: list[int] = []
        self.excess: int | None = None
        self.looks = 0

    def run(self) -> Answer:
        """Search."""
        seen: set[int] = set()
        frames: list[_Frame] = []
        counted = 0
        while True:
            moves = self._settle()
            if self.done == self.masks.everything:
                self.effort.spend(len(seen) + self.looks // _LOOKS_PER_NODE - counted)
                return Answer(self.path, None)
            while frames and frames[-1][1] >= self.level:
                frames.pop()
            if self.done not in seen:
                seen.add(self.done)
                moves.sort(reverse=True)
                waiting = [unit for _, _, unit in moves]
                frames.append((self.done, self.level, self.ready, waiting, len(self.path)))
            nodes = len(seen) + self.looks // _LOOKS_PER_NODE
            if nodes - counted >= _CLOCK_EVERY or nodes > self.most_nodes:
                self.effort.spend(nodes - counted)
                counted = nodes
                if self.effort.is_spent or nodes > self.most_nodes:
                    return Answer(None, None)
            while frames and not frames[-1][3]:
                frames.pop()
            if not frames:
                self.effort.spend(nodes - counted)
                return Answer(None, self.excess)
            self.done, self.level, self.ready, waiting, length = frames[-1]
            del self.path[length:]
            unit = waiting.pop()
            _, net = self.units[unit].cost(self.masks.favours_of(unit, self.done))
            self._run(unit, net)

    def _settle(self) -> list[tuple[int, int, int]]:
        """Make all safe moves; return the others within the budget as (net, hill, unit)."""
        while True:
            moves: list[tuple[int, int, int]] = []
            first = 0 if self.done else self.first_bytes
            safe = None
            for unit in self.ready:
                hill, net = self.units[unit].cost(self.masks.favours_of(unit, self.done))
                need = self.level + hill + first
                if need > self.budget:
                    if self.excess is None or need < self.excess:
                        self.excess = need
                elif net <= 0:
                    safe = unit, net
                    break
                else:
                    moves.append((net, hill, unit))
            self.looks += len(moves) + 1
            if safe is None:
                return moves
            self._run(*safe)

    def _run(self, unit: int, net: int) -> None:
        self.path.append(unit)
        self.done |= 1 << unit
        self.level += net
        after = ~self.done
        preds = self.masks.preds
        self.ready = (
            *(u for u in self.ready if u != unit),
            *(s for s in self.succs[unit] if not preds[s] & after),
        )


def beam_order(masks: MaskGraph, width: int) -> list[int]:
    """Return the best order found when ``width`` sets are kept at every length.

    Sets are ranked by the most bytes needed on the way to them, then by the bytes after them.
    """
    region = masks.graph.region
    units, succs, preds = masks.graph.units, masks.graph.succs, masks.preds
    start = tuple(u for u, before in enumerate(preds) if not before)
    # (peak, level, set, ready units, link to the path: (unit, link before))
    beam: list[tuple[int, int, int, tuple[int, ...], tuple[int, object] | None]]
    beam = [(region.base_bytes, region.base_bytes, 0, start, None)]
    for _ in units:
        best: dict[int, tuple[int, int, int, int]] = {}
        for number, (peak, level, done, ready, _) in enumerate(beam):
            first = 0 if done else region.first_bytes
            for unit in ready:
                hill, net = units[unit].cost(masks.favours_of(unit, done))
                after = done | 1 << unit
                entry = (max(peak, level + hill + first), level + net, unit, number)
                known = best.get(after)
                if known is None or entry < known:
                    best[after] = entry
        chosen = sorted(best.items(), key=lambda item: item[1])[:width]
        following = []
        for after, (peak, level, unit, number) in chosen:
            _, _, _, ready, link = beam[number]
            still = tuple(u for u in ready if u != unit)
            fresh = tuple(s for s in succs[unit] if not preds[s] & ~after)
            following.append((peak, level, after, still + fresh, (unit, link)))
        beam = following
    order: list[int] = []
    link: object = beam[0][4]
    while isinstance(link, tuple):
        unit, link = link
        order.append(unit)
    return order[::-1]
