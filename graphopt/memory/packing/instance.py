"""The exact search's view of a problem: small integers, sections, obstacles.

*Sections* are the maximal sets of items alive at one step, in time order. An item spans a
contiguous range of sections, and two items overlap in time exactly when their ranges meet, so the
search needs no steps. Offsets are counted in a *unit*: in a packing where everything is pushed
down, each offset is a sum of sizes rounded up to alignments, so their common divisor loses nothing.
"""

from dataclasses import dataclass
from math import gcd

from graphopt.memory.problem import Item, Problem


@dataclass(frozen=True)
class Instance:
    """A problem in units, free items only; pinned items are obstacles.

    Attributes:
        free: Index in the problem of each free item.
        unit: Bytes per unit.
        sizes: Units taken, rounded up.
        bytes: Sizes in bytes, for capacities that are no whole number of units.
        alignments: Units, 1 where the unit already implies it.
        first, last: Half-open range of sections of each free item.
        durations: Steps alive.
        num_sections: Number of sections.
        item_pins, section_pins: Disjoint obstacles as (low, top) in units, lowest first.
        exact_units: True when every size is a whole number of units, so heights are too.
    """

    free: list[int]
    unit: int
    sizes: list[int]
    bytes: list[int]
    alignments: list[int]
    first: list[int]
    last: list[int]
    durations: list[int]
    num_sections: int
    item_pins: list[list[tuple[int, int]]]
    section_pins: list[list[tuple[int, int]]]
    exact_units: bool


def build_instance(problem: Problem) -> Instance:
    """Return the problem as the search sees it; O(n log n) plus the overlaps with pinned items."""
    items = problem.items
    free = [index for index, item in enumerate(items) if item.offset is None]
    unit, exact_units = _unit(items)
    first, last, num_sections = _sections(items)
    section_pins: list[list[tuple[int, int]]] = [[] for _ in range(num_sections)]
    item_pins: list[list[tuple[int, int]]] = [[] for _ in free]
    for index, item in enumerate(items):
        if item.offset is not None:
            pin = (item.offset // unit, -(-(item.offset + item.size) // unit))
            for section in range(first[index], last[index]):
                section_pins[section].append(pin)
    for at, index in enumerate(free):
        pins = {pin for s in range(first[index], last[index]) for pin in section_pins[s]}
        item_pins[at] = _merged(sorted(pins))
    return Instance(
        free=free,
        unit=unit,
        sizes=[-(-items[i].size // unit) for i in free],
        bytes=[items[i].size for i in free],
        alignments=[max(1, items[i].alignment // unit) for i in free],
        first=[first[i] for i in free],
        last=[last[i] for i in free],
        durations=[items[i].end - items[i].start for i in free],
        num_sections=num_sections,
        item_pins=item_pins,
        section_pins=[_merged(sorted(pins)) for pins in section_pins],
        exact_units=exact_units,
    )


def _unit(items: tuple[Item, ...]) -> tuple[int, bool]:
    """Return the unit in bytes, and whether all free sizes are whole numbers of it.

    All free offsets are multiples of the smallest alignment, so sizes may be rounded up to that and
    obstacles outward. A larger common divisor serves too, unless an alignment would break it.
    """
    free = [item for item in items if item.offset is None]
    cell = min((item.alignment for item in free), default=1)
    unit = 0
    for item in items:
        low = item.offset or 0
        unit = gcd(unit, low // cell * cell)
        unit = gcd(unit, -(-(low + item.size) // cell) * cell)
    unit = max(unit, 1)
    for alignment in sorted({item.alignment for item in free}, reverse=True):
        if unit % alignment:
            unit = gcd(unit, alignment)
    return unit, all(item.size % unit == 0 for item in free)


def _sections(items: tuple[Item, ...]) -> tuple[list[int], list[int], int]:
    events: list[tuple[int, int, int]] = []
    for index, item in enumerate(items):
        events.append((item.start, 1, index))
        events.append((item.end, 0, index))
    events.sort()
    first, last = [0] * len(items), [0] * len(items)
    section, has_grown = 0, False
    for _, starts, index in events:
        if starts:
            first[index] = section
            has_grown = True
            continue
        # The live set is maximal when it shrinks for the first time after it grew.
        section += has_grown
        has_grown = False
        last[index] = section
    return first, last, section


def _merged(pins: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for low, top in pins:
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(top, merged[-1][1]))
        else:
            merged.append((low, top))
    return merged
