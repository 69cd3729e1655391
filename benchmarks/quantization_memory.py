"""What quantization itself takes: calibration memory by samples, and models of some GiB.

Two measurements, each compile in a fresh process whose family (with the isolated children) is
sampled every 10 ms:

calibration
    ``graphopt.compile(precision="int8")`` of MobileNetV2 at 224x224 with a generator of 16 and of
    512 random images. Peak resident memory of the family; the two must agree within 10 %.
large
    A chain of MatMul with external weights to each precision; int8 with four samples. Peak memory
    of the family, which must stay below 0.5 GiB, both anonymous and resident with the mapped pages
    of files; and the time, from the disk, beside the median of three copies of the weights from
    disk to disk, and of three between pages in memory. Verified or not
    (``--no-verify``: without int8, whose random weights miss the goal of 28 dB by far; only a goal
    for verification lowers it).

    python benchmarks/quantization_memory.py [--part calibration large] [--images 16 512] [--gib 2]
        [--precisions int8 int8-weights int4-weights] [--no-verify]
"""

import argparse
import importlib.util
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

SIDE = 4096
LAYER_BYTES = 64 << 20
MOST_BYTES = 512 << 20
PRECISIONS = ("int8", "int8-weights", "int4-weights")
FIELDS = ("VmRSS:", "RssAnon:")


def make_model(folder: Path, layers: int) -> Path:
    """Write the chain of MatMul that ``own_memory.py`` measures."""
    source = Path(__file__).with_name("own_memory.py")
    spec = importlib.util.spec_from_file_location("own_memory", source)
    assert spec is not None, "the file is beside this one"
    assert spec.loader is not None, "it is Python"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path: Path = module.make_model(folder, layers)
    return path


def images(count: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield random images of one size, none of which is kept."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield {"images": rng.standard_normal((1, 3, 224, 224), np.float32)}


def rows(count: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield random inputs of the large model."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield {"x": rng.standard_normal((1, SIDE), np.float32)}


def child(kind: str, path: str, out: str, count: int, precision: str, *, verified: bool) -> None:
    """Compile one model; runs in a process of its own."""
    import graphopt

    data = (images if kind == "calibration" else rows)(count) if precision == "int8" else None
    result = graphopt.compile(
        path,
        target="cpu",
        precision=precision,
        calibration_data=data,
        verify=graphopt.Tolerance(sqnr_db=1.0) if verified else False,
    )
    result.save(out)
    if result.verification is not None:
        worst = min(o.sqnr_db for o in result.verification.outputs if o.sqnr_db is not None)
        print(f"{result.verification.samples} samples, {worst:.1f} dB")


def memory_of(pid: int) -> list[int]:
    """Return resident and anonymous bytes of a process, zeros when it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return [0, 0]
    found = {
        line.split()[0]: int(line.split()[1]) << 10 for line in text.splitlines() if "kB" in line
    }
    return [found.get(name, 0) for name in FIELDS]


def watch(command: list[str]) -> dict[str, float]:
    """Run ``command``; return the peaks of the family and of its parts, and the seconds."""
    peaks = dict.fromkeys(("resident", "anonymous", "parent", "children"), 0.0)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    family = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            members = [memory_of(one.pid) for one in family.children(recursive=True)]
        except psutil.Error:
            members = []
        own = memory_of(process.pid)
        children = [sum(column) for column in zip(*members, strict=True)] or [0, 0]
        for name, value in (
            ("resident", own[0] + children[0]),
            ("anonymous", own[1] + children[1]),
            ("parent", own[1]),
            ("children", children[1]),
        ):
            peaks[name] = max(peaks[name], value)
        time.sleep(0.01)
    peaks["seconds"] = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    peaks["processor"] = sum(after[:2]) - sum(before[:2])
    if process.returncode:
        raise SystemExit(f"the compile ended with status {process.returncode}")
    assert process.stdout is not None, "it is piped"
    said = process.stdout.read().strip()
    if said:
        print(f"    {said}")
    return peaks


def compile_in_child(
    kind: str, path: Path, count: int, precision: str = "int8", *, verified: bool = True
) -> dict[str, float]:
    """Return what a compile in a fresh process took."""
    out = path.with_name(f"{path.stem}_{precision}.onnx")
    words = [kind, str(path), str(out), str(count), precision]
    command = [sys.executable, __file__, "--child", *words]
    return watch([*command, *([] if verified else ["--no-verify"])])


def calibration(folder: Path, counts: list[int]) -> bool:
    """Print peak memory by number of images; return whether all agree within 10 %."""
    path = folder / "mobilenet_v2.onnx"
    export(path)
    peaks = {}
    for count in counts:
        found = compile_in_child("calibration", path, count)
        peaks[count] = found["resident"]
        print(
            f"calibration on {count:>4} images: {found['resident'] / 1e6:7.0f} MB resident, "
            f"{found['anonymous'] / 1e6:.0f} MB anonymous (compiler {found['parent'] / 1e6:.0f}, "
            f"children {found['children'] / 1e6:.0f}), {found['seconds']:.1f} s",
            flush=True,
        )
    ratio = max(peaks.values()) / min(peaks.values())
    print(f"largest over smallest: {ratio:.3f}")
    return ratio <= 1.1


def export(path: Path) -> None:
    """Write MobileNetV2 as ONNX, in a process of its own so that torch leaves no memory here."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[2]); import torch; from models import build;"
        "s = build('mobilenet_v2');"
        "torch.onnx.export(s.module, s.example_inputs, sys.argv[1], dynamo=True, verbose=False,"
        " external_data=False, dynamic_shapes=s.dynamic_shapes,"
        " input_names=list(s.input_names), output_names=list(s.output_names))"
    )
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-c", script, str(path), str(root)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def forget(file: Path) -> None:
    """Let the system drop the pages of ``file`` that it keeps in memory."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def copy_seconds(folder: Path, *, from_disk: bool) -> float:
    """Return the median time of three copies of the weights.

    Args:
        folder: Holds the weights.
        from_disk: Whether the copy starts without pages in memory and ends on the disk; else it is
            a copy from memory to memory.
    """
    found = []
    source, target = folder / "weights.bin", folder / "copy.bin"
    for _ in range(3):
        if from_disk:
            forget(source)
        started = time.perf_counter()
        shutil.copyfile(source, target)
        if from_disk:
            with target.open("rb+") as file:
                os.fsync(file.fileno())
        found.append(time.perf_counter() - started)
        target.unlink()
    return sorted(found)[1]


def large(folder: Path, gib: float, precisions: list[str], *, verified: bool) -> bool:
    """Print memory and time of a model of ``gib``; return whether it stayed below 0.5 GiB."""
    path = make_model(folder, int(gib * (1 << 30)) // LAYER_BYTES)
    kept = True
    for precision in precisions:
        if precision == "int8" and not verified:
            continue
        copies = [copy_seconds(folder, from_disk=one) for one in (False, True)]
        forget(folder / "weights.bin")
        found = compile_in_child("large", path, 4, precision, verified=verified)
        print(
            f"{precision} of {gib:g} GiB{'' if verified else ', not verified'}: "
            f"{found['anonymous'] / 2**20:.0f} MiB anonymous "
            f"(compiler {found['parent'] / 2**20:.0f}, children {found['children'] / 2**20:.0f}), "
            f"{found['resident'] / 2**20:.0f} MiB resident; {found['seconds']:.1f} s "
            f"({found['processor']:.1f} s of processors), {found['seconds'] / copies[1]:.1f} times "
            f"a copy from disk to disk ({copies[1]:.1f} s; {copies[0]:.1f} s in memory)",
            flush=True,
        )
        kept &= found["resident"] < MOST_BYTES
        for stale in folder.glob(f"large_{precision}*"):
            stale.unlink()
    return kept


def main() -> None:
    """Print the tables; exit 1 when a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--part", nargs="*", default=["calibration", "large"])
    parser.add_argument("--images", nargs="*", type=int, default=[16, 512])
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--precisions", nargs="*", default=list(PRECISIONS))
    parser.add_argument("--no-verify", action="store_true")
    parser.add_argument("--child", nargs=5)
    options = parser.parse_args()
    verified = not options.no_verify
    if options.child:
        kind, path, out, count, precision = options.child
        child(kind, path, out, int(count), precision, verified=verified)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kept = [calibration(folder, options.images)] if "calibration" in options.part else []
        if "large" in options.part:
            kept.append(large(folder, options.gib, options.precisions, verified=verified))
    if not all(kept):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
