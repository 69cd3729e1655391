"""Which pool a buffer lies in when the preferred one is too small: spilling by cost.

In: buffers with lifetimes, bytes and number of accesses; pools in order of preference with what
each offers to the arena. Out: a pool per buffer. Everything starts in the first pool. While the
live bytes of a pool exceed what it offers, the buffer alive at its peak that costs least moves to
the next pool: least traffic (bytes times reads and writes) for each byte-step that it takes off
the excess. What no pool can hold stays in the last one, where the plan then says by how much it
does not fit.

Greedy, O(moves * n) in numpy. A buffer moves whole: views, in-place writes and parts move with
it, and no buffer is split over time, so nothing is copied between pools at run time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Resident:
    """A buffer to keep somewhere: alive in ``[start, end)``, touched ``accesses`` times."""

    start: int
    end: int
    size: int
    accesses: int


@dataclass(frozen=True, slots=True)
class Offer:
    """What a pool offers to the arena: ``available`` bytes (None: no limit) at ``alignment``.

    ``seconds_per_byte`` is what moving a byte costs there, 0 when no bandwidth is stated.
    """

    name: str
    available: int | None
    alignment: int
    seconds_per_byte: float = 0.0


def assign_pools(residents: Sequence[Resident], offers: Sequence[Offer], steps: int) -> list[int]:
    """Return for each buffer the index of its pool.

    Args:
        residents: The buffers.
        offers: Pools that may hold them, preferred first.
        steps: Number of steps of the schedule.
    """
    assigned = np.zeros(len(residents), dtype=np.int64)
    start = np.array([r.start for r in residents], dtype=np.int64)
    end = np.array([r.end for r in residents], dtype=np.int64)
    size = np.array([r.size for r in residents], dtype=np.int64)
    traffic = size * np.array([max(1, r.accesses) for r in residents], dtype=np.int64)
    for index, offer in enumerate(offers[:-1]):
        if offer.available is None:
            break
        padded = -(-size // offer.alignment) * offer.alignment
        _spill(assigned, index, offer.available, start, end, padded, traffic, steps)
    return [int(pool) for pool in assigned]


def _spill(
    assigned: _Ints,
    index: int,
    available: int,
    start: _Ints,
    end: _Ints,
    padded: _Ints,
    traffic: _Ints,
    steps: int,
) -> None:
    """Move buffers out of pool ``index`` until its live bytes are within ``available``."""
    live = np.zeros(steps + 1, dtype=np.int64)
    here = np.flatnonzero(assigned == index)
    np.add.at(live, start[here], padded[here])
    np.add.at(live, end[here], -padded[here])
    live = np.cumsum(live)[:steps]
    while live.size:
        peak = int(live.argmax())
        if live[peak] <= available:
            return
        excess = np.maximum(live - available, 0)
        relief_until = np.concatenate(([0], np.cumsum(excess)))
        alive = np.flatnonzero((assigned == index) & (start <= peak) & (end > peak) & (padded > 0))
        if not alive.size:
            return
        # Relief is bounded by the excess over the lifetime, and by the bytes of the buffer itself.
        relief = np.minimum(
            relief_until[end[alive]] - relief_until[start[alive]],
            padded[alive] * (end[alive] - start[alive]),
        )
        cost = traffic[alive] / np.maximum(relief, 1)
        victim = int(alive[np.lexsort((alive, cost))[0]])
        assigned[victim] = index + 1
        live[start[victim] : end[victim]] -= padded[victim]
