"""All memory of one search, in flat arrays: what numba can compile and a pause can keep."""

from collections.abc import MutableSequence, Sequence
from random import Random
from typing import Any, NamedTuple

import numpy as np

from graphopt.memory.packing.instance import Instance
from graphopt.memory.packing.jit import IS_COMPILED

Ints = MutableSequence[int]
Floats = MutableSequence[float]

# Slots of State.control.
FRAME, MODE, NODES, ORDER, BY_DURATION, CAPACITY = 0, 1, 2, 3, 4, 5
_NUM_SLOTS = 6

_MEMO_SLOTS = 1 << 17


class State(NamedTuple):
    """One search: the instance, the stack, the memo, and what was learned.

    Per item: ``size``, ``first``, ``last`` (sections), ``align``, ``limit`` (highest top allowed),
    ``duration``, ``salt`` (for hashes), ``blame`` (failures it took part in), ``offset`` (answer).
    Obstacles of item i are ``pin_low/pin_top[item_pin[i] : item_pin[i + 1]]``; those of sections
    come from ``section_pin`` likewise.
    Per list position: ``item``, ``rest``, ``least``, ``barred``, ``rank``; each frame owns the
    positions ``begin .. end - 1`` and its children write from ``top`` on.
    Per frame: ``is_split``, ``placed`` (position branched on), ``key`` (hash when it began),
    ``part`` (next part of a split), ``part_end``; a part is ``part_from .. part_to - 1``.
    """

    size: Ints
    first: Ints
    last: Ints
    align: Ints
    limit: Ints
    duration: Ints
    salt: Ints
    item_pin: Ints
    section_pin: Ints
    pin_low: Ints
    pin_top: Ints
    blame: Floats
    offset: Ints
    item: Ints
    rest: Ints
    least: Ints
    barred: Ints
    rank: Ints
    begin: Ints
    end: Ints
    top: Ints
    is_split: Ints
    placed: Ints
    key: Ints
    part: Ints
    part_end: Ints
    part_from: Ints
    part_to: Ints
    memo: Ints
    section: Ints
    section_part: Ints
    moved: Ints
    moved_rest: Ints
    moved_least: Ints
    moved_barred: Ints
    moved_rank: Ints
    score_1: Floats
    score_2: Floats
    score_3: Floats
    blame_weight: Floats
    control: Ints


def new_state(instance: Instance) -> State:
    """Return an empty search; ``limit``, ``control`` and the first list are set by the caller."""
    count, sections = len(instance.sizes), instance.num_sections
    pins: list[tuple[int, int]] = []
    item_pin, section_pin = [0], [0]
    for own in instance.item_pins:
        pins += own
        item_pin.append(len(pins))
    section_pin[0] = len(pins)
    for own in instance.section_pins:
        pins += own
        section_pin.append(len(pins))
    # Children of a frame of m items need m - 1 positions, and so on down.
    positions, frames = count * (count + 3) // 2 + 4, 2 * count + 4
    random = Random(20230325)
    return State(
        size=_ints(instance.sizes),
        first=_ints(instance.first),
        last=_ints(instance.last),
        align=_ints(instance.alignments),
        limit=_zeros(count),
        duration=_ints(instance.durations),
        salt=_ints([random.getrandbits(62) for _ in range(count)]),
        item_pin=_ints(item_pin),
        section_pin=_ints(section_pin),
        pin_low=_ints([low for low, _ in pins]),
        pin_top=_ints([top for _, top in pins]),
        blame=_floats(count),
        offset=_zeros(count),
        item=_zeros(positions),
        rest=_zeros(positions),
        least=_zeros(positions),
        barred=_zeros(positions),
        rank=_zeros(positions),
        begin=_zeros(frames),
        end=_zeros(frames),
        top=_zeros(frames),
        is_split=_zeros(frames),
        placed=_zeros(frames),
        key=_zeros(frames),
        part=_zeros(frames),
        part_end=_zeros(frames),
        part_from=_zeros(frames),
        part_to=_zeros(frames),
        memo=_zeros(1),
        section=_zeros(sections + 2),
        section_part=_zeros(sections + 2),
        moved=_zeros(count + 1),
        moved_rest=_zeros(count + 1),
        moved_least=_zeros(count + 1),
        moved_barred=_zeros(count + 1),
        moved_rank=_zeros(count + 1),
        score_1=_floats(count + 1),
        score_2=_floats(count + 1),
        score_3=_floats(count + 1),
        blame_weight=_floats(1),
        control=_zeros(_NUM_SLOTS),
    )


def with_own_memo(state: State) -> State:
    """Return the same search with a memo of its own: entries only hold for one capacity."""
    return state._replace(memo=_zeros(_MEMO_SLOTS))


# Compiled code runs on arrays; plain Python is three times faster on lists.
def _ints(values: Sequence[int]) -> Any:
    return np.array(values, dtype=np.int64) if IS_COMPILED else list(values)


def _zeros(count: int) -> Any:
    return np.zeros(count, dtype=np.int64) if IS_COMPILED else [0] * count


def _floats(count: int) -> Any:
    return np.zeros(count, dtype=np.float64) if IS_COMPILED else [0.0] * count
