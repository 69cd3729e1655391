"""Peak of one call in a runtime that allocates each result and frees it after its last use.

In: steps in the order in which they run, the storages that each reads and makes, and the bytes it
holds at most while it runs, results included. Out: the step at which most is held, and by whom.
Such a runtime counts references: what a step reads stays until the step is over, what nobody
reads goes when its step is over, results of the call stay. Storages of the caller and weights are
in no figure. An allocator that gives out whole blocks is said by the bytes of a block. The work is
linear in steps and reads.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace

from graphopt.memory.plan import PeakOwner


@dataclass(frozen=True, slots=True)
class CallStep:
    """One operator of a call.

    Attributes:
        name: Of the value it makes.
        op: The operator.
        reads: Storages that it reads or looks at, also through views.
        makes: Storages that it allocates and that outlive it.
        most_bytes: Most bytes that it holds at one time while it runs: ``makes`` and scratch.
    """

    name: str
    op: str
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    most_bytes: int


@dataclass(frozen=True, slots=True)
class CallStorage:
    """A storage that a call makes: the value it was made for, and its bytes."""

    name: str
    op: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class CallPeak:
    """The step of a call at which most is held.

    Attributes:
        peak_bytes: What is held there: ``live_bytes`` and ``scratch_bytes``.
        live_bytes: Bytes of values there, results of the step included.
        scratch_bytes: What the step holds besides its results.
        liveness_bytes: Most bytes of values at any step: the peak if no operator took scratch.
        step: The step, from 0.
        name: Of the value that the step makes.
        op: Its operator.
        owners: Values and scratch alive there, largest first.
    """

    peak_bytes: int
    live_bytes: int
    scratch_bytes: int
    liveness_bytes: int
    step: int
    name: str
    op: str
    owners: tuple[PeakOwner, ...]


def call_peak(
    steps: Sequence[CallStep],
    storages: Sequence[CallStorage | None],
    results: Set[int],
    *,
    block_bytes: int = 1,
) -> CallPeak:
    """Return the peak of a call.

    Args:
        steps: In the order in which they run.
        storages: By number; None for those of the caller and of the module.
        results: Storages that the call returns.
        block_bytes: What the allocator rounds every request up to. What a step holds besides its
            results counts as one request.
    """
    steps, storages = _in_blocks(steps, storages, block_bytes)
    ends = _ends(steps, results)
    leaving: list[list[int]] = [[] for _ in steps]
    for storage, end in ends.items():
        if end < len(steps):
            leaving[end].append(storage)
    live = liveness = most = peak_step = peak_live = 0
    for number, step in enumerate(steps):
        live += sum(_bytes(storages, s) for s in step.makes)
        liveness = max(liveness, live)
        held = live + _scratch(step, storages)
        if held > most:
            most, peak_step, peak_live = held, number, live
        live -= sum(_bytes(storages, s) for s in leaving[number])
    if not steps:
        return CallPeak(0, 0, 0, 0, 0, "", "", ())
    at = steps[peak_step]
    return CallPeak(
        peak_bytes=most,
        live_bytes=peak_live,
        scratch_bytes=most - peak_live,
        liveness_bytes=liveness,
        step=peak_step,
        name=at.name,
        op=at.op,
        owners=_owners(steps, storages, ends, peak_step),
    )


def _in_blocks(
    steps: Sequence[CallStep], storages: Sequence[CallStorage | None], block_bytes: int
) -> tuple[Sequence[CallStep], Sequence[CallStorage | None]]:
    """Return both with sizes as the allocator gives them out."""
    if block_bytes == 1:
        return steps, storages
    rounded = [
        None if s is None else replace(s, size_bytes=_up(s.size_bytes, block_bytes))
        for s in storages
    ]
    changed = []
    for step in steps:
        scratch = _up(_scratch(step, storages), block_bytes)
        made = sum(_bytes(rounded, number) for number in step.makes)
        changed.append(replace(step, most_bytes=made + scratch))
    return changed, rounded


def _up(size: int, block_bytes: int) -> int:
    return -(-size // block_bytes) * block_bytes


def _ends(steps: Sequence[CallStep], results: Set[int]) -> dict[int, int]:
    """Return the last step that needs each storage that a step makes."""
    ends: dict[int, int] = {}
    for number, step in enumerate(steps):
        for storage in step.makes:
            ends[storage] = number
        for storage in step.reads:
            if storage in ends:
                ends[storage] = number
    return {s: len(steps) if s in results else end for s, end in ends.items()}


def _owners(
    steps: Sequence[CallStep],
    storages: Sequence[CallStorage | None],
    ends: dict[int, int],
    peak_step: int,
) -> tuple[PeakOwner, ...]:
    owners = []
    for step in steps[: peak_step + 1]:
        for number in step.makes:
            storage = storages[number]
            if storage is not None and storage.size_bytes and ends[number] >= peak_step:
                owners.append(
                    PeakOwner(
                        name=storage.name,
                        kind="activation",
                        producer=storage.op,
                        bytes=storage.size_bytes,
                    )
                )
    at = steps[peak_step]
    scratch = _scratch(at, storages)
    if scratch:
        owners.append(PeakOwner(name=at.name, kind="scratch", producer=at.op, bytes=scratch))
    return tuple(sorted(owners, key=lambda owner: (-owner.bytes, owner.name, owner.kind)))


def _scratch(step: CallStep, storages: Sequence[CallStorage | None]) -> int:
    return max(0, step.most_bytes - sum(_bytes(storages, s) for s in step.makes))


def _bytes(storages: Sequence[CallStorage | None], number: int) -> int:
    storage = storages[number]
    return 0 if storage is None else storage.size_bytes
