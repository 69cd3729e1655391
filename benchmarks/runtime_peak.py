"""What one model takes in onnxruntime, measured in a fresh process on Linux.

Two numbers: the most memory that runs take above what the loaded session holds (activations and
scratch), and the most that loading and running take above the bare process. The session has no
arena of its own, so that memory which is let go is seen to be let go; pages are 4 KiB.

    python benchmarks/runtime_peak.py MODEL.onnx SAMPLE.npz
"""

import ctypes
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

RUNS = 3
_MMAP_THRESHOLD = -3  # of mallopt: blocks of that size and more go back when they are freed


def measure(model: Path, feed: dict[str, np.ndarray]) -> dict[str, int]:
    """Return the bytes of ``run`` and of ``all``, from a process of their own."""
    with tempfile.TemporaryDirectory() as folder:
        sample = Path(folder) / "sample.npz"
        np.savez(sample, **feed)  # type: ignore[arg-type]  # the stub mistakes names for options
        command = [sys.executable, __file__, str(model), str(sample)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _child(model: str, sample: str) -> dict[str, int]:
    import onnxruntime as ort

    ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 1 << 13)
    with np.load(sample) as arrays:
        feed = {name: arrays[name] for name in arrays.files}
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    _forget_peak()
    bare = _status("VmRSS:")
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    # The first run sets up what later runs keep, such as code that is paged in.
    session.run(None, feed)
    everything = _status("VmHWM:") - bare
    most = 0
    for _ in range(RUNS):
        _forget_peak()
        before = _status("VmRSS:")
        session.run(None, feed)
        most = max(most, _status("VmHWM:") - before)
    return {"run": most, "all": everything}


if __name__ == "__main__":
    print(json.dumps(_child(*sys.argv[1:])))
