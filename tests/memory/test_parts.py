"""Concat and Split without copies: figures by hand, and the limits of the permission."""

import pytest

from graphopt.errors import InvariantError
from graphopt.memory.aliasing import resolve_aliases
from graphopt.memory.dataflow import Dataflow, DataValue, Role, Step
from graphopt.memory.parts import place_parts
from graphopt.memory.plan import MemoryPlan
from graphopt.memory.verify_plan import verify_plan
from tests.memory.flows import plan_of, random_flow


def activation(name: str, size: int) -> DataValue:
    return DataValue(name, size, Role.ACTIVATION)


def concat_flow(*, late_reader: bool = False, overwrite: bool = False) -> Dataflow:
    """Two pieces from the input, joined, then used by a last step."""
    values = (
        DataValue("x", 64, Role.INPUT),
        activation("a", 256),
        activation("b", 128),
        activation("joint", 384),
        activation("z", 384),
        DataValue("y", 64, Role.OUTPUT),
    )
    use = Step("use", "Relu", (3,), (4,), may_overwrite=((4, 3),) if overwrite else ())
    last = Step("last", "Op", (4, 1) if late_reader else (4,), (5,))
    steps = (
        Step("make a", "Op", (0,), (1,)),
        Step("make b", "Op", (0,), (2,)),
        Step("concat", "Concat", (1, 2), (3,), joins=((3, 1, 0), (3, 2, 256))),
        use,
        last,
    )
    return Dataflow(values, steps, (5,))


def place_of(plan: MemoryPlan, name: str) -> tuple[str, int, str]:
    for buffer in plan.buffers:
        for alias in buffer.values:
            if alias.value == name:
                return buffer.name, buffer.offset + alias.offset, alias.relation
    raise AssertionError(name)


def test_pieces_are_written_into_the_joint_buffer() -> None:
    plan = plan_of(concat_flow(overwrite=True))
    assert plan.arena_bytes == 384, "the joint buffer is all there is"
    joint, start, _ = place_of(plan, "joint")
    assert place_of(plan, "a") == (joint, start, "part")
    assert place_of(plan, "b") == (joint, start + 256, "part")
    assert place_of(plan, "z") == (joint, start, "in-place")


def test_no_join_when_the_joint_buffer_is_overwritten_before_the_piece_is_dead() -> None:
    flow = concat_flow(late_reader=True, overwrite=True)
    plan = plan_of(flow)
    assert place_of(plan, "a")[2] == "", "'a' is read after 'z' is written over 'joint'"
    assert place_of(plan, "b")[2] == "part"


def test_no_join_at_an_offset_that_is_not_aligned() -> None:
    values = list(concat_flow(overwrite=True).values)
    values[1], values[3], values[4] = (
        activation("a", 100),
        activation("joint", 228),
        activation("z", 228),
    )
    steps = list(concat_flow(overwrite=True).steps)
    steps[2] = Step("concat", "Concat", (1, 2), (3,), joins=((3, 1, 0), (3, 2, 100)))
    flow = Dataflow(tuple(values), tuple(steps), (5,))
    assert place_of(plan_of(flow), "b")[2] == ""
    assert place_of(plan_of(flow, alignment=4), "b")[2] == "part"


def test_an_input_is_never_moved_into_a_joint_buffer() -> None:
    values = (DataValue("x", 64, Role.INPUT), activation("j", 128), DataValue("y", 64, Role.OUTPUT))
    concat = Step("concat", "Concat", (0,), (1,), joins=((1, 0, 0),))
    flow = Dataflow(values, (concat, Step("last", "Op", (1,), (2,))), (2,))
    assert place_of(plan_of(flow), "x") == ("x", 0, "")


def test_dense_chain_shares_one_buffer() -> None:
    """Each layer adds 64 bytes to all before it; without joins the last step holds all twice."""
    layers = 6
    values = [DataValue("x", 64, Role.INPUT), activation("c0", 64)]
    steps = [Step("first", "Op", (0,), (1,))]
    before = 1
    for layer in range(layers):
        size = values[before].size_bytes
        fresh, joint = len(values), len(values) + 1
        values += [activation(f"n{layer}", 64), activation(f"c{layer + 1}", size + 64)]
        steps.append(Step(f"layer {layer}", "Conv", (before,), (fresh,)))
        joins = ((joint, before, 0), (joint, fresh, size))
        steps.append(Step(f"concat {layer}", "Concat", (before, fresh), (joint,), joins=joins))
        before = joint
    values.append(DataValue("y", 64, Role.OUTPUT))
    steps.append(Step("last", "Op", (before,), (len(values) - 1,)))
    flow = Dataflow(tuple(values), tuple(steps), (len(values) - 1,))
    total = 64 * (layers + 1)
    assert plan_of(flow).arena_bytes == total
    assert plan_of(flow, in_place=False).arena_bytes == 2 * total


def test_split_outputs_stay_in_the_input() -> None:
    values = (
        DataValue("x", 64, Role.INPUT),
        activation("w", 512),
        activation("l", 256),
        activation("r", 256),
        DataValue("y", 64, Role.OUTPUT),
    )
    steps = (
        Step("make", "Op", (0,), (1,)),
        Step("split", "Split", (1,), (2, 3), cuts=((2, 1, 0), (3, 1, 256))),
        Step("last", "Op", (2, 3), (4,)),
    )
    flow = Dataflow(values, steps, (4,))
    assert plan_of(flow).arena_bytes == 512
    assert plan_of(flow, in_place=False).arena_bytes == 1024


def test_a_small_slice_does_not_keep_a_large_buffer_alive() -> None:
    values = (
        DataValue("x", 64, Role.INPUT),
        activation("large", 6400),
        activation("slice", 64),
        activation("other", 6400),
        DataValue("y", 64, Role.OUTPUT),
    )
    steps = (
        Step("make", "Op", (0,), (1,)),
        Step("slice", "Slice", (1,), (2,), cuts=((2, 1, 0),)),
        Step("more", "Op", (0,), (3,)),
        Step("last", "Op", (2, 3), (4,)),
    )
    plan = plan_of(Dataflow(values, steps, (4,)))
    assert place_of(plan, "slice")[2] == ""
    assert plan.peak_bytes == 6464


@pytest.mark.parametrize("block", range(4))
def test_parts_never_raise_the_peak_and_are_really_used(block: int) -> None:
    used = 0
    for seed in range(block * 250, block * 250 + 250):
        flow = random_flow(seed, most_steps=20)
        plain = resolve_aliases(flow, in_place=True, io_in_arena=False)
        placed = place_parts(flow, plain, alignment=1, io_in_arena=False)
        used += "part" in placed.relation
        assert (
            plan_of(flow, alignment=1).arena_bytes <= plan_of(flow, alignment=1).naive_bytes + 1000
        )
    assert used > 50


def test_verifier_rejects_a_piece_at_the_wrong_place() -> None:
    flow = concat_flow(overwrite=True)
    plan = plan_of(flow)
    (joint,) = [b for b in plan.buffers if b.name == "joint"]
    values = tuple(
        a.model_copy(update={"offset": 192}) if a.value == "b" else a for a in joint.values
    )
    moved = joint.model_copy(update={"values": values})
    buffers = tuple(moved if b is joint else b for b in plan.buffers)
    with pytest.raises(InvariantError) as caught:
        verify_plan(plan.model_copy(update={"buffers": buffers}), flow)
    assert caught.value.details["rule"] in ("clobbered", "destroyed-while-read")


def test_verifier_rejects_a_join_that_is_overwritten_too_early() -> None:
    good = concat_flow(overwrite=True)
    plan = plan_of(good)
    with pytest.raises(InvariantError) as caught:
        verify_plan(plan, concat_flow(late_reader=True, overwrite=True))
    assert caught.value.details["rule"] == "clobbered"
