"""Which nodes cost a model in integers most, where none of them may return to float.

In: a placement, groups of its nodes, a way to measure. Out: the groups in the order of the noise
that each makes at the outputs when it alone is quantized; and the sentence that names them.
"""

from collections.abc import Callable, Sequence

from graphopt.numerics.back_off import Group
from graphopt.quantization.placed import Placement

_MOST_NAMED = 5

# Told the names that stay float and what is tried; returns the decibels of the worst output.
Measure = Callable[[frozenset[str], str], float]


def costs_of(
    placement: Placement, groups: Sequence[Group], measure: Measure
) -> tuple[tuple[str, float], ...]:
    """Return (node or nodes, decibels when they alone are integer), the costliest first."""
    clamps: dict[str, list[str]] = {}
    for clamp, before in placement.absorbed.items():
        clamps.setdefault(before.name or "", []).append(clamp.name or "")
    everything = {node.name or "" for node in (*placement.integer, *placement.absorbed)}
    found = []
    for group in groups:
        # A clamp that saturation replaces goes with the node before it.
        alone = {*group.names, *(clamp for name in group.names for clamp in clamps.get(name, ()))}
        names = ", ".join(group.names)
        found.append((names, measure(frozenset(everything - alone), f"int8 alone: {names}")))
    return tuple(sorted(found, key=lambda one: one[1]))


def advice(costs: Sequence[tuple[str, float]], hint: str | None) -> str | None:
    """Return ``hint`` with the costliest nodes in front of it."""
    if not costs:
        return hint
    named = ", ".join(f"'{names}' ({decibels:.1f} dB)" for names, decibels in costs[:_MOST_NAMED])
    text = f"no node may return to float on this target; alone in integers cost most: {named}"
    return f"{text}. {hint}" if hint else text
