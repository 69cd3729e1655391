"""Files for torch on a GPU: predicted bytes against measured ones, and what a call takes.

    PYTHONPATH=. python benchmarks/torch_cuda.py [--device cpu] [--out FILE.md] [NAME ...]

Without CUDA it says so, measures two small networks on the CPU through the same code, and exits
with status 0. For every network:

* ``error``: largest difference of the ordinary module on the device, and of the arena module, from
  the ordinary module on the CPU, as a part of the largest result. Float32 stays float32 (no TF32).
* ``predicted`` / ``measured``: the plan's figure for a call of the ordinary module, and
  ``torch.cuda.max_memory_allocated`` less ``memory_allocated`` before the call. ``asked`` is the
  same before torch rounds up to blocks (``requested_bytes`` of ``torch.cuda.memory_stats``).
  TorchScript's fuser is off, here and in the times: a fused operator makes no intermediates.
* ``arena``: bytes that the file plans for its arenas. ``held``: the buffers of the loaded module.
  ``beside``: most bytes that a call of ``run_into`` holds besides. ``allocs``: allocations of a
  call of ``run_into`` / the ordinary module.
* times in milliseconds, medians: the ordinary module, the arena module (``run_into``), that as one
  CUDA graph, and the original torch module (builders only). ``extra``: bytes that the graph takes
  beside the arena.

Trained networks are found through GRAPHOPT_ASSETS, or in the folder ``shared`` beside the checkout.
``--out`` writes the table as Markdown, and all figures as JSON beside it. Exit status 1 when a
network failed, an error is above 1e-3, or a prediction is off by more than 5 % (and 64 KiB).
"""

import argparse
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

MOST_ERROR = 1e-3
MOST_OFF = 0.05
FEW_BYTES = 64 << 10
SELF_CHECK = ("mlp:small", "lstm_tagger:small")
HEADS = (
    ("network", "network"),
    ("error", "error"),
    ("arena_error", "error, arena"),
    ("predicted", "predicted"),
    ("measured", "measured"),
    ("ratio", "ratio"),
    ("asked", "asked"),
    ("arena", "arena"),
    ("held", "held"),
    ("beside", "beside"),
    ("allocations", "allocs"),
    ("ordinary_ms", "ordinary ms"),
    ("arena_ms", "arena ms"),
    ("graph_ms", "graph ms"),
    ("extra", "extra"),
    ("eager_ms", "eager ms"),
    ("note", "note"),
)
Row = dict[str, Any]


def neighbour(name: str) -> ModuleType:
    """Return a script that lies beside this file."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Gauge:
    """What can be read of a device: bytes, allocations, time."""

    def __init__(self, device: Any) -> None:
        import torch

        self.device = device
        self._cuda: Any = torch.cuda if device.type == "cuda" else None

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        if self._cuda is not None:
            self._cuda.synchronize()

    def peak(self, call: Callable[[], object]) -> tuple[int, int]:
        """Return what a call holds at most, results included: as allocated, and as asked for."""
        from graphopt.backends.torch_counts import most_held

        kept: list[object] = []
        asked = most_held(lambda: kept.append(call()), self.device)
        kept.clear()
        if self._cuda is None:
            return asked, asked
        self.wait()
        self._cuda.reset_peak_memory_stats()
        before = self._cuda.memory_allocated()
        kept.append(call())
        self.wait()
        return self._cuda.max_memory_allocated() - before, asked

    def allocations(self, call: Callable[[], object]) -> int:
        """Return how often a call asks for memory; on the CPU, for 4096 bytes or more."""
        from graphopt.backends.torch_counts import requested_bytes

        if self._cuda is None:
            return len(requested_bytes(call))
        before = self._cuda.memory_stats()["allocation.all.allocated"]
        call()
        return int(self._cuda.memory_stats()["allocation.all.allocated"] - before)

    def milliseconds(self, calls: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
        """Return the median time of functions called in turn, the device waited for."""
        taken: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(runs + 3):
            for name, call in calls.items():
                self.wait()
                start = time.perf_counter()
                call()
                self.wait()
                if turn >= 3:
                    taken[name].append((time.perf_counter() - start) * 1e3)
        return {name: statistics.median(values) for name, values in taken.items()}


def from_file(path: Path, target: str, dims: dict[str, int]) -> tuple[Any, Any, None]:
    """Return the result of a trained network, and a feed."""
    import graphopt
    from graphopt.frontends.onnx_loader import load_onnx
    from graphopt.numerics.feeds import make_feed

    result = graphopt.compile(path, bindings=dims, target=target, verify=False)
    # The original says what its inputs index; some readers are gone from the result.
    return result, make_feed(load_onnx(path), dims, 0), None


def difference(found: Any, expected: Any) -> float:
    """Return the largest difference as a part of the largest expected value of each output."""
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        a, b = one.detach().cpu().double(), other.detach().cpu().double()
        if a.shape != b.shape:
            return float("inf")
        if a.numel() and not bool(((a == b) | (a.isnan() & b.isnan())).all()):
            gap, scale = float((a - b).abs().max()), float(b.abs().max())
            part = gap / scale if scale else float("inf")
            worst = max(worst, part if part == part else float("inf"))  # no number: all is lost
    return worst


class Measured:
    """One network on one device, part by part; what fails is in ``note``."""

    def __init__(self, name: str, result: Any, feed: Any, gauge: Gauge, folder: Path) -> None:
        from graphopt.backends.torch_trace import tensors_of

        self.row: Row = {"network": name, "note": ""}
        self._result, self._gauge, self._folder = result, gauge, folder
        self._names = [value.name or "" for value in result.program.graph.inputs]
        self._host = tensors_of(feed, self._names)
        self._inputs = tuple(x.to(gauge.device) for x in self._host)
        self._expected: Any = None
        self._calls: dict[str, Callable[[], object]] = {}

    def ordinary(self) -> None:
        """Measure the ordinary module against its prediction."""
        import torch

        jit: Any = torch.jit
        (path,) = self._result.save(self._folder / "ordinary.ts")
        self._expected = _all(jit.load(str(path), map_location="cpu")(*self._host))
        module = jit.load(str(path), map_location=self._gauge.device)

        def call() -> Any:
            return module(*self._inputs)

        for _ in range(3):
            found = _all(call())
        self.row["error"] = difference(found, self._expected)
        del found
        key = "torchscript" if self._gauge.device.type == "cpu" else "torch-cuda"
        said = self._result.plan.predictions[key]
        measured, asked = self._gauge.peak(call)
        self.row.update(measured=measured, asked=asked, predicted=said.peak_bytes)
        if said.peak_bytes is None:
            self.note(f"no prediction: {said.reason}")
        else:
            self.row["ratio"] = measured / said.peak_bytes if said.peak_bytes else float("nan")
        self.row["ordinary_allocations"] = self._gauge.allocations(call)
        self._calls["ordinary_ms"] = call

    def arena(self) -> None:
        """Measure the arena module; as a CUDA graph, too, where the device is one."""
        import torch

        from graphopt.errors import GraphoptError

        try:
            (path,) = self._result.save(self._folder / "arena.ts", arena=True)
        except GraphoptError as refusal:
            self.note(f"no arena: {refusal.code}: {refusal.message[:200]}")
            return
        stated = {"graphopt_arena.json": ""}
        jit: Any = torch.jit
        module = jit.load(str(path), _extra_files=stated)
        report = json.loads(stated["graphopt_arena.json"])
        found = module(*self._inputs)
        outputs = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in found]

        def call() -> None:
            module.run_into(*self._inputs, outputs)

        for _ in range(3):
            call()
        self.row["arena_error"] = difference(outputs, self._expected)
        self.row["arena"] = report["arena_bytes"]
        self.row["bound"] = report["lower_bound_bytes"]
        self.row["not_enforced"] = len(report["not_enforced"])
        kept = (t for n, t in module.named_buffers() if n.startswith("arenas.arena_"))
        self.row["held"] = sum(t.nbytes for t in kept)
        _, self.row["beside"] = self._gauge.peak(call)
        self.row["arena_allocations"] = self._gauge.allocations(call)
        self._calls["arena_ms"] = call
        if self._gauge.device.type != "cpu":
            self.graph(module, outputs)

    def graph(self, module: Any, outputs: Any) -> None:
        """Measure the arena module as a CUDA graph."""
        from graphopt.backends.torch_cuda_graph import cuda_graph
        from graphopt.errors import GraphoptError

        try:
            # What operators hold besides is shown, not limited.
            graph = cuda_graph(module, self._inputs, most_bytes=1 << 62)
        except GraphoptError as refusal:
            self.note(f"no graph: {refusal.code}: {refusal.message}")
            return
        self.row["graph_error"] = difference(graph(*self._inputs), outputs)
        self.row["extra"] = graph.extra_bytes
        self._calls["graph_ms"] = graph.replay

    def eager(self, sample: Any) -> None:
        """Note the call of the original module."""
        module = sample.module.to(self._gauge.device)
        inputs = tuple(x.to(self._gauge.device) for x in sample.example_inputs)
        self._calls["eager_ms"] = lambda: module(*inputs)

    def times(self, runs: int) -> None:
        """Measure the times of all calls, in turn."""
        self.row.update(self._gauge.milliseconds(self._calls, runs))

    def note(self, text: str) -> None:
        """Add to what a reader of the row should know."""
        self.row["note"] = "; ".join(filter(None, (self.row["note"], text)))


def _all(found: Any) -> tuple[Any, ...]:
    return tuple(found) if isinstance(found, (tuple, list)) else (found,)


def row_of(name: str, options: argparse.Namespace, gauge: Gauge) -> Row:
    """Return the figures of one network."""
    from models import REGISTRY

    target = "cpu" if gauge.device.type == "cpu" else "gpu"
    if name.partition(":")[0] in REGISTRY:
        result, feed, sample = neighbour("torch_peak").from_builder(name, target)
    else:
        script = neighbour("trained_networks")
        path = script.assets() / "models" / f"{name}.onnx"
        result, feed, sample = from_file(path, target, script.dims_for(path))
    with tempfile.TemporaryDirectory() as folder:
        measured = Measured(name, result, feed, gauge, Path(folder))
        measured.ordinary()
        measured.arena()
        if sample is not None:
            measured.eager(sample)
        measured.times(options.runs)
    return measured.row


def is_good(row: Row) -> bool:
    """Return whether errors and the prediction of a network are within their limits."""
    errors = [row.get(key, 0.0) for key in ("error", "arena_error", "graph_error")]
    if "failed" in row or max(errors) > MOST_ERROR:
        return False
    predicted, measured = row.get("predicted"), row["measured"]
    return (
        predicted is None
        or abs(measured - predicted) <= FEW_BYTES
        or abs(row["ratio"] - 1) <= MOST_OFF
    )


def cells(row: Row) -> list[str]:
    """Return what a table shows of a row."""
    if {"arena_allocations", "ordinary_allocations"} <= row.keys():
        row = {**row, "allocations": "{arena_allocations}/{ordinary_allocations}".format(**row)}
    texts = []
    for key, _ in HEADS:
        value = row.get(key)
        if value is None:
            texts.append("-")
        elif "error" in key:
            texts.append(f"{value:.1e}")
        elif isinstance(value, float):
            texts.append(f"{value:.3f}")
        else:
            texts.append(f"{value:,}" if isinstance(value, int) else str(value))
    return texts


def facts(device: Any) -> dict[str, str]:
    """Return what the figures hold for."""
    import torch

    from graphopt.backends.torch_device import name_of

    version: Any = torch.version
    cuda = version.cuda if device.type == "cuda" else "-"
    return {"torch": str(torch.__version__), "device": name_of(device), "CUDA": str(cuda)}


def write(out: Path, known: dict[str, str], rows: list[Row]) -> None:
    """Write the table as Markdown, and all figures as JSON beside it."""
    lines = [", ".join(f"{key} {value}" for key, value in known.items()), ""]
    lines.append("| " + " | ".join(head for _, head in HEADS) + " |")
    lines.append("|" + "---|" * len(HEADS))
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = {"facts": known, "rows": rows}
    out.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def names_of(options: argparse.Namespace, *, self_check: bool) -> list[str]:
    """Return the networks to measure."""
    from models import REGISTRY

    if options.names:
        return list(options.names)
    if self_check:
        return list(SELF_CHECK)
    folder = Path(os.environ.get("GRAPHOPT_ASSETS", ROOT.parent / "shared")) / "models"
    files = [path.stem for path in sorted(folder.glob("*.onnx"))]
    if options.all:
        return [*(f"{name}:small" for name in REGISTRY), *files]
    return [n for n in neighbour("torch_peak").NAMES if n in REGISTRY or n in files]


def main() -> None:
    """Print the table; exit 1 when something is off."""
    parser = argparse.ArgumentParser(description="Files for torch on a GPU")
    parser.add_argument("names", nargs="*", help="builders (name or name:small), trained networks")
    parser.add_argument("--all", action="store_true", help="every builder, small, and every asset")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--runs", type=int, default=51)
    parser.add_argument("--out", type=Path, help="a .md file; a .json file is written beside it")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    import torch

    from graphopt.backends.torch_device import exact_float32

    without = options.device == "cuda" and not torch.cuda.is_available()
    if without:
        print(f"torch {torch.__version__} sees no GPU: nothing is measured on one.")
        print("Self-check of this script on the CPU:")
    device = torch.device("cpu" if without else options.device)
    internals: Any = torch._C
    internals._jit_set_texpr_fuser_enabled(False)
    torch.set_grad_enabled(False)
    known = facts(device)
    print(", ".join(f"{key} {value}" for key, value in known.items()))
    print(" | ".join(head for _, head in HEADS), flush=True)
    rows = []
    with exact_float32():
        for name in names_of(options, self_check=without):
            try:
                row = row_of(name, options, Gauge(device))
            except Exception as problem:
                said = f"{type(problem).__name__}: {str(problem)[:300]}"
                row = {"network": name, "failed": said, "note": f"FAILED: {said}"}
            rows.append(row)
            print(" | ".join(cells(row)), flush=True)
            if device.type == "cuda":
                torch.cuda.empty_cache()
    if options.out is not None:
        write(options.out, known, rows)
    off = [row["network"] for row in rows if not is_good(row)]
    if off:
        raise SystemExit(f"{len(off)} of {len(rows)} are off: {', '.join(off)}")


if __name__ == "__main__":
    main()
