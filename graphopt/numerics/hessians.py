"""Weights rounded for the inputs that their products meet: samples, Hessians, finished weights.

In: a program, samples. Out: a ``Reconstruction`` for the pass that stores weights, and a
``WeightReport``. What a product loses to rounding is given by ``H = sum x x^T`` over the rows x of
its first factor, so nothing else of a sample is kept.

Memory: samples are written to a temporary folder when they arrive, because they are read once for
each group of Hessians; a group is as many as fit under a byte cap. The weights of a group are
rounded, one at a time, before the next group is collected, and go to files. So memory grows neither
with the samples nor with the model; a Hessian alone has the square of the inner size, and one that
would be larger than ``LARGEST_HESSIAN_BYTES`` is not made.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.errors import OptionError, OutputError, VerificationError
from graphopt.ir.constants import constant_of, read_array
from graphopt.ir.dims import Bounds
from graphopt.ir.program import Program, dims_of
from graphopt.isolation import ArrayWriter, Worker, read_arrays
from graphopt.memory.sizes import Sizes, UnknownSizeError
from graphopt.numerics.calibration import samples_of
from graphopt.numerics.candidates import emit_mapped, run_plain
from graphopt.numerics.compare import Comparison, Tolerance
from graphopt.numerics.feeds import Feed
from graphopt.numerics.sqnr import compare_by_sqnr
from graphopt.numerics.verify import user_feeds
from graphopt.passes.quantize_weights import QuantizeWeights
from graphopt.pipeline.base import Pass, PassResult
from graphopt.quantization.gptq import Compensation, compensation_of
from graphopt.quantization.reconstruction import (
    META_KEY,
    Reconstruction,
    RoundedWeight,
    reconstruct,
)
from graphopt.quantization.weight_only import StoredWeight, choose
from graphopt.temporary import TemporaryFolder

HESSIANS_BYTES = 256 << 20
LARGEST_HESSIAN_BYTES = 1 << 30
OBSERVED_BYTES = 256 << 20
VERIFIED_SAMPLES = 8
_ROWS_ELEMENTS = 1 << 21

Hessian = npt.NDArray[np.float64]
Progress = Callable[[int, str], None]


@dataclass
class WeightReport:
    """How weights were rounded on samples.

    Attributes:
        samples: Number of samples seen.
        runs: How often all of them were run, for groups of Hessians.
        weights: Those that products read, in the order in which they are stored.
    """

    samples: int = 0
    runs: int = 0
    weights: list[RoundedWeight] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data, for JSON and the report."""
        rows = [
            {**vars(w), "nodes": list(w.nodes), "sqnr_db": dict(w.sqnr_db)} for w in self.weights
        ]
        return {"samples": self.samples, "runs": self.runs, "weights": rows}


class SpooledSamples:
    """Samples in files, to be read any number of times.

    Args:
        program: Its inputs are what a sample gives.
        data: Samples: an iterable of dictionaries or tuples, or the path of a folder of ``.npz``.

    Raises:
        OptionError: there is no sample, or one does not fit the inputs.
    """

    def __init__(self, program: Program, data: Any) -> None:
        self._folder = TemporaryFolder("samples")
        self._count = 0
        try:
            for sample in samples_of(data):
                feed = user_feeds(program, sample)[0]
                self._write(feed)
        except BaseException:
            self.close()
            raise
        if not self._count:
            self.close()
            raise OptionError(
                "calibration-empty",
                "calibration_data has no samples",
                hint="a generator is empty the second time: make a new one for each compile",
            )

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Feed]:
        """Yield the samples; their arrays are mapped from files."""
        for number in range(self._count):
            path = self._path(number)
            description = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            yield read_arrays(path, description)

    def _write(self, feed: Feed) -> None:
        path = self._path(self._count)
        try:
            with ArrayWriter(path) as writer:
                description = json.dumps(writer.describe(feed))
            path.with_suffix(".json").write_text(description, encoding="utf-8")
        except OSError as error:
            raise OutputError(
                "temporary-files",
                f"cannot keep sample {self._count}: {error.strerror}",
                hint="make room in the temporary folder, or name another one with TMPDIR",
            ) from error
        self._count += 1

    def _path(self, number: int) -> Path:
        return self._folder.path / f"{number}.bin"

    def close(self) -> None:
        """Remove the files."""
        self._folder.close()


@dataclass
class _Job:
    """A weight to round: the values that its products read, or the reason why there are none."""

    stored: StoredWeight
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    inner: int
    reason: str = ""


class ObserveProducts(Pass):
    """Stands before the pass that stores weights, to round them for what the samples show there.

    It changes nothing in the model but what it carries for that pass.
    """

    name = "observe-products"

    def __init__(self, observe: Callable[[], None]) -> None:
        # A pass is frozen.
        object.__setattr__(self, "_observe", observe)

    def call(self, model: ir.Model) -> PassResult:
        """Observe; the model stays as it is."""
        observe: Callable[[], None] = vars(self)["_observe"]
        observe()
        return PassResult(model, modified=False)


class WeightRounder:
    """Rounds the weights of one program on samples, on the way through its passes.

    Args:
        program: The program as it came in.
        data: Samples.
        hessians_bytes: Most bytes of Hessians that are collected in one run over the samples.
        progress: Told (weights done, what happens).
    """

    def __init__(
        self,
        program: Program,
        data: Any,
        *,
        hessians_bytes: int = HESSIANS_BYTES,
        progress: Progress | None = None,
    ) -> None:
        self.program = program
        self.samples = SpooledSamples(program, data)
        self.report = WeightReport(samples=len(self.samples))
        self._hessians_bytes = hessians_bytes
        self._progress = progress

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the samples; what was rounded stays with the program."""
        self.samples.close()
        self.program.model.meta.pop(META_KEY, None)

    def passes(self, passes: Sequence[Pass]) -> tuple[Pass, ...]:
        """Return ``passes`` with the observation in front of the first that stores weights."""
        for number, pass_ in enumerate(passes):
            if isinstance(pass_, QuantizeWeights) and pass_.reconstruct:
                observation = ObserveProducts(partial(self.round, pass_))
                return (*passes[:number], observation, *passes[number:])
        return tuple(passes)

    def round(self, asked: QuantizeWeights) -> None:
        """Round the weights that ``asked`` will store; the program carries them from here on."""
        made = Reconstruction()
        self.program.model.meta[META_KEY] = made
        jobs = _jobs(self.program.model, asked)
        with (
            TemporaryFolder("hessians") as folder,
            Worker() as worker,
        ):
            files = emit_mapped(self.program, folder / "model.onnx")
            for group in _groups(jobs, self._hessians_bytes):
                hessians = self._collect(worker, files, group)
                self.report.runs += bool(hessians)
                self._round_group(group, hessians, made)
                # The next group is collected without these.
                hessians.clear()

    def _collect(
        self, worker: Worker, files: Sequence[Path], group: Sequence[_Job]
    ) -> dict[str, Hessian]:
        """Return the Hessians of what the products of ``group`` read, over all samples."""
        inner_by_name = {name: job.inner for job in group for name in job.inputs}
        hessians = {name: np.zeros((size, size)) for name, size in inner_by_name.items()}
        if not hessians:
            return hessians
        present = {value.name for value in self.program.graph.inputs}
        for feed in self.samples:
            kept = {name: array for name, array in feed.items() if name in present}
            for names in _together(self.program, list(hessians), kept):
                seen = run_plain(worker, files, kept, [name for name in names if name not in kept])
                for name in names:
                    add_rows(hessians[name], seen[name] if name in seen else kept[name])
        return hessians

    def _round_group(
        self, group: Sequence[_Job], hessians: dict[str, Hessian], made: Reconstruction
    ) -> None:
        """Round the weights of ``group``; takes Hessians out that nothing reads any more."""
        readers = Counter(name for job in group for name in job.inputs)
        last: tuple[tuple[str, ...], int] | None = None
        compensation: Compensation | None = None
        for job in group:
            if job.inputs:
                hessian = _sum([hessians[name] for name in job.inputs])
                if last != (job.inputs, job.stored.scheme.block):
                    # Products of one input stand together mostly: they share the factor.
                    last, compensation = (job.inputs, job.stored.scheme.block), None
                    compensation = compensation_of(hessian, job.stored.scheme.block)
                self.report.weights.append(_round(job, hessian, compensation, made))
                del hessian
                readers.subtract(job.inputs)
                for name in job.inputs:
                    if not readers[name]:
                        del hessians[name]
            else:
                self.report.weights.append(_as_before(job, job.reason))
            if self._progress is not None:
                self._progress(len(self.report.weights), "round weights")

    def verify(
        self, program: Program, original: Sequence[Path], tolerance: Tolerance
    ) -> Comparison:
        """Compare ``program`` with the original on the first samples.

        Raises:
            VerificationError: an output is below the accepted decibels.
        """
        expected, found = [], []
        present = {value.name for value in program.graph.inputs}
        with TemporaryFolder("verify") as folder, Worker() as worker:
            files = emit_mapped(program, folder / "rounded.onnx")
            for feed, _ in zip(self.samples, range(VERIFIED_SAMPLES), strict=False):
                expected.append(run_plain(worker, original, feed))
                kept = {name: array for name, array in feed.items() if name in present}
                found.append(run_plain(worker, files, kept))
        comparison = Comparison(
            outputs=compare_by_sqnr(expected, found, tolerance),
            samples=len(expected),
            inputs="calibration",
            tolerance=tolerance,
        )
        if not comparison.passed:
            bad = next(output for output in comparison.outputs if not output.accepted)
            raise VerificationError(
                "quantization-error",
                f"output '{bad.name}' is {bad.reason or 'different'} from the original; "
                f"accepted are {tolerance.sqnr_db:g} dB or more",
                hint="verify=Tolerance(sqnr_db=...) accepts less; int8-weights lose less",
                details={"verification": comparison.to_dict()},
            )
        return comparison


def _jobs(model: ir.Model, asked: QuantizeWeights) -> list[_Job]:
    """Return the weights that products read, in the order in which the pass stores them."""
    jobs = []
    for stored in choose(model, asked.plan).stored:
        products = [] if stored.is_kernel else [r for r in stored.readers if r.kind != "gather"]
        if not products:
            continue
        nodes = tuple(reader.node.name or "" for reader in products)
        inner = int(stored.tensor.shape.numpy()[products[0].axis])
        values = [reader.node.inputs[0] for reader in products]
        names = [v.name or "" for v in values if v is not None and _is_observable(v, model)]
        job = _Job(stored, nodes, tuple(dict.fromkeys(names)), inner)
        if 8 * inner * inner > LARGEST_HESSIAN_BYTES:
            job.inputs, job.reason = (), "hessian-too-large"
        elif not names:
            job.reason = "input-not-observed"
        jobs.append(job)
    return jobs


def _is_observable(value: ir.Value, model: ir.Model) -> bool:
    """Return whether a run can hand out ``value``: it is of the main graph, and no constant."""
    return bool(value.name) and value.graph is model.graph and constant_of(value) is None


def _groups(jobs: Sequence[_Job], most: int) -> Iterator[list[_Job]]:
    """Yield jobs whose Hessians are collected together: at most ``most`` bytes, or one job."""
    group: list[_Job] = []
    names: set[str] = set()
    total = 0
    for job in jobs:
        size = 8 * job.inner * job.inner
        needed = size * sum(name not in names for name in job.inputs)
        if group and needed and total + needed > most:
            yield group
            group, names, total = [], set(), 0
            needed = size * len(job.inputs)
        group.append(job)
        names.update(job.inputs)
        total += needed
    if group:
        yield group


def _together(program: Program, names: Sequence[str], feed: Feed) -> Iterator[list[str]]:
    """Yield names of values that are observed in one run: at most ``OBSERVED_BYTES``, or one.

    A value whose size nobody knows before the run is observed alone.
    """
    sizes = Sizes(
        {
            str(dim): Bounds(size, size)
            for value in program.graph.inputs
            for dim, size in zip(dims_of(value) or (), feed[value.name or ""].shape, strict=False)
        },
        {},
    )
    values = {v.name: v for node in program.graph for v in node.outputs}
    group: list[str] = []
    total = 0
    for name in names:
        size = 0
        if name in values:
            try:
                size = sizes.of(values[name])[0]
            except UnknownSizeError:
                size = OBSERVED_BYTES
        if group and total + size > OBSERVED_BYTES:
            yield group
            group, total = [], 0
        group.append(name)
        total += size
    if group:
        yield group


def add_rows(hessian: Hessian, array: npt.NDArray[Any]) -> None:
    """Add ``x x^T`` of every row x of ``array`` to ``hessian``; rows are widened some at a time."""
    rows = array.reshape(-1, len(hessian))
    step = max(1, _ROWS_ELEMENTS // max(1, len(hessian)))
    for start in range(0, len(rows), step):
        some = rows[start : start + step].astype(np.float64)
        hessian += some.T @ some


def _sum(hessians: Sequence[Hessian]) -> Hessian:
    return hessians[0] if len(hessians) == 1 else np.sum(hessians, axis=0)


def _round(
    job: _Job, hessian: Hessian, compensation: Compensation | None, made: Reconstruction
) -> RoundedWeight:
    if compensation is None:
        return _as_before(job, "input-not-finite" if hessian.any() else "input-zero")
    stored = job.stored
    parts, method, decibels = read_array(
        stored.tensor,
        lambda array: reconstruct(
            array, stored.scheme, hessian, compensation, by_column=stored.by_column
        ),
    )
    made.add(stored, parts)
    return RoundedWeight(stored.weight.name or "", job.nodes, method, decibels)


def _as_before(job: _Job, reason: str) -> RoundedWeight:
    stored = job.stored
    return RoundedWeight(stored.weight.name or "", job.nodes, stored.scheme.method, {}, reason)
