"""The operator table: against ONNX's own schemas, and case by case."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from graphopt.ir import op_facts
from graphopt.ir.op_facts import (
    has_side_effects,
    is_data_movement,
    is_deterministic,
    is_elementwise,
    is_known,
    may_overwrite,
    optional_outputs,
    views,
)
from tests.passes.graphs import graph

Variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
SCHEMAS = [s for s in onnx.defs.get_all_schemas() if s.domain == ""]
# Marked as not deterministic by ONNX, although nothing in their definition is random.
FUNCTIONS_OF_THEIR_INPUTS = {"AffineGrid"}
WITH_BODIES = {"If", "Loop", "Scan", "SequenceMap"}


def node(op: str, inputs: int = 1, domain: str = "", **attributes: object) -> ir.Node:
    values = [ir.Value(name=f"x{i}") for i in range(inputs)]
    return ir.node(op, values, attributes, domain=domain)  # type: ignore[arg-type]


def facts(text: str, name: str = "y") -> ir.Node:
    """Return the node that makes ``name`` in a graph of ONNX text."""
    for made in graph(text).graph:
        if any(value.name == name for value in made.outputs):
            return made
    raise AssertionError(name)


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda s: s.name)
def test_every_onnx_operator_is_in_the_table(schema: onnx.defs.OpSchema) -> None:
    assert is_known(node(schema.name))
    assert not has_side_effects(node(schema.name))


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda s: s.name)
def test_determinism_agrees_with_onnx(schema: Any) -> None:
    random = schema.node_determinism == onnx.defs.OpSchema.NodeDeterminism.NonDeterministic
    if schema.name in FUNCTIONS_OF_THEIR_INPUTS | WITH_BODIES:
        random = False
    training = schema.name == "Dropout"
    made = node(schema.name, inputs=3 if training else 1)
    assert is_deterministic(made) == (not random)


@pytest.mark.parametrize("name", sorted(op_facts._ONNX))
def test_the_table_names_real_operators(name: str) -> None:
    assert name in {s.name for s in SCHEMAS}


def test_no_operator_is_in_two_kinds() -> None:
    kinds = [op_facts._UNARY, op_facts._BROADCAST, op_facts._MOVES, op_facts._RANDOM]
    kinds += [op_facts._CONDITIONAL, op_facts._OTHERS]
    assert sum(len(kind) for kind in kinds) == len(op_facts._ONNX)


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda s: s.name)
def test_optional_outputs_agree_with_onnx(schema: onnx.defs.OpSchema) -> None:
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    allowed = {i for i, output in enumerate(schema.outputs) if output.option == optional}
    assert set(optional_outputs(node(schema.name))) <= allowed


def test_unknown_operators_are_opaque() -> None:
    made = node("Anything", domain="custom")
    assert not is_known(made)
    assert has_side_effects(made)
    assert not is_deterministic(made)
    assert not is_elementwise(made)
    assert views(made) == ()
    assert may_overwrite(made) == ()
    relu = node("Relu", domain="custom")
    assert not is_elementwise(relu)
    assert may_overwrite(relu) == ()


def test_bodies_decide_for_the_node_that_holds_them() -> None:
    text = """g (float[2] x, bool p) => (float[2] y) {
        y = If (p) <then_branch = a () => (float[2] t) { t = %s (x) },
                    else_branch = b () => (float[2] e) { e = Neg (x) }>
    }"""
    assert is_deterministic(facts(text % "Relu"))
    assert not is_deterministic(facts(text % "RandomNormalLike"))
    head = '<ir_version: 10, opset_import: ["" : 18, "custom" : 1]>'
    assert has_side_effects(facts(head + text % "custom.Log"))
    assert not has_side_effects(facts(text % "RandomNormalLike"))


VIEWS = {
    "Reshape": "y = Reshape (x, s)",
    "Flatten": "y = Flatten (x)",
    "Squeeze": "y = Squeeze (x)",
    "Unsqueeze": "y = Unsqueeze (x, one)",
    "Identity": "y = Identity (x)",
    "Dropout": "y = Dropout (x)",
    "Cast to the same type": "y = Cast <to = 1> (x)",
    "CastLike of the same type": "y = CastLike (x, x)",
    "Concat of one": "y = Concat <axis = 0> (x)",
    "Sum of one": "y = Sum (x)",
    "Transpose of axes of size 1": "y = Transpose <perm = [0, 2, 1]> (x)",
    "Transpose that moves nothing": "y = Transpose <perm = [0, 1, 2]> (u)",
    "Pad by nothing": "y = Pad (x, none)",
}
NO_VIEWS = {
    "Cast to another type": "y = Cast <to = 10> (x)",
    "Transpose": "y = Transpose <perm = [2, 1, 0]> (x)",
    "Transpose of unknown rank": "y = Transpose (u)",
    "Pad": "y = Pad (x, some)",
    "Pad by an input": "y = Pad (x, k)",
    "Dropout that trains": "y = Dropout (x, , yes)",
    "Dropout that may train": "y = Dropout (x, , flag)",
    "Concat of two": "y = Concat <axis = 0> (x, x)",
    "Relu": "y = Relu (x)",
    "Expand of unknown size": "y = Expand (u, s)",
}
FRAME = """g (float[2, 1, n] x, float u, bool flag, int64[6] k) => (float y)
    <int64[1] s = {-1}, int64[1] one = {1}, int64[6] none = {0, 0, 0, 0, 0, 0},
     int64[6] some = {0, 0, 1, 0, 0, 0}, bool yes = {1}> { %s }"""


def unknown(made: ir.Node) -> ir.Node:
    """Take away the shape of ``u``, which the text syntax makes a scalar, and of the result."""
    for value in (*made.inputs, made.outputs[0]):
        if value is not None and value.name in ("u", "y"):
            value.shape = None
    return made


@pytest.mark.parametrize("line", VIEWS.values(), ids=VIEWS.keys())
def test_views(line: str) -> None:
    assert views(unknown(facts(FRAME % line))) == ((0, 0),)


@pytest.mark.parametrize("line", NO_VIEWS.values(), ids=NO_VIEWS.keys())
def test_no_views(line: str) -> None:
    assert views(unknown(facts(FRAME % line))) == ()


SIZED = """g (float[n, 3] x, int64[1] k) => (float[%s] y)
    <int64[1] zero = {0}, int64[1] end = {9}, int64[1] one = {1}, int64[1] back = {-1},
     int64[2] shape = {1, 3}> { %s }"""


@pytest.mark.parametrize(
    ("dims", "line", "is_view"),
    [
        ("n, 3", "y = Slice (x, zero, end, zero, one)", True),
        ("n, 3", "y = Slice (x, zero, end, zero)", True),
        ("m, 3", "y = Slice (x, zero, end, zero, one)", False),
        ("n, 3", "y = Slice (x, back, zero, one, back)", False),
        ("n, 3", "y = Slice (x, zero, end, zero, k)", False),
        ("n, 3", "y = Expand (x, shape)", True),
        ("2, n, 3", "y = Expand (x, shape)", False),
    ],
)
def test_views_by_size(dims: str, line: str, is_view: bool) -> None:
    assert views(facts(SIZED % (dims, line))) == (((0, 0),) if is_view else ())


def test_a_sequence_has_no_view() -> None:
    made = node("Identity")
    source = made.inputs[0]
    assert source is not None
    source.type = ir.SequenceType(ir.TensorType(ir.DataType.FLOAT))
    assert views(made) == ()


PAIRS = """g (float[n, 3] x, float[n, 3] z, float[3] b, float[1, n, 3] w, int32[n, 3] i,
    bool[n, 3] p, float[3] scale, string[n, 3] t) => (%s y) { %s }"""


@pytest.mark.parametrize(
    ("result", "line", "pairs"),
    [
        ("float[n, 3]", "y = Relu (x)", (0,)),
        ("float[n, 3]", "y = Clip (x, b, b)", (0,)),
        ("float[n, 3]", "y = Add (x, z)", (0, 1)),
        ("float[n, 3]", "y = Add (x, b)", (0,)),
        ("float[n, 3]", "y = Add (b, x)", (1,)),
        ("float[n, 3]", "y = Mul (x, x)", (0, 1)),
        ("float[1, n, 3]", "y = Add (x, w)", (0, 1)),
        ("float[n, 3]", "y = Where (p, x, z)", (1, 2)),
        ("float[n, 3]", "y = Max (x, b, z)", (0, 2)),
        ("float[n, 3]", "y = PRelu (x, b)", (0,)),
        ("float[n, 3]", "y = Cast <to = 1> (i)", (0,)),
        ("int64[n, 3]", "y = Cast <to = 7> (i)", ()),
        ("bool[n, 3]", "y = Not (p)", (0,)),
        ("bool[n, 3]", "y = Less (x, z)", ()),
        ("bool[n, 3]", "y = And (p, p)", (0, 1)),
        ("float[n, 3]", "y = BatchNormalization (x, scale, scale, scale, scale)", (0,)),
        ("float[n, 3]", "y = BatchNormalization (scale, scale, b, b, b)", ()),
        ("float[n, 3]", "y = Softmax (x)", ()),
        ("float[n, 3]", "y = CumSum (x, i)", ()),
        ("float[m, 3]", "y = Relu (x)", ()),
        ("int8[n, 3]", "y = QuantizeLinear (x, b)", ()),
        ("float[n, 3]", "y = Identity (x)", ()),
        ("float[n, 3]", "y = Dropout (x)", ()),
        ("string[n, 3]", "y = Identity (t)", ()),
    ],
)
def test_may_overwrite(result: str, line: str, pairs: tuple[int, ...]) -> None:
    made = facts(PAIRS % (result, line))
    assert may_overwrite(made) == tuple((0, index) for index in pairs)


def test_nothing_is_overwritten_where_a_size_or_type_is_unknown() -> None:
    made = facts("g (float[n, 3] x) => (float[n, 3] y) { y = Relu (x) }")
    assert may_overwrite(made) == ((0, 0),)
    made.outputs[0].shape = None
    assert may_overwrite(made) == ()
    made = facts("g (float[n, 3] x) => (float[n, 3] y) { y = Relu (x) }")
    made.outputs[0].type = None
    assert may_overwrite(made) == ()


def test_training_normalization_is_not_overwritten() -> None:
    text = """g (float[2, 3] x, float[3] s) => (float[2, 3] y, float[3] m, float[3] v) {
        y, m, v = BatchNormalization <training_mode = 1> (x, s, s, s, s) }"""
    assert may_overwrite(facts(text)) == ()


def test_kinds() -> None:
    assert is_elementwise(node("Relu"))
    assert is_elementwise(node("Where", 3))
    assert not is_elementwise(node("Softmax"))
    assert is_data_movement(node("Concat"))
    assert not is_data_movement(node("Add", 2))


ATTRIBUTES: dict[str, dict[str, Any]] = {"Cast": {"to": 7}, "BitShift": {"direction": "LEFT"}}
CANDIDATES = (np.float32, np.uint8, np.bool_)


def evaluator(op: str, dtype: type) -> tuple[ReferenceEvaluator, int]:
    """Return an evaluator of one node of ``op``, and the number of its inputs."""
    schema = onnx.defs.get_schema(op)
    count = 2 if schema.inputs[0].option == Variadic else max(1, schema.min_input)
    made = onnx.helper.make_node(
        op, [f"x{i}" for i in range(count)], ["y"], **ATTRIBUTES.get(op, {})
    )
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    inputs = []
    for i in range(count):
        first = onnx.TensorProto.BOOL if op == "Where" and i == 0 else kind
        inputs.append(onnx.helper.make_tensor_value_info(f"x{i}", first, [3, 4]))
    body = onnx.helper.make_graph([made], "g", inputs, [onnx.ValueInfoProto(name="y")])
    return ReferenceEvaluator(onnx.helper.make_model(body)), count


def operands(op: str, count: int, dtype: type) -> dict[str, npt.NDArray[Any]]:
    rng = np.random.default_rng(1)
    arrays = [(rng.random((3, 4)) * 0.8 + 1.1).astype(np.float64) for _ in range(count)]
    if dtype is np.uint8:
        arrays = [np.floor(a * 3) for a in arrays]
    if op in ("Acos", "Asin", "Atanh"):
        arrays = [a / 4 for a in arrays]
    feeds: dict[str, npt.NDArray[Any]] = {f"x{i}": a.astype(dtype) for i, a in enumerate(arrays)}
    if op == "Where":
        feeds["x0"] = rng.random((3, 4)) < 0.5
    return feeds


@pytest.mark.parametrize("op", sorted(op_facts._UNARY | op_facts._BROADCAST))
def test_elementwise_operators_look_at_one_element(op: str) -> None:
    """Change one element of an input: no other element of the output changes."""
    for dtype in CANDIDATES:
        try:
            session, count = evaluator(op, dtype)
            feeds = operands(op, count, dtype)
            before = np.asarray(next(iter(session.run(None, feeds))))
        except (TypeError, RuntimeError, AttributeError):
            continue  # the operator does not take this type
        break
    else:
        pytest.fail(f"no type worked for {op}")
    assert before.shape == (3, 4)
    inputs = 1 if op in op_facts._UNARY else count
    for index in range(inputs):
        for place in ((0, 0), (1, 2)):
            changed = {name: array.copy() for name, array in feeds.items()}
            array = changed[f"x{index}"]
            array[place] = ~array[place] if array.dtype == np.bool_ else array[place] / 2
            with np.errstate(invalid="ignore"):
                after = np.asarray(next(iter(session.run(None, changed))))
            differs: npt.NDArray[np.bool_] = np.not_equal(after, before)
            differs[place] = False
            assert not differs.any()
