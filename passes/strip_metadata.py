"""Documentation, source paths and exporter notes go; they are bytes, and they tell who exported."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, ClassVar

import onnx_ir as ir

from graphopt.ir.program import graphs_of
from graphopt.passes._edit import Edit
from graphopt.pipeline.base import Pass, PassResult

SOURCE_KEY = "pkg.graphopt.source"
_OURS = "pkg.graphopt.*"
_STACK_KEY = "pkg.torch.onnx.stack_trace"
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
# A path from the root of a file system, at the start of the text or of a word in it.
_ABSOLUTE = re.compile(r"""(?:^|[\s"'=:,;(\[{])(?:/[\w.@+~-]+/|[A-Za-z]:[\\/]|\\\\)""")


@dataclass(frozen=True)
class StripMetadata(Pass):
    """Remove documentation and metadata, and what names folders of the machine that exported.

    Fires when:
        1. A model, graph, node, value, tensor or attribute has a documentation text.
        2. A node, value, tensor or nested graph has metadata other than graphopt's own.
        3. Metadata of the model or the main graph comes from an exporter (``pkg.*``) or holds an
           absolute path; the producer name, version or domain holds one.

    Leaves alone:
        1. Metadata of the model that a user added, without absolute paths.
        2. Keys that match an entry of ``keep``.

    Preserves:
        Every bit of every output, all names, and graphopt's own keys.

    Options:
        keep: Keys to keep, with ``*`` for any text.
        keep_source: Keep the innermost source line of a node, as ``file.py:12`` without folders,
            under ``pkg.graphopt.source``, for messages.

    Example:
        A node with ``pkg.torch.onnx.stack_trace`` is left without metadata, or, with
        ``keep_source``, with ``pkg.graphopt.source = model.py:12``.
    """

    name: ClassVar[str] = "strip-metadata"

    keep: tuple[str, ...] = ()
    keep_source: bool = False

    def call(self, model: ir.Model) -> PassResult:
        """Strip the metadata of ``model``."""
        edit = Edit(self, model)
        main = model.graph
        for owner in (model, main):
            edit.rewrites += _drop_text(owner) + self._strip(owner, _is_exporters)
        for name in ("producer_name", "producer_version", "domain"):
            if _ABSOLUTE.search(getattr(model, name) or ""):
                setattr(model, name, None)
                edit.rewrites += 1
        for owner in _owners(model):
            if isinstance(owner, ir.Node) and self.keep_source:
                edit.rewrites += _shorten_source(owner)
            edit.rewrites += _drop_text(owner)
            if not isinstance(owner, ir.Attr):
                edit.rewrites += self._strip(owner, lambda key, text: True)
        return edit.result()

    def _strip(self, owner: Any, is_dropped: Any) -> int:
        """Remove metadata of ``owner``; return 1 when there was any to remove."""
        keys = [
            key
            for key, text in owner.metadata_props.items()
            if not any(fnmatchcase(key, pattern) for pattern in (_OURS, *self.keep))
            and is_dropped(key, text)
        ]
        for key in keys:
            del owner.metadata_props[key]
        return int(bool(keys))


def _owners(model: ir.Model) -> Iterator[Any]:
    """Yield what may carry documentation or metadata, apart from the model and the main graph."""
    for graph in graphs_of(model.graph):
        if graph is not model.graph:
            yield graph
        yield from graph.inputs
        for value in graph.initializers.values():
            if not value.is_graph_input():
                yield value
        for node in graph:
            yield node
            yield from node.attributes.values()
            yield from node.outputs


def _is_exporters(key: str, text: str) -> bool:
    return key.startswith("pkg.") or _ABSOLUTE.search(text) is not None


def _drop_text(owner: Any) -> int:
    if isinstance(owner, ir.Value) and owner.const_value is not None:
        return _drop_value_text(owner, owner.const_value)
    if not owner.doc_string:
        return 0
    owner.doc_string = None
    return 1


def _drop_value_text(value: ir.Value, tensor: ir.TensorProtocol) -> int:
    found = bool(value.doc_string) + bool(tensor.doc_string)
    value.doc_string = None
    if tensor.doc_string:
        # A tensor that wraps a message cannot be written to; reading it is all that is needed.
        value.const_value = ir.LazyTensor(
            lambda: tensor, tensor.dtype, ir.Shape(tensor.shape.numpy()), name=value.name
        )
    return found


def _shorten_source(node: ir.Node) -> int:
    frames = _FRAME.findall(node.metadata_props.get(_STACK_KEY, ""))
    if not frames:
        return 0
    path, line = frames[-1]
    # Windows paths may use either separator.
    kind = PureWindowsPath if "\\" in path else PurePosixPath
    text = f"{kind(path).name}:{line}"
    if node.metadata_props.get(SOURCE_KEY) == text:
        return 0
    node.metadata_props[SOURCE_KEY] = text
    return 1
