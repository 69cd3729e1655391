"""ONNX backend: an optimized ``.onnx`` file, its weights beside it when they are large.

In: a program, its plan. Out: files, byte-identical for the same program. The backend decides
nothing about the model. It states the plan in ``metadata_props``: on the model as a whole
and, from IR version 10 on, on every planned value (``graphopt.place``), where viewers show
it.

Weights are written one at a time. Above 1 GiB, or on request, they go to ``<name>-<8 hex>.data``:
the name holds a digest of the bytes, so an old model file never points at new weights. Large
tensors start at multiples of 64 KiB, others at multiples of 4 KiB, so that a runtime can map them
(ONNX external data specification; 64 KiB is the allocation granularity of Windows).
"""

import hashlib
import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import onnx
import onnx_ir as ir

from graphopt._version import __version__
from graphopt.backends.protobuf_stream import TensorField, model_length, write_model
from graphopt.errors import InvariantError, OptionError
from graphopt.ir.program import RANGES_KEY, Program
from graphopt.memory.plan import MemoryPlan
from graphopt.memory.sizes import input_symbols
from graphopt.safe_files import OutputTransaction

EXTERNAL_ABOVE_BYTES = 1 << 30
_PROTOBUF_LIMIT_BYTES = (1 << 31) - 1
_LARGEST_INLINE_BYTES = 1024
# Weights in files from this size on stay there in a model for the child.
_REFERRED_BYTES = 1 << 16
_VALUE_METADATA_SINCE = 10
_LEAST_IR_VERSION = 4  # initializers need not be graph inputs any more


def emit_onnx(
    program: Program,
    path: Path,
    *,
    plan: MemoryPlan | None = None,
    external_data: bool | None = None,
    inputs: Iterable[Path] = (),
) -> list[Path]:
    """Write ``program`` to ``path``; return the files written, the model first.

    Args:
        program: The model.
        path: The model file; weights go beside it.
        plan: Its facts are written into the metadata.
        external_data: True or False to decide where weights go; None: outside above 1 GiB.
        inputs: Files that must not be touched.

    Raises:
        OptionError: weights of 2 GiB or more are asked into the model file.
        OutputError: nothing could be written; what was there before is still there.
    """
    tensors = _tensors(program.graph)
    total = sum(tensor.nbytes for _, tensor in tensors)
    outside = total > EXTERNAL_ABOVE_BYTES if external_data is None else external_data
    model, graph = _small_parts(program, plan)
    with OutputTransaction(inputs=inputs) as transaction:
        written = []
        if outside:
            large = [
                (n, t) for n, t in tensors if _is_streamed(t) and t.nbytes > _LARGEST_INLINE_BYTES
            ]
            pending = transaction.path_for(path.with_name(f"{path.stem}.data"))
            places = _write_data(pending, [t for _, t in large])
            name = f"{path.stem}-{_digest(pending)[:8]}.data"
            transaction.retarget(path.with_name(f"{path.stem}.data"), path.with_name(name))
            written.append(path.with_name(name))
            located = {n: place for (n, _), place in zip(large, places, strict=True)}
            fields = [_field(n, t, located.get(n), name) for n, t in tensors]
        else:
            fields = [_field(n, t, None, "") for n, t in tensors]
        size = model_length(model, graph, fields)
        if size > _PROTOBUF_LIMIT_BYTES:
            raise OptionError(
                "weights-too-large-for-one-file",
                f"the model file would have {size} bytes; protobuf ends at {_PROTOBUF_LIMIT_BYTES}",
                hint="write the weights beside the model (external_data=True, --external-data)",
            )
        with transaction.path_for(path).open("wb") as file:
            write_model(file, model, graph, fields)
            if file.tell() != size:
                raise InvariantError("file-length", f"wrote {file.tell()} of {size} bytes")
    return [path, *written]


def emit_for_child(program: Program, path: Path) -> list[Path]:
    """Write a model for the isolated child; return its files, the model first.

    Large weights that lie in files stay there: the model names these files, by absolute paths,
    which only a child that is told them reads. Others go to ``<name>.data``. What an earlier model
    of this name had there is replaced.

    Args:
        program: The model.
        path: A file in a private folder.
    """
    fields: list[TensorField] = []
    own = path.with_suffix(".data")
    for stale in (path, own):
        # The child may still have it mapped: it must not change under it.
        stale.unlink(missing_ok=True)
    files: dict[Path, None] = {path: None}
    with own.open("wb") as data:
        for name, tensor in _tensors(program.graph):
            place, location = None, Path(own.name)
            if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes >= _REFERRED_BYTES:
                place, location = (tensor.offset or 0, tensor.nbytes), Path(tensor.path).absolute()
            elif _is_streamed(tensor) and tensor.nbytes > _LARGEST_INLINE_BYTES:
                place = _append(data, tensor)
            if place is not None:
                files[path.parent / location] = None
            fields.append(_field(name, tensor, place, "" if place is None else str(location)))
    with path.open("wb") as file:
        write_model(file, *_small_parts(program, None), fields)
    return list(files)


def _tensors(graph: ir.Graph) -> list[tuple[str, ir.TensorProtocol]]:
    result = []
    for name, value in graph.initializers.items():
        if value.const_value is None:
            raise InvariantError("initializer-empty", f"initializer '{name}' has no data")
        result.append((name, value.const_value))
    return result


def _is_streamed(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype is not ir.DataType.STRING


def _field(
    name: str, tensor: ir.TensorProtocol, place: tuple[int, int] | None, location: str
) -> TensorField:
    if not _is_streamed(tensor):
        whole = ir.to_proto(tensor)
        whole.name = name
        return TensorField(whole.SerializeToString())
    header = onnx.TensorProto(
        name=name, data_type=int(tensor.dtype), dims=list(tensor.shape.numpy())
    )
    for key, value in sorted(tensor.metadata_props.items()):
        header.metadata_props.add(key=key, value=value)
    if place is None:
        write = partial(_write_tensor, tensor)
        return TensorField(header.SerializeToString(), tensor.nbytes, write)
    header.data_location = onnx.TensorProto.EXTERNAL
    for key, number in (("location", location), ("offset", place[0]), ("length", place[1])):
        header.external_data.add(key=key, value=str(number))
    return TensorField(header.SerializeToString())


def _write_tensor(tensor: ir.TensorProtocol, file: BinaryIO) -> None:
    """Write the bytes of one tensor and let go of its memory map."""
    before = file.tell()
    writer = getattr(tensor, "tofile", None)
    if writer is not None:
        writer(file)
    else:
        file.write(tensor.tobytes())
    release = getattr(tensor, "release", None)
    if release is not None:
        release()
    if file.tell() - before != tensor.nbytes:
        raise InvariantError(
            "file-length",
            f"tensor '{tensor.name}' wrote {file.tell() - before} of {tensor.nbytes} bytes",
        )


def _write_data(path: Path, tensors: list[ir.TensorProtocol]) -> list[tuple[int, int]]:
    """Write ``tensors`` one after another, aligned; return (offset, length) of each."""
    with path.open("wb") as file:
        return [_append(file, tensor) for tensor in tensors]


def _append(file: BinaryIO, tensor: ir.TensorProtocol) -> tuple[int, int]:
    """Write ``tensor`` at the next multiple of its alignment; return (offset, length)."""
    step = 65536 if tensor.nbytes >= 1 << 20 else 4096
    file.seek(-(-file.tell() // step) * step)
    start = file.tell()
    _write_tensor(tensor, file)
    return start, file.tell() - start


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _small_parts(program: Program, plan: MemoryPlan | None) -> tuple[bytes, bytes]:
    """Return the serialized model without its graph, and its graph without initializers."""
    source = program.model
    version = max(source.ir_version, _LEAST_IR_VERSION)
    model = onnx.ModelProto(
        ir_version=version,
        producer_name="graphopt",
        producer_version=__version__,
        domain=source.domain or "",
        model_version=source.model_version or 0,
        doc_string=source.doc_string or "",
    )
    for domain, number in sorted(program.graph.opset_imports.items()):
        model.opset_import.add(domain=domain, version=number)
    props = dict(source.metadata_props)
    if plan is not None:
        props["graphopt.plan"] = _plan_summary(plan)
    ranges = _ranges_text(program)
    if ranges:
        props[RANGES_KEY] = ranges
    for key, value in sorted(props.items()):
        model.metadata_props.add(key=key, value=value)
    graph = onnx.GraphProto()
    view = ir.GraphView(
        program.graph.inputs,
        program.graph.outputs,
        nodes=tuple(program.graph),
        initializers=(),
        doc_string=program.graph.doc_string,
        opset_imports=program.graph.opset_imports,
        name=program.graph.name,
        metadata_props=dict(sorted(program.graph.metadata_props.items())),
    )
    # onnx_ir's own GraphView does not match its protocol in the optional fields.
    ir.serde.serialize_graph_into(graph, cast(Any, view), model_ir_version=version)
    if version >= _VALUE_METADATA_SINCE:
        if plan is not None:
            _place_values(graph, plan)
    else:
        _drop_new_fields(graph)
    return model.SerializeToString(deterministic=True), graph.SerializeToString(deterministic=True)


def _ranges_text(program: Program) -> str:
    """Return the bounds of the symbols of the inputs, so that the file plans as before."""
    parts = [
        f"{name}: VR[{bounds.lower}, {'int_oo' if bounds.upper is None else bounds.upper}]"
        for name in input_symbols(program.graph.inputs)
        if (bounds := program.bounds.get(name)) is not None and bounds != (0, None)
    ]
    return f"{{{', '.join(parts)}}}" if parts else ""


def _plan_summary(plan: MemoryPlan) -> str:
    facts = {
        "runtime": plan.runtime.name,
        "target": plan.target["name"],
        "bindings": plan.model.bindings,
        "peak_bytes": plan.peak_bytes,
        "peak_node": plan.peak.node,
        "arena_bytes": plan.arena_bytes,
        "lower_bound_bytes": plan.lower_bound_bytes,
        "optimal": plan.arena_pool.optimal,
        "weight_bytes": sum(pool.weight_bytes for pool in plan.pools),
        "io_bytes": sum(pool.io_bytes for pool in plan.pools),
        "not_planned": len(plan.not_planned),
    }
    return json.dumps(facts, sort_keys=True, separators=(",", ":"))


def _place_values(graph: onnx.GraphProto, plan: MemoryPlan) -> None:
    place = {
        alias.value: f"{b.pool}/{b.segment}+{b.offset}:{b.padded_bytes} [{b.start},{b.end})"
        for b in plan.buffers
        for alias in b.values
    }
    for info in (*graph.input, *graph.value_info, *graph.output):
        if info.name in place:
            info.metadata_props.add(key="graphopt.place", value=place[info.name])


def _drop_new_fields(graph: onnx.GraphProto) -> None:
    """Remove metadata of nodes, values and graphs, which IR versions below 10 do not know."""
    pending = [graph]
    while pending:
        current = pending.pop()
        del current.metadata_props[:]
        for info in (*current.input, *current.value_info, *current.output):
            del info.metadata_props[:]
        for node in current.node:
            del node.metadata_props[:]
            for attribute in node.attribute:
                pending.extend(attribute.graphs)
                if attribute.HasField("g"):
                    pending.append(attribute.g)
