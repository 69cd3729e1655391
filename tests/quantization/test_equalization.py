"""Channels are evened out: the float program stays what it was, and 8 bits lose less."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import graphopt
from graphopt.errors import OptionError
from graphopt.ir.program import Program
from graphopt.ir.shapes import infer_shapes
from graphopt.numerics import calibration, quantize
from graphopt.numerics.calibration import calibrate, recalibrate
from graphopt.passes.equalize_channels import EqualizeChannels
from graphopt.pipeline.base import PassResult
from graphopt.quantization.description import META_KEY
from graphopt.quantization.equalization import (
    FACTS_KEY,
    MOST_VALUES,
    factors_from,
    input_maxima,
    output_maxima,
    regions,
)
from graphopt.quantization.ranges import Scheme
from graphopt.quantization.rules import DEFAULT_OPERATORS
from tests.passes.graphs import assert_equal, graph, ops_of, run

RNG = np.random.default_rng(0)
OPERATORS = frozenset(DEFAULT_OPERATORS)


def inferred(text: str, **weights: np.ndarray) -> ir.Model:
    arrays = {n: w if w.dtype == np.int64 else w.astype(np.float32) for n, w in weights.items()}
    model = graph(text, **arrays)
    infer_shapes(Program(model))
    return model


def cnn() -> ir.Model:
    """Return a chain with grouped and depthwise convolutions and channels of all sizes."""
    sizes = np.exp(RNG.standard_normal(12) * 2)
    grouped = RNG.standard_normal((8, 3, 1, 1)) / sizes.reshape(4, 3).repeat(2, 0)[:, :, None, None]
    return inferred(
        "g (float[n,3,8,8] x, float[12,3,3,3] w, float[12] b, float[12,1,3,3] d,"
        " float[8,3,1,1] e, float[8] f, float[4,8] v, int64[2] axes) => (float[n,4] y)"
        "{ c = Conv <pads = [1, 1, 1, 1]> (x, w, b) r = Relu (c)"
        "  s = Conv <group = 12, pads = [1, 1, 1, 1]> (r, d) l = LeakyRelu <alpha = 0.2> (s)"
        "  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (l)"
        "  t = Conv <group = 4> (p, e, f) a = ReduceMean <keepdims = 0> (t, axes)"
        "  y = Gemm <transB = 1> (a, v) }",
        w=RNG.standard_normal((12, 3, 3, 3)) * sizes[:, None, None, None],
        b=RNG.standard_normal(12) * sizes,
        d=RNG.standard_normal((12, 1, 3, 3)),
        e=grouped,
        f=RNG.standard_normal(8),
        v=RNG.standard_normal((4, 8)) * np.exp(RNG.standard_normal(8)),
        axes=np.array([2, 3]),
    )


def encoder(width: int = 32, activation: str = "Relu") -> ir.Model:
    """Return two halves of encoder layers, one before and one after its residual sum."""
    gain = np.ones(width)
    gain[:4] = 12
    shape = f"float[n,6,{width}]"
    return inferred(
        f"g ({shape} x, float[{width}] gain, float[{width}] bias, float[{width},{width}] q,"
        f" float[{width},{width}] k, float[{width},{width}] u, float[{width},{width}] o,"
        f" float[{width}] ub) => ({shape} y)"
        "{ a = LayerNormalization <axis = -1> (x, gain, bias) b = MatMul (a, q) c = MatMul (a, k)"
        "  d = Mul (b, c) e = Erf (d) s = Add (e, x)"
        "  h = LayerNormalization <axis = -1> (s, gain, bias) i = MatMul (h, u) j = Add (i, ub)"
        f"  r = {activation} (j) o1 = MatMul (r, o) y = Add (o1, h) }}",
        gain=gain,
        bias=RNG.standard_normal(width) / 4,
        ub=RNG.standard_normal(width),
        **{name: RNG.standard_normal((width, width)) / width**0.5 for name in ("q", "k", "u", "o")},
    )


def program_of(model: ir.Model) -> Program:
    return Program(model)


def feeds_of(model: ir.Model, count: int = 12) -> list[dict[str, np.ndarray]]:
    shape = [d if isinstance(d, int) else 2 for d in model.graph.inputs[0].shape or ()]
    return [{"x": RNG.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def observed(model: ir.Model) -> Any:
    return calibrate(program_of(model), feeds_of(model), OPERATORS)


def equalized(model: ir.Model, pass_: EqualizeChannels) -> PassResult:
    if pass_.alpha and not pass_.maxima:
        model.meta[META_KEY] = observed(model).describe("min-max", Scheme())
    result = pass_(model)
    assert isinstance(result, PassResult)
    return result


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("make", [cnn, encoder])
def test_the_float_program_computes_the_same(make: Any, alpha: float) -> None:
    model = make()
    feeds = feeds_of(model, 3)
    wanted = [run(model, feed) for feed in feeds]
    result = equalized(model, EqualizeChannels(alpha=alpha, insert=4.0 if alpha else 0.0))
    assert result.rewrites == {cnn: 3, encoder: 3 if alpha else 1}[make]
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    for feed, outputs in zip(feeds, wanted, strict=True):
        assert_equal(run(model, feed), outputs, exact=False, rtol=1e-5)


def test_both_sides_of_a_pair_get_the_same_ranges() -> None:
    model = cnn()
    convolutions = [node for node in model.graph if node.op_type in ("Conv", "Gemm")]
    EqualizeChannels()(model)
    # The last pair stays balanced; scaling the output of the one before moves its own source.
    last = convolutions[-2:]
    given, read = output_maxima(last[0]), input_maxima(last[1], 8)
    np.testing.assert_allclose(given / read, (given / read)[0], rtol=1e-5)


def test_what_the_encoder_gets() -> None:
    model = encoder()
    result = equalized(model, EqualizeChannels(alpha=0.5, insert=4.0))
    # The first gain is folded, the second value is read by the residual sum, too, and between the
    # last two matrices are a bias and a Relu.
    assert [tuple(skip)[:2] for skip in result.skipped] == [
        ("not-homogeneous", "MatMul_2"),
        ("not-homogeneous", "MatMul_3"),
        ("read-elsewhere", "LayerNormalization_7"),
    ]
    assert ops_of(model).count("Mul") == 2
    divided = model.meta[FACTS_KEY]
    assert {name for name, one in divided.items() if one.source != name} == {"h_equalized"}
    assert {"a", "i", "j", "r"} <= set(divided)
    # The four channels with the large gain are divided most.
    assert set(np.argsort(divided["a"].factors)[-4:]) == {0, 1, 2, 3}


def test_large_weights_are_scaled_when_they_are_read() -> None:
    model = encoder(160)
    EqualizeChannels()(model)
    kinds = {n: type(v.const_value) for n, v in model.graph.initializers.items()}
    assert kinds["u"] is kinds["o"] is ir.LazyTensor
    assert kinds["q"] is ir.Tensor


def test_extremes_of_channels_do_not_need_the_samples_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calibration, "MOST_KEPT_SAMPLES", 8)
    model = encoder()
    before = calibrate(program_of(model), feeds_of(model, 64), OPERATORS)
    assert len(before.kept) == 8
    model.meta[META_KEY] = before.describe("min-max", Scheme())
    EqualizeChannels(alpha=0.5, insert=4.0)(model)
    after = recalibrate(program_of(model), before, OPERATORS)
    factors = model.meta[FACTS_KEY]["a"].factors
    old, new = before.histograms["a"], after.histograms["a"]
    assert old.channel_highs is not None
    assert new.channel_highs is not None
    np.testing.assert_allclose(new.channel_highs, old.channel_highs / factors)
    # All samples decide the range, although eight were run again.
    assert new.high == pytest.approx((old.channel_highs / factors).max())
    assert new.elements == old.elements // 8
    # What the pass left alone is as it was, and what is gone is forgotten.
    assert after.histograms["o1"] is before.histograms["o1"]
    assert set(after.histograms) == {*before.histograms, "h_equalized"}
    inserted = after.histograms["h_equalized"]
    whole = before.histograms["h"].channel_highs
    assert whole is not None
    by = model.meta[FACTS_KEY]["h_equalized"].factors
    assert inserted.high == pytest.approx((whole / by).max())


def saved(model: ir.Model, folder: Path) -> Path:
    path = folder / "model.onnx"
    ir.save(model, path)
    return path


def test_int8_keeps_what_gains_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The gain depends on the numbers: these are the same whichever tests ran before.
    monkeypatch.setitem(globals(), "RNG", np.random.default_rng(0))
    model = encoder(activation="Erf")
    data = feeds_of(model, 8)
    path = saved(model, tmp_path)
    keywords: dict[str, Any] = {"target": "cpu", "precision": "int8", "calibration_data": data}
    result = graphopt.compile(path, **keywords, verify=graphopt.Tolerance(sqnr_db=0))
    report = result.quantization
    assert report is not None
    plain = max(db for what, db in report.tried if "after" not in what)
    assert report.worst_db >= plain + 6
    assert report.equalized.startswith("equalize-channels{alpha=0.")
    names = [one.name for one in result.report]
    assert names.index("insert-qdq") == names.index("equalize-channels") + 1
    assert result.to_dict()["quantization"]["equalized"] == report.equalized
    assert not {META_KEY, FACTS_KEY} & set(result.program.model.meta)
    # The decibels of a layer are those of the equalized float program, not of scaled values.
    assert min(report.layers.values()) > 5
    assert result.verification is not None
    assert result.verification.outputs[0].sqnr_db == pytest.approx(report.worst_db, abs=0.2)


def test_without_a_gain_the_model_is_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = cnn()
    data, path = feeds_of(model), saved(model, tmp_path)
    contents = []
    monkeypatch.setattr(quantize, "LEAST_GAIN_DB", 1000.0)
    for name in ("tried", "not_tried"):
        result = graphopt.compile(
            path,
            target="cpu",
            precision="int8",
            calibration_data=data,
            verify=graphopt.Tolerance(sqnr_db=-100),
        )
        assert result.quantization is not None
        assert result.quantization.equalized == ""
        tried = [what for what, _ in result.quantization.tried if "after" in what]
        assert len(tried) == (9 if name == "tried" else 0)
        result.save(tmp_path / f"{name}.onnx")
        contents.append((tmp_path / f"{name}.onnx").read_bytes())
        monkeypatch.setattr(quantize, "ALWAYS_EQUALIZED_BYTES", 0)
    assert contents[0] == contents[1]


def test_same_input_same_bytes(tmp_path: Path) -> None:
    model = encoder(activation="Erf")
    data, path = feeds_of(model), saved(model, tmp_path)
    contents = []
    for name in ("a.onnx", "b.onnx"):
        result = graphopt.compile(path, precision="int8", calibration_data=list(data))
        assert result.quantization is not None
        assert result.quantization.equalized
        result.save(tmp_path / name)
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]


def test_a_region_ends_somewhere() -> None:
    count = 2 * MOST_VALUES
    chain = " ".join(f"v{i + 1} = Relu (v{i})" for i in range(count))
    text = (
        "g (float[1,2] x, float[2,2] w, float[2,2] u) => (float[1,2] y)"
        f"{{ v0 = MatMul (x, w) {chain} y = MatMul (v{count}, u) }}"
    )
    model = inferred(text, w=np.eye(2), u=np.eye(2) * 3)
    assert list(regions(model)) == []


def test_a_body_that_reads_the_value_ends_the_region() -> None:
    text = (
        "g (float[1,2] x, bool b, float[2,2] w, float[2,2] u) => (float[1,2] y, float[1,2] z)"
        "{ c = MatMul (x, w) y = MatMul (c, u)"
        "  z = If (b) <then_branch = g1 () => (float[1,2] t) { t = Neg (c) },"
        "  else_branch = g2 () => (float[1,2] e) { e = Abs (c) }> }"
    )
    model = inferred(text, w=np.eye(2), u=np.eye(2) * 3)
    found = list(regions(model))
    assert [(one.reason, one.source.op_type) for one in found] == [("read-elsewhere", "MatMul")]


def test_factors() -> None:
    values, weights = np.array([16.0, 1.0, 0.0, 4.0]), np.array([1.0, 1.0, 1.0, 0.0])
    factors = factors_from(values, weights, 0.5)
    # Channels that are always zero, or that no weight reads, are left alone.
    np.testing.assert_allclose(factors, [2.0, 0.5, 1.0, 1.0])
    assert factors_from(np.zeros(3), np.ones(3), 0.5).tolist() == [1, 1, 1]
    huge = factors_from(np.array([1e30, 1e-10]), np.ones(2), 1.0)
    assert huge.max() / huge.min() <= 1e8


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"alpha": 1.5}, "equalize-options"),
        ({"insert": -1.0}, "equalize-options"),
        ({"alpha": 0.5}, "calibration-missing"),
        ({"alpha": 0.5, "maxima": ("c=one",)}, "quantization-range"),
    ],
)
def test_options_are_checked(options: dict[str, Any], code: str) -> None:
    with pytest.raises(OptionError) as caught:
        EqualizeChannels(**options)(cnn())
    assert caught.value.code == code


@pytest.mark.slow
def test_a_large_graph_takes_seconds() -> None:
    """On an idle core this takes 2 s; what is quadratic takes minutes."""
    count = 5_000
    body = " ".join(
        f"c{i} = Conv (x{i}, w{i}) r{i} = Relu (c{i}) m{i} = Mul (r{i}, f)"
        f" x{i + 1} = LeakyRelu (m{i})"
        for i in range(count)
    )
    weights = {f"w{i}": np.array([[0.0, 4.0], [1.0, 0.0]]) for i in range(count)}
    inputs = ", ".join(f"float[2,2,1,1] {name}" for name in weights)
    text = (
        f"g (float[1,2,2,2] x0, float[1,2,1,1] f, {inputs}) => (float[1,2,2,2] x{count})"
        f"{{ {body} }}"
    )
    model = inferred(text, **{n: w.reshape(2, 2, 1, 1) for n, w in weights.items()})
    assert len(list(model.graph)) == 4 * count
    started = time.process_time()
    result = EqualizeChannels()(model)
    assert isinstance(result, PassResult)
    assert result.rewrites >= count // 2
    assert time.process_time() - started < 20
