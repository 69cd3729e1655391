"""Int8 on the trained networks: graphopt beside onnxruntime's quantizer and NNCF, same samples.

For each network: quantize with every tool on the same calibration split (``int8_splits.py``; no
sample that is evaluated), then the metric of the assets' ``evaluate.py`` before and after, bytes
of the file, integer kernels, latency (one thread, median of the ratios of interleaved runs), and
what onnxruntime takes for one run in a fresh process (highest resident memory during the run over
what was resident before it). graphopt runs with default settings.

    python benchmarks/int8_trained.py [--only NAME ...] [--target cpu] [--nncf PYTHON] [--json FILE]

``--nncf`` names the interpreter of an environment with ``nncf``, ``onnx`` and ``onnxruntime``.
"""

import argparse
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, os.fspath(ROOT))
from benchmarks.int8_peers import Feed, nncf_quantize, onnxruntime_quantize  # noqa: E402
from benchmarks.int8_splits import SPLITS, assets  # noqa: E402
from benchmarks.runtime_peak import measure  # noqa: E402
from benchmarks.sessions import integer_kernels, session, time_ratios  # noqa: E402

RUNS = 15
LEAST_RUN_BYTES = 1 << 20
# Network -> metric, whether higher is better, and whether the loss is counted in points or as a
# part of the metric. The first metric of the others is an accuracy in points.
RELATIVE: dict[str, tuple[str, bool]] = {
    "lprnet_plate": ("exact_match", True),
    "ultraface_rfb320": ("recall", True),
    "yolox_nano_416": ("AP50", True),
    "espcn_x3": ("luma_PSNR_dB", True),
    "sinet_portrait": ("IoU_vs_reference_mask", True),
    "deeplabv3_mnv2_portrait": ("IoU_vs_reference_mask", True),
    "dnsmos_sig_bak_ovr": ("OVRL_noisy", True),
    "dtln_1": ("gain_dB", True),
    "nnsplit_en": ("sentence_boundary_F1", True),
    "stories260k_prefill": ("perplexity_per_token", False),
    "stories260k_decode": ("perplexity_per_token", False),
}
# Sizes that a plan is made at, where the file leaves them open.
BINDINGS = {
    "ppocr_det_v1_1": {"image_2": 480, "image_3": 640},
    "espcn_x3": {"height": 80, "width": 80},
    "nnsplit_en": {"length": 410},
    "stories260k_prefill": {"seq": 160},
    "stories260k_decode": {"past": 160},
}
# Evaluated together: the second needs the first.
TOGETHER = {"dtln_1": ("dtln_1", "dtln_2")}


def evaluator() -> ModuleType:
    """Return the assets' ``evaluate.py`` as a module."""
    spec = importlib.util.spec_from_file_location("evaluate", assets() / "models" / "evaluate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["evaluate"] = module
    spec.loader.exec_module(module)
    return module


def metric(module: ModuleType, folder: Path, name: str) -> tuple[str, float]:
    """Return the metric of the network in ``folder``."""
    module.ARGS = argparse.Namespace(  # type: ignore[attr-defined]
        models=os.fspath(folder), data=os.fspath(assets() / "data"), threads=2
    )
    found: dict[str, float] = module.MODELS[name][1]()
    if name == "ppocr_det_v1_1":
        return "lines wrong", 100 * found["line_count_error"] / found["text_lines_expected"]
    kind = RELATIVE[name][0] if name in RELATIVE else "accuracy"
    if kind not in found:
        kind = next(key for key, value in found.items() if isinstance(value, float))
    return kind, float(found[kind])


def lost(name: str, before: float, after: float) -> float:
    """Return the loss in per cent: points of an accuracy, else a part of the metric."""
    if name == "ppocr_det_v1_1":
        return after - before
    if name not in RELATIVE:
        return 100 * (before - after)
    higher = RELATIVE[name][1]
    return 100 * ((before - after) if higher else (after - before)) / before


def run_bytes(path: Path, feed: Feed) -> int:
    """Return what one run takes over what is resident before it, in a fresh process."""
    return min(measure(path, feed)["run"] for _ in range(2))


def attempt(row: dict[str, Any], kind: str, file: Path, quantize: Callable[[], Any]) -> bool:
    """Let a tool write ``file``; on failure the row says what went wrong."""
    file.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    try:
        quantize()
        session(file)
    except Exception as error:  # the row says what the tool could not do
        row[kind] = {"failed": f"{type(error).__name__}: {error}"[:200]}
        return False
    row[kind] = {"seconds": time.perf_counter() - started, "bytes": file.stat().st_size}
    return True


def ours(row: dict[str, Any], path: Path, out: Path, target: str, feeds: list[Feed]) -> None:
    """Quantize with graphopt, default settings."""
    import graphopt

    result = graphopt.compile(
        path,
        target=target,
        precision="int8",
        calibration_data=feeds,
        bindings=BINDINGS.get(path.stem),
    )
    result.save(out)
    found = result.quantization
    assert found is not None
    row["sqnr"], row["method"], row["returned"] = found.worst_db, found.method, len(found.returned)
    row["arena"] = (result.baseline.arena_bytes, result.plan.arena_bytes)
    row["weights"] = tuple(
        sum(b.bytes for b in plan.buffers if b.kind == "weight")
        for plan in (result.baseline, result.plan)
    )


def quantize(name: str, out: Path, target: str, nncf: Path | None) -> dict[str, Any]:
    """Quantize one network with every tool; return the row without metrics."""
    path = assets() / "models" / f"{name}.onnx"
    feeds = list(SPLITS[name]())
    row: dict[str, Any] = {"network": name, "samples": len(feeds), "fp32": {}}
    row["fp32"]["bytes"] = path.stat().st_size
    files = {kind: out / kind / path.name for kind in ("fp32", "ort", "nncf", "ours")}
    files["fp32"].parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, files["fp32"])
    tools: dict[str, Callable[[], Any]] = {
        "ort": lambda: onnxruntime_quantize(path, files["ort"], feeds),
        "ours": lambda: ours(row, path, files["ours"], target, feeds),
    }
    if nncf is not None:
        tools["nncf"] = lambda: nncf_quantize(nncf, path, files["nncf"], feeds)
    done = [kind for kind, tool in tools.items() if attempt(row, kind, files[kind], tool)]
    try:
        others = [files[kind] for kind in done]
        found = time_ratios(path, others, feeds[-1], runs=RUNS, clock=time.perf_counter)
    except Exception as error:  # a file that loads may still not run
        row["latency_failed"] = str(error)[:200]
        found = []
    for kind, ratio in zip(done, found, strict=False):
        row[kind]["time"] = ratio
        row[kind]["integer"] = integer_kernels(files[kind], out)
    for kind in ("fp32", *done):
        row[kind]["run"] = run_bytes(files[kind], feeds[-1])
    return row


def judge(row: dict[str, Any], out: Path, module: ModuleType) -> None:
    """Add the metric of each tool to ``row``."""
    name = row["network"]
    for kind in ("fp32", "ort", "nncf", "ours"):
        files = [out / kind / f"{each}.onnx" for each in TOGETHER.get(name, (name,))]
        if kind in row and all(file.exists() for file in files):
            try:
                row["metric"], row[kind]["value"] = metric(module, out / kind, name)
            except Exception as error:  # the row says what does not run
                row[kind]["failed"] = f"evaluate: {error}"[:200]


def cell(row: dict[str, Any], kind: str) -> str:
    """Return loss, file, time, run memory and integer kernels of one tool."""
    found = row.get(kind, {})
    if "bytes" not in found or "failed" in found:
        return f"{'failed' if found else '-':>44}"
    value = found.get("value")
    before = row["fp32"]["run"]
    # Pages are 4 KiB, and what is smaller than a few hundred of them comes out of kept blocks.
    run = f"{found.get('run', 0) / before:.2f}" if before >= LEAST_RUN_BYTES else "small"
    loss = "-" if value is None else f"{lost(row['network'], row['fp32']['value'], value):.2f}"
    return (
        f"{loss:>9}{found['bytes'] / row['fp32']['bytes']:>8.2f}{found.get('time', 0):>8.2f}"
        f"{run:>8}{found.get('integer', ''):>11}"
    )


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    before, after = row.get("arena", (0, 0))
    held_before, held_after = row.get("weights", (0, 0))
    return (
        f"{row['network']:<24}{row.get('metric', '-')[:12]:<13}{row['fp32'].get('value', 0):>8.4f}"
        + "".join(cell(row, kind) for kind in ("ort", "nncf", "ours"))
        + f"{row.get('sqnr', 0):>7.1f} {row.get('method', ''):<11}{row.get('returned', 0):>4}"
        f"{after / before if before else 1:>7.2f}"
        f"{held_after / held_before if held_before else 1:>7.2f}"
        f"{row.get('ours', {}).get('seconds', 0):>7.1f}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", default=[], choices=[*SPLITS, []])
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--nncf", type=Path, help="interpreter of an environment with NNCF")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    scratch = tempfile.TemporaryDirectory()
    out = options.out or Path(scratch.name)
    module = evaluator()
    rows = []
    columns = f"{'lost %':>9}{'file':>8}{'time':>8}{'run':>8}{'integer':>11}"
    print(f"{'':<45}{'onnxruntime':>44}{'NNCF':>44}{'graphopt':>44}")
    print(f"{'network':<24}{'metric':<13}{'fp32':>8}{columns * 3}{'dB':>7} {'ranges':<11}"
          f"{'back':>4}{'arena':>7}{'weight':>7}{'s':>7}")  # fmt: skip
    for name in SPLITS:
        if options.only and name not in options.only:
            continue
        rows.append(quantize(name, out, options.target, options.nncf))
        if name not in TOGETHER:
            judged = next((r for r in rows if name in TOGETHER.get(r["network"], ())), rows[-1])
            judge(judged, out, module)
            if judged is not rows[-1]:
                print(line(judged), flush=True)
            print(line(rows[-1]), flush=True)
        for kind in ("ort", "nncf", "ours"):
            if "failed" in rows[-1].get(kind, {}):
                print(f"    {kind}: {rows[-1][kind]['failed']}")
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
