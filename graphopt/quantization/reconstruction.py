"""Weights of few bits that were rounded for the inputs they meet, kept until they are written.

In: a weight, the Hessian of its inputs. Out: its ``Parts`` by the method with which the product
loses least on the samples, measured as ``tr(E H E^T)``: error-compensated rounding, or one of those
that need no data. Finished parts are kept in files: they are small beside the weights, but there
are as many of them. The collection rides in ``model.meta`` to the pass that stores weights.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.errors import OutputError
from graphopt.quantization.block_weights import (
    BlockScheme,
    Floats,
    Parts,
    check_finite,
    dequantize,
    num_blocks,
    pack,
    quantize_matrix,
)
from graphopt.quantization.gptq import Compensation, product_errors, round_rows
from graphopt.quantization.weight_only import StoredWeight
from graphopt.temporary import TemporaryFolder

META_KEY = "graphopt.reconstruction"
COMPENSATED = "gptq"
# Of equals the first is kept.
CANDIDATES = (COMPENSATED, "hqq", "mse")
_HIGHEST_DB = 200.0
# Weights that are widened to float64 at a time.
_PIECE_ELEMENTS = 1 << 21

Key = tuple[str, bool, bool, BlockScheme]
Described = tuple[np.dtype[Any], tuple[int, ...]]


@dataclass(frozen=True)
class RoundedWeight:
    """How one weight was rounded.

    Attributes:
        weight: Name of the weight.
        nodes: Names of the products that read it.
        method: What was kept.
        sqnr_db: Decibels of what the products make on the samples, by method; empty where nothing
            was measured.
        detail: Why nothing was measured, as a reason code; else "".
    """

    weight: str
    nodes: tuple[str, ...]
    method: str
    sqnr_db: Mapping[str, float]
    detail: str = ""


def reconstruct(
    array: npt.NDArray[np.floating],
    scheme: BlockScheme,
    hessian: npt.NDArray[np.floating],
    compensation: Compensation,
    *,
    by_column: bool,
) -> tuple[Parts, str, dict[str, float]]:
    """Return the best parts of a matrix, their method, and the decibels of every method.

    Args:
        array: The matrix.
        scheme: How numbers become integers; its own method is a candidate, too.
        hessian: Of what the matrix is multiplied by.
        compensation: Of ``hessian``, with the block of ``scheme``.
        by_column: Blocks lie along axis 0.

    Raises:
        InvalidModelError: a weight is infinite or none.
    """
    methods = tuple(dict.fromkeys((*CANDIDATES, scheme.method)))
    pieces: dict[str, list[Parts]] = {method: [] for method in methods}
    errors = dict.fromkeys(methods, 0.0)
    signal = 0.0
    weighed = _in_proportion(hessian)
    for rows in _row_pieces(array, by_column=by_column):
        signal += product_errors(rows, weighed)
        for method in methods:
            parts = _rounded(rows, replace(scheme, method=_scales_by(method)), method, compensation)
            lost = rows - dequantize(parts, scheme, rows.shape[1])
            errors[method] += product_errors(lost, weighed)
            pieces[method].append(parts)
    best = min(methods, key=lambda method: errors[method])
    return _joined(pieces[best]), best, {m: _decibels(signal, errors[m]) for m in methods}


def _in_proportion(hessian: npt.NDArray[np.floating]) -> Floats:
    """Return the Hessian in float32 with a mean of 1 on its diagonal: ratios of errors stay."""
    found = np.empty(hessian.shape, np.float32)
    factor = len(hessian) / float(np.trace(hessian))
    np.multiply(hessian, factor, out=found, casting="same_kind")
    return found


def _scales_by(method: str) -> str:
    return "mse" if method == COMPENSATED else method


def _row_pieces(
    array: npt.NDArray[np.floating], *, by_column: bool
) -> Iterator[npt.NDArray[np.floating]]:
    """Yield some rows at a time, in the type of the matrix or float32."""
    count, inner = array.shape[::-1] if by_column else array.shape
    step = max(1, _PIECE_ELEMENTS // max(1, inner))
    kind = array.dtype if array.dtype == np.float16 else np.dtype(np.float32)
    for start in range(0, count, step):
        some = slice(start, start + step)
        rows = np.ascontiguousarray(array[:, some].T if by_column else array[some], kind)
        check_finite(rows)
        yield rows


def _rounded(
    rows: npt.NDArray[np.floating],
    scheme: BlockScheme,
    method: str,
    compensation: Compensation,
) -> Parts:
    if method != COMPENSATED:
        return quantize_matrix(rows, scheme)
    integers, scales, zeros = round_rows(rows, compensation, scheme, rows.dtype)
    count, inner = integers.shape
    blocks, width = num_blocks(inner, scheme.block), scheme.block or inner
    # What fills up the last block stands for zero.
    filled = np.repeat(zeros[:, -1:], blocks * width, axis=1)
    filled[:, :inner] = integers
    return Parts(pack(filled.reshape(count, blocks, width), scheme.bits), scales, zeros)


def _joined(pieces: list[Parts]) -> Parts:
    return Parts(
        np.concatenate([parts.data for parts in pieces]),
        np.concatenate([parts.scales for parts in pieces]),
        np.concatenate([parts.zero_points for parts in pieces]),
    )


def _decibels(signal: float, noise: float) -> float:
    if noise <= 0:
        return _HIGHEST_DB
    return 10 * math.log10(signal / noise) if signal > 0 else -_HIGHEST_DB


class Reconstruction:
    """Finished parts by weight, in files that go away with this object."""

    def __init__(self) -> None:
        self._files: dict[Key, tuple[Path, list[Described]]] = {}
        self._folder = TemporaryFolder("weights")

    def add(self, stored: StoredWeight, parts: Parts) -> None:
        """Keep the parts of a weight.

        Raises:
            OutputError: the temporary folder is full, or cannot be written.
        """
        path = self._folder.path / f"{len(self._files)}.data"
        arrays = (parts.data, parts.scales, parts.zero_points)
        try:
            with path.open("wb") as file:
                for array in arrays:
                    # Not with checksums: this process alone reads what it wrote.
                    file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise OutputError(
                "temporary-files",
                f"cannot keep the rounded weight '{stored.weight.name}': {error.strerror}",
                hint="make room in the temporary folder, or name another one with TMPDIR",
            ) from error
        self._files[_key(stored)] = path, [(array.dtype, array.shape) for array in arrays]

    def parts_of(self, stored: StoredWeight) -> Parts | None:
        """Return the parts of a weight, None where none were made."""
        found = self._files.get(_key(stored))
        return None if found is None else Parts(*_mapped(*found))


def _mapped(path: Path, described: Sequence[Described]) -> Iterator[npt.NDArray[Any]]:
    """Yield the arrays that lie in a file one after another."""
    start = 0
    for dtype, shape in described:
        if 0 in shape:
            yield np.empty(shape, dtype)
            continue
        array = np.memmap(path, dtype, "r", start, shape)
        start += array.nbytes
        yield array


def _key(stored: StoredWeight) -> Key:
    looked_up = all(reader.kind == "gather" for reader in stored.readers)
    return stored.weight.name or "", stored.by_column, looked_up, stored.scheme


def reconstruction_of(model: ir.Model) -> Reconstruction | None:
    """Return the collection that rides in ``model``."""
    found = model.meta.get(META_KEY)
    return found if isinstance(found, Reconstruction) else None
