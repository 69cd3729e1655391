"""Loops of ``scale_search`` for numba; without it they are never called.

Each makes, bit by bit, what the numpy form of the same name in ``scale_search`` makes: sums run
from the first row to the last in float32, and nothing is contracted or reordered. Rows are taken
four at a time so that the sums of a column stay in a register for four rows.
"""

from typing import Any

import numpy as np

_ZERO, _ONE = np.float32(0), np.float32(1)
_TINY = np.finfo(np.float32).tiny


def best_scales(
    columns: Any, scales: Any, low: Any, high: Any, parts: Any, work: Any, best: Any
) -> None:
    """Fill ``best`` with the scale of each column whose integers lose least.

    Args:
        columns: [rows, columns].
        scales: Of each column, the range 1.0.
        low: Smallest step from zero of each column.
        high: Largest step from zero of each column.
        parts: Ranges.
        work: Space, [6, columns].
        best: The result.
    """
    rows, count = columns.shape
    tried, inverse, least = work[0], work[1], work[2]
    lefts, crossed, squares = work[3], work[4], work[5]
    for j in range(count):
        least[j] = np.inf
    for part in parts:
        for j in range(count):
            scale = scales[j] * part
            scale = _ONE if abs(scale) < _TINY else scale
            tried[j] = scale
            inverse[j] = _ONE / scale
            lefts[j] = _ZERO
            crossed[j] = _ZERO
            squares[j] = _ZERO
        whole = rows - rows % 4
        for i in range(0, whole, 4):
            for j in range(count):
                factor, bottom, top = inverse[j], low[j], high[j]
                left_sum, cross_sum, square_sum = lefts[j], crossed[j], squares[j]
                left = columns[i, j] * factor
                step = min(max(np.rint(left), bottom), top)
                left -= step
                left_sum += left * left
                cross_sum += left * step
                square_sum += step * step
                left = columns[i + 1, j] * factor
                step = min(max(np.rint(left), bottom), top)
                left -= step
                left_sum += left * left
                cross_sum += left * step
                square_sum += step * step
                left = columns[i + 2, j] * factor
                step = min(max(np.rint(left), bottom), top)
                left -= step
                left_sum += left * left
                cross_sum += left * step
                square_sum += step * step
                left = columns[i + 3, j] * factor
                step = min(max(np.rint(left), bottom), top)
                left -= step
                left_sum += left * left
                cross_sum += left * step
                square_sum += step * step
                lefts[j] = left_sum
                crossed[j] = cross_sum
                squares[j] = square_sum
        for i in range(whole, rows):
            for j in range(count):
                left = columns[i, j] * inverse[j]
                step = min(max(np.rint(left), low[j]), high[j])
                left -= step
                lefts[j] += left * left
                crossed[j] += left * step
                squares[j] += step * step
        for j in range(count):
            moved = crossed[j] / squares[j] if squares[j] > _ZERO else _ZERO
            error = (lefts[j] - crossed[j] * moved) * (tried[j] * tried[j])
            offered = tried[j] * (_ONE + moved)
            offered = _ONE if abs(offered) < _TINY else offered
            if error < least[j]:
                least[j] = error
                best[j] = offered


def rests(columns: Any, inverses: Any, limit: Any, height: int, sums: Any) -> None:
    """Fill ``sums`` with the squares that integers leave, in steps, over ``height`` rows each.

    Args:
        columns: [rows, columns]; the rows are a multiple of ``height``.
        inverses: [ranges, columns], one by the scale.
        limit: The largest integer; the smallest is its negative.
        height: Rows of a sum.
        sums: The result, [ranges, rows / height, columns].
    """
    count = columns.shape[1]
    for piece in range(columns.shape[0] // height):
        first = piece * height
        whole = first + height - height % 4
        for tried in range(len(inverses)):
            for j in range(count):
                sums[tried, piece, j] = _ZERO
            for i in range(first, whole, 4):
                for j in range(count):
                    factor, total = inverses[tried, j], sums[tried, piece, j]
                    left = columns[i, j] * factor
                    left -= min(max(np.rint(left), -limit), limit)
                    total += left * left
                    left = columns[i + 1, j] * factor
                    left -= min(max(np.rint(left), -limit), limit)
                    total += left * left
                    left = columns[i + 2, j] * factor
                    left -= min(max(np.rint(left), -limit), limit)
                    total += left * left
                    left = columns[i + 3, j] * factor
                    left -= min(max(np.rint(left), -limit), limit)
                    total += left * left
                    sums[tried, piece, j] = total
            for i in range(whole, first + height):
                for j in range(count):
                    left = columns[i, j] * inverses[tried, j]
                    left -= min(max(np.rint(left), -limit), limit)
                    sums[tried, piece, j] += left * left


def packed_integers(
    columns: Any, scales: Any, zeros: Any, smallest: Any, largest: Any, packed: Any
) -> None:
    """Fill ``packed`` with the integers of ``columns``, two rows in one, the first in the low half.

    Args:
        columns: [rows, columns]; the rows are even.
        scales: Of each column.
        zeros: Of each column.
        smallest: The smallest integer.
        largest: The largest integer.
        packed: The result, [rows / 2, columns].
    """
    rows, count = columns.shape
    for i in range(0, rows, 2):
        for j in range(count):
            low = np.rint(columns[i, j] / scales[j]) + zeros[j]
            high = np.rint(columns[i + 1, j] / scales[j]) + zeros[j]
            low = min(max(low, smallest), largest)
            high = min(max(high, smallest), largest)
            packed[i // 2, j] = np.uint8(low) | (np.uint8(high) << np.uint8(4))
