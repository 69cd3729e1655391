"""A weight that stays in the .onnx file until somebody reads it.

``onnx_ir`` maps weights of separate data files; those inside the graph file it copies into memory.
A tensor made here reads its range of the file on every access and keeps nothing, so a model in one
file costs as little memory as one with external data.
"""

import os
from functools import partial

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.errors import InvalidModelError


class OpenFile:
    """A file kept open for reading, closed with its last user.

    The descriptor outlives a rename or removal of the path, so a tensor always reads the bytes of
    the file that was checked.

    Args:
        descriptor: An open descriptor; owned by this object from here on.
        path: Name of the file, for messages.
    """

    def __init__(self, descriptor: int, path: str) -> None:
        self.descriptor = descriptor
        self.path = path

    def __del__(self) -> None:
        os.close(self.descriptor)

    def read(self, offset: int, length: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        """Return ``length`` bytes from ``offset`` on.

        Raises:
            InvalidModelError: the file has become shorter than it was.
        """
        data = np.empty(length, dtype=np.uint8)
        view = data.data
        done = 0
        while done < length:
            count = os.preadv(self.descriptor, [view[done:]], offset + done)
            if count == 0:
                raise InvalidModelError(
                    "file-changed",
                    f"'{self.path}' changed while it was in use: it ends at byte {offset + done}, "
                    f"expected {offset + length}",
                    hint="do not write to a model while it is being compiled",
                )
            done += count
        return data


def in_file_tensor(
    file: OpenFile,
    offset: int,
    dtype: ir.DataType,
    shape: ir.Shape,
    name: str,
    doc_string: str | None = None,
) -> ir.LazyTensor:
    """Return a tensor whose raw data lies at ``offset`` of ``file``; its bytes are not read here.

    Args:
        file: The open file.
        offset: First byte of the data.
        dtype: Element type.
        shape: Static shape.
        name: Name of the initializer.
        doc_string: Documentation, when there is one.
    """
    read = partial(_read_tensor, file, offset, dtype, shape)
    return ir.LazyTensor(read, dtype, shape, name=name, doc_string=doc_string, cache=False)


def _read_tensor(
    file: OpenFile, offset: int, dtype: ir.DataType, shape: ir.Shape
) -> ir.TensorProtocol:
    elements = int(np.prod(shape.numpy(), dtype=np.int64))
    data = file.read(offset, (elements * dtype.bitwidth + 7) // 8)
    if dtype.bitwidth % 8:
        # Types below one byte are packed; onnx_ir unpacks them from a message.
        return ir.TensorProtoTensor(
            onnx.TensorProto(data_type=int(dtype), dims=shape.numpy(), raw_data=data.tobytes())
        )
    array = data.view(dtype.numpy().newbyteorder("<")).reshape(shape.numpy())
    array.flags.writeable = False
    return ir.Tensor(array, dtype=dtype, shape=shape)
