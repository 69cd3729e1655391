"""The largest size that fits, at its very edge, and the formula of the peak."""

from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

import graphopt
from graphopt.ir.dims import evaluate
from tests.test_compile import conv_model


def pair_model() -> onnx.ModelProto:
    """Two peaks: one grows with n, one with its square (an outer product and back)."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["square"], name="outer"),
        helper.make_node("Softmax", ["square"], ["soft"], name="soft"),
        helper.make_node("MatMul", ["soft", "x"], ["y"], name="back"),
    ]
    graph = helper.make_graph(
        nodes,
        "pair",
        [value("x", TensorProto.FLOAT, ["n", 64])],
        [value("y", TensorProto.FLOAT, ["n", 64])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def total_at(model: Any, dim: str, size: int) -> int:
    return graphopt.plan(model, bindings={dim: size}).arena_pool.total_bytes


@pytest.mark.parametrize("limit", [40_000, 123_457, 2_000_000])
def test_largest_fits_and_its_successor_does_not(limit: int) -> None:
    model = conv_model(batch="batch")
    report = graphopt.fit(model, "cpu", "batch", memory_limit=limit)
    assert not report.at_bound
    assert total_at(model, "batch", report.largest) <= limit
    assert total_at(model, "batch", report.largest + 1) > limit
    assert report.constraints[0].next_bytes == total_at(model, "batch", report.largest + 1)


def test_bounds_end_the_search() -> None:
    report = graphopt.fit(
        conv_model(batch="batch"),
        "cpu",
        "batch",
        memory_limit="1GiB",
        dynamic_shapes={"x": {0: ("batch", 1, 5)}},
    )
    assert (report.largest, report.at_bound) == (5, True)


def test_formula_is_exact_at_every_size() -> None:
    model = pair_model()
    report = graphopt.fit(model, "cpu", "n", memory_limit="256KiB")
    assert report.formula is not None
    assert len(report.formula.pieces) >= 2, "a linear and a quadratic piece"
    for piece in report.formula.pieces:
        for size in range(piece.low, piece.high + 1):
            plan = graphopt.plan(model, bindings={"n": size})
            assert evaluate(piece.peak, {"n": size}) == plan.peak_bytes
    assert report.formula.pieces[-1].high == report.largest


def test_errors_name_what_is_missing() -> None:
    model = conv_model(batch="batch")
    with pytest.raises(graphopt.OptionError) as caught:
        graphopt.fit(model, "cpu", "bach", memory_limit="1MiB")
    assert caught.value.code == "dimension-unknown"
    with pytest.raises(graphopt.OptionError) as caught:
        graphopt.fit(model, "cpu", "batch")
    assert caught.value.code == "limit-missing"
    with pytest.raises(graphopt.DoesNotFitError) as fits_not:
        graphopt.fit(model, "cpu", "batch", memory_limit=1000)
    assert "batch = 1" in str(fits_not.value)
