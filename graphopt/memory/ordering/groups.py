"""View groups of a dataflow: what shares bytes in every order, and what may share in some.

A *group* is a value with its views. It is opened by one step (or lives from the start) and needed
until the last of its readers ran; a *kept* group is needed to the end. Which groups an in-place
write or a part puts into one buffer depends on the order; the permissions are listed here.
"""

from dataclasses import dataclass, field

from graphopt.memory.dataflow import Dataflow, Role, Step
from graphopt.memory.placing import Rules, padded_size, segment_of

OUTSIDE = -1
"""Opener of a group that is alive before the first step."""

# A buffer takes the first of these roles that one of its values has, as in `liveness`.
_ROLE_RANK = (Role.WEIGHT, Role.STATE, Role.INPUT, Role.OUTPUT, Role.ACTIVATION, Role.SCRATCH)


@dataclass(frozen=True, slots=True)
class Part:
    """A permission to put one group inside another.

    Attributes:
        step: The step that joins or cuts.
        whole: The group that holds the piece.
        piece: The group inside it.
        start: First byte of the piece in the whole.
        is_join: The step puts the whole together; else it takes the whole apart.
    """

    step: int
    whole: int
    piece: int
    start: int
    is_join: bool


@dataclass(frozen=True)
class Groups:
    """The view groups of a dataflow; none of this depends on the order of its steps.

    Attributes:
        root: Group of each value.
        raw_size: Bytes of the largest value of each group, without padding.
        size: Arena bytes of each group, padded; 0 when its role makes it somebody else's.
        is_counted: Whether the role of each group makes it the arena's.
        held: Whether each group may never be written over.
        opener: The step that opens each group, or OUTSIDE.
        kept: Whether each group is needed to the end.
        readers: The steps that read each group, ascending.
        pairs: In-place permissions of each step, in order: (group written, group overwritten).
        parts: Permissions to put a group inside another, in the order of the steps.
    """

    root: list[int]
    raw_size: list[int]
    size: list[int]
    is_counted: list[bool]
    held: list[bool]
    opener: list[int]
    kept: list[bool]
    readers: list[tuple[int, ...]]
    pairs: list[tuple[tuple[int, int], ...]] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)


def groups_of(flow: Dataflow, rules: Rules) -> Groups:
    """Return the view groups of ``flow``."""
    root = _view_roots(flow)
    count = max(root, default=-1) + 1
    raw = [0] * count
    rank = [len(_ROLE_RANK) - 1] * count
    held = [False] * count
    opener: list[int | None] = [None] * count
    for index, value in enumerate(flow.values):
        group, writer = root[index], flow.writer(index)
        raw[group] = max(raw[group], value.size_bytes)
        rank[group] = min(rank[group], _ROLE_RANK.index(value.role))
        first = OUTSIDE if writer is None else writer
        known = opener[group]
        opener[group] = first if known is None else min(known, first)
        is_callers = value.role is Role.WEIGHT or not rules.io_in_arena
        held[group] |= is_callers and writer is None
    kept = [False] * count
    for value_index in flow.results:
        kept[root[value_index]] = held[root[value_index]] = True
    counted = [segment_of(_ROLE_RANK[r], rules) == "arena" for r in rank]
    groups = Groups(
        root=root,
        raw_size=raw,
        size=[
            padded_size(b, rules.alignment) if c else 0 for b, c in zip(raw, counted, strict=True)
        ],
        is_counted=counted,
        held=held,
        opener=[OUTSIDE if first is None else first for first in opener],
        kept=kept,
        readers=_readers(flow, root, count),
    )
    if rules.in_place:
        for number, step in enumerate(flow.steps):
            groups.pairs.append(_pairs_of(step, groups))
            groups.parts.extend(_parts_of(flow, number, groups, rules.alignment))
    else:
        groups.pairs.extend(() for _ in flow.steps)
    return groups


def _view_roots(flow: Dataflow) -> list[int]:
    source = list(range(len(flow.values)))
    for step in flow.steps:
        for written, read in step.view_of:
            source[written] = source[read]
    number: dict[int, int] = {}
    return [number.setdefault(opener, len(number)) for opener in source]


def _readers(flow: Dataflow, root: list[int], count: int) -> list[tuple[int, ...]]:
    readers: list[list[int]] = [[] for _ in range(count)]
    for number, step in enumerate(flow.steps):
        for group in dict.fromkeys(root[value] for value in step.reads):
            readers[group].append(number)
    return [tuple(steps) for steps in readers]


def _pairs_of(step: Step, groups: Groups) -> tuple[tuple[int, int], ...]:
    """Return the in-place permissions of ``step`` that no order takes away."""
    if not step.may_overwrite:
        return ()
    root = groups.root
    views = {written for written, _ in step.view_of}
    written_to = {root[value] for value in step.writes}
    pairs = []
    for written, read in step.may_overwrite:
        group, over = root[written], root[read]
        if written in views or over in written_to or groups.held[over]:
            continue
        if groups.raw_size[group] == groups.raw_size[over] > 0:
            pairs.append((group, over))
    return tuple(pairs)


def _parts_of(flow: Dataflow, number: int, groups: Groups, alignment: int) -> list[Part]:
    """Return the parts of a step that no order takes away."""
    step = flow.steps[number]
    triples = [(read, written, start, False) for written, read, start in step.cuts]
    triples += [(written, read, start, True) for written, read, start in step.joins]
    found = []
    for outer, inner, start, is_join in triples:
        whole, piece = groups.root[outer], groups.root[inner]
        is_movable = groups.size[piece] > 0 and not groups.kept[piece]
        is_movable &= groups.opener[piece] != OUTSIDE and whole != piece
        fits = groups.raw_size[piece] == flow.values[inner].size_bytes and not start % alignment
        if is_movable and fits:
            found.append(Part(number, whole, piece, start, is_join))
    return found
