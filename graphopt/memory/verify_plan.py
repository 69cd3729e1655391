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
    inner: dict[str, int] = {}
    for buffer in plan.buffers:
        for alias in buffer.values:
            if alias.value in by_name:
                _reject("values", f"'{alias.value}' lies in two buffers")
            if alias.offset < 0:
                _reject("bounds", f"'{alias.value}' starts before its buffer")
            by_name[alias.value] = buffer
            inner[alias.value] = alias.offset
    home = []
    for value in flow.values:
        found = by_name.get(value.name)
        if found is None:
            _reject("values", f"'{value.name}' has no buffer")
        needed = inner[value.name] + value.size_bytes
        if needed > found.bytes or found.bytes > found.padded_bytes:
            _reject(
                "size",
                f"'{value.name}' needs {needed} bytes, "
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


# A run of bytes that is intact: (start, end, origin, first byte of the origin). The origin is the
# value whose writer put the bytes there; a view, a cut or a join hands them on under another
# name.
_Run = tuple[int, int, int, int]


@dataclass
class _ByteMap:
    """The intact runs of one segment, disjoint, sorted by start."""

    runs: list[_Run] = field(default_factory=list)

    def _first(self, start: int) -> int:
        at = bisect_left(self.runs, (start, -1, -1, -1))
        return at - 1 if at and self.runs[at - 1][1] > start else at

    def inside(self, start: int, end: int) -> list[_Run]:
        """Return what is intact in ``[start, end)``, cut to it."""
        found = []
        at = self._first(start)
        while at < len(self.runs) and self.runs[at][0] < end:
            low, high, origin, first = self.runs[at]
            cut_low, cut_high = max(low, start), min(high, end)
            found.append((cut_low, cut_high, origin, first + cut_low - low))
            at += 1
        return found

    def take(self, start: int, end: int) -> list[_Run]:
        """Free ``[start, end)`` and return what was destroyed there."""
        destroyed = self.inside(start, end)
        at = self._first(start)
        while at < len(self.runs) and self.runs[at][0] < end:
            low, high, origin, first = self.runs.pop(at)
            if low < start:
                self.runs.insert(at, (low, start, origin, first))
                at += 1
            if high > end:
                self.runs.insert(at, (end, high, origin, first + end - low))
                at += 1
        return destroyed

    def put(self, run: _Run) -> None:
        """Mark a free run as intact."""
        insort(self.runs, run)


def _run(plan: MemoryPlan, flow: Dataflow, home: list[PlannedBuffer]) -> None:
    scratch = [b for b in plan.buffers if b.kind == "scratch"]
    scratch_at = {b.start: b for b in scratch}
    if len(scratch_at) != len(scratch):
        _reject("values", "a step has two scratch buffers")
    inner = {a.value: a.offset for b in plan.buffers for a in b.values}
    machine = _Machine(flow, home, inner)
    machine.load()
    for number, step in enumerate(flow.steps):
        machine.step(number, step, scratch_at.get(number))
    machine.finish()


class _Machine:
    """Executes steps over byte maps.

    ``content[v]`` is what the bytes of value ``v`` must be: (origin, first byte, length) in a row.
    """

    def __init__(self, flow: Dataflow, home: list[PlannedBuffer], inner: dict[str, int]) -> None:
        self.flow = flow
        self.home = home
        self.maps: dict[tuple[str, str], _ByteMap] = {}
        sizes = [value.size_bytes for value in flow.values]
        self.start = [
            buffer.offset + inner[value.name]
            for buffer, value in zip(home, flow.values, strict=True)
        ]
        self.content = [[(v, 0, size)] if size else [] for v, size in enumerate(sizes)]

    def _map(self, buffer: PlannedBuffer) -> _ByteMap:
        return self.maps.setdefault((buffer.pool, buffer.segment), _ByteMap())

    def _span(self, value: int) -> tuple[int, int]:
        return self.start[value], self.start[value] + self.flow.values[value].size_bytes

    def load(self) -> None:
        """Put what comes from outside in place; none of it may overlap."""
        for value, facts in enumerate(self.flow.values):
            if self.flow.writer(value) is not None or not facts.size_bytes:
                continue
            start, end = self._span(value)
            if self._map(self.home[value]).take(start, end):
                _reject("overlap", f"'{facts.name}' overlaps another input or weight")
            self._map(self.home[value]).put((start, end, value, 0))
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
        """Reject unless all bytes of ``value`` are in place."""
        if not self.flow.values[value].size_bytes:
            return
        start, end = self._span(value)
        at = start
        found = self._map(self.home[value]).inside(start, end)
        runs = iter(found)
        low = high = origin = first = -1
        for wanted, wanted_first, length in self.content[value]:
            while length:
                if at >= high:
                    low, high, origin, first = next(runs, (-1, -1, -1, -1))
                here = min(length, high - at)
                if low < 0 or at < low or (origin, first + at - low) != (wanted, wanted_first):
                    _reject(
                        rule,
                        f"'{self.flow.values[value].name}' is not intact at step {number}: "
                        f"byte {at - start} of {end - start}",
                    )
                at, length, wanted_first = at + here, length - here, wanted_first + here
        self._alive(value, number)

    def step(self, number: int, step: Step, scratch: PlannedBuffer | None) -> None:
        """Read, then write; what is destroyed while it is read must be permitted."""
        for value in step.reads:
            self._require(value, number, "clobbered")
        if step.scratch_bytes:
            self._use_scratch(step, scratch)
        fresh: list[tuple[int, int, PlannedBuffer]] = []
        for value in step.writes:
            self._alive(value, number)
            if not self.flow.values[value].size_bytes or self._handed_on(value, step):
                continue
            if self.home[value].segment == "weights":
                _reject("owner", f"'{self.flow.values[value].name}' is written into the weights")
            self._write(value, number, step, fresh)

    def _handed_on(self, value: int, step: Step) -> bool:
        """Return whether ``value`` is bytes that are in place already: a view, or a cut."""
        facts = self.flow.values[value]
        sources = [(read, 0) for written, read in step.view_of if written == value]
        cuts = [(read, offset) for written, read, offset in step.cuts if written == value]
        for read, offset in (*sources, *cuts):
            if self.home[read] is not self.home[value]:
                continue
            if self.start[value] == self.start[read] + offset:
                self.content[value] = _slice(self.content[read], offset, facts.size_bytes)
                return True
            if (read, offset) in sources:
                _reject("overlap", f"view '{facts.name}' is not where its source is")
        return False

    def _write(
        self, value: int, number: int, step: Step, fresh: list[tuple[int, int, PlannedBuffer]]
    ) -> None:
        start, end = self._span(value)
        where = self._map(self.home[value])
        for low, high, buffer in fresh:
            same = (buffer.pool, buffer.segment) == (
                self.home[value].pool,
                self.home[value].segment,
            )
            if same and low < end and start < high:
                name = self.flow.values[value].name
                _reject("overlap", f"step {number} writes '{name}' over another of its outputs")
        joined = self._joined(value, step)
        content: list[tuple[int, int, int]] = []
        at = start
        for low, high, part in (*joined, (end, end, -1)):
            if at < low:
                self._overwrite(where, at, low, value, number, step)
                where.put((at, low, value, at - start))
                content.append((value, at - start, low - at))
            if part >= 0:
                content += self.content[part]
            at = max(at, high)
        self.content[value] = content
        fresh.append((start, end, self.home[value]))

    def _joined(self, value: int, step: Step) -> list[tuple[int, int, int]]:
        """Return (start, end, part) of the parts of ``value`` that are in place, sorted."""
        found = []
        for written, read, offset in step.joins:
            if written != value or self.home[read] is not self.home[value]:
                continue
            if self.start[read] == self.start[value] + offset and self.content[read]:
                found.append((*self._span(read), read))
        return sorted(found)

    def _overwrite(
        self, where: _ByteMap, start: int, end: int, value: int, number: int, step: Step
    ) -> None:
        """Take the bytes ``[start, end)`` for ``value``; reject what it must not destroy."""
        name = self.flow.values[value].name
        for low, high, origin, first in where.take(start, end):
            lost = self.flow.values[origin]
            foreign = self.flow.writer(origin) is None and self.home[origin].segment == "io"
            if lost.role is Role.WEIGHT or foreign:
                _reject("owner", f"'{name}' overwrites '{lost.name}', which the caller owns")
            readers = self._readers(low, high, origin, first, step)
            if readers and not self._permitted(value, readers, step):
                _reject("destroyed-while-read", f"step {number} writes '{name}' over '{lost.name}'")

    def _readers(self, low: int, high: int, origin: int, first: int, step: Step) -> list[int]:
        """Return the values under whose names the step reads these very bytes."""
        found = []
        for read in step.reads:
            at = self.start[read]
            for source, source_first, length in self.content[read]:
                same = source == origin and at < high and low < at + length
                if same and source_first - at == first - low:
                    found.append(read)
                    break
                at += length
        return found

    def _permitted(self, value: int, readers: list[int], step: Step) -> bool:
        """Return whether ``value`` may be written over what is read there.

        One of the readers must be permitted, and all of them must be at exactly the same place:
        element i of each is then read for element i of ``value``.
        """
        same_place = all(self._span(read) == self._span(value) for read in readers)
        return same_place and any(
            written == value and read in readers for written, read in step.may_overwrite
        )

    def _use_scratch(self, step: Step, scratch: PlannedBuffer | None) -> None:
        if scratch is None or scratch.bytes < step.scratch_bytes:
            _reject("size", f"step '{step.name}' has no scratch of {step.scratch_bytes} bytes")
        start, end = scratch.offset, scratch.offset + scratch.bytes
        for low, high, origin, first in self._map(scratch).take(start, end):
            if self._readers(low, high, origin, first, step):
                lost = self.flow.values[origin].name
                _reject("destroyed-while-read", f"scratch of '{step.name}' lies over '{lost}'")
        for value in step.writes:
            buffer = self.home[value]
            if (buffer.pool, buffer.segment) != (scratch.pool, scratch.segment):
                continue
            first_byte, last = self._span(value)
            if first_byte < end and start < last:
                _reject("overlap", f"scratch of '{step.name}' lies over one of its outputs")

    def finish(self) -> None:
        """Every result is intact."""
        last = max(0, len(self.flow.steps) - 1)
        for value in self.flow.results:
            self._require(value, last, "result-lost")


def _slice(
    content: list[tuple[int, int, int]], offset: int, size: int
) -> list[tuple[int, int, int]]:
    """Return ``size`` bytes of ``content`` from ``offset`` on."""
    found = []
    for origin, first, length in content:
        if offset >= length:
            offset -= length
            continue
        here = min(size, length - offset)
        if here > 0:
            found.append((origin, first + offset, here))
        size, offset = size - here, 0
        if size <= 0:
            break
    return found


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
