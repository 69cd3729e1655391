"""What counts as a constant, and reading it."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.ir.constants import (
    array_of,
    axes_of,
    constant_of,
    ints_of,
    read_array,
    static_dims,
    tensor_of_constant,
)
from tests.passes.graphs import graph


def value(model: ir.Model, name: str) -> ir.Value:
    known = [*model.graph.inputs, *model.graph.initializers.values()]
    known += [v for node in model.graph for v in node.outputs]
    return next(v for v in known if v.name == name)


MODEL = """g (float[2] x, int64[2] default) => (float[2] y)
    <int64[2] default = {1, 2}, int64[2] k = {3, 4}, bool b = {1}, string[1] s = {"t"}> {
    c = Constant <value_ints = [5]> ()
    y = Neg (x)
}"""


def test_constants() -> None:
    model = graph(MODEL)
    assert constant_of(None) is None
    assert constant_of(value(model, "x")) is None
    assert constant_of(value(model, "y")) is None
    assert constant_of(value(model, "default")) is None  # the caller may feed another
    tensor = constant_of(value(model, "k"))
    assert tensor is not None
    assert tensor.numpy().tolist() == [3, 4]
    assert ints_of(value(model, "k")) == (3, 4)
    assert ints_of(value(model, "b")) == (1,)
    assert ints_of(value(model, "c")) == (5,)
    assert ints_of(value(model, "s")) is None
    assert array_of(value(model, "k"), most_bytes=15) is None
    assert array_of(value(model, "s")) is None


@pytest.mark.parametrize(
    ("attribute", "dtype", "content"),
    [
        ("value = int8[2] {1, 2}", ir.DataType.INT8, [1, 2]),
        ("value_float = 0.5", ir.DataType.FLOAT, 0.5),
        ("value_floats = [0.5]", ir.DataType.FLOAT, [0.5]),
        ("value_int = 7", ir.DataType.INT64, 7),
        ("value_ints = [7, 8]", ir.DataType.INT64, [7, 8]),
    ],
)
def test_forms_of_a_constant_node(attribute: str, dtype: ir.DataType, content: object) -> None:
    model = graph(f"g () => (float y) {{ y = Constant <{attribute}> () }}")
    tensor = tensor_of_constant(model.graph.node(0))
    assert tensor is not None
    assert tensor.dtype is dtype
    assert tensor.numpy().tolist() == content


@pytest.mark.parametrize("attribute", ['value_string = "a"', 'value_strings = ["a"]'])
def test_strings_are_no_dense_tensor(attribute: str) -> None:
    model = graph(f"g () => (string y) {{ y = Constant <{attribute}> () }}")
    assert tensor_of_constant(model.graph.node(0)) is None


def test_reading_closes_the_mapping(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    tensor = ir.ExternalTensor(
        "w.bin", 0, 16, ir.DataType.FLOAT, shape=ir.Shape([4]), name="w", base_dir=tmp_path
    )
    assert read_array(tensor, lambda array: float(array.sum())) == 6.0
    assert tensor.raw is None
    # It can be read again.
    assert read_array(tensor, lambda array: float(array.max())) == 3.0
    assert tensor.raw is None


def test_axes_come_from_an_attribute_or_an_input() -> None:
    model = graph("""g (float[1, 2] x, int64[1] k) => (float[2] y) <int64[1] zero = {0}> {
        a = Squeeze (x, zero) b = Squeeze (x, k) c = Squeeze (x) y = Neg (a) }""")
    nodes = list(model.graph)
    assert [axes_of(node, 1) for node in nodes[:3]] == [(0,), None, None]
    old = ir.node("Squeeze", [model.graph.inputs[0]], {"axes": [0]})
    assert axes_of(old, 1) == (0,)


def test_static_dims() -> None:
    model = graph("g (float[2, 3] x, float[n, 3] u) => (float[2] y) { y = Neg (x) }")
    assert static_dims(model.graph.inputs[0]) == (2, 3)
    assert static_dims(model.graph.inputs[1]) is None
    assert static_dims(None) is None
