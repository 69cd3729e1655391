"""Pieces inside wholes: Concat inputs written in place, Split outputs left where they are.

In: a dataflow in its final order with the aliases of views and in-place writes. Out: an aliasing in
which some buffers lie inside others, never with more live bytes at the peak than before.

A *join* puts the buffer of a Concat input inside the buffer of its output, so the Concat copies
nothing; the joint buffer is then needed from the first piece on. A *cut* leaves a Split output
inside the input, which then lives as long as the piece. Both trade bytes at one time for bytes at
another, so each is taken only where the live bytes over the whole time it affects do not rise.

Correctness, argued for buffers ``P`` (the piece) put inside ``W`` (the whole) at step ``s``:

1. The bytes are right by the meaning of the operator (``part_facts``), at an offset that does not
   depend on a size that is not fixed.
2. ``P`` moves as one: it must be no larger than the piece itself, hold no result of the graph and
   nothing the caller owns, and not lie inside another buffer yet. What is inside ``P`` moves along.
3. Join: every write into ``P`` happens before ``s``, so the piece is the last version when the
   whole is put together, and stays: the next write into ``W`` after ``s``, if there is one, must
   come after the last read of anything in ``P``. Before ``s`` nothing else is in the bytes of the
   piece: other pieces of the same whole are at other bytes.
4. Cut: nothing is written into ``P`` after ``s``, and nothing is written into ``W`` from ``s`` to
   the last read of ``P``.
5. The new lifetime of ``W`` spans both. Offsets respect the alignment.
"""

from bisect import bisect_right, insort
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphopt.memory.aliasing import Aliasing
from graphopt.memory.dataflow import Dataflow, Role
from graphopt.memory.liveness import lifetimes, live_bytes

_ROUNDS = 2


@dataclass
class _Group:
    """A buffer while it is decided."""

    start: int
    end: int
    size: int
    in_arena: bool
    movable: bool
    writes: list[int]


def place_parts(
    flow: Dataflow, aliasing: Aliasing, *, alignment: int, io_in_arena: bool
) -> Aliasing:
    """Return ``aliasing`` with pieces put inside wholes where that does not raise the live bytes.

    Args:
        flow: Values and steps in their final order.
        aliasing: Views and in-place writes for that order.
        alignment: Offsets of pieces are multiples of this.
        io_in_arena: Whether inputs and outputs live in the arena.
    """
    if not any(step.joins or step.cuts for step in flow.steps):
        return aliasing
    placer = _Placer(flow, aliasing, alignment, io_in_arena)
    for _ in range(_ROUNDS):
        if not placer.round():
            break
    return placer.result()


class _Placer:
    """Buffers as a forest with offsets, and the live bytes they sum up to."""

    def __init__(
        self, flow: Dataflow, aliasing: Aliasing, alignment: int, io_in_arena: bool
    ) -> None:
        self.flow = flow
        self.aliasing = aliasing
        self.alignment = alignment
        self.parent: dict[int, int] = {}
        self.shift: dict[int, int] = {}  # of a merged root inside its parent
        self.relation = list(aliasing.relation)
        self.source = list(aliasing.source)
        self.groups = self._groups(io_in_arena)
        steps = len(flow.steps)
        spans = [(g.start, g.end, self._padded(g.size)) for g in self.groups.values() if g.in_arena]
        spans += [(i, i + 1, self._padded(s.scratch_bytes)) for i, s in enumerate(flow.steps)]
        self.live: npt.NDArray[np.int64] = np.array(live_bytes(spans, steps), dtype=np.int64)

    def _padded(self, size: int) -> int:
        return -(-size // self.alignment) * self.alignment

    def _groups(self, io_in_arena: bool) -> dict[int, _Group]:
        results = set(self.flow.results)
        groups = {}
        for life in lifetimes(self.flow, self.aliasing):
            outside = any(self.flow.writer(m) is None for m in life.members)
            arena = life.role is Role.ACTIVATION or (life.role is not Role.WEIGHT and io_in_arena)
            written = sorted(
                writer
                for m in life.members
                if self.aliasing.relation[m] in ("", "in-place")
                and (writer := self.flow.writer(m)) is not None
            )
            groups[life.root] = _Group(
                start=life.start,
                end=life.end,
                size=life.size_bytes,
                in_arena=arena,
                movable=arena and not outside and results.isdisjoint(life.members),
                writes=written,
            )
        return groups

    def locate(self, value: int) -> tuple[int, int]:
        """Return (root, offset) of ``value``, merges included."""
        root, offset = self.aliasing.root[value], self.aliasing.offset[value]
        while root in self.parent:
            offset += self.shift[root]
            root = self.parent[root]
        return root, offset

    def round(self) -> bool:
        """Try every part once, in the order of the steps; return whether one was placed."""
        placed = False
        for number, written, read, offset, is_join in self._candidates():
            whole, piece = (written, read) if is_join else (read, written)
            placed |= self._try(number, whole, piece, offset, is_join)
        return placed

    def _candidates(self) -> Iterator[tuple[int, int, int, int, bool]]:
        for number, step in enumerate(self.flow.steps):
            yield from ((number, w, r, o, False) for w, r, o in step.cuts)
            yield from ((number, w, r, o, True) for w, r, o in step.joins)

    def _try(self, number: int, whole: int, piece: int, offset: int, is_join: bool) -> bool:
        outer, outer_offset = self.locate(whole)
        inner, inner_offset = self.locate(piece)
        into, moved = self.groups[outer], self.groups[inner]
        at = outer_offset + offset
        if outer == inner or inner_offset or at % self.alignment or not moved.movable:
            return False
        if moved.size != self.flow.values[piece].size_bytes or not moved.size:
            return False
        allowed = _may_join(into, moved, number) if is_join else _may_cut(into, moved, number)
        if not allowed or not self._pays(into, moved):
            return False
        self._merge(outer, inner, at, with_writes=is_join)
        self.relation[inner], self.source[inner] = "part", whole
        return True

    def _pays(self, into: _Group, moved: _Group) -> bool:
        """Decide by the live bytes of the steps that change, and take the change when it pays.

        The largest of them may not rise, so no peak ever does; what they have in common with
        steps that stay as they are says nothing about this change.
        """
        low, high = min(into.start, moved.start), max(into.end, moved.end)
        before = self.live[low:high]
        after = before.copy()
        after[moved.start - low : moved.end - low] -= self._padded(moved.size)
        if into.in_arena:
            size = self._padded(into.size)
            after[: into.start - low] += size
            after[into.end - low :] += size
        changed = after != before
        if changed.any():
            highest, now = int(after[changed].max()), int(before[changed].max())
            if highest > now or (highest == now and int(after.sum()) > int(before.sum())):
                return False
        self.live[low:high] = after
        return True

    def _merge(self, outer: int, inner: int, at: int, *, with_writes: bool) -> None:
        into, moved = self.groups[outer], self.groups.pop(inner)
        self.parent[inner], self.shift[inner] = outer, at
        into.start, into.end = min(into.start, moved.start), max(into.end, moved.end)
        if not with_writes:
            return  # a cut leaves bytes where they are
        small, large = sorted((into.writes, moved.writes), key=len)
        for step in small:
            insort(large, step)
        into.writes = large

    def result(self) -> Aliasing:
        """Return the aliasing with all merges applied."""
        places = [self.locate(value) for value in range(len(self.flow.values))]
        return Aliasing(
            tuple(root for root, _ in places),
            tuple(self.relation),
            tuple(self.source),
            tuple(offset for _, offset in places),
        )


def _may_join(into: _Group, moved: _Group, number: int) -> bool:
    if moved.writes and moved.writes[-1] >= number:
        return False
    following = bisect_right(into.writes, number)
    return following == len(into.writes) or moved.end - 1 < into.writes[following]


def _may_cut(into: _Group, moved: _Group, number: int) -> bool:
    if moved.writes != [number]:
        return False
    following = bisect_right(into.writes, number)
    return following == len(into.writes) or moved.end - 1 < into.writes[following]
