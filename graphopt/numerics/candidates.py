"""Candidates of a quantization: written, run in the child, measured beside the float model.

In: a float program, kept samples, a way to quantize a copy of the program. Out: outputs, the
decibels of each layer, and what the runtime made of each node. One candidate exists at a time.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from graphopt.backends.emit_onnx import emit_onnx
from graphopt.ir.program import Program
from graphopt.isolation import Worker
from graphopt.numerics.feeds import Feed
from graphopt.numerics.sqnr import sqnr_db
from graphopt.quantization.kernels import KernelReport, kernel_report
from graphopt.quantization.placement import Placement

Outputs = dict[str, npt.NDArray[Any]]


def emit_mapped(program: Program, path: Path) -> list[Path]:
    """Write a model for the child, the weights beside it so that they are mapped, not read."""
    return emit_onnx(program, path, external_data=True)


def run_plain(
    worker: Worker, files: Sequence[Path], feed: Feed, extra: Sequence[str] = ()
) -> Outputs:
    """Return the outputs of a model as it stands, and the values named ``extra``."""
    return worker.run_model(
        files[0], feed, optimize=False, extra_outputs=extra, data_files=files[1:]
    )


class Candidates:
    """Measures quantized copies of one float program.

    Args:
        program: The float program.
        kept: Samples to measure on.
        worker: The child that runs models.
        folder: Where the files of candidates may be written.

    Attributes:
        expected: Outputs of the float program, one dictionary per sample.
    """

    def __init__(
        self, program: Program, kept: Sequence[Feed], worker: Worker, folder: Path
    ) -> None:
        self.program = program
        self.kept = kept
        self.worker = worker
        self.folder = folder
        self._float = emit_mapped(program, folder / "float.onnx")
        self._candidate: list[Path] = []
        self.expected = [run_plain(worker, self._float, feed) for feed in kept]

    def outputs(self, quantize: Callable[[ir.Model], object]) -> list[Outputs]:
        """Make the copy that ``quantize`` rewrites the candidate, and return its outputs."""
        model = self.program.model.clone()
        quantize(model)
        for stale in self._candidate:
            stale.unlink()
        copy = Program(model, dict(self.program.bounds), self.program.source)
        self._candidate = emit_mapped(copy, self.folder / "candidate.onnx")
        return [run_plain(self.worker, self._candidate, feed) for feed in self.kept]

    def layers(self, placement: Placement) -> dict[str, float]:
        """Return the decibels of the value that each integer node makes, on the first sample."""
        names = {
            node.name or "": placement.result_of(node).name or "" for node in placement.integer
        }
        values = sorted(set(names.values()))
        feed = self.kept[0]
        found = [
            run_plain(self.worker, files, feed, values) for files in (self._float, self._candidate)
        ]
        decibels = sqnr_db(found[:1], found[1:])
        return {node: decibels[value] for node, value in names.items() if value in decibels}

    def kernels(self, placement: Placement) -> KernelReport:
        """Return what onnxruntime makes of each node that was placed as integer."""
        arguments = {"model": self._candidate[0], "data_files": self._candidate[1:]}
        return kernel_report(placement, self.worker.call("kernels", arguments)["nodes"])
