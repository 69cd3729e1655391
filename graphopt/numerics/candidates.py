"""Candidates of a quantization: written, run in the child, measured beside the float model.

In: a float program, kept samples, a way to quantize a copy of the program. Out: outputs, the
decibels of each layer, and what the runtime made of each node. One candidate exists at a time.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from graphopt.backends.emit_onnx import emit_for_child
from graphopt.ir.program import Program
from graphopt.isolation import Worker
from graphopt.numerics.feeds import Feed
from graphopt.numerics.sqnr import sqnr_db
from graphopt.numerics.value_bytes import HEAVY_BYTES, grouped
from graphopt.quantization.kernels import KernelReport, kernel_report
from graphopt.quantization.placed import Placement
from graphopt.quantization.weight_files import META_KEY, WeightFiles

_KNOWN_KEY = "graphopt.measured"
# Outputs of models that were measured before are kept for as many, up to these bytes each.
_KNOWN_MODELS = 6
_KNOWN_BYTES = 16 << 20
# Values of layers that are asked for in one run.
_LAYER_BYTES = 128 << 20

Outputs = dict[str, npt.NDArray[Any]]


def emit_mapped(program: Program, path: Path) -> list[Path]:
    """Write a model for ``run_plain``: its weights stay where they are, or go beside it."""
    return emit_for_child(program, path)


def run_plain(
    worker: Worker, files: Sequence[Path], feed: Feed, extra: Sequence[str] = ()
) -> Outputs:
    """Return the outputs of a model as it stands, and the values named ``extra``."""
    return worker.run_model(
        files[0], feed, optimize=False, extra_outputs=extra, data_files=files[1:]
    )


def run_samples(worker: Worker, files: Sequence[Path], feeds: Sequence[Feed]) -> list[Outputs]:
    """Return the outputs of a model as it stands on every sample; large weights are read once."""
    if sum(file.stat().st_size for file in files) < HEAVY_BYTES:
        return [run_plain(worker, files, feed) for feed in feeds]
    arguments = {
        "models": [files[0]],
        "feeds": [dict(feed) for feed in feeds],
        "optimization": "disabled",
        "data_files": list(files[1:]),
    }
    found: list[Outputs] = worker.call("run", arguments)["outputs"][0]
    return found


class Candidates:
    """Measures quantized copies of one float program.

    Args:
        program: The float program; the integers of its weights ride in its meta data from here on.
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
        meta = program.model.meta
        constants = (v.const_value for v in program.graph.initializers.values())
        known = [tensor for tensor in constants if tensor is not None]
        if META_KEY not in meta:
            meta[META_KEY] = WeightFiles()
        self._weights: WeightFiles = meta[META_KEY]
        self._weights.know(known)
        self._known: OrderedDict[bytes, list[Outputs]] = meta.setdefault(_KNOWN_KEY, OrderedDict())
        self._float = emit_mapped(program, folder / "float.onnx")
        self._candidate: list[Path] = []
        self.expected = self._outputs(self._float)

    @property
    def files(self) -> Sequence[Path]:
        """The files of the candidate, the model first."""
        return self._candidate

    def outputs(self, quantize: Callable[[ir.Model], object]) -> list[Outputs]:
        """Make the copy that ``quantize`` rewrites the candidate, and return its outputs."""
        model = self.program.model.clone()
        model.meta[META_KEY] = self._weights
        quantize(model)
        copy = Program(model, dict(self.program.bounds), self.program.source)
        self._candidate = emit_mapped(copy, self.folder / "candidate.onnx")
        return self._outputs(self._candidate)

    def _outputs(self, files: Sequence[Path]) -> list[Outputs]:
        """Return the outputs of a model, those of the same one when it was measured before."""
        key = self._digest(files)
        if key not in self._known:
            found = run_samples(self.worker, files, self.kept)
            if sum(array.nbytes for one in found for array in one.values()) > _KNOWN_BYTES:
                return found
            self._known[key] = found
            while len(self._known) > _KNOWN_MODELS:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]

    def _digest(self, files: Sequence[Path]) -> bytes:
        """Return what tells a model and its samples from others; files elsewhere do not change."""
        digest = hashlib.sha256()
        for file in files:
            if file.parent == self.folder:
                with file.open("rb") as opened:
                    digest.update(hashlib.file_digest(opened, "sha256").digest())
        for feed in self.kept:
            for name, array in feed.items():
                digest.update(f"{name} {array.dtype} {array.shape}".encode())
                digest.update(array.tobytes())
        return digest.digest()

    def layers(self, placement: Placement) -> dict[str, float]:
        """Return the decibels of the value that each integer node makes.

        They are measured on the first sample; in branches that it does not take, on the first one
        that does.
        """
        results = {node.name or "": placement.result_of(node) for node in placement.integer}
        values = list(dict.fromkeys(results.values()))
        decibels: dict[str, float] = {}
        for feed in self.kept:
            left = [value for value in values if value.name not in decibels]
            for group in grouped(self.program, left, feed, _LAYER_BYTES):
                found = [
                    {n: a for n, a in run_plain(self.worker, files, feed, group).items() if a.size}
                    for files in (self._float, self._candidate)
                ]
                decibels.update(sqnr_db(found[:1], found[1:]))
        names = {node: value.name or "" for node, value in results.items()}
        return {node: decibels[name] for node, name in names.items() if name in decibels}

    @staticmethod
    def forget(program: Program) -> None:
        """Take what was measured out of the meta data of ``program``."""
        for key in (META_KEY, _KNOWN_KEY):
            program.model.meta.pop(key, None)

    def kernels(self, placement: Placement, *, int8: bool = False) -> KernelReport:
        """Return what onnxruntime makes of each node that was placed as integer.

        Args:
            placement: What was placed in the last candidate.
            int8: Whether it is for processors with kernels for int8 activations, which this one
                need not be.
        """
        arguments = {
            "model": self._candidate[0],
            "data_files": self._candidate[1:],
            "int8": int8,
        }
        return kernel_report(placement, self.worker.call("kernels", arguments)["nodes"])
