"""Hills and valleys: the optimal order of a tree, and a strong rule for other graphs.

Liu, "An application of generalized tree pebbling to sparse matrix factorization" (SIAM J. Algebraic
Discrete Methods 8, 1987), sections 3 and 4. The bytes over an order of a subtree are cut at the
highest point, the lowest point after it, the highest after that, and so on; the pieces between are
never interrupted. Pieces of sibling subtrees are merged by falling (hill - valley), and the parent
comes last. For a tree whose costs depend on nothing else the result is optimal, which also proves
the peak. Any other graph is made a tree: a unit belongs to the last of its readers.
"""

from dataclasses import dataclass
from heapq import merge

from graphopt.memory.ordering.contract import UnitGraph

# Pieces of one subtree beyond this are joined from the front, where hills are highest: it bounds
# the work, and such a result proves nothing.
_MOST_PIECES = 400


@dataclass(frozen=True)
class TreeOrder:
    """An order by hills and valleys.

    Attributes:
        order: The units, in a valid order.
        is_optimal: Whether the graph is a tree and no order has a lower peak.
    """

    order: list[int]
    is_optimal: bool


@dataclass(slots=True)
class _Piece:
    """Units that run without interruption.

    Attributes:
        hill: Bytes at the highest point, counted from the bytes before.
        net: Bytes after, counted from the bytes before.
        last: The chain of the units, as (unit or chain, chain before).
    """

    hill: int
    net: int
    units: "_Rope"

    @property
    def key(self) -> int:
        """Pieces with a larger key run earlier."""
        return self.hill - self.net


@dataclass(slots=True, eq=False)
class _Rope:
    """A sequence of units; joining two takes constant time."""

    unit: int = -1
    left: "_Rope | None" = None
    right: "_Rope | None" = None


def hills_and_valleys(graph: UnitGraph) -> TreeOrder:
    """Return the order of the units by hills and valleys."""
    count = len(graph.units)
    parent = [succs[-1] if succs else count for succs in graph.succs]
    children: list[list[int]] = [[] for _ in range(count + 1)]
    for unit in range(count):
        children[parent[unit]].append(unit)
    is_tree, costs = _tree_costs(graph, parent)
    pieces: list[list[_Piece] | None] = [None] * count
    was_cut = False
    for unit in range(count + 1):
        branches = [branch for c in children[unit] if (branch := pieces[c]) is not None]
        for child in children[unit]:
            pieces[child] = None
        merged = branches[0] if len(branches) == 1 else _merged(branches)
        if unit < count:
            hill, net = costs[unit]
            _append(merged, _Piece(hill, net, _Rope(unit)))
            was_cut |= _cut(merged)
            pieces[unit] = merged
    wanted = [unit for piece in merged for unit in _units_of(piece.units)]
    return TreeOrder(_repaired(graph, wanted), is_tree and not was_cut)


def _tree_costs(graph: UnitGraph, parent: list[int]) -> tuple[bool, list[tuple[int, int]]]:
    """Return whether the units form a tree with costs of their own, and the cost of each unit.

    In any other graph a group ends in the parent of the unit that opens it.
    """
    region = graph.region
    owner = {
        g: u for u, found in enumerate(graph.units) for s in found.steps for g in region.opens[s]
    }
    is_tree = not graph.openers and all(len(succs) <= 1 for succs in graph.succs)
    is_tree &= not region.first_bytes
    costs = []
    for number, unit in enumerate(graph.units):
        favours = unit.all_favours
        for bit, group in enumerate(unit.ending):
            is_tree = False
            if group not in owner or parent[owner[group]] != number:
                favours ^= 1 << bit
        costs.append(unit.cost(favours))
    is_tree &= all(group in owner for group in graph.readers)
    return is_tree, costs


def _merged(branches: list[list[_Piece]]) -> list[_Piece]:
    """Return the pieces of independent branches in one sequence, with its own hills and valleys."""
    result: list[_Piece] = []
    for piece in merge(*branches, key=lambda p: -p.key):
        _append(result, piece)
    return result


def _append(pieces: list[_Piece], piece: _Piece) -> None:
    """Add a piece at the end; hills stay falling and valleys rising, counted from the start."""
    # From the valley before a piece: its hill must be below the hill of the piece before, and its
    # valley above that piece's valley; else the two are one.
    while pieces:
        before = pieces[-1]
        if before.net + piece.hill < before.hill and piece.net > 0:
            break
        pieces.pop()
        piece = _Piece(
            max(before.hill, before.net + piece.hill),
            before.net + piece.net,
            _Rope(left=before.units, right=piece.units),
        )
    pieces.append(piece)


def _cut(pieces: list[_Piece]) -> bool:
    """Join the first pieces when there are too many; return whether that was done."""
    extra = len(pieces) - _MOST_PIECES
    if extra <= 0:
        return False
    first = pieces[0]
    for piece in pieces[1 : extra + 1]:
        first = _Piece(
            max(first.hill, first.net + piece.hill),
            first.net + piece.net,
            _Rope(left=first.units, right=piece.units),
        )
    pieces[: extra + 1] = [first]
    return True


def _units_of(rope: _Rope) -> list[int]:
    units: list[int] = []
    pending: list[_Rope | None] = [rope]
    while pending:
        current = pending.pop()
        if current is None:
            continue
        if current.unit >= 0:
            units.append(current.unit)
        pending += (current.right, current.left)
    return units


def _repaired(graph: UnitGraph, wanted: list[int]) -> list[int]:
    """Return ``wanted`` with every unit moved behind those it needs."""
    done = [False] * len(graph.units)
    order: list[int] = []
    for first in wanted:
        pending = [first]
        while pending:
            unit = pending[-1]
            missing = [p for p in graph.preds[unit] if not done[p]]
            if done[unit] or not missing:
                pending.pop()
                if not done[unit]:
                    done[unit] = True
                    order.append(unit)
            else:
                pending.extend(reversed(missing))
    return order
