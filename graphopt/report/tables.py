"""Tables for terminals and pipes: the summary of a compile, a plan, and what each pass did.

Every function that ends in ``_text`` returns plain text of at most ``width`` columns, pure ASCII
with ``unicode=False``; its twin that ends in ``_pieces`` returns the same as ``rich`` renderables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.report.console import (
    Column,
    Style,
    heading,
    sentence,
    sparkline,
    table,
    to_text,
)
from graphopt.report.data import (
    ReportData,
    figures_of,
    gap_text,
    limit_of,
    skip_counts,
    verdict_of,
    verification_text,
)
from graphopt.report.quantization import quantization_line
from graphopt.units import format_bytes, format_change

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from graphopt.memory.plan import MemoryPlan
    from graphopt.pipeline.pipeline import PassReport

_LOOKS = {
    "fits": "bold green",
    "no-limit": "bold",
    "does-not-fit": "bold red",
    "undecided": "bold yellow",
}
_SPARK_WIDTH = 72
_TOP_OWNERS = 5
_LISTED = 20


def summary_text(data: ReportData, *, width: int = 100, unicode: bool = True) -> str:
    """Return the before-and-after table of a compile as plain text."""
    return to_text(summary_pieces(data, width=width, unicode=unicode), width)


def summary_pieces(
    data: ReportData, *, width: int = 100, unicode: bool = True
) -> list[RenderableType]:
    """Return what ``summary_text`` shows, for a ``rich`` console of ``width`` columns."""
    style = Style(unicode)
    pieces = [sentence(data.title, style, look="bold")]
    pieces += _verdict(data.plan, data.limit_bytes, style)
    figures = figures_of(data)
    rows: list[tuple[str, ...]]
    if data.baseline is None:
        columns = [Column("", "name"), Column("")]
        rows = [(f.label, f.text("after")) for f in figures]
    else:
        columns = [Column("", "name"), Column("before"), Column("after"), Column("change")]
        rows = [(f.label, f.text("before"), f.text("after"), f.change) for f in figures]
    pieces += [_gap(), table(columns, rows, style, width), _gap()]
    if data.verification is not None or data.passes:
        pieces.append(_labelled("verification", verification_text(data.verification), style))
    if data.quantization is not None:
        pieces.append(_labelled("int8", quantization_line(data.quantization), style))
    pieces += _peak(data.plan, _TOP_OWNERS, width, style)
    if data.warnings:
        pieces.append(_gap())
    pieces += [_labelled("warning", text, style, "yellow") for text in data.warnings]
    return pieces


def plan_text(
    plan: MemoryPlan,
    *,
    top: int = 10,
    steps: bool = False,
    width: int = 100,
    unicode: bool = True,
) -> str:
    """Return a plan as plain text.

    Args:
        plan: The plan.
        top: Number of owners of the peak to list.
        steps: Whether to add one line per operator.
        width: Columns of the longest line.
        unicode: Whether characters outside ASCII may be used.
    """
    pieces = plan_pieces(plan, top=top, steps=steps, width=width, unicode=unicode)
    return to_text(pieces, width)


def plan_pieces(
    plan: MemoryPlan,
    *,
    top: int = 10,
    steps: bool = False,
    width: int = 100,
    unicode: bool = True,
) -> list[RenderableType]:
    """Return what ``plan_text`` shows, for a ``rich`` console of ``width`` columns."""
    style = Style(unicode)
    pieces = [sentence(_subject(plan), style, look="bold")]
    pieces += _verdict(plan, None, style)
    pieces += [heading("pools", style), _pools(plan, style, width)]
    if plan.pools and plan.arena_pool.planner:
        proven = "; no smaller arena exists" if plan.arena_pool.optimal else ""
        pieces.append(sentence(f"arena placed by {plan.arena_pool.planner}{proven}", style))
    pieces.append(_gap())
    pieces += _peak(plan, top, width, style)
    if plan.not_planned:
        title = f"not planned: {len(plan.not_planned)} values, in no figure"
        pieces.append(heading(title, style))
        columns = [Column("value", "name"), Column("from", "name"), Column("reason", "name")]
        listed = plan.not_planned[:_LISTED]
        pieces.append(
            table(columns, [(n.name, n.producer, n.reason) for n in listed], style, width)
        )
        if len(plan.not_planned) > _LISTED:
            pieces.append(sentence(f"and {len(plan.not_planned) - _LISTED} more", style))
    if plan.assumptions:
        pieces.append(heading("assumptions", style))
        pieces += [sentence(f"- {text}", style, hang=2) for text in plan.assumptions]
    if steps:
        pieces += [heading("operators", style), _steps(plan, style, width)]
    return pieces


def passes_text(passes: Sequence[PassReport], *, width: int = 100, unicode: bool = True) -> str:
    """Return what each pass did as plain text."""
    return to_text(passes_pieces(passes, width=width, unicode=unicode), width)


def passes_pieces(
    passes: Sequence[PassReport], *, width: int = 100, unicode: bool = True
) -> list[RenderableType]:
    """Return what ``passes_text`` shows, as ``rich`` renderables."""
    style = Style(unicode)
    if not passes:
        return [sentence("no pass ran", style)]
    columns = [
        Column("#"),
        Column("pass", "name"),
        Column("rewrites"),
        Column("nodes"),
        Column("weights", spare=1),
        Column("peak before", spare=2),
        Column("peak after"),
        Column("change"),
        Column("ms", spare=3),
        Column("max error"),
    ]
    changed = [_pass_row(report) for report in passes if report.modified]
    idle = [report.name for report in passes if not report.modified]
    pieces = []
    if changed:
        used = [i for i, _ in enumerate(columns) if any(row[i] for row in changed)]
        changed = [[row[i] for i in used] for row in changed]
        pieces.append(table([columns[i] for i in used], changed, style, width))
    if idle:
        noun = "pass" if len(idle) == 1 else "passes"
        names = ", ".join(dict.fromkeys(idle))
        text = f"{len(idle)} {noun} changed nothing: {names}"
        pieces += [_gap(), sentence(text, style)] if changed else [sentence(text, style)]
    left = [(r, skip_counts(r)) for r in passes if r.skipped]
    if left:
        pieces.append(heading("left alone, most frequent reasons", style))
        reasons = [
            (report.options, f"{len(report.skipped):,}", _joined(counts, len(report.skipped)))
            for report, counts in left
        ]
        columns = [Column("pass", "name"), Column("sites"), Column("reasons", "name")]
        pieces.append(table(columns, reasons, style, width))
    return pieces


def _pass_row(report: PassReport) -> list[str]:
    before, after = report.peak_before, report.peak_after
    known = before is not None and after is not None
    return [
        f"{report.index}",
        report.options,
        f"{report.rewrites:,}",
        _with_change(report.nodes_before, report.nodes_after),
        _signed_bytes(report.weight_bytes_after - report.weight_bytes_before),
        "?" if before is None else format_bytes(before),
        "?" if after is None else format_bytes(after),
        format_change(before, after) if known and before is not None and after is not None else "?",
        f"{report.seconds * 1000:.1f}",
        "" if report.max_error is None else f"{report.max_error:.3g}",
    ]


def _joined(counts: Sequence[tuple[str, int]], total: int) -> str:
    rest = total - sum(number for _, number in counts)
    parts = [f"{reason} {number:,}" for reason, number in counts]
    return ", ".join([*parts, f"others {rest:,}"] if rest else parts)


def _with_change(before: int, after: int) -> str:
    return f"{after:,}" if before == after else f"{after:,} ({after - before:+,})"


def _signed_bytes(change: int) -> str:
    if not change:
        return ""
    return f"+{format_bytes(change)}" if change > 0 else format_bytes(change)


def _subject(plan: MemoryPlan) -> str:
    sizes = ", ".join(f"{name}={size}" for name, size in plan.model.bindings.items())
    name = plan.model.name or "model"
    target = plan.target.get("name", "unknown target")
    return f"{name} on {target}, runtime {plan.runtime.name}" + (f", {sizes}" if sizes else "")


def _verdict(plan: MemoryPlan, limit: int | None, style: Style) -> list[RenderableType]:
    verdict = verdict_of(plan, limit)
    pieces = [sentence(verdict.headline, style, look=_LOOKS[verdict.state])]
    if verdict.detail:
        pieces.append(sentence(verdict.detail, style))
    return pieces


def _labelled(label: str, text: str, style: Style, look: str = "") -> RenderableType:
    return sentence(f"{label:<14}{text}", style, look=look, hang=14)


def _pools(plan: MemoryPlan, style: Style, width: int) -> RenderableType:
    columns = [Column("pool", "name")]
    rows: list[list[str]] = [[pool.name] for pool in plan.pools]

    def add(header: str, cells: list[str], spare: int = 0) -> None:
        if any(cell != "-" for cell in cells):
            columns.append(Column(header, spare=spare))
            for row, cell in zip(rows, cells, strict=True):
                row.append(cell)

    add("arena", [_or_dash(p.arena_bytes) for p in plan.pools])
    add("weights", [_or_dash(p.weight_bytes) for p in plan.pools])
    add("io", [_or_dash(p.io_bytes) for p in plan.pools])
    add("total", [format_bytes(p.total_bytes) for p in plan.pools])
    limits = [limit_of(plan, p, None) for p in plan.pools]
    add("limit", ["none" if limit is None else format_bytes(limit) for limit in limits])
    add("lower bound", [_or_dash(p.lower_bound_bytes) for p in plan.pools], spare=2)
    add("gap", [gap_text(p).strip("()") if p.arena_bytes else "-" for p in plan.pools])
    add("overhead", [_or_dash(p.overhead_bytes) for p in plan.pools], spare=1)
    return table(columns, rows, style, width)


def _or_dash(count: int) -> str:
    return format_bytes(count) if count else "-"


def _gap() -> RenderableType:
    from rich.text import Text

    return Text("")


def _peak(plan: MemoryPlan, top: int, width: int, style: Style) -> list[RenderableType]:
    if not plan.steps:
        return [_labelled("peak", "0 B, the plan has no steps", style)]
    peak = plan.peak
    where = f"{format_bytes(peak.bytes)} at step {peak.step} of {len(plan.steps)}"
    op = plan.steps[peak.step].op
    pieces = [_labelled("peak", f"{where}, {op} {style.show(peak.node)}", style)]
    levels = [step.live_bytes for step in plan.steps]
    line = sparkline(levels, min(_SPARK_WIDTH, width - 14), style)
    pieces.append(_labelled("live bytes", line, style))
    owners = peak.owners[:top]
    if owners:
        columns = [
            Column("held by", "name"),
            Column("bytes"),
            Column("share"),
            Column("kind", "left"),
        ]
        rows = [
            (o.name, format_bytes(o.bytes), _share(o.bytes, peak.bytes), o.kind) for o in owners
        ]
        rest = peak.owners[top:]
        if rest:
            held = sum(owner.bytes for owner in rest)
            rows.append((f"{len(rest)} more", format_bytes(held), _share(held, peak.bytes), ""))
        pieces += [_gap(), table(columns, rows, style, width)]
    return pieces


def _share(part: int, whole: int) -> str:
    return f"{part / whole * 100:.1f} %" if whole else ""


def _steps(plan: MemoryPlan, style: Style, width: int) -> RenderableType:
    columns = [
        Column("step"),
        Column("operator", "left"),
        Column("node", "name"),
        Column("live bytes"),
        Column("", "left", spare=1),
        Column("scratch"),
    ]
    top = max((step.live_bytes for step in plan.steps), default=0)
    sign = "█" if style.unicode else "#"
    rows = []
    for index, step in enumerate(plan.steps):
        again = f" (recompute of {step.recompute_of})" if step.recompute_of else ""
        bar = sign * (-(-step.live_bytes * 10 // top) if top else 0)
        scratch = f"{step.scratch_bytes:,}" if step.scratch_bytes else ""
        rows.append((f"{index}", step.op, step.node + again, f"{step.live_bytes:,}", bar, scratch))
    return table(columns, rows, style, width, bold_row=plan.peak.step)
