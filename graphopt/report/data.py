"""What a report is made from, and the facts that its text and its page share.

``ReportData`` is plain data. The verdict, the before-and-after figures and the live bytes by kind
are derived here once, so that a terminal, a notebook and a page cannot disagree.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

from graphopt.units import format_bytes, format_change

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.memory.plan import MemoryPlan, PoolPlan
    from graphopt.pipeline.pipeline import PassReport

# Order of the bands of a stack, from the bottom, and of every legend.
KINDS = ("activation", "state", "input", "output", "scratch", "weight")

State = Literal["fits", "no-limit", "does-not-fit", "undecided"]


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows.

    Attributes:
        title: Heading of the report.
        plan: The plan of the result.
        baseline: The plan of the model as it came in; None when nothing was rewritten.
        passes: What each pass did, in order.
        verification: What was compared and the errors found, as plain data; None when nothing was.
        limit_bytes: The memory limit that the user set for the pool of the arena.
        warnings: Sentences that the user should read.
        file_bytes: Size of the model file before and after.
        quantization: What quantization measured, as plain data; None when nothing was quantized.
    """

    title: str
    plan: MemoryPlan
    baseline: MemoryPlan | None
    passes: tuple[PassReport, ...]
    verification: dict[str, Any] | None
    limit_bytes: int | None
    warnings: tuple[str, ...]
    file_bytes: tuple[int, int] | None
    quantization: dict[str, Any] | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether the plan fits; ``pool`` is the one that decides, ``headline`` needs no context."""

    state: State
    headline: str
    detail: str
    pool: str
    used_bytes: int
    limit_bytes: int | None


def limit_of(plan: MemoryPlan, pool: PoolPlan, limit_bytes: int | None) -> int | None:
    """Return the bytes that ``pool`` may hold: the user's limit for the arena's pool, else its own.

    The user's limit replaces that of the target, as it does where limits are enforced.
    """
    if limit_bytes is not None and pool.name == plan.arena_pool.name:
        return limit_bytes
    return pool.limit_bytes


def verdict_of(plan: MemoryPlan, limit_bytes: int | None) -> Verdict:
    """Return whether every pool of ``plan`` stays within its limit.

    The pool that decides is the one furthest above its limit, else the pool of the arena. What a
    pool takes is its total: arena, weights, inputs and outputs.
    """
    if not plan.pools:
        return Verdict("no-limit", "No memory is planned", "", "", 0, None)
    limits = {pool.name: limit_of(plan, pool, limit_bytes) for pool in plan.pools}
    over = [p for p in plan.pools if _excess(p, limits[p.name]) > 0]
    pool = max(over, key=lambda p: _excess(p, limits[p.name])) if over else plan.arena_pool
    limit = limits[pool.name]
    used = format_bytes(pool.total_bytes)
    missing = len(plan.not_planned)
    counted = f"; {_count(missing, 'value')} in no figure" if missing else ""
    if over and limit is not None:
        excess = format_bytes(pool.total_bytes - limit)
        others = f", and {_count(len(over) - 1, 'other pool')}" if len(over) > 1 else ""
        return Verdict(
            "does-not-fit",
            f"Does not fit: {excess} over the limit",
            f"{used} needed, {format_bytes(limit)} available in {pool.name}{others}{counted}",
            pool.name,
            pool.total_bytes,
            limit,
        )
    state: State = "undecided" if missing else "fits"
    if limit is None:
        headline, state = "No limit set", "no-limit"
        detail = f"{used} in {pool.name}{counted}"
    elif missing:
        headline = f"Cannot be decided: {_count(missing, 'value')} not planned"
        detail = f"the rest takes {used} of {format_bytes(limit)} in {pool.name}"
    else:
        headline = f"Fits with {format_bytes(limit - pool.total_bytes)} to spare"
        share = pool.total_bytes / limit * 100 if limit else 0.0
        detail = f"{used} of {format_bytes(limit)} in {pool.name} ({share:.1f} %)"
    return Verdict(state, headline, detail, pool.name, pool.total_bytes, limit)


def _excess(pool: PoolPlan, limit: int | None) -> int:
    return 0 if limit is None else pool.total_bytes - limit


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


@dataclass(frozen=True)
class Figure:
    """One line of the before-and-after table; ``before`` is None when there is no baseline."""

    key: str
    label: str
    before: int | None
    after: int
    is_bytes: bool = True
    note_before: str = ""
    note_after: str = ""

    def text(self, which: Literal["before", "after"]) -> str:
        """Return one of the two sides as people read it; "" when there is none."""
        value = self.before if which == "before" else self.after
        note = self.note_before if which == "before" else self.note_after
        if value is None:
            return ""
        shown = format_bytes(value) if self.is_bytes else f"{value:,}"
        return f"{shown} {note}".rstrip()

    @property
    def change(self) -> str:
        """Relative change, "" without a baseline."""
        return "" if self.before is None else format_change(self.before, self.after)


def figures_of(data: ReportData) -> list[Figure]:
    """Return the before-and-after table of ``data``."""
    plan, base = data.plan, data.baseline
    figures = [
        Figure("nodes", "nodes", base.model.nodes if base else None, plan.model.nodes, False),
        Figure("weights", "weights", weight_bytes(base), weight_bytes(plan) or 0),
        Figure("peak", "peak of live bytes", base.peak_bytes if base else None, plan.peak_bytes),
    ]
    if plan.pools:
        has_base = base is not None and bool(base.pools)
        figures += [
            Figure(
                "arena", "arena", base.arena_bytes if base and has_base else None, plan.arena_bytes
            ),
            Figure(
                "bound",
                "lower bound (gap of the arena)",
                base.lower_bound_bytes if base and has_base else None,
                plan.lower_bound_bytes,
                True,
                gap_text(base.arena_pool) if base and has_base else "",
                gap_text(plan.arena_pool),
            ),
        ]
    figures.append(_io_figure(plan, base))
    before = {pool.name: pool.total_bytes for pool in base.pools} if base else {}
    for pool in plan.pools:
        if pool.total_bytes or before.get(pool.name):
            was = before.get(pool.name, 0) if base else None
            figures.append(Figure("total", f"total in {pool.name}", was, pool.total_bytes))
    if data.file_bytes is not None:
        figures.append(Figure("file", "model file", data.file_bytes[0], data.file_bytes[1]))
    return figures


def weight_bytes(plan: MemoryPlan | None) -> int | None:
    """Return the bytes of all weights without padding."""
    return None if plan is None else plan.bytes_by_kind.get("weight", 0)


def gap_text(pool: PoolPlan) -> str:
    """Return how far the arena is above its lower bound, as ``(+1.5 %)`` or ``(0 %)``."""
    if pool.arena_bytes == pool.lower_bound_bytes:
        return "(0 %)"
    if not pool.lower_bound_bytes:
        return "(no bound)"
    gap = (pool.arena_bytes - pool.lower_bound_bytes) / pool.lower_bound_bytes * 100
    return "(+<0.1 %)" if gap < 0.05 else f"(+{gap:.1f} %)"


def _io_figure(plan: MemoryPlan, base: MemoryPlan | None) -> Figure:
    where = " (in the arena)" if plan.runtime.options.get("io_in_arena") else ""

    def taken(of: MemoryPlan) -> int:
        if where:
            return sum(of.bytes_by_kind.get(kind, 0) for kind in ("input", "output", "state"))
        return sum(pool.io_bytes for pool in of.pools)

    return Figure("io", f"inputs and outputs{where}", taken(base) if base else None, taken(plan))


def arena_kinds(plan: MemoryPlan) -> list[str]:
    """Return the kinds of buffers that lie in the arena, in the order of a stack."""
    present = {b.kind for b in plan.buffers if b.segment == "arena" and b.padded_bytes}
    return [kind for kind in KINDS if kind in present]


def live_by_kind(plan: MemoryPlan, pool: str | None = None) -> dict[str, list[int]]:
    """Return the arena bytes alive at every step, by kind; of one pool when ``pool`` is named."""
    count = len(plan.steps)
    change = {kind: [0] * (count + 1) for kind in arena_kinds(plan)}
    for buffer in plan.buffers:
        if buffer.segment != "arena" or not buffer.padded_bytes:
            continue
        if pool is None or buffer.pool == pool:
            of_kind = change[buffer.kind]
            of_kind[min(buffer.start, count)] += buffer.padded_bytes
            of_kind[min(buffer.end, count)] -= buffer.padded_bytes
    return {kind: list(accumulate(deltas))[:count] for kind, deltas in change.items()}


def skip_counts(report: PassReport, most: int = 3) -> list[tuple[str, int]]:
    """Return the most frequent reasons why ``report`` left sites alone."""
    counts = Counter(skip.reason for skip in report.skipped)
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]


def verification_text(verification: dict[str, Any] | None) -> str:
    """Return one sentence about what was compared and what was found."""
    if verification is None:
        return "not verified: no output was compared with the model as it came in"
    outputs = _count(int(verification["compared"]), "output")
    samples = _count(int(verification["samples"]), f"{verification['inputs']} sample")
    found = (
        f"largest error {error_text(verification['max_abs_error'])} absolute, "
        f"{error_text(verification['max_rel_error'])} relative"
    )
    accepted = (verification.get("tolerance") or {}).get("sqnr_db")
    if accepted is not None:
        decibels = [o["sqnr_db"] for o in verification["outputs"] if o.get("sqnr_db") is not None]
        worst = f"worst output {min(decibels):.1f} dB" if decibels else "no output in floats"
        found = f"{worst}, accepted {accepted:g} dB"
    metric = verification.get("metric")
    if metric is not None:
        found = (
            f"metric {metric['name']} {metric['after']:.6g}, {metric['before']:.6g} for the "
            f"original, accepted drop {metric['max_drop']:g}"
        )
    verdict = "passed" if verification["passed"] else "FAILED"
    return f"{verdict}: {outputs} on {samples}, {found}"


def tolerance_text(verification: dict[str, Any]) -> str:
    """Return the tolerance of ``verification`` as ``name value`` pairs."""
    tolerance = verification.get("tolerance") or {}
    return ", ".join(
        f"{name} {error_text(v) if isinstance(v, float) else v}" for name, v in tolerance.items()
    )


def error_text(error: float | None) -> str:
    """Return an error in three digits; "not compared" for None."""
    return "not compared" if error is None else f"{error:.3g}"


def ordered_skips(report: PassReport) -> Sequence[tuple[str, int]]:
    """Return all reasons why ``report`` left sites alone, with their counts."""
    return skip_counts(report, most=len(report.skipped))
