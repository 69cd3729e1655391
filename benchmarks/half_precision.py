"""Half precision on the trained networks: graphopt beside onnxruntime's own converter.

For each network this compiles for a GPU, converts to the type on the calibration split of the
assets, and converts the original with ``onnxruntime.transformers.float16`` (inputs and outputs
stay float32). It evaluates the original and both results, every node rounded to the type, with
the assets' ``evaluate.py``, and prints the metric, the decibels of the worst output on samples that
no search saw, the bytes of the weights, the planned peak, and the number of ``Cast`` nodes. With
``--builders`` also the peaks of models of ``models/``.

    python benchmarks/half_precision.py [--only NAME ...] [--type fp16] [--target gpu] [--json FILE]
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.int8_splits import SPLITS, assets  # noqa: E402
from benchmarks.int8_trained import evaluator, metric  # noqa: E402
from benchmarks.sessions import session  # noqa: E402

# Samples that the search sees; the next ones judge the result.
SEEN, JUDGED = 8, 8
# Sizes to plan at, where the file states no upper bound.
SIZES = {"espcn_x3": {"bindings": {"batch": 1, "height": 80, "width": 80}}}
NETWORKS = (
    "mnist_cntk", "resnet8_cifar10_nhwc", "resnet20_cifar10", "dscnn_kws",
    "squeezenet1_1_imagenet", "lprnet_plate", "ultraface_rfb320", "yolox_nano_416", "espcn_x3",
    "sinet_portrait", "deeplabv3_mnv2_portrait",
)  # fmt: skip
BUILDERS = ("mobilenet_v2", "bert", "vit_b_16", "resnet18", "llama_prefill", "convnext_tiny")


def sqnr(expected: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> float:
    """Return the decibels of the worst float output."""
    from graphopt.numerics.sqnr import sqnr_db, worst

    return worst(sqnr_db(expected, found))


def outputs(path: Path, feeds: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """Run a file on every feed, one at a time, without onnxruntime's optimizations."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    one = ort.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in one.get_outputs()]
    return [dict(zip(names, one.run(None, feed), strict=True)) for feed in feeds]


def emulated_file(path: Path, type_: str, out: Path) -> None:
    """Write what ``path`` computes with every node rounded to ``type_``.

    onnxruntime runs float16 on the processor in float32, without rounding between nodes.
    """
    from graphopt.backends.emit_onnx import emit_onnx
    from graphopt.frontends.onnx_loader import load_onnx
    from graphopt.ir.half_facts import HALF_TYPES
    from graphopt.ir.shapes import infer_shapes
    from graphopt.numerics.half import NAMES
    from graphopt.numerics.half_emulation import emulated

    program = load_onnx(path)
    infer_shapes(program)
    out.parent.mkdir(exist_ok=True)
    emit_onnx(emulated(program, HALF_TYPES[NAMES[type_]]), out)


def casts_of(path: Path) -> int:
    """Return the number of ``Cast`` nodes of the main graph."""
    import onnx

    nodes = onnx.load(path, load_external_data=False).graph.node
    return sum(node.op_type == "Cast" for node in nodes)


def converted(
    model: Any,
    type_: str,
    target_name: str,
    feeds: Any,
    out: Path,
    inputs: Any = None,
    **options: Any,
) -> dict[str, Any]:
    """Compile and convert one model with graphopt; write it and return the figures."""
    import graphopt
    from graphopt.backends.emit_onnx import emit_onnx
    from graphopt.compiler import plannable
    from graphopt.memory.planning import make_plan
    from graphopt.numerics.half import convert_program
    from graphopt.targets.loader import resolve_target

    started = time.perf_counter()
    bindings = options.get("bindings")
    result = graphopt.compile(model, inputs, target=target_name, verify=False, **options)
    target, program = resolve_target(target_name), result.program
    float_casts = sum(node.op_type == "Cast" for node in program.graph)
    report = convert_program(program, target, type_, feeds, bindings=bindings)
    planned, bounds = plannable(program, bindings)
    plan = make_plan(planned, target, bindings, upper_bounds=bounds, effort="exact")
    emit_onnx(program, out, plan=plan)
    return {
        "seconds": time.perf_counter() - started,
        "sqnr": report.worst_db,
        "half": report.nodes,
        "kept": len(report.kept),
        "reasons": sorted({reason for reason, _ in report.kept.values()}),
        "casts": sum(node.op_type == "Cast" for node in program.graph) - float_casts,
        "weights": report.weight_bytes,
        "arena": (result.plan.arena_bytes, plan.arena_bytes),
        "not_planned": len(plan.not_planned),
        "tried": len(report.tried),
    }


def ort_converted(path: Path, out: Path) -> None:
    """Convert with onnxruntime's converter at its defaults."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=True), out)


def network(name: str, options: argparse.Namespace, out: Path, module: Any) -> dict[str, Any]:
    """Convert and measure one trained network."""
    path = assets() / "models" / f"{name}.onnx"
    feeds = list(SPLITS[name]())
    seen, judged = feeds[:SEEN], feeds[SEEN : SEEN + JUDGED] or feeds[:SEEN]
    files = {"fp32": path, "ours": out / "ours" / path.name, "ort": out / "ort" / path.name}
    row: dict[str, Any] = {"network": name}
    row["ours"] = converted(
        path, options.type, options.target, seen, files["ours"], **SIZES.get(name, {})
    )
    wanted = outputs(path, judged)
    row["metric"] = {"fp32": metric(module, path.parent, name)}
    row["sqnr"], row["casts"], row["bytes"] = {}, {}, {}
    for kind in ("ours", "ort"):
        try:
            if kind == "ort":
                ort_converted(path, files[kind])
            if options.type == "fp16":
                session(files[kind])
            rounded = out / f"{kind}-emulated" / path.name
            emulated_file(files[kind], options.type, rounded)
            row["sqnr"][kind] = sqnr(wanted, outputs(rounded, judged))
            row["metric"][kind] = metric(module, rounded.parent, name)
        except Exception as error:  # the row says what could not be done
            row[f"{kind}_failed"] = f"{type(error).__name__}: {error}"[:160]
        if files[kind].exists():
            row["casts"][kind] = casts_of(files[kind])
            row["bytes"][kind] = files[kind].stat().st_size
    return row


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    ours = row["ours"]
    cells = [f"{row['network']:<25}{row['metric']['fp32'][0][:12]:<13}"]
    cells.append(f"{row['metric']['fp32'][1]:>8.4f}")
    for kind in ("ort", "ours"):
        if kind not in row["metric"]:
            cells.append(f"{'failed':>24}")
            continue
        cells.append(f"{row['metric'][kind][1]:>10.4f}{row['sqnr'][kind]:>8.1f}")
        cells.append(f"{row['casts'][kind]:>6}")
    cells.append(f"{ours['half']:>6}{ours['kept']:>6}")
    cells.append("".join(f"{size:>10}" for size in (*ours["weights"], *ours["arena"])))
    cells.append(f"{ours['arena'][1] / ours['arena'][0]:>6.2f}{ours['tried']:>4}")
    return "".join(cells) + f"{ours['seconds']:>7.1f}"


def builder(name: str, options: argparse.Namespace, out: Path) -> str:
    """Convert one model of ``models/`` and return its row."""
    from models import SMALL, build

    sample = build(name, **SMALL[name])
    inputs = sample.example_inputs
    row = converted(
        sample.module,
        options.type,
        options.target,
        None,
        out / f"{name}.onnx",
        inputs,
        dynamic_shapes=sample.dynamic_shapes,
    )
    sizes = "".join(f"{size:>10}" for size in (*row["weights"], *row["arena"]))
    return (
        f"{name:<25}{row['sqnr']:>8.1f}{row['casts']:>6}{row['half']:>6}{row['kept']:>6}{sizes}"
        f"{row['arena'][1] / row['arena'][0]:>6.2f}{row['not_planned']:>4}"
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--type", default="fp16")
    parser.add_argument("--target", default="gpu")
    parser.add_argument("--builders", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    scratch = tempfile.TemporaryDirectory()
    out = options.out or Path(scratch.name)
    for kind in ("ours", "ort"):
        (out / kind).mkdir(parents=True, exist_ok=True)
    module = evaluator()
    rows = []
    print(
        f"{'network':<25}{'metric':<13}{'fp32':>8}{'ORT':>10}{'dB':>8}{'casts':>6}"
        f"{'ours':>10}{'dB':>8}{'casts':>6}{'half':>6}{'kept':>6}{'weights':>10}{'after':>10}"
        f"{'arena':>10}{'after':>10}{'ratio':>6}{'try':>4}{'s':>7}"
    )
    for name in NETWORKS:
        if options.only and name not in options.only:
            continue
        rows.append(network(name, options, out, module))
        print(line(rows[-1]), flush=True)
        for kind in ("ours", "ort"):
            if f"{kind}_failed" in rows[-1]:
                print(f"    {kind}: {rows[-1][f'{kind}_failed']}")
    if options.builders:
        for name in BUILDERS:
            print(builder(name, options, out), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
