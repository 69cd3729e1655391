"""Random and hand-made dataflows for the tests of the memory core."""

import random

from graphopt.memory.dataflow import Dataflow, DataValue, Role, Step
from graphopt.memory.placing import Rules
from graphopt.memory.plan import MemoryPlan, ModelFacts
from graphopt.memory.planning import assemble
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
    """A random valid dataflow with every kind of alias, weights, scratch and results."""
    rng = random.Random(seed)
    values = [DataValue(f"in{i}", rng.choice([0, 1, 5, 64]), Role.INPUT) for i in range(2)]
    values += [DataValue(f"w{i}", rng.choice([1, 7, 128]), Role.WEIGHT) for i in range(2)]
    maker = _Maker(rng, values)
    for number in range(rng.randrange(1, most_steps)):
        rng.choice([maker.plain, maker.plain, maker.plain, maker.join, maker.cut])(number)
    handed_on = {v for s in maker.steps for pair in s.view_of for v in pair}
    candidates = [v for s in maker.steps for v in s.writes if v not in handed_on]
    results = tuple(sorted(rng.sample(candidates, min(len(candidates), rng.randrange(0, 3)))))
    for value in results:
        old = values[value]
        values[value] = DataValue(old.name, old.size_bytes, Role.OUTPUT, producer=old.producer)
    return Dataflow(tuple(values), tuple(maker.steps), results)


class _Maker:
    """Appends random steps."""

    def __init__(self, rng: random.Random, values: list[DataValue]) -> None:
        self.rng = rng
        self.values = values
        self.steps: list[Step] = []

    def _reads(self, most: int) -> tuple[int, ...]:
        count = min(len(self.values), self.rng.randrange(1, most + 1))
        return tuple(sorted(self.rng.sample(range(len(self.values)), count)))

    def _new(self, number: int, port: int, size: int) -> int:
        name = f"t{number}_{port}"
        self.values.append(DataValue(name, size, Role.ACTIVATION, producer=f"s{number}"))
        return len(self.values) - 1

    def plain(self, number: int) -> None:
        """One or two outputs, each new, a view, or allowed over an input; scratch at times."""
        reads = self._reads(3)
        writes, views, overwrites = [], [], []
        for port in range(self.rng.choice([1, 1, 1, 2])):
            source = self.rng.choice(reads)
            kind = self.rng.choice(["plain", "plain", "view", "in-place", "in-place"])
            size = self.rng.choice([1, 3, 8, 64, 128, 0])
            if kind != "plain":
                size = self.values[source].size_bytes
            written = self._new(number, port, size)
            writes.append(written)
            if kind == "view":
                views.append((written, source))
            elif kind == "in-place":
                overwrites.append((written, source))
        self.steps.append(
            Step(
                f"s{number}",
                "Op",
                reads,
                tuple(writes),
                view_of=tuple(views),
                may_overwrite=tuple(overwrites),
                scratch_bytes=self.rng.choice([0, 0, 0, 10]),
            )
        )

    def join(self, number: int) -> None:
        """An output made of its inputs in a row."""
        reads = self._reads(3)
        offset, joins = 0, []
        written = len(self.values)
        for read in reads:
            joins.append((written, read, offset))
            offset += self.values[read].size_bytes
        self._new(number, 0, offset)
        self.steps.append(Step(f"s{number}", "Concat", reads, (written,), joins=tuple(joins)))

    def cut(self, number: int) -> None:
        """Two outputs that are the halves of the input."""
        (read,) = self._reads(1)
        size = self.values[read].size_bytes
        half = size // 2
        first = self._new(number, 0, half)
        second = self._new(number, 1, size - half)
        cuts = ((first, read, 0), (second, read, half))
        self.steps.append(Step(f"s{number}", "Split", (read,), (first, second), cuts=cuts))


def plan_of(
    flow: Dataflow, *, in_place: bool = True, io_in_arena: bool = False, alignment: int = 64
) -> MemoryPlan:
    """The verified plan of ``flow`` on the target ``cpu`` at another alignment."""
    cpu = resolve_target("cpu")
    pools = tuple(pool.model_copy(update={"alignment": alignment}) for pool in cpu.pools)
    target = cpu.model_copy(update={"pools": pools})
    return assemble(FACTS, target, flow, Rules(alignment, in_place, io_in_arena), "greedy")
