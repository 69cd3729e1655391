"""Weights rounded on samples, through the whole compile: what is collected, kept and emitted."""

import gc
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import graphopt
from graphopt.cli.entry import app
from graphopt.errors import OptionError, VerificationError
from graphopt.frontends.onnx_loader import load_onnx
from graphopt.numerics import hessians
from graphopt.numerics.candidates import run_plain
from graphopt.numerics.hessians import SpooledSamples, WeightRounder, add_rows
from graphopt.passes.infer_shapes import InferShapes
from graphopt.passes.quantize_weights import QuantizeWeights
from graphopt.quantization.block_weights import BlockScheme, dequantize, quantize_matrix
from graphopt.quantization.reconstruction import Reconstruction
from graphopt.quantization.weight_only import choose
from graphopt.temporary import OWNER_FILE

WIDTH, WORDS = 64, 96
NODE = helper.make_node
Sample = dict[str, np.ndarray]


def matrix(seed: int, *shape: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[0])
    found: np.ndarray = values.astype(np.float32)
    return found


def language_model(opset: int = 18) -> onnx.ModelProto:
    """A lookup, two products of one input, a layer back, and a head that shares the table."""
    nodes = [
        NODE("Gather", ["table", "ids"], ["h"], name="embed"),
        NODE("MatMul", ["h", "left"], ["a"], name="left_product"),
        NODE("MatMul", ["h", "right"], ["b"], name="right_product"),
        NODE("Mul", ["a", "b"], ["ab"], name="gate"),
        NODE("MatMul", ["ab", "down"], ["d"], name="down_product"),
        NODE("Reshape", ["d", "flat"], ["rows"], name="flatten"),
        NODE("Gemm", ["rows", "table"], ["y"], name="head", transB=1),
    ]
    weights = {
        "table": matrix(0, WORDS, WIDTH),
        "left": matrix(1, WIDTH, 172),
        "right": matrix(2, WIDTH, 172),
        "down": matrix(3, 172, WIDTH),
        "flat": np.array([-1, WIDTH]),
    }
    # Embeddings of a few causes: what the layers read is correlated, as in trained networks.
    weights["table"] = (
        matrix(4, WORDS, 6) @ matrix(5, 6, WIDTH) * 3 + weights["table"] / 4
    ).astype(np.float32)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", WORDS])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def samples(count: int = 12, seed: int = 0) -> Iterator[Sample]:
    rng = np.random.default_rng(seed)
    for number in range(count):
        yield {"ids": rng.integers(0, WORDS, (1 + number % 3, 8))}


def array_of(model: onnx.ModelProto, name: str) -> np.ndarray:
    found: np.ndarray = next(
        numpy_helper.to_array(t) for t in model.graph.initializer if t.name == name
    )
    return found


def run(model: onnx.ModelProto, feed: Sample) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, feed)
    array: np.ndarray = found
    return array


def rounder(data: Any, **keywords: Any) -> WeightRounder:
    program = load_onnx(language_model())
    InferShapes()(program.model)
    return WeightRounder(program, data, **keywords)


def made_by(one: WeightRounder, asked: QuantizeWeights) -> dict[str, Any]:
    """Round, and return the parts of each weight that products read."""
    one.round(asked)
    made = one.program.model.meta["graphopt.reconstruction"]
    assert isinstance(made, Reconstruction)
    stored = choose(one.program.model, asked.plan).stored
    found = {s.weight.name or "": (s, made.parts_of(s)) for s in stored}
    return {name: (s, parts) for name, (s, parts) in found.items() if parts is not None}


FOUR = QuantizeWeights(bits=4, reconstruct=True)


@pytest.mark.parametrize(("precision", "methods"), [("int4-weights", 3), ("int8-weights", 4)])
def test_every_product_is_reported(precision: str, methods: int, tmp_path: Path) -> None:
    result = graphopt.compile(
        language_model(), precision=precision, calibration_data=samples(), bindings={"n": 2}
    )
    report = result.rounding
    assert report is not None
    assert (report.samples, report.runs) == (12, 1)
    assert {w.weight: w.nodes for w in report.weights} == {
        "left": ("left_product",),
        "right": ("right_product",),
        "down": ("down_product",),
        "table": ("head",),
    }
    for weight in report.weights:
        assert weight.method == "gptq"
        assert len(weight.sqnr_db) == methods
        best = weight.sqnr_db["gptq"]
        assert all(best > db for method, db in weight.sqnr_db.items() if method != "gptq")
    assert result.verification is not None
    assert (result.verification.inputs, result.verification.samples) == ("calibration", 8)
    plain = json.loads(json.dumps(result.to_dict()["rounding"]))
    assert plain["weights"][0]["nodes"] == list(report.weights[0].nodes)
    assert "is rounded by gptq: the product is" in result.explain("down_product")
    assert "is rounded by gptq: the product is" in result.explain("down")
    assert [r.name for r in result.report].count("observe-products") == 1


def test_the_file_computes_with_the_rounded_weights(tmp_path: Path) -> None:
    original = language_model()
    passes = ["infer-shapes"]
    target = graphopt.compile(
        original, passes=passes, precision="int4-weights", calibration_data=samples()
    )
    target.save(tmp_path / "out.onnx")
    emitted = onnx.load(tmp_path / "out.onnx")
    for node in emitted.graph.node:
        for attribute in node.attribute:
            # 32-bit sums, so that nothing but the weights is rounded.
            attribute.i = 1 if attribute.name == "accuracy_level" else attribute.i
    with rounder(samples()) as one:
        made = made_by(one, FOUR)
    assert sorted(made) == ["down", "left", "right", "table"]
    for tensor in original.graph.initializer:
        if tensor.name in made:
            stored, parts = made[tensor.name]
            inner = stored.tensor.shape[0 if stored.by_column else 1]
            wide = dequantize(parts, stored.scheme, inner)
            wide = np.ascontiguousarray(wide.T if stored.by_column else wide)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    feed = next(samples(seed=5))
    found, wanted = run(emitted, feed), run(original, feed)
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()
    data = array_of(emitted, "down_int4")
    assert np.array_equal(data, made["down"][1].data)
    assert np.array_equal(array_of(emitted, "table_scales"), made["table"][1].scales)


def test_samples_that_were_not_seen_gain_too() -> None:
    original = language_model()
    other = list(samples(seed=9))
    errors = {}
    for name, data in (("samples", samples()), ("none", None)):
        result = graphopt.compile(original, precision="int4-weights", calibration_data=data)
        lost = [run_of(result, feed) - run(original, feed) for feed in other]
        errors[name] = sum(float(np.square(difference).sum()) for difference in lost)
    assert errors["samples"] < 0.8 * errors["none"]


def run_of(result: graphopt.CompileResult, feed: Sample) -> np.ndarray:
    found: np.ndarray = np.asarray(result.run(feed)["y"])
    return found


def test_a_lookup_that_shares_the_head_reads_its_integers(tmp_path: Path) -> None:
    result = graphopt.compile(
        language_model(), precision="int4-weights", calibration_data=samples()
    )
    result.save(tmp_path / "out.onnx")
    graph = onnx.load(tmp_path / "out.onnx").graph
    readers = [node.op_type for node in graph.node if "table_int4" in node.input]
    assert sorted(readers) == ["GatherBlockQuantized", "MatMulNBits"]
    plain = quantize_matrix(matrix_of("table"), BlockScheme(4, 32))
    assert not np.array_equal(array_of(onnx.load(tmp_path / "out.onnx"), "table_int4"), plain.data)


def matrix_of(name: str) -> np.ndarray:
    return array_of(language_model(), name)


def test_an_embedding_alone_stays_as_it_is(tmp_path: Path) -> None:
    model = language_model()
    head = next(node for node in model.graph.node if node.name == "head")
    head.input[1] = "out"
    model.graph.initializer.append(numpy_helper.from_array(matrix(7, WORDS, WIDTH), "out"))
    result = graphopt.compile(model, precision="int4-weights", calibration_data=samples())
    assert result.rounding is not None
    assert "table" not in {weight.weight for weight in result.rounding.weights}
    result.save(tmp_path / "out.onnx")
    plain = quantize_matrix(matrix_of("table"), BlockScheme(4, 32))
    found = array_of(onnx.load(tmp_path / "out.onnx"), "table_int4")
    assert np.array_equal(found, plain.data.reshape(WORDS, -1))


def test_the_hessian_is_the_sum_over_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hessians, "_ROWS_ELEMENTS", 5 * 7)
    found = np.zeros((7, 7))
    arrays = [np.random.default_rng(i).standard_normal((2, 3 + i, 7)) for i in range(4)]
    for array in arrays:
        add_rows(found, array.astype(np.float32))
    rows = np.concatenate([a.astype(np.float32).reshape(-1, 7) for a in arrays]).astype(float)
    assert found == pytest.approx(rows.T @ rows, rel=1e-12)


@pytest.mark.parametrize(
    ("hessians_bytes", "runs"),
    [(1 << 30, 1), (8 * (64 * 64 + 172 * 172), 2), (8 * 64 * 64, 3), (1, 3)],
)
def test_groups_of_hessians_change_nothing(hessians_bytes: int, runs: int) -> None:
    with rounder(samples(6)) as whole:
        wanted = made_by(whole, FOUR)
    with rounder(samples(6), hessians_bytes=hessians_bytes) as one:
        found = made_by(one, FOUR)
        assert one.report.runs == runs
    for name, (_, parts) in wanted.items():
        assert np.array_equal(found[name][1].data, parts.data)
        assert np.array_equal(found[name][1].scales, parts.scales)


def test_values_are_observed_in_several_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    with rounder(samples(3)) as whole:
        wanted = made_by(whole, FOUR)
    calls: list[list[str]] = []

    def counted(worker: Any, files: Any, feed: Any, extra: Any = ()) -> Any:
        calls.append(list(extra))
        return run_plain(worker, files, feed, extra)

    monkeypatch.setattr(hessians, "run_plain", counted)
    monkeypatch.setattr(hessians, "OBSERVED_BYTES", 4096)
    with rounder(samples(3)) as one:
        found = made_by(one, FOUR)
    # Of one row of 8, "rows" and "h" take 2048 bytes each and "ab" 5504; of more, each is alone.
    assert calls == [["rows", "h"], ["ab"], *[["rows"], ["h"], ["ab"]] * 2]
    for name, (_, parts) in wanted.items():
        assert np.array_equal(found[name][1].data, parts.data)


def test_no_array_is_held_per_sample() -> None:
    """Neither feeds nor activations add up: the peak is the same for 4 samples and for 40."""

    def peak(count: int) -> int:
        data = ({"ids": np.zeros((64, 8), np.int64) + n % WORDS} for n in range(count))
        gc.collect()
        tracemalloc.start()
        with rounder(data) as one:
            one.round(FOUR)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(2)
    few, many = peak(4), peak(40)
    # A sample alone is 4 KiB, what is observed of it 600 KiB. Peaks of equal runs are not equal.
    assert many < few + 36 * 2048


def test_a_generator_is_read_once_and_files_go_away(tmp_path: Path) -> None:
    program = load_onnx(language_model())
    spooled = SpooledSamples(program, samples(5))
    folder = spooled._folder.path
    first, second = list(spooled), list(spooled)
    assert len(first) == len(spooled) == 5
    for one, other, wanted in zip(first, second, samples(5), strict=True):
        assert np.array_equal(one["ids"], wanted["ids"])
        assert np.array_equal(other["ids"], wanted["ids"])
    spooled.close()
    assert not folder.exists()


def test_finished_weights_live_as_long_as_the_result(tmp_path: Path) -> None:
    with rounder(samples(2)) as one:
        one.round(FOUR)
        made = one.program.model.meta["graphopt.reconstruction"]
        folder = made._folder.path
        assert len([path for path in folder.iterdir() if path.name != OWNER_FILE]) == 4
    assert "graphopt.reconstruction" not in one.program.model.meta
    assert folder.is_dir()
    del made, one
    gc.collect()
    assert not folder.exists()


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        result = graphopt.compile(
            language_model(), precision="int4-weights", calibration_data=samples()
        )
        result.save(tmp_path / f"{name}.onnx")
        found.append((tmp_path / f"{name}.onnx").read_bytes())
    assert found[0] == found[1]


def test_inputs_that_say_nothing_leave_the_method_as_it_was() -> None:
    model = language_model()
    # What the layer back reads is zero whatever the sample is.
    zero = numpy_helper.from_array(np.zeros(172, np.float32), "zero")
    model.graph.initializer.append(zero)
    model.graph.node[4].input[0] = "none"
    model.graph.node.insert(4, NODE("Mul", ["ab", "zero"], ["none"], name="nothing"))
    program = load_onnx(model)
    InferShapes()(program.model)
    with WeightRounder(program, samples(2)) as one:
        one.round(FOUR)
        found = {w.weight: (w.method, w.detail) for w in one.report.weights}
    assert found["down"] == ("mse", "input-zero")
    assert found["left"] == ("gptq", "")


def test_hessians_that_are_too_large_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hessians, "LARGEST_HESSIAN_BYTES", 8 * 100 * 100)
    with rounder(samples(2)) as one:
        made = made_by(one, FOUR)
        found = {w.weight: w.detail for w in one.report.weights}
    assert found == {"left": "", "right": "", "table": "", "down": "hessian-too-large"}
    assert "down" not in made


def test_the_standard_form_is_rounded_too(tmp_path: Path) -> None:
    with rounder(samples(4)) as one:
        asked = QuantizeWeights(bits=8, block=0, symmetric=True, form="standard", reconstruct=True)
        made = made_by(one, asked)
    assert sorted(made) == ["down", "left", "right"]
    for stored, parts in made.values():
        assert parts.scales.shape == (stored.tensor.shape[1], 1)
        assert int(parts.data.min()) >= 1
        assert (parts.zero_points == 128).all()


def test_reconstruction_needs_samples() -> None:
    with pytest.raises(OptionError) as caught:
        graphopt.compile(
            language_model(), passes=["infer-shapes", "quantize-weights{reconstruct=true}"]
        )
    assert caught.value.code == "calibration-missing"


@pytest.mark.parametrize(
    ("data", "code"), [([], "calibration-empty"), ([{"wrong": np.zeros(1)}], "samples-mismatch")]
)
def test_samples_are_checked_before_anything_else(data: Any, code: str) -> None:
    with pytest.raises(OptionError) as caught:
        graphopt.compile(language_model(), precision="int4-weights", calibration_data=data)
    assert caught.value.code == code


def test_what_loses_more_than_accepted_is_refused() -> None:
    with pytest.raises(VerificationError) as caught:
        graphopt.compile(
            language_model(),
            precision="int4-weights",
            calibration_data=samples(),
            verify=graphopt.Tolerance(sqnr_db=90.0),
        )
    assert caught.value.code == "quantization-error"
    assert "90 dB" in str(caught.value)


def test_the_command_line_takes_a_folder(tmp_path: Path) -> None:
    onnx.save(language_model(), tmp_path / "in.onnx")
    folder = tmp_path / "calib"
    folder.mkdir()
    for number, sample in enumerate(samples(3)):
        np.savez(folder / f"{number}.npz", ids=sample["ids"])
    arguments = ["compile", str(tmp_path / "in.onnx"), "-o", str(tmp_path / "out.onnx")]
    arguments += ["-p", "int4-weights", "--calib", str(folder), "--dim", "n=2", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    rounding = json.loads(result.stdout)["rounding"]
    assert rounding["samples"] == 3
    assert {row["method"] for row in rounding["weights"]} == {"gptq"}


def test_a_trained_language_model_loses_less(assets: Path, tmp_path: Path) -> None:
    path = assets / "models" / "stories260k_prefill.onnx"
    rng = np.random.default_rng(0)
    data = [{"tokens": rng.integers(3, 500, (1, 64))} for _ in range(8)]
    result = graphopt.compile(path, precision="int4-weights", calibration_data=data)
    assert result.rounding is not None
    assert len(result.rounding.weights) == 36
    gained = [w.sqnr_db["gptq"] - w.sqnr_db["mse"] for w in result.rounding.weights]
    assert min(gained) > 0
    assert float(np.mean(gained)) > 1
