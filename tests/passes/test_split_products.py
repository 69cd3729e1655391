"""Products in parts: the same bits at every width, weights left where they are, many nodes."""

import time

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt.ir.program import Program
from graphopt.ir.shapes import infer_shapes
from graphopt.passes.split_products import SplitProducts
from graphopt.pipeline.base import PassResult
from tests.passes.graphs import run

RNG = np.random.default_rng(0)


def layers(count: int, rows: int, columns: int, between: tuple[str, ...]) -> ir.Model:
    """Return ``count`` hidden layers that share their weights."""
    helper = onnx.helper
    weights = {
        "w": RNG.integers(-127, 128, (rows, columns)).astype(np.int8),
        "v": RNG.integers(-127, 128, (columns, rows)).astype(np.int8),
        "ws": RNG.uniform(0.001, 0.01, columns).astype(np.float32),
        "b": RNG.standard_normal(columns).astype(np.float32),
        "s": np.float32(0.02),
        "z": np.uint8(100),
    }
    nodes = []
    for i in range(count):
        for name in ("w", "v"):
            weights[f"{name}{i}"] = weights[name]
        product = [f"x{i}", f"w{i}", "s", "ws", "z", "", "b"]
        chain = [helper.make_node("MatMulIntegerToFloat", product, [f"m{i}"], name=f"p{i}")]
        for op in (*between, "QuantizeLinear"):
            source = chain[-1].output[0]
            more = ["s", "z"] if op == "QuantizeLinear" else []
            chain.append(helper.make_node(op, [source, *more], [f"{source}_"], name=f"{op}{i}"))
        nodes += chain
        product = [chain[-1].output[0], f"v{i}", "s", "s", "z"]
        nodes.append(helper.make_node("MatMulIntegerToFloat", product, [f"r{i}"], name=f"q{i}"))
        again = [f"r{i}", "s", "z"]
        nodes.append(helper.make_node("QuantizeLinear", again, [f"x{i + 1}"], name=f"back{i}"))
    del weights["w"], weights["v"]
    for node in nodes:
        node.domain = "com.microsoft" if node.op_type == "MatMulIntegerToFloat" else ""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x0", onnx.TensorProto.UINT8, ["n", 3, rows])],
        [helper.make_tensor_value_info(f"x{count}", onnx.TensorProto.UINT8, ["n", 3, rows])],
        [onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=9))
    infer_shapes(Program(model))
    return model


@pytest.mark.parametrize("between", [(), ("Gelu",), ("Neg", "Tanh")])
@pytest.mark.parametrize(("columns", "parts"), [(64, 4), (96, 6), (128, 8), (16, 0), (48, 3)])
def test_the_same_bits_in_parts(between: tuple[str, ...], columns: int, parts: int) -> None:
    model = layers(2, 12, columns, between)
    feed = {"x0": RNG.integers(0, 256, (2, 3, 12)).astype(np.uint8)}
    wanted = run(model, feed)
    result = SplitProducts()(model)
    assert isinstance(result, PassResult)
    assert result.rewrites == (2 if parts else 0)
    infer_shapes(Program(model))
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert np.array_equal(run(model, feed)[0], wanted[0])
    joined = [node for node in model.graph if node.op_type == "Concat"]
    assert [len(node.inputs) for node in joined] == [parts] * (2 if parts else 0)
    widest = max(
        int(value.shape[-1])  # type: ignore[arg-type]  # the widths are fixed
        for node in model.graph
        for value in node.outputs
        if value.dtype is ir.DataType.FLOAT and value.shape is not None
    )
    assert widest < 24
    read = {value for node in model.graph for value in node.inputs}
    assert [v.name for v in model.graph.initializers.values() if v not in read] == []


def test_weights_are_cut_when_they_are_written_and_shared_constants_once() -> None:
    model = layers(2, 64, 2048, ())
    SplitProducts()(model)
    kept = {name: value.const_value for name, value in model.graph.initializers.items()}
    assert isinstance(kept["w0_part"], ir.LazyTensor)
    # Scales and bias are read by both layers: their parts, too.
    count = sum(name.startswith("w0_part") for name in kept)
    assert count == sum(name.startswith("w1_part") for name in kept) == 32
    assert sum(name.startswith("ws_part") for name in kept) == count
    assert sum(name.startswith("b_part") for name in kept) == count


def test_three_elementwise_operators_are_too_many() -> None:
    model = layers(1, 12, 64, ("Neg", "Tanh", "Abs"))
    result = SplitProducts()(model)
    assert isinstance(result, PassResult)
    assert not result.modified
    assert ("float-reader", "p0") in {(skip.reason, skip.node) for skip in result.skipped}


@pytest.mark.slow
def test_many_layers_take_seconds() -> None:
    model = layers(4000, 4, 16, ("Gelu",))
    model.graph.inputs[0].shape = ir.Shape(["n", 3, 4])
    started = time.process_time()
    result = SplitProducts()(model)
    assert isinstance(result, PassResult)
    assert time.process_time() - started < 10
