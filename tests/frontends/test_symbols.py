"""Names and bounds of the dimensions that a model leaves open."""

import onnx
import pytest
from onnx import TensorProto, helper

from graphopt.errors import OptionError
from graphopt.frontends.onnx_loader import load_onnx
from graphopt.ir.dims import Bounds
from graphopt.ir.program import dims_of
from tests.frontends.hostile_base import parse, plain


def with_dims(*dims: int | str | None) -> onnx.ModelProto:
    model = plain()
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, dims))
    return model


@pytest.mark.parametrize(
    ("dims", "expected", "bounded"),
    [
        ((2, 3), "(2, 3)", []),
        ((0, 3), "(0, 3)", []),
        (("batch", "N", "unk__0", "s77"), "(batch, N, unk__0, s77)", None),
        ((None, None), "(x_0, x_1)", ["x_0", "x_1"]),
        ((-1, -1, -7), "(x_0, x_1, x_2)", ["x_0", "x_1", "x_2"]),
        (("?", "?"), "(x_0, x_1)", ["x_0", "x_1"]),
        (("-1", "-1", "12", "None", ""), "(x_0, x_1, x_2, x_3, x_4)", None),
        (("batch size", "batch size", "π"), "(x_0, x_0, x_2)", ["x_0", "x_2"]),
        (("for", "a.b", "1x", "a b + 1"), "(x_0, x_1, x_2, x_3)", None),
        (("x_0", None, "x_1"), "(x_0, x_1_2, x_1)", ["x_0", "x_1_2", "x_1"]),
        (("2*n", "n + 1", "n//2"), "(2*n, n + 1, (n // 2))", ["n"]),
        (("max(a, b)", "a - a"), "(max(a, b), x_1)", ["a", "b", "x_1"]),
    ],
)
def test_open_dimensions_get_a_name(
    dims: tuple[int | str | None, ...], expected: str, bounded: list[str] | None
) -> None:
    program = load_onnx(with_dims(*dims))
    found = dims_of(program.graph.inputs[0])
    assert found is not None
    assert "(" + ", ".join(str(dim) for dim in found) + ")" == expected
    if bounded is not None:
        assert list(program.bounds) == bounded
    assert set(program.bounds.values()) <= {Bounds(0, None)}
    kept = sum(isinstance(dim, int) and dim >= 0 for dim in dims)
    renamed = sum(name.startswith("x_") for name in program.bounds if name not in dims)
    assert kept + renamed == 0 or len(program.notes) >= renamed


def test_the_same_text_is_the_same_dimension_everywhere() -> None:
    model = with_dims("batch size", 2)
    for info in (model.graph.output[0], model.graph.value_info.add(name="t")):
        info.CopyFrom(
            helper.make_tensor_value_info(info.name, TensorProto.FLOAT, ["batch size", 2])
        )
    program = load_onnx(model)
    shapes = {str(value.shape) for node in program.graph for value in node.outputs}
    assert shapes == {"[x_0,2]"}
    assert program.notes == ["dimension 0 of input 'x', called 'batch size', is called 'x_0' here"]


def test_the_name_of_an_input_becomes_a_symbol_that_is_an_identifier() -> None:
    model = parse("g (float[2] x) => (float[2] y) { y = Abs (x) }")
    for graph_value in (model.graph.input[0],):
        graph_value.CopyFrom(helper.make_tensor_value_info("net/in:0", 1, [None, "net_in_0_0"]))
    model.graph.node[0].input[0] = "net/in:0"
    assert list(load_onnx(model).bounds) == ["net_in_0_0_2", "net_in_0_0"]


def test_a_negative_size_inside_is_forgotten() -> None:
    model = plain()
    model.graph.value_info.append(helper.make_tensor_value_info("t", TensorProto.FLOAT, [-1, 3]))
    program = load_onnx(model)
    assert dims_of(program.graph[0].outputs[0]) is None
    assert program.bounds == {}


def test_bounds_of_the_caller() -> None:
    model = with_dims("batch", "free text", None)
    given = {"batch": Bounds(1, 8), "free text": Bounds(2, 2), "x_2": Bounds(0, None)}
    assert load_onnx(model, bounds=given).bounds == {
        "batch": Bounds(1, 8),
        "x_1": Bounds(2, 2),
        "x_2": Bounds(0, None),
    }
    with pytest.raises(OptionError, match="'batsh'") as caught:
        load_onnx(model, bounds={"batsh": Bounds(1, 2)})
    assert caught.value.code == "dimension-unknown"
    assert caught.value.hint == "did you mean 'batch'?"
    for limits in (Bounds(3, 2), Bounds(-1, 2)):
        with pytest.raises(OptionError) as caught:
            load_onnx(model, bounds={"batch": limits})
        assert caught.value.code == "bounds-empty"


def test_ranges_that_torch_left_in_the_model() -> None:
    model = with_dims("s77", "s94", "batch", "u0")
    model.graph.metadata_props.add(
        key="pkg.torch.export.ExportedProgram.range_constraints",
        value="{s77: VR[1, 8], s94: VR[0, int_oo], s1: VR[2, 3], u0: VR[-int_oo, 5], x: VR[9, 1]}",
    )
    expected = {
        "s77": Bounds(1, 8),
        "s94": Bounds(0, None),
        "batch": Bounds(0, None),
        "u0": Bounds(0, 5),
    }
    assert load_onnx(model).bounds == expected
    assert load_onnx(model, bounds={"s77": Bounds(2, 4)}).bounds["s77"] == Bounds(2, 4)
