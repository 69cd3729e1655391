"""Buffers that become the caller's: an output written in place over an activation.

When outputs belong to the caller, an output written in place over an activation takes the
activation's whole buffer out of the arena, from the step that opened it. Whether that happens
depends on which reader of the activation comes last, so it is not a fact about a set of steps that
ran. It is settled here, before the search:

1. A buffer is *handed over* in every order, or in none, when the other readers of the activation
   are ancestors (or one is a descendant) of the step that would write over it. Nearly all are.
2. For the others every outcome is one *variant*: extra edges between steps that make the outcome
   certain. The orders of all variants together are all orders, and in each variant the bytes are
   again a function of the set of steps that ran. A variant that leaves a buffer counted allows
   every order; the bytes it states are then an upper bound.
3. Where the variants are too many, the first one (nothing uncertain is handed over) is searched,
   and the lower bound comes from the *relaxed* costs, in which all of these buffers cost nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from graphopt.memory.ordering.costs import Sharing
from graphopt.memory.ordering.groups import OUTSIDE, Groups

Edges = tuple[tuple[int, int], ...]
# What a group is written over (None for nothing), and the edges that make that certain.
_Outcome = tuple[int | None, Edges]

# Variants are separate searches; beyond a few the relaxed bound is the better use of the time.
MOST_VARIANTS = 12
# Steps visited to compare steps, in all, before the rest is left uncertain.
_VISITS_PER_STEP = 30


@dataclass(frozen=True)
class Handover:
    """What is known of handed-over buffers.

    Attributes:
        variants: The first one allows every order; all of them together decide the optimum.
        is_complete: Whether the least cost over the variants is the least cost of all orders.
        relaxed: Groups that may be handed over in some order.
    """

    variants: tuple[Sharing, ...]
    is_complete: bool
    relaxed: frozenset[int]


def handover_of(
    groups: Groups, preds: Sequence[tuple[int, ...]], succs: Sequence[tuple[int, ...]]
) -> Handover:
    """Return what orders can do about handed-over buffers.

    Args:
        groups: The view groups with their in-place permissions.
        preds: The steps that must run before each step; steps are numbered in a valid order.
        succs: The reverse.
    """
    relaxed, is_regular = _closure(groups)
    if not relaxed:
        return Handover((Sharing(),), True, frozenset())
    callers = [
        group
        for group, counts in enumerate(groups.is_counted)
        if not counts and groups.opener[group] != OUTSIDE
    ]
    search = _Outcomes(groups, _Reach(preds, succs, _VISITS_PER_STEP * len(preds) + 1000))
    variants = search.variants(callers)
    return Handover(tuple(variants), search.is_complete and is_regular, relaxed)


def _closure(groups: Groups) -> tuple[frozenset[int], bool]:
    """Return the groups that may be handed over, and whether only in-place outputs are the cause.

    A written value of a caller's role that is no result of the graph may itself be written over,
    and hands its role on in the other direction; no front end makes such a value. A piece of a
    caller's buffer costs nothing either when it is placed inside.
    """
    counted = groups.is_counted
    partners: dict[int, list[int]] = {}
    is_regular = True
    for pairs in groups.pairs:
        for written, over in pairs:
            partners.setdefault(written, []).append(over)
            if not counted[over]:
                is_regular = False
                partners.setdefault(over, []).append(written)
    for part in groups.parts:
        partners.setdefault(part.whole, []).append(part.piece)
    found: dict[int, None] = {}
    pending = [group for group, counts in enumerate(counted) if not counts]
    while pending:
        for other in partners.get(pending.pop(), ()):
            if counted[other] and other not in found:
                found[other] = None
                pending.append(other)
    return frozenset(found), is_regular


@dataclass
class _Reach:
    """Compares steps by search; counts the steps it visits."""

    preds: Sequence[tuple[int, ...]]
    succs: Sequence[tuple[int, ...]]
    visits_left: int

    def among_ancestors(self, step: int, wanted: Iterable[int], edges: Edges) -> set[int]:
        """Return those of ``wanted`` that run before ``step`` in every order."""
        return self._reached(step, set(wanted), self.preds, [(b, a) for a, b in edges], -1)

    def among_descendants(self, step: int, wanted: Iterable[int], edges: Edges) -> set[int]:
        """Return those of ``wanted`` that run after ``step`` in every order."""
        return self._reached(step, set(wanted), self.succs, list(edges), 1)

    def _reached(
        self,
        step: int,
        wanted: set[int],
        nexts: Sequence[tuple[int, ...]],
        edges: list[tuple[int, int]],
        sign: int,
    ) -> set[int]:
        if not wanted:
            return set()
        # Numbers of steps only grow along the flow, so beyond the last wanted one nothing is found.
        # Extra edges break that rule.
        limit = None if edges else max(sign * other for other in wanted)
        extra: dict[int, list[int]] = {}
        for source, destination in edges:
            extra.setdefault(source, []).append(destination)
        seen = {step}
        pending = [step]
        while pending and self.visits_left > 0:
            current = pending.pop()
            self.visits_left -= 1
            for other in (*nexts[current], *extra.get(current, ())):
                if other not in seen and (limit is None or sign * other <= limit):
                    seen.add(other)
                    pending.append(other)
        return (seen & wanted) - {step}


@dataclass
class _Outcomes:
    """Enumerates the outcomes."""

    groups: Groups
    reach: _Reach
    is_complete: bool = field(default=True)

    def variants(self, callers: Sequence[int]) -> list[Sharing]:
        """Return the variants that start from the groups ``callers``, cyclic ones left out."""
        found: dict[tuple[frozenset[int], Edges], None] = {}
        pending: list[tuple[tuple[int, ...], frozenset[int], Edges]] = [
            (tuple(reversed(callers)), frozenset(), ())
        ]
        while pending:
            if len(found) == MOST_VARIANTS:
                self.is_complete = False
                break
            queue, free, edges = pending.pop()
            todo = list(queue)
            while todo:
                outcomes = self._outcomes(todo.pop(), edges)
                for over, more in reversed(outcomes[1:]):
                    taken = () if over is None else (over,)
                    pending.append(((*todo, *taken), free.union(taken), (*edges, *more)))
                over, more = outcomes[0]
                edges = (*edges, *more)
                if over is not None:
                    free |= {over}
                    todo.append(over)
            if not edges or self._is_acyclic(edges):
                found[free, edges] = None
        return [Sharing(free=free, edges=edges) for free, edges in found]

    def _outcomes(self, written: int, edges: Edges) -> list[_Outcome]:
        """Return what ``written`` may be written over; the first outcome asks for no edge."""
        groups = self.groups
        step = groups.opener[written]
        pairs = () if step == OUTSIDE else groups.pairs[step]
        if not any(group == written for group, _ in pairs):
            return [(None, ())]
        status = {over: self._status(step, over, edges) for _, over in pairs}
        if self.reach.visits_left > 0:
            is_certain = not any(status.values())
            if is_certain or all(group == written for group, _ in pairs):
                return _settle(step, written, pairs, status)
        self.is_complete = False
        return [(None, ())]

    def _status(self, step: int, over: int, edges: Edges) -> tuple[int, ...] | None:
        """Return the readers of ``over`` that may run before or after ``step``; None: it is needed.

        No such reader: ``step`` is the last reader in every order.
        """
        others = [reader for reader in self.groups.readers[over] if reader != step]
        before = self.reach.among_ancestors(step, others, edges)
        open_ = [reader for reader in others if reader not in before]
        if self.reach.among_descendants(step, open_, edges):
            return None
        return tuple(open_)

    def _is_acyclic(self, edges: Edges) -> bool:
        extra: dict[int, list[int]] = {}
        missing = [len(before) for before in self.reach.preds]
        for earlier, later in edges:
            extra.setdefault(earlier, []).append(later)
            missing[later] += 1
        ready = [step for step, count in enumerate(missing) if not count]
        done = 0
        while ready:
            step = ready.pop()
            done += 1
            for later in (*self.reach.succs[step], *extra.get(step, ())):
                missing[later] -= 1
                if not missing[later]:
                    ready.append(later)
        return done == len(missing)


def _settle(
    step: int,
    written: int,
    pairs: tuple[tuple[int, int], ...],
    status: dict[int, tuple[int, ...] | None],
) -> list[_Outcome]:
    """Return the outcomes at ``step`` for ``written``, the one without edges first.

    Either every status is certain, or ``written`` is the only group that the step writes over
    something.
    """
    taken: set[int] = set()
    merged: set[int] = set()
    outcomes: list[_Outcome] = []
    contexts: list[Edges] = [()]
    for group, over in pairs:
        maybe = status[over]
        if maybe is None or over in taken or group in merged:
            continue
        if not maybe:
            taken.add(over)
            merged.add(group)
            if group == written:
                outcomes += [(over, context) for context in contexts]
            continue
        last = tuple((reader, step) for reader in maybe)
        outcomes += [(over, (*context, *last)) for context in contexts]
        contexts = [(*context, (step, reader)) for context in contexts for reader in maybe]
    if len(outcomes) == 1 and not outcomes[0][1]:
        return outcomes
    return [(None, ()), *outcomes]
