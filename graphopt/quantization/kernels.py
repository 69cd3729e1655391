"""The fusion report: which nodes a runtime really computes in integers, read from its own graph.

In: what was placed, and the nodes of the runtime's optimized graphs as plain data. Out: for each
placed node the kernel that computes it, or why it is float. Nothing is assumed from what was
emitted: a node counts as integer when a kernel with an integer name makes its value; one that
gathers from a table when it reads no widened table and its rows are widened behind it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from graphopt.quantization.placed import Placement

# What the runtime appends to the name of a node whose layout it changes.
_LAYOUT_SUFFIX = re.compile(r"_token_\d+$")
# Operators that multiply or add integers, by the start of their names.
_INTEGER = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul")


@dataclass
class KernelReport:
    """What became of the nodes that were placed as integer.

    Attributes:
        kernels: Node -> operator that computes it; float ones under their own name.
        float_nodes: Node -> why it is float although it was placed as integer.
        conversions: Number of ``QuantizeLinear`` and ``DequantizeLinear`` nodes that are left.
    """

    kernels: dict[str, str] = field(default_factory=dict)
    float_nodes: dict[str, str] = field(default_factory=dict)
    conversions: int = 0

    @property
    def integer(self) -> int:
        """Number of nodes in integer kernels, moves of integers included."""
        return len(self.kernels) - len(self.float_nodes)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return {**vars(self), "integer": self.integer}


def kernel_report(placement: Placement, nodes: Sequence[Mapping[str, Any]]) -> KernelReport:
    """Return what the optimized graph ``nodes`` does with each node that was placed.

    Args:
        placement: What was placed, with the names that nodes and values had then.
        nodes: Nodes as ``isolated_child.kernels`` gives them, those of bodies among them: name, op,
            domain, inputs, outputs.
    """
    report = KernelReport()
    made = {value: node for node in nodes for value in node["outputs"]}
    named = {_LAYOUT_SUFFIX.sub("", node["name"]): node for node in nodes if node["name"]}
    dequantized = {
        value for node in nodes if node["op"] == "DequantizeLinear" for value in node["outputs"]
    }
    widened = {
        value for n in nodes if n["op"] in ("DequantizeLinear", "Cast") for value in n["inputs"]
    }
    report.conversions = sum(n["op"] in ("QuantizeLinear", "DequantizeLinear") for n in nodes)
    for node, rule in placement.integer.items():
        name = node.name or ""
        value = placement.result_of(node).name or ""
        # The runtime gives other names to what it puts in the place of a node, not to its result.
        result = f"{value}_integers" if rule.table else f"{value}_quantized"
        found = named.get(name) or made.get(result)
        if found is None:
            report.kernels[name] = "unknown"
            report.float_nodes[name] = "the graph that the runtime made does not name it"
            continue
        report.kernels[name] = found["op"]
        if rule.table:
            if any(v in dequantized for v in found["inputs"]):
                report.float_nodes[name] = "the runtime widens the whole table"
            elif not any(value in widened for value in found["outputs"]):
                report.float_nodes[name] = "its rows are not widened, so they are not integers"
            continue
        if rule.kind in ("move", "join") and not any(v in dequantized for v in found["inputs"]):
            continue
        if not found["op"].startswith(_INTEGER):
            fed = any(value in dequantized for value in found["inputs"])
            report.float_nodes[name] = (
                "the runtime left the conversions around it" if fed else "no integer kernel"
            )
    return report
