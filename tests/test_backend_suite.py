"""A sample of ONNX's backend suite; ``benchmarks/backend_suite.py`` takes all 2,024 cases."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


def load_benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "backend_suite", ROOT / "benchmarks" / "backend_suite.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["backend_suite"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_every_seventh_case() -> None:
    outcomes = load_benchmark().sweep(every=7)
    assert len(outcomes) == 290
    assert [o for o in outcomes if o.untyped] == []
    assert [o for o in outcomes if o.load] == []
    assert [o for o in outcomes if o.equal] == []
    assert [o for o in outcomes if o.pipeline] == []
    passed = [o for o in outcomes if not o.runs and not o.too_old]
    assert len(passed) >= 186
