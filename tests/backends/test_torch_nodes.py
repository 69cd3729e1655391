"""A sample of ONNX's backend suite through the lowering; the benchmark takes all 2,024 cases."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.torch

ROOT = Path(__file__).resolve().parent.parent.parent


def load_benchmark() -> ModuleType:
    name = "benchmark_torch_lowering"
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / "torch_lowering.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_every_tenth_case() -> None:
    outcomes = load_benchmark().sweep(every=10)
    assert len(outcomes) == 203
    assert [o for o in outcomes if o.kind == "untyped error"] == []
    assert len([o for o in outcomes if not o.kind]) >= 155


@pytest.mark.slow
def test_all_cases() -> None:
    outcomes = load_benchmark().sweep()
    assert [o for o in outcomes if o.kind == "untyped error"] == []
    assert len([o for o in outcomes if not o.kind]) >= 1600


def test_a_wrong_output_is_seen() -> None:
    benchmark = load_benchmark()
    case = next(c for c in benchmark.suite().cases() if c.name == "test_add")

    def off_by_one(model: object, samples: list[list[object]]) -> list[list[object]]:
        found = benchmark.with_graphopt(model, samples)
        return [[outputs[0] + 1] for outputs in found]

    assert benchmark.run(case, benchmark.with_graphopt).kind == ""
    assert benchmark.run(case, off_by_one).kind == "wrong output"
