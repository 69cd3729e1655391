"""Which nodes cost a model in integers most, where none of them may return to float.

In: a placement, groups of its nodes, a way to measure. Out: the groups in the order of the noise
that each makes at the outputs when it alone is quantized; and the sentence that names them.
"""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from graphopt.numerics.back_off import Group
from graphopt.quantization.placed import Placement
from graphopt.targets.schema import Target

_MOST_NAMED = 5
_CPU_INFO = Path("/proc/cpuinfo")
_VNNI = frozenset({"avx512_vnni", "avx_vnni"})

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


def advice(costs: Sequence[tuple[str, float]], hint: str | None, target: Target) -> str | None:
    """Return ``hint`` with what else helps in front of it: the costliest nodes, another target."""
    found = []
    if costs:
        named = ", ".join(f"'{names}' ({value:.1f} dB)" for names, value in costs[:_MOST_NAMED])
        found.append(
            f"no node may return to float on this target; alone in integers cost most: {named}"
        )
    if target.name == "cpu" and has_vnni():
        found.append(
            "this machine has VNNI: for such machines, target 'cpu-vnni' keeps all 8 bits of a "
            "weight, 'cpu' about 7"
        )
    return ". ".join([*found, hint] if hint else found) or None


def has_vnni() -> bool:
    """Return whether the processor adds products of bytes in 32 bits; False where that is unknown.

    Known on Linux for x86, from the flags of its first processor.
    """
    with contextlib.suppress(OSError), open(_CPU_INFO, encoding="ascii", errors="replace") as lines:
        for line in lines:
            name, _, flags = line.partition(":")
            if name.strip() == "flags":
                return not _VNNI.isdisjoint(flags.split())
    return False
