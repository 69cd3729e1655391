"""The paths of the charts draw what the plan says: they are read back and compared."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from graphopt.memory.plan import MemoryPlan
from graphopt.report.charts import HEIGHT, MAX_COLUMNS, arena_maps, buffers_of, live_chart
from graphopt.report.data import live_by_kind
from tests.report.sample_plan import chain_plan, empty_plan, mobilenet_plan, one_step_plan

Point = tuple[float, float]


def corners(path: str) -> list[list[Point]]:
    """Return the corners of every closed or open sub-path of a path of M, H, V, h, v, z."""
    found: list[list[Point]] = []
    x = y = 0.0
    for command, numbers in re.findall(r"([MHVhvz])([-\d. ]*)", path):
        values = [float(n) for n in numbers.split()]
        if command == "M":
            x, y = values
            found.append([])
        elif command == "z":
            continue
        elif command in "Hh":
            x = values[0] + (x if command == "h" else 0)
        else:
            y = values[0] + (y if command == "v" else 0)
        found[-1].append((x, y))
    return found


def levels(path: str, columns: int) -> list[float]:
    """Return the height of a staircase in the middle of every column, 0 at the bottom."""
    (points,) = corners(path)
    result = []
    for column in range(columns):
        middle = column + 0.5
        heights = [a[1] for a, b in pairwise(points) if a[1] == b[1] and a[0] <= middle <= b[0]]
        result.append(HEIGHT - heights[0])
    return result


@pytest.fixture(scope="module")
def plan() -> MemoryPlan:
    return mobilenet_plan(optimized=True)


def test_live_bytes_by_kind_sum_to_those_of_the_steps(plan: MemoryPlan) -> None:
    by_kind = live_by_kind(plan)
    assert list(by_kind) == ["activation", "input", "output", "scratch"]
    totals = [sum(of_kind) for of_kind in zip(*by_kind.values(), strict=True)]
    assert totals == [step.live_bytes for step in plan.steps]


def test_outline_is_the_live_bytes(plan: MemoryPlan) -> None:
    chart = live_chart(plan, None, None)
    assert chart.columns == len(plan.steps)
    assert not chart.grouped
    scale = chart.peak_y * HEIGHT / plan.peak_bytes
    drawn = levels(chart.outline, chart.columns)
    for height, step in zip(drawn, plan.steps, strict=True):
        assert height == pytest.approx(step.live_bytes * scale, abs=0.51)


def test_bands_stack_up_to_the_outline(plan: MemoryPlan) -> None:
    chart = live_chart(plan, None, None)
    by_kind = live_by_kind(plan)
    scale = chart.peak_y * HEIGHT / plan.peak_bytes
    for band in chart.bands:
        (points,) = corners(band.path)
        # Twice the signed area of a polygon, from its corners.
        area = sum(
            a[0] * b[1] - b[0] * a[1] for a, b in zip(points, [*points[1:], points[0]], strict=True)
        )
        expected = sum(by_kind[band.kind]) * scale
        assert abs(area) / 2 == pytest.approx(expected, abs=chart.columns)
        assert band.peak_bytes == by_kind[band.kind][plan.peak.step]


def test_many_steps_are_grouped_and_the_peak_survives() -> None:
    plan = chain_plan(5000)
    chart = live_chart(plan, None, None)
    assert chart.columns == MAX_COLUMNS
    assert chart.grouped
    (band,) = chart.bands
    top = min(y for points in corners(band.path) for _, y in points)
    assert HEIGHT - top == pytest.approx(chart.peak_y * HEIGHT, abs=0.51)
    assert chart.peak_x == pytest.approx((plan.peak.step + 0.5) / 5000)


def test_baseline_spans_the_same_width(plan: MemoryPlan) -> None:
    before = mobilenet_plan(optimized=False)
    chart = live_chart(plan, before, None)
    (points,) = corners(chart.baseline)
    assert points[0][0] == 0
    assert points[-1][0] == chart.columns
    assert HEIGHT - min(y for _, y in points) == pytest.approx(
        before.peak_bytes / plan.peak_bytes * chart.peak_y * HEIGHT, abs=1.1
    )
    assert chart.zoom == pytest.approx(before.peak_bytes / plan.peak_bytes)


def test_limit_is_drawn_only_near_the_scale(plan: MemoryPlan) -> None:
    near = live_chart(plan, None, 400 << 10)
    assert near.limit is not None
    assert near.limit / near.peak_y == pytest.approx((400 << 10) / plan.peak_bytes)
    assert live_chart(plan, None, plan.peak_bytes * 2).limit is None
    assert live_chart(plan, None, None).limit is None


@pytest.mark.parametrize("make", [empty_plan, one_step_plan])
def test_smallest_plans(make: object) -> None:
    plan = make()  # type: ignore[operator]
    chart = live_chart(plan, plan, 1 << 20)
    assert chart.columns == 1
    assert 0 <= chart.peak_y <= 1


def test_map_draws_every_buffer_where_it_lies(plan: MemoryPlan) -> None:
    (map_,) = arena_maps(plan)
    assert (map_.pool, map_.columns, map_.drawn) == ("axi-sram", 65, 73)
    drawn = sorted(
        (points[0][0], points[1][0], HEIGHT - points[2][1], HEIGHT - points[0][1])
        for shape in map_.shapes
        for points in corners(shape.path)
    )
    unit = HEIGHT / map_.height_bytes
    expected = sorted(
        (b.start, b.end, b.offset * unit, (b.offset + b.padded_bytes) * unit)
        for b in buffers_of(plan, "axi-sram")
    )
    assert len(drawn) == len(expected) == 73
    for got, wanted in zip(drawn, expected, strict=True):
        assert got[:2] == wanted[:2]
        assert got[2:] == pytest.approx(wanted[2:], abs=1.01)


def test_map_of_many_buffers_draws_the_largest() -> None:
    (map_,) = arena_maps(chain_plan(4000))
    assert (map_.drawn, map_.buffers) == (3000, 4000)
    assert sum(len(corners(shape.path)) for shape in map_.shapes) == 3000


def test_ticks_are_round_and_inside(plan: MemoryPlan) -> None:
    chart = live_chart(plan, None, None)
    assert [tick.text for tick in chart.ticks] == ["0", "100 KiB", "200 KiB", "300 KiB"]
    for peak in (1, 7, 100, 5000, 1 << 20, 3 << 30, 5 << 42):
        one = one_step_plan()
        steps = (one.steps[0].model_copy(update={"live_bytes": peak}),)
        peaked = one.model_copy(
            update={"steps": steps, "peak": one.peak.model_copy(update={"bytes": peak})}
        )
        ticks = live_chart(peaked, None, None).ticks
        assert 2 <= len(ticks) <= 7, peak
        assert all(0 <= tick.at <= 1 for tick in ticks)
        assert len({tick.text for tick in ticks}) == len(ticks)
