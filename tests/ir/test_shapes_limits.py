"""Large, deep and hostile graphs: time, recursion, expressions that explode, broken nodes."""

import random
import time
from collections import Counter
from functools import cache

import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from graphopt.errors import GraphoptError, InvalidModelError
from graphopt.ir.dims import symbols_of
from graphopt.ir.program import Program, dims_of
from graphopt.ir.shape_rules.registry import covered
from graphopt.ir.shapes import infer_shapes
from tests.ir.onnx_cases import cases
from tests.ir.shape_models import inferred, ints, zeros


def chain(count: int, batch: int | str) -> Program:
    """Return ``count`` nodes, a third each of Conv, Relu and Add."""
    x = ir.Value(
        name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([batch, 64, 56, 56])
    )
    weight = ir.Value(name="w", const_value=ir.tensor(zeros(64, 64, 3, 3), name="w"))
    nodes: list[ir.Node] = []
    current = x
    for i in range(count // 3):
        conv = ir.Node(
            "",
            "Conv",
            [current, weight],
            [ir.AttrInt64s("kernel_shape", [3, 3]), ir.AttrInt64s("pads", [1, 1, 1, 1])],
            name=f"conv{i}",
        )
        relu = ir.Node("", "Relu", [conv.outputs[0]], name=f"relu{i}")
        total = ir.Node("", "Add", [relu.outputs[0], current], name=f"add{i}")
        for node in (conv, relu, total):
            node.outputs[0].name = f"{node.name}_out"
            nodes.append(node)
        current = total.outputs[0]
    graph = ir.Graph(
        [x], [current], nodes=nodes, initializers=[weight], opset_imports={"": 18}, name="chain"
    )
    return Program(ir.Model(graph, ir_version=10))


@pytest.mark.parametrize("batch", [1, "batch"])
def test_twenty_thousand_nodes_take_a_second_or_two(batch: int | str) -> None:
    # Measured: 0.3 s (fixed) and 0.5 s (symbolic); the guard allows for a busy machine.
    subject = chain(20_000, batch)
    start = time.process_time()
    report = infer_shapes(subject)
    assert time.process_time() - start < 3.0
    assert report.unresolved == {}
    dims = dims_of(subject.graph.outputs[0])
    assert dims is not None
    assert str(dims[0]) == str(batch)
    assert dims[1:] == (64, 56, 56)


def test_time_is_linear_in_the_number_of_nodes() -> None:
    def seconds(count: int) -> float:
        subject = chain(count, 1)
        start = time.process_time()
        infer_shapes(subject)
        return time.process_time() - start

    seconds(300)
    few, many = min(seconds(2_000) for _ in range(3)), min(seconds(16_000) for _ in range(2))
    assert many < 8 * few * 3


def test_nested_branches_do_not_exhaust_the_stack() -> None:
    depth = 90
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n"]))
    flag = ir.Value(name="c", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    inner = ir.node("Relu", [x], name="leaf")
    inner.outputs[0].name = "leaf_out"
    for level in range(depth):
        other = ir.node("Abs", [x], name=f"other{level}")
        other.outputs[0].name = f"other{level}_out"
        bodies = [
            ir.Graph([], n.outputs, nodes=[n], name=f"g{level}{n.name}") for n in (inner, other)
        ]
        inner = ir.node(
            "If",
            [flag],
            attributes={"then_branch": bodies[0], "else_branch": bodies[1]},
            name=f"if{level}",
        )
        inner.outputs[0].name = f"if{level}_out"
    graph = ir.Graph([x, flag], inner.outputs, nodes=[inner], opset_imports={"": 18}, name="deep")
    subject = Program(ir.Model(graph, ir_version=10))
    assert infer_shapes(subject).unresolved == {}
    assert str(dims_of(subject.graph.outputs[0])) == "(Expr(n),)"


def nested_loops(depth: int) -> str:
    """Return loops in loops, in each of which the state grows."""
    text = f"Concat <axis = 0> (s{depth}, piece)"
    body = f"o{depth} = {text}"
    for level in range(depth, 0, -1):
        body = (
            f'o{level - 1} = Loop (m, "", s{level - 1}) <body = b{level} '
            f"(int64 i{level}, bool g{level}, float[] s{level}) => (c{level}, r{level}) {{"
            f" c{level} = Identity (g{level})  {body}"
            f"  r{level} = Concat <axis = 0> (o{level}, s{level}) }}>"
        )
    return f"g (float[n] s0, float[1] piece, int64 m) => (o0) {{ {body} }}"


def test_nested_loops_cost_the_sum_of_their_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt.ir import shapes

    runs: Counter[str] = Counter()
    original = shapes._Engine.run_node

    def counted(engine: shapes._Engine, node: ir.Node) -> None:
        runs[node.op_type] += 1
        original(engine, node)

    monkeypatch.setattr(shapes._Engine, "run_node", counted)
    depth = 12
    _, report = inferred(nested_loops(depth))
    assert report.unresolved == {}
    # Rounds that multiplied would run the innermost node 2**12 times.
    assert runs["Loop"] <= 3 * depth * depth
    assert runs["Concat"] <= 6 * depth * depth


def test_an_expression_that_doubles_at_every_node_is_cut_off() -> None:
    steps = [
        f"a{i + 1} = Slice (x{i}, one, far)  b{i + 1} = Slice (x{i}, zero, far, zero, two)"
        f"  x{i + 1} = Concat <axis = 0> (a{i + 1}, b{i + 1})"
        for i in range(60)
    ]
    body = "  ".join(steps)
    subject, report = inferred(
        f"g (float[n] x0, int64[1] one, int64[1] zero, int64[1] two, int64[1] far) => (x60)"
        f" {{ {body} }}",
        18,
        None,
        one=ints(1),
        zero=ints(0),
        two=ints(2),
        far=ints(2**63 - 1),
    )
    assert report.unresolved == {}
    assert any("longer than 1000 characters" in r for r in report.data_dependent.values())
    for value in (v for node in subject.graph for v in node.outputs):
        dims = dims_of(value)
        assert dims is not None
        assert all(len(str(d)) <= 1000 for d in dims)


def test_products_of_sums_are_refused_before_they_explode() -> None:
    sums = ", ".join(f"float[a{i}] x{i}" for i in range(20))
    joined = ", ".join(f"x{i}" for i in range(20))
    text = f"""g ({sums}, float[1] one) => (flat) {{
        long = Concat <axis = 0> ({joined})
        square = Unsqueeze (long, axes)
        big = Mul (square, long)
        cube = Unsqueeze (big, axes)
        huge = Mul (cube, long)
        back = Transpose (huge)
        more = Mul (huge, back)
        flat = Flatten <axis = 0> (more)
    }}""".replace("float[1] one", "int64[1] axes")
    start = time.process_time()
    _, report = inferred(text, 18, None, axes=ints(-1))
    assert time.process_time() - start < 5
    assert set(report.unresolved) == {"flat"}
    assert report.unresolved["flat"] == "a product of dimensions has more than 256 terms"


HOSTILE = {
    "y = ConstantOfShape (big)": "FLOAT",
    "z = Constant <value_int = 0> () d = Constant <value_int = 1> ()"
    "  l = Constant <value_int = 9000000000000000000> ()  y = Range (z, l, d)": "INT64",
    "e = ConstantOfShape (empty)  y = Tile (e, big)": "FLOAT",
    "e = ConstantOfShape (empty)  y = Slice (e, zero, far, one)": "FLOAT",
    "y = Unsqueeze (x, many)": "FLOAT",
    "u = Unsqueeze (small, many)  y = Transpose (u)": "INT64",
    "u = Unsqueeze (small, many)  y = Tile (u, ones)": "INT64",
}


@pytest.mark.parametrize("body", HOSTILE)
def test_huge_shapes_cost_nothing(body: str) -> None:
    constants = {
        "big": ints(2**40, 2**20),
        "empty": ints(0, 2**40),
        "zero": ints(0),
        "one": ints(1),
        "far": ints(2**40),
        "many": ints(*range(1, 100)),
        "small": ints(3),
        "ones": ints(*[1] * 100),
    }
    used = {k: v for k, v in constants.items() if k in body}
    declared = "".join(f", int64[{v.size}] {k}" for k, v in used.items())
    start = time.process_time()
    subject, report = inferred(f"g (float[2] x{declared}) => (y) {{ {body} }}", 18, None, **used)
    assert time.process_time() - start < 1
    assert report.unresolved == {}
    assert subject.graph.outputs[0].dtype is ir.DataType[HOSTILE[body]]


def test_a_size_above_64_bits_is_refused() -> None:
    with pytest.raises(InvalidModelError, match="impossible shape"):
        inferred(
            "g (int64[2] big) => (y) { a = ConstantOfShape (big)  y = Flatten <axis = 0> (a) }",
            18,
            None,
            big=ints(2**62, 2**62),
        )


# Mutations of ONNX's own node cases


@cache
def seeds() -> list[onnx.ModelProto]:
    models = []
    for case in cases():
        model = onnx.ModelProto()
        model.CopyFrom(case.model)
        for value, array in zip(list(model.graph.input), case.inputs, strict=False):
            kind = getattr(getattr(array, "dtype", None), "kind", "")
            if kind in ("b", "i", "u", "f") and array.size <= 64:
                model.graph.initializer.append(numpy_helper.from_array(array, value.name))
        models.append(model)
    return models


def mutate(model: onnx.ModelProto, rng: random.Random, op_types: list[str]) -> None:
    node = rng.choice(model.graph.node)
    choice = rng.randrange(8)
    if choice == 0 and node.input:
        node.input[rng.randrange(len(node.input))] = ""
    elif choice == 1 and node.input:
        del node.input[rng.randrange(len(node.input))]
    elif choice == 2 and model.graph.input:
        dims = rng.choice(model.graph.input).type.tensor_type.shape.dim
        if dims and rng.random() < 0.7:
            dims[rng.randrange(len(dims))].dim_value = rng.choice([0, 1, 2, 7, 10**6])
        elif dims:
            del dims[-1]
        else:
            dims.add().dim_value = 3
    elif choice == 3 and node.attribute:
        attribute = rng.choice(node.attribute)
        values = [-(2**40), -100, -1, 0, 1, 2, 7, 100, 2**40]
        if attribute.type == onnx.AttributeProto.INT:
            attribute.i = rng.choice(values)
        elif attribute.ints:
            attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(values)
        elif attribute.type == onnx.AttributeProto.STRING:
            attribute.s = rng.choice([b"", b"bidirectional", b"SAME_UPPER", b"...i->i..."])
    elif choice == 4 and node.attribute:
        attribute = rng.choice(node.attribute)
        other = rng.choice([1, 2.5, "x", [1, 2], [1.5], ["a"]])
        attribute.CopyFrom(helper.make_attribute(attribute.name, other))
    elif choice == 5:
        model.opset_import[0].version = rng.randrange(1, 28)
    elif choice == 6 and len(node.input) > 1:
        first, second = rng.sample(range(len(node.input)), 2)
        node.input[first], node.input[second] = node.input[second], node.input[first]
    else:
        node.op_type = rng.choice(op_types)


def test_broken_nodes_raise_our_errors_or_nothing() -> None:
    rng = random.Random("broken nodes")
    op_types = sorted(covered())
    outcomes: Counter[str] = Counter()
    for _ in range(1000):
        model = onnx.ModelProto()
        model.CopyFrom(rng.choice(seeds()))
        for _ in range(rng.randint(1, 3)):
            mutate(model, rng, op_types)
        subject = Program(ir.from_proto(model))
        subject.model.ir_version = rng.choice([3, 10])
        try:
            report = infer_shapes(subject)
        except GraphoptError as error:
            outcomes[error.code] += 1
            continue
        outcomes["inferred"] += 1
        for value in (v for node in subject.graph for v in node.outputs):
            known = value.name not in report.unresolved
            for dim in dims_of(value) or () if known else ():
                assert symbols_of(dim) <= set(subject.bounds)
    assert set(outcomes) == {"inferred", "malformed-node", "shape-mismatch"}
    assert min(outcomes.values()) > 80
