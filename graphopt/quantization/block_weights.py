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
from graphopt.quantization.threads import each

METHODS = ("rtn", "mse", "hqq")
LEAST_BLOCK = 16
_LARGEST_BLOCK = 256
_PIECE_ELEMENTS = 1 << 18
# Numbers that stay in the cache of a processor while all ranges are tried.
_CACHED_ELEMENTS = 1 << 16
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
        piece = matrix[columns, some_rows].T if by_column else matrix[some_rows, columns]
        values = _in_blocks(piece, some_blocks.stop - some_blocks.start, width)
        integers, scales, zeros = quantize_blocks(values, scheme, kind)
        parts.data[place] = pack(integers, scheme.bits)
        parts.scales[place], parts.zero_points[place] = scales, zeros

    each(work, _pieces(rows, blocks, width, by_column=by_column))
    return parts


def _pieces(
    rows: int, blocks: int, width: int, *, by_column: bool
) -> Iterator[tuple[slice, slice]]:
    """Yield pieces of about a MiB that lie together in memory: (rows, blocks)."""
    if by_column:
        some_rows = max(1, min(rows, _PIECE_ELEMENTS // width))
        step = max(1, _PIECE_ELEMENTS // (some_rows * width))
    else:
        step = max(1, min(blocks, _PIECE_ELEMENTS // width))
        some_rows = max(1, _PIECE_ELEMENTS // (step * width))
    for block in range(0, blocks, step):
        for row in range(0, rows, some_rows):
            yield (
                slice(row, min(row + some_rows, rows)),
                slice(block, min(block + step, blocks)),
            )


def _in_blocks(piece: npt.NDArray[np.floating], blocks: int, width: int) -> Floats:
    """Return ``piece`` as [rows, blocks, width], filled up with zeros."""
    rows, inner = piece.shape
    values = np.zeros((rows, blocks * width), np.float32)
    values[:, :inner] = piece
    check_finite(values)
    return values.reshape(rows, blocks, width)


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
    stored, zeros = fitted_scales(values, scheme, kind)
    integers = _integers(values, stored.astype(np.float32), zeros, scheme)
    return integers.astype(np.uint8), stored, zeros.astype(np.uint8)


def fitted_scales(
    values: Floats, scheme: BlockScheme, kind: npt.DTypeLike = np.float32
) -> tuple[npt.NDArray[np.floating], Floats]:
    """Return the scales, as they are stored, and the zero points of blocks of ``values``.

    The arguments are those of ``quantize_blocks``.
    """
    scales, zeros = _extremes(values, scheme)
    if scheme.method == "mse":
        scales, zeros = _searched(values, scales, zeros, scheme)
    elif scheme.method == "hqq":
        scales, zeros = _half_quadratic(values, scales, zeros, scheme)
    with np.errstate(over="ignore"):
        stored = scales.astype(kind)
    # A scale that its type cannot hold belongs to a block of zeros, or of next to nothing.
    return np.where(np.isfinite(stored) & (stored != 0), stored, 1).astype(kind), zeros


def _extremes(values: Floats, scheme: BlockScheme) -> tuple[Floats, Floats]:
    """Return scale and zero point of each block from its smallest and largest number."""
    # The smallest of rows below each other is found many times faster than that of short rows.
    columns = np.ascontiguousarray(values.reshape(-1, values.shape[-1]).T)
    low, high = (
        found.reshape(values.shape[:-1]) for found in (columns.min(axis=0), columns.max(axis=0))
    )
    if scheme.symmetric:
        zeros = np.full(low.shape, scheme.middle, np.float32)
        if scheme.narrow:
            scales = np.maximum(high, -low) / np.float32(scheme.middle - 1)
        else:
            scales = np.where(-low >= high, -low, -high) / np.float32(scheme.middle)
    else:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        scales = (high - low) / np.float32(scheme.largest)
        zeros = np.clip(np.rint(-low / _usable(scales)), 0, scheme.largest)
    return _usable(scales), zeros.astype(np.float32)


def _usable(scales: Floats) -> Floats:
    """Return ``scales`` that one can divide by; a block of zeros has scale 1."""
    tiny = np.finfo(np.float32).tiny
    return np.where(np.abs(scales) < tiny, np.float32(1), scales).astype(np.float32)


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
    usable = (denominator > 0) & (numerator != 0)
    fitted = np.divide(numerator, denominator, out=scales.copy(), where=usable)
    return _usable(fitted)


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


def _searched(
    values: Floats, scales: Floats, zeros: Floats, scheme: BlockScheme
) -> tuple[Floats, Floats]:
    """Return the best of several ranges, each with a scale fitted to its integers."""
    width = values.shape[-1]
    blocks, starts, offsets = values.reshape(-1, width), scales.reshape(-1), zeros.reshape(-1)
    found = np.empty_like(starts)
    step = max(1, _CACHED_ELEMENTS // width)
    for start in range(0, len(blocks), step):
        some = slice(start, start + step)
        # Numbers of a block below each other: sums over them are sums of rows.
        columns = np.ascontiguousarray(blocks[some].T)
        found[some] = _best_scales(columns, starts[some], offsets[some], scheme)
    return found.reshape(scales.shape), zeros


def _best_scales(columns: Floats, scales: Floats, zeros: Floats, scheme: BlockScheme) -> Floats:
    """Return the scale of each column whose integers lose least.

    With ``y = v / t - q``, what a range ``t`` leaves of numbers ``v`` beside integers ``q``, the
    best scale for the integers is ``t * (1 + yq / qq)``; its error is ``t^2 * (yy - yq^2 / qq)``.
    """
    low, high = np.float32(scheme.smallest) - zeros, np.float32(scheme.largest) - zeros
    left, integers = np.empty_like(columns), np.empty_like(columns)
    best, least = scales, np.full(scales.shape, np.inf, np.float32)
    for part in (None, *RANGES):
        tried = scales if part is None else _usable(scales * np.float32(part))
        np.multiply(columns, 1 / tried, out=left)
        np.rint(left, out=integers)
        # Several times faster than ``clip`` with bounds that differ.
        np.minimum(integers, high, out=integers)
        np.maximum(integers, low, out=integers)
        np.subtract(left, integers, out=left)
        errors = np.einsum("ij,ij->j", left, left)
        offered = tried
        if part is not None:
            crossed = np.einsum("ij,ij->j", left, integers)
            squares = np.einsum("ij,ij->j", integers, integers)
            moved = np.divide(crossed, squares, out=np.zeros_like(crossed), where=squares > 0)
            errors -= crossed * moved
            offered = _usable(tried * (1 + moved))
        errors *= tried * tried
        better = errors < least
        least = np.where(better, errors, least)
        best = np.where(better, np.abs(offered) if scheme.narrow else offered, best)
    return best


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
