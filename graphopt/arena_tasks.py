"""Execute a model inside the memory of its plan: the child's side of ``numerics.arena_runner``.

In: a model file with its weights beside it, and the plan as a *sheet*: segments, buffers, places of
values, steps with what they read and write in the model. Out: the outputs of every sample, or the
first thing that is wrong with the plan.

One step: scratch is filled with noise; the inputs are read where the plan has them, each compared
with the digest it had when it was written; the node runs and returns its outputs in memory of its
own; each output goes to its place. Then scratch must still be noise, buffers that end are poisoned,
and the bytes that belong to nobody must be poison.

Writing an output, the bytes in place decide. Where they are already right nothing is destroyed:
views and parts copy nothing. What differs destroys a value. That value must be one that no later
step reads; when it is one that this very step reads, the step claims to work in place, and has to
prove it (``arena_in_place``). When a value is needed is taken from the model, never from the
lifetimes in the plan: those only say when bytes are poisoned.
"""

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx

from graphopt.arena_in_place import proves_in_place
from graphopt.arena_kernels import Array, KernelMissingError, Kernels, Value, array_of, bytes_of
from graphopt.arena_memory import Bytes, Held, MappedWeights, Segment, digest_of
from graphopt.isolation import FEEDS_FILE, read_arrays

# Weights of a larger segment stay where they are, memory-mapped and read-only.
_COPIED_WEIGHT_BYTES = 64 << 20
# Bytes that all searches for stray bytes in one run may read together.
_SWEEP_BUDGET_BYTES = 4 << 30


class PlanFaultError(Exception):
    """The plan is wrong for the model."""

    def __init__(self, rule: str, text: str, step: int, value: str) -> None:
        super().__init__(text)
        self.rule = rule
        self.step = step
        self.value = value


@dataclass(frozen=True)
class Buffer:
    """A planned buffer; see ``PlannedBuffer``. ``segment`` is an index."""

    name: str
    scratch: bool
    segment: int
    offset: int
    bytes: int
    padded: int
    start: int
    end: int


@dataclass(frozen=True)
class Place:
    """Where a value lies: in which buffer, from which byte of it, and why."""

    buffer: Buffer
    offset: int
    relation: str

    @property
    def start(self) -> int:
        """First byte in the segment."""
        return self.buffer.offset + self.offset


@dataclass(frozen=True)
class Action:
    """One step: the index of its node, what it reads and writes, each name once."""

    node: int
    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]


@dataclass
class Sheet:
    """The plan and the reads and writes of the model, as the parent sent them."""

    kinds: list[str]
    labels: list[str]
    sizes: list[int]
    alignments: list[int]
    buffers: list[Buffer]
    places: dict[str, Place]
    actions: list[Action]
    results: list[str]
    seed: int

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Sheet":
        """Return the sheet that the parent described."""
        buffers = [Buffer(*row[:8]) for row in data["buffers"]]
        places = {
            name: Place(buffer, offset, relation)
            for buffer, row in zip(buffers, data["buffers"], strict=True)
            for name, offset, relation in row[8]
        }
        actions = [Action(n, name, tuple(r), tuple(w)) for n, name, r, w in data["steps"]]
        kinds, labels, sizes, alignments = map(list, zip(*data["segments"], strict=True))
        return cls(
            kinds,
            labels,
            sizes,
            alignments,
            buffers,
            places,
            actions,
            data["results"],
            data["seed"],
        )


def run_arena(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """Run a model in the memory of its plan on every sample."""
    sheet = Sheet.from_json(arguments["sheet"])
    feeds = read_arrays(folder / FEEDS_FILE, arguments["feeds"])
    model = onnx.load(arguments["model"], load_external_data=False)
    kernels = Kernels(model)
    weights = dict(_weights(model, Path(arguments["model"]).parent))
    machine = Machine(sheet, model, kernels, weights)
    try:
        outputs = [machine.run(feed) for feed in feeds]
    except PlanFaultError as fault:
        return {"fault": {**vars(fault), "text": str(fault)}}
    except KernelMissingError as error:
        action = sheet.actions[machine.step]
        op = model.graph.node[action.node].op_type
        return {"no_kernel": {"node": action.name, "op": op, "text": str(error)}}
    return {
        "outputs": outputs,
        "kernels": machine.counts,
        "high_water": [segment.high_water for segment in machine.segments],
        "outside": machine.outside_names,
    }


def _weights(model: onnx.ModelProto, folder: Path) -> Iterator[tuple[str, Array]]:
    """Yield the initializers of all graphs by name; large ones are read-only maps of their file."""
    maps: dict[str, mmap.mmap] = {}
    pending = [model.graph]
    while pending:
        graph = pending.pop()
        for tensor in graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                yield tensor.name, onnx.numpy_helper.to_array(tensor)
                continue
            facts = {entry.key: entry.value for entry in tensor.external_data}
            location, offset = facts["location"], int(facts["offset"])
            if location not in maps:
                with open(folder / location, "rb") as file:
                    maps[location] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            data = np.frombuffer(maps[location], np.uint8, int(facts["length"]), offset)
            dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
            yield tensor.name, array_of(data, dtype, tuple(tensor.dims))
        for node in graph.node:
            for attribute in node.attribute:
                pending.extend(attribute.graphs)
                if attribute.HasField("g"):
                    pending.append(attribute.g)


@dataclass
class _Output:
    """An output on its way to its place."""

    name: str
    data: Bytes
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    place: Place
    over: list[tuple[int, int]] = field(default_factory=list)

    @property
    def start(self) -> int:
        return self.place.start

    @property
    def end(self) -> int:
        return self.place.start + self.data.size


class Machine:
    """Memory and values of one run after another.

    Attributes:
        step: The step that runs.
        counts: Steps executed in the last run, by who executed them.
        segments: The memory of the last run.
        outside_names: Values of the last run that the plan does not place.
    """

    def __init__(
        self,
        sheet: Sheet,
        model: onnx.ModelProto,
        kernels: Kernels,
        weights: Mapping[str, Array],
    ) -> None:
        self.sheet = sheet
        self.nodes = model.graph.node
        self.kernels = kernels
        self.weights = weights
        self.step = 0
        self.never = len(sheet.actions) + 1
        self.last_use: dict[str, int] = {}
        for number, action in enumerate(sheet.actions):
            self.last_use.update(dict.fromkeys(action.reads, number))
        self.last_use.update(dict.fromkeys(sheet.results, self.never))
        self._index_buffers()

    def run(self, feed: Mapping[str, Value]) -> dict[str, Value]:
        """Run all steps and return the outputs of the model by name."""
        self._check_geometry()
        self._reset()
        self._load(feed)
        sealed = {
            index: digest_of(self.segments[index].bytes)
            for index, kind in enumerate(self.sheet.kinds)
            if kind == "weights"
        }
        for number, action in enumerate(self.sheet.actions):
            self.step = number
            self._run_step(action)
        self.step = max(0, len(self.sheet.actions) - 1)
        for held in self.held.values():
            if held.last_use == self.never:
                self._require_intact(held)
        for index, digest in sealed.items():
            if digest_of(self.segments[index].bytes) != digest:
                self._fault("not-intact", f"{self.sheet.labels[index]} changed", "")
        for weights in self.mapped.values():
            changed = weights.first_changed()
            if changed is not None:
                self._fault("not-intact", f"weight '{changed}' changed in its file", changed)
        self._sweep("")
        return {name: np.array(self._read(name)) for name in self.sheet.results}

    def _fault(self, rule: str, text: str, value: str) -> NoReturn:
        raise PlanFaultError(rule, text, self.step, value)

    def _where(self) -> str:
        actions = self.sheet.actions
        return f"step {self.step} ('{actions[self.step].name}')" if actions else "the run"

    def _check_geometry(self) -> None:
        """Refuse buffers outside of their segment, or alive at no step."""
        steps = max(1, len(self.sheet.actions))
        for buffer in self.sheet.buffers:
            size = self.sheet.sizes[buffer.segment]
            if not 0 <= buffer.start < buffer.end <= steps:
                text = f"buffer '{buffer.name}' is alive [{buffer.start}, {buffer.end})"
                self._fault("lifetime", f"{text}, the plan has {steps} steps", buffer.name)
            self.step = buffer.start
            if buffer.offset < 0 or buffer.offset + buffer.padded > size:
                text = (
                    f"buffer '{buffer.name}' is [{buffer.offset}, {buffer.offset + buffer.padded})"
                )
                label = self.sheet.labels[buffer.segment]
                self._fault("bounds", f"{text}, {label} has {size} bytes", buffer.name)
            if buffer.offset % self.sheet.alignments[buffer.segment]:
                text = f"buffer '{buffer.name}' starts at {buffer.offset}"
                alignment = self.sheet.alignments[buffer.segment]
                self._fault("alignment", f"{text}, not a multiple of {alignment}", buffer.name)
            if not 0 <= buffer.bytes <= buffer.padded:
                text = f"buffer '{buffer.name}' has {buffer.bytes} bytes in {buffer.padded} padded"
                self._fault("bounds", text, buffer.name)
        self.step = 0

    def _reset(self) -> None:
        """Give this run memory of its own, all of it poison."""
        sheet = self.sheet
        self.counts = {"onnxruntime": 0, "reference": 0}
        self.outside: dict[str, Value] = {}
        self.outside_names: list[str] = []
        self.held: dict[str, Held] = {}
        # Values without bytes, and weights that stay in their file.
        self.elsewhere: dict[str, Array] = {}
        self.random = np.random.default_rng(sheet.seed)
        self.swept = 0
        self.mapped = {
            index: MappedWeights()
            for index, kind in enumerate(sheet.kinds)
            if kind == "weights" and sheet.sizes[index] > _COPIED_WEIGHT_BYTES
        }
        self.segments = [
            Segment(label, 0 if index in self.mapped else size)
            for index, (label, size) in enumerate(zip(sheet.labels, sheet.sizes, strict=True))
        ]
        # Bytes written in buffers that are alive, per segment and buffer.
        self.written: list[dict[str, list[tuple[int, int]]]] = [{} for _ in self.segments]

    def _index_buffers(self) -> None:
        count = max(1, len(self.sheet.actions))
        self.ending: list[list[Buffer]] = [[] for _ in range(count + 1)]
        self.scratch: list[list[Buffer]] = [[] for _ in range(count + 1)]
        for buffer in self.sheet.buffers:
            if buffer.scratch and 0 <= buffer.start < count:
                self.scratch[buffer.start].append(buffer)
            # What is alive at the end of the run stays: results may be among it.
            if self.sheet.kinds[buffer.segment] == "arena" and 0 < buffer.end < count:
                self.ending[buffer.end].append(buffer)
        cost = sum(self.sheet.sizes[i] for i, k in enumerate(self.sheet.kinds) if k == "arena")
        cost += 256 * len(self.sheet.buffers)
        self.sweep_every = 1 + cost * count // _SWEEP_BUDGET_BYTES

    # Loading.

    def _load(self, feed: Mapping[str, Value]) -> None:
        """Put inputs and weights in place."""
        for name, value in feed.items():
            self._put(name, value)
        for name, value in self.weights.items():
            if name not in feed:
                self._put(name, value)

    def _put(self, name: str, value: Value) -> None:
        """Place what comes from outside; it may lie on nothing."""
        output = self._output(name, value)
        if output is None:
            return
        segment = self.segments[output.place.buffer.segment]
        if output.place.buffer.start != 0:
            text = f"'{name}' comes from outside, its buffer starts at {output.place.buffer.start}"
            self._fault("lifetime", text, name)
        if output.place.buffer.segment in self.mapped:
            below = self.mapped[output.place.buffer.segment].put(name, output.start, output.data)
            self.elsewhere[name] = value
        else:
            below = next((h.name for h in segment.held_over(output.start, output.end)), None)
        if below is not None:
            self._fault("overwritten", f"'{name}' lies over '{below}' from the start", name)
        if name in self.elsewhere:
            return
        segment.write(output.start, output.data)
        self._hold(output, written_at=-1)

    def _check_size(self, name: str, size: int, place: Place) -> None:
        buffer = place.buffer
        if place.offset < 0 or place.offset + size > buffer.bytes:
            where = f" from byte {place.offset} on" if place.offset else ""
            text = f"'{name}' takes {size} bytes{where}, buffer '{buffer.name}' has {buffer.bytes}"
            self._fault("size", text, name)

    def _output(self, name: str, value: Value) -> _Output | None:
        """Return ``value`` with its place; None when it takes no memory of the plan."""
        place = self.sheet.places.get(name)
        if place is None or not isinstance(value, np.ndarray) or value.dtype == "O":
            self.outside[name] = value
            self.outside_names.append(name)
            return None
        data = bytes_of(value)
        if not data.size:
            self.elsewhere[name] = value
            return None
        self._check_size(name, data.size, place)
        return _Output(name, data, value.dtype, value.shape, place)

    def _hold(self, output: _Output, written_at: int) -> None:
        """Record an output whose bytes are in place."""
        buffer = output.place.buffer
        last = max(written_at, self.last_use.get(output.name, -1))
        if written_at < 0 and self.sheet.kinds[buffer.segment] != "arena":
            # What the caller owns stays to the end.
            last = self.never
        held = Held(
            output.name,
            output.start,
            output.end,
            digest_of(output.data),
            written_at,
            last,
            output.dtype,
            output.shape,
        )
        if last >= 0:  # else an input that nobody reads
            self.held[output.name] = held
            self.segments[buffer.segment].hold(held)
        spans = self.written[buffer.segment].setdefault(buffer.name, [])
        if (held.start, held.end) not in spans:
            spans.append((held.start, held.end))

    # One step.

    def _run_step(self, action: Action) -> None:
        noise = [(buffer, self._fill_with_noise(buffer)) for buffer in self.scratch[self.step]]
        for name in action.reads:
            if name in self.held:
                self._require_intact(self.held[name])
        if action.writes:
            values, engine = self._execute(action)
            self.counts[engine] += 1
            self._write_outputs(action, values)
        for buffer, expected in noise:
            segment = self.segments[buffer.segment]
            if not np.array_equal(segment.bytes[buffer.offset :][: buffer.bytes], expected):
                text = f"{self._where()} writes an output into its own scratch"
                self._fault("scratch", text, buffer.name)
        self._retire(action)
        for buffer in self.ending[self.step + 1]:
            self._end(buffer)
        if self.step - self.swept + 1 >= self.sweep_every:
            self._sweep(action.name)

    def _fill_with_noise(self, buffer: Buffer) -> Bytes:
        segment = self.segments[buffer.segment]
        for held in segment.held_over(buffer.offset, buffer.offset + buffer.bytes):
            text = f"scratch of {self._where()} lies over '{held.name}'"
            self._fault("scratch", text, held.name)
        noise = self.random.integers(0, 256, buffer.bytes, np.uint8)
        segment.write(buffer.offset, noise)
        span = (buffer.offset, buffer.offset + buffer.bytes)
        self.written[buffer.segment].setdefault(buffer.name, []).append(span)
        return noise

    def _require_intact(self, held: Held) -> None:
        place = self.sheet.places[held.name]
        if not self.segments[place.buffer.segment].is_intact(held):
            writer = f"step {held.written_at} wrote" if held.written_at >= 0 else "was fed"
            text = f"'{held.name}' is not what {writer} when {self._where()} needs it"
            self._fault("not-intact", text, held.name)

    def _read(self, name: str) -> Value:
        if name in self.held:
            held = self.held[name]
            segment = self.segments[self.sheet.places[name].buffer.segment]
            array = array_of(segment.bytes[held.start : held.end], held.dtype, held.shape)
            array.flags.writeable = False
            return array
        for values in (self.elsewhere, self.outside):
            if name in values:
                return values[name]
        self._fault("order", f"{self._where()} needs '{name}', which is not there yet", name)

    def _execute(self, action: Action) -> tuple[dict[str, Value], str]:
        inputs = {name: self._read(name) for name in action.reads}
        constant = [
            n
            for n in action.reads
            if n in self.weights and isinstance(inputs[n], np.ndarray) and inputs[n].dtype != "O"
        ]
        return self.kernels.run(self.nodes[action.node], inputs, constant)

    def _write_outputs(self, action: Action, values: Mapping[str, Value]) -> None:
        """Check all outputs while the inputs are still there, then write them."""
        outputs = []
        for name in action.writes:
            output = self._output(name, values[name])
            if output is None:
                continue
            output.over = self._destroyed(output)
            if name not in self.elsewhere:
                outputs.append(output)
        for output in outputs:
            if output.over and not self._proves_in_place(action, output, values):
                text = (
                    f"{self._where()} writes '{output.name}' over what it reads, "
                    "and its result depends on bytes that are gone by then"
                )
                self._fault("in-place", text, output.name)
        for output in outputs:
            segment = self.segments[output.place.buffer.segment]
            for other in segment.held_over(output.start, output.end):
                if other.written_at == self.step and _differ(segment, output, other):
                    text = f"{self._where()} writes '{output.name}' over its output '{other.name}'"
                    self._fault("overwritten", text, output.name)
            segment.write(output.start, output.data)
            self._hold(output, written_at=self.step)

    def _proves_in_place(
        self, action: Action, output: _Output, values: Mapping[str, Value]
    ) -> bool:
        """Return whether ``output`` may be written while the step still reads those bytes."""
        segment = self.segments[output.place.buffer.segment]
        return proves_in_place(
            segment.bytes[output.start : output.end],
            [(start - output.start, end - output.start) for start, end in output.over],
            output.name,
            {name: values[name] for name in action.writes},
            lambda: self._execute(action)[0],
            self.random,
        )

    def _destroyed(self, output: _Output) -> list[tuple[int, int]]:
        """Return the bytes of inputs of this step that writing ``output`` changes."""
        buffer = output.place.buffer
        if not buffer.start <= self.step < buffer.end:
            text = f"{self._where()} writes '{output.name}', its buffer is alive "
            self._fault("lifetime", f"{text}[{buffer.start}, {buffer.end})", output.name)
        segment = self.segments[buffer.segment]
        there: Bytes | None = segment.bytes[output.start : output.end]
        if buffer.segment in self.mapped:
            there = self.mapped[buffer.segment].part(output.start, output.end)
            if there is not None:
                self.elsewhere[output.name] = array_of(there, output.dtype, output.shape)
        in_place = there is not None and np.array_equal(there, output.data)
        if output.place.relation == "view" and not in_place:
            text = f"'{output.name}', a view, is not the bytes in place after {self._where()}"
            self._fault("view", text, output.name)
        if in_place:
            return []
        if self.sheet.kinds[buffer.segment] == "weights":
            self._fault(
                "owner", f"{self._where()} writes '{output.name}' into weights", output.name
            )
        over = []
        for other in segment.held_over(output.start, output.end):
            if not _differ(segment, output, other):
                continue
            if other.last_use > self.step:
                needed = f"step {other.last_use} reads" if other.last_use < self.never else "stays"
                text = f"{self._where()} writes '{output.name}' over '{other.name}', which {needed}"
                self._fault("overwritten", text, output.name)
            over.append((max(output.start, other.start), min(output.end, other.end)))
        return over

    def _retire(self, action: Action) -> None:
        """Forget what no later step reads."""
        for name in (*action.reads, *action.writes):
            held = self.held.get(name)
            if held is not None and held.last_use <= self.step:
                self.segments[self.sheet.places[name].buffer.segment].release(held)

    def _end(self, buffer: Buffer) -> None:
        """Poison a buffer at the end of its lifetime."""
        segment = self.segments[buffer.segment]
        end = buffer.offset + buffer.padded
        for held in segment.held_over(buffer.offset, end):
            text = (
                f"buffer '{buffer.name}' ends after {self._where()}, '{held.name}' is needed later"
            )
            self._fault("freed", text, held.name)
        segment.poison(buffer.offset, end)
        self.written[buffer.segment].pop(buffer.name, None)

    def _sweep(self, name: str) -> None:
        """Look at every byte that belongs to nobody; all segments after the last step."""
        for index, segment in enumerate(self.segments):
            if name and self.sheet.kinds[index] != "arena":
                continue
            spans = [span for spans in self.written[index].values() for span in spans]
            stray = segment.first_stray(spans)
            if stray is not None:
                text = (
                    f"byte {stray} of {segment.label}, which belongs to nobody, was written "
                    f"in steps {self.swept} to {self.step}"
                )
                self._fault("stray-write", text, "")
        self.swept = self.step + 1


def _differ(segment: Segment, output: _Output, other: Held) -> bool:
    """Return whether writing ``output`` changes a byte of ``other``."""
    start, end = max(output.start, other.start), min(output.end, other.end)
    wanted = output.data[start - output.start : end - output.start]
    return not np.array_equal(segment.bytes[start:end], wanted)
