"""Why a tensor is alive at the peak, where it lies, and what became of a node."""

from typing import TYPE_CHECKING

from graphopt.errors import OptionError
from graphopt.ir.program import FROM_NODES_KEY, FROM_PASS_KEY, Program, graphs_of
from graphopt.memory.plan import MemoryPlan, PlannedBuffer
from graphopt.pipeline.options import near_miss
from graphopt.pipeline.pipeline import PassReport
from graphopt.units import format_bytes

if TYPE_CHECKING:
    from graphopt.numerics.half import HalfReport
    from graphopt.numerics.hessians import WeightReport
    from graphopt.numerics.quantization_report import Quantization


def explain_name(
    name: str,
    plan: MemoryPlan,
    program: Program,
    reports: list[PassReport],
    quantization: "Quantization | None" = None,
    half: "HalfReport | None" = None,
    rounding: "WeightReport | None" = None,
) -> str:
    """Return sentences about the tensor or node called ``name``.

    Raises:
        OptionError: nothing in the plan, the model or the passes has that name.
    """
    lines = [*_about_value(name, plan), *_about_node(name, plan, program)]
    for report in reports:
        lines += [
            f"pass {report.name} left it alone: {skip.reason} {skip.detail}".rstrip()
            for skip in report.skipped
            if skip.node == name
        ]
    if quantization is not None:
        lines += about_quantization(name, quantization)
    if half is not None and name in half.kept:
        reason, detail = half.kept[name]
        lines.append(f"'{name}' stays float32: {reason} {detail}".rstrip())
    if rounding is not None:
        lines += about_rounding(name, rounding)
    if lines:
        return "\n".join(lines)
    known = [alias.value for b in plan.buffers for alias in b.values]
    known += [step.node for step in plan.steps]
    raise OptionError(
        "name-unknown",
        f"nothing is called '{name}'",
        hint=near_miss(name, known, "graphopt plan --steps"),
    )


def _about_value(name: str, plan: MemoryPlan) -> list[str]:
    lines = [
        f"'{name}' is not planned: {value.reason}"
        for value in plan.not_planned
        if value.name == name
    ]
    for buffer in plan.buffers:
        for alias in buffer.values:
            if alias.value == name:
                lines += _about_buffer(name, alias.relation, alias.of, buffer, plan)
    return lines


def _about_buffer(
    name: str, relation: str, of: str, buffer: PlannedBuffer, plan: MemoryPlan
) -> list[str]:
    place = f"{buffer.pool}/{buffer.segment} at offset {buffer.offset}"
    kind = f"{buffer.kind}, {buffer.dtype}{list(buffer.shape)}"
    lines = [f"'{name}' ({kind}) lies in {place}, {format_bytes(buffer.padded_bytes)}"]
    if relation == "view":
        lines.append(f"it is a view of '{of}': the same bytes under another shape")
    elif relation == "in-place":
        lines.append(f"it is written over '{of}', which nobody reads after that step")
    first, last = plan.steps[buffer.start], plan.steps[buffer.end - 1]
    lines.append(
        f"its buffer is alive in steps [{buffer.start}, {buffer.end}): from '{first.node}' "
        f"({first.op}) to '{last.node}' ({last.op})"
    )
    peak = plan.peak
    if buffer.segment == "arena":
        alive = buffer.start <= peak.step < buffer.end
        share = buffer.padded_bytes / peak.bytes if peak.bytes else 0.0
        lines.append(
            f"at the peak (step {peak.step}, '{peak.node}', {format_bytes(peak.bytes)}) it is "
            + (f"alive and holds {share:.1%}" if alive else "not alive")
        )
        if alive and buffer.end - 1 > peak.step:
            lines.append(
                f"it must survive the peak because '{last.node}' still reads it at step "
                f"{buffer.end - 1}"
            )
    return lines


def _about_node(name: str, plan: MemoryPlan, program: Program) -> list[str]:
    lines = []
    for index, step in enumerate(plan.steps):
        if step.node == name:
            lines.append(
                f"node '{name}' ({step.op}) is step {index}; {format_bytes(step.live_bytes)} are "
                f"alive in the arena while it runs"
            )
            if step.scratch_bytes:
                lines.append(f"it needs {format_bytes(step.scratch_bytes)} of scratch")
    for graph in graphs_of(program.graph):
        for node in graph:
            origin = node.metadata_props.get(FROM_NODES_KEY, "")
            if name == node.name and origin:
                made = node.metadata_props.get(FROM_PASS_KEY, "")
                lines.append(f"pass {made} made it from {origin}")
            elif name != node.name and name in origin.split(","):
                made = node.metadata_props.get(FROM_PASS_KEY, "")
                lines.append(f"pass {made} replaced '{name}' by '{node.name}'")
    return lines


def about_quantization(name: str, quantization: "Quantization") -> list[str]:
    """Return sentences on why the node called ``name`` is integer or float."""
    lines = []
    kernels = quantization.kernels
    if name in quantization.returned:
        lines.append(f"'{name}' is float: in int8 it costs too much accuracy")
    elif name in quantization.reasons:
        reason, detail = quantization.reasons[name]
        lines.append(f"'{name}' is float: {reason} {detail}".rstrip())
    if name in quantization.layers:
        lines.append(
            f"'{name}' is placed as int8; its result is {quantization.layers[name]:.1f} dB from "
            "the float model"
        )
    if kernels is not None and name in kernels.kernels:
        why = kernels.float_nodes.get(name)
        lines.append(
            f"onnxruntime computes it with {kernels.kernels[name]}"
            + (f", not in integers: {why}" if why else "")
        )
    return lines


def about_rounding(name: str, rounding: "WeightReport") -> list[str]:
    """Return sentences on how a weight, or that of the product called ``name``, was rounded."""
    lines = []
    for weight in rounding.weights:
        if name != weight.weight and name not in weight.nodes:
            continue
        if weight.detail:
            lines.append(f"'{weight.weight}' is rounded by {weight.method}: {weight.detail}")
            continue
        others = ", ".join(
            f"{method} {decibels:.1f}"
            for method, decibels in weight.sqnr_db.items()
            if method != weight.method
        )
        lines.append(
            f"'{weight.weight}' is rounded by {weight.method}: the product is "
            f"{weight.sqnr_db[weight.method]:.1f} dB from the float one on {rounding.samples} "
            f"samples ({others})"
        )
    return lines
