"""The bytes of an .onnx file before any message is built from them.

In: the bytes of a file. Out: the same model without its large weights, and where in the file each
of those weights lies, so that a weight is never copied into memory to be parsed.

Protobuf messages are fields of ``tag, value``; a sub-message is a length and that many bytes (wire
format as in the protobuf encoding guide). Walking the top two levels costs about a microsecond a
field, finds truncation with its place, and allocates nothing, so it also bounds what the parser
may allocate: an empty message takes two bytes in a file and more than a hundred in memory.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import onnx

from graphopt.errors import InvalidModelError

Buffer = bytes | mmap.mmap

# Weights from this size on stay in the file. Smaller ones are often shapes and axes, read often.
IN_FILE_BYTES = 4096
# Structure beyond this size is counted before it is parsed. An empty message takes two bytes in the
# file and about 250 in memory, so without a count at most 0.5 GiB, and with it at most 2.5.
COUNT_FROM_BYTES = 4 << 20
MAX_MESSAGES = 10_000_000
MAX_TOP_FIELDS = 1_000_000
_MAX_TENSOR_FIELDS = 1_000
# What may hold any number of messages; a node, a tensor, a type may hold _MAX_PARTS.
_CONTAINERS = ("ModelProto", "GraphProto", "FunctionProto")
_MAX_PARTS = 10_000

_PARSER_DEPTH = 100  # protobuf's own limit
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


class Field(NamedTuple):
    """One field: its number and wire type, where it starts, and its value ``[start, end)``."""

    number: int
    wire_type: int
    at: int
    start: int
    end: int


class Span(NamedTuple):
    """A range of bytes of the file."""

    offset: int
    length: int


@dataclass
class Layout:
    """A model file taken apart.

    Attributes:
        structure: The serialized model without the weights in ``spans``.
        spans: Index of an initializer of the main graph -> where its raw data lies in the file.
    """

    structure: bytes
    spans: dict[int, Span] = field(default_factory=dict)


def _number(message: Any, name: str) -> int:
    return int(message.DESCRIPTOR.fields_by_name[name].number)


_GRAPH = _number(onnx.ModelProto, "graph")
_INITIALIZER = _number(onnx.GraphProto, "initializer")
_RAW_DATA = _number(onnx.TensorProto, "raw_data")


def _malformed(position: int, what: str) -> InvalidModelError:
    return InvalidModelError(
        "not-onnx", f"not an ONNX model: {what} at byte {position}", details={"byte": position}
    )


def _too_many() -> InvalidModelError:
    return InvalidModelError(
        "too-many-parts",
        f"the model has more than {MAX_MESSAGES} nodes, attributes and dimensions, or one node "
        f"has more than {_MAX_PARTS} attributes",
        hint="no real model has so many: the file is damaged, or made to exhaust memory",
    )


def _varint(buffer: Buffer, position: int, end: int) -> tuple[int, int]:
    """Return the number that starts at ``position``, and where it ends."""
    value = shift = 0
    while position < end:
        byte = buffer[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise _malformed(position, "a number of more than ten bytes")
    raise _truncated(position, position + 1, end)


def _truncated(position: int, wanted: int, end: int) -> InvalidModelError:
    return InvalidModelError(
        "file-truncated",
        f"the file is cut short: a field at byte {position} reaches to byte {wanted}, "
        f"but its data ends at byte {end}",
        hint="copy or download the file again and compare its size with the source",
        details={"byte": position, "expected_bytes": wanted, "actual_bytes": end},
    )


def fields(buffer: Buffer, start: int, end: int) -> Iterator[Field]:
    """Yield the fields of the message in ``buffer[start:end]``.

    Raises:
        InvalidModelError: the bytes are no message, or a field reaches beyond ``end``.
    """
    position = start
    while position < end:
        at = position
        tag, position = _varint(buffer, position, end)
        number, wire_type = tag >> 3, tag & 7
        value = position
        if wire_type == _LENGTH:
            length, value = _varint(buffer, position, end)
            position = value + length
        elif wire_type == _VARINT:
            _, position = _varint(buffer, position, end)
        elif wire_type == _FIXED64:
            position += 8
        elif wire_type == _FIXED32:
            position += 4
        else:
            raise _malformed(at, f"a field of the unknown kind {wire_type}")
        if number == 0:
            raise _malformed(at, "a field with the number 0")
        if position > end:
            raise _truncated(at, position, end)
        yield Field(number, wire_type, at, value, position)


def take_apart(buffer: Buffer) -> Layout:
    """Return the structure of the model in ``buffer`` and where its large weights are.

    Raises:
        InvalidModelError: the bytes are no message, are cut short, or hold more messages than any
            real model does.
    """
    graphs: list[Field] = []
    for count, member in enumerate(fields(buffer, 0, len(buffer))):
        if count == MAX_TOP_FIELDS:
            raise _too_many()
        if member.number == _GRAPH and member.wire_type == _LENGTH:
            graphs.append(member)
    layout = _cut(buffer, graphs[0]) if len(graphs) == 1 else None
    if layout is None:
        layout = Layout(bytes(buffer[:]))
    if len(layout.structure) > COUNT_FROM_BYTES:
        check_messages(layout.structure)
    return layout


def _cut(buffer: Buffer, graph: Field) -> Layout | None:
    """Return the layout with large raw data cut out; None when there is none."""
    spans: dict[int, Span] = {}
    pieces: list[bytes] = []
    index = -1
    done = graph.start
    for count, member in enumerate(fields(buffer, graph.start, graph.end)):
        if count == MAX_MESSAGES:
            raise _too_many()
        if member.number != _INITIALIZER or member.wire_type != _LENGTH:
            continue
        index += 1
        if member.end - member.start < IN_FILE_BYTES:
            continue
        raw = _raw_data(buffer, member)
        if raw is None:
            continue
        spans[index] = Span(raw.start, raw.end - raw.start)
        rest = buffer[member.start : raw.at] + buffer[raw.end : member.end]
        pieces += [buffer[done : member.at], _message(_INITIALIZER, rest)]
        done = member.end
    if not spans:
        return None
    pieces.append(buffer[done : graph.end])
    before = buffer[: graph.at]
    return Layout(before + _message(_GRAPH, b"".join(pieces)) + buffer[graph.end :], spans)


def _raw_data(buffer: Buffer, tensor: Field) -> Field | None:
    """Return the one large raw data field of a tensor; None for none, small or repeated ones."""
    found: Field | None = None
    for count, member in enumerate(fields(buffer, tensor.start, tensor.end)):
        if count == _MAX_TENSOR_FIELDS:
            return None
        if member.number == _RAW_DATA:
            if found is not None or member.wire_type != _LENGTH:
                return None
            found = member
    if found is None or found.end - found.start < IN_FILE_BYTES:
        return None
    return found


def _message(number: int, body: bytes) -> bytes:
    return _encode_varint(number << 3 | _LENGTH) + _encode_varint(len(body)) + body


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def check_messages(structure: bytes) -> None:
    """Refuse a model of more than ``MAX_MESSAGES`` messages, or nested deeper than the parser goes.

    Descends only where the schema of ONNX has a sub-message, so the bytes of a tensor or a name
    are one step.

    Raises:
        InvalidModelError: there are too many or too deep ones, or one that is malformed.
    """
    children: dict[Any, dict[int, Any]] = {}
    # One iterator a level, so a message with many parts is never held as a list.
    levels = [(fields(structure, 0, len(structure)), onnx.ModelProto.DESCRIPTOR)]
    parts = [0]
    count = 0
    while levels:
        members, descriptor = levels[-1]
        if descriptor not in children:
            children[descriptor] = {
                f.number: f.message_type for f in descriptor.fields if f.message_type is not None
            }
        kinds = children[descriptor]
        for member in members:
            kind = kinds.get(member.number)
            if kind is None or member.wire_type != _LENGTH:
                continue
            count += 1
            parts[-1] += 1
            if count > MAX_MESSAGES or (
                parts[-1] > _MAX_PARTS and descriptor.name not in _CONTAINERS
            ):
                raise _too_many()
            if member.end > member.start:
                levels.append((fields(structure, member.start, member.end), kind))
                parts.append(0)
                break
        else:
            levels.pop()
            parts.pop()
        if len(levels) > _PARSER_DEPTH:
            raise InvalidModelError(
                "nesting-too-deep", f"messages are nested more than {_PARSER_DEPTH} deep"
            )
