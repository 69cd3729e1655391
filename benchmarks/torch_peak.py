"""Peak of ordinary TorchScript files: as predicted when they were saved, and as measured.

    python benchmarks/torch_peak.py [--only NAME ...] [--all]

Each network is saved as ``.ts``. ``predicted`` is what the plan in the archive says for the sizes
of the sample; ``measured`` is the most that torch's allocators hold at one time during one call in
a fresh process that cannot import graphopt, after two calls to warm up, one thread, results
included. ``live`` is the prediction without scratch of operators. ``process`` is how far the
resident memory of that process grows in the same call with everything of 64 KiB and more mapped by
itself, so that what is freed leaves: it also holds what torch does not count, rounded to pages, and
says little for networks of a few pages. Builders have the sizes at which they are published, or
the small ones of ``models.SMALL`` where the name ends in ``:small``. Exit status 1 when a ratio is
off by more than 5 %, or a network has no prediction.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

LIMIT = 0.05
SECONDS = 300
# Decoders and encoders without published sizes, which would be large.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "bert": {"layers": 4, "hidden": 256, "heads": 4, "intermediate": 1024, "vocabulary": 1000},
    "llama_decode": {
        "layers": 4,
        "hidden": 256,
        "heads": 4,
        "kv_heads": 2,
        "intermediate": 688,
        "vocabulary": 1000,
        "max_positions": 256,
    },
    "mlp": {"features": (512, 1024, 1024, 10)},
}
ARGUMENTS["llama_prefill"] = ARGUMENTS["llama_decode"]
NAMES = (
    "deeplabv3_mnv2_portrait",
    "dscnn_kws",
    "lprnet_plate",
    "resnet20_cifar10",
    "silero_vad",
    "squeezenet1_1_imagenet",
    "stories260k_prefill",
    "ultraface_rfb320",
    "yolox_nano_416",
    "bert",
    "efficientnet_b0",
    "llama_decode",
    "lstm_tagger",
    "mlp",
    "mobilenet_v2",
    "resnet18",
    "unet",
)
# The child gets: file, inputs.
CHILD = """
import re, sys, warnings
sys.modules["graphopt"] = None
warnings.simplefilter("ignore")
import numpy as np, torch
torch.set_num_threads(1)
torch.set_grad_enabled(False)
arrays = np.load(sys.argv[2])
inputs = [torch.from_numpy(arrays[str(i)]) for i in range(len(arrays.files))]
module = torch.jit.load(sys.argv[1])
module(*inputs)
module(*inputs)
def resident(field):
    with open("/proc/self/status") as file:
        return int(re.search(field + r":\\s+(\\d+)", file.read())[1]) * 1024
p = torch._C._profiler
options = (False, True, False, False, False, p._ExperimentalConfig())
config = p.ProfilerConfig(p.ProfilerState.CPU, *options)
torch.autograd._enable_profiler_legacy(config)
held = module(*inputs)
threads = torch.autograd._disable_profiler_legacy()
live = most = 0
for event in (e for events in threads for e in events):
    if event.kind() == "memory_alloc":
        live += event.cpu_memory_usage()
        most = max(most, live)
del held, threads
grown = "-"
if sys.platform == "linux":
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = resident("VmRSS")
    held = module(*inputs)
    grown = max(0, resident("VmHWM") - before)
print(most, grown)
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


def from_builder(name: str, target: str = "cpu") -> tuple[Any, dict[str, Any], Any]:
    """Return the result of a builder at the sizes of its sample, a feed, and the sample."""
    import graphopt
    from graphopt.ir.program import dims_of
    from graphopt.numerics.verify import user_feeds
    from models import SMALL, build

    stem, _, kind = name.partition(":")
    sample = build(stem, **(SMALL[stem] if kind == "small" else ARGUMENTS.get(stem, {})))
    options: dict[str, Any] = {
        "dynamic_shapes": sample.dynamic_shapes,
        "target": target,
        "verify": False,
    }
    result = graphopt.compile(sample.module, sample.example_inputs, **options)
    (feed, *_) = user_feeds(result.program, sample.example_inputs)
    sizes = {
        str(dim): size
        for value in result.program.graph.inputs
        for dim, size in zip(dims_of(value) or (), feed[value.name or ""].shape, strict=True)
        if not isinstance(dim, int)
    }
    options["bindings"] = {n: s for n, s in sizes.items() if n in result.program.bounds}
    return graphopt.compile(sample.module, sample.example_inputs, **options), dict(feed), sample


def from_file(path: Path, dims: dict[str, int]) -> tuple[Any, dict[str, Any]]:
    """Return the result of a file, and a sample."""
    import graphopt
    from graphopt.frontends.onnx_loader import load_onnx
    from graphopt.numerics.feeds import make_feed

    result = graphopt.compile(path, bindings=dims, verify=False)
    # The original says what its inputs index; some readers are gone from the result.
    return result, dict(make_feed(load_onnx(path), dims, 0))


def prediction_in(file: Path) -> dict[str, Any]:
    """Return what the plan in an archive predicts."""
    with zipfile.ZipFile(file) as archive:
        (member,) = (n for n in archive.namelist() if n.endswith("/graphopt_plan.json"))
        plan = json.loads(archive.read(member))
    found: dict[str, Any] = plan["predictions"]["torchscript"]
    return found


def measured(file: Path, result: Any, feed: dict[str, Any]) -> tuple[int, str]:
    """Return what a call in a process of its own holds, and by how much that process grows."""
    given = file.with_suffix(".npz")
    names = [v.name or "" for v in result.program.graph.inputs]
    np.savez(given, **{str(i): feed[name] for i, name in enumerate(names)})
    command = [sys.executable, "-I", "-c", CHILD, str(file), str(given)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["died"])[-1])
    most, grown = done.stdout.split()
    return int(most), f"{int(grown):,}" if grown != "-" else grown


def row(name: str, folder: Path, script: ModuleType) -> tuple[list[str], bool]:
    """Return the cells of one network, and whether it is within the limit."""
    from models import REGISTRY

    if name.partition(":")[0] in REGISTRY:
        result, feed, _ = from_builder(name)
    else:
        path = script.assets() / "models" / f"{name}.onnx"
        result, feed = from_file(path, script.dims_for(path))
    (file,) = result.save(folder / f"{name.replace(':', '_')}.ts")
    said = prediction_in(file)
    most, grown = measured(file, result, feed)
    file.unlink()
    if said["reason"]:
        return [f"{most:,}", "none", "", "", grown, said["reason"]], False
    ratio = most / said["peak_bytes"]
    figures = [f"{most:,}", f"{said['peak_bytes']:,}", f"{ratio:.4f}"]
    live = f"{said['liveness_bytes']:,}"
    return [*figures, live, grown, said["op"]], abs(ratio - 1) <= LIMIT


def main() -> None:
    """Print the table; exit 1 when a prediction is off."""
    parser = argparse.ArgumentParser(description="Peak of TorchScript files")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--all", action="store_true", help="every builder, small, and every asset")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    import torch

    from models import REGISTRY

    torch.set_num_threads(1)
    script = networks_script()
    names = options.only or list(NAMES)
    if options.all:
        files = sorted((script.assets() / "models").glob("*.onnx"))
        names = [*(f"{name}:small" for name in REGISTRY), *(path.stem for path in files)]
    heads = ("measured", "predicted", "ratio", "live", "process", "at")
    print(f"{'network':26}" + "".join(f"{head:>14}" for head in heads), flush=True)
    off = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            try:
                cells, good = row(name, Path(folder), script)
            except Exception as problem:
                cells, good = [f"FAILED: {type(problem).__name__}: {str(problem)[:150]}"], False
            off += not good
            print(f"{name:26}" + "".join(f" {text:>13}" for text in cells), flush=True)
    if off:
        raise SystemExit(f"{off} of {len(names)} are not within {LIMIT:.0%}")


if __name__ == "__main__":
    main()
