"""What quantization did, for the page: one sentence, and a row for each node, the worst first."""

from __future__ import annotations

from typing import Any, NamedTuple

from graphopt.report.text import visible

MOST_ROWS = 200


class NodeRow(NamedTuple):
    """One node.

    Attributes:
        name: Its name.
        kind: "int8", or "float".
        kernel: The operator that computes it; "" when the runtime was not asked.
        decibels: Of its result against the float model; None for float nodes.
        why: Why it is float, or why an integer node runs in floats.
    """

    name: str
    kind: str
    kernel: str
    decibels: float | None
    why: str


def rows_of(quantization: dict[str, Any]) -> list[NodeRow]:
    """Return a row for each node that has a rule: integer ones by decibels, then float ones."""
    report = quantization.get("kernels") or {}
    kernels, widened = report.get("kernels", {}), report.get("float_nodes", {})
    layers = quantization["layers"]
    integer = [
        NodeRow(
            name, "int8", visible(kernels.get(name, "")), decibels, visible(widened.get(name, ""))
        )
        for name, decibels in sorted(layers.items(), key=lambda item: (item[1], item[0]))
    ]
    returned = dict.fromkeys(quantization["returned"], "costs too much accuracy in int8")
    reasons = {
        name: visible(f"{one['reason']} {one['detail']}".rstrip())
        for name, one in quantization["reasons"].items()
    }
    floats = {**reasons, **returned}
    return integer + [NodeRow(name, "float", "", None, why) for name, why in sorted(floats.items())]


def quantization_text(quantization: dict[str, Any]) -> str:
    """Return sentences on what was measured and decided."""
    decibels = quantization["sqnr_db"]
    worst = f"worst output {min(decibels.values()):.1f} dB" if decibels else "no output in floats"
    metric = quantization.get("metric")
    goal = f"{quantization['wanted_db']:g} dB asked for"
    if metric is not None:
        goal = (
            f"metric {metric['name']} {metric['before']:.6g} before and {metric['after']:.6g} "
            f"after, a drop of {metric['max_drop']:g} allowed"
        )
    parts = [
        f"{quantization['samples']:,} samples, ranges by {quantization['method']}",
        f"{worst}, {goal}",
        f"{len(quantization['layers']):,} nodes placed as int8",
        f"{len(quantization['returned']):,} returned to float",
        f"{len(quantization['tried']):,} candidates tried",
    ]
    if quantization.get("equalized"):
        parts.insert(1, f"channels evened out by {quantization['equalized']}")
    return "; ".join(parts)


def quantization_line(quantization: dict[str, Any]) -> str:
    """Return what became of the nodes, short enough for a terminal."""
    placed, returned = len(quantization["layers"]), len(quantization["returned"])
    parts = [f"{placed:,} node{'' if placed == 1 else 's'} integer"]
    kernels = quantization.get("kernels")
    if kernels is not None:
        left = len(kernels["float_nodes"])
        parts.append(f"{left:,} of them widened by onnxruntime" if left else "run as such")
    parts.append(f"{returned:,} returned to float for accuracy")
    parts.append(f"ranges by {quantization['method']}")
    return ", ".join(parts)
