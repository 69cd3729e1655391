"""Gives every storage of a tape its offset in an arena, one arena per data type.

In: a tape. Out: an ``ArenaPlan``: the calls that remain, where each storage lies, which storages
are outputs of the caller. What always holds: storages in use at the same call share no byte, save
where an elementwise operator writes over the argument that it reads last, element for element; the
placement is checked by ``verify_placement``, which shares no code with the planner.

An output is written where the caller wants it by the call that computes it, and lies in no arena;
an output that is a view, an input, or lies in another way than row after row is copied at the end.
"""

from dataclasses import dataclass, field, replace

import torch

from graphopt.backends.torch_tape import Call, Place, Tape
from graphopt.memory.planners import plan_placement
from graphopt.memory.problem import Item, Placement, Problem
from graphopt.memory.verify_placement import verify_placement

ALIGNMENT = 64
CUDA_ALIGNMENT = 256
"""What ``cudaMalloc`` aligns to at least; kernels read more bytes at once from such places."""


@dataclass(frozen=True)
class Arena:
    """The arena of one data type: its storages with their items, and where they lie."""

    dtype: torch.dtype
    storages: tuple[int, ...]
    problem: Problem
    placement: Placement


@dataclass
class ArenaPlan:
    """A tape with a place for everything.

    Attributes:
        tape: The calls that remain and their storages.
        arenas: One per data type, by name of the type.
        offsets: Byte in its arena of every storage of kind ``arena``.
        outputs: Number of the output that a storage is, for those that calls write directly.
        copies: Outputs that are copied at the end, by position.
    """

    tape: Tape
    arenas: tuple[Arena, ...] = ()
    offsets: dict[int, int] = field(default_factory=dict)
    outputs: dict[int, int] = field(default_factory=dict)
    copies: tuple[int, ...] = ()

    @property
    def arena_bytes(self) -> int:
        """Bytes of all arenas."""
        return sum(arena.placement.height for arena in self.arenas)

    @property
    def lower_bound_bytes(self) -> int:
        """Proven least bytes of the arenas for this order and these storages."""
        return sum(arena.placement.lower_bound for arena in self.arenas)


def plan_arena(tape: Tape) -> ArenaPlan:
    """Return where every storage of ``tape`` lies; the tape keeps only calls that are needed."""
    _fold_known(tape)
    _drop_unread(tape)
    plan = ArenaPlan(tape)
    _direct_outputs(plan)
    owner = _share_places(plan)
    first, last = _uses(tape.calls)
    for position in plan.copies:
        last[tape.outputs[position].storage] = len(tape.calls) + position
    items: dict[int, tuple[int, int]] = {}
    for number in first:
        if tape.storages[number].kind == "arena" and number not in plan.outputs:
            root = owner.get(number, number)
            start, end = items.get(root, (first[number], 0))
            items[root] = (min(start, first[number]), max(end, last[number] + 1))
    arenas = []
    kinds = {
        str(tape.storages[root].whole.dtype): tape.storages[root].whole.dtype for root in items
    }
    for _, dtype in sorted(kinds.items()):
        roots = [root for root in sorted(items) if tape.storages[root].whole.dtype == dtype]
        arenas.append(_place(tape, dtype, roots, items))
        offsets = zip(roots, arenas[-1].placement.offsets, strict=True)
        plan.offsets.update(dict(offsets))
    plan.offsets.update({number: plan.offsets[root] for number, root in owner.items()})
    plan.arenas = tuple(arenas)
    return plan


def _place(
    tape: Tape, dtype: torch.dtype, roots: list[int], lifetimes: dict[int, tuple[int, int]]
) -> Arena:
    alignment = ALIGNMENT if tape.device.type == "cpu" else CUDA_ALIGNMENT
    problem = Problem(
        tuple(
            Item(f"s{root}", *lifetimes[root], max(tape.storages[root].nbytes, 1), alignment)
            for root in roots
        )
    )
    placement = plan_placement(problem, effort="exact")
    verify_placement(problem, placement)
    return Arena(dtype, tuple(roots), problem, placement)


def _fold_known(tape: Tape) -> None:
    """Make weights of what is small and the same for all inputs."""
    for number, storage in enumerate(tape.storages):
        if storage.kind in ("arena", "heap") and storage.data is not None:
            storage.kind, storage.name = "weight", f"constant_{number}"
    kinds = [storage.kind for storage in tape.storages]
    tape.calls = [
        call
        for call in tape.calls
        if any(kinds[p.storage] != "weight" for p in (*call.writes, *call.makes))
    ]


def _drop_unread(tape: Tape) -> None:
    needed = {place.storage for place in tape.outputs}
    kept = []
    for call in reversed(tape.calls):
        if any(place.storage in needed for place in (*call.writes, *call.makes)):
            needed.update(place.storage for place in call.reads)
            kept.append(call)
    tape.calls = kept[::-1]


def _direct_outputs(plan: ArenaPlan) -> None:
    tape = plan.tape
    copies = []
    for position, place in enumerate(tape.outputs):
        storage = tape.storages[place.storage]
        alone = (
            storage.kind == "arena"
            and place == storage.whole
            and is_row_major(place)
            and place.storage not in plan.outputs
        )
        if alone:
            plan.outputs[place.storage] = position
        else:
            copies.append(position)
    plan.copies = tuple(copies)


def is_row_major(place: Place) -> bool:
    """Return whether the elements lie row after row without gaps, as a new tensor has them."""
    expected = 1
    for size, stride in zip(reversed(place.size), reversed(place.stride), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _uses(calls: list[Call]) -> tuple[dict[int, int], dict[int, int]]:
    """Return the first and the last call that touches each storage."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for index, call in enumerate(calls):
        for place in (*call.reads, *call.writes, *call.makes):
            first.setdefault(place.storage, index)
            last[place.storage] = index
    return first, last


def _share_places(plan: ArenaPlan) -> dict[int, int]:
    """Return the storages that lie where another one lies: an operator writes over its argument."""
    tape = plan.tape
    first, last = _uses(tape.calls)
    final = {tape.outputs[position].storage for position in plan.copies}
    owner: dict[int, int] = {}
    until: dict[int, int] = {}  # by owner: the last use of all that lies there
    for index, call in enumerate(tape.calls):
        if not call.over:
            continue
        target = call.writes[0]
        if not _is_whole(plan, target) or first[target.storage] != index:
            continue
        for place in call.over:
            root = owner.get(place.storage, place.storage)
            others = [p for p in call.reads if owner.get(p.storage, p.storage) == root]
            dies = until.get(root, last[place.storage]) == index and not final & {place.storage}
            if dies and _is_whole(plan, place) and all(p == place for p in others):
                if replace(place, storage=target.storage) != target:
                    continue
                owner[target.storage] = root
                until[root] = last[target.storage]
                break
    return owner


def _is_whole(plan: ArenaPlan, place: Place) -> bool:
    storage = plan.tape.storages[place.storage]
    same_bytes = place.dtype.itemsize
    for size in place.size:
        same_bytes *= size
    return (
        storage.kind == "arena"
        and place.storage not in plan.outputs
        and place.is_dense
        and place.offset == 0
        and same_bytes == storage.nbytes
    )
