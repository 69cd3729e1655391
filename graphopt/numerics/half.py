"""Half precision with a list of nodes that stay float32, found from ranges and from the error.

In: a float program with types and shapes, a target that computes in the type, samples or none. Out:
the program converted in place, and a ``HalfReport``.

Ranges come first, for float16 only: nodes that make or read a value beyond a share of 65504 on some
sample stay float32, so that unseen inputs have room. Then the converted program is run beside the
float one. While its outputs are below the wanted decibels, nodes go back to float32, the costliest
first: each group of nodes is converted alone once, and the noise that it makes at the outputs is
its cost (noise powers add up while they are small). The shortest prefix of that order that meets
the goal is found by bisection, then parts of it are converted again as long as it is met. The best
candidate so far is always what is returned.

Candidates run emulated in float32 (``half_emulation``). On the processor onnxruntime has no kernels
for bfloat16, and computes float16 in float32 without rounding between two nodes, which shows
neither the error nor the overflows of the target.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.backends.emit_onnx import emit_onnx
from graphopt.errors import OptionError, UnsupportedError, VerificationError
from graphopt.ir.dims import Dim
from graphopt.ir.half_facts import HALF_TYPES, is_float, mask_values, reads_any_type
from graphopt.ir.program import FROM_NODES_KEY, UPPER_BOUNDS_KEY, Program, graphs_of, is_onnx
from graphopt.ir.rewrite import nodes_of
from graphopt.isolation import Worker
from graphopt.memory.planning import peak_of
from graphopt.numerics.candidates import emit_mapped, run_plain, run_samples
from graphopt.numerics.compare import Comparison, OutputError, Tolerance
from graphopt.numerics.feeds import Feed
from graphopt.numerics.half_emulation import emulated
from graphopt.numerics.half_samples import Observed, observe
from graphopt.numerics.sqnr import compare_by_sqnr, sqnr_db, worst
from graphopt.passes.convert_to_half import ConvertToHalf
from graphopt.passes.raise_opset import RaiseOpset
from graphopt.pipeline.base import PassResult
from graphopt.pipeline.options import near_miss
from graphopt.pipeline.pipeline import PassPipeline, PassReport
from graphopt.quantization.half_precision import (
    FACTS_KEY,
    LARGEST,
    HalfFacts,
    half_array,
    half_refusal,
    operators_without_kernels,
)
from graphopt.targets.schema import Target
from graphopt.temporary import TemporaryFolder

NAMES = {"fp16": "float16", "bf16": "bfloat16", "float16": "float16", "bfloat16": "bfloat16"}
# Accepted when the user states nothing: an error of 1 % of the output, and of 4 % for 8 bits.
DEFAULT_HALF_DB = {"float16": 40.0, "bfloat16": 28.0}
# Values up to this part of 65504 may be halves. Seeded samples show little of what real ones do.
DEFAULT_SHARE = {"user": 0.25, "seeded": 1 / 32}
# Alignment alone makes small models larger or smaller by this.
NEGLIGIBLE_BYTES = 64 << 10
MOST_GROUPS = 32
MOST_TAKEN_BACK = 16

Outputs = dict[str, npt.NDArray[Any]]
Progress = Callable[[int, str], None]


@dataclass
class HalfReport:
    """What the conversion did.

    Attributes:
        type: float16 or bfloat16.
        wanted_db: Decibels that were asked for.
        sqnr_db: Decibels of each output against the float model; of integers, those that the part
            of different elements stands for (one in a hundred: 40).
        nodes: Nodes that compute in half precision.
        casts: ``Cast`` nodes at the borders.
        kept: Node that stays float32 -> (reason, detail). ``range``, ``error``, ``peak`` and
            ``no-kernel`` were found here, the others are those of the pass.
        tried: What was tried: (what, decibels of the worst output).
        inputs: What it was judged on: "user" or "seeded" samples.
        samples: Number of samples seen.
        weight_bytes: Bytes of all constants before and after.
        peak_bytes: Most live arena bytes of the order as it is, before and after; None when sizes
            are unknown.
        vanished: Elements of weights, other than zero, that became zero.
        masks: Mask constants that were moved into the range.
        passes: What the passes that were run did.
        feeds: The samples that the error was measured on.
    """

    type: str
    wanted_db: float
    sqnr_db: dict[str, float] = field(default_factory=dict)
    nodes: int = 0
    casts: int = 0
    kept: dict[str, tuple[str, str]] = field(default_factory=dict)
    tried: list[tuple[str, float]] = field(default_factory=list)
    inputs: str = "seeded"
    samples: int = 0
    weight_bytes: tuple[int, int] = (0, 0)
    peak_bytes: tuple[int | None, int | None] = (None, None)
    vanished: int = 0
    masks: int = 0
    passes: list[PassReport] = field(default_factory=list)
    feeds: list[Feed] = field(default_factory=list)

    @property
    def worst_db(self) -> float:
        """Decibels of the worst output."""
        return worst(self.sqnr_db)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the samples as plain data, for JSON and the report."""
        plain = {name: value for name, value in vars(self).items() if name != "feeds"}
        plain["kept"] = {k: {"reason": r, "detail": d} for k, (r, d) in self.kept.items()}
        plain["tried"] = [{"what": what, "sqnr_db": value} for what, value in self.tried]
        plain["passes"] = [report.to_dict() for report in self.passes]
        return plain


def convert_program(
    program: Program,
    target: Target,
    type_: str,
    samples: Any = None,
    *,
    keep: Sequence[str] = (),
    keep_io: bool = True,
    tolerance: Tolerance | None = None,
    share: float | None = None,
    bindings: Mapping[str, int] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> HalfReport:
    """Convert ``program`` to half precision in place.

    Args:
        program: A float program with types and shapes on its values.
        target: What the result is for; it must compute in the type.
        type_: ``fp16``, ``bf16``, ``float16`` or ``bfloat16``.
        samples: A tuple or a dictionary is one sample; a list, a generator or a folder of ``.npz``
            files holds several; None: seeded ones.
        keep: Names of nodes, globs and operators that stay float32.
        keep_io: Whether inputs and outputs of the model stay float32.
        tolerance: Its ``sqnr_db`` is the goal; None for the default of the type.
        share: Part of 65504 that values may reach; None for the default.
        bindings: Sizes of named dimensions, for seeded samples and for the peak.
        seed: Seed of seeded samples.
        progress: Told (candidates measured so far, what happens next).

    Raises:
        UnsupportedError: the target does not compute in the type, no sample runs, or the result
            would take no less memory than the model does.
        OptionError: the type is unknown, ``keep`` names nothing, or a sample does not fit.
    """
    if type_ not in NAMES:
        raise OptionError("half-type", f"type is {type_!r}, expected one of {', '.join(NAMES)}")
    refusal = half_refusal(target, NAMES[type_])
    if refusal is not None:
        raise UnsupportedError(
            "precision-no-kernel",
            refusal,
            hint=f"choose a target that computes in {NAMES[type_]}, or leave the model float32",
        )
    _check_keep(program.model, keep)
    size = partial(_size, target=target, bindings=bindings)
    # Old versions of operators have fewer kernels, and no bfloat16.
    raised = PassPipeline((RaiseOpset(),)).run(program)
    search = _Search(program, NAMES[type_], keep, size, keep_io=keep_io, tolerance=tolerance)
    search.missing = operators_without_kernels(target, NAMES[type_])
    search.progress = progress
    try:
        report = search.run(samples, share, bindings or {}, seed)
        report.passes = [*raised, *report.passes]
        return report
    finally:
        program.model.meta.pop(FACTS_KEY, None)


def verify_half(program: Program, original: Sequence[Path], report: HalfReport) -> Comparison:
    """Compare the converted ``program`` with the original on the samples of ``report``.

    Raises:
        VerificationError: an output is below the decibels that were asked for.
    """
    tolerance = Tolerance(sqnr_db=report.wanted_db)
    with TemporaryFolder("verify") as folder, Worker() as worker:
        dtype = HALF_TYPES[report.type]
        files = _emit(program, dtype, folder / "half.onnx")
        expected = run_samples(worker, original, report.feeds)
        found = [_run(worker, program, dtype, files, feed) for feed in report.feeds]
        if dtype is ir.DataType.FLOAT16:
            # The file itself, too: it must load.
            expected, found = [*expected, expected[0]], [*found, _deployed(worker, program, report)]
    comparison = Comparison(
        outputs=_compare(expected, found, tolerance),
        samples=len(report.feeds),
        inputs=report.inputs,
        tolerance=tolerance,
    )
    if not comparison.passed:
        bad = next(output for output in comparison.outputs if not output.accepted)
        raise VerificationError(
            "half-error",
            f"output '{bad.name}' is {bad.reason or 'different'} from the original; accepted are "
            f"{report.wanted_db:g} dB or more",
            hint="verify=Tolerance(sqnr_db=...) accepts less",
            details={"verification": comparison.to_dict()},
        )
    return comparison


def _deployed(worker: Worker, program: Program, report: HalfReport) -> Outputs:
    """Return what the file that ships computes on the first sample, its halves as float32."""
    feed = dict(report.feeds[0])
    for value in program.graph.inputs:
        name = value.name or ""
        if value.dtype is ir.DataType.FLOAT16 and name in feed:
            feed[name] = feed[name].astype(np.float16)
    with TemporaryFolder("verify") as folder:
        files = emit_onnx(program, folder / "half.onnx")
        outputs = run_plain(worker, files, feed)
    return {n: a.astype(np.float32) if a.dtype == np.float16 else a for n, a in outputs.items()}


def _check_keep(model: ir.Model, keep: Sequence[str]) -> None:
    """Refuse an entry that names no node; an operator that the model has not is no mistake."""
    names: dict[str, None] = {}
    for node in nodes_of(model):
        names.update(dict.fromkeys((node.name or "", node.op_type)))
        names.update(dict.fromkeys(node.metadata_props.get(FROM_NODES_KEY, "").split(",")))
    for entry in keep:
        glob = any(sign in entry for sign in "*?[")
        if entry not in names and not glob and not entry.isalpha():
            raise OptionError(
                "half-keep-unknown",
                f"no node and no operator is called '{entry}', which is to stay float32",
                hint=near_miss(entry, list(names), "graphopt inspect"),
            )


class _Size(NamedTuple):
    """Bytes of the constants, and of the arena at its peak; None when sizes are unknown."""

    weights: int
    peak: int | None

    @property
    def total(self) -> int:
        return self.weights + (self.peak or 0)


def _size(
    program: Program,
    bounds: Mapping[str, Dim],
    *,
    target: Target,
    bindings: Mapping[str, int] | None,
) -> _Size:
    constants = [v for g in graphs_of(program.graph) for v in g.initializers.values()]
    weights = sum(0 if v.const_value is None else v.const_value.nbytes for v in constants)
    return _Size(weights, peak_of(program, target, bindings, upper_bounds=bounds))


def _emit(program: Program, dtype: ir.DataType, path: Path) -> list[Path]:
    """Write ``program`` so that onnxruntime computes on the processor what the target would."""
    return emit_mapped(emulated(program, dtype), path)


def _run(
    worker: Worker, program: Program, dtype: ir.DataType, files: Sequence[Path], feed: Feed
) -> Outputs:
    """Return the outputs of the files that ``_emit`` wrote."""
    fed = dict(feed)
    for value in program.graph.inputs:
        name = value.name or ""
        if value.dtype is dtype and name in fed and fed[name].dtype == np.float32:
            fed[name] = half_array(fed[name], dtype).astype(np.float32)
    return run_plain(worker, files, fed)


def _decibels(expected: Sequence[Outputs], found: Sequence[Outputs]) -> dict[str, float]:
    """Return the decibels of each output; of integers, by the part of elements that differ."""
    result = sqnr_db(expected, found)
    totals: dict[str, tuple[int, int]] = {}
    for wanted, got in zip(expected, found, strict=True):
        for name, array in wanted.items():
            if name in result:
                continue
            other = got.get(name)
            same = other is not None and other.shape == array.shape
            differing = int(np.count_nonzero(array != other)) if same else array.size
            total = totals.get(name, (0, 0))
            totals[name] = total[0] + differing, total[1] + array.size
    for name, (differing, size) in totals.items():
        result[name] = 200.0 if not differing else -20 * math.log10(differing / size)
    return result


def _compare(
    expected: Sequence[Outputs], found: Sequence[Outputs], tolerance: Tolerance
) -> list[OutputError]:
    outputs = compare_by_sqnr(expected, found, tolerance)
    decibels = _decibels(expected, found)
    for output in outputs:
        output.sqnr_db = decibels[output.name]
        output.accepted = output.sqnr_db >= (tolerance.sqnr_db or 0.0)
        output.reason = "" if output.accepted else f"{output.sqnr_db:.1f} dB"
    return outputs


class _Search:
    """The search for the nodes that stay float32."""

    progress: Progress | None = None
    missing: tuple[str, ...] = ()

    def __init__(
        self,
        program: Program,
        type_: str,
        keep: Sequence[str],
        size: Callable[[Program, Mapping[str, Dim]], _Size],
        *,
        keep_io: bool,
        tolerance: Tolerance | None,
    ) -> None:
        self.program, self.keep, self.keep_io = program, tuple(keep), keep_io
        self.bounds: Mapping[str, Dim] = program.model.meta.get(UPPER_BOUNDS_KEY) or {}
        self.size = size
        self.found: dict[str, tuple[str, str]] = {}
        self.type, self.dtype = type_, HALF_TYPES[type_]
        goal = None if tolerance is None else tolerance.sqnr_db
        self.report = HalfReport(type_, DEFAULT_HALF_DB[type_] if goal is None else goal)
        # What a constant holds is read once for all candidates.
        self.scans = HalfFacts().scans
        self.best: tuple[str, ...] = ()

    def run(
        self, samples: Any, share: float | None, bindings: Mapping[str, int], seed: int
    ) -> HalfReport:
        """Convert the program as was found best; return the report."""
        report = self.report
        with TemporaryFolder("half") as folder, Worker() as worker:
            self.folder, self.worker = folder, worker
            files = emit_mapped(self.program, self.folder / "float.onnx")
            self._tell("run the samples in float32")
            float16 = self.dtype is ir.DataType.FLOAT16
            seen = observe(
                self.program, files, samples, worker, bindings=bindings, seed=seed, ranges=float16
            )
            report.inputs, report.samples, report.feeds = seen.inputs, seen.samples, seen.kept
            self.expected = run_samples(worker, files, seen.kept)
            limit = LARGEST * (DEFAULT_SHARE[seen.inputs] if share is None else share)
            beyond = self._beyond(seen, limit)
            self._try(tuple(beyond), "everything")
            if report.worst_db < report.wanted_db:
                self._back_off(tuple(beyond))
            self.found = dict.fromkeys(self.best, ("error", ""))
            self.found |= {name: ("range", text) for name, text in beyond.items()}
            self._lower_peak()
        self._convert()
        return report

    def _lower_peak(self) -> None:
        """Leave what reads an input float32 where the half copy of the input costs more than that.

        Raises:
            UnsupportedError: the converted model takes no less memory than the float one.
        """
        self._tell("compare the peak with that of float32")
        before = self.size(self.program, self.bounds)
        copy, _ = self._candidate(self.best)
        after = self.size(copy, self.bounds)
        readers = _input_readers(copy.model)
        other, _ = self._candidate((*self.best, *readers))
        direct = self.size(other, self.bounds)
        if direct.total + NEGLIGIBLE_BYTES < after.total:
            after = direct
            self._measure((*self.best, *readers))
            text = "a copy of the input in half precision would be at the peak"
            self.found.update((name, ("peak", text)) for name in readers)
        self.report.weight_bytes = before.weights, after.weights
        self.report.peak_bytes = before.peak, after.peak
        large = before.total > 16 * NEGLIGIBLE_BYTES
        if after.total + (NEGLIGIBLE_BYTES if large else -NEGLIGIBLE_BYTES) > before.total:
            kept = Counter(node.op_type for node in copy.graph if node.name in self.skipped)
            most = ", ".join(f"{count} {name}" for name, count in kept.most_common(4))
            raise UnsupportedError(
                "half-no-gain",
                f"in {self.type} the model takes {after.total} bytes for weights and activations, "
                f"in float32 {before.total}: too many nodes stay float32, the most are {most}",
                hint="use fp16, or export with opset 22, which bfloat16 convolutions need",
            )

    def _beyond(self, seen: Observed, limit: float) -> dict[str, str]:
        """Return the nodes that make or read a value beyond ``limit``, with what shows it."""
        masks = mask_values(self.program.graph)
        found: dict[str, str] = {}
        nodes = list(self.program.graph)
        outputs = (value for node in nodes for value in node.outputs)
        for value in (*self.program.graph.inputs, *outputs):
            low, high = seen.ranges.get(value.name or "", (0.0, 0.0))
            if not is_float(value) or (high <= limit and (low >= -limit or value in masks)):
                continue
            users = [user for user, _ in value.uses()]
            for node in (value.producer(), *users):
                if node is not None and not reads_any_type(node):
                    found.setdefault(node.name or "", f"'{value.name}' is {low:.6g} to {high:.6g}")
        return found

    def _try(self, keep: tuple[str, ...], what: str) -> float:
        """Return the decibels of the worst output with ``keep`` in float32; remember the best."""
        self._tell(f"measure {self.type}: {what}")
        decibels = _decibels(self.expected, self._outputs(keep))
        value = worst(decibels)
        self.report.tried.append((what, value))
        if not self.report.sqnr_db or value > self.report.worst_db:
            self._choose(keep, decibels)
        return value

    def _tell(self, what: str) -> None:
        if self.progress is not None:
            self.progress(len(self.report.tried), what)

    def _choose(self, keep: tuple[str, ...], decibels: dict[str, float]) -> None:
        self.report.sqnr_db, self.best = decibels, keep

    def _outputs(self, keep: tuple[str, ...]) -> list[Outputs]:
        copy, facts = self._candidate(keep)
        files = _emit(copy, self.dtype, self.folder / "candidate.onnx")
        self.nodes = facts.nodes
        return [_run(self.worker, copy, self.dtype, files, feed) for feed in self.report.feeds]

    def _candidate(self, keep: tuple[str, ...]) -> tuple[Program, HalfFacts]:
        model = self.program.model.clone()
        facts = HalfFacts(scans=self.scans)
        model.meta[FACTS_KEY] = facts
        copy = Program(model, dict(self.program.bounds), self.program.source)
        result = self._pass(keep)(model)
        assert isinstance(result, PassResult), "passes return the result of passes"
        self.skipped = {skip.node for skip in result.skipped}
        return copy, facts

    def _pass(self, keep: tuple[str, ...]) -> ConvertToHalf:
        entries = tuple(dict.fromkeys((*self.keep, *self.missing, *keep)))
        return ConvertToHalf(type=self.type, keep=entries, keep_io=self.keep_io)

    def _back_off(self, beyond: tuple[str, ...]) -> None:
        """Return nodes to float32 until the goal is met; the best candidate is kept."""
        size = max(1, -(-len(self.nodes) // MOST_GROUPS))
        groups = [tuple(self.nodes[i : i + size]) for i in range(0, len(self.nodes), size)]
        everything = {name for group in groups for name in group}
        costs = []
        for group in groups:
            rest = tuple(sorted(everything.difference(group)))
            what = f"alone: {', '.join(group)}"
            self._tell(f"measure {self.type}: {what}")
            costs.append(worst(_decibels(self.expected, self._outputs((*beyond, *rest)))))
            self.report.tried.append((what, costs[-1]))
        order = [groups[i] for i in sorted(range(len(groups)), key=lambda i: costs[i])]
        low, high, chosen = 0, len(order) - 1, len(order)
        while low <= high:
            middle = (low + high) // 2
            what = f"float32: the {middle + 1} costliest of {len(order)} groups"
            if self._try(_with(beyond, order[: middle + 1]), what) >= self.report.wanted_db:
                high, chosen = middle - 1, middle + 1
            else:
                low = middle + 1
        if self.report.worst_db >= self.report.wanted_db:
            self._fewer(beyond, order[:chosen])

    def _fewer(self, beyond: tuple[str, ...], kept: list[tuple[str, ...]]) -> None:
        """Convert parts of the groups again, halves first, as long as the goal is met."""
        self._measure(_with(beyond, kept))
        pending = [group for group in reversed(kept) if len(group) > 1]
        tries = 0
        while pending and tries < MOST_TAKEN_BACK:
            group = pending.pop(0)
            middle = len(group) // 2
            for part, rest in ((group[:middle], group[middle:]), (group[middle:], group[:middle])):
                smaller = [rest if other == group else other for other in kept]
                tries += 1
                what = f"float32: without {', '.join(part)}"
                if self._try(_with(beyond, smaller), what) >= self.report.wanted_db:
                    kept = smaller
                    self._measure(_with(beyond, kept))
                    pending += [rest] if len(rest) > 1 else []
                    break

    def _measure(self, keep: tuple[str, ...]) -> None:
        """Make ``keep``, which meets the goal with fewer nodes in float32, what is returned."""
        self._choose(keep, _decibels(self.expected, self._outputs(keep)))

    def _convert(self) -> None:
        """Convert the program itself, and say what became of every node."""
        self._tell(f"convert to {self.type}")
        facts = HalfFacts(scans=self.scans)
        self.program.model.meta[FACTS_KEY] = facts
        report = self.report
        report.passes = PassPipeline((self._pass(self.best),)).run(self.program)
        report.nodes, report.casts = len(facts.nodes), facts.casts
        report.vanished, report.masks = facts.vanished, facts.masks
        for skip in report.passes[0].skipped:
            mine = self.found.get(skip.node) if skip.reason == "kept" else None
            if skip.detail in self.missing and skip.detail not in self.keep:
                mine = "no-kernel", f"the runtime does not compute {skip.detail} in {self.type}"
            report.kept[skip.node] = mine or (skip.reason, skip.detail)


def _input_readers(model: ir.Model) -> list[str]:
    """Return the names of the nodes that read an input through a ``Cast`` to half precision."""
    found: dict[str, None] = {}
    for value in model.graph.inputs:
        casts = (
            [user for user, _ in value.uses() if is_onnx(user, "Cast")] if is_float(value) else []
        )
        for cast in casts:
            found.update((user.name or "", None) for user, _ in cast.outputs[0].uses())
    return list(found)


def _with(beyond: tuple[str, ...], groups: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    return (*beyond, *(name for group in groups for name in group))
