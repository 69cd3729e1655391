"""The evaluator of fold-constants against ONNX's own reference implementation."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from graphopt.ir.constants import constant_of
from graphopt.passes._evaluate import _ARITHMETIC, evaluate, is_evaluable, is_rounded
from graphopt.passes._evaluate_moves import MOVES, NotComputableError
from graphopt.passes._result_size import most_elements

Array = npt.NDArray[Any]
F = np.float32
FLOATS = np.array([[-2.5, -0.0, 0.5], [1.5, 2.5, 3.25]], dtype=F)
POSITIVE = np.array([[0.25, 1.0, 2.0], [3.0, 5.0, 9.0]], dtype=F)
INTS = np.array([[7, -7, 8], [-8, 3, -1]], dtype=np.int64)
SMALL = np.array([[2, 2, 3], [3, -2, 1]], dtype=np.int64)
BOOLS = np.array([[True, False, True], [False, True, True]])
CUBE = np.arange(24, dtype=F).reshape(2, 3, 4)


def ints(*numbers: int) -> Array:
    return np.array(numbers, dtype=np.int64)


# Operator, inputs (None is left out), attributes, number of outputs.
CASES: list[tuple[str, list[Any], dict[str, Any], int]] = [
    ("Abs", [INTS], {}, 1),
    ("Add", [FLOATS, POSITIVE], {}, 1),
    ("Add", [INTS, ints(1)], {}, 1),
    ("And", [BOOLS, ~BOOLS], {}, 1),
    ("ArgMax", [FLOATS], {"axis": 1}, 1),
    ("ArgMin", [FLOATS], {"axis": -1, "keepdims": 0}, 1),
    ("Cast", [FLOATS], {"to": 7}, 1),
    ("Cast", [INTS], {"to": 1}, 1),
    ("Cast", [FLOATS], {"to": 9}, 1),
    ("Cast", [FLOATS], {"to": 10}, 1),
    ("Cast", [FLOATS], {"to": 16}, 1),
    ("Cast", [BOOLS], {"to": 6}, 1),
    ("Ceil", [FLOATS], {}, 1),
    ("Clip", [INTS, np.int64(-3), np.int64(5)], {}, 1),
    ("Clip", [INTS, None, np.int64(5)], {}, 1),
    ("Cos", [FLOATS], {}, 1),
    ("CumSum", [INTS, np.int64(1)], {}, 1),
    ("Div", [FLOATS, POSITIVE], {}, 1),
    ("Div", [POSITIVE, np.array(0, F)], {}, 1),
    ("Equal", [INTS, SMALL], {}, 1),
    ("Exp", [FLOATS], {}, 1),
    ("Floor", [FLOATS], {}, 1),
    ("Greater", [INTS, SMALL], {}, 1),
    ("GreaterOrEqual", [FLOATS, FLOATS], {}, 1),
    ("Less", [FLOATS, POSITIVE], {}, 1),
    ("LessOrEqual", [FLOATS, FLOATS], {}, 1),
    ("Log", [POSITIVE], {}, 1),
    ("Max", [FLOATS, POSITIVE, np.array(0.75, F)], {}, 1),
    ("Min", [INTS, SMALL], {}, 1),
    ("Mod", [INTS, SMALL], {}, 1),
    ("Mod", [FLOATS, POSITIVE], {"fmod": 1}, 1),
    ("Mul", [INTS, SMALL], {}, 1),
    ("Neg", [FLOATS], {}, 1),
    ("Not", [BOOLS], {}, 1),
    ("Or", [BOOLS, ~BOOLS], {}, 1),
    ("Pow", [POSITIVE, np.array(0.5, F)], {}, 1),
    ("Pow", [INTS, ints(2)], {}, 1),
    ("Range", [np.int64(2), np.int64(11), np.int64(3)], {}, 1),
    ("Range", [np.int64(5), np.int64(0), np.int64(-2)], {}, 1),
    ("Range", [np.int64(5), np.int64(0), np.int64(2)], {}, 1),
    ("Range", [F(0), F(1), F(0.25)], {}, 1),
    ("Reciprocal", [POSITIVE], {}, 1),
    ("ReduceMax", [CUBE, ints(0, 2)], {"keepdims": 0}, 1),
    ("ReduceMean", [CUBE, ints(1)], {}, 1),
    ("ReduceMin", [INTS], {}, 1),
    ("ReduceProd", [INTS, ints(1)], {}, 1),
    ("ReduceSum", [CUBE, ints(-1)], {}, 1),
    ("ReduceSum", [INTS.astype(np.int32)], {"noop_with_empty_axes": 1}, 1),
    ("Round", [FLOATS], {}, 1),
    ("Sigmoid", [FLOATS], {}, 1),
    ("Sign", [FLOATS], {}, 1),
    ("Sin", [FLOATS], {}, 1),
    ("Sqrt", [POSITIVE], {}, 1),
    ("Sub", [INTS.astype(np.uint8), SMALL.astype(np.uint8)], {}, 1),
    ("Tanh", [FLOATS], {}, 1),
    ("Where", [BOOLS, FLOATS, np.array(7, F)], {}, 1),
    ("Xor", [BOOLS, ~BOOLS], {}, 1),
    ("Concat", [FLOATS, POSITIVE], {"axis": -1}, 1),
    ("ConstantOfShape", [ints(2, 0, 3)], {}, 1),
    ("ConstantOfShape", [ints(2)], {"value": onnx.helper.make_tensor("v", 7, [1], [5])}, 1),
    ("Expand", [FLOATS, ints(2, 1, 1)], {}, 1),
    ("Flatten", [CUBE], {"axis": 2}, 1),
    ("Flatten", [CUBE], {"axis": -1}, 1),
    ("Gather", [CUBE, np.array([[1, -1]])], {"axis": 1}, 1),
    ("Gather", [INTS, np.int64(1)], {}, 1),
    ("GatherElements", [INTS, np.array([[0, -1], [1, 1]])], {"axis": 1}, 1),
    ("GatherND", [CUBE, np.array([[0, 1], [-1, -1]])], {}, 1),
    ("Identity", [CUBE], {}, 1),
    ("NonZero", [BOOLS], {}, 1),
    ("OneHot", [np.array([0, -1, 3, 9]), np.int64(4), np.array([-1, 1], F)], {}, 1),
    ("OneHot", [np.array([[0, 1]]), np.int64(3), np.array([0, 5])], {"axis": 1}, 1),
    ("Pad", [FLOATS, ints(1, 0, 0, 2), np.array(9, F)], {}, 1),
    ("Pad", [FLOATS, ints(1, 2), None, ints(-1)], {}, 1),
    ("Reshape", [CUBE, ints(0, -1, 2)], {}, 1),
    ("Reshape", [CUBE[:0], ints(0, 12)], {"allowzero": 1}, 1),
    ("ScatterND", [CUBE, np.array([[0], [-1]]), CUBE[:, ::-1] * 2], {}, 1),
    ("Shape", [CUBE], {"start": 1}, 1),
    ("Shape", [CUBE], {"start": -2, "end": -1}, 1),
    ("Size", [CUBE], {}, 1),
    ("Slice", [CUBE, ints(0, -1), ints(9, -9), ints(1, 2), ints(2, -2)], {}, 1),
    ("Slice", [CUBE, ints(1), ints(2**62)], {}, 1),
    ("Split", [CUBE, ints(1, 3)], {"axis": 2}, 2),
    ("Split", [np.arange(7)], {"num_outputs": 3}, 3),
    ("Squeeze", [CUBE[:1]], {}, 1),
    ("Squeeze", [CUBE[:1, :1], ints(-2)], {}, 1),
    ("Tile", [FLOATS, ints(2, 1)], {}, 1),
    ("Transpose", [CUBE], {}, 1),
    ("Transpose", [CUBE], {"perm": [1, 2, 0]}, 1),
    ("Trilu", [CUBE, np.int64(1)], {}, 1),
    ("Trilu", [CUBE], {"upper": 0}, 1),
    ("Unsqueeze", [FLOATS, ints(-1, 0)], {}, 1),
]


def constant_node(op: str, inputs: list[Any], attributes: dict[str, Any], count: int) -> ir.Node:
    """Return a node of a graph whose inputs are initializers."""
    values: list[ir.Value | None] = []
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 18})
    for index, array in enumerate(inputs):
        if array is None:
            values.append(None)
            continue
        tensor = ir.Tensor(np.asarray(array), name=f"x{index}")
        value = ir.Value(name=f"x{index}", const_value=tensor, shape=ir.Shape(tensor.shape.numpy()))
        value.type = ir.TensorType(tensor.dtype)
        graph.register_initializer(value)
        values.append(value)
    plain = {
        name: ir.serde.deserialize_tensor(value) if isinstance(value, onnx.TensorProto) else value
        for name, value in attributes.items()
    }
    node = ir.node(op, values, plain, num_outputs=count)
    graph.append(node)
    return node


def expected(op: str, inputs: list[Any], attributes: dict[str, Any], count: int) -> list[Array]:
    names = ["" if array is None else f"x{i}" for i, array in enumerate(inputs)]
    node = onnx.helper.make_node(op, names, [f"y{i}" for i in range(count)], **attributes)
    feeds = {f"x{i}": np.asarray(a) for i, a in enumerate(inputs) if a is not None}
    infos = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in feeds.items()
    ]
    outputs = [onnx.ValueInfoProto(name=f"y{i}") for i in range(count)]
    graph = onnx.helper.make_graph([node], "g", infos, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    with np.errstate(all="ignore"):
        return list(ReferenceEvaluator(model).run(None, feeds))


IDS = [f"{case[0]}-{i}" for i, case in enumerate(CASES)]


@pytest.mark.parametrize(("op", "inputs", "attributes", "count"), CASES, ids=IDS)
def test_agrees_with_the_reference(
    op: str, inputs: list[Any], attributes: dict[str, Any], count: int
) -> None:
    node = constant_node(op, inputs, attributes, count)
    arrays = [None if array is None else np.asarray(array) for array in inputs]
    got = evaluate(node, arrays)
    wanted = expected(op, inputs, attributes, count)
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        b = np.asarray(b)
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        if is_rounded(node):
            np.testing.assert_allclose(a, b, rtol=3e-7)
        else:
            assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize(("op", "inputs", "attributes", "count"), CASES, ids=IDS)
def test_size_is_told_before(
    op: str, inputs: list[Any], attributes: dict[str, Any], count: int
) -> None:
    node = constant_node(op, inputs, attributes, count)
    arrays = [None if array is None else np.asarray(array) for array in inputs]
    made = sum(array.size for array in evaluate(node, arrays))
    limit = most_elements(node)
    assert limit is not None
    assert made <= limit


@pytest.mark.parametrize(("op", "inputs", "attributes", "count"), CASES, ids=IDS)
def test_results_own_their_memory(
    op: str, inputs: list[Any], attributes: dict[str, Any], count: int
) -> None:
    node = constant_node(op, inputs, attributes, count)
    arrays = [None if array is None else np.array(array) for array in inputs]
    for result in evaluate(node, arrays):
        assert not any(np.shares_memory(result, a) for a in arrays if a is not None and a.size)


def test_every_rule_has_a_case() -> None:
    assert {case[0] for case in CASES} == set(_ARITHMETIC) | set(MOVES)


def test_integer_division_rounds_towards_zero() -> None:
    node = constant_node("Div", [INTS, SMALL], {}, 1)
    assert evaluate(node, [INTS, SMALL])[0].tolist() == [[3, -3, 2], [-2, -1, -1]]


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [
        ("Div", [INTS, ints(0)], {}),
        ("Mod", [INTS, ints(0)], {}),
        ("Cast", [np.array([3e9], F)], {"to": 6}),
        ("Cast", [np.array([-1.0], F)], {"to": 2}),
        ("Cast", [np.array([2.0**63], F)], {"to": 7}),
        ("Cast", [np.array([np.nan], F)], {"to": 7}),
        ("Cast", [FLOATS], {"to": 17}),
        ("Pow", [INTS, ints(-1)], {}),
        ("Gather", [INTS, ints(9)], {}),
        ("Reshape", [INTS, ints(5, 5)], {}),
        ("Concat", [INTS, CUBE.astype(np.int64)], {"axis": 0}),
        ("Clip", [FLOATS, F(0)], {}),
        ("ArgMax", [FLOATS], {"select_last_index": 1}),
        ("ScatterND", [INTS, ints(0).reshape(1, 1), INTS[:1]], {"reduction": "add"}),
        ("GatherND", [CUBE, ints(0, 1).reshape(2, 1)], {"batch_dims": 1}),
        ("Pad", [FLOATS, ints(1, 0, 0, 2)], {"mode": "edge"}),
        ("Pad", [FLOATS, ints(-1, 0, 0, 0)], {}),
        ("Unsqueeze", [FLOATS], {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_defined_is_not_computed(
    op: str, inputs: list[Any], attributes: dict[str, Any]
) -> None:
    node = constant_node(op, inputs, attributes, 1)
    with pytest.raises(NotComputableError):
        evaluate(node, [None if a is None else np.asarray(a) for a in inputs])


@pytest.mark.parametrize(
    ("op", "inputs"),
    [
        ("ConstantOfShape", [ints(10**9, 10**9)]),
        ("Expand", [F(1), ints(10**6, 10**6)]),
        ("Tile", [FLOATS, ints(10**6, 10**6)]),
        ("Range", [np.int64(0), np.int64(10**12), np.int64(1)]),
        ("OneHot", [ints(1), np.int64(10**12), ints(0, 1)]),
        ("Add", [np.ones((1, 200_000), F), np.ones((200_000, 1), F)]),
        ("Pad", [FLOATS, ints(0, 0, 10**6, 10**6)]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_size_of_a_bomb_is_told_without_making_it(op: str, inputs: list[Any]) -> None:
    node = constant_node(op, inputs, {}, 1)
    limit = most_elements(node)
    assert limit is not None
    assert limit >= 10**10


def test_a_malformed_node_has_no_size() -> None:
    assert most_elements(constant_node("Add", [np.ones(3, F), np.ones(2, F)], {}, 1)) is None
    assert most_elements(constant_node("Gather", [INTS], {"axis": 5}, 1)) is None
    assert most_elements(constant_node("Range", [F(0), F(1), F(0)], {}, 1)) is None


def test_other_domains_are_not_evaluated() -> None:
    node = constant_node("Add", [FLOATS, FLOATS], {}, 1)
    assert is_evaluable(node)
    assert constant_of(node.inputs[0]) is not None
    node.domain = "custom"
    assert not is_evaluable(node)
