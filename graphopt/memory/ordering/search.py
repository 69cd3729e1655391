"""Exact search: is there an order of the units that stays within a budget of bytes?

Depth first over sets of units that ran; L is the bytes alive after such a set:

1. A set is expanded once.
2. *Safe move*: a ready unit that stays within the budget and adds no bytes runs at once, without
   alternatives: since L is submodular, any order within the budget can be changed to run it now.
3. *Valleys*: the same holds for several units at once, when no part of them alone leaves fewer
   bytes than all. When such a set is reached whose L is no more than that of a set on the path,
   every alternative of the earlier set is covered by what follows the later one. So the path keeps
   few sets open, and a failure falls back below the valley.

Of rule 3, argued: let X hold D, L(X) <= L(D), and let no set between D and X be below L(X). In any
order from D, run the rest of X first and leave it out later. A later set D + S becomes X + S, and
L(X + S) - L(D + S) <= L(X) - L(D + (S and X)) <= 0 by submodularity. What a unit needs while it
runs falls as well, since more in-place writes are possible. Without the condition a part of X may
be the deeper valley, and following X would be wrong.

A search that ends without an order proves that none stays within the budget; the least excess seen
on the way is then what every order needs.
"""

import time
from dataclasses import dataclass, field
from operator import itemgetter

from graphopt.memory.ordering.masks import MaskGraph

# Looking at this many ready units counts as one more node: wide graphs cost more per set.
_LOOKS_PER_NODE = 32
_CLOCK_EVERY = 256
# Sets between two sets of the path that are compared before a valley is taken as undecided.
_MOST_SUBSETS = 16


@dataclass
class Effort:
    """What the search may still spend; shared by all searches of one call.

    Attributes:
        nodes_left: Nodes that may still be visited; decides what is found.
        deadline: Time after which everything stops, as ``time.monotonic`` counts.
        nodes: Nodes visited so far.
        is_late: Whether the clock stopped a search; then another run may find something else.
        is_limited: Whether some search stopped before it had an answer.
    """

    nodes_left: int
    deadline: float
    nodes: int = field(default=0)
    is_late: bool = field(default=False)
    is_limited: bool = field(default=False)

    def spend(self, nodes: int) -> None:
        """Count ``nodes`` and look at the clock."""
        self.nodes_left -= nodes
        self.nodes += nodes
        if self.nodes_left > 0 and time.monotonic() > self.deadline:
            self.is_late = True
            self.nodes_left = 0

    def part(self, share: float) -> "Effort":
        """Return ``share`` of what is left, to be spent apart and then counted with ``add``."""
        return Effort(int(self.nodes_left * share), self.deadline)

    def add(self, part: "Effort") -> None:
        """Count what was spent apart."""
        self.nodes += part.nodes
        self.nodes_left = 0 if part.is_late else self.nodes_left - part.nodes
        self.is_late |= part.is_late
        self.is_limited |= part.is_limited

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
            while frames and frames[-1][1] >= self.level and self._is_lowest_since(frames[-1]):
                frames.pop()
            if self.done == self.masks.everything:
                self.effort.spend(len(seen) + self.looks // _LOOKS_PER_NODE - counted)
                return Answer(self.path, None)
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
                    self.effort.is_limited = True
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

    def _is_lowest_since(self, frame: _Frame) -> bool:
        """Return whether no set between ``frame`` and the current one has fewer bytes after it.

        Units that add nothing to the smaller set, and units that the larger one does not gain from,
        do not matter, since L is submodular. What is left is enumerated; False when it is too much.
        """
        low, low_level = frame[0], frame[1]
        high, high_level = self.done, self.level
        preds, succs = self.masks.preds, self.masks.succs
        block = self.path[frame[4] :]
        self.looks += 2 * len(block)
        is_shrinking = True
        while is_shrinking and low != high:
            is_shrinking = False
            for unit in block:
                bit = 1 << unit
                if high & bit and not low & bit and not preds[unit] & ~low:
                    net = self._net(unit, low)
                    if net <= 0:
                        low, low_level, is_shrinking = low | bit, low_level + net, True
            for unit in reversed(block):
                bit = 1 << unit
                if high & bit and not low & bit and not succs[unit] & high:
                    net = self._net(unit, high ^ bit)
                    if net >= 0:
                        high, high_level, is_shrinking = high ^ bit, high_level - net, True
            if min(low_level, high_level) < self.level:
                return False
        core = [unit for unit in block if high >> unit & 1 and not low >> unit & 1]
        return self._is_lowest_over(core, low, low_level)

    def _is_lowest_over(self, core: list[int], low: int, low_level: int) -> bool:
        """Return whether no set of ``low`` and units of ``core`` has fewer bytes than now."""
        preds = self.masks.preds
        pending, seen = [(low, low_level)], {low}
        while pending:
            done, level = pending.pop()
            self.looks += len(core)
            for unit in core:
                after = done | 1 << unit
                if after in seen or preds[unit] & ~done:
                    continue
                following = level + self._net(unit, done)
                if following < self.level or len(seen) > _MOST_SUBSETS:
                    return False
                seen.add(after)
                pending.append((after, following))
        return True

    def _net(self, unit: int, done: int) -> int:
        return self.units[unit].cost(self.masks.favours_of(unit, done))[1]

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


@dataclass(frozen=True)
class _Link:
    """The units on the way to a set, last one first."""

    unit: int
    before: "_Link | None"


def beam_order(masks: MaskGraph, width: int) -> list[int]:
    """Return the best order found when ``width`` sets are kept at every length.

    Sets are ranked by the most bytes needed on the way to them, then by the bytes after them.
    """
    region = masks.graph.region
    units, succs, preds = masks.graph.units, masks.graph.succs, masks.preds
    start = tuple(u for u, before in enumerate(preds) if not before)
    root: _Link | None = None
    # (most bytes so far, bytes now, units that ran, ready units, the way there)
    beam = [(region.base_bytes, region.base_bytes, 0, start, root)]
    for _ in units:
        best: dict[int, tuple[int, int, int, int]] = {}
        for number, (peak, level, done, ready, _link) in enumerate(beam):
            first = 0 if done else region.first_bytes
            for unit in ready:
                hill, net = units[unit].cost(masks.favours_of(unit, done))
                entry = (max(peak, level + hill + first), level + net, unit, number)
                after = done | 1 << unit
                if after not in best or entry < best[after]:
                    best[after] = entry
        following = []
        for after, (peak, level, unit, number) in sorted(best.items(), key=itemgetter(1))[:width]:
            ready = tuple(u for u in beam[number][3] if u != unit)
            fresh = tuple(s for s in succs[unit] if not preds[s] & ~after)
            following.append((peak, level, after, ready + fresh, _link_to(unit, beam[number][4])))
        beam = following
    order: list[int] = []
    link = beam[0][4]
    while link is not None:
        order.append(link.unit)
        link = link.before
    return order[::-1]


def _link_to(unit: int, before: _Link | None) -> _Link | None:
    return _Link(unit, before)
