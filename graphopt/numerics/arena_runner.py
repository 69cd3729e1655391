"""Prove by execution that a ``MemoryPlan`` is right for a model.

The model runs node by node, in the order of the plan, with every planned value inside memory of
exactly the planned size: one block per pool and segment. Nothing else holds an intermediate value
between two steps. What the plan does not need is poison, and every value read must still be the
bytes that were written. At the end the outputs must be those of an ordinary run of the same model
in onnxruntime. ``graphopt.arena_tasks`` has the details; it runs in a child process.

Limits of the proof:

1. A body of ``If``, ``Loop`` or ``Scan`` runs as one node, outside the arena. Its scratch is proven
   free, not large enough. Initializers of bodies are placed, but the body reads its own copy.
2. Kernels compute their outputs in memory of their own, so scratch that a kernel takes for itself
   is not seen.
3. A segment of weights above 64 MiB is not copied: its weights are read-only maps of a file, their
   places checked against each other and the file against its digests, before and after.
4. What the plan does not place (unknown sizes, text, sequences) is kept outside, and listed.
5. Bytes that belong to nobody are compared with the poison after every step, in large models only
   every few steps, and at the end; a kernel that writes there is then named less exactly.
"""

import os
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx_ir as ir

from graphopt.backends.emit_onnx import emit_onnx
from graphopt.errors import OptionError, UnsupportedError, VerificationError
from graphopt.ir.op_facts import is_deterministic, is_known
from graphopt.ir.program import Program, bodies_of, graphs_of, outer_reads
from graphopt.isolation import Worker, default_memory_bytes
from graphopt.memory.plan import MemoryPlan, PlannedBuffer, Segment
from graphopt.numerics.compare import Comparison, OutputError, Tolerance, compare_outputs
from graphopt.numerics.feeds import Feed, make_feed, size_choices
from graphopt.temporary import TemporaryFolder

# The ordinary run has the same kernels, weights that are not packed, and one thread: outputs are
# equal to the bit. In half precision it leaves out roundings between two nodes.
TIGHT = Tolerance(rtol=1e-5, atol=1e-7, samples=1)
_MAX_TRIES = 12
_HINT = "a plan belongs to the model it was made from; plan it again"


@dataclass(frozen=True)
class ArenaRun:
    """A run that the plan stood.

    Attributes:
        steps: Steps of the plan, all of them executed.
        arena_bytes: Bytes of the arena.
        written_high_water: First byte of the arena above which nothing was written.
        outside: Values that the plan does not place, in the order they appeared.
        comparison: The outputs beside those of an ordinary run.
        kernels: Steps by who executed them: "onnxruntime", "reference".
    """

    steps: int
    arena_bytes: int
    written_high_water: int
    outside: tuple[str, ...]
    comparison: Comparison
    kernels: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return the run as plain data, for JSON."""
        return {
            **vars(self),
            "outside": list(self.outside),
            "comparison": self.comparison.to_dict(),
        }


def run_in_arena(
    program: Program,
    plan: MemoryPlan,
    feeds: Sequence[Feed] | None = None,
    *,
    seed: int = 0,
    tolerance: Tolerance = TIGHT,
    worker: Worker | None = None,
) -> ArenaRun:
    """Run ``program`` inside the memory of ``plan`` and compare it with an ordinary run.

    Args:
        program: The model that the plan was made for, with the types of its values.
        plan: The plan; nothing in it is trusted.
        feeds: Samples, of the sizes that were bound; a dimension planned at its upper bound may
            be smaller. None: seeded samples of the sizes of the plan.
        seed: Seed of the samples, and of the noise that fills scratch.
        tolerance: What the outputs may differ; ``samples`` counts seeded samples.
        worker: A child process to use; None: one for this call.

    Raises:
        VerificationError: code ``plan-run-failed``; names the first step and value that are wrong.
            ``details["rule"]`` is one of ``places``, ``bounds``, ``alignment``, ``lifetime``,
            ``size``, ``order``, ``owner``, ``view``, ``overwritten``, ``in-place``, ``scratch``,
            ``freed``, ``not-intact``, ``stray-write``, ``outputs``.
        OptionError: ``feeds`` is empty.
        UnsupportedError: the model cannot be run so: it draws random numbers, nobody has a kernel
            for a node, onnxruntime refuses the model, or the plan is larger than this machine.
    """
    _refuse_random(program)
    sheet = _sheet(program, plan, seed)
    planned = _planned_bytes(sheet)
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryFolder("arena"))
        child = stack.enter_context(Worker()) if worker is None else worker
        files = emit_onnx(program, folder / "model.onnx", external_data=True)
        samples = _Samples(program, child, files[0], tolerance)
        if feeds is None:
            samples.seeded(plan, seed)
        else:
            samples.given(feeds)
        # The arena, and the inputs and outputs of one step beside it.
        memory = default_memory_bytes(files) + 4 * planned
        arguments = {"model": files[0], "sheet": sheet, "feeds": samples.feeds}
        answer = child.call("run-arena", arguments, memory_bytes=memory)
        _raise_failure(answer, _hint(plan, feeds))
        comparison = samples.compare(answer["outputs"])
    names = [(row[0], row[1]) for row in _segments(plan)]
    arena = names.index((plan.arena_pool.name, "arena"))
    return ArenaRun(
        steps=len(plan.steps),
        arena_bytes=plan.arena_bytes,
        written_high_water=answer["high_water"][arena],
        outside=tuple(dict.fromkeys(answer["outside"])),
        comparison=comparison,
        kernels=answer["kernels"],
    )


def _refuse_random(program: Program) -> None:
    for graph in graphs_of(program.graph):
        for node in graph:
            if is_known(node) and not bodies_of(node) and not is_deterministic(node):
                raise UnsupportedError(
                    "plan-run-random",
                    f"node '{node.name}' ({node.op_type}) draws random numbers: two runs differ, "
                    "so nothing can be compared",
                    hint="the plan is still proven by the verifier; only its execution is not",
                    node=node.name,
                )


def _segments(plan: MemoryPlan) -> list[tuple[str, Segment, int, int]]:
    """Return (pool, segment, bytes, alignment) of every segment of the plan."""
    rows: list[tuple[str, Segment, int, int]] = []
    for pool in plan.pools:
        rows.append((pool.name, "arena", pool.arena_bytes, pool.alignment))
        rows.append((pool.name, "weights", pool.weight_bytes, pool.alignment))
        rows.append((pool.name, "io", pool.io_bytes, pool.alignment))
    return rows


def _planned_bytes(sheet: dict[str, Any]) -> int:
    """Return the bytes of all segments.

    Raises:
        UnsupportedError: this machine has less memory.
    """
    planned = sum(int(row[2]) for row in sheet["segments"])
    present = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if planned > present:
        raise UnsupportedError(
            "plan-run-too-large",
            f"the plan takes {planned} bytes, this machine has {present}: it cannot be executed",
            hint="check it on a larger machine, or at smaller sizes",
        )
    return planned


def _sheet(program: Program, plan: MemoryPlan, seed: int) -> dict[str, Any]:
    """Return the plan, and what each of its steps reads and writes in the model, as plain data."""
    segments = _segments(plan)
    for pool, kind, size, alignment in segments:
        if size < 0 or alignment < 1:
            _misplaced(f"{kind} of pool '{pool}' has {size} bytes, aligned at {alignment}")
    if not segments:
        _misplaced("the plan has no pool")
    index = {(pool, kind): at for at, (pool, kind, _, _) in enumerate(segments)}
    known = _value_names(program)
    placed: set[str] = set()
    buffers = []
    for buffer in plan.buffers:
        segment = index.get((buffer.pool, buffer.segment))
        if segment is None:
            _misplaced(f"buffer '{buffer.name}' lies in pool '{buffer.pool}', which is not there")
        for alias in buffer.values:
            if alias.value in placed:
                _misplaced(f"'{alias.value}' lies in two buffers")
            if alias.value not in known:
                _misplaced(f"the plan places '{alias.value}', which is no value of the model")
            placed.add(alias.value)
        buffers.append(_buffer_row(buffer, segment))
    missing = known.keys() - placed - {value.name for value in plan.not_planned}
    if missing:
        name = next(name for name in known if name in missing)
        _misplaced(f"the plan has no place for '{name}', and does not list it as not planned")
    return {
        "segments": [(k, f"{k} of pool '{p}'", size, a) for p, k, size, a in segments],
        "buffers": buffers,
        "steps": list(_steps(program, plan)),
        "results": [value.name for value in program.graph.outputs],
        "seed": seed,
    }


def _misplaced(text: str) -> NoReturn:
    raise VerificationError("plan-run-failed", text, hint=_HINT, details={"rule": "places"})


def _value_names(program: Program) -> dict[str, None]:
    """Return the names of all values that a plan places, in the order of the graph."""
    names: dict[str, None] = {}
    for value in program.graph.inputs:
        names[value.name or ""] = None
    for graph in graphs_of(program.graph):
        names.update(dict.fromkeys(graph.initializers))
    for node in program.graph:
        names.update({value.name: None for value in node.outputs if value.name})
    return names


def _buffer_row(buffer: PlannedBuffer, segment: int) -> list[Any]:
    return [
        buffer.name,
        buffer.kind == "scratch",
        segment,
        buffer.offset,
        buffer.bytes,
        buffer.padded_bytes,
        buffer.start,
        buffer.end,
        [(alias.value, alias.offset, alias.relation) for alias in buffer.values],
    ]


def _steps(program: Program, plan: MemoryPlan) -> Iterator[tuple[int, str, list[str], list[str]]]:
    """Yield (index of the node, name, values read, values written) in the order of the plan."""
    waiting: dict[tuple[str, str], deque[tuple[int, ir.Node]]] = defaultdict(deque)
    for number, node in enumerate(program.graph):
        op = node.op_type if not node.domain else f"{node.domain}.{node.op_type}"
        waiting[node.name or node.op_type, op].append((number, node))
    scratch = {b.start: b.bytes for b in plan.buffers if b.kind == "scratch"}
    for at, step in enumerate(plan.steps):
        queue = waiting[step.node, step.op]
        if not queue:
            _misplaced(f"step {at} runs '{step.node}' ({step.op}), which is no node of the model")
        if scratch.get(at, 0) < step.scratch_bytes:
            _misplaced(f"step {at} ('{step.node}') has no scratch of {step.scratch_bytes} bytes")
        number, node = queue.popleft()
        sources = [value for value in node.inputs if value is not None and value.name]
        reads = dict.fromkeys(value.name or "" for value in (*sources, *outer_reads(node)))
        yield number, step.node, list(reads), [v.name for v in node.outputs if v.name]
    for (name, _), queue in waiting.items():
        if queue:
            _misplaced(f"the plan does not run node '{name}'")


def _hint(plan: MemoryPlan, feeds: Sequence[Feed] | None) -> str:
    if feeds is None or not plan.model.bindings:
        return _HINT
    sizes = ", ".join(f"{name}={size}" for name, size in plan.model.bindings.items())
    return f"{_HINT}, and to its sizes: this one is for {sizes}"


def _raise_failure(answer: dict[str, Any], hint: str) -> None:
    fault = answer.get("fault")
    if fault is not None:
        raise VerificationError(
            "plan-run-failed",
            f"executing the plan failed: {fault['text']}",
            hint=hint,
            node=fault["value"] or None,
            details={key: fault[key] for key in ("rule", "step", "value")},
        )
    missing = answer.get("no_kernel")
    if missing is not None:
        raise UnsupportedError(
            "plan-run-no-kernel",
            f"node '{missing['node']}': nobody executes a single {missing['op']}: "
            f"{missing['text']}",
            hint="the plan is still proven by the verifier; only its execution is not",
            node=missing["node"],
        )


@dataclass
class _Samples:
    """Samples with the outputs of an ordinary run."""

    program: Program
    worker: Worker
    path: Path
    tolerance: Tolerance

    def given(self, feeds: Sequence[Feed]) -> None:
        """Take the samples of the caller.

        Raises:
            OptionError: there are none.
        """
        if not feeds:
            raise OptionError("samples-mismatch", "no samples to run the plan on")
        self.inputs = "user"
        self.sizes: list[dict[str, int]] = []
        self.feeds = [dict(feed) for feed in feeds]
        self.expected = [self._run(feed) for feed in self.feeds]

    def seeded(self, plan: MemoryPlan, seed: int) -> None:
        """Make samples at the sizes of the plan; a size it does not state is tried out."""
        self.inputs = "seeded"
        refusal: UnsupportedError | None = None
        for tried, sizes in enumerate(size_choices(self.program, plan.model.bindings)):
            if tried >= _MAX_TRIES:
                break
            try:
                count = self.tolerance.samples
                self.feeds = [make_feed(self.program, sizes, seed + at) for at in range(count)]
                self.expected = [self._run(feed) for feed in self.feeds]
            except UnsupportedError as error:
                refusal = refusal or error
                if error.code in ("input-not-dense", "output-not-dense"):
                    break
                continue
            self.sizes = [dict(sizes)] * count
            return
        raise UnsupportedError(
            "plan-run-impossible",
            "the model does not run in onnxruntime on seeded samples, so there is nothing to "
            f"compare with: {refusal.message if refusal else 'no sizes to try'}",
            hint="give samples, or plan at other sizes (--dim NAME=SIZE)",
        )

    def compare(self, found: list[dict[str, Any]]) -> Comparison:
        """Return how far the outputs are apart.

        Raises:
            VerificationError: an output is outside of the tolerance.
        """
        merged: dict[str, OutputError] = {}
        for expected, outputs in zip(self.expected, found, strict=True):
            for output in compare_outputs(expected, outputs, self.tolerance):
                merged.setdefault(output.name, OutputError(output.name)).merge(output)
        comparison = Comparison(
            outputs=list(merged.values()),
            samples=len(self.feeds),
            inputs=self.inputs,
            tolerance=self.tolerance,
            sizes=self.sizes,
            reference="the same model in onnxruntime, optimization off",
        )
        bad = next((output for output in comparison.outputs if not output.accepted), None)
        if bad is not None:
            raise VerificationError(
                "plan-run-failed",
                f"output '{bad.name}' of the run in the arena differs from an ordinary run: "
                f"{bad.reason}",
                hint=_HINT,
                node=bad.name,
                details={"rule": "outputs", "verification": comparison.to_dict()},
            )
        return comparison

    def _run(self, feed: Feed) -> dict[str, Any]:
        outputs = self.worker.run_model(self.path, feed, optimize=False)
        for name, value in outputs.items():
            if not isinstance(value, np.ndarray):
                raise UnsupportedError(
                    "output-not-dense",
                    f"output '{name}' is no tensor but {type(value).__name__}: not comparable",
                    node=name,
                )
        return outputs
