"""Arithmetic on sizes: the contents of small tensors, and the algebra beneath."""

import math
import operator
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.ir.dims import Bounds, Dim, Expr, add, evaluate, mul, symbol
from graphopt.ir.shape_rules import algebra, contents, slicing
from graphopt.ir.shape_rules.contents import Entry, Ratio
from tests.ir.shape_models import inferred, ints, shapes

N, M = symbol("n"), symbol("m")
INT64, FLOAT = ir.DataType.INT64, ir.DataType.FLOAT

# Nodes after `s = Shape (x)` of `float[n, 6, m] x` -> the contents of y.
FOLLOWED = {
    "y = Identity (s)": "[n, 6, m]",
    "y = Gather (s, two)": "[m]",
    "y = Slice (s, one, far)": "[6, m]",
    "y = Slice (s, minus, first, zero, minus)": "[m, 6, n]",
    "y = Concat <axis = 0> (s, one)": "[n, 6, m, 1]",
    "y = Unsqueeze (s, zero)": "[n, 6, m]",
    "y = Add (s, one)": "[n + 1, 7, m + 1]",
    "y = Sub (s, s)": "[0, 0, 0]",
    "y = Mul (s, s)": "[n*n, 36, m*m]",
    "y = Div (s, two)": "[(n // 2), 3, (m // 2)]",
    "y = Mod (s, two)": "[n - 2*(n // 2), 0, m - 2*(m // 2)]",
    "y = Neg (s)": "[-n, -6, -m]",
    "y = Abs (s)": "[n, 6, m]",
    "y = Max (s, two)": "[max(2, n), 6, max(2, m)]",
    "y = Min (s, two)": "[min(2, n), 2, min(2, m)]",
    "y = Pow (s, two)": "[n*n, 36, m*m]",
    "y = ReduceProd (s, zero)": "[6*m*n]",
    "y = ReduceSum (s, zero)": "[m + n + 6]",
    "y = ReduceMax (s, zero)": "[max(max(6, m), n)]",
    "y = Size (x)": "[6*m*n]",
    "y = Size (s)": "[3]",
    "y = Shape <start = 1> (x)": "[6, m]",
    "y = Shape <start = -1> (x)": "[m]",
    "y = CumSum (s, zero)": "[n, n + 6, m + n + 6]",
    "y = Cast <to = 6> (s)": "[n, 6, m]",
    "a, y = Split <axis = 0> (s, sizes)": "[6, m]",
    "y = Transpose (s)": "[n, 6, m]",
    "y = Tile (s, two)": "[n, 6, m, n, 6, m]",
    "y = Expand (two, row)": "[2, 2, 2]",
    "y = Reshape (s, row)": "[n, 6, m]",
    "y = ScatterND (s, at, two)": "[n, 2, m]",
    "y = ScatterElements (s, one, two)": "[n, 2, m]",
    "y = GatherND (s, at)": "[6]",
    "y = ConstantOfShape <value = int64[1] {7}> (two)": "[7, 7]",
    "c = Equal (s, six)  y = Where (c, one, s)": None,
    "c = Less (s, zero)  y = Where (c, one, s)": "[n, 6, m]",
    "c = Greater (s, minus)  y = Where (c, one, s)": "[1, 1, 1]",
    "c = Equal (s, minus)  d = Not (c)  y = Where (d, one, s)": "[1, 1, 1]",
    "h = Gather (s, two0)  t = Constant <value_int = 2> ()  y = Mul (h, t)": "[2*m]",
    "l = Constant <value_int = 9> ()  f = Constant <value_int = 1> ()"
    "  d = Constant <value_int = 3> ()  y = Range (f, l, d)": "[1, 4, 7]",
    "y = Squeeze (wide)": "[5]",
    "y = Clip (s, two0, six0)": "[min(6, max(2, n)), 6, min(6, max(2, m))]",
    "y = Compress <axis = 0> (s, picks)": "[n, m]",
    "y = NonZero (sizes)": "[0, 1]",
}
CONSTANTS = {
    "one": ints(1),
    "two": ints(2),
    "six": ints(6),
    "zero": ints(0),
    "minus": ints(-1),
    "far": ints(2**63 - 1),
    "first": ints(-(2**63)),
    "sizes": ints(1, 2),
    "row": ints(3),
    "at": np.array([[1]]),
    "two0": np.array(2),
    "six0": np.array(6),
    "wide": np.array([[5]]),
    "picks": np.array([True, False, True]),
}
KINDS = {"at": "int64[1, 1]", "two0": "int64", "six0": "int64", "wide": "int64[1, 1]"}
KINDS |= {"picks": "bool[3]", "sizes": "int64[2]"}


@pytest.mark.parametrize("nodes", FOLLOWED)
def test_shape_arithmetic_is_followed(nodes: str) -> None:
    constants = {
        k: v for k, v in CONSTANTS.items() if k in nodes.replace(",", " ").split("(", 1)[1]
    }
    declared = "".join(f", {KINDS.get(k, 'int64[1]')} {k}" for k in constants)
    text = f"g (float[n, 6, m] x{declared}) => (y) {{ s = Shape (x)  {nodes} }}"
    _, report = inferred(text, 18, None, **constants)
    found = {v.name: tensor for v, tensor in report.known.items()}
    tensor = found.get("y")
    entries = None if tensor is None else [str(e) for e in tensor.entries]
    assert (None if entries is None else f"[{', '.join(entries)}]") == FOLLOWED[nodes]


def test_partly_known_contents_still_help() -> None:
    assert shapes(
        """g (float[n, 6, m] x) => (y) {
            s = Shape (x)
            six = Constant <value_ints = [6]> ()
            c = Equal (s, six)
            one = Constant <value_ints = [1]> ()
            w = Where (c, one, s)
            zero = Constant <value_ints = [1]> ()
            y1 = Gather (w, zero)
            y = ConstantOfShape (y1)
        }"""
    ) == {"y": "FLOAT[1]"}


FLOATS = {
    "f = Mul (h, half)  g1 = Floor (f)": "FLOAT[(m // 2)]",
    "f = Mul (h, half)  g1 = Ceil (f)": "FLOAT[((m + 1) // 2)]",
    "f = Div (h, three)  g1 = Floor (f)": "FLOAT[(m // 3)]",
    "f = Div (h, three)  g1 = Ceil (f)": "FLOAT[((m + 2) // 3)]",
    "f = Mul (h, two)  g1 = Identity (f)": "FLOAT[2*m]",
    "f = Mul (h, half)  g1 = Add (f, half)": "FLOAT[((m + 1) // 2)]",
    # 1.1 and 1/3 are no exact floats, and a product with 1/3 may round up to a whole number.
    "f = Mul (h, third)  g1 = Floor (f)": "FLOAT[v_0]",
    "f = Div (h, three)  g1 = Mul (f, three)": "FLOAT[v_0]",
    "f = Mul (h, half)  g1 = Round (f)": "FLOAT[v_0]",
    "f = Mul (h, h)  g1 = Identity (f)": "FLOAT[v_0]",
}


@pytest.mark.parametrize("nodes", FLOATS)
def test_sizes_that_pass_through_floats(nodes: str) -> None:
    constants = {
        "half": np.array([0.5], np.float32),
        "two": np.array([2.0], np.float32),
        "three": np.array([3.0], np.float32),
        "third": np.array([1 / 3], np.float32),
    }
    used = {k: v for k, v in constants.items() if f" {k})" in nodes}
    declared = "".join(f", float[1] {k}" for k in used)
    subject, report = inferred(
        f"""g (float[n, m] x{declared}) => (y) {{
            s = Shape <start = 1> (x)
            h = Cast <to = 1> (s)
            {nodes}
            v = Cast <to = 7> (g1)
            y = ConstantOfShape (v)
        }}""",
        18,
        None,
        **used,
    )
    (output,) = subject.graph.outputs
    assert output.shape is not None
    assert f"FLOAT[{output.shape[0]}]" == FLOATS[nodes]
    assert bool(report.data_dependent) == ("v_0" in FLOATS[nodes])


def test_whole_floats_are_computed_as_the_runtime_does() -> None:
    # 0.7f * 10 rounds to 7 in float32; the exact product is just below.
    subject, report = inferred(
        """g (float[10] x) => (y) {
            s = Shape (x)
            f = Cast <to = 1> (s)
            k = Constant <value_floats = [0.7]> ()
            p = Mul (f, k)
            d = Floor (p)
            y = Cast <to = 7> (d)
        }"""
    )
    assert [t.entries for v, t in report.known.items() if v.name == "y"] == [(7,)]
    assert int(np.floor(np.float32(10) * np.float32(0.7))) == 7
    assert subject.graph.outputs[0].dtype is INT64


# The algebra, over random bindings

small = st.integers(0, 12)
linear = st.tuples(st.integers(-3, 4), st.integers(-2, 3), st.integers(-8, 12))
TABLES: tuple[dict[str, Bounds], ...] = (
    {},
    {"n": Bounds(1, 12), "m": Bounds(0, 12)},
    {"n": Bounds(3, None)},
)


def line(parts: tuple[int, int, int]) -> Dim:
    a, b, c = parts
    return add(add(mul(N, a), mul(M, b)), c)


def fits(table: dict[str, Bounds], values: dict[str, int]) -> bool:
    return all(
        b.lower <= values[s] and (b.upper is None or values[s] <= b.upper) for s, b in table.items()
    )


@settings(max_examples=300, deadline=None)
@given(linear, linear, small, small)
def test_larger_smaller_and_truncated_division(
    left: tuple[int, int, int], right: tuple[int, int, int], n: int, m: int
) -> None:
    values = {"n": n, "m": m}
    a, b = line(left), line(right)
    x, y = evaluate(a, values), evaluate(b, values)
    for table in TABLES:
        if not fits(table, values):
            continue
        assert evaluate(algebra.larger(a, b, table), values) == max(x, y)
        assert evaluate(algebra.smaller(a, b, table), values) == min(x, y)
        whole = algebra.truncated_quotient(a, b, table)
        if whole is not None and y:
            assert evaluate(whole, values) == math.trunc(x / y)


@settings(max_examples=300, deadline=None)
@given(linear, linear, small, small)
def test_decisions_hold_for_every_binding(
    left: tuple[int, int, int], right: tuple[int, int, int], n: int, m: int
) -> None:
    values = {"n": n, "m": m}
    tests: dict[str, Callable[[int, int], bool]] = {
        "Equal": operator.eq,
        "Less": operator.lt,
        "LessOrEqual": operator.le,
        "Greater": operator.gt,
        "GreaterOrEqual": operator.ge,
    }
    for table in TABLES:
        if not fits(table, values):
            continue
        for op, compare in tests.items():
            decided = contents.binary(op, line(left), line(right), INT64, table)
            if decided is not None:
                x, y = evaluate(line(left), values), evaluate(line(right), values)
                assert bool(decided) == compare(x, y)


@settings(max_examples=200, deadline=None)
@given(st.lists(linear, min_size=1, max_size=3), linear, small, small)
def test_polynomials_divide_back(
    factors: list[tuple[int, int, int]], divisor: tuple[int, int, int], n: int, m: int
) -> None:
    values = {"n": n, "m": m}
    whole = algebra.volume([line(f) for f in factors])
    assert algebra.polynomial_quotient(
        algebra.times(whole, line(divisor)), line(divisor)
    ) == whole or isinstance(line(divisor), int)
    d = evaluate(line(divisor), values)
    if d:
        quotient = algebra.quotient([*map(line, factors), line(divisor)], [line(divisor)])
        assert evaluate(quotient, values) == evaluate(whole, values)


def slice_by_specification(size: int, start: int, end: int, step: int) -> int:
    """Return how many elements ONNX's Slice takes, from the text of the specification."""
    start, end = start + size * (start < 0), end + size * (end < 0)
    if step > 0:
        start, end = min(max(start, 0), size), min(max(end, 0), size)
    else:
        start, end = min(max(start, 0), size - 1), min(max(end, -1), size - 1)
    return max(0, math.ceil((end - start) / step))


@settings(max_examples=600, deadline=None)
@given(
    st.integers(0, 10),
    st.integers(-12, 12) | st.sampled_from([slicing.FAR, -slicing.FAR, 2**63 - 1]),
    st.integers(-12, 12) | st.sampled_from([slicing.FAR, -slicing.FAR, -(2**63)]),
    st.sampled_from([1, 2, 3, -1, -2, -3]),
)
def test_slices_of_a_symbolic_axis(size: int, start: int, end: int, step: int) -> None:
    expected = slice_by_specification(size, start, end, step)
    subjects: list[tuple[Dim, dict[str, Bounds]]] = [(N, {}), (N, {"n": Bounds(1, 10)}), (size, {})]
    for whole, table in subjects:
        if table and size < 1:
            continue
        count = slicing._slice_count(whole, start, end, step, table)
        if step < 0 and end >= slicing.FAR:
            # Runtimes disagree about this one.
            assert count is None
            continue
        assert count is not None
        assert evaluate(count, {"n": size}) == expected


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10), st.integers(0, 10), st.integers(0, 10), st.sampled_from([1, 2, -1]))
def test_slices_with_symbolic_ends(size: int, start: int, end: int, step: int) -> None:
    count = slicing._slice_count(N, symbol("a"), symbol("b"), step, {})
    assert count is not None
    expected = slice_by_specification(size, start, end, step)
    assert evaluate(count, {"n": size, "a": start, "b": end}) == expected


def test_slices_read_well() -> None:
    def text(start: int, end: int, step: int = 1) -> str:
        return str(slicing._slice_count(N, start, end, step, {"n": Bounds(4, 99)}))

    assert text(0, slicing.FAR) == "n"
    assert text(1, slicing.FAR) == "n - 1"
    assert text(0, -1) == "n - 1"
    assert text(-3, slicing.FAR) == "3"
    assert text(1, 3) == "2"
    assert text(0, slicing.FAR, 2) == "((n + 1) // 2)"
    assert text(-1, -slicing.FAR, -1) == "n"


def test_a_slice_whose_end_may_be_negative_is_not_guessed() -> None:
    assert slicing._slice_count(N, 0, add(M, -5), 1, {}) is None


def broadcast_real(left: int, right: int) -> int | None:
    if left == right or right == 1:
        return left
    return right if left == 1 else None


@settings(max_examples=400, deadline=None)
@given(linear, linear, small, small)
def test_broadcasting_holds_for_every_valid_run(
    left: tuple[int, int, int], right: tuple[int, int, int], n: int, m: int
) -> None:
    values = {"n": n, "m": m}
    a, b = line(left), line(right)
    x, y = evaluate(a, values), evaluate(b, values)
    real = broadcast_real(x, y) if x > 0 and y > 0 else None
    for table in TABLES:
        if not fits(table, values) or real is None:
            continue
        # A valid run must not be refused, and must give the real size.
        assert evaluate(algebra.broadcast_dim(a, b, table), values) == real


@pytest.mark.parametrize(("left", "right"), [(3, 4), (0, 2), (add(N, 2), 1 - 1)])
def test_sizes_that_never_broadcast(left: Dim, right: Dim) -> None:
    with pytest.raises(algebra.UnequalError):
        algebra.broadcast_dim(left, right, {})


def test_nested_extremes_do_not_grow() -> None:
    size: Dim = algebra.larger(N, M, {})
    for _ in range(5):
        size = algebra.larger(size, N, {})
        size = algebra.broadcast_dim(M, size, {})
    assert str(size) == "max(m, n)"


ENTRIES: list[tuple[Entry, int]] = [(N, 9), (Ratio(N, 2), 9), (add(N, 3), 9), (2.5, 9), (7.0, 9)]


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
def test_exact_ratios(op: str) -> None:
    functions = {"Add": operator.add, "Sub": operator.sub, "Mul": operator.mul}
    function = functions.get(op, operator.truediv)
    decided = 0
    for first, n in ENTRIES:
        for second, _ in ENTRIES:
            result = contents.binary(op, first, second, FLOAT, {})
            if result is not None:
                decided += 1
                expected = function(real(first, n), real(second, n))
                # Two numbers are rounded as the tensor would be; everything else is exact.
                numbers = isinstance(first, float) and isinstance(second, float)
                assert real(result, n) == (np.float32(expected) if numbers else expected)
    assert decided >= 12


def real(entry: Entry, n: int) -> float:
    if isinstance(entry, Ratio):
        return evaluate(entry.numerator, {"n": n}) / entry.divisor
    return evaluate(entry, {"n": n}) if isinstance(entry, int | Expr) else entry or 0.0
