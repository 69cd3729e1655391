"""Quantization inside the branches of an ``If``, from calibration to the kernels that run."""

import wave
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import graphopt
from graphopt.frontends.onnx_loader import load_onnx
from graphopt.ir.shapes import infer_shapes
from graphopt.numerics import calibration
from graphopt.numerics.calibration import calibrate
from graphopt.numerics.sqnr import sqnr_db
from graphopt.quantization.bodies import name_apart, observable_nodes, scopes_of
from graphopt.quantization.ranges import Scheme
from graphopt.quantization.rules import DEFAULT_OPERATORS
from tests.passes.graphs import graph

OPERATORS = frozenset(DEFAULT_OPERATORS)
# Branches read what is around them, `k` and `w` are weights of several graphs, and siblings have
# values of one name.
TEXT = """
<ir_version: 8, opset_import: ["": 17]>
g (float[1,4,6,6] x, bool c, bool d) => (float[1,8,6,6] y)
{
  a = Conv <pads = [1, 1, 1, 1]> (x, w)
  r = Relu (a)
  f = Tanh (x)
  y = If (c) <
    then_branch = one () => (float[1,8,6,6] t) {
      t = If (d) <
        then_branch = deep () => (float[1,8,6,6] z) {
          [deep_conv] v = Conv <pads = [1, 1, 1, 1]> (r, k)
          z = Relu (v)
        },
        else_branch = low () => (float[1,8,6,6] z) {
          [low_conv] v = Conv <pads = [1, 1, 1, 1]> (r, m)
          [low_add] s = Add (v, r)
          [low_last] z = Conv <pads = [1, 1, 1, 1]> (s, k)
        }
      >
    },
    else_branch = two () => (float[1,8,6,6] z) {
      [two_conv] z = Conv <pads = [1, 1, 1, 1]> (f, w)
    }
  >
}
"""
INNER = ("deep_conv", "low_conv", "low_add", "low_last", "two_conv")
Feed = dict[str, np.ndarray]


def network(folder: Path, text: str = TEXT) -> Path:
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(text)
    for name, inputs in (("w", 4), ("k", 8), ("m", 8)):
        weight = rng.standard_normal((8, inputs, 3, 3)).astype(np.float32) / inputs
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    onnx.checker.check_model(model)
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def samples(ways: str, count: int = 16) -> Iterator[Feed]:
    """Yield samples that take the branches that ``ways`` names, in turn."""
    rng = np.random.default_rng(1)
    flags = {"deep": (True, True), "low": (True, False), "two": (False, True)}
    for number in range(count):
        c, d = flags[ways.split()[number % len(ways.split())]]
        x = rng.standard_normal((1, 4, 6, 6)).astype(np.float32)
        yield {"x": x, "c": np.array(c), "d": np.array(d)}


def outputs(path: Path, feeds: list[Feed]) -> list[dict[str, Any]]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [{"y": session.run(None, feed)[0]} for feed in feeds]


def kernels(path: Path, folder: Path) -> list[Counter[str]]:
    """Return the operators of each graph as onnxruntime runs the model, the main one first."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    graphs = [onnx.load(folder / "optimized.onnx").graph]
    for current in graphs:
        named = {a.name: a.g for node in current.node for a in node.attribute if a.HasField("g")}
        graphs += [named[name] for name in sorted(named, reverse=True)]
    return [Counter(node.op_type for node in one.node) for one in graphs]


def float_weights(path: Path) -> list[str]:
    graph = onnx.load(path).graph
    return [t.name for t in graph.initializer if t.data_type == 1 and len(t.dims) == 4]


def test_every_branch_computes_in_integers(tmp_path: Path) -> None:
    path = network(tmp_path)
    feeds = list(samples("deep low two"))
    result = graphopt.compile(path, precision="int8", calibration_data=feeds)
    out = tmp_path / "q.onnx"
    result.save(out)
    onnx.checker.check_model(onnx.load(out), full_check=True)

    # Main graph, then and else, deep and low.
    main, one, two, deep, low = kernels(out, tmp_path)
    assert (main["QLinearConv"], main["Conv"]) == (1, 0)
    assert one == Counter({"If": 1})
    assert (two["QLinearConv"], two["QuantizeLinear"], two["Conv"]) == (1, 1, 0)
    # They read the integers that were made around them, once for all.
    assert (deep["QLinearConv"], deep["QuantizeLinear"], deep["Relu"]) == (1, 0, 0)
    assert (low["QLinearConv"], low["QLinearAdd"], low["QuantizeLinear"]) == (2, 1, 0)
    assert float_weights(out) == []

    report = result.quantization
    assert report is not None
    assert report.kernels is not None
    assert [report.kernels.kernels[name] for name in INNER] == [
        "QLinearConv", "QLinearConv", "QLinearAdd", "QLinearConv", "QLinearConv",
    ]  # fmt: skip
    assert report.kernels.float_nodes == {}
    # Each was measured on a sample that takes its branch: none is equal to the float one.
    assert all(15 < report.layers[name] < 60 for name in INNER)
    assert "QLinearConv" in result.explain("low_last")
    for way in ("deep", "low", "two"):
        fresh = list(samples(way, 4))
        found = sqnr_db(outputs(path, fresh), outputs(out, fresh))["y"]
        assert 28 < found < 60
    assert result.verification is not None


def test_a_branch_that_no_sample_takes_stays_as_it_is(tmp_path: Path) -> None:
    path = network(tmp_path)
    feeds = list(samples("deep two"))
    result = graphopt.compile(path, precision="int8", calibration_data=feeds)
    out = tmp_path / "q.onnx"
    result.save(out)
    report = result.quantization
    assert report is not None
    assert report.kernels is not None
    reasons = {name: report.reasons.get(name, ("", ""))[0] for name in INNER}
    assert reasons == {
        "deep_conv": "", "two_conv": "",
        "low_conv": "never-calibrated", "low_add": "never-calibrated",
        "low_last": "never-calibrated",
    }  # fmt: skip
    assert report.kernels.kernels["deep_conv"] == "QLinearConv"
    text = result.explain("low_conv")
    assert "'low_conv' is float: never-calibrated" in text
    assert "the node is in else_branch of" in text
    *_, low = kernels(out, tmp_path)
    assert (low["Conv"] + low["FusedConv"], low["QLinearConv"]) == (2, 0)
    # `k` is a weight of both: of the branch that is integer, and of the one that is not.
    assert sorted(float_weights(out)) == ["k", "m"]
    # The branch is what it was, apart from the integers around it.
    fresh = list(samples("low", 4))
    assert sqnr_db(outputs(path, fresh), outputs(out, fresh))["y"] > 28


def test_nodes_of_branches_return_to_float_for_accuracy(tmp_path: Path) -> None:
    path = network(tmp_path)
    feeds = list(samples("deep low two"))
    before = graphopt.compile(path, precision="int8", calibration_data=feeds).quantization
    assert before is not None
    wanted = before.worst_db + 3
    result = graphopt.compile(
        path,
        precision="int8",
        calibration_data=feeds,
        verify=graphopt.Tolerance(sqnr_db=wanted),
    )
    report = result.quantization
    assert report is not None
    assert report.worst_db >= wanted
    assert set(report.returned) & set(INNER)
    for name in report.returned:
        assert "costs too much accuracy" in result.explain(name)
        assert report.reasons[name] == ("kept-float", "")
    result.save(tmp_path / "q.onnx")
    fresh = list(samples("deep low two", 6))
    assert sqnr_db(outputs(path, fresh), outputs(tmp_path / "q.onnx", fresh))["y"] > wanted - 1


def test_what_a_branch_computes_is_observed_only_where_it_is_taken(tmp_path: Path) -> None:
    program = load_onnx(network(tmp_path))
    infer_shapes(program)
    feeds = list(samples("deep deep deep two", 8))
    found = calibrate(program, feeds, OPERATORS)
    description = found.describe("min-max", Scheme())
    made = {node.name: node.outputs[0].name or "" for node in observable_nodes(program.model)}
    assert {made[name] in description.unseen for name in ("low_conv", "low_last")} == {True}
    weight = onnx.numpy_helper.to_array(onnx.load(tmp_path / "model.onnx").graph.initializer[0])
    assert weight.shape == (8, 4, 3, 3)
    wanted = outputs(tmp_path / "model.onnx", [feed for feed in feeds if not feed["c"]])
    low, high = description.ranges[made["two_conv"]]
    assert low == pytest.approx(min(one["y"].min() for one in wanted), rel=1e-5)
    assert high == pytest.approx(max(one["y"].max() for one in wanted), rel=1e-5)
    assert found.histograms[made["deep_conv"]].elements == 6 * 8 * 36
    # What is captured is a value of the graph around, with the channels that its weights lose.
    assert description.means["r"].shape == (8,)
    assert description.means["f"].shape == (4,)


@pytest.mark.parametrize(("most", "least_kept", "most_kept"), [(8, 4, 8), (64, 17, 34)])
def test_samples_of_each_way_through_the_branches_are_kept(
    most: int, least_kept: int, most_kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "MOST_KEPT_SAMPLES", most)
    program = load_onnx(network(tmp_path))
    infer_shapes(program)
    many = list(samples("deep", 61))
    rare = [{**feed, "x": feed["x"] + 1} for feed in samples("two", 2)]
    feeds = [*many[:7], rare[0], *many[7:50], rare[1], *many[50:]]
    kept = calibrate(program, feeds, OPERATORS).kept
    places = [next(i for i, f in enumerate(feeds) if np.array_equal(f["x"], k["x"])) for k in kept]
    assert places == sorted(places)
    assert {7, 51} < set(places)
    assert least_kept <= len(kept) <= most_kept


def test_values_of_siblings_get_names_of_their_own() -> None:
    model = graph(
        "g (float[2] x, bool c) => (float[2] y) { y = If (c) <"
        " then_branch = one () => (float[2] t) { m = Neg (x) t = Exp (m) },"
        " else_branch = two () => (float[2] t) { m = Abs (x) t = Exp (m) }> }"
    )
    name_apart(model)
    names = [value.name for s in scopes_of(model) for node in s.graph for value in node.outputs]
    assert names == ["y", "m", "t", "m_1", "t_1"]
    again = list(names)
    name_apart(model)
    assert again == names


def test_scopes_name_the_branch_and_the_loop() -> None:
    model = graph(
        "g (float[2] x, bool c, int64 n) => (float[2] y) { y = If (c) <"
        " then_branch = one () => (float[2] t) { t = Loop (n, c, x) <"
        "  body = b (int64 i, bool k, float[2] s) => (bool o, float[2] u)"
        "  { o = Identity (k) u = If (k) <"
        "   then_branch = p () => (float[2] e) { e = Neg (s) },"
        "   else_branch = q () => (float[2] f) { f = Abs (s) }> }> },"
        " else_branch = two () => (float[2] v) { v = Exp (x) }> }"
    )
    scopes = list(scopes_of(model))
    assert [(s.depth, s.where) for s in scopes] == [
        (0, ""),
        (1, "in then_branch of 'If_1'"),
        (2, "in body of 'Loop_2'"),
        (3, "in then_branch of 'If_4'"),
        (3, "in else_branch of 'If_4'"),
        (1, "in else_branch of 'If_1'"),
    ]
    assert [s.loop is not None for s in scopes] == [False, False, True, True, True, False]
    assert [node.op_type for node in observable_nodes(model)] == ["If", "Loop", "Exp"]


def test_a_model_with_branches_in_a_loop_is_quantized_around_it(tmp_path: Path) -> None:
    text = """
<ir_version: 8, opset_import: ["": 17]>
g (float[1,4,6,6] x, bool c, bool d) => (float[1,8,6,6] y) <int64 n = {2}, bool t = {1}>
{
  a = Conv <pads = [1, 1, 1, 1]> (x, w)
  p = Loop (n, t, a) <body = b (int64 i, bool o, float[1,8,6,6] s) => (bool q, float[1,8,6,6] u) {
    q = Identity (o)
    u = If (d) <
      then_branch = one () => (float[1,8,6,6] v) { [turn] v = Conv <pads = [1, 1, 1, 1]> (s, k) },
      else_branch = two () => (float[1,8,6,6] e) { e = Neg (s) }
    >
  }>
  y = Conv <pads = [1, 1, 1, 1]> (p, m)
}
"""
    path = network(tmp_path, text)
    feeds = list(samples("deep low"))
    result = graphopt.compile(path, precision="int8", calibration_data=feeds)
    report = result.quantization
    assert report is not None
    assert report.reasons["turn"][0] == "body-of-loop"
    assert "'turn' is float: body-of-loop" in result.explain("turn")
    result.save(tmp_path / "q.onnx")
    assert float_weights(tmp_path / "q.onnx") == ["k"]


def test_a_network_with_a_branch_for_each_sample_rate(assets: Path, tmp_path: Path) -> None:
    path = assets / "models" / "silero_vad.onnx"
    with wave.open(str(assets / "data" / "audio" / "speech_clean_16k.wav")) as file:
        sound = np.frombuffer(file.readframes(file.getnframes()), np.int16) / np.float32(32768)
    windows = sound[: 20 * 576].reshape(20, 1, 576).astype(np.float32)
    state, rate = np.zeros((2, 1, 128), np.float32), np.array(16000)
    feeds = [{"input": window, "state": state, "sr": rate} for window in windows]
    result = graphopt.compile(path, precision="int8", calibration_data=feeds)
    result.save(tmp_path / "q.onnx")
    assert (tmp_path / "q.onnx").stat().st_size < 0.5 * path.stat().st_size
    report = result.quantization
    assert report is not None
    assert report.kernels is not None
    integer = [name for name, kernel in report.kernels.kernels.items() if kernel == "QLinearConv"]
    # The six convolutions for 16 kHz: integer, or returned to float for accuracy.
    assert len(integer) >= 2
    sides = [name for name in (*integer, *report.returned) if name.endswith("Conv")]
    assert len(sides) == 6
    assert all(name.startswith("If_0_then_branch") for name in sides)
    dead = [name for name, why in report.reasons.items() if why[0] == "never-calibrated"]
    # The six convolutions for 8 kHz, which no sample has.
    assert sum(name.startswith("If_0_else_branch") and name.endswith("Conv") for name in dead) == 6
    assert report.worst_db >= 28
