"""Which nodes return to float, so that a goal is met and the peak of memory stays where it is.

In: groups of integer nodes, a way to measure a choice. Out: the groups that are float.

Each group is quantized alone once; the noise that it makes at the outputs is its cost (noise powers
add up while they are small, which is why groups are not measured by leaving one out of a network
that is already far off). Floats take four times the bytes, so a node with a large input and result
is returned last: the smallest size is searched with which the goal is met when every smaller group
is float. Among these the shortest prefix in the order of cost is found by bisection; then groups
with many weights are tried as integers again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

MOST_TAKEN_BACK = 10


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


class Trial(Protocol):
    """Measures choices of what is float."""

    def met(self, keep_float: frozenset[str], what: str) -> bool:
        """Return whether the goal is met with ``keep_float`` in float."""

    def decibels(self, keep_float: frozenset[str], what: str) -> float:
        """Return the decibels of the worst output with ``keep_float`` in float."""


def names_of(groups: Sequence[Group]) -> frozenset[str]:
    """Return the names of all nodes of ``groups``."""
    return frozenset(name for group in groups for name in group.names)


def returned_to_float(groups: Sequence[Group], trial: Trial) -> list[Group] | None:
    """Return the groups that must be float; None when the goal is not met with all of them."""
    order = _by_cost(groups, trial)
    largest = _largest_returned(order, trial)
    if largest is None:
        return None
    allowed = [group for group in order if group.working <= largest]
    return _fewer(_shortest_prefix(allowed, trial), trial)


def _by_cost(groups: Sequence[Group], trial: Trial) -> list[Group]:
    """Return ``groups``, the one first that makes most noise when it alone is quantized."""
    everything = names_of(groups)
    found = [
        trial.decibels(everything - set(group.names), f"int8 alone: {', '.join(group.names)}")
        for group in groups
    ]
    ranked = sorted(range(len(groups)), key=lambda index: found[index])
    return [groups[index] for index in ranked]


def _largest_returned(order: Sequence[Group], trial: Trial) -> int | None:
    """Return the working bytes up to which groups may be float; None: not even all suffice."""
    sizes = sorted({group.working for group in order})
    if not trial.met(names_of(order), "float: everything"):
        return None
    low, high = 0, len(sizes) - 1
    while low < high:
        middle = (low + high) // 2
        some = [group for group in order if group.working <= sizes[middle]]
        what = f"float: what works on {sizes[middle]} bytes or less"
        if trial.met(names_of(some), what):
            high = middle
        else:
            low = middle + 1
    return sizes[low]


def _shortest_prefix(order: list[Group], trial: Trial) -> list[Group]:
    """Return the shortest prefix of ``order`` found with which the goal is met."""
    low, high = 1, len(order)
    while low < high:
        middle = (low + high) // 2
        what = f"float: the {middle} costliest of {len(order)} groups"
        if trial.met(names_of(order[:middle]), what):
            high = middle
        else:
            low = middle + 1
    return order[:low]


def _fewer(kept: list[Group], trial: Trial) -> list[Group]:
    """Take groups with many weights back into integers as long as the goal is met."""
    for group in sorted(kept, key=lambda group: -group.weights)[:MOST_TAKEN_BACK]:
        rest = [other for other in kept if other is not group]
        if rest and trial.met(names_of(rest), "float: one group less"):
            kept = rest
    return kept
