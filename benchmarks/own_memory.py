"""What a compile itself takes: anonymous memory and time on a model of 2 GiB of external weights.

Anonymous memory (``RssAnon``) of the compiling process and of its children, sampled every 10 ms,
minus what the process holds after its imports. File-backed pages are apart: the kernel can drop
them at any time. Peers on the same file in the same run: a plain copy of the files, and onnxsim
where it is asked.

    python benchmarks/own_memory.py [--gib 2] [--no-verify] [--onnxsim]
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper

_LAYER_BYTES = 64 << 20
_SIDE = 4096


def make_model(folder: Path, layers: int) -> Path:
    """Write a chain of MatMul, Add and Relu with 64 MiB of weights a layer."""
    data = folder / "weights.bin"
    rng = np.random.default_rng(0)
    block = (rng.standard_normal((_SIDE, _SIDE)) / _SIDE**0.5).astype(np.float32).tobytes()
    nodes, tensors = [], []
    with data.open("wb") as file:
        for layer in range(layers):
            name = f"w{layer}"
            tensor = onnx.TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[_SIDE, _SIDE])
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (
                ("location", data.name),
                ("offset", str(file.tell())),
                ("length", str(_LAYER_BYTES)),
            ):
                tensor.external_data.add(key=key, value=value)
            # Every layer differs in its first bytes, so that nothing can be shared.
            file.write(np.float32(layer).tobytes() + block[4:])
            tensors.append(tensor)
            source = f"h{layer - 1}" if layer else "x"
            nodes.append(helper.make_node("MatMul", [source, name], [f"m{layer}"]))
            nodes.append(helper.make_node("Relu", [f"m{layer}"], [f"h{layer}"]))
    nodes.append(helper.make_node("Identity", [f"h{layers - 1}"], ["y"]))
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "large",
        [info("x", TensorProto.FLOAT, [1, _SIDE])],
        [info("y", TensorProto.FLOAT, [1, _SIDE])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path = folder / "large.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def watch(command: list[str]) -> tuple[dict[str, int], float, int]:
    """Run ``command``; return peak anonymous bytes by process, seconds, exit status."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peaks = {"compiler": 0, "children": 0}
    family = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            children = sum(_anonymous(child.pid) for child in family.children(recursive=True))
        except psutil.Error:
            children = 0
        peaks["compiler"] = max(peaks["compiler"], _anonymous(process.pid))
        peaks["children"] = max(peaks["children"], children)
        time.sleep(0.01)
    return peaks, time.perf_counter() - started, process.returncode


def _anonymous(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    for line in text.splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    """Print the table; exit 1 when the compile adds more than 300 MB."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--no-verify", action="store_true")
    parser.add_argument("--onnxsim", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = make_model(folder, int(options.gib * (1 << 30)) // _LAYER_BYTES)
        idle, _, _ = watch(
            [sys.executable, "-c", "import graphopt.compiler, onnx, time; time.sleep(1)"]
        )
        base = idle["compiler"]
        out = folder / "out.onnx"
        command = [sys.executable, "-m", "graphopt", "compile", str(path), "-o", str(out)]
        peaks, seconds, status = watch(command + (["--no-verify"] if options.no_verify else []))
        added = peaks["compiler"] - base
        started = time.perf_counter()
        shutil.copyfile(folder / "weights.bin", folder / "copy.bin")
        copy = time.perf_counter() - started
        print(f"model of {options.gib:g} GiB, imports alone hold {base / 1e6:.0f} MB")
        print(f"graphopt: status {status}, {seconds:.1f} s (plain copy {copy:.1f} s)")
        print(f"  compiler adds {added / 1e6:.0f} MB of anonymous memory")
        print(f"  its child (onnxruntime, verification) {peaks['children'] / 1e6:.0f} MB")
        if options.onnxsim:
            rival, took, code = watch(
                [sys.executable, "-m", "onnxsim", str(path), str(folder / "sim.onnx")]
            )
            print(f"onnxsim: status {code}, {took:.1f} s, {rival['compiler'] / 1e6:.0f} MB")
        if status or added > 300e6:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
