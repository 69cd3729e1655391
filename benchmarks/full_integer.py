"""Int8 for devices that compute nothing but integers, on trained networks.

For each network and target: compile with ``precision="int8"`` on the calibration split
(``int8_splits.py``), then decibels on the kept samples, the metric of the assets' ``evaluate.py``
before and after (samples are converted by the scales that the file states), and the arena of the
plan in floats and in integers. A network that misses 28 dB is compiled again without that goal; one
that does not fit is measured all the same, without the verification.

    python benchmarks/full_integer.py [--only NAME ...] [--target NAME ...] [--json FILE]
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, os.fspath(ROOT))
import graphopt  # noqa: E402
from benchmarks.int8_splits import SPLITS, assets  # noqa: E402
from benchmarks.int8_trained import evaluator, metric  # noqa: E402
from graphopt.errors import DoesNotFitError, GraphoptError, VerificationError  # noqa: E402

# Network -> the name of its open dimension, which the plan is made at 1 of.
NETWORKS = {
    "mnist_cntk": "",
    "resnet8_cifar10_nhwc": "unk__126",
    "resnet20_cifar10": "batch",
    "dscnn_kws": "unk__110",
    "squeezenet1_1_imagenet": "",
}
TARGETS = ("ethos-u55", "stm32h743", "hexagon-v73")
_NO_GOAL = graphopt.Tolerance(sqnr_db=-100.0)


def compiled(name: str, target: str) -> tuple[graphopt.CompileResult, str]:
    """Return the result, and what the goal of 28 dB was missed for, or ""."""
    options: dict[str, Any] = {
        "target": target,
        "precision": "int8",
        "calibration_data": list(SPLITS[name]()),
        "bindings": {NETWORKS[name]: 1} if NETWORKS[name] else None,
    }
    path = assets() / "models" / f"{name}.onnx"
    try:
        return graphopt.compile(path, **options), ""
    except VerificationError as error:
        return graphopt.compile(path, **options, verify=_NO_GOAL), str(error)
    except DoesNotFitError as error:
        return whole(error), error.message.splitlines()[0]


def whole(error: DoesNotFitError) -> graphopt.CompileResult:
    """Return the result that is too large for its target."""
    assert isinstance(error.report, graphopt.CompileResult)
    return error.report


def one_by_one(module: Any) -> None:
    """Let the evaluator feed a network of fixed batch its samples one by one."""
    batched = module.Net.__call__

    def call(self: Any, *arrays: Any) -> list[Any]:
        dims = self.s.get_inputs()[0].shape
        if dims[0] != 1 or len(arrays) != 1 or len(arrays[0]) == 1:
            found: list[Any] = batched(self, *arrays)
            return found
        single = [batched(self, arrays[0][i : i + 1]) for i in range(len(arrays[0]))]
        return [np.concatenate(parts) for parts in zip(*single, strict=True)]

    module.Net.__call__ = call


def measured(name: str, result: graphopt.CompileResult, module: Any) -> tuple[str, float, float]:
    """Return the metric, before and after; the file that is evaluated converts samples itself."""
    from graphopt.backends.emit_onnx import emit_onnx
    from graphopt.quantization.interface import with_float_interface

    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        models.mkdir()
        emit_onnx(with_float_interface(result.program), models / f"{name}.onnx")
        kind, after = metric(module, models, name)
        shutil.copy(assets() / "models" / f"{name}.onnx", models / f"{name}.onnx")
        return kind, metric(module, models, name)[1], after


def row(name: str, target: str, module: Any) -> dict[str, Any]:
    started = time.perf_counter()
    result, missed = compiled(name, target)
    assert result.quantization is not None
    seconds = time.perf_counter() - started
    path = assets() / "models" / f"{name}.onnx"
    bindings = {NETWORKS[name]: 1} if NETWORKS[name] else None
    try:
        floats = graphopt.compile(path, target=target, bindings=bindings, verify=False)
    except DoesNotFitError as error:
        floats = whole(error)
    kind, before, after = measured(name, result, module)
    graph = result.program.graph
    io = [(value.name, str(value.dtype)) for value in (*graph.inputs, *graph.outputs)]
    return {
        "network": name,
        "target": target,
        "worst_db": result.quantization.worst_db,
        "missed": missed,
        "metric": kind,
        "before": before,
        "after": after,
        "arena_float": floats.plan.arena_bytes,
        "arena_int8": result.plan.arena_bytes,
        "float_nodes": len(result.quantization.reasons),
        "interface": io,
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=list(NETWORKS))
    parser.add_argument("--target", nargs="*", default=list(TARGETS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    module, rows = evaluator(), []
    one_by_one(module)
    for name in options.only:
        for target in options.target:
            try:
                one = row(name, target, module)
            except GraphoptError as error:
                print(f"{name:24} {target:12} {error.code}: {error}")
                continue
            rows.append(one)
            ratio = one["arena_int8"] / one["arena_float"]
            print(
                f"{name:24} {target:12} {one['worst_db']:5.1f} dB  {one['metric']} "
                f"{one['before']:.4f} -> {one['after']:.4f}  arena {one['arena_float']:,} -> "
                f"{one['arena_int8']:,} ({ratio:.3f})  {one['seconds']:.0f} s"
            )
            if one["missed"]:
                print(f"    {one['missed']}")
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
