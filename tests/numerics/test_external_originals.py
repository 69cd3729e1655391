"""Originals with weights in files of their own: who reads them, and that nobody writes them."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

import graphopt
from graphopt.backends.emit_onnx import emit_for_child
from graphopt.frontends.onnx_loader import load_onnx
from graphopt.isolation import Worker
from graphopt.numerics.candidates import Candidates

RNG = np.random.default_rng(0)
SIDE = 256
TEXT = f"""<ir_version: 10, opset_import: ["": 21]>
g (float[n, {SIDE}] x) => (float[n, {SIDE}] y) {{
    a = MatMul (x, w0)  b = Relu (a)  c = MatMul (b, w1)  d = Relu (c)  e = MatMul (d, w2)
    f = Add (e, bias)  y = Relu (f)
}}"""


@pytest.fixture
def original(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "original"
    folder.mkdir()
    model = onnx.parser.parse_model(TEXT)
    for name in ("w0", "w1", "w2"):
        array = (RNG.standard_normal((SIDE, SIDE)) / 16).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    bias = RNG.standard_normal(SIDE).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(bias, "bias"))
    onnx.save(
        model, folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0
    )
    return [folder / "m.onnx", folder / "m.data"]


def rows(count: int = 6) -> list[dict[str, np.ndarray]]:
    return [{"x": RNG.standard_normal((2, SIDE)).astype(np.float32)} for _ in range(count)]


def watch(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path, tuple[Path, ...]]]:
    """Return a list of (task, model, data files) that grows with every request."""
    seen: list[tuple[str, Path, tuple[Path, ...]]] = []
    real = Worker.call

    def call(self: Worker, task: str, arguments: Any, **rest: Any) -> Any:
        models = arguments["models"] if "models" in arguments else [arguments["model"]]
        seen.extend((task, Path(m), tuple(arguments.get("data_files", ()))) for m in models)
        return real(self, task, arguments, **rest)

    monkeypatch.setattr(Worker, "call", call)
    return seen


@pytest.mark.parametrize(
    ("precision", "target"),
    [
        ("int8", "cpu"),
        ("int8-weights", "cpu"),
        ("int4-weights", "cpu"),
        ("fp16", "nvidia-l4"),
        (None, "cpu"),
    ],
)
def test_every_run_knows_the_data_files(
    original: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str | None,
    target: str,
) -> None:
    """Memory of the child is allowed by the files that it was told; large ones go in pieces."""
    before = [(file.read_bytes(), file.stat().st_ino) for file in original]
    seen = watch(monkeypatch)
    result = graphopt.compile(
        original[0],
        target=target,
        precision=precision,
        calibration_data=rows() if precision == "int8" else None,
        verify=graphopt.Tolerance(sqnr_db=10.0) if precision else True,
    )
    assert result.verification is not None
    assert result.verification.passed
    result.save(tmp_path / "out.onnx")
    of_original = {data for task, path, data in seen if path == original[0] and task == "run"}
    assert of_original == {(original[1],)}
    # What fp16 ships is run as it ships: its weights are few and stand inside.
    inside = {path.name for task, path, data in seen if task != "check" and not data}
    assert inside == ({"half.onnx"} if precision == "fp16" else set())
    assert [(file.read_bytes(), file.stat().st_ino) for file in original] == before


@pytest.mark.parametrize("precision", ["int8", "int4-weights"])
def test_the_same_bytes_again(original: list[Path], tmp_path: Path, precision: str) -> None:
    data, found = rows(), []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        files = graphopt.compile(
            original[0],
            precision=precision,
            calibration_data=data if precision == "int8" else None,
            verify=False,
        ).save(tmp_path / str(number) / "out.onnx", external_data=True)
        found.append([(file.name, file.read_bytes()) for file in files])
    assert found[0] == found[1]


def test_a_model_for_the_child_names_the_file_it_came_from(
    original: list[Path], tmp_path: Path
) -> None:
    program = load_onnx(original[0])
    files = emit_for_child(program, tmp_path / "float.onnx")
    # The bias has 1024 bytes: it stands in the model file.
    assert files == [tmp_path / "float.onnx", original[1]]
    tensors = onnx.load(files[0], load_external_data=False).graph.initializer
    named = {t.name: {e.key: e.value for e in t.external_data} for t in tensors}
    held = {t.name: t for t in onnx.load(original[0], load_external_data=False).graph.initializer}
    for name in ("w0", "w1", "w2"):
        there = {e.key: e.value for e in held[name].external_data}
        assert named[name]["location"] == str(original[1])
        assert named[name]["offset"] == there["offset"]
        assert named[name]["length"] == there["length"] == str(4 * SIDE * SIDE)
    assert not named["bias"]


def test_an_earlier_model_of_the_name_is_replaced_not_changed(
    original: list[Path], tmp_path: Path
) -> None:
    """The child may still have the earlier one mapped."""
    model = onnx.load(original[0])
    program = load_onnx(model)
    first = emit_for_child(program, tmp_path / "candidate.onnx")
    assert [file.name for file in first] == ["candidate.onnx", "candidate.data"]
    with first[1].open("rb") as held:
        emit_for_child(program, tmp_path / "candidate.onnx")
        assert first[1].stat().st_ino != os.fstat(held.fileno()).st_ino
        assert len(held.read()) >= 3 * 4 * SIDE * SIDE


def test_a_candidate_is_measured_once(
    original: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = load_onnx(original[0])
    kept = rows(2)
    seen = watch(monkeypatch)

    with Worker() as worker:
        for folder in ("a", "b"):
            (tmp_path / folder).mkdir()
            candidates = Candidates(program, kept, worker, tmp_path / folder)
            first = candidates.outputs(lambda model: None)
            assert len(seen) == len(kept)
            assert all(
                np.array_equal(a["y"], b["y"])
                for a, b in zip(first, candidates.expected, strict=True)
            )
        other = candidates.outputs(rename_relu)
        assert len(seen) == 2 * len(kept)
        assert not np.array_equal(other[0]["y"], first[0]["y"])
    Candidates.forget(program)
    assert not [key for key in program.model.meta if key.startswith("graphopt.measured")]


def rename_relu(model: Any) -> None:
    """Make another function of the last node."""
    node = model.graph[-1]
    assert node.op_type == "Relu"
    node.op_type = "Abs"
