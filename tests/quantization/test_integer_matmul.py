"""Products with float results: written as the runtime's operator, with bias, at every shape."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from graphopt.ir.program import Program
from graphopt.ir.shapes import infer_shapes
from graphopt.passes.insert_qdq import InsertQdq
from graphopt.quantization.rules import DEFAULT_OPERATORS, FLOAT_SUM, INTEGER_MATMUL
from graphopt.targets import resolve_target
from tests.passes.graphs import graph, ops_of, run

RNG = np.random.default_rng(0)
FORMS = (*DEFAULT_OPERATORS, INTEGER_MATMUL, FLOAT_SUM)
W = (RNG.standard_normal((16, 8)) / 4).astype(np.float32)
V = (RNG.standard_normal((8, 16)) / 4).astype(np.float32)
B = RNG.standard_normal(8).astype(np.float32)
HEAD = "g (float[{n},5,16] x, float[16,8] w, float[8,16] v, float[8] b) => "


def quantized(
    text: str, operators: tuple[str, ...] = FORMS, keep: tuple[str, ...] = (), **ranges: str
) -> ir.Model:
    model = graph(text, w=W, v=V, b=B)
    infer_shapes(Program(model))
    known = dict.fromkeys("xmaryz", "-3:3") | ranges
    options = tuple(f"{name}={text}" for name, text in known.items())
    assert InsertQdq(operators=operators, keep_float=keep, ranges=options)(model).modified
    infer_shapes(Program(model))
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return model


def kernels(model: ir.Model, path: Path) -> list[str]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path)
    data = ir.to_proto(model).SerializeToString()
    ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(path).graph.node]


def error(text: str, model: ir.Model, rows: int = 2) -> float:
    """Return the noise of the worst output beside its energy."""
    feed = {"x": np.clip(RNG.standard_normal((rows, 5, 16)), -3, 3).astype(np.float32)}
    wanted, got = run(graph(text, w=W, v=V, b=B), feed), run(model, feed)
    return max(
        float(np.square(a - g).sum() / np.square(a).sum()) for a, g in zip(wanted, got, strict=True)
    )


@pytest.mark.parametrize("size", ["n", "2"])
@pytest.mark.parametrize("order", ["m, b", "b, m"])
def test_the_bias_goes_into_the_product_at_any_shape(size: str, order: str, tmp_path: Path) -> None:
    """Of fixed shape, onnxruntime would make a Gemm between two Reshapes of Q/DQ and Add."""
    text = HEAD.format(n=size) + (
        f"(float[{size},5,8] y, float[{size},5,8] z)"
        f"{{ m = MatMul (x, w) y = Add ({order}) z = MatMul (x, w) }}"
    )
    model = quantized(text)
    assert ops_of(model) == ["QuantizeLinear", INTEGER_MATMUL, INTEGER_MATMUL]
    assert kernels(model, tmp_path / "o.onnx") == ops_of(model)
    assert [value.name for value in model.graph.outputs] == ["y", "z"]
    assert {node.name for node in model.graph} >= {"MatMul_1", "MatMul_3"}
    assert model.graph.opset_imports["com.microsoft"] == 1
    assert error(text, model) < 1e-3
    # What the default writes is right too, but float in a runtime that fuses first.
    plain = quantized(text, DEFAULT_OPERATORS)
    assert error(text, plain) < 2e-3
    if size == "2":
        assert "Gemm" in kernels(plain, tmp_path / "p.onnx")


@pytest.mark.parametrize(
    "body",
    [
        "(float[n,5,8] y, float[n,5,8] m) { m = MatMul (x, w) y = Add (m, b) }",
        "(float[n,5,8] y) { m = MatMul (x, w) y = Add (m, m) }",
        "(float[n,5,8] y) { m = MatMul (x, w) r = Relu (m) y = Add (r, b) }",
    ],
)
def test_an_add_that_is_no_bias_stays(body: str) -> None:
    text = HEAD.format(n="n") + body
    model = quantized(text)
    assert "Add" in ops_of(model)
    assert error(text, model) < 2e-3


def test_a_bias_of_another_width_stays() -> None:
    text = "g (float[n,5,16] x, float[16,1] w, float[8] b) => (float[n,5,8] y) "
    text += "{ m = MatMul (x, w) y = Add (m, b) }"
    model = graph(text, w=W[:, :1], b=B)
    infer_shapes(Program(model))
    assert InsertQdq(operators=FORMS, ranges=("x=-3:3", "m=-3:3", "y=-9:9"))(model).modified
    assert ops_of(model)[-1] == "Add"


def test_the_sum_before_the_bias_is_not_rounded() -> None:
    """Between integer nodes it gives floats, too: eight bits before the bias lose more."""
    text = HEAD.format(n="n") + (
        "(float[n,5,16] z) { m = MatMul (x, w) a = Add (m, b) r = Relu (a) z = MatMul (r, v) }"
    )
    model = quantized(text, r="0:3")
    # Saturation replaces the Relu.
    assert ops_of(model) == ["QuantizeLinear", INTEGER_MATMUL, "QuantizeLinear", INTEGER_MATMUL]
    assert error(text, model) < error(text, quantized(text, DEFAULT_OPERATORS, r="0:3"))


def test_conversions_that_only_products_read_are_not_written() -> None:
    text = HEAD.format(n="n") + (
        "(float[n,5,8] y, float[n,5,16] u) { y = MatMul (x, w) u = Neg (x) }"
    )
    assert ops_of(quantized(text)) == ["QuantizeLinear", INTEGER_MATMUL, "Neg"]


def test_a_moved_input_keeps_its_name() -> None:
    text = HEAD.format(n="n") + (
        "(float[n,5,8] y) { a = MatMul (x, w) r = Relu (a) m = MatMul (r, v) z = Relu (m)"
        " y = MatMul (z, w) }"
    )
    model = quantized(text, r="0:3", z="0:3")
    made = {value.name for node in model.graph for value in node.outputs}
    assert {"r", "z", "y"} <= made


def test_a_float_product_is_not_quantized_for_moves_alone() -> None:
    text = HEAD.format(n="n") + (
        "(float[n,5,8] y) { m = MatMul (x, w) r = Reshape (m, s) y = Neg (r) }"
    )
    text = text.replace("float[8] b)", "float[8] b, int64[3] s)")
    model = graph(text, w=W, v=V, b=B, s=np.array([0, 5, 8]))
    infer_shapes(Program(model))
    assert InsertQdq(operators=FORMS, ranges=("x=-3:3", "m=-3:3", "r=-3:3"))(model).modified
    assert ops_of(model) == ["QuantizeLinear", INTEGER_MATMUL, "Reshape", "Neg"]


def test_keep_float_returns_a_product_with_its_bias() -> None:
    text = HEAD.format(n="n") + (
        "(float[n,5,8] y, float[n,5,8] z) { m = MatMul (x, w) y = Add (m, b) z = MatMul (x, w) }"
    )
    model = quantized(text, keep=("MatMul_1",))
    kept = {node.name: node.op_type for node in model.graph}
    assert (kept["MatMul_1"], kept["Add_2"]) == ("MatMul", "Add")
    assert kept["MatMul_3"] == INTEGER_MATMUL


def test_means_that_rounding_takes_go_into_the_bias() -> None:
    from graphopt.quantization.description import META_KEY, Description

    text = HEAD.format(n="n") + "(float[n,5,8] y) { y = MatMul (x, w) }"
    model = graph(text, w=W, v=V, b=B)
    infer_shapes(Program(model))
    ranges = {"x": (-3.0, 3.0), "y": (-3.0, 3.0)}
    model.meta[META_KEY] = Description(ranges, {"x": np.full(16, 2.0)})
    InsertQdq(operators=FORMS)(model)
    node = model.graph[-1]
    integers, scales = (node.inputs[i].const_value.numpy() for i in (1, 3))  # type: ignore[union-attr]
    lost = 2.0 * (W.astype(np.float64) - integers * scales.astype(np.float64)).sum(0)
    bias = node.inputs[6]
    assert bias is not None
    assert bias.const_value is not None
    assert np.allclose(bias.const_value.numpy(), lost, atol=1e-6)
    assert np.abs(lost).max() > 1e-3


def test_the_residual_sum_is_not_fused_with_the_normalization(tmp_path: Path) -> None:
    text = HEAD.format(n="n") + (
        "(float[n,5,16] y) <float[16] s = {" + "1," * 15 + "1}>"
        "{ m = MatMul (x, w) r = Relu (m) a = MatMul (r, v) z = Add (x, a)"
        " y = LayerNormalization (z, s) }"
    )
    model = quantized(text, r="0:3")
    assert kernels(model, tmp_path / "o.onnx")[-2:] == ["Sum", "LayerNormalization"]
    assert error(text, model) < 2e-3
    fused = quantized(text, DEFAULT_OPERATORS, r="0:3")
    assert kernels(fused, tmp_path / "f.onnx")[-1] == "SkipLayerNormalization"


def test_both_x86_targets_name_every_operator_with_a_rule_and_the_forms() -> None:
    for name in ("cpu", "cpu-vnni"):
        scheme = resolve_target(name).quantization
        assert scheme is not None
        assert set(scheme.operators) == set(FORMS)
        assert scheme.activation == "uint8"


def test_vnni_is_the_only_difference() -> None:
    plain, vnni = resolve_target("cpu").quantization, resolve_target("cpu-vnni").quantization
    assert plain is not None
    assert vnni is not None
    assert (plain.reduce_range, vnni.reduce_range) == (True, False)
    assert vnni.model_copy(update={"reduce_range": True}) == plain
    assert "cpu-vnni" in resolve_target("cpu").description
