"""If, Loop, Scan, sequences and optionals."""

import pytest

from graphopt.errors import InvalidModelError
from graphopt.ir.dims import Bounds
from graphopt.ir.shapes import infer_shapes
from tests.ir.shape_models import inferred, ints, program, shape_text, shapes

IF = """g (float[n, 4] x, {condition}) => (y) {{
    {before}
    y = If ({value}) <then_branch = yes () => (a) {{ a = {yes} }},
                      else_branch = no () => (b) {{ b = {no} }}>
}}"""


def branches(
    yes: str, no: str, condition: str = "bool c", value: str = "c", before: str = ""
) -> str:
    return IF.format(yes=yes, no=no, condition=condition, value=value, before=before)


def test_equal_branches_give_their_shape() -> None:
    assert shapes(branches("Relu (x)", "Abs (x)")) == {"y": "FLOAT[n, 4]"}


def test_branches_that_differ_give_a_symbol_below_the_larger() -> None:
    subject, report = inferred(branches("Relu (x)", "Concat <axis = 1> (x, x)"))
    assert shape_text(subject, "y") == "FLOAT[n, y_dim1]"
    assert shape_text(subject, "b") == "FLOAT[n, 8]"
    assert report.data_dependent == {"y_dim1": "the branches differ (If 'y')"}
    assert report.upper_bounds == {"y_dim1": 8}
    assert subject.bounds["y_dim1"] == Bounds(0, 8)


def test_a_known_condition_takes_its_branch() -> None:
    text = branches(
        "Relu (x)",
        "Concat <axis = 1> (x, x)",
        "int64[1] axis",
        "c",
        "s = Shape (x)  w = Gather (s, axis)  e = Equal (w, width)  c = Squeeze (e)",
    ).replace("int64[1] axis", "int64[1] axis, int64[1] width")
    assert shapes(text, axis=ints(1), width=ints(4)) == {"y": "FLOAT[n, 4]"}
    assert shapes(text, axis=ints(1), width=ints(5)) == {"y": "FLOAT[n, 8]"}


def test_ranks_that_differ_name_the_size_that_decides() -> None:
    text = branches(
        "Squeeze (x, zero)",
        "Identity (x)",
        "int64[1] zero",
        "c",
        "s = Shape (x)  w = Gather (s, zero)  one = Constant <value_ints = [1]> ()"
        "  e = Equal (w, one)  c = Squeeze (e)",
    )
    subject, report = inferred(text, 18, None, zero=ints(0))
    assert report.unresolved == {
        "y": "the branches give it ranks 1 and 2; which one runs is decided by n"
    }
    assert shape_text(subject, "a") == "FLOAT[4]"
    subject = program(text, zero=ints(0))
    subject.bounds["n"] = Bounds(1, 1)
    infer_shapes(subject)
    assert shape_text(subject, "y") == "FLOAT[4]"
    subject = program(text, zero=ints(0))
    subject.bounds["n"] = Bounds(2, 9)
    infer_shapes(subject)
    assert shape_text(subject, "y") == "FLOAT[n, 4]"


def test_a_branch_that_cannot_run_is_never_taken() -> None:
    subject, report = inferred(branches("MatMul (x, x)", "Relu (x)").replace("[n, 4]", "[3, 4]"))
    assert shape_text(subject, "y") == "FLOAT[3, 4]"
    reason = "MatMul 'a': inner sizes differ: 4 and 3; the inputs have shapes [3, 4], [3, 4]"
    assert [g.name for g in report.impossible] == ["yes"]
    assert list(report.impossible.values()) == [reason]
    assert report.unresolved == {"a": f"its branch cannot run at these sizes: {reason}"}


def test_two_branches_that_cannot_run_are_an_error() -> None:
    with pytest.raises(InvalidModelError, match="inner sizes differ"):
        inferred(branches("MatMul (x, x)", "MatMul (x, x)").replace("[n, 4]", "[3, 4]"))


def test_a_branch_that_must_run_and_cannot_is_an_error() -> None:
    before = "i = Constant <value_int = 1> ()  c = Cast <to = 9> (i)"
    text = branches("MatMul (x, x)", "Relu (x)", "bool unused", "c", before)
    with pytest.raises(InvalidModelError, match="inner sizes differ"):
        inferred(text.replace("[n, 4]", "[3, 4]"))


LOOP = """g (float[n, 4] x, float[k, 4] piece, {inputs}) => (y, rows) {{
    {before}
    y, rows = Loop ({trips}, {condition}, x) <body = step
        (int64 i, bool go, float[?, ?] state) => (going, next, row) {{
        {body}
    }}>
}}"""


def loop(
    body: str, trips: str = "m", condition: str = "", before: str = "", inputs: str = "int64 m"
) -> str:
    text = LOOP.format(
        body=body, trips=trips, condition=condition or '""', before=before, inputs=inputs
    )
    # The text format has no unknown sizes.
    return text.replace("float[?, ?] state", "float[] state")


KEEP = "going = Identity (go)  next = Relu (state)  row = Abs (state)"
GROW = "going = Identity (go)  next = Concat <axis = 0> (state, piece)  row = Abs (piece)"
STOP = "s = ReduceMax <keepdims = 0> (state)  going = Cast <to = 9> (s)"


def test_states_that_keep_their_shape_and_a_known_trip_count() -> None:
    seven = "m = Constant <value_int = 7> ()"
    assert shapes(loop(KEEP, before=seven, inputs="int64 unused")) == {
        "y": "FLOAT[n, 4]",
        "rows": "FLOAT[7, n, 4]",
    }


def test_a_symbolic_trip_count() -> None:
    before = "s = Shape (piece)  zero = Constant <value_int = 0> ()  m = Gather (s, zero)"
    assert shapes(loop(KEEP, before=before, inputs="int64 unused")) == {
        "y": "FLOAT[n, 4]",
        "rows": "FLOAT[k, n, 4]",
    }


def test_a_trip_count_of_runtime_data() -> None:
    subject, report = inferred(loop(KEEP))
    assert shape_text(subject, "rows") == "FLOAT[y_trips, n, 4]"
    assert report.data_dependent == {"y_trips": "the number of iterations (Loop 'y')"}
    assert report.upper_bounds == {}


def test_a_condition_of_runtime_data_leaves_the_limit() -> None:
    body = f"{STOP}  next = Relu (state)  row = Abs (state)"
    subject, report = inferred(
        loop(body, before="m = Constant <value_int = 7> ()", inputs="int64 u")
    )
    assert shape_text(subject, "rows") == "FLOAT[y_trips, n, 4]"
    assert report.upper_bounds == {"y_trips": 7}


def test_a_state_that_grows_by_the_same_each_time_is_exact() -> None:
    subject, report = inferred(
        loop(GROW, before="m = Constant <value_int = 7> ()", inputs="int64 u")
    )
    assert shape_text(subject, "y") == "FLOAT[7*k + n, 4]"
    assert shape_text(subject, "rows") == "FLOAT[7, k, 4]"
    # Inside, the size changes from one iteration to the next and never exceeds the last one.
    assert shape_text(subject, "next") == "FLOAT[k + y_state1_dim0, 4]"
    assert str(report.upper_bounds["y_state1_dim0"]) == "7*k + n"


def test_a_state_that_grows_for_an_unknown_number_of_iterations() -> None:
    subject, report = inferred(loop(GROW))
    assert shape_text(subject, "y") == "FLOAT[y_dim0, 4]"
    assert report.data_dependent["y_dim0"] == (
        "axis 0 of state 1 changes in each iteration (Loop 'y')"
    )
    assert "y_dim0" not in report.upper_bounds


def test_a_state_that_may_stop_growing_has_an_upper_bound() -> None:
    body = f"{STOP}  next = Concat <axis = 0> (state, piece)  row = Abs (piece)"
    subject, report = inferred(
        loop(body, before="m = Constant <value_int = 7> ()", inputs="int64 u")
    )
    assert shape_text(subject, "y") == "FLOAT[y_dim0, 4]"
    assert str(report.upper_bounds["y_dim0"]) == "7*k + n"


def test_a_state_that_gets_its_size_in_the_first_iteration() -> None:
    body = "going = Identity (go)  next = Identity (piece)  row = Abs (piece)"
    subject, _ = inferred(loop(body, before="m = Constant <value_int = 7> ()", inputs="int64 u"))
    assert shape_text(subject, "y") == "FLOAT[k, 4]"
    subject, report = inferred(loop(body))
    assert shape_text(subject, "y") == "FLOAT[y_dim0, 4]"
    assert str(report.upper_bounds["y_dim0"]) == "max(k, n)"


def test_a_loop_that_never_runs_hands_its_states_on() -> None:
    before = "z = Constant <value_int = 0> ()  stop = Cast <to = 9> (z)"
    subject, _ = inferred(loop(GROW, condition="stop", before=before))
    assert shape_text(subject, "y") == "FLOAT[n, 4]"
    assert shape_text(subject, "rows") == "FLOAT[0, k, 4]"


def test_a_state_that_changes_its_rank_is_unresolved() -> None:
    body = "going = Identity (go)  next = Unsqueeze (state, axis)  row = Abs (piece)"
    _, report = inferred(loop(body, inputs="int64 m, int64[1] axis"), 18, None, axis=ints(0))
    assert set(report.unresolved) == {"state", "next", "y"}
    assert report.unresolved["state"] == "the number of axes of the state changes"


def test_an_upper_bound_inside_a_body_follows_the_widened_state() -> None:
    body = (
        "going = Identity (go)  next = Concat <axis = 0> (state, piece)  row = Abs (piece)"
        "  found = NonZero (state)"
    )
    _, report = inferred(loop(body, before="m = Constant <value_int = 7> ()", inputs="int64 u"))
    assert str(report.upper_bounds["found_dim1"]) == "4*y_state1_dim0"


def test_scan_stacks_rows_and_keeps_states() -> None:
    assert shapes(
        """g (float[4] first, float[n, 4, k] x) => (last, rows) {
            last, rows = Scan <num_scan_inputs = 1, scan_input_axes = [2], scan_output_axes = [-1],
                body = step (state, row) => (next, total) {
                    sums = ReduceSum <keepdims = 0> (row, axis)
                    next = Add (state, sums)
                    total = Relu (next)
                }> (first, x)
        }""".replace("float[4] first", "int64[1] axis, float[4] first"),
        axis=ints(0),
    ) == {"last": "FLOAT[4]", "rows": "FLOAT[4, k]"}


def test_sequences_keep_what_is_certain() -> None:
    subject, report = inferred(
        """g (float[n, 4] x, float[n, 5] y, int64 place) => (a, b, joined, stacked, count, c) {
            two = SequenceConstruct (x, y)
            zero = Constant <value_int = 0> ()
            a = SequenceAt (two, zero)
            joined = ConcatFromSequence <axis = 1> (two)
            same = SequenceConstruct (x, x, x)
            b = SequenceAt (same, place)
            stacked = ConcatFromSequence <axis = 0, new_axis = 1> (same)
            count = SequenceLength (same)
            c = SequenceAt (two, place)
        }"""
    )
    resolved = {n: shape_text(subject, n) for n in ("a", "b", "joined", "stacked", "count")}
    assert resolved == {
        "a": "FLOAT[n, 4]",
        "b": "FLOAT[n, 4]",
        "joined": "FLOAT[n, 9]",
        "stacked": "FLOAT[3, n, 4]",
        "count": "INT64[]",
    }
    assert report.unresolved == {
        "two": "a value of type sequence has no single shape",
        "same": "a value of type sequence has no single shape",
        "c": "the tensors of the sequence differ in shape",
    }


def test_optionals_unwrap_to_what_they_hold() -> None:
    subject, report = inferred(
        """g (float[n, 4] x) => (y, has) {
            held = Optional (x)
            y = OptionalGetElement (held)
            has = OptionalHasElement (x)
        }"""
    )
    assert shape_text(subject, "y") == "FLOAT[n, 4]"
    assert [t.entries for v, t in report.known.items() if v.name == "has"] == [(1,)]
