"""The ONNX front end: a model file that may come from a stranger in, a ``Program`` out.

Stages, each of which the next one relies on: open the file and take it apart (``file_kinds``,
``wire``); check versions, structure and external data on the message (``structure``); build the
``onnx_ir`` model; inline functions; make constants, names and order plain (``tidy``); name the open
dimensions (``symbols``); check the result (``graph_checks``).

No stage runs native code on the model except protobuf's own parser, follows a link, or reads a
weight. Weights in data files are memory-mapped when somebody reads them, large weights in the
model file are read from it then.
"""

import hashlib
import mmap
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no stubs

from graphopt.errors import (
    GraphoptError,
    InvalidModelError,
    InvariantError,
    OptionError,
    UnsupportedError,
)
from graphopt.frontends import tidy
from graphopt.frontends.external_data import ExternalFiles
from graphopt.frontends.file_kinds import open_model, other_kind
from graphopt.frontends.functions import inline_functions
from graphopt.frontends.in_file_tensor import OpenFile, in_file_tensor
from graphopt.frontends.in_memory import own_copy, shared_tensor
from graphopt.frontends.structure import Findings, StructureCheck
from graphopt.frontends.symbols import name_dimensions
from graphopt.frontends.text import shown
from graphopt.frontends.wire import Span, check_messages, take_apart
from graphopt.ir.dims import Bounds
from graphopt.ir.graph_checks import check_structure
from graphopt.ir.program import Program, Source, graphs_of

# The newest versions of onnx 1.23. onnxruntime 1.31 runs opset 26 and IR version 13 at most: above
# them a model is planned and rewritten, but verification says that it is impossible.
NEWEST_OPSET = 28
NEWEST_IR_VERSION = 14
# Below opset 7 a model is read and written unchanged; passes need 7 (``compiler``).
OLDEST_OPSET = 1
OLDEST_IR_VERSION = 3

_DAMAGED = "the file may be damaged: copy or download it again"
# A model of other domains only (trees of ai.onnx.ml) imports no ONNX operators. Nodes that passes
# add need a version; no node of the model depends on it.
_OPSET_OF_OTHERS = 13
_DEFAULT_DOMAIN = ("", "ai.onnx")


def load_onnx(
    source: str | os.PathLike[str] | onnx.ModelProto | ir.Model,
    *,
    bounds: Mapping[str, Bounds] | None = None,
) -> Program:
    """Return the program in an ONNX model; what was passed in is never changed.

    Args:
        source: Path of an .onnx file, or a model in memory. External data is looked for beside the
            file; a message in memory must not have any.
        bounds: Smallest and largest size of dimensions, by name; the others may be any size.

    Raises:
        InvalidModelError: the file is unreadable, malformed, or refused for safety.
        UnsupportedError: the model needs something that graphopt does not have.
        OptionError: ``bounds`` names no dimension of the model.
    """
    if isinstance(source, ir.Model):
        _check_versions(source.ir_version, source.graph.opset_imports)
        model, files = own_copy(source)
        return _finish(model, Findings(), Source("onnx", external_files=files), bounds)
    if isinstance(source, onnx.ModelProto):
        external = ExternalFiles(None)
        model, findings = _build(source, {}, external)
        _detach(model)
        return _finish(model, findings, Source("onnx"), bounds)
    if isinstance(source, (str, os.PathLike)):
        return _load_file(Path(source), bounds)
    raise OptionError(
        "source-type",
        f"cannot load a model from {type(source).__name__}",
        hint="pass a path, an onnx.ModelProto or an onnx_ir.Model",
    )


def _load_file(path: Path, bounds: Mapping[str, Bounds] | None) -> Program:
    # The folder is resolved, the name is not: data files lie beside the name that was given.
    try:
        path = Path(os.path.realpath(path.parent)) / path.name
    except (OSError, ValueError) as error:
        raise InvalidModelError("file-unreadable", f"cannot read {str(path)!r}: {error}") from error
    descriptor, size = open_model(path)
    file = OpenFile(descriptor, str(path))
    with mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) as buffer:
        try:
            layout = take_apart(buffer)
            proto = _parse(layout.structure)
        except InvalidModelError as error:
            raise _why_unreadable(path, buffer[:512], error) from error
    sha256 = _sha256(file, size)
    spans = layout.spans
    del layout
    external = ExternalFiles(path.parent)
    model, findings = _build(proto, spans, external)
    _attach_in_file(model, proto, spans, file)
    for tensor in _external_tensors(model):
        tensor.base_dir = str(path.parent)
    del proto
    source = Source("onnx", path, sha256, external.finish())
    return _finish(model, findings, source, bounds)


def _parse(structure: bytes) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(structure)
    except DecodeError as error:
        # The parser does not say where; the walk over all messages does, if it finds the fault.
        check_messages(structure)
        raise InvalidModelError("not-onnx", f"not an ONNX model: {error}", hint=_DAMAGED) from error
    if not proto.HasField("graph"):
        raise InvalidModelError("not-onnx", "not an ONNX model: no graph in it", hint=_DAMAGED)
    return proto


def _why_unreadable(path: Path, start: bytes, error: InvalidModelError) -> GraphoptError:
    """Return the error that says most about a file that is no model."""
    return other_kind(path, start) or InvalidModelError(
        error.code, f"'{path}': {error.message}", hint=error.hint, details=error.details
    )


def _sha256(file: OpenFile, size: int) -> str:
    # Read, not mapped: pages of a map count as memory of this process until it ends.
    digest = hashlib.sha256()
    chunk = 1 << 20
    for start in range(0, size, chunk):
        digest.update(file.read(start, min(chunk, size - start)).data)
    return digest.hexdigest()


def _build(
    proto: onnx.ModelProto, spans: Mapping[int, Span], external: ExternalFiles
) -> tuple[ir.Model, Findings]:
    """Check a message and return the model built from it."""
    imports: dict[str, int] = {}
    for opset in proto.opset_import:
        domain = "" if opset.domain in _DEFAULT_DOMAIN else opset.domain
        if imports.setdefault(domain, opset.version) != opset.version:
            raise InvalidModelError(
                "opset-import-duplicate",
                f"the model imports two versions of the domain {shown(str(domain))}: "
                f"{imports[domain]} and {opset.version}",
            )
    _check_versions(proto.ir_version, imports)
    findings = StructureCheck(proto, spans, external).run()
    try:
        model = ir.from_proto(proto)
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise InvalidModelError(
            "model-unreadable",
            f"the model cannot be read: {type(cause).__name__}: {str(cause)[:200]}",
            hint="check it with onnx.checker; if that accepts it, please report this",
        ) from cause
    return model, findings


def _check_versions(ir_version: int, imports: Mapping[str, int]) -> None:
    """Refuse versions of the format and the operators that nothing here can run."""
    if not OLDEST_IR_VERSION <= ir_version <= NEWEST_IR_VERSION:
        raise UnsupportedError(
            "ir-version",
            f"the model has IR version {ir_version}, supported are {OLDEST_IR_VERSION} to "
            f"{NEWEST_IR_VERSION}",
            hint="save it again with another version of its exporter",
        )
    if not imports:
        raise InvalidModelError(
            "opset-import-missing",
            "the model does not say which version of the ONNX operators it uses",
            hint="add an opset_import of the default domain",
        )
    opset = next((imports[d] for d in _DEFAULT_DOMAIN if d in imports), _OPSET_OF_OTHERS)
    if opset > NEWEST_OPSET:
        raise UnsupportedError(
            "opset-too-new",
            f"the model uses opset {opset}, supported are {OLDEST_OPSET} to {NEWEST_OPSET}",
            hint=f"export it with opset_version={NEWEST_OPSET} or lower",
        )
    if opset < OLDEST_OPSET:
        raise UnsupportedError(
            "opset-too-old",
            f"the model uses opset {opset}, supported are {OLDEST_OPSET} to {NEWEST_OPSET}",
            hint="convert it first: onnx.version_converter.convert_version(model, 13)",
        )


def _attach_in_file(
    model: ir.Model, proto: onnx.ModelProto, spans: Mapping[int, Span], file: OpenFile
) -> None:
    """Give the initializers whose data was left in the file a tensor that reads it there."""
    for index, span in spans.items():
        tensor = proto.graph.initializer[index]
        value = model.graph.initializers[tensor.name]
        value.const_value = in_file_tensor(
            file,
            span.offset,
            ir.DataType(tensor.data_type),
            ir.Shape(tensor.dims, frozen=True),
            tensor.name,
            tensor.doc_string or None,
        )


def _external_tensors(model: ir.Model) -> list[ir.ExternalTensor]:
    """Return all external tensors of the model, those in attributes and functions included."""
    found: list[ir.ExternalTensor] = []
    roots = [model.graph, *(function.graph for function in model.functions.values())]
    for graph in (inner for root in roots for inner in graphs_of(root)):
        tensors = [value.const_value for value in graph.initializers.values()]
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.is_ref():
                    continue
                if attribute.type is ir.AttributeType.TENSOR:
                    tensors.append(attribute.as_tensor())
                elif attribute.type is ir.AttributeType.TENSORS:
                    tensors += attribute.as_tensors()
        found += [tensor for tensor in tensors if isinstance(tensor, ir.ExternalTensor)]
    return found


def _detach(model: ir.Model) -> None:
    """Keep renames of initializers from reaching the message that the caller owns."""
    for graph in graphs_of(model.graph):
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.TensorProtoTensor):
                value.const_value = shared_tensor(tensor)


def _digest(model: ir.Model) -> str:
    """Return the digest of the serialized graph without the data of its initializers."""
    digest = hashlib.sha256()
    graph = model.graph
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        digest.update(f"{value.name}:{value.type}:{value.shape}\n".encode())
    for node in graph:
        digest.update(ir.to_proto(node).SerializeToString(deterministic=True))
    for domain, version in sorted(model.opset_imports.items()):
        digest.update(f"{domain}={version}\n".encode())
    return digest.hexdigest()


def _finish(
    model: ir.Model,
    findings: Findings,
    source: Source,
    bounds: Mapping[str, Bounds] | None,
) -> Program:
    """Make the program that passes may rely on."""
    program = Program(model, source=source)
    if not program.opset:
        model.opset_imports[""] = _OPSET_OF_OTHERS
        program.notes.append(
            f"the model uses no ONNX operators; opset {_OPSET_OF_OTHERS} was added"
        )
    if findings.training:
        program.notes.append("the training information of the model was left out")
    if findings.unsorted:
        tidy.sort_nodes(program)
    inlined = inline_functions(model)
    if inlined is not None:
        program.notes.append(inlined)
    if findings.odd_text:
        tidy.make_text_plain(model)
    tidy.drop_input_initializers(program)
    tidy.settle_types(model)
    tidy.name_nodes(program, tell=inlined is None)
    tidy.name_values(model)
    name_dimensions(program, bounds)
    try:
        check_structure(model, level=2)
    except InvariantError as error:
        raise InvalidModelError("graph-invalid", error.message, node=error.node) from error
    if not source.sha256:
        program.source = replace(source, sha256=_digest(model))
    return program
