"""Histograms of fixed size that grow with what they see, and that merge exactly.

Bins are ``2**exponent`` wide and start at multiples of their width, so two histograms always have
a common refinement of one of them: the finer one is coarsened by adding neighbours, and no count is
ever split. The result does not depend on the order of the samples, nor on how they were batched.

Zeros are counted apart. Every scheme represents zero exactly, so zeros cost nothing, and the many
that a ``Relu`` makes do not hide the rest.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

BINS = 2048
_NO_BINS = np.zeros(0, np.int64)
# Values below this part of the largest magnitude are one bin: a finer one would need more bins.
_SMALLEST_EXPONENT = -140

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass
class Histogram:
    """What was seen of one value.

    Attributes:
        exponent: Bins are ``2**exponent`` wide.
        first: Bin 0 holds the numbers in ``[first, first + 1) * 2**exponent``.
        counts: Number of elements other than zero in each bin; at most ``BINS``.
        zeros: Number of elements that are zero.
        low: Smallest element; infinite when none was seen.
        high: Largest element.
        not_finite: Number of infinities and NaN, which are nowhere else.
        channel_sums: Sum of the elements of each channel, when they were asked for.
        channel_count: Number of elements in each channel.
        channel_lows: Smallest element of each channel, where sums are kept.
        channel_highs: Largest element of each channel.
    """

    exponent: int = 0
    first: int = 0
    counts: Counts = field(default_factory=lambda: _NO_BINS)
    zeros: int = 0
    low: float = math.inf
    high: float = -math.inf
    not_finite: int = 0
    channel_sums: Floats | None = None
    channel_count: int = 0
    channel_lows: Floats | None = None
    channel_highs: Floats | None = None

    @property
    def elements(self) -> int:
        """Number of finite elements seen."""
        return self.zeros + int(self.counts.sum())

    @property
    def centres(self) -> Floats:
        """Middle of each bin."""
        width = math.ldexp(1.0, self.exponent)
        places = np.arange(len(self.counts), dtype=np.float64)
        return (places + (self.first + 0.5)) * width

    def merge(self, other: "Histogram") -> None:
        """Take over what ``other`` saw."""
        self.zeros += other.zeros
        self.not_finite += other.not_finite
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self._merge_channels(other)
        if not len(other.counts):
            return
        if not len(self.counts):
            self.exponent, self.first = other.exponent, other.first
            self.counts = other.counts.copy()
            return
        exponent = max(self.exponent, other.exponent)
        while True:
            mine, theirs = _span(self, exponent), _span(other, exponent)
            first, last = min(mine[0], theirs[0]), max(mine[1], theirs[1])
            if last - first < BINS:
                break
            exponent += 1
        counts = np.zeros(last - first + 1, np.int64)
        for part in (self, other):
            shift = exponent - part.exponent
            places = ((part.first + np.arange(len(part.counts))) >> shift) - first
            np.add.at(counts, places, part.counts)
        self.exponent, self.first, self.counts = exponent, first, counts

    def _merge_channels(self, other: "Histogram") -> None:
        if other.channel_sums is None or other.channel_lows is None or other.channel_highs is None:
            return
        if self.channel_sums is None or self.channel_lows is None or self.channel_highs is None:
            self.channel_sums = other.channel_sums.copy()
            self.channel_lows = other.channel_lows.copy()
            self.channel_highs = other.channel_highs.copy()
        elif len(self.channel_sums) == len(other.channel_sums):
            self.channel_sums = self.channel_sums + other.channel_sums
            self.channel_lows = np.minimum(self.channel_lows, other.channel_lows)
            self.channel_highs = np.maximum(self.channel_highs, other.channel_highs)
        self.channel_count += other.channel_count

    def to_dict(self) -> dict[str, Any]:
        """Return the histogram as plain data and arrays, as a child process hands it over."""
        return dict(vars(self))


def histogram_of(array: npt.NDArray[Any], channel_axis: int | None = None) -> Histogram:
    """Return the histogram of ``array``, in time linear in its size.

    Args:
        array: Numbers of any float type.
        channel_axis: Axis whose sums and extremes are kept, None for none.
    """
    flat = array.reshape(-1)
    finite = np.isfinite(flat)
    bad = flat.size - int(np.count_nonzero(finite))
    flat = flat[finite] if bad else flat
    result = Histogram(not_finite=bad)
    if channel_axis is not None and not bad and -array.ndim <= channel_axis < array.ndim:
        others = tuple(i for i in range(array.ndim) if i != channel_axis % array.ndim)
        result.channel_sums = array.sum(axis=others, dtype=np.float64).reshape(-1)
        result.channel_count = flat.size // max(1, array.shape[channel_axis])
        lows = array.min(axis=others, initial=math.inf)
        highs = array.max(axis=others, initial=-math.inf)
        result.channel_lows = lows.reshape(-1).astype(np.float64)
        result.channel_highs = highs.reshape(-1).astype(np.float64)
    if not flat.size:
        return result
    low, high = float(flat.min()), float(flat.max())
    result.low, result.high = low, high
    rest = flat[flat != 0]
    result.zeros = flat.size - rest.size
    if not rest.size:
        return result
    low, high = float(rest.min()), float(rest.max())
    largest = max(abs(low), abs(high))
    exponent = max(math.frexp(max(high - low, largest * 2**-23))[1], _SMALLEST_EXPONENT)
    exponent -= BINS.bit_length() - 1
    while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= BINS:
        exponent += 1
    scaled = np.multiply(rest, math.ldexp(1.0, -exponent), dtype=np.float64)
    np.floor(scaled, out=scaled)
    result.exponent, result.first = exponent, math.floor(math.ldexp(low, -exponent))
    places = (scaled - result.first).astype(np.int64)
    result.counts = np.bincount(places).astype(np.int64)
    return result


def _span(histogram: Histogram, exponent: int) -> tuple[int, int]:
    """Return the first and the last bin of ``histogram`` in bins of ``2**exponent``."""
    shift = exponent - histogram.exponent
    last = histogram.first + len(histogram.counts) - 1
    return histogram.first >> shift, last >> shift
