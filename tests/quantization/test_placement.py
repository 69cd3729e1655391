"""What placement decides, case by case; the emitted graphs are in the golden texts."""

import onnx_ir as ir
import pytest

from graphopt.ir.program import Program
from graphopt.ir.shapes import infer_shapes
from graphopt.quantization.description import Description, Plan
from graphopt.quantization.placed import Placement
from graphopt.quantization.placement import observed_values, place
from graphopt.quantization.ranges import Scheme
from graphopt.quantization.rules import RULES, is_gated
from tests.passes.graphs import graph


def placed(
    text: str, ranges: dict[str, tuple[float, float]], plan: Plan | None = None, *keep: str
) -> tuple[Placement, ir.Model]:
    model = graph(text)
    infer_shapes(Program(model))
    return place(model, Description(ranges), plan or Plan(), frozenset(keep)), model


def integer(placement: Placement) -> list[str]:
    return [node.op_type for node in placement.integer]


W = "float[1,1,1,1] w = {1.0}"


def test_a_move_before_the_first_convolution_moves_bytes() -> None:
    text = (
        "g (float[1,2,2,1] x) => (float[1,1,2,2] y) <" + W + ">"
        "{ t = Transpose <perm = [0, 3, 1, 2]> (x) y = Conv (t, w) }"
    )
    found, _ = placed(text, dict.fromkeys("xty", (-1.0, 1.0)))
    assert integer(found) == ["Transpose", "Conv"]


def test_a_move_that_a_float_node_reads_too_stays_float() -> None:
    text = (
        "g (float[1,2,2,1] x) => (float[1,1,2,2] y, float[1,1,2,2] z) <" + W + ">"
        "{ t = Transpose <perm = [0, 3, 1, 2]> (x) y = Conv (t, w) z = Neg (t) }"
    )
    found, _ = placed(text, dict.fromkeys("xty", (-1.0, 1.0)))
    assert integer(found) == ["Conv"]


@pytest.mark.parametrize(
    ("clamp", "absorbed"),
    [("Relu (c)", True), ("Clip (c, lo, hi)", True), ("Clip (c, hi, top)", False)],
)
def test_what_saturation_replaces(clamp: str, absorbed: bool) -> None:
    text = (
        "g (float[1,1,2,2] x) => (float[1,1,2,2] y) <"
        + W
        + ", float lo = {0.0}, float hi = {6.0}, float top = {9.0}>"
        + "{ c = Conv (x, w) y = "
        + clamp
        + " }"
    )
    found, _ = placed(text, {"x": (-1.0, 1.0), "c": (-9.0, 9.0), "y": (0.0, 6.0)})
    assert bool(found.absorbed) is absorbed
    quantized = {value.name for value in found.params}
    assert quantized == ({"x", "y"} if absorbed else {"x", "c"})


def test_a_clamp_stays_where_somebody_else_reads_what_is_before_it() -> None:
    text = (
        "g (float[1,1,2,2] x) => (float[1,1,2,2] y, float[1,1,2,2] z) <" + W + ">"
        "{ c = Conv (x, w) y = Relu (c) z = Neg (c) }"
    )
    found, _ = placed(text, {"x": (-1.0, 1.0), "c": (-1.0, 1.0), "y": (0.0, 1.0)})
    assert found.absorbed == {}


def test_symmetric_zero_points_cannot_stand_for_a_relu() -> None:
    text = "g (float[1,1,2,2] x) => (float[1,1,2,2] y) <" + W + ">{ c = Conv (x, w) y = Relu (c) }"
    plan = Plan(activation=Scheme("int8", symmetric=True))
    ranges = {"x": (-1.0, 1.0), "c": (-1.0, 1.0), "y": (0.0, 1.0)}
    found, _ = placed(text, ranges, plan)
    assert found.absorbed == {}
    assert {params.zero_point for params in found.params.values()} == {0}


def test_a_residual_with_one_float_side_is_quantized_on_both() -> None:
    text = (
        "g (float[1,1,2,2] x) => (float[1,1,2,2] y) <" + W + ", float[1,1,1,1] v = {1.0}>"
        "{ e = Erf (x) c = Conv (x, w) s = Add (c, e) y = Conv (s, v) }"
    )
    found, _ = placed(text, dict.fromkeys("xecsy", (-1.0, 1.0)))
    assert integer(found) == ["Conv", "Add", "Conv"]
    assert {v.name for v in found.params} == {"x", "c", "e", "s", "y"}
    assert {v.name for v in found.after} == {"c", "s", "y"}


def test_keeping_a_node_float_frees_its_neighbours() -> None:
    text = (
        "g (float[1,1,2,2] x) => (float[1,1,2,2] z) <" + W + ", float[1,1,1,1] v = {1.0}>"
        "{ c = Conv (x, w) s = Add (c, c) y = Conv (s, v) z = Neg (y) }"
    )
    found, _ = placed(text, dict.fromkeys("xcsy", (-1.0, 1.0)), None, "Conv_3")
    assert integer(found) == ["Conv"]
    reasons = {node.name: code for node, (code, _) in found.reasons.items()}
    assert reasons == {"Conv_3": "kept-float", "Add_2": "no-integer-reader"}


def test_values_to_observe_are_named_once_and_hold_no_weights() -> None:
    text = (
        "g (float[1,1,2,2] x) => (float[1,1,2,2] y) <" + W + ">"
        "{ c = Conv (x, w) s = Add (c, x) n = Neg (s) y = Relu (n) }"
    )
    _, model = placed(text, {})
    names = [value.name for value in observed_values(model, frozenset(RULES))]
    assert names == ["x", "c", "s", "n", "y"]


def test_what_is_only_gated_by_its_own_sigmoid() -> None:
    text = "g (float[4] x, float[4] u) => (float[4] y, float[4] z)"
    _, model = placed(
        text + "{ s = Sigmoid (x) y = Mul (x, s) t = Sigmoid (u) z = Mul (t, y) }", {}
    )
    assert [is_gated(value) for value in model.graph.inputs] == [True, False]


def test_a_join_with_negative_numbers_must_not_undo_a_relu() -> None:
    """One scale over both would need a zero point that lets negative results through."""
    text = (
        "g (float[1,1,2,2] x) => (float[1,1,2,2] y) <" + W + ", float[1,2,1,1] v = {1.0, 1.0}>"
        "{ c = Conv (x, w) r = Relu (c) m = MaxPool <kernel_shape = [1, 1]> (r) d = Conv (x, w)"
        " j = Concat <axis = 1> (m, d) y = Conv (j, v) }"
    )
    ranges = {"x": (-1.0, 1.0), "c": (-4.0, 4.0), "r": (0.0, 4.0), "m": (0.0, 4.0)}
    ranges |= {"d": (-4.0, 4.0), "j": (-4.0, 4.0), "y": (-1.0, 1.0)}
    found, _ = placed(text, ranges)
    params = {value.name: params for value, params in found.params.items()}
    assert len(found.absorbed) == 1
    assert params["r"] == params["m"]
    assert params["r"].zero_point == 0
    assert params["j"] == params["d"] != params["m"]


def test_a_range_beyond_the_clamp_keeps_the_clamp() -> None:
    text = "g (float[1,1,2,2] x) => (float[1,1,2,2] y) <" + W + ">{ c = Conv (x, w) y = Relu (c) }"
    found, _ = placed(text, dict.fromkeys("xcy", (-1.0, 1.0)))
    assert found.absorbed == {}
