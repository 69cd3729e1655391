"""A metric of the user's as the goal: who is measured, what is kept, what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import graphopt
from graphopt.cli.entry import run
from graphopt.errors import OptionError, UnsupportedError, VerificationError
from graphopt.isolation import Worker
from graphopt.numerics import quantize
from tests.quantization.test_compile_int8 import network, samples, saved

RNG = np.random.default_rng(1)
DATA = samples()
Run = Callable[[Any], dict[str, np.ndarray]]


def reference(path: Path) -> list[np.ndarray]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [session.run(None, feed)[0] for feed in DATA]


class Closeness:
    """One minus the relative error of the outputs; remembers what it returned."""

    def __init__(self, path: Path) -> None:
        self.wanted = reference(path)
        self.values: list[float] = []

    def __call__(self, run: Run) -> float:
        found = [run(feed)["y"] for feed in DATA]
        pairs = list(zip(self.wanted, found, strict=True))
        error = sum(float(np.square(a - b).sum()) for a, b in pairs)
        power = sum(float(np.square(a).sum()) for a, _ in pairs)
        self.values.append(1 - (error / power) ** 0.5)
        return self.values[-1]


def compiled(path: Path, metric: Any, drop: float, **keywords: Any) -> graphopt.CompileResult:
    tolerance = graphopt.Tolerance(metric=metric, max_drop=drop)
    return graphopt.compile(
        path, target="cpu", **{"precision": "int8", "calibration_data": DATA} | keywords,
        verify=tolerance,
    )  # fmt: skip


def test_the_original_is_measured_first_and_the_result_last(tmp_path: Path) -> None:
    path = saved(network(), tmp_path)
    metric = Closeness(path)
    result = compiled(path, metric, 0.5)
    assert metric.values[0] == pytest.approx(1, abs=1e-6)
    report = result.quantization
    assert report is not None
    assert report.metric is not None
    assert (report.metric.name, report.metric.max_drop) == ("Closeness", 0.5)
    assert report.metric.before == metric.values[0]
    assert report.metric.after == metric.values[-1] < 1
    assert report.returned == ()
    assert result.verification is not None
    plain = result.verification.to_dict()
    assert plain["tolerance"] == {"max_drop": 0.5}
    assert plain["metric"]["after"] == metric.values[-1]
    assert "metric Closeness" in str(result)
    assert json.loads(json.dumps(result.to_dict()))["quantization"]["metric"]["name"] == "Closeness"


def test_nodes_go_back_until_the_metric_is_met(tmp_path: Path) -> None:
    path = saved(network(), tmp_path)
    free = compiled(path, Closeness(path), 1.0).quantization
    assert free is not None
    assert free.metric is not None
    lost = free.metric.before - free.metric.after
    metric = Closeness(path)
    report = compiled(path, metric, lost * 0.7).quantization
    assert report is not None
    assert report.metric is not None
    assert report.metric.accepted
    assert report.metric.after == metric.values[-1] >= report.metric.before - lost * 0.7
    assert 0 < len(report.returned) < 5
    # The metric decides, and is not asked while nodes are ranked.
    ranked = [what for what, _ in report.tried if what.startswith("int8 alone")]
    measured = [what for what, _ in report.tried if ": metric " in what]
    assert len(ranked) >= 4
    # The original, the last candidate once more, and the file that is written.
    assert len(metric.values) == len(measured) + 3


def test_the_model_runs_in_the_child_with_optimizations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = saved(network(), tmp_path), []
    real = Worker.run_model

    def run_model(self: Worker, *arguments: Any, **keywords: Any) -> Any:
        seen.append(keywords["optimize"])
        return real(self, *arguments, **keywords)

    monkeypatch.setattr(Worker, "run_model", run_model)
    calls = []

    def metric(run: Run) -> float:
        before = len(seen)
        # A tuple, a list, a dictionary and an array alone are one sample each.
        x = DATA[0]["x"]
        outputs = [run(feed)["y"] for feed in ({"x": x}, (x,), [x], x)]
        assert all(np.array_equal(outputs[0], other) for other in outputs)
        calls.append(seen[before:])
        return 1.0

    compiled(path, metric, 0.0)
    assert calls == [[True] * 4] * len(calls)
    assert len(calls) >= 4


def test_what_cannot_be_met_says_what_was_reached(tmp_path: Path) -> None:
    path = saved(network(), tmp_path)
    reached = iter([1.0, *[0.25, 0.5] * 99])
    with pytest.raises(VerificationError) as caught:
        compiled(path, lambda run: next(reached), 0.1)
    error = caught.value
    assert error.code == "metric-drop"
    assert "1 for the original; accepted is a drop of 0.1" in error.message
    assert error.details["verification"]["passed"] is False


def test_the_best_is_kept_when_nothing_meets_the_goal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only everything in integers is any good: nothing may go back to float."""
    path, count = saved(network(), tmp_path), []

    def metric(run: Run) -> float:
        count.append(0)
        return {1: 1.0, 2: 0.5}.get(len(count), 0.25)

    monkeypatch.setattr(quantize, "check_metric", lambda comparison: comparison)
    result = compiled(path, metric, 0.1)
    report = result.quantization
    assert report is not None
    assert any(what.startswith("float: ") for what, _ in report.tried)
    assert report.returned == ()
    assert len(report.layers) == 6
    assert result.verification is not None
    assert not result.verification.passed


def matrix(folder: Path) -> Path:
    """Return a model whose only matrix is large enough to be stored in few bits."""
    made = onnx.helper
    graph = made.make_graph(
        [made.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [made.make_tensor_value_info("x", 1, [4, 256])],
        [made.make_tensor_value_info("y", 1, [4, 256])],
        [onnx.numpy_helper.from_array(RNG.standard_normal((256, 256)).astype(np.float32), "w")],
    )
    opsets = [made.make_opsetid("", 17)]
    return saved(made.make_model(graph, opset_imports=opsets, ir_version=8), folder)


@pytest.mark.parametrize("precision", ["int8-weights", "int4-weights"])
def test_weights_are_judged_by_it(precision: str, tmp_path: Path) -> None:
    path, feed = matrix(tmp_path), RNG.standard_normal((4, 256)).astype(np.float32)
    wanted = ort.InferenceSession(str(path)).run(None, {"x": feed})[0]
    values: list[float] = []

    def metric(run: Run) -> float:
        values.append(1 - float(np.abs(run([feed])["y"] - wanted).max()))
        return values[-1]

    result = compiled(path, metric, 5.0, precision=precision, calibration_data=None)
    assert len(values) == 2
    assert result.verification is not None
    assert result.verification.metric is not None
    assert result.verification.metric.after == values[1] < values[0] == 1
    with pytest.raises(VerificationError) as caught:
        compiled(path, metric, 0.0, precision=precision, calibration_data=None)
    assert caught.value.code == "metric-drop"


@pytest.mark.parametrize("precision", ["fp16", "bf16", None])
def test_precisions_without_a_metric_refuse_it(precision: str | None, tmp_path: Path) -> None:
    path = saved(network(), tmp_path)
    with pytest.raises(UnsupportedError) as caught:
        compiled(path, lambda run: 1.0, 0.1, precision=precision, calibration_data=None)
    assert caught.value.code == "metric-precision"


@pytest.mark.parametrize(
    "options",
    [
        {"metric": len},
        {"max_drop": 0.1},
        {"metric": 3, "max_drop": 0.1},
        {"metric": len, "max_drop": "much"},
        {"metric": len, "max_drop": True},
        {"metric": len, "max_drop": -0.1},
        {"metric": len, "max_drop": float("nan")},
        {"metric": len, "max_drop": 0.1, "sqnr_db": 30.0},
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError) as caught:
        graphopt.Tolerance(**options)
    assert caught.value.code == "metric-options"


def raises(run: Run) -> float:
    raise KeyError("label")


@pytest.mark.parametrize(
    ("metric", "code", "text"),
    [
        (raises, "metric-failed", "the metric 'raises' raised KeyError"),
        (lambda run: "good", "metric-value", "returned 'good'"),
        (lambda run: float("nan"), "metric-value", "returned nan"),
        (lambda run: True, "metric-value", "returned True"),
        (lambda run: float(run({"z": 1})["y"]), "samples-mismatch", "unknown ['z']"),
    ],
)
def test_a_metric_that_does_not_work(metric: Any, code: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError) as caught:
        compiled(saved(network(), tmp_path), metric, 0.1)
    assert caught.value.code == code
    assert text in caught.value.message


METRIC = """
import numpy as np
def closeness(run, factor=1.0):
    print("measuring")
    return factor * float(run({"x": np.ones((1, 3, 8, 8), np.float32)})["y"].std())
"""


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(network(), tmp_path)
    folder = tmp_path / "samples"
    folder.mkdir()
    for index, feed in enumerate(DATA):
        np.savez(folder / f"{index}.npz", x=feed["x"])
    (tmp_path / "judge.py").write_text(METRIC)
    spec = f"{tmp_path / 'judge.py'}:closeness(factor=2.0)"
    command = ["compile", str(path), "-o", str(tmp_path / "q.onnx"), "-p", "int8"]
    command += ["--calib", str(folder), "--metric", spec, "--max-drop", "0.9", "--json"]
    assert run([*command, "--save-config", str(tmp_path / "kept.toml")]) == 0
    printed = capsys.readouterr()
    data = json.loads(printed.out)
    assert data["quantization"]["metric"]["name"] == "closeness"
    assert data["verification"]["passed"] is True
    assert f"running the code of '{spec}'" in printed.err
    assert "measuring" in printed.err
    assert "max_drop = 0.9" in (tmp_path / "kept.toml").read_text()
    onnx.checker.check_model(onnx.load(tmp_path / "q.onnx"))
    assert run([*command, "--no-verify"]) == 2
    assert run([*command[:-3], "--json"]) == 2
    assert "max_drop is missing" in capsys.readouterr().err
