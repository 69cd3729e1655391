"""Half precision with a keep list: found from ranges, found from the error, and the peaks."""

import importlib.util
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import graphopt
from graphopt.backends.emit_onnx import emit_onnx
from graphopt.compiler import plannable
from graphopt.errors import OptionError, UnsupportedError, VerificationError
from graphopt.frontends.onnx_loader import load_onnx
from graphopt.ir.half_facts import HALF_TYPES
from graphopt.ir.program import Program
from graphopt.ir.shapes import infer_shapes
from graphopt.isolation import Worker
from graphopt.memory.planning import make_plan
from graphopt.numerics.compare import Tolerance
from graphopt.numerics.half import HalfReport, convert_program, verify_half
from graphopt.numerics.half_emulation import emulated
from graphopt.passes.convert_to_half import ConvertToHalf
from graphopt.quantization.half_precision import FACTS_KEY
from graphopt.targets.loader import resolve_target
from tests.passes.graphs import graph, ops_of, run

GPU = resolve_target("gpu")
RNG = np.random.default_rng(0)


def program(text: str, **constants: np.ndarray) -> Program:
    found = Program(graph(text, **constants))
    infer_shapes(found)
    return found


CHAIN = """g (float[2,8] x, float[8,8] w) => (float[2,8] y)
{ a = MatMul (x, w) b = Mul (a, a) c = Sqrt (b) d = MatMul (c, w) y = Tanh (d) }"""
WEIGHT = (RNG.standard_normal((8, 8)) / 4).astype(np.float32)


def rows(scale: float, count: int = 3) -> list[dict[str, np.ndarray]]:
    return [{"x": (RNG.standard_normal((2, 8)) * scale).astype(np.float32)} for _ in range(count)]


def test_a_range_keeps_who_makes_and_who_reads_it() -> None:
    found = program(CHAIN, w=WEIGHT)
    report = convert_program(found, GPU, "fp16", rows(500.0))
    # The square of a few hundred does not fit; what is computed from it does.
    assert list(report.kept) == ["Mul_2", "Sqrt_3"]
    assert {reason for reason, _ in report.kept.values()} == {"range"}
    assert report.kept["Sqrt_3"][1].startswith("'b' is ")
    assert ops_of(found.model) == [
        *("Cast", "MatMul", "Cast", "Mul", "Sqrt", "Cast", "MatMul", "Tanh", "Cast")
    ]
    assert (report.nodes, report.casts, report.samples, report.inputs) == (3, 4, 3, "user")
    assert report.worst_db > 40
    assert [what for what, _ in report.tried] == ["everything"]
    assert report.weight_bytes == (256, 128)
    assert FACTS_KEY not in found.model.meta


def test_the_share_of_the_range_is_room_for_other_inputs() -> None:
    for share, kept in ((1.0, 0), (0.01, 2)):
        report = convert_program(program(CHAIN, w=WEIGHT), GPU, "fp16", rows(50.0), share=share)
        assert len(report.kept) == kept


def test_bfloat16_has_the_range() -> None:
    loose = Tolerance(sqnr_db=5.0)
    found = program(CHAIN, w=WEIGHT)
    assert convert_program(found, GPU, "bf16", rows(500.0), tolerance=loose).kept == {}
    report = convert_program(program(CHAIN, w=WEIGHT), GPU, "bf16", rows(1.0))
    assert 28 < report.worst_db < 60


def test_what_the_runtime_has_no_kernel_for_stays_float32() -> None:
    text = "g (float[2] x) => (float[2] y) { a = Exp (x) b = Log (a) y = Exp (b) }"
    found = program(text)
    report = convert_program(found, GPU, "bf16")
    assert {name: reason for name, (reason, _) in report.kept.items()} == {"Log_2": "no-kernel"}
    assert convert_program(program(text), GPU, "fp16").kept == {}
    # A device whose compiler takes the file decides for itself.
    orin = resolve_target("jetson-orin-nano")
    other = orin.model_copy(
        update={"runtime": orin.runtime.model_copy(update={"executes_with": "none"})}
    )
    assert convert_program(program(text), other, "bf16").kept == {}


def test_nothing_gained_is_refused() -> None:
    # Two convolutions of an opset without bfloat16, and a sum between them.
    text = """<ir_version: 8, opset_import: ["" : 13]>
    g (float[1,8,128,128] x, float[8,8,1,1] w) => (float[1,8,128,128] y)
    { a = Conv (x, w) b = Conv (a, w) c = Add (a, b) d = Conv (c, w) y = Add (d, b) }"""
    weight = (RNG.standard_normal((8, 8, 1, 1)) / 3).astype(np.float32)
    found = program(text, w=weight)
    with pytest.raises(UnsupportedError) as caught:
        convert_program(found, GPU, "bf16")
    assert caught.value.code == "half-no-gain"
    assert "3 Conv" in str(caught.value)
    assert ops_of(found.model) == ["Conv", "Conv", "Add", "Conv", "Add"]
    report = convert_program(program(text, w=weight), GPU, "fp16")
    assert report.peak_bytes[0] is not None
    assert report.peak_bytes[1] is not None
    assert report.peak_bytes[1] < report.peak_bytes[0]


def test_an_input_that_is_large_is_read_as_it_is() -> None:
    text = """g (float[1,16,128,128] x, float[1,16,8,8] w) => (float[1,1,1,1] y)
    { a = Conv <strides = [8, 8]> (x, w) b = Relu (a) y = GlobalAveragePool (b) }"""
    weight = (RNG.standard_normal((1, 16, 8, 8)) / 30).astype(np.float32)
    found = program(text, w=weight)
    report = convert_program(found, GPU, "fp16", {"x": np.ones((1, 16, 128, 128), np.float32)})
    assert {name: reason for name, (reason, _) in report.kept.items()} == {"Conv_1": "peak"}
    assert report.peak_bytes[0] is not None
    assert report.peak_bytes[1] is not None
    assert report.peak_bytes[1] <= report.peak_bytes[0] + 1024


DIFFERENCE = """g (float[4,8] x, float[8,8] w) => (float[4,8] y)
{
  a = MatMul (x, w)
  far = Add (a, k)
  back = Sub (far, k)
  b = Relu (back)
  c = MatMul (b, w)
  y = Sigmoid (c)
}"""


def cancelling() -> Program:
    text = DIFFERENCE.replace("{\n", "<float[1] k = {4000.0}>\n{\n", 1)
    return program(text, w=WEIGHT)


def test_the_error_keeps_the_nodes_that_make_it() -> None:
    samples = [{"x": RNG.standard_normal((4, 8)).astype(np.float32)} for _ in range(3)]
    found = cancelling()
    report = convert_program(found, GPU, "fp16", samples, tolerance=Tolerance(sqnr_db=45))
    # What is added in halves is lost when it is taken away again.
    assert report.tried[0][1] < 20
    assert report.worst_db >= 45
    assert {"Add_2", "Sub_3"} <= set(report.kept)
    assert len(report.kept) < 5
    assert report.kept["Add_2"][0] == "error"
    assert report.nodes >= 3


def test_the_best_is_kept_when_the_goal_is_out_of_reach() -> None:
    samples = [{"x": RNG.standard_normal((4, 8)).astype(np.float32)} for _ in range(2)]
    found = cancelling()
    report = convert_program(found, GPU, "fp16", samples, tolerance=Tolerance(sqnr_db=150))
    assert report.worst_db == max(db for what, db in report.tried if "alone" not in what)
    assert report.worst_db >= 150
    assert report.nodes == 0


def original_of(found: Program, folder: Path) -> Path:
    path = folder / "original.onnx"
    emit_onnx(found, path)
    return path


@pytest.mark.parametrize("type_", ["fp16", "bf16"])
def test_verification_compares_with_the_original_file(type_: str, tmp_path: Path) -> None:
    found = program(CHAIN, w=WEIGHT)
    original = original_of(found, tmp_path)
    report = convert_program(found, GPU, type_, rows(2.0))
    comparison = verify_half(found, [original], report)
    assert comparison.passed
    assert comparison.tolerance.sqnr_db == report.wanted_db
    assert comparison.outputs[0].sqnr_db == pytest.approx(report.worst_db, abs=10)
    report.wanted_db = 150.0
    with pytest.raises(VerificationError) as caught:
        verify_half(found, [original], report)
    assert caught.value.code == "half-error"
    assert "150 dB" in str(caught.value)


def test_integer_outputs_are_judged_by_what_differs(tmp_path: Path) -> None:
    text = """g (float[64,4] x) => (int64[64,1] y) { a = Exp (x) y = ArgMax <axis = 1> (a) }"""
    found = program(text)
    original = original_of(found, tmp_path)
    close = np.repeat(RNG.standard_normal((64, 1)), 4, axis=1).astype(np.float32)
    close[:, 2] += 1e-5
    report = convert_program(found, GPU, "fp16", {"x": close}, keep=("Exp",))
    assert report.worst_db == 200.0
    assert verify_half(found, [original], report).passed
    loose = program(text)
    report = convert_program(loose, GPU, "fp16", {"x": close}, tolerance=Tolerance(sqnr_db=-10.0))
    # A conversion that is seen in every element: -20 log10(1) = 0.
    assert -1 < report.worst_db < 6


def test_seeded_samples_when_there_are_none() -> None:
    report = convert_program(program(CHAIN, w=WEIGHT), GPU, "float16")
    assert (report.inputs, report.samples, len(report.feeds)) == ("seeded", 2, 2)
    assert report.kept == {}


def test_half_inputs_and_outputs() -> None:
    found = program(CHAIN, w=WEIGHT)
    report = convert_program(found, GPU, "bf16", rows(2.0), keep_io=False)
    assert {v.dtype for v in (*found.graph.inputs, *found.graph.outputs)} == {ir.DataType.BFLOAT16}
    assert report.casts == 0
    assert report.worst_db > 28


@pytest.mark.parametrize(
    ("target", "type_", "options", "error", "code"),
    [
        ("cpu", "fp16", {}, UnsupportedError, "precision-no-kernel"),
        ("arm64-cpu", "bf16", {}, UnsupportedError, "precision-no-kernel"),
        ("gpu", "fp8", {}, OptionError, "half-type"),
        ("gpu", "fp16", {"keep": ("MatMul_9",)}, OptionError, "half-keep-unknown"),
        ("gpu", "fp16", {"samples": []}, UnsupportedError, "half-samples"),
        ("gpu", "fp16", {"samples": {"z": np.ones(1)}}, OptionError, "samples-mismatch"),
    ],
)
def test_refusals(
    target: str, type_: str, options: dict[str, Any], error: type[Exception], code: str
) -> None:
    found = program(CHAIN, w=WEIGHT)
    with pytest.raises(error) as caught:
        convert_program(found, resolve_target(target), type_, **options)
    assert caught.value.code == code  # type: ignore[attr-defined]
    assert ops_of(found.model) == ["MatMul", "Mul", "Sqrt", "MatMul", "Tanh"]


def test_a_wrong_name_gets_a_near_one() -> None:
    with pytest.raises(OptionError) as caught:
        convert_program(program(CHAIN, w=WEIGHT), GPU, "fp16", keep=("MatMul_11",))
    assert "MatMul_1" in str(caught.value.hint)
    # An operator that the model has not, and a glob, are no mistakes.
    convert_program(program(CHAIN, w=WEIGHT), GPU, "fp16", rows(1.0), keep=("Softmax", "Z*"))


def test_a_model_that_no_sample_fits() -> None:
    found = program("""g (float[7] x) => (int64[3] y) <int64[1] three = {3}>
    { a = Exp (x) b = NonZero (a) y = Reshape (b, three) }""")
    with pytest.raises(UnsupportedError) as caught:
        convert_program(found, GPU, "fp16")
    assert caught.value.code == "half-samples"


def test_the_report_is_plain_data() -> None:
    plain = convert_program(program(CHAIN, w=WEIGHT), GPU, "fp16", rows(500.0)).to_dict()
    assert plain["kept"]["Mul_2"]["reason"] == "range"
    assert plain["tried"][0]["what"] == "everything"
    assert [p["name"] for p in plain["passes"]] == ["raise-opset", "convert-to-half"]
    assert "feeds" not in plain


def test_generators_are_read_once_and_few_samples_are_kept() -> None:
    left = iter(rows(1.0, 20))
    report = convert_program(program(CHAIN, w=WEIGHT), GPU, "fp16", left)
    assert next(left, None) is None
    assert (report.samples, len(report.feeds)) == (20, 8)


@pytest.mark.parametrize("type_", HALF_TYPES)
def test_emulation_rounds_after_every_node(type_: str) -> None:
    dtype = HALF_TYPES[type_]
    kind = dtype.numpy()
    text = "g (float[8] x) => (float[8] y, float[8] z) { a = Exp (x) z = Neg (a) y = Exp (a) }"
    found = program(text)
    ConvertToHalf(type=type_)(found.model)
    copy = emulated(found, dtype)
    x = np.linspace(-2, 2, 8).astype(np.float32)
    y, z = run(copy.model, {"x": x})
    first = np.exp(x.astype(kind).astype(np.float32)).astype(kind).astype(np.float32)
    np.testing.assert_array_equal(z, -first)
    np.testing.assert_allclose(y, np.exp(first).astype(kind).astype(np.float32), rtol=0.01)
    np.testing.assert_array_equal(y, y.astype(kind).astype(np.float32))
    assert not any(v.dtype is dtype for v in copy.graph.initializers.values())
    # The program itself is as it was.
    assert ops_of(found.model) == ["Cast", "Exp", "Neg", "Cast", "Exp", "Cast"]


def test_emulation_of_bodies() -> None:
    text = """g (float[2] x) => (float[2] y) <int64 n = {3}, bool t = {1}>
    {
      y = Loop (n, t, x) <
        body = b (int64 i, bool c, float[2] s) => (bool d, float[2] u)
        { d = Identity (c) u = Cos (s) }
      >
    }"""
    found = program(text)
    ConvertToHalf()(found.model)
    x = np.array([0.1, 0.2], np.float32)
    wanted = x.astype(np.float16)
    for _ in range(3):
        wanted = np.cos(wanted.astype(np.float32)).astype(np.float16)
    (got,) = run(emulated(found, ir.DataType.FLOAT16).model, {"x": x})
    np.testing.assert_allclose(got, wanted.astype(np.float32), rtol=1e-3)


# The peak of activations, after and before; an input that is cast counts as one.
BUILDERS = {"mobilenet_v2": 0.501, "bert": 0.501, "llama_prefill": 0.52}


@pytest.mark.parametrize("name", BUILDERS)
def test_the_peak_of_small_models_halves(name: str) -> None:
    pytest.importorskip("torch")
    from models import SMALL, build

    sample = build(name, **SMALL[name])
    result = graphopt.compile(
        sample.module,
        sample.example_inputs,
        target="gpu",
        verify=False,
        dynamic_shapes=sample.dynamic_shapes,
    )
    before = result.plan.arena_bytes
    found = result.program
    inputs = found.model.meta["graphopt.example_inputs"]
    report = convert_program(found, GPU, "fp16", inputs)
    planned, bounds = plannable(found, None)
    plan = make_plan(planned, GPU, upper_bounds=bounds)
    assert plan.not_planned == ()
    assert plan.arena_bytes <= BUILDERS[name] * before
    assert {reason for reason, _ in report.kept.values()} <= {"no-half-form", "counts"}
    assert report.weight_bytes[1] < 0.51 * report.weight_bytes[0]
    assert report.worst_db > 50
    check(found)


def check(found: Program) -> None:
    """Assert that the checker of onnx accepts ``found`` with full type inference."""
    with tempfile.TemporaryDirectory() as scratch, Worker() as worker:
        path = Path(scratch) / "half.onnx"
        emit_onnx(found, path)
        worker.call("check", {"model": path})
        worker.call("load", {"model": path})


# Metric of evaluate.py, and by how much it may fall.
TRAINED = {"resnet8_cifar10_nhwc": "accuracy", "dscnn_kws": "accuracy", "mnist_cntk": "accuracy"}


def evaluator(assets: Path) -> Any:
    spec = importlib.util.spec_from_file_location("evaluate", assets / "models" / "evaluate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["evaluate"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.assets
@pytest.mark.parametrize("name", TRAINED)
def test_trained_networks_keep_their_metric(name: str, assets: Path, tmp_path: Path) -> None:
    path = assets / "models" / f"{name}.onnx"
    result = graphopt.compile(path, target="gpu", verify=False)
    report: HalfReport = convert_program(result.program, GPU, "fp16")
    assert report.worst_db > 40
    emit_onnx(emulated(result.program, ir.DataType.FLOAT16), tmp_path / path.name)
    check(result.program)
    module = evaluator(assets)
    values = []
    for folder in (path.parent, tmp_path):
        module.ARGS = Namespace(models=str(folder), data=str(assets / "data"), threads=1)
        values.append(module.MODELS[name][1]()[TRAINED[name]])
    assert values[1] == pytest.approx(values[0], abs=0.01)


@pytest.mark.assets
def test_overflow_in_a_trained_network_is_found(assets: Path) -> None:
    found = load_onnx(assets / "models" / "sinet_portrait.onnx")
    infer_shapes(found)
    large = {"data": (RNG.standard_normal((1, 3, 320, 320)) * 0.3).astype(np.float32)}
    report = convert_program(found, GPU, "fp16", large)
    assert "range" in {reason for reason, _ in report.kept.values()}
    assert report.worst_db >= 40
