"""What half precision is judged on: samples, and the range of every value on them.

In: a float program, the user's samples or none. Out: feeds one after another, and the smallest and
largest number of each value, reduced in the child process so that memory does not grow with the
samples.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import UnsupportedError
from graphopt.ir.constants import constant_of
from graphopt.ir.dims import evaluate, symbols_of
from graphopt.ir.half_facts import is_float
from graphopt.ir.op_facts import is_data_movement
from graphopt.ir.program import Program, dims_of, is_onnx
from graphopt.isolation import Worker
from graphopt.numerics.calibration import samples_of
from graphopt.numerics.candidates import run_plain
from graphopt.numerics.feeds import Feed, index_limit, make_feed, size_choices
from graphopt.numerics.verify import user_feeds

SEEDED_SAMPLES = 2
_MAX_TRIES = 12
_OBSERVED_BYTES = 256 << 20
_KEPT_SAMPLES = 8
_KEPT_BYTES = 64 << 20


@dataclass
class Observed:
    """What the samples showed.

    Attributes:
        inputs: "user" or "seeded".
        samples: Number of samples seen.
        kept: Some of them, to measure the error on.
        ranges: Name of a value -> smallest and largest finite number.
    """

    inputs: str
    samples: int = 0
    kept: list[Feed] = field(default_factory=list)
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)

    def keep(self, feed: Feed) -> None:
        """Keep ``feed`` where it is one of the first and there is room."""
        held = sum(array.nbytes for kept in self.kept for array in kept.values())
        size = sum(array.nbytes for array in feed.values())
        if len(self.kept) < _KEPT_SAMPLES and (not self.kept or held + size <= _KEPT_BYTES):
            self.kept.append({name: array.copy() for name, array in feed.items()})


def observe(
    program: Program,
    files: Sequence[Path],
    samples: Any,
    worker: Worker,
    *,
    bindings: Mapping[str, int],
    seed: int,
    ranges: bool,
) -> Observed:
    """Run the float ``program`` on every sample.

    Args:
        program: The model, with types.
        files: The files of the model, the model first.
        samples: A tuple or a dictionary is one sample; a list, a generator or a folder of ``.npz``
            files holds several; None: seeded ones.
        worker: The child that runs it.
        bindings: Sizes of named dimensions for seeded samples.
        seed: Seed of seeded samples.
        ranges: Whether ranges are wanted.

    Raises:
        OptionError: there is no sample, or one does not fit the inputs.
        UnsupportedError: onnxruntime fails on the samples.
    """
    found = Observed("seeded" if samples is None else "user")
    if samples is None:
        feeds = iter(_seeded(program, files, worker, bindings, seed))
    else:
        feeds = _feeds(program, samples)
    names = [value.name or "" for value in _values(program.model)] if ranges else []
    for feed in feeds:
        found.samples += 1
        found.keep(feed)
        for group in _groups(program, names, feed):
            _observe(worker, files, feed, group, found.ranges)
    if not found.samples:
        raise UnsupportedError(
            "half-samples",
            "half precision is judged on samples, and there is none",
            hint="a generator is empty the second time: make a new one for each compile",
        )
    return found


def _feeds(program: Program, samples: Any) -> Iterator[Feed]:
    one = isinstance(samples, Mapping) or (
        isinstance(samples, tuple) and not any(isinstance(s, (Mapping, tuple)) for s in samples)
    )
    for sample in [samples] if one else samples_of(samples):
        yield from user_feeds(program, sample)


def _seeded(
    program: Program, files: Sequence[Path], worker: Worker, bindings: Mapping[str, int], seed: int
) -> list[Feed]:
    """Return seeded samples of the first sizes that the model accepts."""
    refusal = "no sizes to try"
    for sizes in islice(size_choices(program, bindings), _MAX_TRIES):
        try:
            feeds = [make_feed(program, sizes, seed + number) for number in range(SEEDED_SAMPLES)]
            for feed in feeds:
                _make_switches(program, feed, sizes)
                run_plain(worker, files, feed)
        except UnsupportedError as error:
            refusal = error.message
            continue
        return feeds
    raise UnsupportedError(
        "half-samples",
        f"the model does not run on seeded samples, so its ranges cannot be found: {refusal}",
        hint="give example inputs, or sizes (--dim NAME=SIZE)",
    )


def _make_switches(program: Program, feed: Feed, sizes: Mapping[str, int]) -> None:
    """Cut integers that are calculated with to 0 and 1: most are masks, and others have no range.

    A mask of 9 takes nine times the largest number from an attention, which no real one does.
    """
    for value in program.graph.inputs:
        array = feed[value.name or ""]
        if array.dtype.kind in "iu" and index_limit(value, sizes) is None and _is_number(value):
            feed[value.name or ""] = np.minimum(array, 1)


def _is_number(value: ir.Value) -> bool:
    """Return whether an integer becomes a float, perhaps moved before."""
    pending, seen = [value], {value}
    for current in pending:
        for user, _ in current.uses():
            if is_onnx(user, "Cast") and is_float(user.outputs[0]):
                return True
            fresh = [v for v in user.outputs if is_data_movement(user) and v not in seen]
            seen.update(fresh)
            pending += fresh
    return False


def _values(model: ir.Model) -> Iterator[ir.Value]:
    """Yield the floats that the main graph computes or is given; bodies cannot be looked into."""
    for value in model.graph.inputs:
        if is_float(value):
            yield value
    for node in model.graph:
        for value in node.outputs:
            if is_float(value) and value.name and constant_of(value) is None:
                yield value


def _groups(program: Program, names: Sequence[str], feed: Feed) -> Iterator[Sequence[str]]:
    """Yield the names that are observed together, so that their values fit into memory."""
    sizes = _symbols(program, feed)
    fed = sum(array.nbytes for array in feed.values())
    nbytes = {value.name or "": _nbytes(value, sizes, fed) for value in _values(program.model)}
    group: list[str] = []
    total = 0
    for name in names:
        if group and total + nbytes[name] > _OBSERVED_BYTES:
            yield group
            group, total = [], 0
        group.append(name)
        total += nbytes[name]
    if group:
        yield group


def _symbols(program: Program, feed: Feed) -> dict[str, int]:
    """Return the sizes of the symbols that the shapes of ``feed`` settle."""
    sizes: dict[str, int] = {}
    for value in program.graph.inputs:
        array = feed.get(value.name or "")
        if array is not None:
            for dim, size in zip(dims_of(value) or (), array.shape, strict=False):
                if str(dim) in symbols_of(dim):
                    sizes[str(dim)] = size
    return sizes


def _nbytes(value: ir.Value, sizes: Mapping[str, int], unknown: int) -> int:
    """Return the bytes of ``value``; one whose size depends on data counts as ``unknown``."""
    dims = dims_of(value)
    try:
        return 4 * math.prod(evaluate(dim, sizes) for dim in dims or ()) if dims else unknown
    except KeyError:
        return unknown


def _observe(
    worker: Worker,
    files: Sequence[Path],
    feed: Feed,
    names: Sequence[str],
    ranges: dict[str, tuple[float, float]],
) -> None:
    arguments = {
        "model": files[0],
        "data_files": list(files[1:]),
        "feeds": [feed],
        "names": list(names),
        "extra_outputs": [name for name in names if name not in feed],
        "channel_axes": {},
        "optimization": "disabled",
    }
    for name, histogram in worker.call("observe", arguments).items():
        low, high = ranges.get(name, (math.inf, -math.inf))
        ranges[name] = min(low, histogram["low"]), max(high, histogram["high"])
