"""Third-party native code on models of strangers, in a child process: the parent's side.

The ONNX checker, ONNX shape inference and onnxruntime are C++ that a small file can make crash or
allocate without end. They run in a child with limits on memory and time, so that a crash is an
error of the model and the parent lives on.

The child is a fresh interpreter (never a fork of a process with threads) with a small environment,
no standard input, its own process group, and a private folder. Requests and answers are JSON,
arrays raw bytes in a file of that folder that the JSON describes; nothing is pickled.

Limits are ``RLIMIT_DATA`` and ``RLIMIT_CPU``, set by the child itself before each task, no core
dumps, and a wall clock after which the process group is killed. macOS ignores some of them, the
wall clock always holds. Windows has no such limits and is not supported.
"""

import contextlib
import json
import mmap
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from graphopt.errors import (
    GraphoptError,
    InvalidModelError,
    InvariantError,
    OutputError,
    UnsupportedError,
)
from graphopt.temporary import TemporaryFolder

DEFAULT_SECONDS = 600.0
_BASE_MEMORY_BYTES = 4 << 30
_MAX_MESSAGE_BYTES = 64 << 20
_STDERR_TAIL_BYTES = 4000
_ALIGNMENT = 64
FEEDS_FILE = "feeds.bin"
REQUEST_FILE = "request.json"
RESULT_FILE = "result.bin"

# What the child may see of the environment: where Python and its libraries are, and the language.
_KEPT_VARIABLES = (
    "DYLD_LIBRARY_PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "PATH",
    "PYTHONHOME",
    "PYTHONPATH",
    "TMPDIR",
    "VIRTUAL_ENV",
)

# Kind of refusal that the child reports -> error, and what to do.
_REFUSALS: dict[str, tuple[type[GraphoptError], str | None]] = {
    "checker-refused": (
        InvalidModelError,
        "repair the model, or export it again",
    ),
    "inference-refused": (InvalidModelError, "its types or shapes contradict each other"),
    "runtime-refused": (UnsupportedError, "onnxruntime cannot load this model"),
    "runtime-failed": (UnsupportedError, "onnxruntime loads the model, but fails on these inputs"),
    "native-limit": (UnsupportedError, "raise the memory limit or use smaller inputs"),
}
_MEMORY_SIGNS = ("bad_alloc", "MemoryError", "Cannot allocate memory", "std::length_error")

Array = npt.NDArray[Any]


def default_memory_bytes(paths: Iterable[Path | str]) -> int:
    """Return the memory a child may use for these files: 4 GiB and three times their sizes."""
    return _BASE_MEMORY_BYTES + 3 * sum(os.path.getsize(p) for p in paths if os.path.exists(p))


def run_isolated(
    task: str,
    arguments: Mapping[str, Any],
    *,
    memory_bytes: int | None = None,
    seconds: float = DEFAULT_SECONDS,
) -> dict[str, Any]:
    """Run one task in a child process of its own; see ``Worker.call``."""
    with Worker(memory_bytes=memory_bytes, seconds=seconds) as worker:
        return worker.call(task, arguments)


class Worker:
    """A child process that runs tasks one after another, and is replaced after a crash.

    Not for use from several threads at once.

    Args:
        memory_bytes: Memory of the child; None: ``default_memory_bytes`` of the files of each task.
        seconds: Wall clock of each task, the start of the child included.
    """

    def __init__(
        self,
        *,
        memory_bytes: int | None = None,
        seconds: float = DEFAULT_SECONDS,
        _extra_tasks: Path | None = None,
    ) -> None:
        self._memory_bytes = memory_bytes
        self._seconds = seconds
        self._extra_tasks = _extra_tasks
        self._child: _Child | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the child and remove its folder; the next task starts another one."""
        child, self._child = self._child, None
        if child is not None:
            child.stop()

    @property
    def pid(self) -> int | None:
        """Process id of the child, None while there is none."""
        return None if self._child is None else self._child.process.pid

    def call(
        self,
        task: str,
        arguments: Mapping[str, Any],
        *,
        memory_bytes: int | None = None,
        seconds: float | None = None,
    ) -> dict[str, Any]:
        """Run one task and return its result.

        ==============  ===================================================  ======================
        task            arguments                                            result
        ==============  ===================================================  ======================
        check           ``model``: path; ``full``: True also infers shapes   {}
        infer-shapes    ``model``: path; ``data_prop``, ``strict``: bool     ``model``: serialized,
                                                                             large weights left out
        load            ``model``, ``optimization``                          ``inputs``, ``outputs``
        run             ``models``: one or more paths; ``feeds``: list of    ``outputs``: per model
                        dictionaries of arrays; ``optimization``;            and sample a dictionary
                        ``extra_outputs``: names of values                   of arrays
        observe         ``model``, ``feeds``; ``names``: values to reduce;   a histogram per name,
                        ``extra_outputs``: those among them that are no      as plain data, and
                        inputs; ``channel_axes``: name to axis               ``seen``: numbers of
                                                                             feeds with elements
        kernels         ``model``; ``int8``: as where int8 activations have  ``nodes`` as they run
                        kernels, as on Arm
        ==============  ===================================================  ======================

        ``optimization`` is "all" (the default), "extended", "basic" or "disabled"; ``threads`` of
        onnxruntime default to 1. ``data_files`` are those that weights lie in: the child may read
        them itself, wherever they are, and they are counted for the default of the memory. Without
        optimization a model with large ones runs a piece at a time (``isolated_pieces``).

        Raises:
            InvalidModelError: the checker refuses the model, or native code crashed on it.
            UnsupportedError: onnxruntime refuses it, or a limit was reached.
            InvariantError: the task failed in another way.
        """
        arguments = dict(arguments)
        paths = _make_paths_absolute(arguments)
        limit = memory_bytes or self._memory_bytes or default_memory_bytes(paths)
        wall = self._seconds if seconds is None else seconds
        deadline = time.monotonic() + wall
        subject = _subject(task, paths)
        if self._child is None:
            self._child = _Child(self._extra_tasks)
        child = self._child
        try:
            if "feeds" in arguments:
                with ArrayWriter(child.folder / FEEDS_FILE) as writer:
                    arguments["feeds"] = writer.describe(arguments["feeds"])
            request = {"task": task, "arguments": arguments, "memory_bytes": limit, "seconds": wall}
            answer = child.ask(request, deadline)
            if answer is None:
                raise child.why_dead(subject, limit, wall)
        except OSError as error:
            self.close()
            raise OutputError(
                "temporary-files",
                f"{subject}: cannot write temporary files: {error.strerror}",
                hint="make room in the temporary folder, or name another one with TMPDIR",
            ) from error
        except BaseException:
            self.close()
            raise
        if answer.get("ok") is not True:
            raise _refusal(answer, subject, limit)
        return _result(answer, child.folder)

    def run_model(
        self,
        path: Path,
        feed: Mapping[str, Array],
        *,
        optimize: bool,
        extra_outputs: Iterable[str] = (),
        data_files: Iterable[Path] = (),
    ) -> dict[str, Array]:
        """Run one model once and return its outputs by name; the session is kept for the next call.

        Raises:
            InvalidModelError: native code crashed on the model.
            UnsupportedError: onnxruntime refuses it or fails, or a limit was reached.
        """
        arguments = {
            "models": [path],
            "feeds": [dict(feed)],
            "optimization": "all" if optimize else "disabled",
            "extra_outputs": list(extra_outputs),
            "data_files": list(data_files),
        }
        outputs: dict[str, Array] = self.call("run", arguments)["outputs"][0][0]
        return outputs


class _Child:
    """One child process with its pipes and its folder."""

    def __init__(self, extra_tasks: Path | None) -> None:
        self._folder = TemporaryFolder("isolated")
        self.folder = self._folder.path
        self.timed_out = False
        request_read, self._request = os.pipe()
        self._answer, answer_write = os.pipe()
        command = [sys.executable, "-P", "-m", "graphopt.isolated_child"]
        command += [str(request_read), str(answer_write), str(self.folder)]
        command += [] if extra_tasks is None else [str(extra_tasks)]
        held = [] if self._folder.lock < 0 else [self._folder.lock]
        try:
            with open(self.folder / "stderr", "wb") as stderr:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    # With the lock, so that the folder stays while the child lives.
                    pass_fds=(request_read, answer_write, *held),
                    cwd=self.folder,
                    env=_environment(),
                    start_new_session=True,
                )
        except BaseException:
            os.close(self._request)
            os.close(self._answer)
            self._folder.close()
            raise
        finally:
            os.close(request_read)
            os.close(answer_write)

    def ask(self, request: dict[str, Any], deadline: float) -> dict[str, Any] | None:
        """Send a request and return the answer; None when the child died or was killed."""
        (self.folder / REQUEST_FILE).write_text(json.dumps(request))
        try:
            os.write(self._request, b"\n")
        except BrokenPipeError:
            self.kill(wait_first=True)
            return None
        poll = select.poll()
        poll.register(self._answer, select.POLLIN)
        parts: list[bytes] = []
        size = 0
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                self.timed_out = True
                self.kill()
                return None
            part = os.read(self._answer, 1 << 16)
            size += len(part)
            if not part or size > _MAX_MESSAGE_BYTES:
                self.kill(wait_first=not part)
                return None
            parts.append(part)
            if part.endswith(b"\n"):
                break
        try:
            answer = json.loads(b"".join(parts))
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            self.kill()
            return None
        return answer

    def kill(self, *, wait_first: bool = False) -> None:
        """Kill the process group; with ``wait_first`` a dying process keeps its own status."""
        if wait_first:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=5)
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """End the child at once and remove what it left."""
        os.close(self._request)
        os.close(self._answer)
        self.kill()
        self._folder.close()

    def why_dead(self, subject: str, memory_bytes: int, seconds: float) -> GraphoptError:
        """Return the error that the death of the child means."""
        if self.timed_out:
            return UnsupportedError(
                "native-limit",
                f"{subject} took more than {seconds:g} seconds",
                hint="raise the time limit or use smaller inputs",
            )
        status = self.process.wait()
        tail = self._stderr_tail()
        details = {"stderr": tail, "status": status}
        if status >= 0:
            return InvariantError(
                "isolated-start-failed",
                f"{subject}: the child process ended with status {status}: {_last_line(tail)}",
                hint="does this Python installation import onnx and onnxruntime?",
                details=details,
            )
        name = signal.Signals(-status).name
        starved = any(sign in tail for sign in _MEMORY_SIGNS)
        if starved or -status in (signal.SIGKILL, signal.SIGXCPU, signal.SIGXFSZ):
            return UnsupportedError(
                "native-limit",
                f"{subject} ran out of memory or time ({name}) under a limit of "
                f"{memory_bytes} bytes and {seconds:g} seconds",
                hint="raise the memory limit or use smaller inputs",
                details=details,
            )
        return InvalidModelError(
            "native-crash",
            f"{subject} crashed native code ({name}); graphopt itself is unharmed",
            hint="the model triggers a bug of onnx or onnxruntime: do not load it elsewhere either",
            details=details,
        )

    def _stderr_tail(self) -> str:
        try:
            with open(self.folder / "stderr", "rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - _STDERR_TAIL_BYTES))
                return file.read().decode("utf-8", "replace")
        except OSError:
            return ""


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}


def _make_paths_absolute(arguments: dict[str, Any]) -> list[str]:
    """Make the paths among the arguments text that is absolute; returns them."""
    paths: list[str] = []
    if "model" in arguments:
        arguments["model"] = os.path.abspath(arguments["model"])
        paths.append(arguments["model"])
    if "models" in arguments:
        arguments["models"] = [os.path.abspath(path) for path in arguments["models"]]
        paths += arguments["models"]
    if "data_files" in arguments:
        arguments["data_files"] = [os.path.abspath(path) for path in arguments["data_files"]]
        paths = paths + arguments["data_files"]
    return paths


def _subject(task: str, paths: list[str]) -> str:
    return f"task '{task}'" + (f" on '{os.path.basename(paths[0])}'" if paths else "")


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"


def _refusal(answer: Mapping[str, Any], subject: str, memory_bytes: int) -> GraphoptError:
    """Return the error for an answer that is no result."""
    kind, text = str(answer.get("kind")), str(answer.get("text"))
    first = text.strip().splitlines()[0][:500] if text.strip() else "no reason given"
    if kind not in _REFUSALS:
        return InvariantError(
            "isolated-task-failed",
            f"{subject} failed: {first}",
            details={"traceback": text[-4000:]},
        )
    error, hint = _REFUSALS[kind]
    if kind == "native-limit":
        first = f"out of memory under a limit of {memory_bytes} bytes: {first}"
    return error(kind, f"{subject}: {first}", hint=hint, details={"text": text[:4000]})


def _result(answer: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the result of an answer, its arrays mapped from the file that the child wrote."""
    path = folder / RESULT_FILE
    try:
        result = read_arrays(path, answer["result"])
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise InvariantError(
            "isolated-task-failed", f"the child described arrays that are not there: {error}"
        ) from error
    finally:
        path.unlink(missing_ok=True)
    if not isinstance(result, dict):
        raise InvariantError("isolated-task-failed", f"the child answered {type(result).__name__}")
    return result


class ArrayWriter:
    """Writes arrays to a file, and describes them in plain data.

    ``describe`` turns a tree of dictionaries, lists and arrays into the same tree with
    descriptions; text arrays stand in the description itself.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        # A fresh file: somebody may still have the last one mapped.
        self._path.unlink(missing_ok=True)
        self._file = open(self._path, "xb")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def describe(self, tree: Any) -> Any:
        """Return the description of ``tree``, its arrays written.

        Raises:
            UnsupportedError: a leaf is neither an array nor plain data.
        """
        if isinstance(tree, Mapping):
            return {"map": {str(key): self.describe(value) for key, value in tree.items()}}
        if isinstance(tree, (list, tuple)):
            return {"list": [self.describe(value) for value in tree]}
        if isinstance(tree, bytes):
            return {"bytes": self._append(tree), "size": len(tree)}
        if tree is None or isinstance(tree, (str, int, float, bool)):
            return {"plain": tree}
        if isinstance(tree, (np.ndarray, np.generic)):
            return self._describe_array(np.asarray(tree))
        raise UnsupportedError(
            "value-type", f"a value of type {type(tree).__name__} cannot be passed to a model"
        )

    def _describe_array(self, array: Array) -> dict[str, Any]:
        if array.dtype.kind in "OUS":
            texts = [
                t.decode("utf-8", "replace") if isinstance(t, bytes) else str(t) for t in array.flat
            ]
            return {"texts": texts, "shape": list(array.shape)}
        data = np.ascontiguousarray(array)
        offset = self._append(data.reshape(-1).view(np.uint8).data)
        return {"array": offset, "dtype": data.dtype.name, "shape": list(array.shape)}

    def _append(self, data: bytes | memoryview) -> int:
        position = self._file.tell()
        offset = -(-position // _ALIGNMENT) * _ALIGNMENT
        self._file.write(b"\0" * (offset - position))
        self._file.write(data)
        return offset


def read_arrays(path: Path, description: Any) -> Any:
    """Return the tree that ``description`` describes; its arrays are read-only maps of ``path``.

    Raises:
        ValueError, TypeError, KeyError: the description does not fit the file.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    return _read(buffer, description)


def _read(buffer: mmap.mmap | bytes, tree: Any) -> Any:
    if "map" in tree:
        return {key: _read(buffer, value) for key, value in tree["map"].items()}
    if "list" in tree:
        return [_read(buffer, value) for value in tree["list"]]
    if "plain" in tree:
        return tree["plain"]
    if "bytes" in tree:
        return buffer[tree["bytes"] : tree["bytes"] + tree["size"]]
    shape = tuple(int(dim) for dim in tree["shape"])
    if "texts" in tree:
        return np.array(tree["texts"], dtype=object).reshape(shape)
    dtype = _dtype(tree["dtype"])
    count = 1
    for dim in shape:
        if dim < 0:
            raise ValueError(f"negative dimension {dim}")
        count *= dim
    if count == 0:
        return np.empty(shape, dtype)
    return np.frombuffer(buffer, dtype, count, tree["array"]).reshape(shape)


def _dtype(name: str) -> np.dtype[Any]:
    if name in np.sctypeDict:
        return np.dtype(name)
    import ml_dtypes

    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return dtype
