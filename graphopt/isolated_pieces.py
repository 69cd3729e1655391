"""Run a large model a piece at a time, in the isolated child.

In: a model whose large weights lie in files, samples. Out: the outputs of each sample, those that
a session without optimizations computes.

onnxruntime keeps every weight of a session mapped, and computes every ``DequantizeLinear`` of a
weight before the first node that needs one. So the nodes are cut into pieces whose weights take
``PIECE_BYTES`` as floats, or that are one node. A piece is a model of its own: its session is made,
all samples pass through it, and it goes away with its weights. A weight stored as integers is
dequantized here, once for all samples, in memory that the next piece uses again; so is one that a
``MatMulNBits`` reads.

Weights are read only from files that the parent has named. They are handed to onnxruntime as they
are mapped: it neither copies nor opens them.
"""

import math
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx

from graphopt.isolated_blocks import as_plain, is_product, numbers_of, wide_name, widen
from graphopt.quantization.threads import each

PIECE_BYTES = 64 << 20
# Models with more bytes of weights, as floats, are run in pieces.
WHOLE_BYTES = 128 << 20
# Numbers that stay in the cache of a processor while two operations pass over them.
_CACHED = 1 << 17
# Samples pass through the pieces together while what lies between two pieces takes no more.
_BETWEEN_BYTES = 64 << 20
_PLACEHOLDER = "weights-are-elsewhere"
_ALIGNMENT = 64
_COPIED_BYTES = 1 << 20

Array = npt.NDArray[Any]
MakeSession = Callable[[bytes, Mapping[str, Any]], Any]


class NotInPiecesError(Exception):
    """The model has to be run as a whole: something between two pieces is no tensor."""


class Place(NamedTuple):
    """Where the bytes of a weight are."""

    path: str
    offset: int
    length: int


class Weights:
    """The weights of a model that lie in files which the parent has named.

    Args:
        model: Without its data.
        folder: The folder of the model file.
        allowed: Files that may be read.

    Attributes:
        places: Where the bytes of each of them are, by name.
        elsewhere: Whether some are not beside the model, so that onnxruntime refuses it.
        missing: Whether there are other data in files: not named by the parent, or of bodies.
    """

    def __init__(self, model: onnx.ModelProto, folder: str, allowed: Iterable[str]) -> None:
        self.places: dict[str, Place] = {}
        self.elsewhere = False
        self.missing = any(_is_external(tensor) for tensor in _tensors_in_nodes(model.graph))
        named = {os.path.normpath(path) for path in allowed}
        for tensor in model.graph.initializer:
            if not _is_external(tensor):
                continue
            entries = {entry.key: entry.value for entry in tensor.external_data}
            path = os.path.normpath(os.path.join(folder, entries["location"]))
            self.elsewhere |= os.path.isabs(entries["location"])
            if path not in named:
                self.missing = True
                continue
            length = int(entries.get("length", 0)) or bytes_of(tensor)
            self.places[tensor.name] = Place(path, int(entries.get("offset", 0)), length)

    def map(self, tensor: onnx.TensorProto) -> Array:
        """Return the contents of ``tensor``, mapped."""
        place = self.places[tensor.name]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        if place.length == 0:
            return np.empty(tuple(tensor.dims), dtype)
        with open(place.path, "rb") as file:
            start = place.offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
            size = place.offset - start + place.length
            mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ, offset=start)
        count = math.prod(tensor.dims)
        return np.frombuffer(mapped, dtype, count, place.offset - start).reshape(tuple(tensor.dims))

    def read(self, tensor: onnx.TensorProto) -> bytes:
        """Return the bytes of ``tensor``."""
        place = self.places[tensor.name]
        with open(place.path, "rb") as file:
            file.seek(place.offset)
            return file.read(place.length)

    def move(self, tensor: onnx.TensorProto, file: BinaryIO, largest: int | None = None) -> None:
        """Append the bytes of ``tensor`` to ``file``, and let it name them there.

        Args:
            tensor: Changed in place.
            file: Its name is what the tensor will name.
            largest: Of more bytes, a hole is left.
        """
        place = self.places[tensor.name]
        start = -(-file.tell() // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        file.seek(start)
        if largest is None or place.length <= largest:
            with open(place.path, "rb") as source:
                source.seek(place.offset)
                for position in range(0, place.length, _COPIED_BYTES):
                    file.write(source.read(min(_COPIED_BYTES, place.length - position)))
        else:
            file.truncate(start + place.length)
            file.seek(start + place.length)
        del tensor.external_data[:]
        location = os.path.basename(file.name)
        for key, value in (("location", location), ("offset", start), ("length", place.length)):
            tensor.external_data.add(key=key, value=str(value))

    def provide(
        self, tensors: Iterable[onnx.TensorProto], made: Mapping[str, Array]
    ) -> tuple[list[onnx.TensorProto], dict[str, Any]]:
        """Return ``tensors`` as initializers of a model in memory, and what some of them hold.

        Args:
            tensors: Initializers, those in files and others.
            made: Arrays that take the place of what a tensor holds.
        """
        import onnxruntime

        given, values = [], {}
        for tensor in tensors:
            if tensor.name not in self.places and tensor.name not in made:
                given.append(tensor)
                continue
            array = made.get(tensor.name)
            kind = tensor.data_type if array is None else onnx.TensorProto.FLOAT
            header = onnx.TensorProto(name=tensor.name, data_type=kind, dims=tensor.dims)
            given.append(header)
            if array is None and not _is_native(kind):
                header.raw_data = self.read(tensor)
                continue
            array = self.map(tensor) if array is None else array
            values[tensor.name] = onnxruntime.OrtValue.ortvalue_from_numpy(array)
            # Never opened; onnxruntime only asks that the file is there.
            header.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", _PLACEHOLDER), ("length", array.nbytes)):
                header.external_data.add(key=key, value=str(value))
        return given, values


def make_placeholder(folder: Path) -> None:
    """Make the file that initializers of models in memory name, in the folder of those models."""
    (folder / _PLACEHOLDER).touch()


def bytes_of(tensor: onnx.TensorProto) -> int:
    """Return the bytes that the contents of ``tensor`` take in a file."""
    packed = (onnx.TensorProto.INT4, onnx.TensorProto.UINT4, onnx.TensorProto.FLOAT4E2M1)
    size = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    elements = math.prod(int(dim) for dim in tensor.dims)
    return -(-elements * (4 if tensor.data_type in packed else 8 * size) // 8)


def _is_external(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def _tensors_in_nodes(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield the constants in nodes, and the initializers and constants of their bodies."""
    pending = list(graph.node)
    while pending:
        for attribute in pending.pop().attribute:
            yield from (*attribute.tensors, attribute.t)
            for body in (*attribute.graphs, attribute.g):
                yield from body.initializer
                pending.extend(body.node)


def _is_native(data_type: int) -> bool:
    """Return whether numpy itself has the type."""
    return onnx.helper.tensor_dtype_to_np_dtype(data_type).kind in "biufc"


@dataclass
class _Piece:
    """Nodes that run together.

    Attributes:
        nodes: In order.
        reads: Values that come from before, initializers among them.
        gives: Values that are wanted later.
    """

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    reads: dict[str, None] = field(default_factory=dict)
    gives: list[str] = field(default_factory=list)


class Pieces:
    """A model in pieces, which passes for a session where one is asked to run.

    Args:
        model: Without the data of large weights; the values that are wanted are its outputs.
        weights: Where its weights are.
        make_session: Makes a session of a serialized model and of what its initializers hold.

    Attributes:
        fit: Whether the model can be run in pieces, as far as its file shows.
    """

    def __init__(self, model: onnx.ModelProto, weights: Weights, make_session: MakeSession) -> None:
        self.model = model
        self.weights = weights
        self.outputs = [info.name for info in model.graph.output]
        self._make_session = make_session
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._inputs = {info.name: info for info in model.graph.input}
        # Nodes that read integers of a weight, by the floats that are made of them here.
        self._dequantized = {
            node.output[0]: node for node in model.graph.node if self._is_of_weight(node)
        }
        self._nodes = list(self._without_blocks())
        self._scratch = np.empty(0, np.uint8)
        self._pieces = self._cut()
        made = {name for piece in self._pieces for name in piece.gives}
        self.fit = (
            not model.graph.sparse_initializer
            and not weights.missing
            and not self._inputs.keys() & self._tensors.keys()
            and all(name in made or name in self._inputs for name in self.outputs)
        )

    @property
    def large(self) -> bool:
        """Whether the weights, as floats, are too large for one session."""
        total = sum(place.length for place in self.weights.places.values())
        grown = (self._bytes_of(name) for name in self._dequantized)
        return total + sum(grown) > WHOLE_BYTES

    def _without_blocks(self) -> Iterator[onnx.NodeProto]:
        """Yield the nodes, plain products for those with weights in blocks."""
        for node in self.model.graph.node:
            if is_product(node, self._tensors, self.weights.places):
                self._dequantized[wide_name(node)] = node
                yield from as_plain(node)
            else:
                yield node

    def _is_of_weight(self, node: onnx.NodeProto) -> bool:
        """Return whether ``node`` makes floats of a weight in a file, by scales of channels."""
        if node.op_type != "DequantizeLinear" or node.domain not in ("", "ai.onnx"):
            return False
        source = self._tensors.get(node.input[0])
        known = all(name in self._tensors for name in node.input if name)
        kept = any(node.output[0] == name for name in self.outputs)
        if source is None or source.name not in self.weights.places or not known or kept:
            return False
        if any(a.name in ("block_size", "output_dtype") and a.i for a in node.attribute):
            return False
        integers = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
        scale = self._tensors[node.input[1]]
        return source.data_type in integers and scale.data_type == onnx.TensorProto.FLOAT

    def _bytes_of(self, name: str) -> int:
        """Return the bytes of a weight as it is computed with."""
        if name in self._dequantized:
            return 4 * math.prod(self._shape_of(name))
        return self.weights.places[name].length if name in self.weights.places else 0

    def _shape_of(self, name: str) -> tuple[int, ...]:
        """Return the shape of a weight that is made floats here."""
        node = self._dequantized[name]
        if node.op_type == "DequantizeLinear":
            return tuple(int(dim) for dim in self._tensors[node.input[0]].dims)
        numbers = numbers_of(node)
        return numbers["K"], numbers["N"]

    def _cut(self) -> list[_Piece]:
        pieces = [_Piece()]
        held = 0
        for node in self._nodes:
            if node.output and node.output[0] in self._dequantized:
                continue
            reads = dict.fromkeys(_read_by(node))
            added = sum(self._bytes_of(name) for name in reads if name not in pieces[-1].reads)
            if held and added and held + added > PIECE_BYTES:
                pieces.append(_Piece())
                held, added = 0, sum(self._bytes_of(name) for name in reads)
            pieces[-1].nodes.append(node)
            pieces[-1].reads.update(reads)
            held += added
        wanted = dict.fromkeys(self.outputs)
        for piece in reversed(pieces):
            made = [name for node in piece.nodes for name in node.output if name]
            piece.gives = [name for name in made if name in wanted]
            wanted.update(piece.reads)
        # Nodes whose values nobody reads.
        return [piece for piece in pieces if piece.gives]

    def run(self, feeds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the outputs of each sample by name, as values of onnxruntime.

        Raises:
            NotInPiecesError: it has to be run as a whole.
        """
        held = [self._inputs_of(feed) for feed in feeds]
        if not self._run_together(held):
            for one in range(len(feeds)):
                held[one] = self._inputs_of(feeds[one])
                self._run_together(held[one : one + 1])
        return [{name: values[name] for name in self.outputs} for values in held]

    def _inputs_of(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        import onnxruntime

        for name, value in feed.items():
            info = self._inputs.get(name)
            native = isinstance(value, np.ndarray) and value.dtype.kind in "biufc"
            if info is None or not native:
                raise NotInPiecesError
        return {n: onnxruntime.OrtValue.ortvalue_from_numpy(a) for n, a in feed.items()}

    def _run_together(self, held: list[dict[str, Any]]) -> bool:
        """Run all samples through each piece; False when that would take too much memory."""
        last_use = {n: i for i, piece in enumerate(self._pieces) for n in piece.reads}
        last_use.update(dict.fromkeys(self.outputs, len(self._pieces)))
        for number, piece in enumerate(self._pieces):
            session = self._session_of(piece, held)
            reads = [info.name for info in session.get_inputs()]
            for values in held:
                found = session.run_with_ort_values(piece.gives, {n: values[n] for n in reads})
                values.update(zip(piece.gives, found, strict=True))
                for name in [n for n in values if last_use.get(n, -1) <= number]:
                    del values[name]
                between = sum(v.tensor_size_in_bytes() for v in values.values() if v.is_tensor())
                if len(held) > 1 and between * len(held) > _BETWEEN_BYTES:
                    return False
        return True

    def _session_of(self, piece: _Piece, held: Sequence[Mapping[str, Any]]) -> Any:
        made = dict(self._dequantize([n for n in piece.reads if n in self._dequantized]))
        tensors = [
            onnx.TensorProto(name=name, dims=array.shape) for name, array in made.items()
        ] + [self._tensors[name] for name in piece.reads if name in self._tensors]
        given, values = self.weights.provide(tensors, made)
        made_here = {name for node in piece.nodes for name in node.output}
        before = [
            name for name in piece.reads if name in held[0] and name not in made_here | made.keys()
        ]
        source = self.model
        graph = onnx.helper.make_graph(
            piece.nodes,
            source.graph.name or "piece",
            [self._described(name, held) for name in before],
            [onnx.helper.make_empty_tensor_value_info(name) for name in piece.gives],
            given,
        )
        model = onnx.helper.make_model(
            graph,
            ir_version=source.ir_version,
            opset_imports=source.opset_import,
            functions=source.functions,
        )
        return self._make_session(model.SerializeToString(), values)

    def _described(self, name: str, held: Sequence[Mapping[str, Any]]) -> onnx.ValueInfoProto:
        """Return type and rank of a value between two pieces."""
        values = [one[name] for one in held]
        if not all(value.is_tensor() for value in values):
            raise NotInPiecesError
        ranks = {len(value.shape()) for value in values}
        dims = [None] * ranks.pop() if len(ranks) == 1 else None
        return onnx.helper.make_tensor_value_info(name, values[0].element_type(), dims)

    def _dequantize(self, names: Sequence[str]) -> Iterator[tuple[str, Array]]:
        """Yield weights as floats, in memory that the next piece overwrites."""
        sizes = [-(-self._bytes_of(name) // _ALIGNMENT) * _ALIGNMENT for name in names]
        if sum(sizes) > self._scratch.nbytes:
            self._scratch = np.empty(0, np.uint8)
            self._scratch = np.empty(sum(sizes), np.uint8)
        start = 0
        for name, size in zip(names, sizes, strict=True):
            space = self._scratch[start : start + self._bytes_of(name)]
            floats = space.view(np.float32).reshape(self._shape_of(name))
            self._fill(self._dequantized[name], floats)
            start += size
            yield name, floats

    def _fill(self, node: onnx.NodeProto, floats: Array) -> None:
        """Write to ``floats`` what ``node`` makes of its integers."""
        numbers = numbers_of(node)
        integers, scale, zero = [*node.input, "", ""][node.op_type == "MatMulNBits" :][:3]
        source = self.weights.map(self._tensors[integers])
        zeros = self._small(zero) if zero else None
        if node.op_type == "DequantizeLinear":
            dequantize(source, self._small(scale), zeros, numbers.get("axis", 1), floats)
        else:
            bits, block = numbers["bits"], numbers["block_size"]
            widen(source, self._small(scale), zeros, bits, block, floats)

    def _small(self, name: str) -> Array:
        tensor = self._tensors[name]
        if name in self.weights.places:
            return np.array(self.weights.map(tensor))
        return onnx.numpy_helper.to_array(tensor)


def dequantize(integers: Array, scale: Array, zero: Array | None, axis: int, floats: Array) -> None:
    """Write ``(integers - zero) * scale`` to ``floats``, rounded as onnxruntime rounds."""
    shape = [1] * integers.ndim
    if scale.ndim and scale.size > 1:
        shape[axis] = -1
    if zero is not None and zero.any():
        wide = zero.astype(np.float32).reshape(shape if zero.size > 1 else [1] * integers.ndim)
        np.subtract(integers, wide, out=floats)
        floats *= scale.reshape(shape)
        return
    factors = scale.reshape(shape)
    if not integers.ndim:
        np.multiply(integers, factors, out=floats)
        return
    step = max(1, _CACHED // max(1, integers.size // max(1, len(integers))))

    def work(start: int) -> None:
        some = slice(start, start + step)
        # Widened first: a product of two types goes through a buffer.
        np.copyto(floats[some], integers[some])
        floats[some] *= factors[some] if len(factors) > 1 else factors

    each(work, range(0, len(integers), step))


def _read_by(node: onnx.NodeProto) -> Iterator[str]:
    """Yield what ``node`` reads, also what its bodies read from outside."""
    pending: list[Any] = [node]
    while pending:
        current = pending.pop()
        yield from (name for name in current.input if name)
        for attribute in current.attribute:
            for body in (*attribute.graphs, attribute.g):
                pending.extend(body.node)
                # What a body gives may come from outside as it is.
                yield from (info.name for info in body.output)
