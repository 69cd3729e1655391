"""Int8 on two untrained networks of ``models/``: a MobileNetV2 and an encoder of six layers.

Every tool quantizes the same file on the same samples: graphopt, onnxruntime's quantizer with each
of its calibration methods, onnxsim (MSE ranges, and everything quantized), and NNCF where
``--nncf`` names the interpreter of an environment that has it. Printed for each: decibels against
float, processor time of a run (one thread, median of the ratios of interleaved runs), file, integer
kernels, the arena of graphopt's plan for the file, and what a run and a load take in onnxruntime in
a fresh process (``runtime_peak.py``); whether our file passes the checker, holds no dead weight and
loads at every optimization level.

    python benchmarks/int8_built.py [--only NAME ...] [--target cpu-vnni] [--nncf PYTHON]
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, os.fspath(ROOT))
from benchmarks.int8_peers import (  # noqa: E402
    Feed,
    nncf_quantize,
    onnxruntime_quantize,
    onnxsim_quantize,
)
from benchmarks.runtime_peak import measure  # noqa: E402
from benchmarks.sessions import integer_kernels, session, time_ratios  # noqa: E402

RUNS = 60

LEVELS = ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL")
ENCODER = {"layers": 6, "hidden": 256, "heads": 4, "intermediate": 1024, "vocabulary": 8192}
# Network -> decibels that are asked for; None for graphopt's own goal.
BUILT: dict[str, float | None] = {"mobilenet_v2": None, "bert": 30.0}


def built(name: str, path: Path) -> list[Feed]:
    """Write a network of ``models/`` and return 16 samples of one image or of 128 tokens."""
    import torch

    from models import build

    sample = build(name, **({**ENCODER, "sequence": 128} if name == "bert" else {}))
    torch.onnx.export(
        sample.module,
        sample.example_inputs,
        os.fspath(path),
        dynamo=True,
        verbose=False,
        external_data=False,
        dynamic_shapes=sample.dynamic_shapes,
        input_names=list(sample.input_names),
        output_names=list(sample.output_names),
    )
    rng = np.random.default_rng(0)
    if name != "bert":
        images = rng.standard_normal((16, 1, 3, 224, 224), np.float32)
        return [{"images": image} for image in images]
    tokens = rng.integers(0, ENCODER["vocabulary"], (16, 1, 128))
    ones = np.ones((1, 128), np.int64)
    return [{"input_ids": ids, "attention_mask": ones} for ids in tokens]


def eligible(path: Path) -> int:
    """Return the number of Conv, Gemm and MatMul with constant weights."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    constant = {tensor.name for tensor in graph.initializer}
    return sum(
        node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in constant
        for node in graph.node
    )


def decibels(base: Path, other: Path, feeds: list[Feed]) -> float:
    """Return the worst output of ``other`` against ``base``."""
    from graphopt.numerics.sqnr import sqnr_db, worst

    results = []
    for path in (base, other):
        one = session(path)
        names = [output.name for output in one.get_outputs()]
        results.append([dict(zip(names, one.run(None, feed), strict=True)) for feed in feeds])
    return worst(sqnr_db(results[0], results[1]))


def defects(path: Path) -> list[str]:
    """Return what is wrong with a file: the checker, dead weights, levels that do not load."""
    import onnx

    found = []
    try:
        onnx.checker.check_model(os.fspath(path), full_check=True)
    except onnx.checker.ValidationError as error:
        found.append(f"checker: {error}"[:100])
    graph = onnx.load(path).graph
    read = {value for node in graph.node for value in node.input}
    read |= {value.name for value in graph.output}
    found += [f"dead: {t.name}" for t in graph.initializer if t.name not in read]
    for level in LEVELS:
        try:
            session(path, level=level)
        except Exception as error:  # the row says which level refuses the file
            found.append(f"{level}: {error}"[:100])
    return found


def memory(path: Path, feed: Feed) -> str:
    """Return the arena of graphopt's plan for ``path`` and what it takes in onnxruntime, in kB."""
    import graphopt

    sizes = {"batch": 1, "sequence": 128} if "input_ids" in feed else {"batch": 1}
    arena = graphopt.plan(path, bindings=sizes).arena_bytes
    found = measure(path, feed)
    figures = [f"{bytes_ / 1000:,.0f}" for bytes_ in (arena, found["run"], found["all"])]
    return f"arena {figures[0]} kB, run {figures[1]} kB, load and run {figures[2]} kB"


def _ort(path: Path, feeds: list[Feed], method: str, file: Path) -> float:
    return onnxruntime_quantize(path, file, feeds, method)


def peers(path: Path, out: Path, feeds: list[Feed], nncf: Path | None) -> dict[str, Path]:
    """Let every peer quantize ``path``; return the files that onnxruntime loads."""
    tools: dict[str, Callable[[Path], float]] = {
        f"ort {method}": partial(_ort, path, feeds, method)
        for method in ("MinMax", "Entropy", "Percentile")
    }
    tools["onnxsim mse"] = lambda file: onnxsim_quantize(path, file, feeds, full_graph=False)
    tools["onnxsim full"] = lambda file: onnxsim_quantize(path, file, feeds, full_graph=True)
    if nncf is not None:
        tools["NNCF"] = lambda file: nncf_quantize(nncf, path, file, feeds)
    files = {}
    for kind, tool in tools.items():
        file = out / f"{path.stem}_{kind.replace(' ', '_')}.onnx"
        try:
            tool(file)
            session(file)
            files[kind] = file
        except Exception as error:  # the row says what the peer could not do
            print(f"    {kind}: {type(error).__name__}: {error}"[:160])
    return files


def row(name: str, out: Path, target: str, nncf: Path | None) -> None:
    """Quantize one network by all and print what came out."""
    import graphopt

    path = out / f"{name}.onnx"
    feeds = built(name, path)
    print(f"{name} for {target}: {path.stat().st_size:,} bytes, {eligible(path)} with weights")
    started = time.perf_counter()
    result = graphopt.compile(
        path,
        target=target,
        precision="int8",
        calibration_data=feeds,
        verify=graphopt.Tolerance(sqnr_db=BUILT[name]),
    )
    ours = out / f"{name}_ours.onnx"
    result.save(ours)
    taken = time.perf_counter() - started
    files = {"graphopt": ours, **peers(path, out, feeds, nncf)}
    others = list(files.values())
    found = time_ratios(path, others, feeds[0], runs=RUNS, clock=time.process_time)
    print(f"    {'float':<15}{memory(path, feeds[0])}", flush=True)
    for (kind, file), ratio in zip(files.items(), found, strict=True):
        print(
            f"    {kind:<15}{decibels(path, file, feeds):6.1f} dB, time {ratio:.2f}, file "
            f"{file.stat().st_size:,}, integer {integer_kernels(file, out)}, "
            f"{memory(file, feeds[0])}",
            flush=True,
        )
    report = result.quantization
    assert report is not None
    left = {} if report.kernels is None else report.kernels.float_nodes
    print(f"    graphopt: {taken:.1f} s, ranges by {report.method}; returned to float for accuracy")
    print(f"        {len(report.returned)}; placed but left float by the runtime: {len(left)}")
    print(f"        defects of the file: {defects(ours) or 'none'}")


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", default=[], choices=[*BUILT, []])
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--nncf", type=Path, help="interpreter of an environment with NNCF")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    scratch = tempfile.TemporaryDirectory()
    out = options.out or Path(scratch.name)
    for name in BUILT:
        if not options.only or name in options.only:
            row(name, out, options.target, options.nncf)


if __name__ == "__main__":
    main()
