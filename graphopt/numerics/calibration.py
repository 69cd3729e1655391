"""Calibration: the ranges of activations, observed on samples in memory that does not grow.

In: a program, samples one after another. Out: a ``Calibration``. Each sample is run once, by
onnxruntime in a child process, with every observed value as an output; the child reduces each to a
histogram of fixed size and hands only those over. Under a byte cap the values are observed in
several runs per sample. Samples may differ in shape.
"""

import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.backends.emit_onnx import emit_onnx
from graphopt.errors import OptionError
from graphopt.ir.dims import evaluate, symbols_of
from graphopt.ir.program import Program, dims_of
from graphopt.isolation import Worker
from graphopt.numerics.feeds import Feed
from graphopt.numerics.verify import user_feeds
from graphopt.quantization.description import Description
from graphopt.quantization.histogram import Histogram
from graphopt.quantization.placement import observed_values
from graphopt.quantization.ranges import METHODS, Scheme, range_of
from graphopt.quantization.rules import channel_axis, is_gated, rule_of

OBSERVED_BYTES = 256 << 20
# Samples that are kept to measure the error of the result on.
KEPT_SAMPLES = 8
KEPT_BYTES = 64 << 20

Progress = Callable[[int, str], None]


@dataclass
class Calibration:
    """What was observed.

    Attributes:
        histograms: By name of value.
        samples: Number of samples seen.
        kept: Some of the samples, to measure the error of the result on.
        gated: Values of which only ``x * sigmoid(x)`` is used.
    """

    histograms: dict[str, Histogram] = field(default_factory=dict)
    samples: int = 0
    kept: list[Feed] = field(default_factory=list)
    gated: frozenset[str] = frozenset()

    def describe(self, method: str, scheme: Scheme) -> Description:
        """Return the ranges that ``method`` keeps, and the means of channels.

        A value that was infinite or NaN on some sample has no range.

        Raises:
            OptionError: the method is unknown.
        """
        if method not in METHODS:
            raise OptionError(
                "calibration-method",
                f"no calibration method is called '{method}'",
                hint=f"use one of {', '.join(METHODS)}",
            )
        ranges, means = {}, {}
        for name, histogram in self.histograms.items():
            if histogram.not_finite or not histogram.elements:
                continue
            ranges[name] = range_of(histogram, method, scheme, gated=name in self.gated)
            if histogram.channel_sums is not None and histogram.channel_count:
                means[name] = histogram.channel_sums / histogram.channel_count
        return Description(ranges, means, self.samples, method)


def calibrate(
    program: Program,
    data: Any,
    operators: frozenset[str],
    *,
    observed_bytes: int = OBSERVED_BYTES,
    progress: Progress | None = None,
) -> Calibration:
    """Run ``program`` on every sample and return what its quantizable values were.

    Args:
        program: The float model.
        data: Samples: an iterable of dictionaries or tuples, or the path of a folder of ``.npz``.
        operators: Operators that the target may quantize.
        observed_bytes: Most bytes of values that are observed in one run.
        progress: Told (samples done, what happens).

    Raises:
        OptionError: there is no sample, or one does not fit the inputs.
        UnsupportedError: onnxruntime fails on a sample.
    """
    values = list(observed_values(program.model, operators))
    axes = _channel_axes(program.model, operators)
    result = Calibration(gated=frozenset(v.name or "" for v in values if is_gated(v)))
    with tempfile.TemporaryDirectory(prefix="graphopt-calibrate-") as folder, Worker() as worker:
        path = Path(folder) / "model.onnx"
        # Weights in the model file would be read, and copied for the outputs that are added to it.
        data_files = emit_onnx(program, path, external_data=True)[1:]
        for sample in samples_of(data):
            feed = user_feeds(program, sample)[0]
            for group in _groups(program, values, feed, observed_bytes):
                _observe(worker, [path, *data_files], feed, group, axes, result.histograms)
            result.samples += 1
            _keep(result, feed)
            if progress is not None:
                progress(result.samples, "calibrate")
    if not result.samples:
        raise OptionError(
            "calibration-empty",
            "calibration_data has no samples",
            hint="a generator is empty the second time: make a new one for each compile",
        )
    return result


def samples_of(data: Any) -> Iterator[Any]:
    """Yield the samples of ``data``: an iterable, or a folder of ``.npz`` files, sorted by name.

    Raises:
        OptionError: it is neither, or the folder or a file in it cannot be read.
    """
    if isinstance(data, (str, os.PathLike)):
        yield from _samples_in(Path(data))
        return
    if isinstance(data, Mapping) or not isinstance(data, Iterable):
        raise OptionError(
            "calibration-type",
            f"calibration_data is {type(data).__name__}, expected an iterable of samples",
            hint="give a list or generator of dictionaries or tuples, or a folder of .npz files",
        )
    for sample in data:
        # A single array is a sample of a model with one input.
        yield sample if isinstance(sample, (Mapping, tuple, list)) else (sample,)


def _samples_in(folder: Path) -> Iterator[dict[str, Any]]:
    files = sorted(folder.glob("*.npz")) if folder.is_dir() else []
    if not files:
        raise OptionError(
            "calibration-unreadable",
            f"no samples in '{folder}'",
            hint="give a folder with one .npz file per sample, one array per input",
        )
    for file in files:
        try:
            with np.load(file, allow_pickle=False) as arrays:
                sample = {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError, EOFError) as error:
            raise OptionError(
                "calibration-unreadable", f"cannot read the sample '{file}': {error}"
            ) from error
        yield sample


def _observe(
    worker: Worker,
    files: Sequence[Path],
    feed: Feed,
    names: Sequence[str],
    axes: Mapping[str, int],
    histograms: dict[str, Histogram],
) -> None:
    arguments = {
        "model": files[0],
        "data_files": list(files[1:]),
        "feeds": [feed],
        "names": list(names),
        "extra_outputs": [name for name in names if name not in feed],
        "channel_axes": {name: axes[name] for name in names if name in axes},
        "optimization": "disabled",
    }
    for name, plain in worker.call("observe", arguments).items():
        histograms.setdefault(name, Histogram()).merge(Histogram(**plain))


def _channel_axes(model: ir.Model, operators: frozenset[str]) -> dict[str, int]:
    """Return the axis whose means are wanted, for the values that linear nodes read."""
    axes: dict[str, int] = {}
    for node in model.graph:
        rule = rule_of(node, operators)
        value = node.inputs[0] if node.inputs else None
        if rule is not None and rule.kind == "linear" and value is not None and value.name:
            axes.setdefault(value.name, channel_axis(node))
    return axes


def _groups(
    program: Program, values: Sequence[ir.Value], feed: Feed, most: int
) -> Iterator[list[str]]:
    """Yield the names of values that are observed together: at most ``most`` bytes, or one."""
    sizes = _sizes(program, feed)
    group: list[str] = []
    total = 0
    for value in values:
        size = _bytes_of(value, sizes)
        if group and total + size > most:
            yield group
            group, total = [], 0
        group.append(value.name or "")
        total += size
    if group:
        yield group


def _sizes(program: Program, feed: Feed) -> dict[str, int]:
    """Return the sizes of the symbols that the shapes of ``feed`` settle."""
    sizes: dict[str, int] = {}
    for value in program.graph.inputs:
        dims = dims_of(value)
        array = feed.get(value.name or "")
        if dims is None or array is None:
            continue
        for dim, size in zip(dims, array.shape, strict=False):
            names = symbols_of(dim)
            if len(names) == 1 and str(dim) in names:
                sizes[str(dim)] = size
    return sizes


def _bytes_of(value: ir.Value, sizes: Mapping[str, int]) -> int:
    """Return the bytes of ``value``; one of unknown size counts as nothing and is capped apart."""
    dims = dims_of(value)
    if dims is None or value.dtype is None:
        return 0
    try:
        return math.prod(evaluate(dim, sizes) for dim in dims) * value.dtype.itemsize.__ceil__()
    except KeyError:
        return 0


def _keep(result: Calibration, feed: Feed) -> None:
    """Keep the first samples, as many as fit."""
    held = sum(array.nbytes for kept in result.kept for array in kept.values())
    size = sum(array.nbytes for array in feed.values())
    if len(result.kept) < KEPT_SAMPLES and (not result.kept or held + size <= KEPT_BYTES):
        result.kept.append({name: np.array(array) for name, array in feed.items()})
