"""Check a MemoryPlan by running its steps over a map of who owns which bytes.

Shares no code with what makes a plan: it trusts neither its lifetimes nor its aliases. For each
pool segment it keeps the intervals of bytes that hold an intact value. A step may read a value
only where all its bytes are still intact, a write takes its bytes from whatever was there, and at
the end all results must be intact. What a write may destroy while the step still reads it is only
what the dataflow permits (``view_of``, ``may_overwrite``), over exactly the same bytes. On top of
that the figures of the plan (peak, arena, live bytes, totals) are recomputed from its buffers.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from typing import NoReturn

from graphopt.errors import InvariantError
from graphopt.memory.dataflow import Dataflow, Role, Step
from graphopt.memory.plan import MemoryPlan, PlannedBuffer


def _reject(rule: str, text: str) -> NoReturn:
    raise InvariantError("plan-invalid", f"{rule}: {text}", details={"rule": rule})


def verify_plan(plan: MemoryPlan, flow: Dataflow) -> None:
    """Accept ``plan`` for ``flow`` or say which rule it breaks. O(n log n + bytes map changes).

    Raises:
        InvariantError: code ``plan-invalid``; ``details["rule"]`` is one of ``steps``, ``values``,
            ``size``, ``alignment``, ``bounds``, ``lifetime``, ``owner``, ``overlap``,
            ``clobbered``, ``destroyed-while-read``, ``result-lost``, ``figures``.
    """
    home = _homes(plan, flow)
    _check_geometry(plan)
    _run(plan, flow, home)
    _check_figures(plan)


def _homes(plan: MemoryPlan, flow: Dataflow) -> list[PlannedBuffer]:
    """Return the buffer of every value, after checking that each value has exactly one."""
    if [s.node for s in plan.steps] != [s.name for s in flow.steps]:
        _reject("steps", "the plan does not run the steps of the dataflow in its order")
    by_name: dict[str, PlannedBuffer] = {}
    for buffer in plan.buffers:
        for alias in buffer.values:
            if alias.value in by_name:
                _reject("values", f"'{alias.value}' lies in two buffers")
            by_name[alias.value] = buffer
    home = []
    for value in flow.values:
        found = by_name.get(value.name)
        if found is None:
            _reject("values", f"'{value.name}' has no buffer")
        if value.size_bytes > found.bytes or found.bytes > found.padded_bytes:
            _reject(
                "size",
                f"'{value.name}' needs {value.size_bytes} bytes, "
                f"its buffer has {found.bytes} ({found.padded_bytes} padded)",
            )
        home.append(found)
    if len(by_name) != len(flow.values):
        _reject("values", "the plan holds values that the dataflow does not know")
    return home


def _check_geometry(plan: MemoryPlan) -> None:
    pools = {pool.name: pool for pool in plan.pools}
    for buffer in plan.buffers:
        pool = pools.get(buffer.pool)
        if pool is None:
            _reject("bounds", f"'{buffer.name}' lies in pool '{buffer.pool}', which is not there")
        if buffer.offset % pool.alignment or buffer.padded_bytes % pool.alignment:
            _reject("alignment", f"'{buffer.name}' at {buffer.offset}, alignment {pool.alignment}")
        size = {
            "arena": pool.arena_bytes,
            "weights": pool.weight_bytes,
            "io": pool.io_bytes,
        }[buffer.segment]
        if buffer.offset < 0 or buffer.offset + buffer.padded_bytes > size:
            _reject(
                "bounds",
                f"'{buffer.name}' ends at {buffer.offset + buffer.padded_bytes}, "
                f"{buffer.segment} of '{buffer.pool}' has {size} bytes",
            )
        if not 0 <= buffer.start < buffer.end <= max(1, len(plan.steps)):
            _reject("lifetime", f"'{buffer.name}' is alive [{buffer.start}, {buffer.end})")


@dataclass
class _ByteMap:
    """Intact values of one segment, as disjoint intervals sorted by start."""

    starts: list[tuple[int, int, int]] = field(default_factory=list)  # (start, end, content)

    def take(self, start: int, end: int) -> list[int]:
        """Free ``[start, end)`` and return the contents that were destroyed."""
        destroyed = []
        at = bisect_left(self.starts, (start, -1, -1))
        if at and self.starts[at - 1][1] > start:
            at -= 1
        while at < len(self.starts) and self.starts[at][0] < end:
            destroyed.append(self.starts.pop(at)[2])
        return destroyed

    def put(self, start: int, end: int, content: int) -> None:
        insort(self.starts, (start, end, content))

    def holds(self, start: int, end: int, content: int) -> bool:
        at = bisect_left(self.starts, (start, end, content))
        return at < len(self.starts) and self.starts[at] == (start, end, content)


def _run(plan: MemoryPlan, flow: Dataflow, home: list[PlannedBuffer]) -> None:
    machine = _Machine(flow, home)
    machine.load()
    scratch = [b for b in plan.buffers if b.kind == "scratch"]
    scratch_at: dict[int, PlannedBuffer] = {b.start: b for b in scratch}
    if len(scratch_at) != len(scratch):
        _reject("values", "a step has two scratch buffers")
    for number, step in enumerate(flow.steps):
        machine.step(number, step, scratch_at.get(number))
    machine.finish()


class _Machine:
    """Executes steps over byte maps; the content of a view is that of its source."""

    def __init__(self, flow: Dataflow, home: list[PlannedBuffer]) -> None:
        self.flow = flow
        self.home = home
        self.maps: dict[tuple[str, str], _ByteMap] = {}
        self.content = list(range(len(flow.values)))

    def _map(self, buffer: PlannedBuffer) -> _ByteMap:
        return self.maps.setdefault((buffer.pool, buffer.segment), _ByteMap())

    def _span(self, value: int) -> tuple[int, int]:
        offset = self.home[value].offset
        return offset, offset + self.flow.values[value].size_bytes

    def load(self) -> None:
        """Put what comes from outside in place; none of it may overlap."""
        for value, facts in enumerate(self.flow.values):
            if self.flow.writer(value) is not None or not facts.size_bytes:
                continue
            start, end = self._span(value)
            if self._map(self.home[value]).take(start, end):
                _reject("overlap", f"'{facts.name}' overlaps another input or weight")
            self._map(self.home[value]).put(start, end, value)
            self._alive(value, 0)

    def _alive(self, value: int, number: int) -> None:
        buffer = self.home[value]
        if not buffer.start <= number < buffer.end:
            _reject(
                "lifetime",
                f"'{self.flow.values[value].name}' is used at step {number}, "
                f"its buffer is alive [{buffer.start}, {buffer.end})",
            )

    def _require(self, value: int, number: int, rule: str) -> None:
        facts = self.flow.values[value]
        if not facts.size_bytes:
            return
        start, end = self._span(value)
        if not self._map(self.home[value]).holds(start, end, self.content[value]):
            _reject(rule, f"'{facts.name}' is not intact at step {number}")
        self._alive(value, number)

    def step(self, number: int, step: Step, scratch: PlannedBuffer | None) -> None:
        """Read, then write; what is destroyed while read must be permitted."""
        for value in step.reads:
            self._require(value, number, "clobbered")
        permitted: dict[int, set[int]] = {}
        for written, read in step.may_overwrite:
            permitted.setdefault(written, set()).add(self.content[read])
        reading = {self.content[value] for value in step.reads}
        if step.scratch_bytes:
            self._use_scratch(step, scratch, reading)
        views = dict(step.view_of)
        fresh: set[int] = set()
        for value in step.writes:
            facts = self.flow.values[value]
            self._alive(value, number)
            if not facts.size_bytes:
                continue
            source = views.get(value)
            if source is not None and self.home[source] is self.home[value]:
                if self._span(source) != self._span(value):
                    _reject("overlap", f"view '{facts.name}' is not where its source is")
                self.content[value] = self.content[source]
                continue
            if self.home[value].segment == "weights":
                _reject("owner", f"'{facts.name}' is written into the weights")
            self._write(value, number, permitted.get(value, set()), reading, fresh)
            fresh.add(value)

    def _write(
        self, value: int, number: int, permitted: set[int], reading: set[int], fresh: set[int]
    ) -> None:
        name = self.flow.values[value].name
        start, end = self._span(value)
        where = self._map(self.home[value])
        before = {content: where.holds(start, end, content) for content in permitted}
        for destroyed in where.take(start, end):
            if destroyed in fresh:
                _reject("overlap", f"step {number} writes '{name}' over another of its outputs")
            if destroyed in reading and not before.get(destroyed, False):
                lost = self.flow.values[destroyed].name
                _reject("destroyed-while-read", f"step {number} writes '{name}' over '{lost}'")
            facts = self.flow.values[destroyed]
            foreign = self.flow.writer(destroyed) is None and self.home[destroyed].segment == "io"
            if facts.role is Role.WEIGHT or foreign:
                _reject("owner", f"'{name}' overwrites '{facts.name}', which the caller owns")
        where.put(start, end, value)

    def _use_scratch(self, step: Step, scratch: PlannedBuffer | None, reading: set[int]) -> None:
        if scratch is None or scratch.bytes < step.scratch_bytes:
            _reject("size", f"step '{step.name}' has no scratch of {step.scratch_bytes} bytes")
        start, end = scratch.offset, scratch.offset + scratch.bytes
        for destroyed in self._map(scratch).take(start, end):
            if destroyed in reading:
                lost = self.flow.values[destroyed].name
                _reject("destroyed-while-read", f"scratch of '{step.name}' lies over '{lost}'")
        for value in step.writes:
            buffer = self.home[value]
            if (buffer.pool, buffer.segment) != (scratch.pool, scratch.segment):
                continue
            first, last = self._span(value)
            if first < end and start < last:
                _reject("overlap", f"scratch of '{step.name}' lies over one of its outputs")

    def finish(self) -> None:
        """Every result is intact."""
        last = max(0, len(self.flow.steps) - 1)
        for value in self.flow.results:
            self._require(value, last, "result-lost")


def _check_figures(plan: MemoryPlan) -> None:
    count = len(plan.steps)
    events: list[tuple[int, int]] = []
    for buffer in plan.buffers:
        if buffer.segment == "arena":
            events += [(buffer.start, buffer.padded_bytes), (buffer.end, -buffer.padded_bytes)]
    events.sort()
    at = live = 0
    for number in range(count):
        while at < len(events) and events[at][0] <= number:
            live += events[at][1]
            at += 1
        if plan.steps[number].live_bytes != live:
            _reject("figures", f"step {number} holds {live} bytes, the plan says otherwise")
    peak = max((step.live_bytes for step in plan.steps), default=0)
    if plan.peak.bytes != peak:
        _reject("figures", f"the peak is {peak} bytes, the plan says {plan.peak.bytes}")
    for pool in plan.pools:
        parts = pool.arena_bytes + pool.weight_bytes + pool.io_bytes
        if parts != pool.total_bytes:
            _reject("figures", f"pool '{pool.name}' does not add up")
        if not pool.lower_bound_bytes <= pool.arena_bytes:
            _reject("figures", f"pool '{pool.name}' is below its lower bound")
