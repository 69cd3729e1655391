"""Tasks that misbehave, for the tests of the isolation; loaded in the child by path."""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def segfault(_: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    ctypes.string_at(0)
    return {}


def stop_with(_: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    signal.signal(arguments["signal"], signal.SIG_DFL)
    sys.stderr.write(arguments.get("says", ""))
    sys.stderr.flush()
    os.kill(os.getpid(), arguments["signal"])
    time.sleep(30)
    return {}


def leave(_: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    os._exit(arguments["status"])


def allocate(_: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    held = [np.ones(1 << 20, np.uint8) for _i in range(arguments["mebibytes"])]
    return {"held": len(held)}


def hang(_: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    time.sleep(arguments["seconds"])
    return {}


def burn(_: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    while True:
        pass


def raise_error(_: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    raise LookupError("nothing here")


def fill_disk(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"array": np.zeros(arguments["bytes"], np.uint8)}


def chatter(_: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    sys.stderr.write("x" * 1_000_000)
    return {}


def lie(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """Answer by hand with a description of arrays that are not there."""
    (folder / "result.bin").write_bytes(b"12345678")
    os.write(int(sys.argv[2]), arguments["answer"].encode() + b"\n")
    time.sleep(30)
    return {}


def echo(_: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"arguments": arguments}


def look_around(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    import resource

    return {
        "environment": sorted(os.environ),
        "group": os.getpgrp(),
        "pid": os.getpid(),
        "cwd": os.getcwd(),
        "path": sys.path,
        "core": list(resource.getrlimit(resource.RLIMIT_CORE)),
        "data": resource.getrlimit(resource.RLIMIT_DATA)[0],
        "stdin": os.readlink("/proc/self/fd/0") if os.path.exists("/proc/self/fd") else "/dev/null",
        "modules": sorted(m for m in ("onnx", "onnxruntime", "torch") if m in sys.modules),
    }


TASKS = {
    name.replace("_", "-"): task
    for name, task in list(globals().items())
    if callable(task) and getattr(task, "__module__", "") == __name__
}
