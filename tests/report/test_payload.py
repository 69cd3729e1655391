"""The embedded data holds the whole plan: it is decoded again and compared."""

from __future__ import annotations

import json
from itertools import accumulate
from typing import Any

import pytest

from graphopt.memory.plan import Alias, MemoryPlan
from graphopt.report.payload import payload
from graphopt.report.text import visible
from tests.report.hostile import hostile_report
from tests.report.sample_plan import (
    altered,
    chain_plan,
    empty_plan,
    mobilenet_plan,
    one_step_plan,
    with_unplanned,
)


def strings_of(raw: dict[str, Any]) -> list[str]:
    strings: list[str] = []
    for shared, rest in zip(raw["strings"][::2], raw["strings"][1::2], strict=True):
        strings.append((strings[-1][:shared] if shared else "") + rest)
    return strings


def dense(pairs: list[list[int]], length: int) -> list[int]:
    values = [0] * length
    for index, value in pairs:
        values[index] = value
    return values


def decoded_steps(raw: dict[str, Any]) -> list[tuple[Any, ...]]:
    strings, steps, count = strings_of(raw), raw["steps"], len(raw["steps"]["op"])
    scratch, again = dense(steps["scratch"], count), dense(steps["again"], count)
    return [
        (
            strings[name],
            raw["ops"][steps["op"][i]],
            steps["live"][i] * raw["unit"],
            scratch[i],
            strings[again[i] - 1] if again[i] else None,
        )
        for i, name in enumerate(accumulate(steps["nameGap"]))
    ]


def decoded_buffers(raw: dict[str, Any], pool: dict[str, Any]) -> list[tuple[Any, ...]]:
    strings, count, unit = strings_of(raw), len(pool["size"]), raw["unit"]
    names = [step[0] for step in decoded_steps(raw)]
    starts = list(accumulate(pool["startGap"]))
    pad, lag = dense(pool["pad"], count), dense(pool["lag"], count)
    outside = {index: strings[at] if at >= 0 else "" for index, at in pool["from"]}
    shared: dict[int, list[tuple[str, str, str, int]]] = {}
    for index, relation, value, of, at in pool["shared"]:
        shared.setdefault(index, []).append((strings[value], relation, strings[of], at))
    return [
        (
            strings[name],
            raw["kinds"][pool["kind"][i]],
            starts[i],
            starts[i] + pool["span"][i],
            pool["offset"][i] * unit,
            pool["size"][i] * unit,
            pool["size"][i] * unit - pad[i],
            outside[i] if i in outside else names[starts[i] - lag[i]],
            tuple(shared.get(i, ())),
        )
        for i, name in enumerate(accumulate(pool["nameGap"]))
    ]


PLANS = {
    "mobilenet before": mobilenet_plan(optimized=False),
    "mobilenet after": mobilenet_plan(optimized=True),
    "hostile": hostile_report().plan,
    "one step": one_step_plan(),
    "empty": empty_plan(),
    "2,000 steps": chain_plan(2000),
    "unplanned": with_unplanned(one_step_plan()),
}


@pytest.mark.parametrize("name", PLANS)
def test_steps_and_buffers_survive(name: str) -> None:
    plan = PLANS[name]
    raw = json.loads(payload(plan))
    assert decoded_steps(raw) == [
        (
            visible(s.node),
            visible(s.op),
            s.live_bytes,
            s.scratch_bytes,
            s.recompute_of and visible(s.recompute_of),
        )
        for s in plan.steps
    ]
    got = [b for pool in raw["pools"] for b in decoded_buffers(raw, pool)]
    wanted = [
        (
            visible(b.name),
            b.kind,
            b.start,
            b.end,
            b.offset,
            b.padded_bytes,
            b.bytes,
            visible(b.producer),
            tuple(
                (visible(a.value), a.relation, visible(a.of), a.offset)
                for a in b.values
                if a.relation
            ),
        )
        for b in plan.buffers
        if b.segment == "arena" and b.padded_bytes
    ]
    assert sorted(got) == sorted(wanted)


def test_aliases_and_recomputes_are_in_the_data() -> None:
    plan = mobilenet_plan(optimized=True)
    relations = {a.relation for b in plan.buffers for a in b.values}
    assert relations == {"", "view", "in-place"}
    steps = list(plan.steps)
    steps[5] = steps[5].model_copy(update={"recompute_of": steps[2].node})
    raw = json.loads(payload(altered(plan, steps=tuple(steps))))
    assert decoded_steps(raw)[5][4] == plan.steps[2].node
    assert {row[1] for row in raw["pools"][0]["shared"]} == {"view", "in-place"}


def test_producer_that_is_no_step_is_kept() -> None:
    plan = one_step_plan()
    buffers = (plan.buffers[0], plan.buffers[1].model_copy(update={"producer": "elsewhere"}))
    raw = json.loads(payload(altered(plan, buffers=buffers)))
    producers = {b[0]: b[7] for b in decoded_buffers(raw, raw["pools"][0])}
    assert producers == {"x": "", "relu_output_0": "elsewhere"}


def test_characters_outside_the_basic_plane_are_not_cut() -> None:
    # JavaScript counts UTF-16 units: a shared prefix in characters would cut a pair in two.
    plan = one_step_plan()
    values = (Alias(value="😀😀a", relation="view", of="😀😀b"),)
    buffers = tuple(b.model_copy(update={"values": values}) for b in plan.buffers)
    raw = json.loads(payload(altered(plan, buffers=buffers)))
    assert {"😀😀a", "😀😀b"} <= set(strings_of(raw))
    for shared, rest in zip(raw["strings"][::2], raw["strings"][1::2], strict=True):
        assert shared == 0 or max(rest, default="") < "\U00010000"


def test_every_operator_has_a_class() -> None:
    plan = chain_plan(100)
    raw = json.loads(payload(plan))
    classes = {op: raw["classes"][c] for op, c in zip(raw["ops"], raw["opClass"], strict=True)}
    assert classes == {
        "Conv": "convolution",
        "Clip": "element-wise",
        "Add": "element-wise",
        "MatMul": "matrix product",
        "Reshape": "data movement",
        "Softmax": "normalization",
        "LayerNormalization": "normalization",
        "Gather": "data movement",
    }


def test_unknown_operators_are_other() -> None:
    plan = one_step_plan()
    step = plan.steps[0].model_copy(update={"op": "com.example::Mystery"})
    raw = json.loads(payload(altered(plan, steps=(step,))))
    assert [raw["classes"][c] for c in raw["opClass"]] == ["other"]


def _plan_with_odd_sizes() -> MemoryPlan:
    plan = one_step_plan()
    first, second = plan.buffers
    return altered(plan, buffers=(first.model_copy(update={"offset": 7}), second))


def test_unit_divides_every_size() -> None:
    assert json.loads(payload(mobilenet_plan(optimized=True)))["unit"] == 32
    assert json.loads(payload(_plan_with_odd_sizes()))["unit"] == 1
