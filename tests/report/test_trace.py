"""The trace loads, agrees with the plan, and no two slices of a lane overlap."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from typing import Any

import pytest

from graphopt.memory.plan import MemoryPlan
from graphopt.report.trace import chrome_trace
from tests.report.hostile import hostile_report
from tests.report.sample_plan import (
    altered,
    chain_plan,
    empty_plan,
    mobilenet_plan,
    one_step_plan,
)


def events(plan: MemoryPlan, phase: str, **fields: Any) -> list[dict[str, Any]]:
    trace = json.loads(chrome_trace(plan))
    return [
        e
        for e in trace["traceEvents"]
        if e["ph"] == phase and all(e[key] == value for key, value in fields.items())
    ]


@pytest.fixture(scope="module")
def plan() -> MemoryPlan:
    return mobilenet_plan(optimized=True)


def test_counters_follow_the_live_bytes(plan: MemoryPlan) -> None:
    samples = {e["ts"]: e["args"] for e in events(plan, "C", name="live bytes")}
    now: dict[str, int] = {}
    for number, step in enumerate(plan.steps):
        now = samples.get(number, now)
        assert sum(now.values()) == step.live_bytes
    assert list(samples[0]) == ["activation", "input", "output", "scratch"]
    assert set(samples[len(plan.steps)].values()) == {0}


def test_every_buffer_is_a_slice_over_its_lifetime(plan: MemoryPlan) -> None:
    slices = [e for e in events(plan, "X") if e["cat"] != "step"]
    got = sorted((e["name"], e["cat"], e["ts"], e["ts"] + e["dur"]) for e in slices)
    arena = [b for b in plan.buffers if b.segment == "arena"]
    assert got == sorted((b.name, b.kind, b.start, b.end) for b in arena)
    args = {e["name"]: e["args"] for e in slices}
    for buffer in arena:
        found = args[buffer.name]
        assert found["offset"] == buffer.offset
        assert found["size"] == buffer.bytes
        assert found["padded_size"] == buffer.padded_bytes
        assert found["producer"] == buffer.producer
        shared = [a.value for a in buffer.values if a.relation]
        assert [alias["value"] for alias in found.get("alias", [])] == shared


def test_steps_are_slices_of_length_one(plan: MemoryPlan) -> None:
    steps = events(plan, "X", cat="step")
    assert [(e["ts"], e["dur"], e["name"], e["args"]["node"]) for e in steps] == [
        (i, 1, s.op, s.node) for i, s in enumerate(plan.steps)
    ]


@pytest.mark.parametrize("steps", [7, 500])
def test_lanes_do_not_overlap_and_are_as_few_as_possible(steps: int) -> None:
    plan = chain_plan(steps)
    by_lane = defaultdict(list)
    for e in events(plan, "X"):
        by_lane[e["pid"], e["tid"]].append((e["ts"], e["ts"] + e["dur"]))
    for spans in by_lane.values():
        spans.sort()
        assert all(a[1] <= b[0] for a, b in pairwise(spans))
    most = max(
        sum(b.start <= step < b.end for b in plan.buffers) for step in range(len(plan.steps))
    )
    assert len([key for key in by_lane if key[0] != 1]) == most


def test_lanes_and_pools_are_named(plan: MemoryPlan) -> None:
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events(plan, "M")}
    assert names[1, 0] == "steps"
    assert names[2, 0] == "pool axi-sram"
    assert names[2, 1] == "lane 1"
    assert (3, 0) not in names, "flash holds weights only"
    trace = json.loads(chrome_trace(plan))
    assert trace["otherData"]["weight_bytes"] == {"flash": plan.pools[1].weight_bytes}


def test_buffers_of_the_caller_have_slices_but_no_counter() -> None:
    plan = one_step_plan()
    buffers = tuple(b.model_copy(update={"segment": "io"}) for b in plan.buffers)
    outside = altered(plan, buffers=buffers)
    assert len(events(outside, "X", pid=2)) == 2
    assert events(outside, "C") == []


def test_zero_bytes_take_no_lane() -> None:
    plan = one_step_plan()
    empty = plan.buffers[0].model_copy(update={"bytes": 0, "padded_bytes": 0})
    assert len(events(altered(plan, buffers=(empty, plan.buffers[1])), "X", pid=2)) == 1


def test_extremes_load() -> None:
    assert events(empty_plan(), "X") == []
    trace = chrome_trace(hostile_report().plan)
    assert trace.isascii()
    assert json.loads(trace)["traceEvents"]
