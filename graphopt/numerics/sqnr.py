"""Signal to quantization noise: how far a quantized model is from the float one, in decibels.

``10 * log10(sum of squares of the reference / sum of squares of the difference)`` over all elements
and samples of one output. Every 6 dB are one bit; 28 dB are an error of 4 % of the output.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.numerics.compare import OutputError, Tolerance, compare_arrays

# Accepted when the user states nothing; benchmarks/int8_trained.py shows what it costs.
DEFAULT_SQNR_DB = 28.0
_HIGHEST_DB = 200.0

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass
class _Energy:
    signal: float = 0.0
    noise: float = 0.0

    @property
    def decibels(self) -> float:
        if self.noise == 0:
            return _HIGHEST_DB
        if self.signal == 0 or not math.isfinite(self.noise):
            return -_HIGHEST_DB
        ratio = 10 * math.log10(self.signal / self.noise)
        return max(-_HIGHEST_DB, min(ratio, _HIGHEST_DB))


def sqnr_db(reference: Sequence[Arrays], found: Sequence[Arrays]) -> dict[str, float]:
    """Return the decibels of every float output over all samples, by name."""
    energies: dict[str, _Energy] = {}
    for wanted, got in zip(reference, found, strict=True):
        for name, expected in wanted.items():
            if expected.dtype.kind != "f":
                continue
            a = expected.astype(np.float64)
            b = got[name].astype(np.float64) if name in got else np.full(a.shape, np.inf)
            energy = energies.setdefault(name, _Energy())
            usable = np.isfinite(a)
            if a.shape != b.shape:
                energy.noise = math.inf
                continue
            with np.errstate(invalid="ignore", over="ignore"):
                energy.signal += float(np.square(a[usable]).sum())
                noise = float(np.square(a[usable] - b[usable]).sum())
            energy.noise += noise if math.isfinite(noise) else math.inf
    return {name: energy.decibels for name, energy in energies.items()}


def compare_by_sqnr(
    reference: Sequence[Arrays], found: Sequence[Arrays], tolerance: Tolerance
) -> list[OutputError]:
    """Compare outputs: floats by their decibels, others must be equal.

    Args:
        reference: Outputs of the float model, one dictionary per sample.
        found: Outputs of the quantized one.
        tolerance: ``sqnr_db`` is what is accepted; with a metric, that decides elsewhere.
    """
    accepted = DEFAULT_SQNR_DB if tolerance.sqnr_db is None else tolerance.sqnr_db
    if tolerance.metric is not None:
        accepted = -math.inf
    decibels = sqnr_db(reference, found)
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
        if name not in decibels:
            if tolerance.metric is not None:
                # Labels may differ as often as the metric allows.
                error.accepted, error.reason = True, ""
            continue
        error.sqnr_db = decibels[name]
        error.accepted = decibels[name] >= accepted
        error.reason = "" if error.accepted else f"{decibels[name]:.1f} dB"
    return list(merged.values())


def worst(decibels: Mapping[str, float]) -> float:
    """Return the smallest of ``decibels``; without float outputs nothing was lost."""
    return min(decibels.values(), default=_HIGHEST_DB)
