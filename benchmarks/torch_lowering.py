"""ONNX's own backend suite through the lowering to torch, in this process.

    python benchmarks/torch_lowering.py [--every N] [--list] [--onnx2torch]

A case counts as passed when the lowered module gives the outputs of the suite within its tolerance.
The others are counted by reason: operators without torch form, data types torch does not have,
wrong outputs. With ``--onnx2torch`` the converter of that name, when it is installed, takes the
same cases.
"""

import argparse
import importlib
import importlib.util
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

Runner = Callable[[onnx.ModelProto, list[list[Any]]], list[list[Any]]]


def suite() -> ModuleType:
    """Return the module that reads the suite; it lies beside this file."""
    name = "backend_suite"
    if name not in sys.modules:
        path = Path(__file__).with_name("backend_suite.py")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@dataclass
class Outcome:
    """What became of a case: "" is success; ``kind`` groups the reasons."""

    name: str
    kind: str = ""
    reason: str = ""


def _tensor(value: Any) -> Any:
    from graphopt.backends.torch_lowering import torch_tensor
    from graphopt.errors import UnsupportedError

    plain = suite()._plain(value)
    if plain is None:
        return None
    if isinstance(plain, list):
        return [_tensor(item) for item in plain]
    array = np.asarray(plain)
    if array.dtype.kind in "OUS":
        raise UnsupportedError("torch-dtype-missing", "torch has no strings")
    return torch_tensor(ir.tensor(array), "input").clone()


def _array(value: Any) -> Any:
    from graphopt.backends.torch_trace import array_of

    if value is None:
        return None
    return [_array(v) for v in value] if isinstance(value, (list, tuple)) else array_of(value)


def with_graphopt(model: onnx.ModelProto, samples: list[list[Any]]) -> list[list[Any]]:
    """Run a model through the lowering of graphopt."""
    import torch

    from graphopt.backends.torch_lowering import NamingInterpreter, lower_to_torch
    from graphopt.frontends.onnx_loader import load_onnx

    module = lower_to_torch(load_onnx(model))
    with torch.no_grad():
        return [
            [_array(v) for v in NamingInterpreter(module).run(*map(_tensor, inputs))]
            for inputs in samples
        ]


def with_onnx2torch(model: onnx.ModelProto, samples: list[list[Any]]) -> list[list[Any]]:
    """Run a model through onnx2torch."""
    import torch

    onnx2torch: Any = importlib.import_module("onnx2torch")

    module = onnx2torch.convert(model)
    results = []
    with torch.no_grad():
        for inputs in samples:
            found = module(*map(_tensor, inputs))
            several = isinstance(found, (list, tuple)) and len(model.graph.output) > 1
            results.append([_array(v) for v in (found if several else [found])])
    return results


def run(case: Any, runner: Runner) -> Outcome:
    """Take one case through ``runner``."""
    from graphopt.errors import GraphoptError

    try:
        results = runner(case.model, [inputs for inputs, _ in case.data])
        for found, (_, expected) in zip(results, case.data, strict=True):
            wrong = suite().close(case, found, [suite()._plain(value) for value in expected])
            if wrong:
                return Outcome(case.name, "wrong output", wrong)
    except GraphoptError as error:
        operator = error.details.get("operator") or error.message
        return Outcome(case.name, error.code, str(operator).partition("\n")[0])
    except Exception as error:
        text = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        return Outcome(case.name, "untyped error", text)
    return Outcome(case.name)


def sweep(every: int = 1, runner: Runner = with_graphopt) -> list[Outcome]:
    """Take every ``every``-th case through ``runner``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [run(case, runner) for i, case in enumerate(suite().cases()) if i % every == 0]


def report(title: str, outcomes: list[Outcome], *, names: bool) -> None:
    """Print the counts, and the cases that did not pass with their reasons."""
    failed = [outcome for outcome in outcomes if outcome.kind]
    print(f"{title}: {len(outcomes) - len(failed)} of {len(outcomes)} cases pass")
    for kind, count in Counter(o.kind for o in failed).most_common():
        print(f"{count:>6} {kind}")
        reasons = Counter(o.reason for o in failed if o.kind == kind)
        for reason, number in reasons.most_common(None if names else 12):
            print(f"       {number:>5} {reason[:120]}")
    if names:
        for outcome in failed:
            print(f"  {outcome.name}: {outcome.kind}: {outcome.reason[:160]}")


def main() -> None:
    """Print the counts; exit 1 when a case ends in an untyped error."""
    parser = argparse.ArgumentParser(description="ONNX's backend suite through the torch lowering")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="list every case that fails")
    parser.add_argument("--onnx2torch", action="store_true", help="the same cases with onnx2torch")
    options = parser.parse_args()
    outcomes = sweep(options.every)
    report("graphopt", outcomes, names=options.list)
    if options.onnx2torch:
        if importlib.util.find_spec("onnx2torch") is None:
            print("onnx2torch is not installed")
        else:
            report("onnx2torch", sweep(options.every, with_onnx2torch), names=False)
    if any(outcome.kind == "untyped error" for outcome in outcomes):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
