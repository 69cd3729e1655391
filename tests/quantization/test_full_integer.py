"""Placement for devices without float kernels: shared scales, conversions, refusals."""

import onnx_ir as ir
import pytest

from graphopt.errors import UnsupportedError
from graphopt.ir.program import Program
from graphopt.ir.shapes import infer_shapes
from graphopt.quantization.description import Description, Plan, operators_for
from graphopt.quantization.full_integer import require_integer_forms
from graphopt.quantization.placed import Placement
from graphopt.quantization.placement import observed_values, place
from graphopt.quantization.ranges import Params, Scheme, params_for
from graphopt.quantization.rules import DEFAULT_OPERATORS, RULES
from tests.passes.graphs import graph

INT8 = Scheme("int8")
UNIT = (-1.0, 1.0)


def plan_with(*operators: str, **fields: object) -> Plan:
    known = operators_for(operators, full_integer=True)
    return Plan(activation=INT8, operators=known, full_integer=True, **fields)  # type: ignore[arg-type]


def placed(
    text: str, ranges: dict[str, tuple[float, float]], *keep: str, plan: Plan | None = None
) -> tuple[Placement, dict[str, ir.Value]]:
    model = graph(text)
    infer_shapes(Program(model))
    found = place(model, Description(ranges), plan or plan_with(), frozenset(keep))
    values = [*model.graph.inputs, *(v for node in model.graph for v in node.outputs)]
    return found, {value.name or "": value for value in values}


def scales(found: Placement, values: dict[str, ir.Value], names: str) -> list[Params]:
    return [found.params[values[name]] for name in names.split()]


def test_rows_of_integer_devices_change_nothing_for_onnxruntime() -> None:
    expected = tuple(name for name in RULES if name != "Softmax")
    assert expected == DEFAULT_OPERATORS
    assert "Tanh" not in RULES
    assert "Sub" not in RULES


def test_what_moves_shares_one_scale_and_what_computes_has_its_own() -> None:
    text = (
        "g (float[1,2,4,4] x) => (float[1,16] y)"
        "{ m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x) t = Transpose (m)"
        " n = Neg (t) a = AveragePool <kernel_shape = [1, 1]> (n) y = Reshape (a, s) }"
    ).replace("x) =>", "x, int64[2] s) =>")
    known = {"x": (-2.0, 6.0), "m": (0.0, 3.0), "t": (0.0, 3.0), "n": UNIT, "a": UNIT, "y": UNIT}
    found, values = placed(text, known)
    assert scales(found, values, "x m t") == [params_for(-2.0, 6.0, INT8)] * 3
    assert scales(found, values, "n a y") == [params_for(-1.0, 1.0, INT8)] * 3
    assert found.converted == {}


def test_a_softmax_dictates_the_scale_of_what_moves_behind_it() -> None:
    text = "g (float[1,4] x) => (float[4,1] y) { s = Softmax (x) y = Transpose (s) }"
    found, values = placed(text, {"x": UNIT, "s": (0.0, 0.4), "y": (0.0, 0.4)})
    assert scales(found, values, "s y") == [Params(1 / 256, -128)] * 2


def test_inputs_of_a_concat_share_its_scale() -> None:
    text = (
        "g (float[1,4] x) => (float[1,8] y){ a = Neg (x) b = Abs (x) y = Concat <axis = 1> (a, b) }"
    )
    found, values = placed(text, {"x": UNIT, "a": (-8.0, 1.0), "b": (0.0, 2.0), "y": (-8.0, 2.0)})
    assert scales(found, values, "a b y") == [params_for(-8.0, 2.0, INT8)] * 3
    assert found.converted == {}


def test_a_narrow_input_that_others_read_keeps_its_scale_and_is_converted() -> None:
    text = (
        "g (float[1,4] x) => (float[1,8] y, float[1,4] z)"
        "{ a = Neg (x) b = Abs (x) y = Concat <axis = 1> (a, b) z = Neg (b) }"
    )
    known = {"x": UNIT, "a": (-8.0, 1.0), "b": (0.0, 1.0), "y": (-8.0, 1.0), "z": UNIT}
    found, values = placed(text, known)
    assert scales(found, values, "b") == [params_for(0.0, 1.0, INT8)]
    reader = values["y"].producer()
    assert found.converted == {(reader, 1): params_for(-8.0, 1.0, INT8)}


def test_an_absorbed_relu_keeps_its_range_in_a_concat_with_negative_numbers() -> None:
    text = (
        "g (float[1,1,2,2] x) => (float[1,2,2,2] y) <float[1,1,1,1] w = {1.0}>"
        "{ c = Conv (x, w) r = Relu (c) y = Concat <axis = 1> (r, x) }"
    )
    known = {"x": (-4.0, 4.0), "c": UNIT, "r": (0.0, 4.0), "y": (-4.0, 4.0)}
    found, values = placed(text, known)
    assert [clamp.op_type for clamp in found.absorbed] == ["Relu"]
    # In the scale of the others the convolution would not saturate at zero.
    assert found.params[values["r"]] == params_for(0.0, 4.0, INT8)
    assert found.converted == {(values["y"].producer(), 0): params_for(-4.0, 4.0, INT8)}


def test_constants_take_the_scale_of_what_they_are_joined_with() -> None:
    text = (
        "g (float[1,2] x) => (float[1,4] y) <float[1,2] k = {0.5, -2.0}>"
        "{ s = Sigmoid (x) y = Concat <axis = 1> (s, k) }"
    )
    found, values = placed(text, {"x": UNIT, "s": (0.0, 1.0), "y": (-2.0, 1.0)})
    constant = next(value for value in found.params if value.name == "k")
    assert found.params[constant] == found.params[values["y"]] == params_for(-2.0, 1.0, INT8)
    assert [index for _, index in found.converted] == [0]


def test_joined_values_that_all_have_one_dictated_scale_keep_it() -> None:
    text = (
        "g (float[1,2] x) => (float[1,4] y)"
        "{ s = Sigmoid (x) t = Sigmoid (s) y = Concat <axis = 1> (s, t) }"
    )
    found, values = placed(text, {"x": UNIT, "s": (0.0, 1.0), "t": (0.0, 1.0), "y": (0.0, 1.0)})
    assert scales(found, values, "s t y") == [Params(1 / 256, -128)] * 3
    assert found.converted == {}


def test_clamps_that_nothing_absorbs_have_kernels() -> None:
    text = (
        "g (float[1,4] x) => (float[1,4] y, float[1,4] z) <float lo = {0.0}, float hi = {1.0}>"
        "{ y = Relu (x) z = Clip (x, lo, hi) }"
    )
    found, values = placed(text, {"x": (-4.0, 4.0), "y": (0.0, 4.0), "z": (0.0, 1.0)})
    assert [node.op_type for node in found.integer] == ["Relu", "Clip"]
    assert found.params[values["y"]] == params_for(0.0, 4.0, INT8)
    assert found.params[values["z"]] == found.params[values["x"]]


def test_a_product_of_two_computed_factors_has_two_inputs_and_a_result() -> None:
    text = "g (float[2,3,4] x, float[2,4,5] y) => (float[2,3,5] z) { z = MatMul (x, y) }"
    found, values = placed(text, {"x": UNIT, "y": (-2.0, 2.0), "z": (-8.0, 8.0)})
    assert [rule.kind for rule in found.integer.values()] == ["compute"]
    assert scales(found, values, "x y z") == [
        params_for(-bound, bound, INT8) for bound in (1.0, 2.0, 8.0)
    ]


def test_labels_are_integers_already() -> None:
    text = "g (float[1,4] x) => (int64[1,1] y) { y = ArgMax <axis = 1> (x) }"
    found, values = placed(text, {"x": UNIT})
    assert list(found.params) == [values["x"]]
    assert found.after == set()


def test_nodes_that_compute_no_floats_are_left_alone() -> None:
    text = "g (int64[4] i, float[4,2] x) => (float[4,2] y){ j = Mul (i, i) y = Gather (x, j) }"
    found, _ = placed(text, {"x": UNIT, "y": UNIT}, plan=plan_with("Gather"))
    assert [node.op_type for node in found.integer] == ["Gather"]


def test_what_stays_float_to_measure_the_others() -> None:
    text = "g (float[1,4] x) => (float[1,4] y) { a = Neg (x) b = Abs (a) y = Neg (b) }"
    known = dict.fromkeys("xaby", UNIT)
    found, values = placed(text, known, "Neg_1", "Neg_3")
    assert [node.name for node in found.integer] == ["Abs_2"]
    assert set(found.params) == {values["a"], values["b"]}
    assert found.after == {values["b"]}


def test_every_float_of_the_graph_is_observed() -> None:
    model = graph(
        "g (float[1,4] x) => (float[1,4] y) <float[4] k = {1.0, 2.0, 3.0, 4.0}>"
        "{ a = Tanh (x) b = Sub (a, k) y = Identity (b) }"
    )
    infer_shapes(Program(model))
    observed = observed_values(model, plan_with().operators)
    assert [value.name for value in observed] == ["x", "a", "b", "y"]


def test_a_refusal_names_the_first_twenty_and_counts_the_rest() -> None:
    steps = " ".join(f"a{i + 1} = Cosh (a{i})" for i in range(23))
    text = f"g (float[1,4] a0) => (float[1,4] y) {{ {steps} n = Neg (a23) y = Erf (n) }}"
    model = graph(text)
    infer_shapes(Program(model))
    with pytest.raises(UnsupportedError) as caught:
        require_integer_forms(model, plan_with("Neg"), "target 'a'")
    error = caught.value
    assert error.code == "full-integer-operator"
    assert error.message.startswith("24 nodes have no integer form on target 'a':")
    assert "'Cosh_20' (Cosh): no integer kernel" in error.message
    assert "'Cosh_21'" not in error.message
    assert "and 4 more" in error.message
    assert len(error.details["nodes"]) == 24
    assert error.details["nodes"][-1] == {
        "node": "Erf_25",
        "operator": "Erf",
        "reason": "no integer kernel",
    }
    assert error.hint is not None
    assert "without Cosh, Erf" in error.hint


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "g (float[1,2,2,2] x, float[1,2,1,1] w) => (float[1,1,2,2] y) { y = Conv (x, w) }",
            "its weights are not constants",
        ),
        (
            (
                "g (float[2,2] x, float[2] b) => (float[2,2] y)"
                "<float[2,2] w = {1.0, 2.0, 3.0, 4.0}> { y = Gemm (x, w, b) }"
            ),
            "its bias is computed",
        ),
        (
            (
                "g (float[2,2] x) => (float[2,2] y) <float[2,2] w = {1.0, 2.0, 3.0, 4.0},"
                " float[2,2] b = {1.0, 2.0, 3.0, 4.0}> { y = Gemm (x, w, b) }"
            ),
            "its bias is not one number for each channel",
        ),
        ("g (float16[2] x) => (float16[2] y) { y = Neg (x) }", "it reads 'x', which is float16"),
        (
            "g (float[2] x) => (int64[2] y) { y = Cast <to = 7> (x) }",
            "no integer kernel",
        ),
        (
            (
                "g (float[1,1,4,4] x) => (float[1,1,8,8] y) <float[4] r = {1.0, 1.0, 2.0, 2.0}>"
                '{ y = Resize <mode = "cubic"> (x, , r) }'
            ),
            "cubic interpolation",
        ),
        (
            (
                "g (bool c, float[2] x) => (float[2] y) { y = If (c) <then_branch ="
                " a () => (float[2] p) { p = Neg (x) }, else_branch = b () => (float[2] q)"
                " { q = Abs (x) }> }"
            ),
            "it has sub-graphs",
        ),
    ],
)
def test_forms_without_an_integer_kernel(text: str, reason: str) -> None:
    model = graph(text)
    infer_shapes(Program(model))
    with pytest.raises(UnsupportedError) as caught:
        require_integer_forms(model, plan_with())
    assert reason in caught.value.message


def test_a_value_without_a_finite_range_is_refused() -> None:
    with pytest.raises(UnsupportedError) as caught:
        placed("g (float[2] x) => (float[2] y) { y = Exp (x) }", {"x": UNIT})
    assert "'y' was infinite or NaN, or not observed" in caught.value.message
    assert caught.value.hint is not None
    assert "integers have no infinity" in caught.value.hint


def test_a_quantized_model_is_refused_as_a_whole() -> None:
    model = graph(
        "g (int8[2] x) => (float[2] y) <float s = {0.5}, int8 z = {0}>"
        "{ d = DequantizeLinear (x, s, z) y = Neg (d) }"
    )
    infer_shapes(Program(model))
    with pytest.raises(UnsupportedError) as caught:
        require_integer_forms(model, plan_with())
    assert "the model is quantized already" in caught.value.message
