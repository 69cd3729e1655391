"""Initializers with equal contents become one.

Weights are memory-mapped, so contents are read late and one tensor at a time: only tensors that
share type and shape are compared, first by their first page, and what agrees there by a digest of
all bytes.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ir.constants import Array, read_array
from graphopt.ir.program import graphs_of
from graphopt.passes._edit import Edit
from graphopt.pipeline.base import Pass, PassResult

_PAGE_BYTES = 4096
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class DeduplicateInitializers(Pass):
    """Keep one of several initializers that have the same type, shape and bytes.

    Fires when:
        1. Two initializers of a graph are equal byte by byte, or one of a nested graph equals one
           of the main graph.

    Leaves alone:
        1. ``graph-input``: the initializer is the default of an input, which a caller may change.
        2. ``graph-output``: the initializer is a graph output, whose name must stay.
        3. ``string``: strings are not compared.

    Preserves:
        Every bit of every output. The one that comes first keeps its name.

    Options:
        min_bytes: Smaller tensors are not compared. 0 compares all.

    Example:
        ``<float[2] a = {1, 2}, float[2] b = {1, 2}>`` becomes ``<float[2] a = {1, 2}>``.
    """

    name: ClassVar[str] = "deduplicate-initializers"

    min_bytes: int = 0

    def call(self, model: ir.Model) -> PassResult:
        """Merge equal initializers of ``model``."""
        edit = Edit(self, model)
        values = [
            value
            for graph in graphs_of(model.graph)
            for value in graph.initializers.values()
            if self._is_candidate(edit, value)
        ]
        for group in _groups(values):
            # Every graph sees the initializers of the main graph, which come first; two nested
            # graphs do not see each other's.
            kept: dict[ir.Graph | None, ir.Value] = {}
            for value in group:
                first = kept.get(model.graph) or kept.setdefault(value.graph, value)
                if first is not value:
                    _merge(edit, value, first)
        return edit.result()

    def _is_candidate(self, edit: Edit, value: ir.Value) -> bool:
        tensor = value.const_value
        if tensor is None or tensor.nbytes < self.min_bytes:
            return False
        reason = ""
        if value.is_graph_input():
            reason = "graph-input"
        elif value.is_graph_output():
            reason = "graph-output"
        elif tensor.dtype is ir.DataType.STRING:
            reason = "string"
        for use in tuple(value.uses())[:1] if reason else ():
            edit.skip(reason, use.node, value.name or "")
        return not reason


def _merge(edit: Edit, value: ir.Value, kept: ir.Value) -> None:
    graph = value.graph
    assert graph is not None, "an initializer has a graph"
    for user, index in tuple(value.uses()):
        user.replace_input_with(index, kept)
    del graph.initializers[value.name or ""]
    edit.rewrites += 1


def _groups(values: list[ir.Value]) -> Iterable[list[ir.Value]]:
    """Return lists of two or more equal initializers, each in the order of ``values``."""
    groups = [values]
    for key in (_form, _first_page, _digest):
        groups = [part for group in groups for part in _split(group, key)]
    return groups


def _split(group: list[ir.Value], key: Callable[[ir.Value], Hashable]) -> list[list[ir.Value]]:
    parts: dict[Hashable, list[ir.Value]] = defaultdict(list)
    for value in group:
        parts[key(value)].append(value)
    return [part for part in parts.values() if len(part) > 1]


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None, "candidates hold tensors"
    return value.const_value


def _form(value: ir.Value) -> Hashable:
    tensor = _tensor(value)
    return tensor.dtype.name, tuple(tensor.shape.numpy())


def _first_page(value: ir.Value) -> Hashable:
    tensor = _tensor(value)
    if isinstance(tensor, ir.LazyTensor) or tensor.dtype.bitwidth < 8:
        # Reading a part of these costs as much as reading all: leave it to the digest.
        return b""
    itemsize = tensor.dtype.bitwidth // 8
    return read_array(tensor, lambda a: a.ravel()[: _PAGE_BYTES // itemsize].tobytes())


def _digest(value: ir.Value) -> Hashable:
    return read_array(_tensor(value), _hash)


def _hash(array: Array) -> bytes:
    digest = hashlib.sha256()
    # A view where the array is contiguous, as mapped tensors are.
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    for start in range(0, data.size, _CHUNK_BYTES):
        digest.update(data[start : start + _CHUNK_BYTES].data)
    return digest.digest()
