"""Outputs that join values: found, numbered, and each measured on its own."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import graphopt
from graphopt.ir.program import Program
from graphopt.ir.shapes import infer_shapes
from graphopt.isolation import Worker
from graphopt.numerics.compare import Tolerance
from graphopt.numerics.feeds import Feed
from graphopt.numerics.parts import CARRIED_DB, NO_PARTS, Parts, parts_of
from graphopt.numerics.sqnr import compare_by_sqnr, sqnr_db, worst
from tests.passes.graphs import graph

# Boxes and scores of two scales in rows: [anchor, (box, box, score)].
DETECTOR = """
g (float[1,4,n] x, float[1,4,m] z) => (float[1,a,3] y)
  <float[2,4] w = {1, 2, 3, 4, 5, 6, 7, 8}, float[1,4] v = {1, 0, 2, 0}, float three = {3.0}>
{
  b1 = MatMul (w, x) s1 = MatMul (v, x) p1 = Sigmoid (s1) c1 = Concat <axis = 1> (b1, p1)
  b2 = MatMul (w, z) s2 = MatMul (v, z) p2 = Sigmoid (s2) c2 = Concat <axis = 1> (b2, p2)
  c = Concat <axis = 2> (c1, c2) m = Mul (c, three) y = Transpose <perm = [0, 2, 1]> (m)
}
"""
CACHE = """
g (float[1,past,2] cache, float[1,1,2] x) => (float[1,next,2] grown, float[1,1,2] y)
  <float[2,2] w = {1, 2, 3, 4}>
{ row = MatMul (x, w) grown = Concat <axis = 1> (cache, row) y = Neg (row) }
"""


def program(text: str) -> Program:
    found = Program(graph(text))
    infer_shapes(found)
    return found


def found_parts(text: str, feed: Feed) -> Parts:
    with Worker() as worker:
        return parts_of(program(text), [feed], worker)


def ones(*shape: int) -> npt.NDArray[np.float32]:
    return np.ones(shape, np.float32)


def test_every_element_knows_the_value_it_comes_from() -> None:
    parts = found_parts(DETECTOR, {"x": ones(1, 4, 3), "z": ones(1, 4, 2)})
    assert parts.names == {"y": ("b1", "s1", "b2", "s2")}
    assert parts.carried == frozenset()
    expected = [[0, 0, 1]] * 3 + [[2, 2, 3]] * 2
    np.testing.assert_array_equal(parts.labels[0]["y"], [expected])


def test_a_rewritten_input_is_carried_to_the_next_run() -> None:
    parts = found_parts(CACHE, {"cache": ones(1, 3, 2), "x": ones(1, 1, 2)})
    assert parts.names == {"grown": ("cache", "row")}
    assert parts.carried == {"grown"}
    np.testing.assert_array_equal(parts.labels[0]["grown"][0, :, 0], [0, 0, 0, 1])


@pytest.mark.parametrize(
    ("update", "labels"),
    [
        ("ScatterND (cache, place, row)", [[0, 0], [1, 1], [0, 0]]),
        ("ScatterElements (cache, both, row)", [[0, 0], [1, 1], [0, 0]]),
    ],
)
def test_rows_written_into_a_cache(update: str, labels: list[list[int]]) -> None:
    text = f"""
    g (float[3,2] cache, float[1,2] x) => (float[3,2] y)
      <int64[1,1] place = {{1}}, int64[1,2] both = {{1, 1}}>
    {{ row = Exp (x) y = {update} }}
    """
    parts = found_parts(text, {"cache": ones(3, 2), "x": ones(1, 2)})
    assert parts.carried == {"y"}
    np.testing.assert_array_equal(parts.labels[0]["y"], labels)


def test_an_update_that_adds_is_a_value_of_its_own() -> None:
    text = """
    g (float[3,2] cache, float[1,2] x) => (float[3,2] y) <int64[1,1] place = {1}>
    { row = Exp (x) y = ScatterND <reduction = "add"> (cache, place, row) }
    """
    assert found_parts(text, {"cache": ones(3, 2), "x": ones(1, 2)}) == NO_PARTS


def test_one_value_needs_no_run() -> None:
    text = """
    g (float[1,4] x) => (float[1,2] y)
    { a, b = Split <num_outputs = 2> (x) c = Concat (a) y = Neg (c) }
    """.replace("Concat (a)", "Concat <axis = 1> (a)")
    # No child is asked: the worker is closed.
    worker = Worker()
    worker.close()
    assert parts_of(program(text), [{"x": ones(1, 4)}], worker) == NO_PARTS


def test_noise_in_the_smaller_value_counts() -> None:
    labels = np.array([[0, 0, 0, 1]], np.uint32)
    parts = Parts({"y": ("box", "score")}, [{"y": labels}])
    wanted = [{"y": np.array([[100.0, 200.0, 300.0, 1.0]], np.float32)}]
    got = [{"y": np.array([[100.0, 200.0, 300.0, 1.1]], np.float32)}]
    assert sqnr_db(wanted, got)["y"] > 70
    assert sqnr_db(wanted, got, parts)["y"] == pytest.approx(20, abs=0.01)
    [error] = compare_by_sqnr(wanted, got, Tolerance(sqnr_db=28), parts)
    assert not error.accepted
    assert error.reason == "20.0 dB in what it joins from 'score'"
    assert compare_by_sqnr(wanted, got, Tolerance(sqnr_db=28))[0].accepted


def test_energies_add_up_over_samples() -> None:
    parts = Parts({"y": ("a", "b")}, [{"y": np.array([0, 1], np.uint32)}] * 2)
    wanted = [{"y": np.array([1.0, 3.0])}, {"y": np.array([1.0, 1.0])}]
    got = [{"y": np.array([1.0, 3.0])}, {"y": np.array([1.0, 2.0])}]
    assert sqnr_db(wanted, got, parts)["y"] == pytest.approx(10)


def test_a_silent_value_is_measured_with_the_whole() -> None:
    parts = Parts({"y": ("a", "b")}, [{"y": np.array([0, 1], np.uint32)}])
    wanted, got = [{"y": np.array([10.0, 0.0])}], [{"y": np.array([10.0, 0.1])}]
    assert sqnr_db(wanted, got, parts)["y"] == pytest.approx(40)


def test_what_later_runs_read_needs_more() -> None:
    parts = Parts(carried=frozenset({"state"}))
    assert worst({"state": 30.0, "y": 29.0}, parts) == 30.0 - CARRIED_DB
    wanted, got = [{"state": np.array([10.0])}], [{"state": np.array([10.1])}]
    accepted = Tolerance(sqnr_db=40 - CARRIED_DB)
    assert compare_by_sqnr(wanted, got, accepted, parts)[0].accepted
    [error] = compare_by_sqnr(wanted, got, Tolerance(sqnr_db=41 - CARRIED_DB), parts)
    assert not error.accepted
    assert error.reason == "40.0 dB and needs 10 dB more since later runs read it"


def test_a_score_beside_boxes_decides_what_returns_to_float(tmp_path: Path) -> None:
    """The same network: as one output, and with a score beside boxes a thousand times as large."""
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((16, 16)).astype(np.float32) for _ in range(4)]
    numbers = ["{" + ", ".join(map(str, w.ravel())) + "}" for w in weights]
    text = f"""
    g (float[8,16] x) => (float[8,17] y)
      <float[16,16] w0 = {numbers[0]}, float[16,16] w1 = {numbers[1]}, float big = {{1000.0}},
       float[16,16] w2 = {numbers[2]}, int64[1] zero = {{0}}, int64[1] one = {{1}}>
    {{
      a = MatMul (x, w0) r = Relu (a) b = MatMul (r, w1) boxes = Mul (b, big)
      c = MatMul (r, w2) t = Tanh (c) score = Slice (t, zero, one, one)
      y = Concat <axis = 1> (boxes, score)
    }}
    """
    import onnx_ir as ir

    path = tmp_path / "m.onnx"
    ir.save(program(text).model, path)
    data = [{"x": rng.standard_normal((8, 16)).astype(np.float32)} for _ in range(6)]
    result = graphopt.compile(
        path,
        precision="int8",
        calibration_data=data,
        verify=graphopt.Tolerance(sqnr_db=34),
    )
    result.save(tmp_path / "q.onnx")
    import onnxruntime as ort

    outputs = [
        np.concatenate([session.run(None, one)[0] for one in data])
        for session in map(ort.InferenceSession, (path, tmp_path / "q.onnx"))
    ]
    wanted, got = (output[:, 16].astype(np.float64) for output in outputs)
    assert 10 * np.log10(np.square(wanted).sum() / np.square(wanted - got).sum()) > 33
    assert result.quantization is not None
    assert 0 < len(result.quantization.returned) < 3
