"""Lifetimes of buffers, live bytes at every step, and who is alive at the peak.

A buffer is alive during the half-open interval of steps ``[start, end)``: from the step that
first writes it to just after the last step that reads one of its values. What enters from outside
is alive from step 0; what must be intact at the end is alive to the last step.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

from graphopt.memory.aliasing import Aliasing
from graphopt.memory.dataflow import Dataflow, Role


@dataclass(frozen=True, slots=True)
class Lifetime:
    """A buffer and when it is needed.

    Attributes:
        root: The value that names the buffer.
        members: All values in it, in the order of the dataflow.
        role: Role of the buffer: an output, input, state or weight gives its role to the buffer.
        size_bytes: Bytes of its largest value, without padding.
        start: First step at which it is alive.
        end: First step at which it is no longer alive; greater than ``start``.
    """

    root: int
    members: tuple[int, ...]
    role: Role
    size_bytes: int
    start: int
    end: int


def lifetimes(dataflow: Dataflow, aliasing: Aliasing) -> tuple[Lifetime, ...]:
    """Return the lifetime of every buffer, in the order of their roots."""
    count = len(dataflow.values)
    total = max(1, len(dataflow.steps))
    start = [0] * count
    end = [0] * count
    for index in range(count):
        writer = dataflow.writer(index)
        start[index] = 0 if writer is None else writer
        end[index] = start[index] + 1
    for number, step in enumerate(dataflow.steps):
        for value in step.reads:
            end[value] = max(end[value], number + 1)
    for value in dataflow.results:
        end[value] = total
    result = []
    for root, members in aliasing.groups().items():
        roles = {dataflow.values[m].role for m in members}
        role = next((r for r in _ROLE_RANK if r in roles), Role.ACTIVATION)
        result.append(
            Lifetime(
                root=root,
                members=tuple(members),
                role=role,
                size_bytes=max(aliasing.offset[m] + dataflow.values[m].size_bytes for m in members),
                start=min(start[m] for m in members),
                end=max(end[m] for m in members),
            )
        )
    return tuple(result)


# A buffer that holds both an activation and an output is the output's; see aliasing rule 4.
_ROLE_RANK = (Role.WEIGHT, Role.STATE, Role.INPUT, Role.OUTPUT, Role.ACTIVATION, Role.SCRATCH)


def live_bytes(intervals: Iterable[tuple[int, int, int]], steps: int) -> list[int]:
    """Return the bytes alive at each of ``steps`` steps, from (start, end, bytes) triples."""
    change = [0] * (steps + 1)
    for start, end, size in intervals:
        change[start] += size
        change[min(end, steps)] -= size
    return list(accumulate(change))[:steps]
