"""The form that plans of integer devices are made of: what is one step, what shares bytes."""

import onnx_ir as ir
import pytest

from graphopt.ir.op_facts import is_known, may_overwrite, views
from graphopt.ir.part_facts import joins
from graphopt.ir.program import Program
from graphopt.ir.shapes import infer_shapes
from graphopt.quantization.planned_form import DOMAIN, planned_form
from tests.passes.graphs import graph

SCALES = "<float s = {0.5}, float t = {0.25}, float s2 = {0.5}, int8 z = {3}, int8 z2 = {3}>"


def form(text: str, in_place_ops: tuple[str, ...] = ()) -> ir.Model:
    model = graph(text)
    infer_shapes(Program(model))
    before = [node.op_type for node in model.graph]
    found = planned_form(model, in_place_ops)
    # The model itself stays as it is.
    assert [node.op_type for node in model.graph] == before
    return found


def kinds(model: ir.Model) -> list[str]:
    return [f"{node.domain}.{node.op_type}".lstrip(".") for node in model.graph]


def unary(op: str, behind: str = "s, z") -> str:
    return (
        f"g (int8[2,3] x) => (int8[2,3] q) {SCALES}"
        f"{{ d = DequantizeLinear (x, s, z) n = {op} (d) q = QuantizeLinear (n, {behind}) }}"
    )


def test_a_kernel_reads_and_makes_integers_and_is_known_for_nothing_else() -> None:
    model = form(unary("Neg"))
    (node,) = model.graph
    assert kinds(model) == [f"{DOMAIN}.Neg"]
    assert [v.name for v in node.inputs if v is not None] == ["x", "s", "z"]
    result = node.outputs[0]
    assert (result.name, result.dtype) == ("q", ir.DataType.INT8)
    assert model.graph.outputs[0] is result
    assert not is_known(node)
    assert may_overwrite(node) == ()


def test_an_operator_that_the_target_names_may_be_written_in_place() -> None:
    (node,) = form(unary("Neg"), ("Neg",)).graph
    assert may_overwrite(node) == ((0, 0),)


@pytest.mark.parametrize("behind", ["s, z", "s2, z2"])
def test_a_view_stays_a_view_where_its_scale_stays(behind: str) -> None:
    (node,) = form(unary("Identity", behind)).graph
    assert views(node) == ((0, 0),)
    assert node.inputs[0] is not None
    assert node.inputs[0].dtype is node.outputs[0].dtype is ir.DataType.INT8


def test_bytes_that_mean_something_else_are_no_view() -> None:
    (node,) = form(unary("Identity", "t, z")).graph
    assert node.domain == DOMAIN
    assert views(node) == ()


def test_pieces_of_a_whole_are_known_and_a_conversion_is_a_step() -> None:
    model = form(
        f"g (int8[2] x, int8[2] y) => (int8[4] q) {SCALES}"
        "{ a = DequantizeLinear (x, s, z) b = DequantizeLinear (y, t, z)"
        " c = QuantizeLinear (b, s, z) e = DequantizeLinear (c, s, z)"
        " n = Concat <axis = 0> (a, e) q = QuantizeLinear (n, s, z) }"
    )
    assert kinds(model) == [f"{DOMAIN}.Requantize", "Concat"]
    concat = model.graph[1]
    assert [v.dtype for v in concat.inputs if v is not None] == [ir.DataType.INT8] * 2
    assert [part.before for part in joins(concat)] == [0, 2]


def test_float_ends_keep_their_conversions() -> None:
    model = form(
        f"g (float[2] x) => (float[2] y) {SCALES}"
        "{ p = QuantizeLinear (x, s, z) d = DequantizeLinear (p, s, z) n = Neg (d)"
        " q = QuantizeLinear (n, s, z) y = DequantizeLinear (q, s, z) }"
    )
    assert kinds(model) == ["QuantizeLinear", f"{DOMAIN}.Neg", "DequantizeLinear"]


@pytest.mark.parametrize(
    "body",
    [
        "d = DequantizeLinear (x, s, z) n = Add (d, f) q = QuantizeLinear (n, s, z)",
        "n = Add (f, f) q = QuantizeLinear (n, s, z)",
        "d = DequantizeLinear (x, s, z) n = Neg (d) m = Abs (n) q = QuantizeLinear (m, s, z)",
    ],
)
def test_floats_that_are_in_memory_stay_floats(body: str) -> None:
    model = form(f"g (int8[2] x, float[2] f) => (int8[2] q) {SCALES} {{ {body} }}")
    assert DOMAIN not in {node.domain for node in model.graph}
    assert "QuantizeLinear" in {node.op_type for node in model.graph}


def test_a_result_that_is_read_twice_is_made_once() -> None:
    model = form(
        f"g (int8[2] x) => (int8[2] q, int8[2] r) {SCALES}"
        "{ d = DequantizeLinear (x, s, z) n = Neg (d) q = QuantizeLinear (n, s, z)"
        " e = DequantizeLinear (q, s, z) m = Abs (e) r = QuantizeLinear (m, t, z) }"
    )
    assert kinds(model) == [f"{DOMAIN}.Neg", f"{DOMAIN}.Abs"]
    first, second = model.graph
    assert second.inputs[0] is first.outputs[0]
