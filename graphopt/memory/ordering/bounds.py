"""Bytes that every order needs at some unit of a region."""

from collections.abc import Sequence

from graphopt.memory.ordering.contract import UnitGraph

# Units looked at, times units of the graph: what one look costs grows with the graph.
_MOST_VISITS = 200_000


def lower_bound(graph: UnitGraph, order: Sequence[int], runs: Sequence[int]) -> int:
    """Return the bytes that every order of the units needs at some unit.

    While a unit runs, every buffer is alive that an ancestor opened (or that came from before the
    region) and that the unit or a descendant reads. A unit is looked at only when it could raise
    the bound, which its bytes in a valid order tell.

    Args:
        graph: The units.
        order: A valid order of them.
        runs: Bytes alive while each unit of ``order`` runs.
    """
    most = max(4, _MOST_VISITS // max(1, len(order)))
    bound = 0
    for place in sorted(range(len(order)), key=lambda p: (-runs[p], p))[:most]:
        if runs[place] <= bound:
            break
        bound = max(bound, _needed_at(graph, order[place]))
    return bound


def _needed_at(graph: UnitGraph, unit: int) -> int:
    region = graph.region
    size = region.costs.size
    before = _reached(graph.preds, unit)
    after = _reached(graph.succs, unit)
    needed = region.base_bytes
    opened = {g for u in before for s in graph.units[u].steps for g in region.opens[s]}
    for group in opened:
        readers = graph.readers.get(group, ())
        if group in region.kept or any(r == unit or r in after for r in readers):
            needed += size[group]
    for group, readers in graph.readers.items():
        is_outside = group not in region.openers
        if is_outside and not any(r == unit or r in after for r in readers):
            needed -= size[group]
    found = graph.units[unit]
    favours = 0
    for bit, group in enumerate(found.ending):
        if not any(r in after for r in graph.readers[group]):
            favours |= 1 << bit
    for bit, group in enumerate(found.joint, len(found.ending)):
        if any(o in before for o in graph.openers[group]):
            favours |= 1 << bit
    return needed + found.cost(favours)[0]


def _reached(nexts: Sequence[tuple[int, ...]], start: int) -> set[int]:
    seen: set[int] = set()
    pending = list(nexts[start])
    while pending:
        unit = pending.pop()
        if unit not in seen:
            seen.add(unit)
            pending += nexts[unit]
    return seen
