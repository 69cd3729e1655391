"""Compare a program with the model as it came in, both run by onnxruntime in a child process.

In: the program before any pass, the user's samples or none. Out: a ``Comparison``, or an error. The
reference is the file the user named where there is one, so that a fault of the loader shows, too.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.backends.emit_onnx import emit_for_child, emit_onnx
from graphopt.errors import GraphoptError, OptionError, UnsupportedError, VerificationError
from graphopt.ir.program import Program
from graphopt.isolation import Worker
from graphopt.numerics.candidates import run_samples
from graphopt.numerics.compare import (
    Comparison,
    OutputError,
    Tolerance,
    compare_arrays,
    compare_outputs,
)
from graphopt.numerics.feeds import Feed, make_feed, size_choices
from graphopt.numerics.sqnr import compare_by_sqnr
from graphopt.temporary import TemporaryFolder

_MAX_TRIES = 12
_IN_ONNXRUNTIME = "the original model in onnxruntime, optimization off"
Outputs = dict[str, npt.NDArray[Any]]


class Reference:
    """The original model with its outputs on the samples; compares programs with it.

    Args:
        program: The model before any pass. example_inputs: The user's samples: a tuple, a
        dictionary, or a list of either; None: seeded.
        bindings: Sizes of named dimensions for seeded samples.
        tolerance: What is accepted.
        seed: Seed of the samples.
        truth: What the source of the model itself computes on the first sample; what the original
            computes in onnxruntime is compared with it.
        run: False when nothing will be compared here: only the files of the original are wanted.

    Raises:
        VerificationError: the original does not compute ``truth``.
        UnsupportedError: onnxruntime does not run the original on any samples.
        OptionError: the user's samples do not match the inputs.
    """

    def __init__(
        self,
        program: Program,
        example_inputs: Any,
        *,
        bindings: Mapping[str, int],
        tolerance: Tolerance,
        seed: int,
        truth: Sequence[npt.NDArray[Any]] | None = None,
        run: bool = True,
    ) -> None:
        self._folder = TemporaryFolder("verify")
        self._worker = Worker()
        self._tolerance = tolerance
        self._sizes: list[dict[str, int]] = []
        try:
            self._path, self._data = self._original_files(program)
            self._reference_text = _IN_ONNXRUNTIME
            if not run:
                return
            if example_inputs is None:
                self._inputs = "seeded"
                self._feeds, self._expected = self._seeded(program, bindings, tolerance, seed)
            else:
                self._inputs = "user"
                self._feeds = user_feeds(program, example_inputs)
                self._expected = run_samples(self._worker, self.files, self._feeds)
            if truth is not None:
                self._check_truth(truth)
        except BaseException:
            self.close()
            raise

    def _check_truth(self, truth: Sequence[npt.NDArray[Any]]) -> None:
        found = self._expected[0]
        for (name, array), expected in zip(found.items(), truth, strict=False):
            error = compare_arrays(name, expected, array, self._tolerance)
            if not error.accepted:
                raise VerificationError(
                    "capture-differs",
                    f"the captured model does not compute what the torch module computes: output "
                    f"'{name}': {error.reason}",
                    hint="torch's exporter translated an operator differently; --rtol accepts more",
                )
        self._reference_text = f"{_IN_ONNXRUNTIME}, itself compared with torch"

    def close(self) -> None:
        """Stop the child and remove the temporary files."""
        self._worker.close()
        self._folder.close()

    @property
    def path(self) -> Path:
        """The file of the original."""
        return self._path

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of the original, the model first."""
        return (self._path, *self._data)

    def compare(self, program: Program) -> Comparison:
        """Return how far ``program`` is from the original."""
        files = emit_for_child(program, self._folder.path / "candidate.onnx")
        names = {value.name for value in program.graph.inputs}
        feeds = [{n: a for n, a in feed.items() if n in names} for feed in self._feeds]
        found = run_samples(self._worker, files, feeds)
        for stale in self._folder.path.glob("candidate*"):
            stale.unlink()
        return Comparison(
            outputs=self._errors(found),
            samples=len(self._feeds),
            inputs=self._inputs,
            tolerance=self._tolerance,
            sizes=self._sizes,
            reference=self._reference_text,
        )

    def _errors(self, found: Sequence[Outputs]) -> list[OutputError]:
        if self._tolerance.sqnr_db is not None or self._tolerance.metric is not None:
            return compare_by_sqnr(self._expected, found, self._tolerance)
        merged: dict[str, OutputError] = {}
        for expected, got in zip(self._expected, found, strict=True):
            for output in compare_outputs(expected, got, self._tolerance):
                merged.setdefault(output.name, OutputError(output.name)).merge(output)
        return list(merged.values())

    def verify(self, program: Program) -> Comparison:
        """Return the comparison when ``program`` is within the tolerance.

        Raises:
            VerificationError: an output is outside; names it, with the error and the scale.
        """
        comparison = self.compare(program)
        if not comparison.passed:
            bad = next(output for output in comparison.outputs if not output.accepted)
            decibels = self._tolerance.sqnr_db
            accepted = (
                f"accepted is {self._tolerance.rtol:g} of the scale plus {self._tolerance.atol:g}"
                if decibels is None
                else f"accepted are {decibels:g} dB or more"
            )
            raise VerificationError(
                "verification-failed",
                f"output '{bad.name}' differs from the original: {bad.reason}; {accepted}",
                hint="graphopt bisect names the pass; --rtol accepts a larger error"
                if decibels is None
                else "verify=Tolerance(sqnr_db=...) accepts less",
                details={"verification": comparison.to_dict()},
            )
        return comparison

    def _original_files(self, program: Program) -> tuple[Path, tuple[Path, ...]]:
        source = program.source
        if source.kind == "onnx" and source.path is not None:
            return source.path, source.external_files
        path, *data = emit_for_child(program, self._folder.path / "original.onnx")
        return path, tuple(data)

    def _seeded(
        self, program: Program, bindings: Mapping[str, int], tolerance: Tolerance, seed: int
    ) -> tuple[list[Feed], list[Outputs]]:
        """Return samples that the original accepts, with its outputs on them."""
        feeds: list[Feed] = []
        expected: list[Outputs] = []
        refusal: GraphoptError | None = None
        for tried, sizes in enumerate(size_choices(program, bindings)):
            if tried >= _MAX_TRIES:
                break
            try:
                numbers = range(seed, seed + tolerance.samples)
                feeds = [make_feed(program, sizes, number) for number in numbers]
                expected = run_samples(self._worker, self.files, feeds)
                self._sizes = [dict(sizes) for _ in feeds]
            except UnsupportedError as error:
                refusal = refusal or error
                feeds, expected, self._sizes = [], [], []
                if error.code == "input-not-dense":
                    break
                continue
            return feeds, expected
        raise UnsupportedError(
            "verification-impossible",
            "the original model does not run in onnxruntime on seeded samples, so nothing can be "
            f"verified: {refusal.message if refusal else 'no sizes to try'}",
            hint="give example inputs or sizes (--dim NAME=SIZE), or accept it with --no-verify",
        )


def user_feeds(program: Program, example_inputs: Any) -> list[Feed]:
    """Return the user's samples as dictionaries of arrays.

    Raises:
        OptionError: a name, the number, the data type or the rank of the inputs does not match.
    """
    several = isinstance(example_inputs, list)
    return [_user_feed(program, one) for one in (example_inputs if several else [example_inputs])]


def _user_feed(program: Program, sample: Any) -> Feed:
    inputs = list(program.graph.inputs)
    names = [value.name or "" for value in inputs]
    if isinstance(sample, Mapping):
        unknown = [name for name in sample if name not in names]
        missing = [name for name in names if name not in sample]
        if unknown or missing:
            raise OptionError(
                "samples-mismatch",
                f"example inputs: unknown {unknown}, missing {missing}",
                hint=f"the inputs are {names}",
            )
        arrays = [sample[name] for name in names]
    else:
        arrays = list(sample) if isinstance(sample, Sequence) else [sample]
        if len(arrays) != len(names):
            raise OptionError(
                "samples-mismatch",
                f"{len(arrays)} example inputs for {len(names)} inputs",
                hint=f"the inputs are {names}",
            )
    feed: Feed = {}
    for value, array in zip(inputs, arrays, strict=True):
        detached = array.detach().cpu() if hasattr(array, "detach") else array
        converted = np.asarray(detached)
        expected = value.dtype.numpy() if value.dtype is not None else converted.dtype
        if converted.dtype != expected and converted.dtype.kind != "O":
            raise OptionError(
                "samples-mismatch",
                f"example input '{value.name}' is {converted.dtype}, expected {expected}",
            )
        feed[value.name or ""] = converted
    return feed


def run_program(program: Program, feeds: Mapping[str, npt.NDArray[Any]]) -> Outputs:
    """Run ``program`` once in onnxruntime, as it would be deployed, in a child process."""
    with TemporaryFolder("run") as folder, Worker() as worker:
        path = folder / "model.onnx"
        emit_onnx(program, path)
        return worker.run_model(path, dict(feeds), optimize=True)
