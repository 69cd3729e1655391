"""Pieces inside wholes (Concat, Split) as the search sees them.

``place_parts`` decides part by part, for one order. For the search two things are settled instead:

1. *Joined*: a chosen set of parts is taken as placed. The whole then is alive from the first step
   that writes into it to the last reader of anything in it, which is a function of the steps that
   ran. This is a guess of what ``place_parts`` will do; the order found is judged by what it does.
2. *Relaxed*: bytes that no placement can save are counted, the rest is not. A joined piece costs
   its bytes until the join and nothing after it, and the join saves them. A whole that is cut
   costs what is left of it without the pieces, and each piece lives from the start of the whole to
   the last reader of either; where pieces overlap, they cost nothing. Every order and every
   placement costs at least that, since the whole is at least as large as the pieces in it. So a
   bound of the relaxed costs is a bound of the real ones.
"""

from collections.abc import Collection, Iterable

from graphopt.memory.aliasing import Aliasing
from graphopt.memory.ordering.costs import Sharing
from graphopt.memory.ordering.groups import OUTSIDE, Groups, Part


def joined(groups: Groups, base: Sharing, chosen: Collection[Part] | None = None) -> Sharing:
    """Return ``base`` with parts placed.

    Args:
        groups: The groups with their parts.
        base: What else is settled.
        chosen: The parts that are placed; None for all that promise to pay.
    """
    inside: dict[int, int] = {}
    versions: set[int] = set()
    for part in groups.parts:
        wanted = _promises(groups, part) if chosen is None else part in chosen
        if not wanted or part.piece in inside or _holds(inside, part.piece, part.whole):
            continue
        inside[part.piece] = part.whole
        if part.is_join:
            versions.add(part.whole)
            _take_older(groups, part.piece, inside, versions)
        else:
            versions.add(part.piece)
    return Sharing(base.free, base.edges, inside, frozenset(versions))


def placed_parts(groups: Groups, aliasing: Aliasing) -> frozenset[Part]:
    """Return the parts that ``aliasing``, made for some order of the same dataflow, has placed."""
    opened: dict[int, int] = {}
    for value, group in enumerate(groups.root):
        opened.setdefault(group, value)
    return frozenset(
        part
        for part in groups.parts
        if aliasing.root[opened[part.piece]] == aliasing.root[opened[part.whole]]
        and aliasing.offset[opened[part.piece]] == aliasing.offset[opened[part.whole]] + part.start
    )


def _holds(inside: dict[int, int], outer: int, inner: int) -> bool:
    while inner in inside:
        inner = inside[inner]
    return inner == outer


def _promises(groups: Groups, part: Part) -> bool:
    """Return whether a part is worth a guess: a join is; a cut when it leaves little behind."""
    if part.is_join or not groups.is_counted[part.whole] or groups.kept[part.whole]:
        return True
    return groups.readers[part.whole] == (part.step,)


def _take_older(groups: Groups, piece: int, inside: dict[int, int], versions: set[int]) -> None:
    """Move what a piece is surely written over into the whole too."""
    while True:
        step = groups.opener[piece]
        older = next((x for w, x in groups.pairs[step] if w == piece), None)
        if older is None or older in inside or groups.readers[older] != (step,):
            return
        inside[older] = piece
        versions.add(piece)
        piece = older


def relaxed(groups: Groups, free: Iterable[int]) -> Sharing:
    """Return the sharing whose costs no order and no placement undercuts.

    Args:
        groups: The groups with their parts.
        free: Groups that may be handed over to the caller.
    """
    nothing = set(free)
    for part in groups.parts:
        if groups.raw_size[part.whole] == groups.raw_size[part.piece]:
            # Both are the same bytes, so parts of either may move the other.
            nothing.update((part.whole, part.piece))
    joins: dict[int, set[int]] = {}
    cuts: dict[int, list[Part]] = {}
    for part in groups.parts:
        if part.is_join:
            joins.setdefault(part.piece, set()).add(part.step)
        else:
            cuts.setdefault(part.whole, []).append(part)
    # A piece of several joins is placed in one of them; whichever ends its cost is not settled.
    nothing.update(piece for piece, steps in joins.items() if len(steps) > 1)
    split: dict[int, list[Part]] = {}
    pieces: set[int] = set()
    # Outer wholes come first: what is a piece of one whole is not taken apart a second time.
    for whole in sorted(cuts, key=lambda w: (groups.opener[w], w)):
        parts = cuts[whole]
        if whole not in pieces and _is_split(groups, parts, nothing, joins):
            split[whole] = parts
            pieces.update(part.piece for part in parts)
        else:
            nothing.update(part.piece for part in parts)
    saves: dict[int, int] = {}
    readers: dict[int, tuple[int, ...]] = {}
    for piece, steps in joins.items():
        if piece not in nothing:
            (step,) = steps
            readers[piece] = (step,)
            saves[step] = saves.get(step, 0) + groups.size[piece]
    sizes: dict[int, int] = {}
    openers: dict[int, tuple[int, ...]] = {}
    for whole, parts in split.items():
        sizes[whole] = groups.size[whole] - sum(groups.size[part.piece] for part in parts)
        first = groups.opener[whole]
        for part in parts:
            openers[part.piece] = () if first == OUTSIDE else (first,)
            users = {*groups.readers[whole], *groups.readers[part.piece]}
            readers[part.piece] = tuple(sorted(users))
    return Sharing(
        free=frozenset(nothing), sizes=sizes, openers=openers, readers=readers, saves=saves
    )


def _is_split(
    groups: Groups, parts: list[Part], nothing: Collection[int], joins: Collection[int]
) -> bool:
    """Return whether a whole can be counted as the pieces cut from it and a rest.

    Each piece then lives from the start of the whole to the last reader of the whole or of the
    piece. Placed inside or copied, the pieces and the whole take at least that.
    """
    whole = parts[0].whole
    touched = {whole, *(part.piece for part in parts)}
    if any(group in nothing or group in joins for group in touched):
        return False
    if groups.kept[whole] or not groups.is_counted[whole]:
        return False
    end = 0
    for part in sorted(parts, key=lambda p: p.start):
        if part.start < end:
            return False
        end = part.start + groups.size[part.piece]
    return True
