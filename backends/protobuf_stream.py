"""Write a ModelProto whose weights are never in memory together.

Protobuf messages are concatenations of fields, and the fields of a repeated field may stand
anywhere. So a model is: its small fields, then one ``graph`` field whose length is known in
advance, made of the graph without initializers and of one ``initializer`` field per tensor, whose
bytes are streamed.

Field numbers are those of onnx.proto (ONNX specification, IR version 3 and later):
ModelProto.graph 7, GraphProto.initializer 5, TensorProto.raw_data 9.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_TENSOR_RAW_DATA = 9
_LENGTH_DELIMITED = 2


@dataclass(frozen=True)
class TensorField:
    """One initializer to write.

    Attributes:
        header: Serialized TensorProto without its data.
        data_bytes: Length of the raw data, or None when the header is the whole tensor.
        write: Writes exactly ``data_bytes`` bytes to a file.
    """

    header: bytes
    data_bytes: int | None = None
    write: Callable[[BinaryIO], None] | None = None

    @property
    def length(self) -> int:
        """Bytes of the TensorProto."""
        if self.data_bytes is None:
            return len(self.header)
        return len(self.header) + len(self._prefix()) + self.data_bytes

    def _prefix(self) -> bytes:
        return _prefix(_TENSOR_RAW_DATA, self.data_bytes or 0)

    def write_to(self, file: BinaryIO) -> None:
        """Write the TensorProto."""
        file.write(self.header)
        if self.data_bytes is not None and self.write is not None:
            file.write(self._prefix())
            self.write(file)


def varint(number: int) -> bytes:
    """Return the base-128 encoding of a non-negative number."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _prefix(field: int, length: int) -> bytes:
    return varint(field << 3 | _LENGTH_DELIMITED) + varint(length)


def model_length(model: bytes, graph: bytes, tensors: Sequence[TensorField]) -> int:
    """Return the bytes of the file that ``write_model`` writes."""
    inner = _graph_length(graph, tensors)
    return len(model) + len(_prefix(_MODEL_GRAPH, inner)) + inner


def _graph_length(graph: bytes, tensors: Sequence[TensorField]) -> int:
    total = len(graph)
    for tensor in tensors:
        total += len(_prefix(_GRAPH_INITIALIZER, tensor.length)) + tensor.length
    return total


def write_model(file: BinaryIO, model: bytes, graph: bytes, tensors: Sequence[TensorField]) -> None:
    """Write a model.

    Args:
        file: Receives the bytes.
        model: Serialized ModelProto without its graph.
        graph: Serialized GraphProto without the initializers in ``tensors``.
        tensors: The initializers, in order.
    """
    file.write(model)
    file.write(_prefix(_MODEL_GRAPH, _graph_length(graph, tensors)))
    file.write(graph)
    for tensor in tensors:
        file.write(_prefix(_GRAPH_INITIALIZER, tensor.length))
        tensor.write_to(file)
