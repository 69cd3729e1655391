"""Dataflows for which the order of the steps matters: cells, random wirings, branches, trees."""

import random
from collections.abc import Iterable, Sequence

import networkx

from graphopt.memory.dataflow import Dataflow, DataValue, Role, Step


class FlowBuilder:
    """Appends steps with one output each; ``x`` is the input, which belongs to the caller."""

    def __init__(self) -> None:
        self.values = [DataValue("x", 1, Role.INPUT)]
        self.steps: list[Step] = []
        self.x = 0

    def op(self, reads: Iterable[int], size: int = 1) -> int:
        """Append a step and return its output."""
        number, written = len(self.steps), len(self.values)
        self.values.append(DataValue(f"v{number}", size, Role.ACTIVATION, producer=f"s{number}"))
        self.steps.append(Step(f"s{number}", "Op", tuple(dict.fromkeys(reads)), (written,)))
        return written

    def separable(self, source: int) -> int:
        """Append the four convolutions of a separable operation of a searched cell."""
        for _ in range(4):
            source = self.op([source])
        return source

    def flow(self, results: Sequence[int]) -> Dataflow:
        """Return the dataflow; ``results`` are intact at the end and count."""
        return Dataflow(tuple(self.values), tuple(self.steps), tuple(results))


def nasnet_cells(cells: int = 6) -> Dataflow:
    """Normal cells of NASNet-A, one unit per value and six per output of a cell; no in-place."""
    b = FlowBuilder()
    before = previous = b.op([b.x])
    for _ in range(cells):
        h0, h1 = b.op([before]), b.op([previous])
        nodes = [
            h0,
            b.op([b.separable(h1), h1]),
            b.op([b.separable(h0), b.separable(h1)]),
            b.op([b.op([h1]), h0]),
            b.op([b.op([h0]), b.op([h0])]),
            b.op([b.separable(h0), b.separable(h0)]),
        ]
        before, previous = previous, b.op(nodes, 6)
    return b.flow([b.op([b.op([previous])])])


def darts_cells(cells: int = 6) -> Dataflow:
    """Normal cells of DARTS, one unit per value and four per output of a cell; no in-place."""
    b = FlowBuilder()
    before = previous = b.op([b.x])
    for _ in range(cells):
        h0, h1 = b.op([before]), b.op([previous])
        n2 = b.op([b.separable(h0), b.separable(h1)])
        n3 = b.op([b.separable(h0), b.separable(h1)])
        n4 = b.op([b.separable(h1), h0])
        n5 = b.op([h0, b.op([b.op([n2])])])
        before, previous = previous, b.op([n2, n3, n4, n5], 4)
    return b.flow([b.op([b.op([previous])])])


def randwire(nodes: int, seed: int, stages: int = 1) -> Dataflow:
    """Stages of Watts-Strogatz graphs WS(nodes, 4, 0.75), one unit per value."""
    b = FlowBuilder()
    source = b.op([b.x])
    for stage in range(stages):
        graph = networkx.connected_watts_strogatz_graph(nodes, 4, 0.75, seed=seed * stages + stage)
        made: list[int] = []
        read: set[int] = set()
        for node in range(nodes):
            sources = sorted(other for other in graph.neighbors(node) if other < node)
            read.update(sources)
            made.append(b.op([made[other] for other in sources] or [source]))
        source = b.op(value for node, value in enumerate(made) if node not in read)
    return b.flow([source])


def breadth_first_branches(branches: int = 6) -> Dataflow:
    """Branches that expand, work in place and collapse, all in step: the worst order."""
    b = FlowBuilder()
    stem = b.op([b.x], 32)
    wide = [b.op([stem], 128) for _ in range(branches)]
    work = [b.op([value], 128) for value in wide]
    b.steps[-branches:] = [
        Step(s.name, "Sigmoid", s.reads, s.writes, may_overwrite=((s.writes[0], s.reads[0]),))
        for s in b.steps[-branches:]
    ]
    narrow = [b.op([value], 2) for value in work]
    return b.flow([b.op(narrow, 2 * branches)])


def random_tree(steps: int, seed: int) -> Dataflow:
    """An in-tree: every value has one reader, the last step reads all that are left."""
    rng = random.Random(seed)
    b = FlowBuilder()
    unread: list[int] = []
    for number in range(steps):
        count = len(unread) if number == steps - 1 else rng.choice([0, 0, 1, 1, 2, 3])
        rng.shuffle(unread)
        reads = [unread.pop() for _ in range(min(count, len(unread)))]
        unread.append(b.op(reads or [b.x], rng.randint(1, 50)))
    return b.flow(unread)


def random_local(steps: int, window: int, seed: int) -> Dataflow:
    """Every step reads up to three of the ``window`` values before it; then it is shuffled."""
    rng = random.Random(seed)
    b = FlowBuilder()
    made = [b.op([b.x], 8)]
    for _ in range(steps - 2):
        recent = range(max(0, len(made) - window), len(made))
        reads = rng.sample(recent, min(rng.randint(1, 3), len(recent)))
        made.append(b.op([made[r] for r in reads], rng.choice([1, 2, 4, 8, 16, 32, 64])))
    flow = b.flow([b.op([made[-1]])])
    return flow.reordered(random_order(flow, rng))


def predecessors(flow: Dataflow) -> list[set[int]]:
    """Return the steps that each step reads from."""
    found = []
    for step in flow.steps:
        writers = (flow.writer(value) for value in step.reads)
        found.append({writer for writer in writers if writer is not None})
    return found


def random_order(flow: Dataflow, rng: random.Random) -> list[int]:
    """Return a random valid order of the steps."""
    preds = predecessors(flow)
    readers: list[list[int]] = [[] for _ in preds]
    for step, before in enumerate(preds):
        for pred in before:
            readers[pred].append(step)
    missing = [len(before) for before in preds]
    ready = [step for step, count in enumerate(missing) if not count]
    order = []
    while ready:
        place = rng.randrange(len(ready))
        ready[place], ready[-1] = ready[-1], ready[place]
        order.append(ready.pop())
        for reader in readers[order[-1]]:
            missing[reader] -= 1
            if not missing[reader]:
                ready.append(reader)
    return order


def all_orders(flow: Dataflow, most: int) -> list[tuple[int, ...]] | None:
    """Return every valid order of the steps; None when there are more than ``most``."""
    preds = predecessors(flow)
    found: list[tuple[int, ...]] = []
    pending: list[tuple[int, ...]] = [()]
    while pending:
        order = pending.pop()
        if len(order) == len(preds):
            found.append(order)
        if len(found) > most:
            return None
        done = set(order)
        pending += [(*order, s) for s, p in enumerate(preds) if s not in done and p <= done]
    return found
