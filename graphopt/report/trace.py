"""The plan as a trace that Perfetto and chrome://tracing open.

Time is the step: one microsecond of the trace is one step, so a buffer alive in ``[start, end)`` is
a slice from ``start`` to ``end``. Every pool with an arena or buffers of the caller is a process,
with a counter of its live bytes by kind; its threads are lanes, filled so that no two slices of a
lane overlap. The process ``steps`` shows what runs. Weights live as long as the model and buffers
of zero bytes take no place: neither has a slice.
"""

from __future__ import annotations

import heapq
import json
from typing import TYPE_CHECKING, Any

from graphopt.report.data import live_by_kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from graphopt.memory.plan import MemoryPlan, PlannedBuffer

_STEPS_PID = 1
_FIRST_POOL_PID = 2


def chrome_trace(plan: MemoryPlan) -> str:
    """Return the trace as JSON text, in ASCII; equal plans give equal text."""
    events = _step_events(plan)
    for number, pool in enumerate(plan.pools):
        events += _pool_events(plan, pool.name, _FIRST_POOL_PID + number)
    facts = {
        "tool": f"{plan.tool} {plan.version}",
        "model_sha256": plan.model.sha256,
        "unit": "1 us is 1 step",
        "peak_bytes": plan.peak.bytes,
        "peak_step": plan.peak.step,
        "weight_bytes": {p.name: p.weight_bytes for p in plan.pools if p.weight_bytes},
        "not_planned": len(plan.not_planned),
    }
    trace = {"traceEvents": events, "displayTimeUnit": "ns", "otherData": facts}
    return json.dumps(trace, separators=(",", ":")) + "\n"


def _name_event(what: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}}


def _step_events(plan: MemoryPlan) -> list[dict[str, Any]]:
    events = [
        _name_event("process_name", _STEPS_PID, 0, "steps"),
        _name_event("thread_name", _STEPS_PID, 1, "operators"),
    ]
    for number, step in enumerate(plan.steps):
        args: dict[str, Any] = {"node": step.node, "live_bytes": step.live_bytes}
        if step.scratch_bytes:
            args["scratch_bytes"] = step.scratch_bytes
        if step.recompute_of:
            args["recompute_of"] = step.recompute_of
        events.append(_slice(step.op, "step", _STEPS_PID, 1, number, 1, args))
    return events


def _slice(
    name: str, category: str, pid: int, tid: int, start: int, length: int, args: dict[str, Any]
) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": name,
        "cat": category,
        "pid": pid,
        "tid": tid,
        "ts": start,
        "dur": length,
        "args": args,
    }


def _pool_events(plan: MemoryPlan, pool: str, pid: int) -> list[dict[str, Any]]:
    buffers = [
        b for b in plan.buffers if b.pool == pool and b.segment != "weights" and b.padded_bytes
    ]
    if not buffers:
        return []
    events = [_name_event("process_name", pid, 0, f"pool {pool}")]
    if any(b.segment == "arena" for b in buffers):
        events += _counter_events(live_by_kind(plan, pool), len(plan.steps), pid)
    lanes = _lanes(buffers)
    events += [
        _name_event("thread_name", pid, lane, f"lane {lane}") for lane in range(1, max(lanes) + 1)
    ]
    for buffer, lane in zip(_by_start(buffers), lanes, strict=True):
        length = buffer.end - buffer.start
        facts = _facts(buffer)
        events.append(_slice(buffer.name, buffer.kind, pid, lane, buffer.start, length, facts))
    return events


def _counter_events(live: dict[str, list[int]], steps: int, pid: int) -> list[dict[str, Any]]:
    """Return one sample per change, and zeros at the end."""
    events = []
    before: dict[str, int] = {}
    for number in range(steps + 1):
        now = {kind: levels[number] if number < steps else 0 for kind, levels in live.items()}
        if now != before:
            events.append({"ph": "C", "name": "live bytes", "pid": pid, "ts": number, "args": now})
            before = now
    return events


def _by_start(buffers: Iterable[PlannedBuffer]) -> list[PlannedBuffer]:
    return sorted(buffers, key=lambda b: (b.start, -b.padded_bytes, b.offset, b.name))


def _lanes(buffers: Sequence[PlannedBuffer]) -> list[int]:
    """Return the lane of each buffer in the order of ``_by_start``: the lowest that is free."""
    lanes = []
    free: list[int] = []
    busy: list[tuple[int, int]] = []
    for buffer in _by_start(buffers):
        while busy and busy[0][0] <= buffer.start:
            heapq.heappush(free, heapq.heappop(busy)[1])
        lane = heapq.heappop(free) if free else len(busy) + 1
        heapq.heappush(busy, (buffer.end, lane))
        lanes.append(lane)
    return lanes


def _facts(buffer: PlannedBuffer) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "segment": buffer.segment,
        "offset": buffer.offset,
        "size": buffer.bytes,
        "padded_size": buffer.padded_bytes,
        "producer": buffer.producer,
    }
    if buffer.dtype:
        facts["type"] = f"{buffer.dtype}[{','.join(str(size) for size in buffer.shape)}]"
    shared = [
        {"value": a.value, "relation": a.relation, "of": a.of, "offset": a.offset}
        for a in buffer.values
        if a.relation
    ]
    if shared:
        facts["alias"] = shared
    return facts
