"""Third-party native code on models of strangers, in a child process: the child's side.

Run as ``python -P -m graphopt.isolated_child REQUEST_FD ANSWER_FD FOLDER [TASKS.py]``. Reads one
request from the folder for every line, runs its task under the limits in the request, answers with
one line. Ends, and removes its folder, when the parent is gone. The last argument adds tasks from a
file of the tests; nothing a user can pass reaches it.
"""

import contextlib
import ctypes
import errno
import importlib.util
import json
import math
import os
import resource
import shutil
import sys
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.isolation import (
    FEEDS_FILE,
    REQUEST_FILE,
    RESULT_FILE,
    ArrayWriter,
    read_arrays,
)

Task = Callable[[Path, dict[str, Any]], dict[str, Any]]

# Initializers from this size on are left out of shape inference: no operator reads a shape or an
# axis from one so large.
_LARGE_BYTES = 4096
_MAX_SESSIONS = 2
# Weights up to this size are there when the kernels are asked for.
_LARGEST_READ_BYTES = 1 << 20
_OUT_OF_MEMORY = ("bad_alloc", "bad allocation", "Failed to allocate memory", "length_error")
# Types that numpy has not: name in onnxruntime -> name in ml_dtypes.
_NARROW_FLOATS = {
    "tensor(bfloat16)": "bfloat16",
    "tensor(float8e4m3fn)": "float8_e4m3fn",
    "tensor(float8e4m3fnuz)": "float8_e4m3fnuz",
    "tensor(float8e5m2)": "float8_e5m2",
    "tensor(float8e5m2fnuz)": "float8_e5m2fnuz",
}


class RefusedError(Exception):
    """A library refused the model, with the kind of refusal that the parent knows."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def main(arguments: list[str]) -> int:
    """Serve requests until the parent closes the pipe."""
    folder = Path(arguments[2])
    tasks = dict(TASKS)
    if len(arguments) > 3:
        tasks.update(_tasks_of(Path(arguments[3])))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open(int(arguments[0]), "rb") as requests, open(int(arguments[1]), "wb") as answers:
        for _ in requests:
            request = json.loads((folder / REQUEST_FILE).read_text())
            answer = _answer(tasks, folder, request)
            try:
                answers.write(json.dumps(answer).encode() + b"\n")
                answers.flush()
            except BrokenPipeError:
                break
    shutil.rmtree(folder, ignore_errors=True)
    return 0


def _tasks_of(path: Path) -> dict[str, Task]:
    spec = importlib.util.spec_from_file_location("extra_tasks", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, Task] = module.TASKS
    return found


def _answer(tasks: Mapping[str, Task], folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Run one request under its limits; the answer is made after they are lifted."""
    kind, text = "exception", ""
    try:
        _limit(request["memory_bytes"], request["seconds"])
        result = tasks[request["task"]](folder, request["arguments"])
        with ArrayWriter(folder / RESULT_FILE) as writer:
            return {"ok": True, "result": writer.describe(result)}
    except RefusedError as error:
        kind, text = error.kind, str(error)
    except MemoryError:
        kind, text = "native-limit", "MemoryError"
    except OSError as error:
        full = error.errno in (errno.EFBIG, errno.ENOSPC)
        kind, text = ("native-limit" if full else kind), f"{error}\n{traceback.format_exc()}"
    except Exception as error:
        text = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
    finally:
        _limit(None, None)
    if any(sign in text for sign in _OUT_OF_MEMORY):
        kind = "native-limit"
    return {"ok": False, "kind": kind, "text": text}


def _limit(memory_bytes: int | None, seconds: float | None) -> None:
    """Set the soft limits for one task; None lifts them."""
    unlimited = resource.RLIM_INFINITY
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    cpu = unlimited if seconds is None else math.ceil(used + seconds) + 1
    memory = unlimited if memory_bytes is None else memory_bytes
    for which, limit in (
        (resource.RLIMIT_DATA, memory),
        (resource.RLIMIT_FSIZE, memory),
        (resource.RLIMIT_CPU, cpu),
    ):
        # Best effort: macOS refuses some limits, and a limit set from outside may be lower.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(which, (limit, resource.getrlimit(which)[1]))


def check(_: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """Run the ONNX checker on a file."""
    import onnx

    try:
        onnx.checker.check_model(arguments["model"], full_check=arguments.get("full", True))
    except MemoryError:
        raise
    except Exception as error:
        raise RefusedError("checker-refused", f"{type(error).__name__}: {error}") from error
    return {}


def infer_shapes(_: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """Run the shape inference of ONNX on a file, its large weights left out."""
    import onnx

    try:
        model = onnx.load(arguments["model"], load_external_data=False)
        _leave_out_weights(model)
        inferred = onnx.shape_inference.infer_shapes(
            model,
            check_type=arguments.get("strict", False),
            strict_mode=arguments.get("strict", False),
            data_prop=arguments.get("data_prop", False),
        )
    except MemoryError:
        raise
    except Exception as error:
        raise RefusedError("inference-refused", f"{type(error).__name__}: {error}") from error
    return {"model": inferred.SerializeToString(deterministic=True)}


def _leave_out_weights(model: Any) -> None:
    """Keep the type and shape of large initializers, not their data."""
    import onnx

    for tensor in model.graph.initializer:
        if tensor.ByteSize() < _LARGE_BYTES:
            continue
        header = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        # Inference takes dims and type of an external tensor and does not open its file.
        header.data_location = onnx.TensorProto.EXTERNAL
        header.external_data.add(key="location", value="left-out")
        tensor.CopyFrom(header)


def load(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """Make an onnxruntime session and tell its signature."""
    session = _session(folder, arguments["model"], arguments)
    return {
        side: [{"name": v.name, "type": v.type, "shape": list(v.shape)} for v in values]
        for side, values in (("inputs", session.get_inputs()), ("outputs", session.get_outputs()))
    }


def run(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """Run models on samples, one sample at a time."""
    feeds = read_arrays(folder / FEEDS_FILE, arguments["feeds"])
    return {"outputs": [_run_all(folder, path, arguments, feeds) for path in arguments["models"]]}


def _run_all(
    folder: Path, path: str, arguments: Mapping[str, Any], feeds: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the outputs of every sample by name."""
    # Not at the top: a child that only checks a model starts without onnx.
    from graphopt.isolated_bodies import shown_name
    from graphopt.isolated_pieces import NotInPiecesError, Pieces

    session = _session(folder, path, arguments)
    outputs: list[dict[str, Any]] | None = None
    try:
        if isinstance(session, Pieces):
            try:
                found = session.run(feeds)
            except NotInPiecesError:
                session = _session(folder, path, {**arguments, "whole": True})
            else:
                outputs = [{name: _array_of(v) for name, v in one.items()} for one in found]
        if outputs is None:
            outputs = [_run_once(session, feed) for feed in feeds]
        asked = frozenset(arguments.get("extra_outputs", ()))
        return [{shown_name(name, asked): v for name, v in one.items()} for one in outputs]
    except (MemoryError, RefusedError):
        raise
    except Exception as error:
        raise RefusedError("runtime-failed", _runtime_text(error)) from error


_SESSIONS: OrderedDict[tuple[Any, ...], Any] = OrderedDict()


def _session(folder: Path, path: str, arguments: Mapping[str, Any]) -> Any:
    """Return a session or pieces, of the last two when file and options are the same."""
    status = os.stat(path)
    extra = tuple(arguments.get("extra_outputs", ()))
    level = arguments.get("optimization", "all")
    threads = arguments.get("threads", 1)
    data_files = tuple(arguments.get("data_files", ()))
    whole = bool(arguments.get("whole"))
    file = (path, status.st_ino, status.st_size, status.st_mtime_ns)
    key = (*file, data_files, extra, level, threads, whole)
    if key in _SESSIONS:
        _SESSIONS.move_to_end(key)
        return _SESSIONS[key]
    while len(_SESSIONS) >= _MAX_SESSIONS:
        _SESSIONS.popitem(last=False)
    try:
        found = None
        if data_files and level == "disabled":
            found = _with_mapped_weights(folder, path, arguments, whole)
        if found is None:
            with _weights_beside(folder, path, data_files) as source:
                found = _make_session(source, _options(level, threads), extra)
        _SESSIONS[key] = found
    except MemoryError:
        raise
    except Exception as error:
        raise RefusedError("runtime-refused", _runtime_text(error)) from error
    return _SESSIONS[key]


def _with_mapped_weights(folder: Path, path: str, arguments: Mapping[str, Any], whole: bool) -> Any:
    """Return what runs a model whose weights are large, or in files that onnxruntime refuses.

    None for other models, which it opens itself.
    """
    import onnx

    from graphopt.isolated_bodies import add_outputs
    from graphopt.isolated_pieces import Pieces, Weights, make_placeholder

    model = onnx.load(path, load_external_data=False)
    add_outputs(model, arguments.get("extra_outputs", ()))
    weights = Weights(model, os.path.dirname(path), arguments["data_files"])
    make_placeholder(folder)
    threads = arguments.get("threads", 1)

    def make(serialized: bytes, values: Mapping[str, Any]) -> Any:
        options = _options("disabled", threads)
        for name, value in values.items():
            options.add_initializer(name, value)
        session = _make_session(serialized, options, folder=folder)
        # onnxruntime only points at them.
        session.held_weights = dict(values)
        return session

    pieces = Pieces(model, weights, make)
    if pieces.large and pieces.fit and not whole:
        return pieces
    if not weights.elsewhere:
        return None
    given, values = weights.provide(model.graph.initializer, {})
    del model.graph.initializer[:]
    model.graph.initializer.extend(given)
    return make(model.SerializeToString(), values)


def _options(level: str, threads: int) -> Any:
    """Return the options of a session."""
    import onnxruntime

    fatal = 4
    onnxruntime.set_default_logger_severity(fatal)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = fatal
    options.intra_op_num_threads = threads
    if level == "disabled":
        # A reference run needs no second, packed copy of every weight: external ones stay mapped.
        options.add_session_config_entry("session.disable_prepacking", "1")
    options.inter_op_num_threads = 1
    options.graph_optimization_level = {
        "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
        "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        "disabled": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    }[level]
    return options


def _make_session(
    model: str | bytes, options: Any, extra: Iterable[str] = (), folder: Path | None = None
) -> Any:
    """Make a session of a file, or of a model in memory whose data files are in ``folder``."""
    import onnx
    import onnxruntime

    if extra and isinstance(model, str):
        from graphopt.isolated_bodies import add_outputs

        folder = Path(model).parent
        loaded = onnx.load(model, load_external_data=False)
        add_outputs(loaded, extra)
        model = loaded.SerializeToString()
    if folder is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", os.fspath(folder)
        )
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _run_once(session: Any, feed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the outputs of one sample by name."""
    names = [output.name for output in session.get_outputs()]
    narrow = any(output.type in _NARROW_FLOATS for output in session.get_outputs())
    if not narrow and not any(_is_narrow(value) for value in feed.values()):
        return dict(zip(names, session.run(None, dict(feed)), strict=True))
    import onnxruntime

    types = {v.name: v.type for v in session.get_inputs()}
    values = {}
    for name, array in feed.items():
        if _is_narrow(array):
            bits = np.array(array).view(np.dtype(f"u{array.dtype.itemsize}"))
            values[name] = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(
                bits, _onnx_type(types.get(name, ""))
            )
        else:
            values[name] = onnxruntime.OrtValue.ortvalue_from_numpy(np.array(array))
    results = session.run_with_ort_values(None, values)
    return {name: _array_of(value) for name, value in zip(names, results, strict=True)}


def _is_narrow(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.dtype.name in _NARROW_FLOATS.values()


def _onnx_type(runtime_type: str) -> int:
    import onnx

    name = runtime_type.removeprefix("tensor(").removesuffix(")").upper()
    return int(onnx.TensorProto.DataType.Value(name))


def _array_of(value: Any) -> Any:
    """Return an OrtValue as an array, also of a type that numpy does not have."""
    if value.data_type() not in _NARROW_FLOATS:
        return value.numpy()
    import ml_dtypes

    dtype = np.dtype(getattr(ml_dtypes, _NARROW_FLOATS[value.data_type()]))
    data = ctypes.string_at(value.data_ptr(), math.prod(value.shape()) * dtype.itemsize)
    return np.frombuffer(data, dtype).reshape(value.shape())


def observe(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """Run a model on samples and reduce every named value to a histogram, here.

    ``seen`` beside its fields are the numbers of the samples that gave it elements.
    """
    from graphopt.quantization.histogram import Histogram, histogram_of

    feeds = read_arrays(folder / FEEDS_FILE, arguments["feeds"])
    axes = arguments["channel_axes"]
    found: dict[str, Histogram] = {}
    seen: dict[str, list[int]] = {name: [] for name in arguments["names"]}
    outputs = _run_all(folder, arguments["model"], arguments, feeds)
    for number, (feed, made) in enumerate(zip(feeds, outputs, strict=True)):
        values = {**feed, **made}
        for name in arguments["names"]:
            histogram = found.setdefault(name, Histogram())
            value = values.pop(name)
            # What a branch that was not taken gives has no channels either.
            if value.size:
                histogram.merge(histogram_of(value, axes.get(name)))
                seen[name].append(number)
    return {name: {**one.to_dict(), "seen": seen[name]} for name, one in found.items()}


def kernels(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the nodes of a model as onnxruntime runs it, its optimizations done, of all bodies."""
    import onnx

    from graphopt.isolated_bodies import flat_nodes

    path = folder / "optimized.onnx"
    options = _options("all", 1)
    for key, value in {
        "session.disable_prepacking": "1",
        "session.optimized_model_external_initializers_file_name": "optimized.data",
        "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
    }.items():
        options.add_session_config_entry(key, value)
    if arguments.get("int8"):
        # By default it turns int8 activations into uint8 on x86-64 first, as on no other processor.
        options.add_session_config_entry("session.qdqisint8allowed", "1")
    options.optimized_model_filepath = os.fspath(path)
    # Only the nodes are read: what onnxruntime writes of the weights goes nowhere.
    path.with_name("optimized.data").symlink_to(os.devnull)
    try:
        data_files = arguments.get("data_files", ())
        with _weights_beside(folder, arguments["model"], data_files, _LARGEST_READ_BYTES) as source:
            _make_session(source, options)
        model = onnx.load(path, load_external_data=False)
    except MemoryError:
        raise
    except Exception as error:
        raise RefusedError("runtime-refused", _runtime_text(error)) from error
    finally:
        for file in folder.glob("optimized.*"):
            file.unlink()
    return {"nodes": flat_nodes(model.graph)}


@contextlib.contextmanager
def _weights_beside(
    folder: Path, path: str, data_files: Iterable[str], largest: int | None = None
) -> Iterator[str]:
    """Give a model that onnxruntime opens, also where the weights of ``path`` lie elsewhere.

    Args:
        folder: Where a copy is made, for the time that it takes to make a session of it.
        path: The model; given itself where it names files beside it only.
        data_files: Files that may be read.
        largest: Larger weights are zeros: what onnxruntime makes of a node does not depend on what
            is in them.
    """
    if not data_files:
        yield path
        return
    import onnx

    from graphopt.isolated_pieces import Weights

    model = onnx.load(path, load_external_data=False)
    weights = Weights(model, os.path.dirname(path), data_files)
    if not weights.elsewhere:
        yield path
        return
    copy = folder / "copy.onnx"
    data = copy.with_suffix(".data")
    try:
        with data.open("wb") as file:
            for tensor in model.graph.initializer:
                if tensor.name in weights.places:
                    weights.move(tensor, file, largest)
        copy.write_bytes(model.SerializeToString())
        yield os.fspath(copy)
    finally:
        for made in (copy, data):
            made.unlink(missing_ok=True)


def run_arena(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """Run a model inside the memory of its plan, node by node."""
    from graphopt import arena_tasks

    return arena_tasks.run_arena(folder, arguments)


def _runtime_text(error: Exception) -> str:
    """Return the text of an onnxruntime error without its number."""
    text = str(error) or type(error).__name__
    return text.removeprefix("[ONNXRuntimeError] : ")


TASKS: dict[str, Task] = {
    "check": check,
    "infer-shapes": infer_shapes,
    "kernels": kernels,
    "load": load,
    "observe": observe,
    "run": run,
    "run-arena": run_arena,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
