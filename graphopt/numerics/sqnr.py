"""Signal to quantization noise: how far a quantized model is from the float one, in decibels.

``10 * log10(sum of squares of the reference / sum of squares of the difference)`` over all elements
and samples of one output. Every 6 dB are one bit; 28 dB are an error of 4 % of the output. An
output that only joins values is as good as the worst of them, see ``parts.py``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.numerics.compare import OutputError, Tolerance, compare_arrays
from graphopt.numerics.parts import NO_PARTS, Parts

# Accepted when the user states nothing; benchmarks/int8_trained.py shows what it costs.
DEFAULT_SQNR_DB = 28.0
_HIGHEST_DB = 200.0

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass
class _Energy:
    """Sums of squares: of a whole output at index 0, then of each value that it joins."""

    signal: npt.NDArray[np.float64]
    noise: npt.NDArray[np.float64]

    def decibels(self) -> tuple[float, int]:
        """Return the least decibels, and the index they are found at."""
        found = [_decibels(a, b) for a, b in zip(self.signal, self.noise, strict=True)]
        # What is zero on all samples has no signal that noise could be compared with.
        measured = [0, *np.flatnonzero(self.signal[1:] > 0) + 1]
        least = min(measured, key=lambda index: found[index])
        return found[least], int(least)


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return _HIGHEST_DB
    if signal == 0 or not math.isfinite(noise):
        return -_HIGHEST_DB
    ratio = 10 * math.log10(signal / noise)
    return max(-_HIGHEST_DB, min(ratio, _HIGHEST_DB))


def sqnr_db(
    reference: Sequence[Arrays], found: Sequence[Arrays], parts: Parts = NO_PARTS
) -> dict[str, float]:
    """Return the decibels of every float output over all samples, by name.

    Those of an output that joins values are the least of its own and of theirs.
    """
    energies = _energies(reference, found, parts)
    return {name: energy.decibels()[0] for name, energy in energies.items()}


def _energies(
    reference: Sequence[Arrays], found: Sequence[Arrays], parts: Parts
) -> dict[str, _Energy]:
    energies: dict[str, _Energy] = {}
    for sample, (wanted, got) in enumerate(zip(reference, found, strict=True)):
        for name, expected in wanted.items():
            if expected.dtype.kind != "f":
                continue
            count = 1 + len(parts.names.get(name, ()))
            energy = energies.setdefault(name, _Energy(np.zeros(count), np.zeros(count)))
            a = expected.astype(np.float64)
            b = got[name].astype(np.float64) if name in got else np.full(a.shape, np.inf)
            if a.shape != b.shape:
                energy.noise[0] = math.inf
                continue
            usable = np.isfinite(a)
            with np.errstate(invalid="ignore", over="ignore"):
                signal = np.square(np.where(usable, a, 0.0))
                noise = np.square(np.where(usable, a - b, 0.0))
            noise = np.where(np.isfinite(noise), noise, math.inf)
            energy.signal[0] += signal.sum()
            energy.noise[0] += noise.sum()
            if count > 1:
                labels = parts.labels[sample][name].ravel()
                for sums, squares in ((energy.signal, signal), (energy.noise, noise)):
                    sums[1:] += np.bincount(labels, squares.ravel(), count - 1)
    return energies


def compare_by_sqnr(
    reference: Sequence[Arrays],
    found: Sequence[Arrays],
    tolerance: Tolerance,
    parts: Parts = NO_PARTS,
) -> list[OutputError]:
    """Compare outputs: floats by their decibels, others must be equal.

    Args:
        reference: Outputs of the float model, one dictionary per sample.
        found: Outputs of the quantized one.
        tolerance: ``sqnr_db`` is what is accepted; with a metric, that decides elsewhere.
        parts: What the outputs join.
    """
    accepted = DEFAULT_SQNR_DB if tolerance.sqnr_db is None else tolerance.sqnr_db
    if tolerance.metric is not None:
        accepted = -math.inf
    energies = _energies(reference, found, parts)
    merged: dict[str, OutputError] = {}
    for wanted, got in zip(reference, found, strict=True):
        for name, expected in wanted.items():
            other = got.get(name)
            if other is None:
                error = OutputError(name, math.inf, math.inf, False, "the output is missing")
            else:
                error = compare_arrays(name, expected, other, replace(tolerance, sqnr_db=None))
            merged.setdefault(name, OutputError(name)).merge(error)
    for name, error in merged.items():
        if name not in energies:
            if tolerance.metric is not None:
                # Labels may differ as often as the metric allows.
                error.accepted, error.reason = True, ""
            continue
        error.sqnr_db, index = energies[name].decibels()
        above = parts.above(name)
        error.accepted = error.sqnr_db >= accepted + above
        if not error.accepted:
            error.reason = _reason(name, error.sqnr_db, index, parts)
    return list(merged.values())


def _reason(name: str, decibels: float, index: int, parts: Parts) -> str:
    """Return what is too low in an output; ``index`` is that of ``_Energy.decibels``."""
    above = parts.above(name)
    text = f"{decibels:.1f} dB"
    if index:
        text += f" in what it joins from '{parts.names[name][index - 1]}'"
    return f"{text} and needs {above:g} dB more since later runs read it" if above else text


def worst(decibels: Mapping[str, float], parts: Parts = NO_PARTS) -> float:
    """Return the smallest of ``decibels``; without float outputs nothing was lost.

    Of an output that needs more than others, that is taken off.
    """
    return min((db - parts.above(name) for name, db in decibels.items()), default=_HIGHEST_DB)
