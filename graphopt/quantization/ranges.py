"""From what was observed to the range that is kept: the four methods, and scale and zero point.

min-max
    Everything that was seen.
percentile
    All but a small part of the elements, cut at each end by as much as leaves that part outside.
entropy
    The range whose quantized distribution has the smallest Kullback-Leibler divergence from the
    observed one (Migacz, 8-bit inference with TensorRT, GTC 2017), searched at both ends.
mse
    The range with the smallest mean squared error of rounding and clipping together (Banner et
    al., Post training 4-bit quantization of convolutional networks, NeurIPS 2019, section 3; here
    on the histogram in place of a fitted distribution).

Ranges always hold zero, because padding and ``Relu`` need it exactly.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphopt.quantization.histogram import Floats, Histogram

METHODS = ("min-max", "percentile", "entropy", "mse")
# Quantized types: (smallest, largest).
LIMITS = {"uint8": (0, 255), "int8": (-128, 127)}
# Narrower ranges would give scales that float32 rounds badly.
_LEAST_WIDTH = 1e-4
_STEPS = 48
_LEAST_KEPT = 0.1
_PERCENTILE = 99.999


@dataclass(frozen=True)
class Scheme:
    """How activations are stored.

    Attributes:
        dtype: "uint8" or "int8".
        symmetric: Whether the zero point must be 0; the range of int8 is then [-127, 127].
    """

    dtype: str = "uint8"
    symmetric: bool = False

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest integer that is used."""
        low, high = LIMITS[self.dtype]
        return (-high, high) if self.symmetric and low < 0 else (low, high)


@dataclass(frozen=True)
class Params:
    """Real number = ``scale * (integer - zero_point)``; ``scale`` is exact in float32."""

    scale: float
    zero_point: int


def params_for(low: float, high: float, scheme: Scheme) -> Params:
    """Return scale and zero point of the range ``[low, high]``, widened to hold zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    smallest, largest = scheme.limits
    if scheme.symmetric:
        bound = max(-low, high, _LEAST_WIDTH / 2)
        return Params(float(np.float32(bound / largest)), 0)
    width = max(high - low, _LEAST_WIDTH)
    scale = float(np.float32(width / (largest - smallest)))
    zero = smallest - round(low / scale)
    return Params(scale, int(min(max(zero, smallest), largest)))


def range_of(
    histogram: Histogram, method: str, scheme: Scheme, *, gated: bool = False
) -> tuple[float, float]:
    """Return the range that ``method`` keeps of what ``histogram`` saw.

    Args:
        histogram: What was seen.
        method: One of ``METHODS``.
        scheme: How the numbers are stored.
        gated: All that is done with a number ``x`` is ``x * sigmoid(x)``. Then ``mse`` measures
            the error after that: far below zero it vanishes, and so does the need for range.
    """
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if method == "min-max" or len(histogram.counts) < 2:
        return low, high
    if method == "percentile":
        return _percentile(histogram, low, high)
    cost = _entropy if method == "entropy" else _gated_error if gated else _squared_error
    return _search(histogram, low, high, scheme, cost)


Cost = Callable[[Histogram, float, float, Scheme], float]


def _search(
    histogram: Histogram, low: float, high: float, scheme: Scheme, cost: Cost
) -> tuple[float, float]:
    """Return the cheapest range, found by shrinking one end after the other.

    The cost has one valley along each end in practice; two rounds settle both.
    """
    parts = np.linspace(1.0, _LEAST_KEPT, _STEPS)
    if scheme.symmetric:
        bound = max(-low, high)
        costs = [cost(histogram, -bound * p, bound * p, scheme) for p in parts]
        best = bound * parts[int(np.argmin(costs))]
        return max(low, -best), min(high, best)
    kept_low, kept_high = low, high
    for _ in range(2):
        if high > 0:
            costs = [cost(histogram, kept_low, high * p, scheme) for p in parts]
            kept_high = high * float(parts[int(np.argmin(costs))])
        if low < 0:
            costs = [cost(histogram, low * p, kept_high, scheme) for p in parts]
            kept_low = low * float(parts[int(np.argmin(costs))])
        if not (low < 0 < high):
            break
    return kept_low, kept_high


def _squared_error(histogram: Histogram, low: float, high: float, scheme: Scheme) -> float:
    centres = histogram.centres
    errors = centres - _rounded(centres, low, high, scheme)
    # Inside a bin the elements differ from its middle, and so do their roundings.
    inside = (2.0**histogram.exponent) ** 2 / 12
    return float(histogram.counts @ (errors * errors + inside))


def _gated_error(histogram: Histogram, low: float, high: float, scheme: Scheme) -> float:
    centres = histogram.centres
    # A quarter of a bin to either side: one number in the middle would meet a level by chance.
    step = 2.0**histogram.exponent / 4
    total = 0.0
    for shifted in (centres - step, centres + step):
        errors = _gate(shifted) - _gate(_rounded(shifted, low, high, scheme))
        total += float(histogram.counts @ (errors * errors))
    return total


def _gate(numbers: Floats) -> Floats:
    """Return ``x * sigmoid(x)``."""
    gated: Floats = numbers / (1 + np.exp(-np.clip(numbers, -60, 60)))
    return gated


def _rounded(numbers: Floats, low: float, high: float, scheme: Scheme) -> Floats:
    """Return what is left of ``numbers`` in integers of the range."""
    params = params_for(low, high, scheme)
    smallest, largest = scheme.limits
    integers = np.clip(np.rint(numbers / params.scale) + params.zero_point, smallest, largest)
    rounded: Floats = (integers - params.zero_point) * params.scale
    return rounded


def _entropy(histogram: Histogram, low: float, high: float, scheme: Scheme) -> float:
    params = params_for(low, high, scheme)
    smallest, largest = scheme.limits
    counts = histogram.counts.astype(np.float64)
    steps = np.rint(histogram.centres / params.scale) + params.zero_point
    levels = np.clip(steps, smallest, largest).astype(np.int64) - smallest
    inside = (steps >= smallest) & (steps <= largest)
    # What is clipped is moved to the ends in the reference and is missing in the candidate.
    reference = np.where(inside, counts, 0.0)
    ends = np.flatnonzero(inside)
    if not len(ends):
        return float("inf")
    reference[ends[0]] += counts[: ends[0]].sum()
    reference[ends[-1]] += counts[ends[-1] + 1 :].sum()
    kept = np.where(inside, counts, 0.0)
    size = largest - smallest + 1
    totals = np.bincount(levels, kept, size)
    occupied = np.bincount(levels, kept > 0, size)
    spread = np.divide(totals, occupied, out=np.zeros(size), where=occupied > 0)
    candidate = np.where(kept > 0, spread[levels], 0.0)
    return _divergence(reference, candidate)


def _divergence(reference: Floats, candidate: Floats) -> float:
    """Return the Kullback-Leibler divergence of two counts; a missing bin counts as one element."""
    total, found = reference.sum(), candidate.sum()
    if not total or not found:
        return float("inf")
    mask = reference > 0
    p = reference[mask] / total
    q = np.maximum(candidate[mask] / found, 0.5 / total)
    return float((p * np.log(p / q)).sum())


def _percentile(histogram: Histogram, low: float, high: float) -> tuple[float, float]:
    """Return the range that leaves 0.001 % outside, cut at the nearest edges of bins."""
    outside = histogram.elements * (1 - _PERCENTILE / 100) / 2
    width = 2.0**histogram.exponent
    below = np.cumsum(histogram.counts)
    above = np.cumsum(histogram.counts[::-1])[::-1]
    first = int(np.searchsorted(below, outside, side="right"))
    last = len(above) - 1 - int(np.searchsorted(above[::-1], outside, side="right"))
    kept_low = max(low, (histogram.first + min(first, len(below) - 1)) * width)
    kept_high = min(high, (histogram.first + max(last, 0) + 1) * width)
    return min(kept_low, 0.0), max(kept_high, 0.0)


def quantize_array(
    array: npt.NDArray[np.floating], params: Params, scheme: Scheme
) -> npt.NDArray[np.integer]:
    """Return the integers of ``array``, in the type of ``scheme``."""
    smallest, largest = scheme.limits
    wide = np.rint(array.astype(np.float64) / params.scale) + params.zero_point
    integers: npt.NDArray[np.integer] = np.clip(wide, smallest, largest).astype(scheme.dtype)
    return integers
