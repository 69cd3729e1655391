"""Streamed weights: two sets in the arena at a time, whatever the number of layers."""

from graphopt.memory.dataflow import Dataflow, DataValue, Role, Step
from graphopt.memory.streaming import stream_weights
from tests.memory.flows import plan_of, random_flow


def layers(sizes: list[int]) -> Dataflow:
    """A chain of 64-byte activations; layer i reads a weight of sizes[i] bytes."""
    values = [DataValue("x", 64, Role.INPUT)]
    values += [DataValue(f"w{i}", size, Role.WEIGHT) for i, size in enumerate(sizes)]
    steps = []
    before = 0
    for number in range(len(sizes)):
        role = Role.OUTPUT if number == len(sizes) - 1 else Role.ACTIVATION
        values.append(DataValue(f"a{number}", 64, role))
        steps.append(Step(f"n{number}", "Conv", (before, number + 1), (len(values) - 1,)))
        before = len(values) - 1
    return Dataflow(tuple(values), tuple(steps), (before,))


def test_two_neighbouring_weights_are_in_the_arena_at_a_time() -> None:
    plan = plan_of(stream_weights(layers([640, 1280, 320, 960])))
    # While layer 0 runs, its weight and the next are there, and its output (the input is outside).
    assert plan.peak_bytes == 640 + 1280 + 64
    assert plan.arena_pool.weight_bytes == 640 + 1280 + 320 + 960
    assert [step.op for step in plan.steps].count("Stream") == 4


def test_loads_come_one_step_ahead() -> None:
    names = [step.name for step in stream_weights(layers([64, 64, 64])).steps]
    assert names == [
        "stream w0 for n0",
        "stream w1 for n1",
        "n0",
        "stream w2 for n2",
        "n1",
        "n2",
    ]


def test_random_flows_stay_proven() -> None:
    for seed in range(200):
        plan_of(stream_weights(random_flow(seed)))
