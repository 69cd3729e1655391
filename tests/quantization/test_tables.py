"""Tables of rows as integers: which scales, what is stored, and who may read the table."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt.ir.program import Program
from graphopt.ir.shapes import infer_shapes
from graphopt.passes.insert_qdq import InsertQdq
from graphopt.pipeline.base import PassResult
from graphopt.quantization.kernels import kernel_report
from graphopt.quantization.placed import Placement
from graphopt.quantization.rules import TABLE, is_table
from graphopt.quantization.tables import table_scales
from tests.passes.graphs import graph, ops_of, run

RNG = np.random.default_rng(0)
LOOKUP = "g (int64[n,5] i, float[64,16] t) => (float[n,5,16] y) { y = Gather (t, i) }"


def table(kind: str) -> np.ndarray:
    """Return rows whose numbers differ by the whole, by the column or by the row."""
    factors = {
        "tensor": np.ones((1, 1)),
        "column": 10.0 ** RNG.uniform(-2, 2, (1, 16)),
        "row": 10.0 ** RNG.uniform(-2, 2, (64, 1)),
    }
    even = RNG.uniform(-1, 1, (64, 16))
    even[:, 0] = even[0] = 1.0
    found: np.ndarray = (even * factors[kind]).astype(np.float32)
    return found


def quantized(text: str, *ranges: str, **constants: np.ndarray) -> tuple[ir.Model, PassResult]:
    model = graph(text, **{n: a.astype(np.float32) for n, a in constants.items()})
    infer_shapes(Program(model))
    result = InsertQdq(ranges=ranges or ("i=0:1",))(model)
    assert isinstance(result, PassResult)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return model, result


def decibels(wanted: np.ndarray, got: np.ndarray) -> float:
    """Return those of the worst row."""
    noise = np.square(wanted - got).sum(-1) / np.square(wanted).sum(-1)
    return float(-10 * np.log10(noise.max()))


@pytest.mark.parametrize(
    ("kind", "axis", "scales", "ops"),
    [
        ("tensor", 0, 1, ["Gather", "DequantizeLinear"]),
        ("column", 1, 16, ["Gather", "Cast", "Mul"]),
        ("row", 0, 64, ["Gather", "Cast", "Gather", "Mul"]),
    ],
)
def test_as_many_scales_as_help(kind: str, axis: int, scales: int, ops: list[str]) -> None:
    t = table(kind)
    found = table_scales(t)
    assert (found[0], len(found[1])) == (axis, scales)
    model, result = quantized(LOOKUP, t=t)
    assert result.rewrites == 1
    assert ops_of(model) == ops
    held = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    assert [v.dtype for v in held if len(v.shape) == 2 and v.size == t.size] == [ir.DataType.INT8]
    i = np.array([[0, 63, -1, -64, 7]])
    float_model = graph(LOOKUP, t=t)
    got = run(model, {"i": i})[0]
    assert decibels(run(float_model, {"i": i})[0], got) > 38
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_zeros_and_an_empty_column_have_a_scale() -> None:
    t = np.zeros((64, 16), np.float32)
    assert table_scales(t)[1].tolist() == [1.0]
    t[:, 3] = 1000.0
    t[5] = 0.0
    model, _ = quantized(LOOKUP, t=t)
    assert np.array_equal(run(model, {"i": np.array([[5, 6, 7, 8, 9]])})[0][0], t[5:10])


def test_large_tables_are_integers_only_when_they_are_written() -> None:
    text = LOOKUP.replace("[64,", "[4096,")
    model, _ = quantized(text, t=RNG.standard_normal((4096, 16)))
    stored = model.graph.initializers["t_quantized"].const_value
    assert isinstance(stored, ir.LazyTensor)
    assert stored.nbytes == 4096 * 16


@pytest.mark.parametrize(
    "node",
    [
        "y = Gather <axis = 1> (t, i)",
        "y = Gather (u, i)",
        "y = Gather (i, j)",
        "y = GatherElements (t, i)",
    ],
)
def test_no_table(node: str) -> None:
    text = (
        "g (int64[64,2] i, int64[2] j, float[64,2] u, float[64,2] t) => (float[a,b] y) { "
        + node
        + " }"
    )
    model = graph(text, t=np.ones((64, 2), np.float32))
    assert not is_table(model.graph[0])


def test_one_word_is_no_table() -> None:
    text = "g (int64[n] i, float[1,16] t) => (float[n,16] y) { y = Gather (t, i) }"
    model = graph(text, t=np.ones((1, 16), np.float32))
    assert not is_table(model.graph[0])


def test_a_tied_head_shares_integers_and_scales_with_the_table() -> None:
    text = (
        "g (int64[n] i, float[n,16] h, float[64,16] t) => (float[n,16] y, float[n,64] z)"
        "{ y = Gather (t, i) z = Gemm <transB = 1> (h, t) }"
    )
    t = table("tensor")
    model, result = quantized(text, "h=-3:3", "z=-9:9", t=t)
    assert result.rewrites == 2
    large = {
        name: value.const_value.dtype
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.const_value.size == t.size
    }
    assert large == {"t_quantized": ir.DataType.INT8}
    feed: dict[str, np.ndarray] = {"i": np.arange(4)}
    feed["h"] = np.clip(RNG.standard_normal((4, 16)), -3, 3).astype(np.float32)
    wanted, got = run(graph(text, t=t), feed), run(model, feed)
    assert min(decibels(a, b) for a, b in zip(wanted, got, strict=True)) > 30


@pytest.mark.parametrize("reader", ["u = Neg (t)", "u = Transpose <perm = [1, 0]> (t)"])
def test_a_table_that_is_read_as_floats_stays_float(reader: str) -> None:
    text = (
        "g (int64[n] i, float[64,16] t) => (float[n,16] y, float[a,b] u) { y = Gather (t, i) "
        + reader
        + " }"
    )
    model, result = quantized(text, t=table("tensor"))
    assert not result.modified
    assert ("shared-with-float", "Gather_1") in {(s.reason, s.node) for s in result.skipped}
    assert "t" in model.graph.initializers


def test_a_table_that_is_a_graph_output_stays_float() -> None:
    text = "g (int64[n] i, float[64,16] t) => (float[n,16] y) { y = Gather (t, i) }"
    model = graph(text, t=table("tensor"))
    model.graph.outputs.append(model.graph.initializers["t"])
    infer_shapes(Program(model))
    assert not InsertQdq(ranges=("i=0:1",))(model).modified


def test_rows_are_widened_before_they_are_quantized_for_others() -> None:
    text = (
        "g (int64[n,3] i, float[64,16] t, float[16,4] w) => (float[n,3,4] y, float[n,3,16] e)"
        "{ e = Gather (t, i) y = MatMul (e, w) }"
    )
    t, w = table("tensor"), RNG.standard_normal((16, 4))
    model, result = quantized(text, "e=-1:1", "y=-9:9", t=t, w=w)
    assert result.rewrites == 2
    feed = {"i": np.array([[1, 2, 3]])}
    wanted = run(graph(text, t=t, w=w.astype(np.float32)), feed)
    got = run(model, feed)
    assert min(decibels(a, b) for a, b in zip(wanted, got, strict=True)) > 30
    assert [value.name for value in model.graph.outputs] == ["y", "e"]


def test_keep_float_returns_a_table() -> None:
    model = graph(LOOKUP, t=table("tensor"))
    infer_shapes(Program(model))
    result = InsertQdq(ranges=("i=0:1",), keep_float=("Gather_1",))(model)
    assert isinstance(result, PassResult)
    assert not result.modified
    assert [(s.reason, s.node) for s in result.skipped] == [("kept-float", "Gather_1")]


def test_the_report_tells_integer_rows_from_widened_tables() -> None:
    node = graph(LOOKUP, t=table("tensor")).graph[0]
    placement = Placement(integer={node: TABLE})

    def ran(*nodes: tuple[str, str, list[str], list[str]]) -> str:
        names = ("name", "op", "inputs", "outputs")
        report = kernel_report(placement, [dict(zip(names, n, strict=True)) for n in nodes])
        assert report.kernels["Gather_1"] in ("Gather", "Slice", "unknown")
        return report.float_nodes.get("Gather_1", "")

    rows = ("Gather_1", "Gather", ["t", "i"], ["y_integers"])
    assert ran(rows, ("d", "DequantizeLinear", ["y_integers", "s"], ["y"])) == ""
    assert ran(rows, ("d", "Cast", ["y_integers"], ["c"])) == ""
    # Other names for what the runtime puts in its place.
    slices = ("Slice", "Slice", ["t"], ["y_integers"])
    assert ran(slices, ("d", "Cast", ["y_integers"], ["c"])) == ""
    whole = ("d", "DequantizeLinear", ["t8", "s"], ["t"])
    assert ran(whole, rows) == "the runtime widens the whole table"
    assert ran(rows) == "its rows are not widened, so they are not integers"
    assert ran() == "the graph that the runtime made does not name it"
