"""Tables of rows as integers: one scale for the table, or one for each column or each row.

A row is used alone, and what follows often normalizes it: what counts is the error of a row beside
the row itself. One scale for all is the smallest form and the fastest to widen; scales of columns
or rows are taken where they are clearly closer, as they are for a few large columns or rows.
"""

import numpy as np
import numpy.typing as npt

from graphopt.quantization.weights import row_pieces

_LARGEST = 127
# Rows on which the forms are compared.
_SAMPLE = 1024
# A scale for each column takes little and must take away one decibel of the noise. One for each
# row takes four bytes a row and a second Gather, and must take away three: half a bit.
_COLUMNS_GAIN, _ROWS_GAIN = 10**0.1, 10**0.3


def table_scales(array: npt.NDArray[np.floating]) -> tuple[int, npt.NDArray[np.float32]]:
    """Return the axis that the scales are on, and the scales; a single one is for all.

    Args:
        array: A table, one entry a row; it is read a piece at a time.
    """
    rows, columns = np.zeros(array.shape[0], np.float64), np.zeros(array.shape[1], np.float64)
    for piece in row_pieces(array):
        magnitudes = np.abs(array[piece])
        rows[piece] = magnitudes.max(axis=1)
        columns = np.maximum(columns, magnitudes.max(axis=0))
    step = -(-array.shape[0] // _SAMPLE)
    sample = array[::step].astype(np.float64)
    forms = [(0, _scales(columns.max(keepdims=True))), (1, _scales(columns)), (0, _scales(rows))]
    shapes = [forms[0][1][:, None], forms[1][1][None, :], forms[2][1][::step, None]]
    noises = [_noise(sample, scales.astype(np.float64)) for scales in shapes]
    best = 1 if noises[1] * _COLUMNS_GAIN < noises[0] else 0
    return forms[2] if noises[2] * _ROWS_GAIN < noises[best] else forms[best]


def _scales(largest: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    scales = (largest / _LARGEST).astype(np.float32)
    return np.where(scales > 0, scales, np.float32(1.0)).astype(np.float32)


def _noise(rows: npt.NDArray[np.float64], scales: npt.NDArray[np.float64]) -> float:
    """Return the mean noise of a row beside its own energy; rows of zeros do not count."""
    energies = np.square(rows).sum(axis=1)
    noise = np.square(rows - np.rint(rows / scales) * scales).sum(axis=1)
    known = energies > 0
    return float(np.mean(noise[known] / energies[known])) if known.any() else 0.0
