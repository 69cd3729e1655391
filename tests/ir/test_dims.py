from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.errors import UnsupportedError
from graphopt.ir.dims import (
    Bounds,
    Call,
    Dim,
    Expr,
    add,
    bounds_of,
    ceildiv,
    evaluate,
    floordiv,
    maximum,
    minimum,
    mod,
    mul,
    parse_dim,
    product,
    substitute,
    symbol,
    symbols_of,
)

A, B, C = symbol("a"), symbol("b"), symbol("c")
NAMES = ("a", "b", "c")

# A tree is a number, a name, or an operator with two trees.
leaves = st.one_of(st.integers(-6, 12), st.sampled_from(NAMES))
trees: st.SearchStrategy[Any] = st.recursive(
    leaves,
    lambda inner: st.tuples(
        st.sampled_from(["+", "-", "*", "//", "%", "max", "min"]), inner, inner
    ),
    max_leaves=8,
)
bindings = st.fixed_dictionaries({name: st.integers(0, 9) for name in NAMES})


def build(tree: Any) -> Dim:
    if isinstance(tree, int):
        return tree
    if isinstance(tree, str):
        return symbol(tree)
    operator, left, right = tree
    functions = {
        "+": add,
        "-": lambda a, b: add(a, mul(b, -1)),
        "*": mul,
        "//": floordiv,
        "%": mod,
        "max": maximum,
        "min": minimum,
    }
    return functions[operator](build(left), build(right))


def compute(tree: Any, values: dict[str, int]) -> int:
    if isinstance(tree, int):
        return tree
    if isinstance(tree, str):
        return values[tree]
    operator, left, right = tree
    a, b = compute(left, values), compute(right, values)
    results = {
        "+": lambda: a + b,
        "-": lambda: a - b,
        "*": lambda: a * b,
        "//": lambda: a // b,
        "%": lambda: a % b,
        "max": lambda: max(a, b),
        "min": lambda: min(a, b),
    }
    return results[operator]()


@settings(max_examples=600, deadline=None)
@given(trees, bindings)
def test_canonical_form_computes_what_python_computes(tree: Any, values: dict[str, int]) -> None:
    try:
        expected = compute(tree, values)
    except ZeroDivisionError:
        return
    assert evaluate(build(tree), values) == expected


@settings(max_examples=400, deadline=None)
@given(trees, bindings, st.dictionaries(st.sampled_from(NAMES), leaves, max_size=3))
def test_substitute_is_evaluation_in_two_steps(
    tree: Any, values: dict[str, int], replacements: dict[str, Any]
) -> None:
    dims = {name: build(leaf) for name, leaf in replacements.items()}
    inner = {**values, **{name: compute(leaf, values) for name, leaf in replacements.items()}}
    try:
        expected = compute(tree, inner)
        replaced = substitute(build(tree), dims)
    except (ZeroDivisionError, UnsupportedError):
        return
    assert evaluate(replaced, values) == expected


@settings(max_examples=600, deadline=None)
@given(trees, bindings, st.fixed_dictionaries({n: st.integers(0, 4) for n in NAMES}))
def test_bounds_contain_every_value(
    tree: Any, values: dict[str, int], slack: dict[str, int]
) -> None:
    try:
        value = compute(tree, values)
        dim = build(tree)
    except (ZeroDivisionError, UnsupportedError):
        return
    limits = {n: Bounds(max(0, v - slack[n]), v + slack[n]) for n, v in values.items()}
    for table in (limits, {n: Bounds(b.lower) for n, b in limits.items()}, {}):
        lower, upper = bounds_of(dim, table)
        # The lower end is cut at 0, which a dimension never is below.
        assert lower <= max(value, 0)
        assert upper is None or value <= upper


@settings(max_examples=600, deadline=None)
@given(trees)
def test_text_reads_back_as_the_same_dimension(tree: Any) -> None:
    try:
        dim = build(tree)
    except (ZeroDivisionError, UnsupportedError):
        return
    assert parse_dim(str(dim)) == dim


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.lists(st.sampled_from(NAMES), max_size=3))))
def test_order_of_terms_does_not_matter(terms: list[tuple[int, list[str]]]) -> None:
    def total(ordered: list[tuple[int, list[str]]]) -> Dim:
        result: Dim = 0
        for factor, names in ordered:
            result = add(result, product([factor, *(symbol(n) for n in names)]))
        return result

    forward, backward = total(terms), total(terms[::-1])
    assert forward == backward
    assert hash(forward) == hash(backward)
    assert str(forward) == str(backward)


def test_constant_results_are_numbers() -> None:
    assert add(A, mul(A, -1)) == 0
    assert floordiv(mul(A, 6), A) == 6
    assert maximum(add(A, 1), A) == add(A, 1)
    assert minimum(add(A, 1), A) == A
    assert isinstance(floordiv(A, A), int)
    assert mod(mul(A, 4), 2) == 0


def test_floor_division_takes_out_what_divides() -> None:
    assert floordiv(add(mul(A, 4), 2), 4) == A
    assert str(floordiv(add(mul(A, 4), mul(B, 3)), 4)) == "a + ((3*b) // 4)"
    assert floordiv(mul(mul(A, B), 8), mul(B, 2)) == mul(A, 4)
    assert str(floordiv(add(A, 5), 4)) == "((a + 1) // 4) + 1"


def test_ceildiv_rounds_up() -> None:
    assert ceildiv(7, 4) == 2
    assert evaluate(ceildiv(A, 4), {"a": 9}) == 3
    assert evaluate(ceildiv(A, 4), {"a": 8}) == 2


def test_division_by_zero_is_refused() -> None:
    with pytest.raises(UnsupportedError) as caught:
        floordiv(A, 0)
    assert caught.value.code == "dimension-division-by-zero"
    with pytest.raises(UnsupportedError):
        evaluate(floordiv(A, B), {"a": 4, "b": 0})


def test_evaluate_names_the_symbol_without_a_binding() -> None:
    with pytest.raises(KeyError, match="b"):
        evaluate(add(A, B), {"a": 1})


def test_symbols_of_looks_into_calls() -> None:
    assert symbols_of(maximum(A, floordiv(B, C))) == {"a", "b", "c"}
    assert symbols_of(7) == frozenset()


def test_bounds_of_known_cases() -> None:
    table = {"a": Bounds(1, 8), "b": Bounds(2, None)}
    assert bounds_of(add(mul(A, 2), 3), table) == Bounds(5, 19)
    assert bounds_of(add(A, -4), table) == Bounds(0, 4)
    assert bounds_of(mul(A, B), table) == Bounds(2, None)
    assert bounds_of(floordiv(A, B), table) == Bounds(0, 4)
    assert bounds_of(maximum(A, 5), table) == Bounds(5, 8)
    assert bounds_of(minimum(B, 5), table) == Bounds(2, 5)
    assert bounds_of(C, table) == Bounds(0, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("batch", symbol("batch")),
        ("2*a + 3", add(mul(A, 2), 3)),
        ("a**2", mul(A, A)),
        ("FloorDiv(a, 2)", floordiv(A, 2)),
        ("CeilDiv(a, 2)", ceildiv(A, 2)),
        ("floor(a/2)", floordiv(A, 2)),
        ("ceiling(a/2)", ceildiv(A, 2)),
        ("Max(1, a, b)", maximum(maximum(1, A), B)),
        ("Mod(a, 3)", mod(A, 3)),
        ("-(a - b)", add(B, mul(A, -1))),
        ("12", 12),
    ],
)
def test_parse_dim_reads(text: str, expected: Dim) -> None:
    assert parse_dim(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "a b", "a/2", "f(a)", "a.b", "1.5", "True", "a if b else c", "2**a", "a**17", "a//0"),
        *("(" * 300 + "a" + ")" * 300, "a+" * 6000 + "a", "__import__('os')", "lambda: 1", "a\0"),
    ],
)
def test_parse_dim_refuses(text: str) -> None:
    assert parse_dim(text) is None


def test_expressions_are_hashable_and_never_equal_to_numbers() -> None:
    assert {A: 1, symbol("a"): 2} == {A: 2}
    assert A != 1
    assert isinstance(A, Expr)
    assert isinstance(floordiv(A, 2), Expr)
    assert Call("//", A, 2) in floordiv(A, 2).terms[0][0]  # type: ignore[union-attr]
