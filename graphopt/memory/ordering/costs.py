"""What an order costs, as a function of the set of steps that ran.

The bytes alive between two steps depend only on the set D of steps that ran: call them L(D). What
is alive while a step runs depends only on D and the step, since an in-place write saves the bytes
of a group exactly when the step is the last of its readers. L is submodular: the more steps ran,
the less a further one adds. The search rests on these two facts.

These are the bytes that ``resolve_aliases`` with ``lifetimes`` give for the reordered dataflow, but
for two things that depend on more than D: buffers that become the caller's by an in-place write
(:mod:`.handover`) and pieces placed inside wholes (:mod:`.wholes`). Each is settled before the
search, by a :class:`Sharing`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from graphopt.memory.dataflow import Dataflow
from graphopt.memory.ordering.groups import OUTSIDE, Groups
from graphopt.memory.placing import Rules, padded_size


@dataclass(frozen=True)
class Sharing:
    """What is settled about sharing before the search.

    Attributes:
        free: Groups that cost nothing, besides those whose role says so.
        edges: Pairs (earlier, later) of steps that orders must keep, besides what the reads ask.
        inside: Per group that lies inside another: the group that holds it.
        versions: Groups whose first bytes are written by other groups inside the same whole, so
            that they open nothing.
        sizes, openers, readers: What takes the place of the size, the openers or the readers of a
            group.
        saves: Bytes that a step saves in every order.
    """

    free: frozenset[int] = frozenset()
    edges: tuple[tuple[int, int], ...] = ()
    inside: Mapping[int, int] = field(default_factory=dict)
    versions: frozenset[int] = frozenset()
    sizes: Mapping[int, int] = field(default_factory=dict)
    openers: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    readers: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    saves: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Costs:
    """Groups and steps of a dataflow with everything that the search needs.

    Attributes:
        size: Counted bytes of each group.
        openers: The steps that may open each group, whichever runs first; none when the group is
            alive before the first step.
        readers: The steps that read each group, ascending.
        kept: Whether each group is needed to the end.
        opens: The groups that each step opens, or may open.
        reads: The groups that each step reads, as far as they cost or may be written over.
        pairs: In-place permissions of each step, in order: (group written, group overwritten, bytes
            saved when both are one).
        scratch: Bytes of each step while it runs; negative for what it saves in every order.
        preds: The steps that must run before each step, ascending; ``succs`` is the reverse.
        start_bytes: Bytes alive before the first step that some step reads or that are kept.
        first_bytes: Bytes that are alive at the first step only: inputs that nobody reads.
    """

    size: Sequence[int]
    openers: Sequence[tuple[int, ...]]
    readers: Sequence[tuple[int, ...]]
    kept: Sequence[bool]
    opens: Sequence[tuple[int, ...]]
    reads: Sequence[tuple[int, ...]]
    pairs: Sequence[tuple[tuple[int, int, int], ...]]
    scratch: Sequence[int]
    preds: Sequence[tuple[int, ...]]
    succs: Sequence[tuple[int, ...]]
    start_bytes: int
    first_bytes: int

    @property
    def num_steps(self) -> int:
        """Number of steps."""
        return len(self.preds)

    def saved_bytes(self, step: int, dying: Iterable[int]) -> int:
        """Return the bytes that in-place writes of ``step`` save when the groups ``dying`` end.

        Permissions are taken in their order: each written group and each overwritten one once.
        """
        pairs = self.pairs[step]
        if not pairs:
            return 0
        free = set(dying)
        merged: set[int] = set()
        saved = 0
        for written, over, bytes_ in pairs:
            if over in free and written not in merged:
                free.remove(over)
                merged.add(written)
                saved += bytes_
        return saved


def costs_of(flow: Dataflow, groups: Groups, rules: Rules, sharing: Sharing | None = None) -> Costs:
    """Return the costs of ``flow`` when ``sharing`` is settled."""
    settled = sharing or Sharing()
    size, openers, readers, kept = _merged(groups, settled)
    count = len(size)
    matters = [bytes_ > 0 for bytes_ in size]
    pairs = [_kept_pairs(step_pairs, groups, settled) for step_pairs in groups.pairs]
    for step_pairs in pairs:
        for _, over, _ in step_pairs:
            matters[over] = True
    opens: list[list[int]] = [[] for _ in flow.steps]
    reads: list[list[int]] = [[] for _ in flow.steps]
    for group in range(count):
        if size[group]:
            for step in openers[group]:
                opens[step].append(group)
        if matters[group]:
            for step in readers[group]:
                reads[step].append(group)
    outside = [group for group in range(count) if not openers[group]]
    needed = [group for group in outside if readers[group] or kept[group]]
    preds = _preds_of(flow, settled.edges)
    succs: list[list[int]] = [[] for _ in flow.steps]
    for number, before in enumerate(preds):
        for pred in before:
            succs[pred].append(number)
    return Costs(
        size=size,
        openers=openers,
        readers=readers,
        kept=kept,
        opens=[tuple(o) for o in opens],
        reads=[tuple(r) for r in reads],
        pairs=pairs,
        scratch=[
            padded_size(step.scratch_bytes, rules.alignment) - settled.saves.get(number, 0)
            for number, step in enumerate(flow.steps)
        ],
        preds=preds,
        succs=[tuple(s) for s in succs],
        start_bytes=sum(size[g] for g in needed),
        first_bytes=sum(size[g] for g in outside) - sum(size[g] for g in needed),
    )


def _merged(
    groups: Groups, settled: Sharing
) -> tuple[list[int], list[tuple[int, ...]], list[tuple[int, ...]], list[bool]]:
    """Return sizes, openers, readers and kept flags after groups went inside others."""
    size = list(groups.size)
    openers: list[tuple[int, ...]] = [
        () if first == OUTSIDE else (first,) for first in groups.opener
    ]
    readers = list(groups.readers)
    kept = list(groups.kept)
    for group, bytes_ in (*settled.sizes.items(), *((g, 0) for g in settled.free)):
        size[group] = bytes_
    for group, steps in settled.openers.items():
        openers[group] = steps
    for group, steps in settled.readers.items():
        readers[group] = steps
    members: dict[int, list[int]] = {}
    for group in settled.inside:
        whole = group
        while whole in settled.inside:
            whole = settled.inside[whole]
        members.setdefault(whole, [whole]).append(group)
    for whole, parts in members.items():
        opening = {groups.opener[g] for g in parts if g not in settled.versions}
        reading = {step for g in parts for step in readers[g]}
        reading |= {groups.opener[g] for g in parts if g in settled.versions}
        openers[whole] = () if OUTSIDE in opening else tuple(sorted(opening))
        readers[whole] = tuple(sorted(reading))
        kept[whole] = any(kept[g] for g in parts)
        for group in parts[1:]:
            # What lies inside costs nothing of its own, from no step to no step.
            size[group], readers[group], kept[group] = 0, (), False
    return size, openers, readers, kept


def _kept_pairs(
    pairs: tuple[tuple[int, int], ...], groups: Groups, settled: Sharing
) -> tuple[tuple[int, int, int], ...]:
    inside, free, size = settled.inside, settled.free, groups.size
    return tuple(
        (w, x, 0 if w in free or x in free else min(size[w], size[x]))
        for w, x in pairs
        if w not in inside and x not in inside
    )


def _preds_of(flow: Dataflow, edges: Iterable[tuple[int, int]]) -> list[tuple[int, ...]]:
    preds: list[set[int]] = []
    for step in flow.steps:
        writers = (flow.writer(value) for value in step.reads)
        preds.append({writer for writer in writers if writer is not None})
    for earlier, later in edges:
        preds[later].add(earlier)
    return [tuple(sorted(before)) for before in preds]
