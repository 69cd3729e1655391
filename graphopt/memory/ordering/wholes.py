"""Pieces inside wholes (Concat, Split) as the search sees them.

``place_parts`` decides part by part, for one order. For the search two things are settled instead:

1. *Joined*: a chosen set of parts is taken as placed. The whole then is alive from the first step
   that writes into it to the last reader of anything in it, which is a function of the steps that
   ran. This is a guess of what ``place_parts`` will do; the order found is judged by what it does.
2. *Relaxed*: bytes that no placement can save are counted, the rest is not. A joined piece costs
   its bytes until the join and nothing after it, and the join saves them; a cut piece costs
   nothing, unless all that reads the whole is one step that cuts it into pieces that do not
   overlap. Every order and every placement costs at least that, since the whole is at least as
   large as the pieces in it. So a bound of the relaxed costs is a bound of the real ones.
"""

from collections.abc import Collection, Iterable

from graphopt.memory.ordering.costs import Sharing
from graphopt.memory.ordering.groups import Groups, Part


def joined(groups: Groups, base: Sharing, steps: Collection[int] | None = None) -> Sharing:
    """Return ``base`` with parts placed.

    Args:
        groups: The groups with their parts.
        base: What else is settled.
        steps: The joining and cutting steps whose parts are placed; None for all that promise to
            pay.
    """
    inside: dict[int, int] = {}
    versions: set[int] = set()
    for part in groups.parts:
        wanted = _promises(groups, part) if steps is None else part.step in steps
        if not wanted or part.piece in inside or _holds(inside, part.piece, part.whole):
            continue
        inside[part.piece] = part.whole
        if part.is_join:
            versions.add(part.whole)
            _take_older(groups, part.piece, inside, versions)
        else:
            versions.add(part.piece)
    return Sharing(base.free, base.edges, inside, frozenset(versions))


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
    joins: dict[int, list[Part]] = {}
    cuts: dict[int, list[Part]] = {}
    for part in groups.parts:
        if part.is_join:
            joins.setdefault(part.piece, []).append(part)
        else:
            cuts.setdefault(part.whole, []).append(part)
    readers: dict[int, tuple[int, ...]] = {}
    saves: dict[int, int] = {}
    for piece, parts in joins.items():
        joining = {part.step for part in parts}
        if len(joining) > 1:
            # It may be placed in one of several wholes; whichever ends its cost is not settled.
            nothing.add(piece)
        elif piece not in nothing:
            readers[piece] = tuple(joining)
            step = parts[0].step
            saves[step] = saves.get(step, 0) + groups.size[piece]
    for whole, parts in cuts.items():
        cutting = {part.step for part in parts}
        is_split = set(groups.readers[whole]) == cutting and len(cutting) == 1
        is_split &= whole not in nothing and groups.is_counted[whole] and not groups.kept[whole]
        if not is_split or whole in readers or not _are_apart(groups, parts):
            nothing.update(part.piece for part in parts)
            continue
        for part in parts:
            if part.piece not in nothing and part.piece not in readers:
                saves[part.step] = saves.get(part.step, 0) + groups.size[part.piece]
            else:
                nothing.add(part.piece)
    for piece in [piece for piece in readers if piece in nothing]:
        (step,) = readers.pop(piece)
        saves[step] -= groups.size[piece]
    return Sharing(free=frozenset(nothing), readers=readers, saves=saves)


def _are_apart(groups: Groups, parts: list[Part]) -> bool:
    end = 0
    for part in sorted(parts, key=lambda p: p.start):
        if part.start < end:
            return False
        # Sizes are padded; a piece may only end where the next one starts.
        end = part.start + groups.size[part.piece]
    return True
