"""Weights in blocks of 4 or 8 bits: one scale for 16 to 256 numbers that are added up together.

In: a matrix, a scheme. Out: ``Parts``: packed integers, scales and zero points, so that
``weight = (integer - zero point) * scale``. Integers are unsigned and packed along the inner axis,
the low half of a byte first, as onnxruntime's ``MatMulNBits`` and ``GatherBlockQuantized`` read
them. No data is needed; the scales are what can be chosen:

* ``rtn``: the smallest and the largest number of a block become the smallest and largest integer
  (symmetric: the largest magnitude becomes the far end of the range, by a negative scale where it
  is positive).
* ``mse``: the range is also tried narrower and wider, each time with the scale that fits the
  integers found by least squares; the smallest squared error of each block is kept.
* ``hqq``: half-quadratic splitting (Badri and Shaji, "Half-Quadratic Quantization of Large Machine
  Learning Models", 2023). The error is split into a part that a norm below 1 shrinks, which takes
  the few large errors, and a rest that zero point and scale are fitted to, in turns. The paper
  leaves the scale alone and keeps fractions of the zero point; here both are fitted and the zero
  point is an integer, because kernels are fast with integers only.

Large matrices are worked on in pieces, so the memory needed is that of the result.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphopt.errors import InvalidModelError, OptionError
from graphopt.quantization.scale_search import TILE, best_scales, packed_integers, usable
from graphopt.quantization.threads import each

METHODS = ("rtn", "mse", "hqq")
LEAST_BLOCK = 16
_LARGEST_BLOCK = 256
# Blocks that are worked on together, even where they take more than a tile.
_LEAST_COLUMNS = 64
# With more, a tile has fewer blocks of each: what is stored of them together would be short.
_MOST_COLUMNS = 1024
# Parts of the range of a block that "mse" tries.
RANGES = np.linspace(0.7, 1.05, 8)
_NORM = 0.7
_PENALTY, _PENALTY_GROWTH = 10.0, 1.01
_TURNS = 12

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class BlockScheme:
    """How the numbers of a block become integers.

    Attributes:
        bits: 4 or 8.
        block: Numbers that share a scale: a power of two from 16 to 256; 0 for a whole row.
        symmetric: The zero point is the middle of the range, and is not stored.
        method: One of ``METHODS``.
        narrow: Symmetric with a positive scale, the lowest integer unused: what operators of the
            ONNX standard are given.
    """

    bits: int = 4
    block: int = 32
    symmetric: bool = False
    method: str = "mse"
    narrow: bool = False

    def __post_init__(self) -> None:
        power = self.block & (self.block - 1) == 0
        sized = LEAST_BLOCK <= self.block <= _LARGEST_BLOCK
        for wrong, text in (
            (self.bits not in (4, 8), f"bits is {self.bits}, expected 4 or 8"),
            (
                self.block != 0 and not (power and sized),
                f"block is {self.block}, expected a power of two from 16 to 256",
            ),
            (
                self.method not in METHODS,
                f"method is {self.method!r}, expected one of {', '.join(METHODS)}",
            ),
        ):
            if wrong:
                raise OptionError("weight-scheme", text)

    @property
    def largest(self) -> int:
        """The largest integer."""
        return (1 << self.bits) - 1

    @property
    def smallest(self) -> int:
        """The smallest integer."""
        return int(self.narrow and self.symmetric)

    @property
    def middle(self) -> int:
        """The zero point of a symmetric block."""
        return 1 << (self.bits - 1)


@dataclass(frozen=True)
class Parts:
    """A matrix in blocks.

    Attributes:
        data: Packed integers, [rows, blocks, block * bits / 8].
        scales: [rows, blocks].
        zero_points: [rows, blocks], not packed; the middle of the range when symmetric.
    """

    data: Bytes
    scales: npt.NDArray[np.floating]
    zero_points: Bytes


def num_blocks(inner: int, block: int) -> int:
    """Return how many blocks ``inner`` numbers take; the last one may be filled up."""
    return -(-inner // block) if block else 1


def stored_bytes(rows: int, inner: int, scheme: BlockScheme, scale_bytes: int) -> int:
    """Return the bytes that a matrix takes in blocks, scales and zero points included."""
    blocks = num_blocks(inner, scheme.block)
    width = scheme.block or inner
    total = rows * -(-blocks * width * scheme.bits // 8) + rows * blocks * scale_bytes
    return total + (0 if scheme.symmetric else rows * -(-blocks * scheme.bits // 8))


def fitting_block(
    inner: int, scheme: BlockScheme, scale_bytes: int, *, dividing: bool = False
) -> int:
    """Return the block, at most that of ``scheme``, with which rows take the fewest bytes.

    Blocks are filled up with zeros, so a large block can cost more than a small one; of equals the
    smaller one is more accurate.

    Args:
        inner: Numbers in a row.
        scheme: Bits, and the largest block.
        scale_bytes: Bytes of one scale.
        dividing: Only blocks that leave no rest; 0 is returned where there is none.
    """
    best, fewest = 0, 0
    block = LEAST_BLOCK
    while block <= scheme.block:
        tried = BlockScheme(scheme.bits, block, scheme.symmetric)
        size = stored_bytes(1, inner, tried, scale_bytes)
        if (best == 0 or size < fewest) and not (dividing and inner % block):
            best, fewest = block, size
        block *= 2
    return best


def quantize_matrix(
    matrix: npt.NDArray[np.floating], scheme: BlockScheme, *, by_column: bool = False
) -> Parts:
    """Return ``matrix`` in blocks along its rows; with ``by_column``, along its columns.

    The result of ``by_column`` is that of the transposed matrix, which is never made as a whole.

    Raises:
        InvalidModelError: a number is infinite or none.
    """
    rows, inner = matrix.shape[::-1] if by_column else matrix.shape
    blocks, width = num_blocks(inner, scheme.block), scheme.block or inner
    kind = matrix.dtype if matrix.dtype == np.float16 else np.dtype(np.float32)
    parts = Parts(
        np.zeros((rows, blocks, -(-width * scheme.bits // 8)), np.uint8),
        np.empty((rows, blocks), kind),
        np.empty((rows, blocks), np.uint8),
    )

    def work(place: tuple[slice, slice]) -> None:
        some_rows, some_blocks = place
        first, last = some_blocks.start * width, min(some_blocks.stop * width, inner)
        columns = slice(first, last)
        piece = matrix[columns, some_rows] if by_column else matrix[some_rows, columns].T
        counts = (some_blocks.stop - some_blocks.start, some_rows.stop - some_rows.start)
        tile = _tile(piece, *counts, width)
        packed, scales, zeros = _quantize_tile(tile, scheme, kind)
        parts.data[place] = packed.reshape(-1, *counts).transpose(2, 1, 0)
        parts.scales[place] = scales.reshape(counts).T
        parts.zero_points[place] = zeros.reshape(counts).T

    each(work, _pieces(rows, blocks, width, by_column=by_column))
    return parts


def _pieces(
    rows: int, blocks: int, width: int, *, by_column: bool
) -> Iterator[tuple[slice, slice]]:
    """Yield pieces of a tile that lie together in memory: (rows, blocks)."""
    if by_column:
        some_rows = min(rows, max(_LEAST_COLUMNS, min(_MOST_COLUMNS, TILE // width)))
        step = max(1, TILE // (some_rows * width))
    else:
        step = max(1, min(blocks, TILE // (width * _LEAST_COLUMNS)))
        some_rows = max(_LEAST_COLUMNS, TILE // (step * width))
    for block in range(0, blocks, step):
        for row in range(0, rows, some_rows):
            yield (
                slice(row, min(row + some_rows, rows)),
                slice(block, min(block + step, blocks)),
            )


def _tile(piece: npt.NDArray[np.floating], blocks: int, rows: int, width: int) -> Floats:
    """Return ``piece``, [inner, rows], as [width, blocks * rows]: each column is a block."""
    tile = np.empty((width, blocks, rows), np.float32)
    whole = len(piece) // width
    filled = piece[: whole * width].reshape(whole, width, rows)
    tile[:, :whole] = filled.transpose(1, 0, 2)
    if whole < blocks:
        rest = piece[whole * width :]
        tile[: len(rest), whole] = rest
        tile[len(rest) :, whole] = 0
    return tile.reshape(width, -1)


def check_finite(values: npt.NDArray[np.floating]) -> None:
    """Raise where a weight is infinite or none.

    Raises:
        InvalidModelError: a weight is.
    """
    if not np.isfinite(values).all():
        raise InvalidModelError(
            "weight-not-finite",
            "a weight that should be quantized holds infinities or NaN",
            hint="leave it alone: quantize-weights{keep=[NAME]}, or repair the model",
        )


def quantize_blocks(
    values: Floats, scheme: BlockScheme, kind: npt.DTypeLike = np.float32
) -> tuple[Bytes, npt.NDArray[np.floating], Bytes]:
    """Return integers, scales and zero points of blocks in the last axis of ``values``.

    Args:
        values: [..., block], finite.
        scheme: How.
        kind: Type of the scales; integers fit the scales as they are stored.
    """
    packed, scales, zeros = _quantize_tile(_columns_of(values), scheme, kind)
    shape = values.shape
    integers = unpack(np.ascontiguousarray(packed.T), scheme.bits, shape[-1])
    return integers.reshape(shape), scales.reshape(shape[:-1]), zeros.reshape(shape[:-1])


def _columns_of(values: npt.NDArray[np.floating]) -> Floats:
    """Return blocks in the last axis as columns."""
    return np.ascontiguousarray(values.reshape(-1, values.shape[-1]).T, np.float32)


def _quantize_tile(
    tile: Floats, scheme: BlockScheme, kind: npt.DTypeLike
) -> tuple[Bytes, npt.NDArray[np.floating], Bytes]:
    """Return packed integers, scales and zero points of the columns of ``tile``: it is used up."""
    stored, zeros = _scales_of_tile(tile, scheme, kind)
    packed = packed_integers(
        tile, stored.astype(np.float32), zeros, scheme.smallest, scheme.largest, scheme.bits
    )
    return packed, stored, zeros.astype(np.uint8)


def fitted_scales(
    values: Floats, scheme: BlockScheme, kind: npt.DTypeLike = np.float32
) -> tuple[npt.NDArray[np.floating], Floats]:
    """Return the scales, as they are stored, and the zero points of blocks of ``values``.

    The arguments are those of ``quantize_blocks``.
    """
    stored, zeros = _scales_of_tile(_columns_of(values), scheme, kind)
    return stored.reshape(values.shape[:-1]), zeros.reshape(values.shape[:-1])


def _scales_of_tile(
    tile: Floats, scheme: BlockScheme, kind: npt.DTypeLike
) -> tuple[npt.NDArray[np.floating], Floats]:
    """Return the scales, as they are stored, and the zero points of the columns of ``tile``."""
    low, high = tile.min(axis=0), tile.max(axis=0)
    # What is infinite or none is an end, or makes one.
    check_finite(low)
    check_finite(high)
    scales, zeros = _between(low, high, scheme)
    if scheme.method == "mse":
        ends = np.float32(scheme.smallest) - zeros, np.float32(scheme.largest) - zeros
        scales = best_scales(tile, scales, *ends, RANGES.astype(np.float32))
        scales = np.abs(scales) if scheme.narrow else scales
    elif scheme.method == "hqq":
        scales, zeros = _half_quadratic(np.ascontiguousarray(tile.T), scales, zeros, scheme)
    with np.errstate(over="ignore"):
        stored = scales.astype(kind)
    # A scale that its type cannot hold belongs to a block of zeros, or of next to nothing.
    return np.where(np.isfinite(stored) & (stored != 0), stored, 1).astype(kind), zeros


def _between(low: Floats, high: Floats, scheme: BlockScheme) -> tuple[Floats, Floats]:
    """Return scale and zero point of each block from its smallest and largest number."""
    scales: Floats
    if scheme.symmetric:
        zeros = np.full(low.shape, scheme.middle, np.float32)
        if scheme.narrow:
            scales = np.divide(np.maximum(high, -low), scheme.middle - 1, dtype=np.float32)
        else:
            ends = np.where(-low >= high, -low, -high)
            scales = np.divide(ends, scheme.middle, dtype=np.float32)
        return usable(scales), zeros
    low, high = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
    scales = usable((high - low) / np.float32(scheme.largest))
    return scales, np.clip(np.rint(-low / scales), 0, scheme.largest)


def _integers(values: Floats, scales: Floats, zeros: Floats, scheme: BlockScheme) -> Floats:
    """Return the integers as floats."""
    integers: Floats = values / scales[..., None]
    np.rint(integers, out=integers)
    integers += zeros[..., None]
    return np.clip(integers, scheme.smallest, scheme.largest, out=integers)


def _fitted_scales(values: Floats, steps: Floats, scales: Floats) -> Floats:
    """Return the scales with the least squared error for integers ``steps`` from zero."""
    numerator = np.einsum("...i,...i->...", values, steps)
    denominator = np.einsum("...i,...i->...", steps, steps)
    some = (denominator > 0) & (numerator != 0)
    fitted = np.divide(numerator, denominator, out=scales.copy(), where=some)
    return usable(fitted)


def _squared_error(values: Floats, scales: Floats, zeros: Floats, scheme: BlockScheme) -> Floats:
    left = _integers(values, scales, zeros, scheme)
    left -= zeros[..., None]
    left *= scales[..., None]
    left -= values
    error: Floats = np.einsum("...i,...i->...", left, left)
    return error


class _Best:
    """The scales and zero points with the smallest squared error so far, block by block."""

    def __init__(self, values: Floats, scales: Floats, zeros: Floats, scheme: BlockScheme) -> None:
        self.values, self.scheme = values, scheme
        self.scales, self.zeros = scales, zeros
        self._errors = _squared_error(values, scales, zeros, scheme)

    def offer(self, scales: Floats, zeros: Floats) -> None:
        """Take over what is better."""
        errors = _squared_error(self.values, scales, zeros, self.scheme)
        better = errors < self._errors
        self._errors = np.where(better, errors, self._errors)
        self.scales = np.where(better, scales, self.scales)
        self.zeros = np.where(better, zeros, self.zeros)


def _half_quadratic(
    values: Floats, scales: Floats, zeros: Floats, scheme: BlockScheme
) -> tuple[Floats, Floats]:
    """Return scales and zero points fitted to what is left without the few large errors."""
    best = _Best(values, scales, zeros, scheme)
    penalty = _PENALTY
    for _ in range(_TURNS):
        steps = _integers(values, scales, zeros, scheme)
        error = values - (steps - zeros[..., None]) * scales[..., None]
        size = np.abs(error)
        shrunk = size - np.power(np.maximum(size, 1e-12), _NORM - 1) / penalty
        kept = values - np.sign(error) * np.maximum(shrunk, 0)
        if not scheme.symmetric:
            wanted = (steps - kept / scales[..., None]).mean(-1)
            zeros = np.clip(np.rint(wanted), 0, scheme.largest).astype(np.float32)
        scales = _fitted_scales(kept, steps - zeros[..., None], scales)
        if scheme.narrow:
            scales = np.abs(scales)
        best.offer(scales, zeros)
        penalty *= _PENALTY_GROWTH
    return best.scales, best.zeros


def pack(integers: Bytes, bits: int) -> Bytes:
    """Return ``integers`` packed along the last axis, the low half of a byte first."""
    if bits == 8:
        return integers
    if integers.shape[-1] % 2:
        integers = np.concatenate([integers, np.zeros_like(integers[..., :1])], -1)
    return (integers[..., 0::2] | (integers[..., 1::2] << 4)).astype(np.uint8)


def unpack(packed: Bytes, bits: int, count: int) -> Bytes:
    """Return the first ``count`` integers of the last axis of ``packed``."""
    if bits == 8:
        return packed[..., :count]
    halves = np.stack([packed & 15, packed >> 4], -1)
    return halves.reshape(*packed.shape[:-1], -1)[..., :count]


def dequantize(parts: Parts, scheme: BlockScheme, inner: int) -> Floats:
    """Return the matrix [rows, inner] that kernels compute with."""
    width = scheme.block or inner
    integers = unpack(parts.data, scheme.bits, width).astype(np.float32)
    integers -= parts.zero_points[..., None].astype(np.float32)
    integers *= parts.scales[..., None].astype(np.float32)
    return integers.reshape(len(integers), -1)[:, :inner]
