"""Peers of the int8 benchmarks, each quantizing the same file on the same samples.

onnxruntime's quantizer at its best settings for x86 runs in this process; NNCF, which cannot be
installed beside everything else, in the interpreter of an environment of its own.
"""

import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

Feed = dict[str, np.ndarray]
_NNCF = Path(__file__).resolve().parent / "peers" / "nncf_quantize.py"


def onnxruntime_quantize(path: Path, out: Path, feeds: list[Feed], method: str = "MinMax") -> float:
    """Quantize with ``quantize_static``: QDQ, per channel, U8S8; return the seconds."""
    import onnx
    from onnx import version_converter
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(feeds)

        def get_next(self) -> Any:
            return next(self.left, None)

    started = time.perf_counter()
    ready = out.with_suffix(".ready.onnx")
    model = onnx.load(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 8)
    if model.opset_import[0].version < 13:
        model = version_converter.convert_version(model, 13)
    onnx.save(model, ready)
    quant_pre_process(os.fspath(ready), os.fspath(ready), skip_symbolic_shape=True)
    q.quantize_static(
        os.fspath(ready),
        os.fspath(out),
        Reader(),
        quant_format=q.QuantFormat.QDQ,
        per_channel=True,
        calibrate_method=q.CalibrationMethod[method],
        activation_type=q.QuantType.QUInt8,
        weight_type=q.QuantType.QInt8,
    )
    ready.unlink()
    return time.perf_counter() - started


def nncf_quantize(python: Path, path: Path, out: Path, feeds: list[Feed]) -> float:
    """Quantize with NNCF in the interpreter ``python``; return the seconds.

    Raises:
        RuntimeError: NNCF failed; with its last line.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        samples = Path(folder) / "feeds.npz"
        arrays = {f"{i}/{name}": a for i, feed in enumerate(feeds) for name, a in feed.items()}
        np.savez(samples, **arrays)  # type: ignore[arg-type]
        command = [python, _NNCF, path, samples, out]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        raise RuntimeError((found.stderr.strip().splitlines() or ["no message"])[-1][:160])
    return time.perf_counter() - started


def onnxsim_quantize(path: Path, out: Path, feeds: list[Feed], *, full_graph: bool) -> float:
    """Quantize with onnxsim by its MSE ranges; return the seconds."""
    import onnx
    import onnxsim

    started = time.perf_counter()
    onnx.save(
        onnxsim.quantize_static(
            os.fspath(path), calibration_data=feeds, method="mse", full_graph=full_graph
        ),
        out,
    )
    return time.perf_counter() - started
