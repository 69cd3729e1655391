"""TorchScript modules with an arena beside ordinary ones: requests, bytes, time, difference.

    python benchmarks/torch_arena.py [--runs N] [MODEL ...]

For each model one row. ``requests`` counts requests of 4096 bytes or more in a call after warming
up, as torch's allocators see them and, where a C compiler is at hand, as the C library sees them
(what oneDNN and MKL keep for themselves is in these): ``run_into``, ``forward``, the ordinary
module. ``arena`` are the bytes that the loaded module holds beside those that its file states.
``time`` is the median of ``run_into`` and ``forward`` as a part of the ordinary module's, the three
called in turn in one process.
"""

import argparse
import ctypes
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

LIMIT = 4096
COUNTER = "GRAPHOPT_REQUEST_COUNTER"
SOURCE = f"""
#define _GNU_SOURCE
#include <stddef.h>
#include <stdlib.h>
#include <errno.h>
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
static volatile long requests, bytes;
static void note(size_t size) {{
    if (size < {LIMIT}) return;
    __sync_fetch_and_add(&requests, 1);
    __sync_fetch_and_add(&bytes, size);
}}
long counted_requests(void) {{ return requests; }}
long counted_bytes(void) {{ return bytes; }}
void *malloc(size_t n) {{ note(n); return __libc_malloc(n); }}
void *calloc(size_t a, size_t b) {{ note(a * b); return __libc_calloc(a, b); }}
void *realloc(void *p, size_t n) {{ note(n); return __libc_realloc(p, n); }}
void *memalign(size_t a, size_t n) {{ note(n); return __libc_memalign(a, n); }}
void *aligned_alloc(size_t a, size_t n) {{ note(n); return __libc_memalign(a, n); }}
int posix_memalign(void **p, size_t a, size_t n) {{
    note(n); *p = __libc_memalign(a, n); return *p ? 0 : ENOMEM;
}}
"""
LLAMA = {"layers": 4, "hidden": 256, "heads": 4, "kv_heads": 2, "intermediate": 688}
MODELS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "bert": (
        {"layers": 4, "hidden": 256, "heads": 4, "intermediate": 1024, "vocabulary": 1000},
        {"batch": 1, "sequence": 128},
    ),
    "llama_decode": (
        {**LLAMA, "vocabulary": 1000, "max_positions": 256},
        {"batch": 1, "past": 127},
    ),
    "mlp": ({"features": (512, 1024, 1024, 10)}, {"batch": 64}),
    "mobilenet_v2": ({}, {"batch": 1}),
    "resnet18": ({}, {"batch": 1}),
}


def counted(run: Callable[[], object]) -> tuple[int, int] | None:
    """Return how many large requests the C library saw, and their bytes; None without counter."""
    if COUNTER not in os.environ:
        return None
    library = ctypes.CDLL(os.environ[COUNTER])
    for name in ("counted_requests", "counted_bytes"):
        getattr(library, name).restype = ctypes.c_long
    before = library.counted_requests(), library.counted_bytes()
    run()
    return library.counted_requests() - before[0], library.counted_bytes() - before[1]


def medians(calls: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Return the median seconds of functions called in turn."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


def measure(name: str, runs: int, folder: Path) -> None:
    """Print the row of one model."""
    import torch

    import graphopt
    from graphopt.backends.torch_counts import requested_bytes
    from graphopt.backends.torch_trace import tensors_of
    from graphopt.numerics.feeds import make_feed
    from models import build

    arguments, bindings = MODELS[name]
    sample = build(name, **arguments)
    result = graphopt.compile(
        sample.module,
        sample.example_inputs,
        dynamic_shapes=sample.dynamic_shapes,
        bindings=bindings,
        verify=False,
    )
    paths = [folder / f"{name}.{kind}.ts" for kind in ("ordinary", "arena")]
    result.save(paths[0])
    result.save(paths[1], arena=True)
    stated: dict[str, Any] = {"graphopt_arena.json": ""}
    jit: Any = torch.jit  # without annotations
    ordinary = jit.load(str(paths[0]))
    module = jit.load(str(paths[1]), _extra_files=stated)
    report = json.loads(stated["graphopt_arena.json"])
    feed = dict(make_feed(result.program, bindings, 0))
    if "attention_mask" in feed:
        feed["attention_mask"][:] = 1
    inputs = tensors_of(feed, [v.name or "" for v in result.program.graph.inputs])
    expected, found = ordinary(*inputs), module(*inputs)
    outputs = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in found]
    calls: dict[str, Callable[[], object]] = {
        "into": lambda: module.run_into(*inputs, outputs),
        "forward": lambda: module(*inputs),
        "ordinary": lambda: ordinary(*inputs),
    }
    for call in (*calls.values(), *calls.values(), *calls.values()):
        call()
    error = max(
        float((a - b).abs().max() / a.abs().max()) for a, b in zip(expected, found, strict=True)
    )
    requests = "/".join(str(len(requested_bytes(call))) for call in calls.values())
    seen = [counted(call) for call in calls.values()]
    heap = "/".join("-" if s is None else str(s[0]) for s in seen)
    scratch = report["not_enforced"]
    held = sum(t.nbytes for n, t in module.named_buffers() if n.startswith("arenas.arena_"))
    took = medians(calls, runs)
    ratios = f"{took['into'] / took['ordinary']:.3f}/{took['forward'] / took['ordinary']:.3f}"
    print(
        f"{name:13} {requests:>9} {heap:>11} {sum(e['bytes'] for e in scratch):>11,} "
        f"{held:>10,} {report['arena_bytes']:>10,} {report['lower_bound_bytes']:>10,} "
        f"{took['ordinary'] * 1e3:>8.3f} {ratios:>12} {error:>9.1e}",
        flush=True,
    )


def restart_with_counter(folder: Path) -> None:
    """Start this script again below a library that counts requests, where one can be built."""
    compiler = shutil.which("cc")
    if compiler is None:
        return
    library = folder / "counter.so"
    command = [compiler, "-shared", "-fPIC", "-O2", "-x", "c", "-", "-o", str(library)]
    if subprocess.run(command, input=SOURCE, text=True, stderr=subprocess.DEVNULL).returncode:
        return
    environment = {**os.environ, "LD_PRELOAD": str(library), COUNTER: str(library)}
    done = subprocess.run([sys.executable, __file__, *sys.argv[1:]], env=environment)
    raise SystemExit(done.returncode)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="TorchScript with an arena beside the ordinary")
    parser.add_argument("models", nargs="*", choices=[[], *MODELS], default=[])
    parser.add_argument("--runs", type=int, default=51)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        if COUNTER not in os.environ:
            restart_with_counter(Path(folder))
        import torch

        torch.set_grad_enabled(False)
        print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s)")
        print("requests of 4096 bytes or more in a call: run_into/forward/ordinary")
        print(
            f"{'model':13} {'torch':>9} {'C library':>11} {'scratch B':>11} {'arena B':>10} "
            f"{'planned B':>10} {'bound B':>10} {'ord. ms':>8} {'time':>12} {'error':>9}"
        )
        for name in options.models or MODELS:
            measure(name, options.runs, Path(folder))


if __name__ == "__main__":
    main()
