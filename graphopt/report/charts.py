"""Geometry of the two charts: paths in whole units of a box that CSS stretches to the page.

The live bytes are a stack of bands, one per kind; the arena map is one rectangle per buffer, steps
to the right, offsets upwards. Both are drawn in a box ``HEIGHT`` units high and one unit per step
(or per group of steps) wide, with ``preserveAspectRatio="none"``; every label is HTML beside it,
so that text keeps its size. Paths are relative and in integers, which keeps a page of thousands of
buffers small; half a unit of 1,000 is less than a pixel.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.report.data import arena_kinds, live_by_kind
from graphopt.units import format_bytes

if TYPE_CHECKING:
    from graphopt.memory.plan import MemoryPlan, PlannedBuffer

HEIGHT = 1000
MAX_COLUMNS = 800
MAX_RECTANGLES = 3000
MAX_LABELS = 10

_TICKS = (0.1, 0.2, 0.25, 0.5, 1, 2, 2.5, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1000)
_HEADROOM = 1.06
_WORTH_ZOOM = 1.8


@dataclass(frozen=True)
class Band:
    """The area of one kind in the stack, and its bytes at the peak."""

    kind: str
    path: str
    peak_bytes: int


@dataclass(frozen=True)
class Tick:
    """A label of the vertical axis; ``at`` is the share of the height, from the bottom."""

    at: float
    text: str


@dataclass(frozen=True)
class LiveChart:
    """Live bytes over steps.

    Attributes:
        columns: Width of the box; each column is a step or the largest of a group of steps.
        grouped: Whether a column stands for several steps.
        bands: From the bottom of the stack to the top.
        outline: The top of the stack as a line.
        baseline: The same of the baseline over the same width; "" without one.
        ticks: Labels of the vertical axis.
        limit: Share of the height at which the limit lies; None when it is off the scale or unset.
        zoom: How much taller the result alone would be drawn; 1 when that is not worth a switch.
        zoomed_ticks: Labels of the vertical axis at that zoom, as shares of the whole height.
        peak_x: Middle of the peak step as a share of the width.
        peak_y: Height of the peak as a share of the height.
    """

    columns: int
    grouped: bool
    bands: tuple[Band, ...]
    outline: str
    baseline: str
    ticks: tuple[Tick, ...]
    limit: float | None
    zoom: float
    zoomed_ticks: tuple[Tick, ...]
    peak_x: float
    peak_y: float


def live_chart(plan: MemoryPlan, baseline: MemoryPlan | None, limit: int | None) -> LiveChart:
    """Return the chart of ``plan``; ``limit`` is what the arena may take at most, in bytes."""
    total = [step.live_bytes for step in plan.steps]
    before = [step.live_bytes for step in baseline.steps] if baseline else []
    highest = max([*total, *before], default=0)
    if limit is not None and limit <= 1.6 * highest:
        highest = max(highest, limit)
    top = max(1.0, highest * _HEADROOM)
    zoom = highest / plan.peak.bytes if plan.peak.bytes else 1.0
    zoom = zoom if zoom >= _WORTH_ZOOM else 1.0
    groups = _columns(len(total))
    chosen = [max(group, key=lambda step: (total[step], -step)) for group in groups]
    bands = []
    floor = [0] * len(chosen)
    for kind, levels in live_by_kind(plan).items():
        ceiling = [low + levels[step] for low, step in zip(floor, chosen, strict=True)]
        path = _band_path([_y(v, top) for v in floor], [_y(v, top) for v in ceiling])
        at_peak = levels[plan.peak.step] if plan.peak.step < len(levels) else 0
        bands.append(Band(kind, path, at_peak))
        floor = ceiling
    line = [max(before[step] for step in group) for group in _columns(len(before), len(groups))]
    return LiveChart(
        columns=max(1, len(chosen)),
        grouped=len(chosen) < len(total),
        bands=tuple(bands),
        outline=_line_path([_y(total[step], top) for step in chosen], 1),
        baseline=_line_path([_y(v, top) for v in line], len(chosen) / len(line) if line else 1),
        ticks=_ticks(top),
        limit=limit / top if limit is not None and limit <= top else None,
        zoom=zoom,
        zoomed_ticks=tuple(Tick(t.at / zoom, t.text) for t in _ticks(top / zoom)),
        peak_x=(plan.peak.step + 0.5) / len(total) if total else 0.0,
        peak_y=plan.peak.bytes / top,
    )


def _columns(count: int, most: int = MAX_COLUMNS) -> list[range]:
    """Return the steps of each column: one each, or near-equal groups above ``most`` steps."""
    width = min(count, max(most, 1))
    return [range(c * count // width, (c + 1) * count // width) for c in range(width)]


def _y(value: float, top: float) -> int:
    return HEIGHT - round(value / top * HEIGHT)


def _line_path(levels: Sequence[int], width: float) -> str:
    """Return a staircase with one stair of ``width`` per level."""
    if not levels:
        return ""
    parts = [f"M0 {levels[0]}"]
    run_start = 0
    for index in range(1, len(levels) + 1):
        if index == len(levels) or levels[index] != levels[index - 1]:
            parts.append(f"H{_short(index * width)}")
            run_start = index
            if index < len(levels):
                parts.append(f"V{levels[run_start]}")
    return "".join(parts)


def _band_path(floor: Sequence[int], ceiling: Sequence[int]) -> str:
    """Return the closed area between two staircases; "" when it is empty everywhere."""
    if all(low == high for low, high in zip(floor, ceiling, strict=True)):
        return ""
    forward = _line_path(ceiling, 1)
    parts = [forward, f"V{floor[-1]}"]
    parts += [
        f"H{index}V{floor[index - 1]}"
        for index in range(len(floor) - 1, 0, -1)
        if floor[index - 1] != floor[index]
    ]
    return "".join(parts) + "H0z"


def _short(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _ticks(top: float) -> tuple[Tick, ...]:
    """Return three to six labels at round numbers of one binary unit."""
    unit = 1
    while top / unit >= 1024 * 1.5:
        unit *= 1024
    at = bisect_left(_TICKS, top / unit / 5)
    step = (_TICKS[at] if at < len(_TICKS) else _TICKS[-1] * 2) * unit
    if unit == 1:
        step = max(1, round(step))
    count = int(top / step)
    return tuple(Tick(i * step / top, _tick_text(i * step, unit)) for i in range(count + 1))


def _tick_text(value: float, unit: int) -> str:
    names = {1: "B", 1 << 10: "KiB", 1 << 20: "MiB", 1 << 30: "GiB", 1 << 40: "TiB"}
    if not value:
        return "0"
    name = names.get(unit)
    return f"{_short(value / unit)} {name}" if name else format_bytes(int(value))


@dataclass(frozen=True)
class Shape:
    """All rectangles of one kind as one path."""

    kind: str
    path: str


@dataclass(frozen=True)
class MapLabel:
    """A name to print inside a large rectangle; shares of width and height, from the bottom."""

    name: str
    left: float
    bottom: float
    width: float
    height: float


@dataclass(frozen=True)
class ArenaMap:
    """The arena of one pool, steps to the right, offsets upwards.

    Attributes:
        pool: Name of the pool.
        columns: Width of the box in steps.
        height_bytes: Bytes of the arena: the height of the box.
        shapes: One per kind.
        labels: Names of the largest rectangles.
        drawn: Number of rectangles in ``shapes``; the largest ones when there are too many.
        buffers: Number of all buffers with bytes.
        ticks: Labels of the vertical axis.
        bound: Share of the height at which the lower bound lies.
    """

    pool: str
    columns: int
    height_bytes: int
    shapes: tuple[Shape, ...]
    labels: tuple[MapLabel, ...]
    drawn: int
    buffers: int
    ticks: tuple[Tick, ...]
    bound: float


def arena_maps(plan: MemoryPlan) -> list[ArenaMap]:
    """Return one map per pool that holds an arena."""
    return [
        _arena_map(plan, pool.name, pool.arena_bytes, pool.lower_bound_bytes)
        for pool in plan.pools
        if pool.arena_bytes
    ]


def buffers_of(plan: MemoryPlan, pool: str) -> list[PlannedBuffer]:
    """Return the buffers with bytes in the arena of ``pool``, by start and offset."""
    found = [b for b in plan.buffers if b.segment == "arena" and b.pool == pool and b.padded_bytes]
    return sorted(found, key=lambda b: (b.start, b.offset))


def _arena_map(plan: MemoryPlan, pool: str, height: int, bound: int) -> ArenaMap:
    buffers = buffers_of(plan, pool)
    by_area = sorted(buffers, key=lambda b: (-(b.end - b.start) * b.padded_bytes, b.start))
    drawn = by_area[:MAX_RECTANGLES]
    # Large ones first: a small one that is widened to one unit stays visible.
    shapes = [
        Shape(kind, "".join(_rectangle(b, height) for b in drawn if b.kind == kind))
        for kind in arena_kinds(plan)
    ]
    steps = max(1, len(plan.steps))
    return ArenaMap(
        pool=pool,
        columns=steps,
        height_bytes=height,
        shapes=tuple(shape for shape in shapes if shape.path),
        labels=_labels(by_area, steps, height),
        drawn=len(drawn),
        buffers=len(buffers),
        ticks=_ticks(float(height)),
        bound=bound / height,
    )


def _rectangle(buffer: PlannedBuffer, height: int) -> str:
    low = _y(buffer.offset, height)
    high = min(low - 1, _y(buffer.offset + buffer.padded_bytes, height))
    width = buffer.end - buffer.start
    return f"M{buffer.start} {high}h{width}v{low - high}h-{width}z"


def _labels(by_area: Iterable[PlannedBuffer], steps: int, height: int) -> tuple[MapLabel, ...]:
    labels: list[MapLabel] = []
    for buffer in by_area:
        wide, tall = (buffer.end - buffer.start) / steps, buffer.padded_bytes / height
        if wide >= 0.09 and tall >= 0.06:
            name = buffer.name.rsplit("/", 1)[-1]
            labels.append(MapLabel(name, buffer.start / steps, buffer.offset / height, wide, tall))
        if len(labels) == MAX_LABELS:
            break
    return tuple(labels)
