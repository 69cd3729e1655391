"""Weights of recurrent layers as integers, in the layout of ``DynamicQuantizeLSTM``.

ONNX keeps them as [directions, gates * units, inputs]; the integer kernel reads [directions,
inputs, gates * units] with one scale for each gate and unit of each direction.
"""

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.ir.constants import read_array
from graphopt.quantization.weights import WeightScheme, integers_of, weight_scales

_LAZY_BYTES = 1 << 16


def gate_scales(tensor: ir.TensorProtocol, scheme: WeightScheme) -> npt.NDArray[np.float32]:
    """Return the scales of ``tensor``, of shape [directions, gates * units]."""
    directions, rows, width = (int(size) for size in tensor.shape.numpy())

    def scales(array: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        return weight_scales(array.reshape(directions * rows, width), 0, scheme)

    return read_array(tensor, scales).reshape(directions, rows)


def transposed_integers(
    tensor: ir.TensorProtocol, scales: npt.NDArray[np.float32]
) -> ir.TensorProtocol:
    """Return ``tensor`` as int8 of [directions, inputs, gates * units].

    More than 64 KiB are computed whenever they are read.
    """
    directions, rows, width = (int(size) for size in tensor.shape.numpy())

    def integers(array: npt.NDArray[np.floating]) -> npt.NDArray[np.int8]:
        flat = integers_of(array.reshape(directions * rows, width), scales.reshape(-1), 0)
        return np.ascontiguousarray(flat.reshape(directions, rows, width).transpose(0, 2, 1))

    def compute() -> ir.TensorProtocol:
        return ir.Tensor(read_array(tensor, integers))

    if tensor.nbytes <= _LAZY_BYTES:
        return compute()
    return ir.LazyTensor(compute, ir.DataType.INT8, ir.Shape([directions, width, rows]))
