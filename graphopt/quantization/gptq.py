"""Error-compensated rounding (Frantar et al., "GPTQ", arXiv 2210.17323): weights of few bits.

In: rows of a matrix, the Hessian ``H = sum x x^T`` of the inputs that it multiplies, a scheme. Out:
integers, scales and zero points in the blocks of ``block_weights``.

The output of a product changes by ``E x`` where the weights change by ``E``, so what rounding costs
over all samples is ``tr(E H E^T)``. Columns are rounded one after another, and each hands its error
on to the columns that are not rounded yet, in the way that costs least. With ``H^-1 = U^T U``, U
upper triangular, that is to take ``U[j, k] / U[j, j]`` times the error of column j off column k.

Stages: (1) the order of the columns: blocks, and columns within a block, the busiest first, so that
the largest errors still find columns to take them; a block stays together, because its scale is
found from the weights as they are when its first column is reached. (2) the factor U of the damped
Hessian. (3) columns in batches: within a batch errors are handed on at once, to the columns behind
it by one product of matrices when the batch is done. Rows do not touch each other, so any number of
them is rounded at a time, and the memory needed is that of the factor.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from graphopt.quantization.block_weights import (
    BlockScheme,
    Bytes,
    Floats,
    fitted_scales,
    num_blocks,
)

# The part of its mean that is added to the diagonal of a Hessian; more where that is not enough to
# make it positive definite in the numbers of the machine.
DAMPING = (0.01, 0.1, 1.0)
BATCH = 128
_LEAF = 128

Doubles = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Order:
    """The order in which columns are rounded.

    Attributes:
        columns: All columns.
        blocks: The blocks, in the order in which they come.
        starts: Where each of them starts in ``columns``, and the number of columns.
    """

    columns: Places
    blocks: tuple[int, ...]
    starts: tuple[int, ...]


@dataclass(frozen=True)
class Compensation:
    """What rounding needs to know of the inputs: serves every matrix that they are multiplied by.

    Attributes:
        order: The order of the columns.
        factor: U of the columns in this order.
        damping: The part of the mean that was added to the diagonal.
    """

    order: Order
    factor: Doubles
    damping: float


def order_of(diagonal: Doubles, block: int, *, by_activation: bool = True) -> Order:
    """Return the order for a Hessian with ``diagonal``: the busiest first, or as they stand.

    Args:
        diagonal: Of the Hessian.
        block: Columns that share a scale; 0 for all.
        by_activation: False leaves the columns as they stand.
    """
    count = len(diagonal)
    width = block or count
    edges = range(0, count, width)
    blocks = list(range(len(edges)))
    if by_activation:
        sums = np.add.reduceat(diagonal, np.array(edges))
        blocks = np.argsort(-sums, kind="stable").tolist()
    pieces, starts = [], [0]
    for number in blocks:
        piece = np.arange(number * width, min((number + 1) * width, count))
        if by_activation:
            piece = piece[np.argsort(-diagonal[piece], kind="stable")]
        pieces.append(piece)
        starts.append(starts[-1] + len(piece))
    return Order(np.concatenate(pieces), tuple(blocks), tuple(starts))


def compensation_of(
    hessian: npt.NDArray[np.floating], block: int, *, by_activation: bool = True
) -> Compensation | None:
    """Return order and factor for ``hessian``; None where it holds infinities or NaN.

    A column whose input was always zero is rounded on its own: nothing is known of it.
    """
    diagonal = np.diagonal(hessian).astype(np.float64)
    mean = float(diagonal.mean())
    if not np.isfinite(hessian).all() or mean <= 0:
        return None
    order = order_of(diagonal, block, by_activation=by_activation)
    for damping in DAMPING:
        try:
            return Compensation(order, _factor(hessian, order, damping * mean), damping)
        except np.linalg.LinAlgError:
            continue
    return None


def _factor(hessian: npt.NDArray[np.floating], order: Order, damping: float) -> Doubles:
    """Return the upper triangular U with ``U^T U = M^-1`` for the damped and sorted Hessian M.

    Turned around, ``M = L L^T`` with a lower L, which turned back is ``R R^T`` with an upper R; its
    inverse is U. So the inverse of M is never computed.
    """
    turned = order.columns[::-1]
    matrix = hessian[np.ix_(turned, turned)].astype(np.float64, copy=False)
    matrix[np.diag_indices_from(matrix)] += damping
    lower = np.linalg.cholesky(matrix)
    del matrix  # Each of these is as large as the Hessian.
    upper = np.ascontiguousarray(lower[::-1, ::-1])
    del lower
    _invert_upper(upper)
    return upper


def _invert_upper(upper: Doubles) -> None:
    """Invert an upper triangular matrix in place, pairs of ever larger blocks at a time."""
    count = len(upper)
    for start in range(0, count, _LEAF):
        leaf = slice(start, min(start + _LEAF, count))
        upper[leaf, leaf] = np.triu(np.linalg.inv(upper[leaf, leaf]))
    size = _LEAF
    while size < count:
        for start in range(0, count - size, 2 * size):
            first, second = slice(start, start + size), slice(start + size, start + 2 * size)
            between = upper[first, first] @ upper[first, second]
            upper[first, second] = -(between @ upper[second, second])
        size *= 2


def round_rows(
    rows: npt.NDArray[np.floating],
    compensation: Compensation,
    scheme: BlockScheme,
    kind: npt.DTypeLike = np.float32,
    *,
    batch: int = BATCH,
) -> tuple[Bytes, npt.NDArray[np.floating], Bytes]:
    """Return integers [rows, columns], scales and zero points [rows, blocks] of ``rows``.

    Args:
        rows: Finite weights.
        compensation: Of the inputs, with the block of ``scheme``.
        scheme: How numbers become integers; its method finds the scales.
        kind: Type of the scales.
        batch: Columns that are rounded before their errors reach the columns behind them.
    """
    order, factor = compensation.order, compensation.factor
    # Columns as rows: what a step reads and writes lies together.
    left = np.ascontiguousarray(rows[:, order.columns].T, np.float64)
    blocks = num_blocks(len(left), scheme.block)
    integers = np.empty((len(rows), len(left)), np.uint8)
    scales = np.empty((len(rows), blocks), kind)
    zeros = np.empty((len(rows), blocks), np.uint8)
    entered = {start: place for place, start in enumerate(order.starts[:-1])}
    for start, stop in _batches(order.starts, batch):
        errors = np.empty((stop - start, len(rows)))
        for column in range(start, stop):
            if column in entered:
                place = entered[column]
                found = fitted_scales(_block_of(left, order, place), scheme, kind)
                scales[:, order.blocks[place]], zeros[:, order.blocks[place]] = found
                scale, zero = (array.astype(np.float64) for array in found)
            steps = np.rint(left[column] / scale) + zero
            np.clip(steps, scheme.smallest, scheme.largest, out=steps)
            integers[:, order.columns[column]] = steps
            error = (left[column] - (steps - zero) * scale) / factor[column, column]
            errors[column - start] = error
            rest = factor[column, column + 1 : stop, None]
            left[column + 1 : stop] -= rest * error
        left[stop:] -= factor[start:stop, stop:].T @ errors
    return integers, scales, zeros


def _block_of(left: Doubles, order: Order, place: int) -> Floats:
    """Return a block of weights as the emission would see it: columns as they stand."""
    start, stop = order.starts[place], order.starts[place + 1]
    piece = left[start:stop][np.argsort(order.columns[start:stop])]
    return np.ascontiguousarray(piece.T, np.float32)


def _batches(starts: tuple[int, ...], batch: int) -> Iterator[tuple[int, int]]:
    """Yield batches of about ``batch`` columns: several whole blocks each, or parts of one.

    So the columns of a block have the errors of all columns before them when it is entered.
    """
    first = 0
    for start, stop in pairwise(starts):
        if stop - start > batch:
            if first < start:
                yield first, start
            for part in range(start, stop, batch):
                yield part, min(part + batch, stop)
            first = stop
        elif stop - first > batch:
            yield first, start
            first = start
    if first < starts[-1]:
        yield first, starts[-1]


def product_errors(
    difference: npt.NDArray[np.floating], hessian: npt.NDArray[np.floating]
) -> float:
    """Return ``tr(E H E^T)``: the squared error of a product over all samples.

    Args:
        difference: E, [rows, columns]: weights minus rounded weights.
        hessian: H; products are computed in its type.
    """
    errors = difference.astype(hessian.dtype, copy=False)
    return float(np.einsum("ij,ij->", errors @ hessian, errors, dtype=np.float64))
