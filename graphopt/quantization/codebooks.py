"""Weights of 4 bits through a table of 16 values that are not evenly spaced ("nf4").

In: a matrix. Out: ``Parts`` whose integers are places in the table, so that
``weight = table[place] * scale``. The values are those that onnxruntime's ``MatMulBnb4`` computes
with: quantiles of a normal distribution (Dettmers et al., "QLoRA", arXiv 2305.14314), between -1
and 1, zero among them. Blocks run on over the end of a row, and the first of two numbers is in the
high half of a byte.

Scales: the largest magnitude of a block becomes the end of the table; the end is also tried lower
and higher, and the smallest squared error of each block is kept.
"""

import math

import numpy as np
import numpy.typing as npt

from graphopt.quantization.block_weights import RANGES, Bytes, Floats, Parts, check_finite

NF4 = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)
_MIDDLES = (NF4[1:] + NF4[:-1]) / 2
_PIECE_ELEMENTS = 1 << 18


def codebook_bytes(rows: int, inner: int, block: int) -> int:
    """Return the bytes that a matrix takes: two places a byte, and a float32 for each block."""
    count = rows * inner
    return -(-count // 2) + 4 * -(-count // block)


def quantize_by_codebook(
    matrix: npt.NDArray[np.floating], block: int, *, by_column: bool = False
) -> Parts:
    """Return the places [bytes] and scales [blocks] of ``matrix``, row after row.

    With ``by_column`` those of the transposed matrix, which is never made as a whole.

    Raises:
        InvalidModelError: a number is infinite or none.
    """
    rows, inner = matrix.shape[::-1] if by_column else matrix.shape
    count = rows * inner
    data = np.zeros(-(-count // 2), np.uint8)
    scales = np.ones(-(-count // block), np.float32)
    # Pieces end where a block and a byte end, whatever the length of a row is.
    unit = block // math.gcd(block, inner)
    step = max(1, _PIECE_ELEMENTS // (unit * inner)) * unit
    for start in range(0, rows, step):
        some = slice(start, start + step)
        piece = np.asarray(matrix[:, some].T if by_column else matrix[some], np.float32).reshape(-1)
        check_finite(piece)
        filled = np.zeros(-(-len(piece) // block) * block, np.float32)
        filled[: len(piece)] = piece
        places, found = _blocks(filled.reshape(-1, block))
        first = start * inner
        scales[first // block : first // block + len(found)] = found
        pairs = places.reshape(-1, 2)
        packed = (pairs[:, 0] << 4 | pairs[:, 1])[: -(-len(piece) // 2)]
        data[first // 2 : first // 2 + len(packed)] = packed
    return Parts(data, scales, np.zeros(0, np.uint8))


def _blocks(values: Floats) -> tuple[Bytes, Floats]:
    """Return places and scales of blocks in the last axis of ``values``."""
    ends = np.abs(values).max(1, keepdims=True)
    ends[ends < np.finfo(np.float32).tiny] = 1
    best = ends
    places = _places(values, best)
    least = _errors(values, best, places)
    for part in RANGES:
        tried = ends * np.float32(part)
        found = _places(values, tried)
        errors = _errors(values, tried, found)
        better = errors < least
        least = np.where(better, errors, least)
        best = np.where(better[:, None], tried, best)
        places = np.where(better[:, None], found, places)
    return places, best[:, 0]


def _places(values: Floats, scales: Floats) -> Bytes:
    return np.searchsorted(_MIDDLES, values / scales).astype(np.uint8)


def _errors(values: Floats, scales: Floats, places: Bytes) -> Floats:
    left = NF4[places] * scales - values
    errors: Floats = np.einsum("bi,bi->b", left, left)
    return errors


def widen_codebook(parts: Parts, rows: int, inner: int, block: int) -> Floats:
    """Return the matrix [rows, inner] that the kernel computes with."""
    count = rows * inner
    places = np.stack([parts.data >> 4, parts.data & 15], -1).reshape(-1)[:count]
    scales = np.repeat(parts.scales.astype(np.float32), block)[:count]
    wide: Floats = (NF4[places] * scales).reshape(rows, inner)
    return wide
