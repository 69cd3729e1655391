"""Random and hand-made dataflows for the tests of the memory core."""

import random

from graphopt.memory.dataflow import Dataflow, DataValue, Role, Step
from graphopt.memory.plan import MemoryPlan, ModelFacts
from graphopt.memory.planning import Rules, assemble
from graphopt.targets.loader import resolve_target

FACTS = ModelFacts(
    name="test", sha256="", opset=0, nodes=0, inputs={}, outputs={}, bindings={}, bounds={}
)


def chain(sizes: list[int], *, in_place: bool = False) -> Dataflow:
    """An input, then one value per size, each made from the one before; the last is a result."""
    values = [DataValue("x", 16, Role.INPUT)]
    steps = []
    for number, size in enumerate(sizes):
        role = Role.OUTPUT if number == len(sizes) - 1 else Role.ACTIVATION
        values.append(DataValue(f"v{number}", size, role, producer=f"n{number}"))
        pair = ((number + 1, number),) if in_place else ()
        steps.append(Step(f"n{number}", "Op", (number,), (number + 1,), may_overwrite=pair))
    return Dataflow(tuple(values), tuple(steps), (len(sizes),))


def random_flow(seed: int, most_steps: int = 14) -> Dataflow:
    """A random valid dataflow with views, in-place permissions, weights, scratch and results."""
    rng = random.Random(seed)
    values = [DataValue(f"in{i}", rng.choice([0, 1, 5, 64]), Role.INPUT) for i in range(2)]
    values += [DataValue(f"w{i}", rng.choice([1, 7, 100]), Role.WEIGHT) for i in range(2)]
    steps: list[Step] = []
    last = rng.randrange(1, most_steps)
    writers: dict[int, str] = {}
    for number in range(last):
        count = min(len(values), rng.randrange(1, 4))
        reads = tuple(sorted(rng.sample(range(len(values)), count)))
        writes, views, overwrites = [], [], []
        for port in range(rng.choice([1, 1, 1, 2])):
            source = rng.choice(reads)
            kind = rng.choice(["plain", "plain", "view", "in-place"])
            size = rng.choice([1, 3, 8, 64, 100, 0])
            if kind != "plain":
                size = values[source].size_bytes
            written = len(values)
            values.append(
                DataValue(f"t{number}_{port}", size, Role.ACTIVATION, producer=f"s{number}")
            )
            writers[written] = f"s{number}"
            writes.append(written)
            # A view of an input or weight that becomes a result is excluded by the builder; here
            # results are only chosen among values that opened their buffer.
            if kind == "view":
                views.append((written, source))
            elif kind == "in-place":
                overwrites.append((written, source))
        scratch = rng.choice([0, 0, 0, 10])
        steps.append(
            Step(f"s{number}", "Op", reads, tuple(writes), tuple(views), tuple(overwrites), scratch)
        )
    viewed = {v for s in steps for pair in s.view_of for v in pair}
    candidates = [v for v in writers if v not in viewed]
    results = tuple(sorted(rng.sample(candidates, min(len(candidates), rng.randrange(0, 3)))))
    for value in results:
        old = values[value]
        values[value] = DataValue(old.name, old.size_bytes, Role.OUTPUT, producer=old.producer)
    return Dataflow(tuple(values), tuple(steps), results)


def plan_of(flow: Dataflow, *, in_place: bool = True, io_in_arena: bool = False) -> MemoryPlan:
    """The verified plan of ``flow`` on the target ``cpu``, alignment 64."""
    return assemble(FACTS, resolve_target("cpu"), flow, Rules(64, in_place, io_in_arena), "greedy")
