"""The report as one HTML file without any outside reference, and its short form for notebooks.

Every string of a model is escaped twice over: invisible characters become visible escapes, then
the template escapes what HTML would read as markup. The page forbids itself every request
(``default-src 'none'``) and runs one script, allowed by its hash. Headline, charts and tables are
static; the script adds hover, sort and filter from embedded data (see ``payload``).
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from graphopt.report.data import (
    Figure,
    ReportData,
    State,
    arena_kinds,
    error_text,
    figures_of,
    gap_text,
    limit_of,
    ordered_skips,
    tolerance_text,
    verdict_of,
    verification_text,
)
from graphopt.report.quantization import MOST_ROWS, quantization_text, rows_of
from graphopt.report.text import elide, visible
from graphopt.units import format_bytes, format_change

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

    from graphopt.memory.plan import MemoryPlan, PlannedBuffer, PoolPlan
    from graphopt.pipeline.pipeline import PassReport

__all__ = ["ReportData", "render_html", "render_notebook"]

_NONE = "\N{EN DASH}"
_LONGEST_NAME = 96
_LONGEST_WRAPPING = 72
_STATIC_STEPS = 500
_STATIC_STEPS_OF_MANY = 250
_TOP_OWNERS = 6
_NOTEBOOK_OWNERS = 5
_MARKS: dict[State, str] = {
    "fits": "✓",
    "no-limit": "",
    "does-not-fit": "✕",
    "undecided": "?",
}
_CARDS = (
    ("peak", "Peak of live bytes"),
    ("arena", "Arena"),
    ("weights", "Weights"),
    ("file", "Model file"),
    ("nodes", "Nodes"),
)


def render_html(data: ReportData) -> str:
    """Return the report as one self-contained page; equal data give equal text."""
    from graphopt.report.charts import arena_maps, live_chart
    from graphopt.report.payload import payload

    plan = data.plan
    script = _asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    room = _room(data)
    passes = _pass_rows(data)
    context: dict[str, Any] = {
        "data": data,
        "plan": plan,
        "css": _markup(_small_css(_asset("report.css"))),
        "script": _markup(script),
        "script_hash": _markup(f"'sha256-{digest}'"),
        "payload": _markup(payload(plan)),
        "verdict": verdict_of(plan, data.limit_bytes),
        "marks": _MARKS,
        "cards": _cards(data),
        "meters": _meters(data),
        "chart": live_chart(plan, data.baseline, room),
        "room": room,
        "owners": plan.peak.owners[:_TOP_OWNERS],
        "rest": plan.peak.owners[_TOP_OWNERS:],
        "maps": arena_maps(plan),
        "kinds": _kind_rows(plan),
        "passes": passes,
        "changed": [row for row in passes if row["report"].modified],
        "idle": [report for report in data.passes if not report.modified],
        "measured": any(report.max_error is not None for report in data.passes),
        "steps": _static_steps(plan),
        "pools": [_pool_row(data, pool) for pool in plan.pools],
        "verification": data.verification,
        "verification_text": verification_text(data.verification),
        "tolerance": tolerance_text(data.verification or {}),
        "sources": _sources(plan.target),
    }
    if data.quantization is not None:
        rows = rows_of(data.quantization)
        context |= {
            "quantized": rows[:MOST_ROWS],
            "more_quantized": len(rows) - MOST_ROWS,
            "quantization_text": quantization_text(data.quantization),
        }
    return _environment().get_template("report.html.j2").render(context)


def render_notebook(data: ReportData) -> str:
    """Return a short fragment for notebooks: no page around it, no script, styles of its own."""
    from graphopt.report.charts import live_chart

    owners = data.plan.peak.owners
    context = {
        "data": data,
        "plan": data.plan,
        "verdict": verdict_of(data.plan, data.limit_bytes),
        "marks": _MARKS,
        "figures": figures_of(data),
        "chart": live_chart(data.plan, data.baseline, _room(data)),
        "owners": owners[:_NOTEBOOK_OWNERS],
        "rest": owners[_NOTEBOOK_OWNERS:],
        "verification_text": verification_text(data.verification),
    }
    return _environment().get_template("notebook.html.j2").render(context)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(_asset),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters.update(
        bytes=_bytes,
        name=_name,
        wrapping=_wrapping,
        error=error_text,
        percent=_percent,
        grouped="{:,}".format,
        signed=_signed,
        seconds=_seconds,
    )
    environment.globals.update(format_bytes=format_bytes, gap_text=gap_text)
    return environment


@cache
def _asset(name: str) -> str:
    return resources.files("graphopt.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _small_css(text: str) -> str:
    without_comments = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    return re.sub(r"\s*\n\s*", "\n", without_comments).strip()


def _markup(text: str) -> Markup:
    from markupsafe import Markup

    return Markup(text)


def _bytes(count: int | None) -> Markup | str:
    """Return bytes for people, with the exact number for machines and for hover."""
    from markupsafe import Markup

    if count is None:
        return _NONE
    return Markup('<data value="{}" title="{} bytes">{}</data>').format(
        count, f"{count:,}", format_bytes(count)
    )


def _name(text: str, longest: int = _LONGEST_NAME, *, wraps: bool = False) -> Markup:
    """Return a name, elided in the middle when it is long, with the full one as its title.

    ``wraps`` adds a place to break the line after every slash.
    """
    from markupsafe import Markup

    full = visible(text)
    shown = elide(full, longest)
    inner = Markup("/<wbr>").join(shown.split("/")) if wraps else shown
    if shown == full:
        return Markup("<bdi>{}</bdi>").format(inner)
    return Markup('<bdi title="{}">{}</bdi>').format(full, inner)


def _wrapping(text: str) -> Markup:
    return _name(text, _LONGEST_WRAPPING, wraps=True)


def _percent(share: float) -> str:
    return f"{share * 100:.2f}".rstrip("0").rstrip(".") + "%"


def _signed(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"


def _cards(data: ReportData) -> list[tuple[str, Figure, str]]:
    """Return (label, figure, direction of the change) of the figures that matter most."""
    found = {figure.key: figure for figure in figures_of(data) if figure.key != "total"}
    cards = []
    for key, label in _CARDS:
        figure = found.get(key)
        if figure is not None:
            # The sign of what is shown: a change that rounds to nothing has no direction.
            direction = {"+": "up", "-": "down"}.get(figure.change[:1], "same")
            cards.append((label, figure, direction))
    return cards


def _meters(data: ReportData) -> list[dict[str, Any]]:
    """Return one bar per pool in use: what fills it, and where its limit is."""
    meters = []
    for pool in data.plan.pools:
        if not pool.total_bytes:
            continue
        limit = limit_of(data.plan, pool, data.limit_bytes)
        scale = max(pool.total_bytes, limit or 0)
        parts = (
            ("arena", pool.arena_bytes),
            ("weights", pool.weight_bytes),
            ("io", pool.io_bytes),
        )
        meters.append(
            {
                "pool": pool.name,
                "total": pool.total_bytes,
                "limit": limit,
                "limit_at": None if limit is None else limit / scale,
                "over": limit is not None and pool.total_bytes > limit,
                "parts": [(name, part, part / scale) for name, part in parts if part],
            }
        )
    return meters


def _room(data: ReportData) -> int | None:
    """Return what the arena may take: the limit of its pool less what else lies there."""
    if not data.plan.pools:
        return None
    pool = data.plan.arena_pool
    limit = limit_of(data.plan, pool, data.limit_bytes)
    return None if limit is None else max(0, limit - (pool.total_bytes - pool.arena_bytes))


def _kind_rows(plan: MemoryPlan) -> list[tuple[str, int, int]]:
    """Return (kind, number of buffers, bytes of the largest) for the arena."""
    rows = []
    for kind in arena_kinds(plan):
        sizes = [b.padded_bytes for b in plan.buffers if _in_arena(b) and b.kind == kind]
        rows.append((kind, len(sizes), max(sizes)))
    return rows


def _in_arena(buffer: PlannedBuffer) -> bool:
    return buffer.segment == "arena" and buffer.padded_bytes > 0


def _pass_rows(data: ReportData) -> list[dict[str, Any]]:
    """Return the rows of the waterfall; bars share a scale that starts at 0."""
    known = [p for r in data.passes for p in (r.peak_before, r.peak_after) if p is not None]
    top = max(known, default=0) or 1
    return [_pass_row(report, top) for report in data.passes]


def _pass_row(report: PassReport, top: int) -> dict[str, Any]:
    before, after = report.peak_before, report.peak_after
    row: dict[str, Any] = {"report": report, "bar": None, "change": "", "skips": []}
    if before is not None and after is not None:
        low, high = min(before, after), max(before, after)
        direction = "down" if after < before else "up" if after > before else "same"
        row["bar"] = (low / top, (high - low) / top, direction)
        row["change"] = format_change(before, after)
    for reason, count in ordered_skips(report):
        sites = [skip for skip in report.skipped if skip.reason == reason]
        row["skips"].append((reason, count, sites[:5]))
    return row


def _static_steps(plan: MemoryPlan) -> list[tuple[int, Any, int]]:
    """Return (number, step, bar of 0 to 50) of the steps that stand in the page without a script.

    All of them, or of many steps those that hold most.
    """
    chosen = list(range(len(plan.steps)))
    if len(chosen) > _STATIC_STEPS:
        by_bytes = sorted(chosen, key=lambda i: (-plan.steps[i].live_bytes, i))
        chosen = sorted(by_bytes[:_STATIC_STEPS_OF_MANY])
    top = max((step.live_bytes for step in plan.steps), default=0) or 1
    return [(i, plan.steps[i], -(-plan.steps[i].live_bytes * 50 // top)) for i in chosen]


def _pool_row(data: ReportData, pool: PoolPlan) -> dict[str, Any]:
    limit = limit_of(data.plan, pool, data.limit_bytes)
    return {
        "pool": pool,
        "limit": limit,
        "over": limit is not None and pool.total_bytes > limit,
        "gap": gap_text(pool).strip("()") if pool.arena_bytes else _NONE,
    }


def _sources(target: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (what, source) for everything in the target that states where it comes from."""
    found = [("target", str(text)) for text in target.get("source") or ()]
    for pool in target.get("pools") or ():
        found += [(f"pool {pool.get('name')}", str(text)) for text in pool.get("source") or ()]
    return found
