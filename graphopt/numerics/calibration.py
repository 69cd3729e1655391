"""Calibration: the ranges of activations, observed on samples in memory that does not grow.

In: a program, samples one after another. Out: a ``Calibration``. Each sample is run once, by
onnxruntime in a child process, with every observed value as an output; the child reduces each to a
histogram of fixed size and hands only those over. Under a byte cap the values are observed in
several runs per sample. Samples may differ in shape.

Values in branches of an ``If`` are observed, too: the child lets the ``If`` give them.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.backends.emit_onnx import emit_for_child
from graphopt.errors import OptionError
from graphopt.ir.program import Program
from graphopt.isolation import Worker
from graphopt.numerics.feeds import Feed
from graphopt.numerics.value_bytes import grouped, observed_together, values_bytes
from graphopt.numerics.verify import user_feeds
from graphopt.quantization.bodies import name_apart, observable_nodes
from graphopt.quantization.description import Description
from graphopt.quantization.equalization import FACTS_KEY, Divided, regions
from graphopt.quantization.histogram import Histogram
from graphopt.quantization.placement import observed_values
from graphopt.quantization.ranges import METHODS, Scheme, range_of
from graphopt.quantization.rules import channel_axis, is_gated, rule_of
from graphopt.temporary import TemporaryFolder

OBSERVED_BYTES = 256 << 20
# Samples that are kept to measure the error of the result on: so many, and more of a small model,
# up to some bytes of observed values in all. A few of them say little about a network with few
# outputs, and each candidate is run on all.
KEPT_SAMPLES = 8
MOST_KEPT_SAMPLES = 64
KEPT_VALUE_BYTES = 16 << 20
KEPT_BYTES = 64 << 20
# Of those that take the same branches of a model; and how many ways through it are told apart.
LEAST_KEPT = 2
MOST_WAYS = 8

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

        A value that was infinite or NaN on some sample has no range, nor has one that no sample
        gave an element.

        Raises:
            OptionError: the method is unknown.
        """
        if method not in METHODS:
            raise OptionError(
                "calibration-method",
                f"no calibration method is called '{method}'",
                hint=f"use one of {', '.join(METHODS)}",
            )
        ranges, means, maxima = {}, {}, {}
        for name, histogram in self.histograms.items():
            if histogram.not_finite or not histogram.elements:
                continue
            ranges[name] = range_of(histogram, method, scheme, gated=name in self.gated)
            if histogram.channel_sums is not None and histogram.channel_count:
                means[name] = histogram.channel_sums / histogram.channel_count
            if histogram.channel_lows is not None and histogram.channel_highs is not None:
                maxima[name] = np.maximum(-histogram.channel_lows, histogram.channel_highs)
        unseen = frozenset(
            name
            for name, histogram in self.histograms.items()
            if not histogram.elements and not histogram.not_finite
        )
        return Description(ranges, means, self.samples, method, maxima, unseen)


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
        program: The float model. Values of branches that do not see each other get names of their
            own, because what is found out belongs to a name.
        data: Samples: an iterable of dictionaries or tuples, or the path of a folder of ``.npz``.
        operators: Operators that the target may quantize.
        observed_bytes: Most bytes of values that are observed in one run.
        progress: Told (samples done, what happens).

    Raises:
        OptionError: there is no sample, or one does not fit the inputs.
        UnsupportedError: onnxruntime fails on a sample.
    """
    name_apart(program.model)
    values = list(observed_values(program.model, operators))
    axes = _channel_axes(program.model, operators)
    branches = _branches(program, values)
    keeper = _Keeper()
    result = Calibration(gated=frozenset(v.name or "" for v in values if is_gated(v)))
    with TemporaryFolder("calibrate") as folder, Worker() as worker:
        path = folder / "model.onnx"
        # Weights in the model file would be read, and copied for the outputs that are added to it.
        data_files = emit_for_child(program, path)[1:]
        feeds = (user_feeds(program, sample)[0] for sample in samples_of(data))
        for some in observed_together(program, values, feeds):
            taken: list[set[int]] = [set() for _ in some]
            for group in grouped(program, values, some[0], observed_bytes):
                files = [path, *data_files]
                found = _observe(worker, files, some, group, axes, result.histograms)
                for name in branches.keys() & found.keys():
                    for number in found[name]:
                        taken[number].add(branches[name])
            for feed, numbers in zip(some, taken, strict=True):
                result.samples += 1
                keeper.take(frozenset(numbers), feed, values_bytes(program, values, feed))
                if progress is not None:
                    progress(result.samples, "calibrate")
    if not result.samples:
        raise OptionError(
            "calibration-empty",
            "calibration_data has no samples",
            hint="a generator is empty the second time: make a new one for each compile",
        )
    result.kept = keeper.kept
    return result


def _branches(program: Program, values: Iterable[ir.Value]) -> dict[str, int]:
    """Return a number for each value in a branch, the same for all of one branch."""
    numbers: dict[ir.Graph, int] = {}
    return {
        value.name or "": numbers.setdefault(value.graph, len(numbers))
        for value in values
        if value.graph is not None and value.graph is not program.graph
    }


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
    feeds: Sequence[Feed],
    names: Sequence[str],
    axes: Mapping[str, int],
    histograms: dict[str, Histogram],
) -> dict[str, list[int]]:
    """Add what ``names`` are on ``feeds``; return the numbers of the feeds that gave elements."""
    arguments = {
        "model": files[0],
        "data_files": list(files[1:]),
        "feeds": list(feeds),
        "names": list(names),
        "extra_outputs": [name for name in names if name not in feeds[0]],
        "channel_axes": {name: axes[name] for name in names if name in axes},
        "optimization": "disabled",
    }
    seen: dict[str, list[int]] = {}
    for name, plain in worker.call("observe", arguments).items():
        seen[name] = plain.pop("seen")
        histograms.setdefault(name, Histogram()).merge(Histogram(**plain))
    return seen


def recalibrate(
    program: Program,
    before: Calibration,
    operators: frozenset[str],
    worker: Worker | None = None,
) -> Calibration:
    """Return what was observed of ``program``, whose channels a pass has evened out.

    Values that the pass left alone are as they were. Of the others, the channels' extremes over all
    samples follow from those observed; how elements are spread between them is observed again, on
    the samples that were kept.

    Args:
        program: The program after the pass.
        before: What was observed before it.
        operators: Operators that the target may quantize.
        worker: The child that runs it; None: one of its own.
    """
    divided: dict[str, Divided] = program.model.meta.get(FACTS_KEY, {})
    values = [v for v in observed_values(program.model, operators) if v.name in divided]
    names = frozenset(v.name or "" for v in observed_values(program.model, operators))
    result = replace(before, histograms={})
    axes = _channel_axes(program.model, operators)
    with (
        TemporaryFolder("calibrate") as folder,
        Worker() if worker is None else nullcontext(worker) as running,
    ):
        files = emit_for_child(program, folder / "model.onnx")
        for feed in before.kept:
            for group in grouped(program, values, feed, OBSERVED_BYTES):
                _observe(running, files, [feed], group, axes, result.histograms)
    for name, one in divided.items():
        old = before.histograms.get(one.source)
        if name in result.histograms and old is not None:
            _widen(result.histograms[name], old, one.factors)
    for name, histogram in before.histograms.items():
        if name in names:
            result.histograms.setdefault(name, histogram)
    return result


def _widen(histogram: Histogram, old: Histogram, factors: npt.NDArray[np.float64]) -> None:
    """Give ``histogram`` of divided channels the extremes and sums that all samples have."""
    if old.channel_lows is None or old.channel_highs is None or old.channel_sums is None:
        return
    if len(old.channel_sums) != len(factors):
        return
    histogram.channel_lows = old.channel_lows / factors
    histogram.channel_highs = old.channel_highs / factors
    histogram.channel_sums = old.channel_sums / factors
    histogram.channel_count = old.channel_count
    histogram.low = min(histogram.low, float(histogram.channel_lows.min()))
    histogram.high = max(histogram.high, float(histogram.channel_highs.max()))


def _channel_axes(model: ir.Model, operators: frozenset[str]) -> dict[str, int]:
    """Return the axis of the channels, for the values that linear nodes read or that lead there."""
    axes: dict[str, int] = {}
    for node in observable_nodes(model):
        rule = rule_of(node, operators)
        value = node.inputs[0] if node.inputs else None
        if rule is not None and rule.kind == "linear" and value is not None and value.name:
            axes.setdefault(value.name, channel_axis(node))
    for region in regions(model):
        for value, axis in region.values.items():
            axes.setdefault(value.name or "", axis)
    return axes


@dataclass
class _Way:
    """The samples that take the same branches.

    Attributes:
        kept: Number, arrays and bytes of observed values of those that are kept.
        seen: Number of samples so far.
        stride: Every how many-th of them is kept.
    """

    kept: list[tuple[int, Feed, int]] = field(default_factory=list)
    seen: int = 0
    stride: int = 1

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for _, feed, _ in self.kept for array in feed.values())

    def has_too_many(self, ways: int) -> bool:
        """Return whether the part of one of ``ways`` is exceeded."""
        count, observed = len(self.kept), sum(one for _, _, one in self.kept)
        if count <= max(LEAST_KEPT, KEPT_SAMPLES // ways):
            return False
        most = max(LEAST_KEPT, MOST_KEPT_SAMPLES // ways)
        return count > most or observed > KEPT_VALUE_BYTES // ways

    def thin(self) -> None:
        """Let go of every second sample."""
        self.kept = self.kept[::2]
        self.stride *= 2


class _Keeper:
    """Keeps every sample, then every second one of all, every fourth, and so on: a few, spread.

    Samples that take different branches are kept apart from each other, so that what is measured on
    the kept ones has seen each branch.
    """

    def __init__(self) -> None:
        self._ways: dict[frozenset[int], _Way] = {}
        self._samples = 0

    def take(self, branches: frozenset[int], feed: Feed, observed: int) -> None:
        """Take a sample on which ``branches`` were taken, and perhaps keep it."""
        if branches not in self._ways and len(self._ways) == MOST_WAYS:
            branches = next(iter(self._ways))
        way = self._ways.setdefault(branches, _Way())
        number, self._samples = self._samples, self._samples + 1
        way.seen += 1
        if (way.seen - 1) % way.stride:
            return
        arrays = {name: np.array(array) for name, array in feed.items()}
        way.kept.append((number, arrays, observed))
        ways = list(self._ways.values())
        for one in ways:
            while one.has_too_many(len(ways)):
                one.thin()
        while sum(one.nbytes for one in ways) > KEPT_BYTES:
            several = [one for one in ways if len(one.kept) > 1]
            if not several:
                break
            max(several, key=lambda one: one.nbytes).thin()

    @property
    def kept(self) -> list[Feed]:
        """The samples that are kept, in the order in which they came."""
        found = {number: feed for way in self._ways.values() for number, feed, _ in way.kept}
        return [found[number] for number in sorted(found)]
