"""Files for torch, each read and run in a fresh process that cannot import graphopt.

    python benchmarks/torch_files.py [--only NAME ...] [--peak]

Every builder of ``models/`` in its small size and every trained network of the assets is saved as
``.ts`` and ``.pt2``. A process with torch alone runs each file on inputs from an ``.npz``; its
outputs are compared with those of the original in onnxruntime, within 1e-4 of their scale. A cell
is the largest error, the code of a typed refusal, or FAILED.

``--peak``: bytes that torch's allocators hold at most during one call of the ordinary TorchScript
file after two calls to warm up, one thread, results included, beside the live bytes of the plan
with results counted and nothing written in place.
Scratch inside of an operator is not predicted; ``peak in`` names the operator at the peak.
"""

import argparse
import importlib.util
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

LIMIT = 1e-4
SECONDS = 300
PEAK = (
    "dscnn_kws",
    "espcn_x3",
    "lprnet_plate",
    "mnist_cntk",
    "resnet20_cifar10",
    "resnet56_cifar10",
    "sinet_portrait",
    "squeezenet1_1_imagenet",
    "stories260k_prefill",
    "ultraface_rfb320",
)
# The child gets: file, inputs, where outputs go, "peak" or "run".
CHILD = """
import sys, warnings
sys.modules["graphopt"] = None
warnings.simplefilter("ignore")
import numpy as np, torch
path, given, out, what = sys.argv[1:]
torch.set_num_threads(1)
torch.set_grad_enabled(False)
arrays = np.load(given)
inputs = [torch.from_numpy(arrays[str(i)]) for i in range(len(arrays.files))]
pt2 = path.endswith(".pt2")
module = torch.export.load(path).module() if pt2 else torch.jit.load(path)
found = module(*inputs)
found = found if isinstance(found, (tuple, list)) else (found,)
np.savez(out, **{str(i): t.contiguous().numpy() for i, t in enumerate(found)})
if what == "peak":
    del found
    module(*inputs)
    p = torch._C._profiler
    options = (False, True, False, False, False, p._ExperimentalConfig())
    config = p.ProfilerConfig(p.ProfilerState.CPU, *options)
    torch.autograd._enable_profiler_legacy(config)
    held = module(*inputs)
    threads = torch.autograd._disable_profiler_legacy()
    live = most = 0
    # Operators that the module itself calls are at depth 1.
    where, outer, open_, depth = "-", "-", [], 0
    for event in (e for events in threads for e in events):
        kind = event.kind()
        if kind == "push":
            open_.append(event.name())
            depth += open_[-1].startswith("aten::")
            outer = open_[-1] if depth == 1 else outer
        elif kind == "pop" and open_:
            depth -= open_.pop().startswith("aten::")
        elif kind == "memory_alloc":
            live += event.cpu_memory_usage()
            if live > most:
                most, where = live, outer
    print(most, where)
"""


def networks_script() -> ModuleType:
    """Return the script that knows the assets and their sizes; it lies beside this file."""
    path = Path(__file__).with_name("trained_networks.py")
    spec = importlib.util.spec_from_file_location("trained_networks", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def from_builder(name: str) -> tuple[Any, dict[str, Any], list[Any]]:
    """Return the result of a builder, a sample, and the outputs of the original."""
    import graphopt
    from graphopt.numerics.verify import user_feeds
    from models import SMALL, build

    sample = build(name, **SMALL[name])
    options: dict[str, Any] = {"dynamic_shapes": sample.dynamic_shapes, "verify": False}
    original = graphopt.compile(sample.module, sample.example_inputs, passes=(), **options)
    result = graphopt.compile(sample.module, sample.example_inputs, **options)
    (feed, *_) = user_feeds(result.program, sample.example_inputs)
    found = original.run(feed)
    return result, dict(feed), [found[v.name or ""] for v in result.program.graph.outputs]


def from_file(path: Path, dims: dict[str, int]) -> tuple[Any, dict[str, Any], list[Any]]:
    """Return the result of a file, a sample, and the outputs of the original."""
    import onnxruntime

    import graphopt
    from graphopt.frontends.onnx_loader import load_onnx
    from graphopt.numerics.feeds import make_feed

    result = graphopt.compile(path, bindings=dims, verify=False)
    # The original says what its inputs index; some readers are gone from the result.
    feed = dict(make_feed(load_onnx(path), dims, 0))
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), quiet, providers=["CPUExecutionProvider"])
    return result, feed, session.run([v.name for v in result.program.graph.outputs], feed)


def child(file: Path, result: Any, feed: dict[str, Any], what: str) -> tuple[list[Any], str]:
    """Run a file in a process of its own; return the outputs and what it printed."""
    given, out = file.with_suffix(".in.npz"), file.with_suffix(".out.npz")
    names = [v.name or "" for v in result.program.graph.inputs]
    np.savez(given, **{str(i): feed[name] for i, name in enumerate(names)})
    command = [sys.executable, "-I", "-c", CHILD, str(file), str(given), str(out), what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["died"])[-1])
    with np.load(out) as arrays:
        return [arrays[str(i)] for i in range(len(arrays.files))], done.stdout.strip()


def error_of(expected: list[Any], found: list[Any]) -> float:
    """Return the largest difference as a part of the largest value of its output."""
    worst = 0.0
    for a, b in zip(expected, found, strict=True):
        if a.shape != b.shape:
            return float("inf")
        wanted, got = a.astype(np.float64), b.astype(np.float64)
        if wanted.size:
            scale = float(np.abs(wanted).max())
            error = float(np.abs(wanted - got).max()) / (scale or 1.0)
            worst = max(worst, error) if error == error else float("inf")
    return worst


def cell(result: Any, feed: dict[str, Any], expected: list[Any], file: Path) -> tuple[str, bool]:
    """Save, run and compare one file; return the text of its cell and whether it is a failure."""
    from graphopt.errors import GraphoptError

    try:
        result.save(file)
    except GraphoptError as refusal:
        return refusal.code, False
    try:
        found, _ = child(file, result, feed, "run")
        error = error_of(expected, found)
    except (RuntimeError, ValueError, subprocess.TimeoutExpired) as problem:
        return f"FAILED: {str(problem)[:90]}", True
    return (f"{error:.1e}", False) if error <= LIMIT else (f"FAILED: error {error:.1e}", True)


def predicted(result: Any) -> int:
    """Return the most live bytes when nothing is written in place and results are counted."""
    from graphopt.compiler import plannable
    from graphopt.memory.liveness import live_bytes
    from graphopt.memory.planning import make_plan
    from graphopt.targets.loader import resolve_target

    target = resolve_target("cpu")
    runtime = target.runtime.model_copy(update={"in_place": False})
    sizes = result.plan.model.bindings
    sized, most = plannable(result.program, sizes)
    plan = make_plan(
        sized, target.model_copy(update={"runtime": runtime}), sizes, upper_bounds=most
    )
    kept = [b for b in plan.buffers if b.segment == "arena" or b.kind == "output"]
    spans = [(b.start, b.end, b.bytes) for b in kept]
    return max(live_bytes(spans, len(plan.steps)), default=0)


def main() -> None:
    """Print the table; exit 1 when a file fails (a typed refusal is none)."""
    parser = argparse.ArgumentParser(description="Files for torch without graphopt")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--peak", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    from models import REGISTRY

    script = networks_script()
    files = {path.stem: path for path in sorted((script.assets() / "models").glob("*.onnx"))}
    names = options.only or (PEAK if options.peak else [*REGISTRY, *files])
    heads = ("measured", "predicted", "ratio", "peak in") if options.peak else ("ts", "pt2", "")
    print(f"{'network':26}" + "".join(f"{head:>22}" for head in heads), flush=True)
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            try:
                made = from_builder(name) if name in REGISTRY else None
                result, feed, expected = made or from_file(
                    files[name], script.dims_for(files[name])
                )
                if options.peak:
                    (file,) = result.save(Path(folder) / f"{name}.ts")
                    most, where = child(file, result, feed, "peak")[1].split()
                    plan = predicted(result)
                    ratio = f"{int(most) / plan:.3f}"
                    cells = [f"{int(most):,}", f"{plan:,}", ratio, where]
                else:
                    cells = []
                    for suffix in ("ts", "pt2"):
                        path = Path(folder) / f"{name}.{suffix}"
                        text, failed = cell(result, feed, expected, path)
                        failures += failed
                        cells.append(text)
                        path.unlink(missing_ok=True)
            except Exception as problem:
                failures += 1
                cells = [f"FAILED: {type(problem).__name__}: {str(problem)[:150]}"]
            print(f"{name:26}" + "".join(f"{text:>22}" for text in cells), flush=True)
    if failures:
        raise SystemExit(f"{failures} failures")


if __name__ == "__main__":
    main()
