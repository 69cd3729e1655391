"""Which nodes return to float, so that a goal is met and memory stays where it is.

In: groups of integer nodes, a way to measure a choice. Out: the groups that are float, and those of
them whose weights are floats in storage, too.

Each group is quantized alone once; the noise that it makes at the outputs is its cost (noise powers
add up while they are small, which is why groups are not measured by leaving one out of a network
that is already far off). Then, each by bisection:

1. Floats take four times the bytes, so a node with a large input and result is returned last: the
   smallest size with which the goal is met when every smaller group is float.
2. Weights of float nodes are stored as integers all the same, but for the costliest groups: as few
   of them as leave half of the noise that the goal allows.
3. The shortest prefix in the order of cost that must be float. Then groups with many weights are
   tried as integers again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

MOST_TAKEN_BACK = 10
# Half of the noise.
_MARGIN_DB = 3.0


@dataclass(frozen=True)
class Group:
    """Neighbouring nodes that are integer or float together.

    Attributes:
        names: Their names.
        working: Most bytes of inputs and results of one of them, as floats.
        weights: Bytes of their weights, as floats.
    """

    names: tuple[str, ...]
    working: int = 0
    weights: int = 0


@dataclass(frozen=True)
class Choice:
    """What is float.

    Attributes:
        kept: Groups that are float, the costliest first.
        wide: Those of them whose weights are stored as floats.
    """

    kept: list[Group]
    wide: list[Group]


class Trial(Protocol):
    """Measures choices of what is float."""

    def met(self, choice: Choice, what: str, margin_db: float = 0.0) -> bool:
        """Return whether the goal is met, decibels with ``margin_db`` to spare."""

    def decibels(self, choice: Choice, what: str) -> float:
        """Return the decibels of the worst output."""


def names_of(groups: Sequence[Group]) -> frozenset[str]:
    """Return the names of all nodes of ``groups``."""
    return frozenset(name for group in groups for name in group.names)


def returned_to_float(groups: Sequence[Group], trial: Trial) -> Choice | None:
    """Return what must be float; None when the goal is not met with all groups in float."""
    order = _by_cost(groups, trial)
    if not trial.met(Choice(order, order), "float: everything"):
        return None
    largest = _largest_returned(order, trial)
    allowed = [group for group in order if group.working <= largest]
    wide = _wide(allowed, trial)
    return _fewer(_shortest_prefix(allowed, wide, trial), trial)


def _by_cost(groups: Sequence[Group], trial: Trial) -> list[Group]:
    """Return ``groups``, the one first that makes most noise when it alone is quantized."""
    found = []
    for group in groups:
        rest = [other for other in groups if other is not group]
        what = f"int8 alone: {', '.join(group.names)}"
        found.append(trial.decibels(Choice(rest, rest), what))
    ranked = sorted(range(len(groups)), key=lambda index: found[index])
    return [groups[index] for index in ranked]


def _largest_returned(order: Sequence[Group], trial: Trial) -> int:
    """Return the working bytes up to which groups may be float."""
    sizes = sorted({group.working for group in order})

    def met(index: int) -> bool:
        some = [group for group in order if group.working <= sizes[index]]
        what = f"float: what works on {sizes[index]} bytes or less"
        return trial.met(Choice(some, some), what)

    return sizes[_first(len(sizes) - 1, met)]


def _wide(allowed: list[Group], trial: Trial) -> int:
    """Return how many of the costliest groups must have floats in storage when all are float."""

    def met(count: int) -> bool:
        what = f"weights stored as int8, but for the {count} costliest of {len(allowed)} groups"
        return trial.met(Choice(allowed, allowed[:count]), what, _MARGIN_DB)

    return _first(len(allowed), met)


def _shortest_prefix(order: list[Group], wide: int, trial: Trial) -> Choice:
    """Return the shortest prefix of ``order`` found with which the goal is met."""

    def met(count: int) -> bool:
        what = f"float: the {count} costliest of {len(order)} groups"
        return trial.met(Choice(order[:count], order[: min(count, wide)]), what)

    count = _first(len(order), met, start=1)
    return Choice(order[:count], order[: min(count, wide)])


def _fewer(choice: Choice, trial: Trial) -> Choice:
    """Take groups with many weights back into integers as long as the goal is met."""
    for group in sorted(choice.kept, key=lambda group: -group.weights)[:MOST_TAKEN_BACK]:
        rest = Choice(*([g for g in side if g is not group] for side in (choice.kept, choice.wide)))
        if rest.kept and trial.met(rest, "float: one group less"):
            choice = rest
    return choice


def _first(last: int, met: Callable[[int], bool], start: int = 0) -> int:
    """Return the smallest number found, by bisection, for which ``met``; ``last`` is not asked."""
    low, high = start, last
    while low < high:
        middle = (low + high) // 2
        if met(middle):
            high = middle
        else:
            low = middle + 1
    return low


def too_large_to_widen(weights: Mapping[str, tuple[int, int]], peak: int) -> frozenset[str]:
    """Return the float nodes whose weights are better stored as floats, too.

    What is stored as integers is widened in each run, one weight at a time. That takes more than it
    saves where a few weights are larger than all activations: weights up to the size are stored for
    which the bytes saved, less those by which the largest float copy exceeds the peak, are most.

    Args:
        weights: Bytes of the weights of each node as floats, and bytes that it works on.
        peak: Bytes of activations at the peak.
    """
    order = sorted(weights, key=lambda name: (weights[name][0], name))
    saved = largest = best = count = 0
    for index, name in enumerate(order, 1):
        stored, working = weights[name]
        saved += stored - stored // 4
        largest = max(largest, stored + working)
        gain = saved - max(0, largest - peak)
        if gain >= best:
            best, count = gain, index
    return frozenset(order[count:])
