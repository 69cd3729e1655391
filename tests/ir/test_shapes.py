"""Inference as a whole: symbols, hints of the file, data-dependent sizes, errors, one node."""

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.errors import InvalidModelError
from graphopt.ir.dims import Bounds, add, symbol
from graphopt.ir.shapes import KnownTensor, infer_shapes
from tests.ir.shape_models import inferred, ints, program, shape_text, shapes, values_of, zeros

N = symbol("n")


def test_symbols_survive_where_onnx_loses_them() -> None:
    text = """g (float[n, 3] x) => (y, z) {
        y = Concat <axis = 0> (x, x)
        rows = Shape <start = 0, end = 1> (y)
        minus = Constant <value_ints = [-1]> ()
        target = Concat <axis = 0> (rows, minus)
        t = Transpose (y)
        z = Reshape (t, target)
    }"""
    assert shapes(text) == {"y": "FLOAT[2*n, 3]", "z": "FLOAT[2*n, 3]"}


def test_reshape_divides_polynomials() -> None:
    assert shapes(
        """g (float[b, n, 4] x, float[b, m, 4] y, int64[2] flat) => (z) {
            joined = Concat <axis = 1> (x, y)
            rows = Shape <start = 0, end = 2> (joined)
            minus = Constant <value_ints = [-1]> ()
            target = Concat <axis = 0> (rows, minus)
            row = Reshape (joined, flat)
            z = Reshape (row, target)
        }""",
        flat=ints(1, -1),
    ) == {"z": "FLOAT[b, m + n, 4]"}


def test_anonymous_input_axes_get_names_and_bounds() -> None:
    subject = program("g (float[n, 3] x) => (y) { y = Relu (x) }")
    (value,) = subject.graph.inputs
    value.shape = ir.Shape([None, ir.SymbolicDim("n"), -1, 3])
    infer_shapes(subject)
    assert shape_text(subject, "y") == "FLOAT[x_dim0, n, x_dim2, 3]"
    assert subject.bounds == {"x_dim0": Bounds(), "n": Bounds(), "x_dim2": Bounds()}


def test_known_bounds_of_an_input_stay() -> None:
    subject, _ = inferred("g (float[n] x) => (y) { y = Relu (x) }", 18, {"n": Bounds(2, 8)})
    assert subject.bounds == {"n": Bounds(2, 8)}


def test_every_initializer_gets_a_shape() -> None:
    subject = program("g (float[2] x, float[5] w) => (y) { y = Relu (x) }", w=zeros(5))
    values_of(subject)["w"].shape = None
    infer_shapes(subject)
    assert shape_text(subject, "w") == "FLOAT[5]"


def test_an_initializer_that_can_be_overridden_is_no_constant() -> None:
    subject = program("g (float[n, 4] x, int64[2] target) => (y) { y = Reshape (x, target) }")
    target = subject.graph.inputs[1]
    target.const_value = ir.tensor(ints(2, -1), name="target")
    subject.graph.register_initializer(target)
    report = infer_shapes(subject)
    assert sorted(report.data_dependent) == ["y_dim0", "y_dim1"]
    # Before IR version 4 every initializer had to be an input.
    old = program("g (float[n, 4] x, int64[2] target) => (y) { y = Reshape (x, target) }")
    old.model.ir_version = 3
    target = old.graph.inputs[1]
    target.const_value = ir.tensor(ints(2, -1), name="target")
    old.graph.register_initializer(target)
    infer_shapes(old)
    assert shape_text(old, "y") == "FLOAT[2, 2*n]"


# What the file declares


def test_a_declaration_is_believed_where_there_is_no_rule() -> None:
    subject, report = inferred(
        '<ir_version: 10, opset_import: ["": 18, "acme": 1]>'
        "g (float[n] x) => (z) <int64[n, k] y> { y = acme.Magic (x)  z = Relu (y) }"
    )
    assert shape_text(subject, "z") == "INT64[n, k]"
    assert report.unresolved == {}
    assert report.data_dependent == {"k": "the file declares it and nothing infers it"}


def test_without_a_rule_and_a_declaration_the_reason_is_given() -> None:
    _, report = inferred(
        '<ir_version: 10, opset_import: ["": 18, "acme": 1]>'
        "g (float[n] x) => (z) { y = acme.Magic (x)  a = Relu (y)  z = Relu (a) }"
    )
    assert report.unresolved == {
        "y": "there is no rule for acme:Magic",
        "a": "its input 'y' is not known: there is no rule for acme:Magic",
        "z": "its input 'a' is not known: there is no rule for acme:Magic",
    }


def test_an_incomplete_declaration_is_not_enough() -> None:
    subject = program(
        '<ir_version: 10, opset_import: ["": 18, "acme": 1]>'
        "g (float[n] x) => (y) { y = acme.Magic (x) }"
    )
    (output,) = subject.graph.outputs
    output.type, output.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([3, None])
    assert infer_shapes(subject).unresolved == {"y": "there is no rule for acme:Magic"}


def test_inference_wins_over_the_declaration_and_says_so() -> None:
    subject, report = inferred(
        "g (float[n, 3] x) => (int32[n, 3] z) <float[7, 4] y> { y = Relu (x)  z = Relu (y) }"
    )
    assert shape_text(subject, "y") == "FLOAT[n, 3]"
    assert shape_text(subject, "z") == "FLOAT[n, 3]"
    assert report.contradictions == [
        "'y': declared [7, 4], inferred [n, 3]",
        "'z': declared INT32, inferred FLOAT",
    ]


def test_a_fixed_size_declared_for_a_symbolic_output_is_a_contradiction() -> None:
    _, report = inferred("g (float[n] x) => (float[4] y) <float[5] t> { t = Relu (x) y = Abs (t) }")
    # In between it may only be the size at which the file was traced.
    assert report.contradictions == ["'y': declared [4], inferred [n]"]


def test_types_shared_by_values_are_not_changed_for_all() -> None:
    subject = program("g (float[2] x) => (y) { y = Cast <to = 7> (x) }")
    subject.graph.outputs[0].type = subject.graph.inputs[0].type
    infer_shapes(subject)
    assert subject.graph.inputs[0].dtype is ir.DataType.FLOAT
    assert subject.graph.outputs[0].dtype is ir.DataType.INT64


# Sizes that depend on data

# Operator -> nodes, the shape of y, and the limits of its data-dependent symbols.
DATA: dict[str, tuple[str, str, dict[str, str | None]]] = {
    "NonZero": ("y = NonZero (x)", "INT64[2, y_dim1]", {"y_dim1": "3*n"}),
    "Compress": ("y = Compress <axis = 1> (x, c)", "FLOAT[n, y_dim1]", {"y_dim1": "min(3, k)"}),
    "Compress-flat": ("y = Compress (x, c)", "FLOAT[y_dim0]", {"y_dim0": "min(3*n, k)"}),
    "Unique": ("y = Unique (x)", "FLOAT[y_dim0]", {"y_dim0": "3*n"}),
    "Unique-axis": ("y = Unique <axis = 0> (x)", "FLOAT[y_dim0, 3]", {"y_dim0": "n"}),
    "TopK": ("y, i = TopK <axis = 0> (x, s)", "FLOAT[y_dim0, 3]", {"y_dim0": "n"}),
    "Range": ("y = Range (r, r, r)", "INT64[y_dim0]", {"y_dim0": None}),
    "ConstantOfShape": ("y = ConstantOfShape (s)", "FLOAT[s_0]", {"s_0": None}),
    "Slice": ("y = Slice (x, s, s)", "FLOAT[y_dim0, 3]", {"y_dim0": "n"}),
    "Slice-axes": (
        "y = Slice (x, s, s, s)",
        "FLOAT[y_dim0, y_dim1]",
        {"y_dim0": "n", "y_dim1": "3"},
    ),
    "Reshape": (
        "y = Reshape (x, t)",
        "FLOAT[y_dim0, y_dim1]",
        {"y_dim0": None, "y_dim1": None},
    ),
    "Tile": ("y = Tile (x, t)", "FLOAT[n*t_0, 3*t_1]", {"t_0": None, "t_1": None}),
    "Expand": ("y = Expand (r, s)", "INT64[s_0]", {"s_0": None}),
    "OneHot": ("y = OneHot (t, r, v)", "FLOAT[2, y_dim1]", {"y_dim1": None}),
    "NonMaxSuppression": (
        "y = NonMaxSuppression (boxes, scores, r)",
        "INT64[y_dim0, 3]",
        {"y_dim0": "8*m"},
    ),
    "NonMaxSuppression-limit": (
        "limit = Constant <value_int = 5> () y = NonMaxSuppression (boxes, scores, limit)",
        "INT64[y_dim0, 3]",
        {"y_dim0": "8*min(5, m)"},
    ),
    "NonMaxSuppression-none": ("y = NonMaxSuppression (boxes, scores)", "INT64[0, 3]", {}),
    "Pad": ("y = Pad (t, p)", "INT64[y_dim0]", {"y_dim0": None}),
    "StringSplit": (
        "y, parts = StringSplit <maxsplit = 4> (w)",
        "STRING[n, y_dim1]",
        {"y_dim1": "5"},
    ),
    "ReduceSum": (
        "y = ReduceSum (x, s)",
        "FLOAT[y_dim0, y_dim1]",
        {"y_dim0": "max(1, n)", "y_dim1": "3"},
    ),
    "ReduceSum-drop": (
        "y = ReduceSum <keepdims = 0> (x, s)",
        "FLOAT[y_dim0]",
        {"y_dim0": "max(3, n)"},
    ),
    "Squeeze": ("y = Squeeze (boxes, t)", "FLOAT[y_dim0]", {"y_dim0": "max(4, m)"}),
    "Unsqueeze": (
        "y = Unsqueeze (x, s)",
        "FLOAT[y_dim0, y_dim1, y_dim2]",
        {"y_dim0": "max(1, n)", "y_dim1": "max(3, n)", "y_dim2": "3"},
    ),
}
DATA_INPUTS = (
    "float[n, 3] x, bool[k] c, int64[1] s, int64[2] t, int64 r, float[2] v, int64[2] p, "
    "float[2, m, 4] boxes, float[2, 4, m] scores, string[n] w"
)


@pytest.mark.parametrize("name", DATA)
def test_data_dependent_sizes_have_a_reason_and_an_upper_bound(name: str) -> None:
    body, expected, uppers = DATA[name]
    subject, report = inferred(f"g ({DATA_INPUTS}) => (y) {{ {body} }}", 20)
    assert report.unresolved == {}
    assert shape_text(subject, "y") == expected
    limits = {name: report.upper_bounds.get(name) for name in report.data_dependent}
    assert {n: None if u is None else str(u) for n, u in limits.items()} == uppers
    for symbol_name, reason in report.data_dependent.items():
        assert symbol_name in subject.bounds
        assert "'" in reason, "the reason names a node or a value"


def test_upper_bounds_reach_the_symbol_table() -> None:
    subject, report = inferred(
        "g (float[n, 3] x) => (y) { y = NonZero (x) }", 18, {"n": Bounds(1, 8)}
    )
    assert subject.bounds["y_dim1"] == Bounds(0, 24)
    assert report.data_dependent["y_dim1"] == "number of elements that are not 0 (NonZero 'y')"


def test_a_runtime_size_that_is_used_twice_is_one_symbol() -> None:
    subject, report = inferred(
        """g (int64[2] s, float[1] x) => (z) {
            a = ConstantOfShape (s)
            b = Expand (x, s)
            z = Add (a, b)
        }"""
    )
    assert shape_text(subject, "z") == "FLOAT[s_0, s_1]"
    assert sorted(report.data_dependent) == ["s_0", "s_1"]


def test_one_unknown_entry_of_a_target_follows_from_the_others() -> None:
    subject, report = inferred(
        """g (float[n, 6] x, int64[1] s) => (y) {
            two = Constant <value_ints = [2]> ()
            t = Concat <axis = 0> (two, s)
            y = Reshape (x, t)
        }"""
    )
    assert shape_text(subject, "y") == "FLOAT[2, 3*n]"
    assert report.data_dependent == {}


def test_the_file_names_a_data_dependent_size() -> None:
    subject, report = inferred(
        "g (float[n] x) => (int64[1, boxes] y, int64[1, boxes] z) {"
        " y = NonZero (x)  a = Neg (x)  z = NonZero (a) }"
    )
    # The second NonZero may find another number of elements, whatever the file says.
    assert shape_text(subject, "y") == "INT64[1, boxes]"
    assert shape_text(subject, "z") == "INT64[1, z_dim1]"
    assert set(report.data_dependent) == {"boxes", "z_dim1"}


def test_a_declared_name_of_an_input_size_is_not_taken_for_data() -> None:
    subject, _ = inferred("g (float[n] x) => (int64[1, n] y) { y = NonZero (x) }")
    assert shape_text(subject, "y") == "INT64[1, y_dim1]"


def test_a_declared_size_is_believed_where_the_operator_allows_one() -> None:
    subject, report = inferred(
        "g (float[n, 6] x, int64[2] t) => (float[n, 6] y, int64[1, 5] z) {"
        " y = Reshape (x, t)  z = NonZero (t) }"
    )
    assert shape_text(subject, "y") == "FLOAT[n, 6]"
    # NonZero never promises a number of columns.
    assert shape_text(subject, "z") == "INT64[1, z_dim1]"
    assert list(report.data_dependent) == ["z_dim1"]


def test_a_second_inference_changes_nothing() -> None:
    text = """g (float[n, 3] x, int64[2] t, int64 k) => (y, z, w) {
        y = NonZero (x)
        r = Reshape (x, t)
        z = Abs (r)
        w = Range (k, k, k)
    }"""
    subject, first = inferred(text)
    before = {n: shape_text(subject, n) for n in ("y", "z", "w")}
    table = dict(subject.bounds)
    second = infer_shapes(subject)
    assert {n: shape_text(subject, n) for n in ("y", "z", "w")} == before
    assert subject.bounds == table
    assert second.data_dependent == first.data_dependent
    assert second.upper_bounds == first.upper_bounds


def test_bounds_given_to_a_data_dependent_symbol_are_kept() -> None:
    subject, _ = inferred("g (float[n] x) => (y) { y = NonZero (x) }", 18, {"n": Bounds(1, 100)})
    subject.bounds["y_dim1"] = Bounds(1, 7)
    infer_shapes(subject)
    assert subject.bounds["y_dim1"] == Bounds(1, 7)


def test_symbols_that_no_longer_occur_leave_the_symbol_table() -> None:
    subject, _ = inferred("g (float[n] x) => (y) { a = NonZero (x)  y = Relu (x) }")
    assert "a_dim1" in subject.bounds
    node = values_of(subject)["a"].producer()
    assert node is not None
    subject.graph.remove(node)
    report = infer_shapes(subject)
    assert subject.bounds == {"n": Bounds()}
    assert report.data_dependent == {}


def test_a_failed_inference_leaves_no_symbols_behind() -> None:
    subject = program(
        "g (float[n] x, float[3] a, float[4] b) => (y, z) { y = NonZero (x)  z = Add (a, b) }"
    )
    subject.bounds["n"] = Bounds(1, 4)
    with pytest.raises(InvalidModelError):
        infer_shapes(subject)
    assert subject.bounds == {"n": Bounds(1, 4)}


# Shapes that no run can have

SHAPES = {
    "a": "[2, 3]",
    "b": "[4, 3]",
    "c": "[5]",
    "e": "[1]",
    "image": "[1, 3, 4, 4]",
    "w": "[1, 2, 3, 3]",
    "t": "[1]",
    "p": "[2]",
    "t0": "[1]",
}
IMPOSSIBLE_CONSTANTS = {"t": ints(5), "p": ints(-5, -4), "t0": ints(0)}
IMPOSSIBLE = {
    "y = MatMul (a, b)": "inner sizes differ: 3 and 4",
    "y = Add (a, b)": "the shapes cannot be broadcast",
    "y = Concat <axis = 1> (a, b)": "sizes of axis 0 differ: 2 and 4",
    "y = Concat <axis = 0> (a, c)": "the ranks differ",
    "y = Reshape (a, t)": "6 elements cannot take the shape [5]",
    "y = Gemm (a, b)": "inner sizes differ: 3 and 4",
    "y = Transpose <perm = [0, 0]> (a)": "perm [0, 0] is no order of 2 axes",
    "y = Softmax <axis = 2> (a)": "axis 2 is outside rank 2",
    "y = Pad (c, p)": "output 0 has the impossible shape [-4]",
    "y = ConstantOfShape (p)": "output 0 has the impossible shape [-5, -4]",
    "y = Where (e, a, b)": "the shapes cannot be broadcast",
    "y = Conv (image, w)": "channels of the input and of the weight differ: 3 and 2",
    "y = MaxPool <kernel_shape = [5, 5]> (image)": "a window of 5 does not fit into spatial axis 0",
    "y = Gather (c, t)": "an index is outside the axis of size 5",
    "y = Squeeze (a, t0)": "size of axis 0 and 1 differ: 2 and 1",
    'y = Einsum <equation = "ij,jk->ik"> (a, b)': "letter 'j' stands for 3 and 4",
}


@pytest.mark.parametrize("body", IMPOSSIBLE)
def test_impossible_shapes_are_refused_with_node_and_shapes(body: str) -> None:
    inputs = (
        "float[2, 3] a, float[4, 3] b, float[5] c, bool[1] e, float[1, 3, 4, 4] image, "
        "float[1, 2, 3, 3] w, int64[1] t, int64[2] p, int64[1] t0"
    )
    with pytest.raises(InvalidModelError) as caught:
        inferred(f"g ({inputs}) => (y) {{ {body} }}", 18, None, **IMPOSSIBLE_CONSTANTS)
    op_type = body.split()[2]
    names = body[body.rindex("(") + 1 : -1].split(", ")
    listed = ", ".join(SHAPES[name] for name in names)
    assert caught.value.message == (
        f"{op_type} 'y': {IMPOSSIBLE[body]}; the inputs have shapes {listed}"
    )
    assert caught.value.code == "shape-mismatch"
    assert caught.value.node == "y"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("y = Add (x)", "input 1 is missing"),
        ("y = Transpose <perm = 3> (x)", "attribute 'perm' has type INT"),
        ("y = Cast (x)", "attribute 'to' is missing"),
        ("y = Cast <to = 99> (x)", "attribute 'to' is 99, which is no data type"),
        ("y = Concat (x, x)", "attribute 'axis' is missing"),
        ("y = Constant ()", "no attribute holds a value"),
        ("y = DepthToSpace (q)", "attribute 'blocksize' is 0"),
        ('y = Einsum <equation = "ij,jk"> (x)', "the equation 'ij,jk' does not name 1 inputs"),
    ],
)
def test_malformed_nodes_are_refused(body: str, message: str) -> None:
    with pytest.raises(InvalidModelError, match="of opset 18") as caught:
        inferred(f"g (float[2, 3] x, float[1, 4, 2, 2] q) => (y) {{ {body} }}")
    assert caught.value.code == "malformed-node"
    assert message in caught.value.message


def test_symbols_that_differ_by_a_constant_cannot_agree() -> None:
    with pytest.raises(InvalidModelError, match=r"sizes of axis 0 differ: n and n \+ 1"):
        inferred(
            """g (float[n, 3] x, float[1, 3] row) => (y) {
                longer = Concat <axis = 0> (x, row)
                y = Concat <axis = 1> (x, longer)
            }"""
        )


def test_symbols_that_may_agree_are_accepted() -> None:
    assert shapes(
        """g (float[n, 3] x, float[m, 3] y, float[5, 3] z) => (a, b, c, d) {
            a = Concat <axis = 1> (x, y)
            b = Concat <axis = 1> (x, z)
            c = Add (x, y)
            d = Add (z, x)
        }"""
    ) == {
        "a": "FLOAT[n, 6]",
        "b": "FLOAT[5, 6]",
        "c": "FLOAT[max(m, n), 3]",
        "d": "FLOAT[5, 3]",
    }


def test_sizes_above_one_broadcast_to_themselves() -> None:
    subject, _ = inferred(
        "g (float[n] x, float[m] y) => (z) { z = Add (x, y) }", 18, {"n": Bounds(2, 9)}
    )
    assert shape_text(subject, "z") == "FLOAT[n]"


def test_contents_of_the_report_are_those_of_nodes_only() -> None:
    subject, report = inferred(
        "g (float[n, 3] x, int64[1] one) => (y) { s = Shape (x)  y = Add (s, one) }",
        18,
        None,
        one=ints(1),
    )
    named = {v.name: tensor for v, tensor in report.known.items()}
    assert named == {
        "s": KnownTensor((2,), (N, 3)),
        "y": KnownTensor((2,), (add(N, 1), 4)),
    }
    assert np.array_equal(ints(1), values_of(subject)["one"].const_value.numpy())  # type: ignore[union-attr]
