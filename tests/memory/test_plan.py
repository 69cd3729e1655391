"""Plans of dataflows: figures by hand, random dataflows, and a verifier seen to reject."""

import json
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

from graphopt.errors import InvariantError
from graphopt.memory.aliasing import resolve_aliases
from graphopt.memory.dataflow import Dataflow, DataValue, Role, Step
from graphopt.memory.liveness import lifetimes, live_bytes
from graphopt.memory.plan import MemoryPlan
from graphopt.memory.verify_plan import verify_plan
from tests.memory.flows import chain, plan_of, random_flow


def test_chain_needs_the_two_largest_neighbours() -> None:
    plan = plan_of(chain([640, 1280, 320, 64]))
    assert plan.peak_bytes == 640 + 1280
    assert plan.arena_bytes == plan.lower_bound_bytes == 1920
    assert plan.peak.step == 1
    assert [owner.name for owner in plan.peak.owners] == ["v1", "v0"]
    # The result is the caller's: it is in the io segment and in no arena figure.
    assert plan.arena_pool.io_bytes == 64 + 64
    assert plan.arena_pool.total_bytes == 1920 + 128


def test_in_place_chain_of_equal_sizes_takes_one_buffer() -> None:
    flow = chain([640, 640, 640, 640], in_place=True)
    plan = plan_of(flow)
    assert plan.arena_bytes == 0, "every value lives in the buffer of the result"
    assert plan.arena_pool.io_bytes == 64 + 640
    assert plan_of(flow, in_place=False).peak_bytes == 1280


def test_input_is_not_overwritten_unless_it_lives_in_the_arena() -> None:
    flow = chain([16, 16], in_place=True)
    outside = plan_of(flow)
    assert {b.name: b.segment for b in outside.buffers} == {"x": "io", "v0": "io"}
    inside = plan_of(flow, io_in_arena=True)
    assert [b.name for b in inside.buffers] == ["x"]
    assert inside.arena_bytes == 64


def test_in_place_waits_for_the_last_reader() -> None:
    values = (
        DataValue("x", 64, Role.INPUT),
        DataValue("a", 64, Role.ACTIVATION),
        DataValue("b", 64, Role.ACTIVATION),
        DataValue("c", 64, Role.OUTPUT),
    )
    steps = (
        Step("make", "Op", (0,), (1,)),
        Step("early", "Op", (1,), (2,), may_overwrite=((2, 1),)),
        Step("late", "Op", (1, 2), (3,), may_overwrite=((3, 1),)),
    )
    aliasing = resolve_aliases(Dataflow(values, steps, (3,)), in_place=True, io_in_arena=False)
    assert aliasing.relation == ("", "", "", "in-place")
    assert aliasing.root[3] == 1


def test_lifetimes_are_half_open() -> None:
    flow = chain([8, 8, 8])
    lives = {
        flow.values[life.root].name: (life.start, life.end)
        for life in lifetimes(flow, resolve_aliases(flow, in_place=False, io_in_arena=False))
    }
    assert lives == {"x": (0, 1), "v0": (0, 2), "v1": (1, 3), "v2": (2, 3)}


def test_live_bytes_sums_per_step() -> None:
    assert live_bytes([(0, 2, 5), (1, 3, 7)], 4) == [5, 12, 7, 0]


def test_scratch_counts_at_its_step_only() -> None:
    values = (DataValue("x", 64, Role.INPUT), DataValue("y", 64, Role.OUTPUT))
    flow = Dataflow(values, (Step("n", "Op", (0,), (1,), scratch_bytes=100),), (1,))
    plan = plan_of(flow)
    assert plan.peak_bytes == 128
    assert [(b.kind, b.bytes, b.padded_bytes) for b in plan.buffers if b.kind == "scratch"] == [
        ("scratch", 100, 128)
    ]


@pytest.mark.parametrize("block", range(8))
def test_random_dataflows_give_verified_plans(block: int) -> None:
    for seed in range(block * 250, block * 250 + 250):
        flow = random_flow(seed)
        for in_place in (False, True):
            plan = plan_of(
                flow, in_place=in_place, io_in_arena=seed % 2 == 0, alignment=(1, 64)[seed // 2 % 2]
            )
            assert plan.lower_bound_bytes <= plan.arena_bytes
            assert plan.peak_bytes <= plan.arena_bytes


def test_in_place_never_raises_the_peak() -> None:
    for seed in range(300):
        flow = random_flow(seed)
        assert plan_of(flow).peak_bytes <= plan_of(flow, in_place=False).peak_bytes


def test_json_round_trip_and_schema() -> None:
    plan = plan_of(random_flow(3))
    text = plan.to_json()
    assert MemoryPlan.from_json(text) == plan
    jsonschema.validate(json.loads(text), MemoryPlan.json_schema())


def test_csv_has_the_five_columns() -> None:
    lines = plan_of(chain([640, 1280, 320, 64])).to_csv().splitlines()
    assert lines[0] == "id,lower,upper,size,offset"
    assert lines[1].split(",")[:4] == ["v0", "0", "2", "640"]
    assert len(lines) == 4


def three_step_flow() -> Dataflow:
    values = (
        DataValue("x", 64, Role.INPUT),
        DataValue("w", 64, Role.WEIGHT),
        DataValue("a", 128, Role.ACTIVATION),
        DataValue("b", 128, Role.ACTIVATION),
        DataValue("c", 64, Role.ACTIVATION),
        DataValue("y", 64, Role.OUTPUT),
    )
    steps = (
        Step("s0", "Op", (0, 1), (2,)),
        Step("s1", "Op", (2,), (3,), scratch_bytes=64),
        Step("s2", "Op", (2, 3), (4,)),
        Step("s3", "Op", (4,), (5,)),
    )
    return Dataflow(values, steps, (5,))


def corrupt(plan: MemoryPlan, buffer: str, **changes: Any) -> MemoryPlan:
    buffers = tuple(b.model_copy(update=changes) if b.name == buffer else b for b in plan.buffers)
    return plan.model_copy(update={"buffers": buffers})


def offset_of(plan: MemoryPlan, name: str) -> int:
    return next(b.offset for b in plan.buffers if b.name == name)


CORRUPTIONS: dict[str, tuple[Callable[[MemoryPlan], MemoryPlan], str]] = {
    "offset onto a live buffer": (
        lambda p: corrupt(p, "b", offset=offset_of(p, "a")),
        "destroyed-while-read",
    ),
    "offset half over a live buffer": (
        lambda p: corrupt(p, "b", offset=64 if offset_of(p, "a") == 0 else 0),
        "destroyed-while-read",
    ),
    "misaligned": (lambda p: corrupt(p, "b", offset=offset_of(p, "b") + 1), "alignment"),
    "beyond the arena": (lambda p: corrupt(p, "b", offset=p.arena_bytes), "bounds"),
    "negative offset": (lambda p: corrupt(p, "b", offset=-64), "bounds"),
    "too small": (lambda p: corrupt(p, "b", bytes=64), "size"),
    "lifetime cut at the end": (lambda p: corrupt(p, "a", end=2), "lifetime"),
    "lifetime cut at the start": (lambda p: corrupt(p, "b", start=2), "lifetime"),
    "lifetime stretched": (lambda p: corrupt(p, "c", start=1), "figures"),
    "scratch over what is read": (
        lambda p: corrupt(p, "scratch of s1", offset=offset_of(p, "a")),
        "destroyed-while-read",
    ),
    "scratch over what is written": (
        lambda p: corrupt(p, "scratch of s1", offset=offset_of(p, "b")),
        "overlap",
    ),
    "value in no buffer": (lambda p: corrupt(p, "b", values=()), "values"),
    "peak understated": (
        lambda p: p.model_copy(update={"peak": p.peak.model_copy(update={"bytes": 1})}),
        "figures",
    ),
    "live bytes understated": (
        lambda p: p.model_copy(
            update={"steps": (p.steps[0].model_copy(update={"live_bytes": 0}), *p.steps[1:])}
        ),
        "figures",
    ),
    "steps swapped": (
        lambda p: p.model_copy(update={"steps": (p.steps[1], p.steps[0], *p.steps[2:])}),
        "steps",
    ),
    "result placed over the input": (lambda p: corrupt(p, "y", offset=offset_of(p, "x")), "owner"),
    "activation in the weights": (
        lambda p: corrupt(p, "c", segment="weights", offset=0, start=0, end=4),
        "owner",
    ),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_verifier_rejects(name: str) -> None:
    flow = three_step_flow()
    plan = plan_of(flow)
    verify_plan(plan, flow)
    change, rule = CORRUPTIONS[name]
    with pytest.raises(InvariantError) as caught:
        verify_plan(change(plan), flow)
    assert caught.value.details["rule"] == rule


def test_verifier_rejects_reuse_before_the_last_read() -> None:
    """The planner's own view of lifetimes is not trusted: a wrong alias is found by execution."""
    values = (
        DataValue("x", 64, Role.INPUT),
        DataValue("a", 64, Role.ACTIVATION),
        DataValue("b", 64, Role.ACTIVATION),
        DataValue("y", 64, Role.OUTPUT),
    )
    steps = (
        Step("s0", "Op", (0,), (1,)),
        Step("s1", "Op", (1,), (2,), may_overwrite=((2, 1),)),
        Step("s2", "Op", (1, 2), (3,)),
    )
    flow = Dataflow(values, steps, (3,))
    plan = plan_of(flow)
    merged = next(b for b in plan.buffers if b.name == "a")
    other = next(b for b in plan.buffers if b.name == "b")
    joined = merged.model_copy(update={"values": merged.values + other.values, "end": 3})
    buffers = tuple(joined if b is merged else b for b in plan.buffers if b is not other)
    with pytest.raises(InvariantError) as caught:
        verify_plan(plan.model_copy(update={"buffers": buffers}), flow)
    assert caught.value.details["rule"] == "clobbered"


def test_dataflow_refuses_what_is_not_valid() -> None:
    values = (DataValue("a", 1, Role.ACTIVATION), DataValue("b", 1, Role.ACTIVATION))
    with pytest.raises(InvariantError, match="too early"):
        Dataflow(values, (Step("s", "Op", (1,), (0,)), Step("t", "Op", (0,), (1,))), ())
    with pytest.raises(InvariantError, match="written twice"):
        Dataflow(values, (Step("s", "Op", (), (0, 1)), Step("t", "Op", (), (1,))), ())
    with pytest.raises(InvariantError, match="nobody writes"):
        Dataflow(values, (Step("s", "Op", (), (0,)),), ())
    with pytest.raises(InvariantError, match="does not touch"):
        Dataflow(values[:1], (Step("s", "Op", (), (0,), may_overwrite=((0, 0),)),), ())
