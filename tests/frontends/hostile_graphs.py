"""Hostile models whose graphs, tensors or types make no sense."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import InvalidModelError, UnsupportedError
from tests.frontends.hostile_base import (
    CASES,
    HEADER,
    branches,
    hostile,
    model_case,
    parse,
    plain,
    weighted,
    written,
)


def _text_case(name: str, code: str, text: str, header: str = HEADER) -> None:
    CASES.append(
        (name, lambda folder: written(folder, parse(text, header)), InvalidModelError, code)
    )


_text_case("cycle", "graph-cyclic", "g (float x) => (float y) { y = Add (x, t)  t = Abs (y) }")
_text_case("cycle of one", "graph-cyclic", "g (float x) => (float y) { y = Add (x, y) }")
_text_case(
    "cycle far from the output",
    "graph-cyclic",
    "g (float x) => (float y) { y = Abs (x)  a = Add (x, b)  b = Neg (a)  c = Abs (b) }",
)
_text_case(
    "cycle through a nested graph",
    "graph-cyclic",
    "g (bool c, float x) => (float y) { y = If (c) <"
    "then_branch = a () => (float t) { t = Abs (z) },"
    "else_branch = b () => (float u) { u = Neg (x) }>  z = Neg (y) }",
)
_text_case(
    "nested graph that reads its own node",
    "graph-cyclic",
    "g (bool c, float x) => (float y) { y = If (c) <"
    "then_branch = a () => (float t) { t = Abs (y) },"
    "else_branch = b () => (float u) { u = Neg (x) }> }",
)
model_case(
    "value defined twice", "duplicate-value-name", lambda m: m.graph.node.append(m.graph.node[0])
)
model_case(
    "output of a node that is an input",
    "duplicate-value-name",
    lambda m: m.graph.node.add(op_type="Abs", input=["t"], output=["x"]),
)
model_case(
    "one node, one name twice",
    "duplicate-value-name",
    lambda m: m.graph.node.add(op_type="Split", input=["t"], output=["a", "a"]),
)
model_case("input twice", "duplicate-value-name", lambda m: m.graph.input.append(m.graph.input[0]))
model_case(
    "returned twice", "duplicate-value-name", lambda m: m.graph.output.append(m.graph.output[0])
)
model_case(
    "initializer twice",
    "duplicate-value-name",
    lambda m: m.graph.initializer.append(m.graph.initializer[0]),
    weighted,
)
model_case(
    "initializer that a node writes",
    "duplicate-value-name",
    lambda m: m.graph.node.add(op_type="Abs", input=["x"], output=["w"]),
    weighted,
)
model_case(
    "inner name that hides an outer one",
    "duplicate-value-name",
    lambda m: None,
    lambda: branches("x = Neg (c)", "x"),
)
model_case(
    "undefined read",
    "value-undefined",
    lambda m: m.graph.node.add(op_type="Abs", input=["ghost"], output=["z"]),
)
model_case("undefined output", "value-undefined", lambda m: m.graph.output.add(name="ghost"))
model_case(
    "read from a nested graph",
    "value-undefined",
    lambda m: m.graph.node.add(op_type="Abs", input=["t"], output=["z"]),
    lambda: branches("t = Abs (x)", "t"),
)
model_case(
    "nested graph that returns an outer value",
    "value-undefined",
    lambda m: None,
    lambda: branches("t = Abs (x)", "x"),
)
model_case("no outputs", "no-outputs", lambda m: m.graph.ClearField("output"))
model_case("no nodes", "value-undefined", lambda m: m.graph.ClearField("node"))


def _set(field: str, value: Any) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField(field)
        if isinstance(value, list):
            getattr(tensor, field).extend(value)
        elif value is not None:
            setattr(tensor, field, value)

    return change


def _tensor_case(name: str, code: str, *changes: tuple[str, Any]) -> None:
    def change(model: onnx.ModelProto) -> None:
        for field, value in changes:
            _set(field, value)(model)

    error = UnsupportedError if code == "rank-too-large" else InvalidModelError
    model_case(name, code, change, weighted, error)


_tensor_case("initializer with a negative size", "dimension-negative", ("dims", [-4]))
_tensor_case("initializer of -2 x -2", "dimension-negative", ("dims", [-2, -2]))
_tensor_case("initializer of 2**62 x 4", "shape-too-large", ("dims", [2**62, 4]))
_tensor_case("initializer of 2**32 x 2**32", "shape-too-large", ("dims", [2**32, 2**32]))
_tensor_case("overflow behind a zero", "shape-too-large", ("dims", [0, 2**62, 2**62]))
_tensor_case("initializer of more than its data", "initializer-size", ("dims", [1_000_000]))
_tensor_case("initializer of less than its data", "initializer-size", ("dims", [3]))
_tensor_case("initializer without data", "initializer-size", ("raw_data", None))
_tensor_case("initializer with an odd byte", "initializer-size", ("raw_data", b"x" * 17))
_tensor_case("initializer with two kinds of data", "initializer-size", ("float_data", [1.0] * 4))
_tensor_case(
    "initializer with typed data too short",
    "initializer-size",
    ("raw_data", None),
    ("float_data", [1.0]),
)
_tensor_case(
    "initializer with data of another type",
    "initializer-size",
    ("raw_data", None),
    ("int64_data", [1] * 4),
)
_tensor_case("texts as raw data", "initializer-size", ("data_type", TensorProto.STRING))
_tensor_case("element type 99", "element-type-unknown", ("data_type", 99))
_tensor_case("element type 0", "element-type-unknown", ("data_type", 0))
_tensor_case("element type -1", "element-type-unknown", ("data_type", -1))
_tensor_case("hundred dimensions", "rank-too-large", ("dims", [1] * 100))
_tensor_case("initializer without a name", "name-missing", ("name", ""))


@hostile("segment of a tensor", "tensor-segment", UnsupportedError)
def _(folder: Path) -> Path:
    model = weighted()
    model.graph.initializer[0].segment.begin = 0
    return written(folder, model)


@hostile("constant with the wrong size", "initializer-size")
def _(folder: Path) -> Path:
    model = plain()
    tensor = TensorProto(data_type=TensorProto.INT64, dims=[1 << 40], raw_data=bytes(8))
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))
    return written(folder, model)


@hostile("large initializer left in the file, wrong size", "initializer-size")
def _(folder: Path) -> Path:
    model = parse("g (float[9] x) => (float[9] y) { y = Add (x, w) }")
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[9], raw_data=bytes(100_000))
    model.graph.initializer.append(tensor)
    return written(folder, model)


def _input_case(name: str, code: str, change: Callable[[onnx.ValueInfoProto], Any]) -> None:
    unsupported = ("value-type", "rank-too-large")
    error = UnsupportedError if code in unsupported else InvalidModelError
    model_case(name, code, lambda m: change(m.graph.input[0]), error=error)


def _dims(*dims: int) -> Callable[[onnx.ValueInfoProto], None]:
    def change(info: onnx.ValueInfoProto) -> None:
        info.CopyFrom(helper.make_tensor_value_info(info.name, TensorProto.FLOAT, dims))

    return change


_input_case("input of 2**40 x 2**40", "shape-too-large", _dims(2**40, 2**40))
_input_case("input of hundred dimensions", "rank-too-large", _dims(*[1] * 100))
_input_case("input without a type", "type-missing", lambda i: i.ClearField("type"))
_input_case(
    "input of element type 99",
    "element-type-unknown",
    lambda i: setattr(i.type.tensor_type, "elem_type", 99),
)
_input_case(
    "input of element type 0",
    "element-type-unknown",
    lambda i: setattr(i.type.tensor_type, "elem_type", 0),
)
_input_case(
    "input that is a map",
    "value-type",
    lambda i: i.type.CopyFrom(
        helper.make_map_type_proto(
            TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
        )
    ),
)
_input_case(
    "input that is sparse",
    "value-type",
    lambda i: i.type.CopyFrom(helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, [2])),
)
_input_case(
    "sequence of nothing",
    "type-missing",
    lambda i: i.type.CopyFrom(onnx.TypeProto(sequence_type=onnx.TypeProto.Sequence())),
)
_input_case(
    "dimension with a control character",
    "name-control-character",
    lambda i: setattr(i.type.tensor_type.shape.dim[0], "dim_param", "n\x1b[2J"),
)
model_case(
    "value of 2**62 x 2**62",
    "shape-too-large",
    lambda m: m.graph.value_info.append(
        helper.make_tensor_value_info("t", TensorProto.FLOAT, [2**62, 2**62])
    ),
)
model_case(
    "initializer that contradicts its input",
    "initializer-contradicts-input",
    lambda m: m.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [5])),
    weighted,
)
model_case(
    "sparse initializer",
    "sparse-tensor",
    lambda m: m.graph.sparse_initializer.append(
        helper.make_sparse_tensor(
            numpy_helper.from_array(np.ones(1, np.float32), "w"),
            numpy_helper.from_array(np.zeros(1, np.int64), "i"),
            [4],
        )
    ),
    error=UnsupportedError,
)
