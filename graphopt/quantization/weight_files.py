"""Integers of weights, made once for all candidates of a quantization, in files.

In: a weight, its scales. Out: the weight as int8, as a tensor that is mapped from a temporary file.
Candidates differ in ranges of activations and in which nodes stay float; most have the same integer
weights. The collection rides in ``model.meta`` to the pass that inserts them, and its files go away
with it and with the tensors that came from it.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.errors import OutputError
from graphopt.ir.constants import read_array
from graphopt.quantization.weights import (
    WeightScheme,
    integers_of,
    lost_by_rounding,
    quantized_tensor,
    weight_scales,
)
from graphopt.temporary import TemporaryFolder

META_KEY = "graphopt.weight_files"
# Smaller weights are computed when they are asked for.
LEAST_BYTES = 1 << 16
_STEP = 1 << 16

Scales = npt.NDArray[np.float32]


class WeightFiles:
    """Scales and integers of the weights that are made known, and of no others.

    Those that only one candidate has are gone with it, and with nothing else to tell them apart,
    nothing is kept of them.
    """

    def __init__(self) -> None:
        self._known: dict[int, ir.TensorProtocol] = {}
        self._scales: dict[tuple[int, int, WeightScheme], Scales] = {}
        self._integers: dict[tuple[int, int, bytes], ir.ExternalTensor] = {}
        self._lost: dict[tuple[int, int, bytes, bytes, int, int], npt.NDArray[np.float64]] = {}
        self._folder: TemporaryFolder | None = None

    def know(self, tensors: Iterable[ir.TensorProtocol]) -> None:
        """Keep from now on what is made of ``tensors``: the weights that candidates share."""
        self._known.update({id(t): t for t in tensors if t.nbytes >= LEAST_BYTES})

    def scales(self, tensor: ir.TensorProtocol, axis: int, scheme: WeightScheme) -> Scales:
        """Return ``weight_scales`` of ``tensor``."""
        if id(tensor) not in self._known:
            return read_array(tensor, lambda array: weight_scales(array, axis, scheme))
        key = (id(tensor), axis, scheme)
        if key not in self._scales:
            found = read_array(tensor, lambda array: weight_scales(array, axis, scheme))
            self._scales[key] = found
        return self._scales[key]

    def integers(self, tensor: ir.TensorProtocol, scales: Scales, axis: int) -> ir.TensorProtocol:
        """Return ``tensor`` as int8.

        Raises:
            OutputError: the temporary folder is full, or cannot be written.
        """
        if id(tensor) not in self._known:
            return quantized_tensor(tensor, scales, axis)
        key = (id(tensor), axis, scales.tobytes())
        if key not in self._integers:
            array = read_array(tensor, lambda array: integers_of(array, scales, axis))
            self._integers[key] = self._write(tensor.name or "weight", array)
        kept = self._integers[key]
        # A tensor of its own for each model: it is renamed there.
        made = ir.ExternalTensor(
            kept.location,
            kept.offset,
            kept.length,
            kept.dtype,
            shape=ir.Shape(kept.shape.numpy()),
            name=kept.name or "",
            base_dir=kept.base_dir,
        )
        # The files live as long as anything that names them.
        made.meta[META_KEY] = self
        return made

    def lost(
        self,
        tensor: ir.TensorProtocol,
        scales: Scales,
        axis: int,
        means: npt.NDArray[np.float64],
        input_axis: int,
        groups: int,
    ) -> npt.NDArray[np.float64]:
        """Return ``lost_by_rounding`` of ``tensor``."""
        key = (id(tensor), axis, scales.tobytes(), means.tobytes(), input_axis, groups)
        if key not in self._lost:
            found = read_array(
                tensor,
                lambda array: lost_by_rounding(array, scales, axis, means, input_axis, groups),
            )
            if id(tensor) not in self._known:
                return found
            self._lost[key] = found
        return self._lost[key]

    def _write(self, name: str, array: npt.NDArray[np.int8]) -> ir.ExternalTensor:
        try:
            if self._folder is None:
                self._folder = TemporaryFolder("integers")
            path = self._folder.path / "integers.data"
            with path.open("ab") as file:
                start = -(-file.tell() // _STEP) * _STEP
                file.truncate(start)
                file.write(array.reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise OutputError(
                "temporary-files",
                f"cannot keep the integers of '{name}': {error.strerror}",
                hint="make room in the temporary folder, or name another one with TMPDIR",
            ) from error
        return ir.ExternalTensor(
            path.name,
            start,
            array.nbytes,
            ir.DataType.INT8,
            shape=ir.Shape(array.shape),
            name=name,
            base_dir=self._folder.path,
        )


def weight_files_of(model: ir.Model) -> WeightFiles:
    """Return the collection that rides in ``model``, one that keeps nothing where there is none."""
    found = model.meta.get(META_KEY)
    return found if isinstance(found, WeightFiles) else WeightFiles()
