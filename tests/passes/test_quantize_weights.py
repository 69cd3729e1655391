"""Weights in few bits from end to end: what is emitted, what it computes, what it costs."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

import graphopt
from graphopt.errors import OptionError, UnsupportedError
from graphopt.ir.program import dims_of
from graphopt.numerics.compare import Tolerance
from graphopt.numerics.sqnr import sqnr_db, worst
from graphopt.passes import default_pipeline
from graphopt.passes.infer_shapes import InferShapes
from graphopt.passes.quantize_weights import QuantizeWeights
from graphopt.pipeline.base import PassResult
from graphopt.quantization import weight_emission
from graphopt.quantization.block_weights import BlockScheme, dequantize, quantize_matrix
from graphopt.quantization.precisions import weight_precision_passes
from graphopt.targets.loader import resolve_target
from tests.passes.graphs import graph

RNG = np.random.default_rng(0)
ANYTHING = Tolerance(rtol=1e3, atol=1e3)
NODE = onnx.helper.make_node


def some(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def model_of(
    nodes: list[Any],
    weights: dict[str, np.ndarray],
    inputs: dict[str, tuple[int, list[Any]]],
    outputs: dict[str, list[Any]],
    opset: int = 18,
    kind: int = 1,
) -> onnx.ModelProto:
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [info(name, dtype, shape) for name, (dtype, shape) in inputs.items()],
        [info(name, kind, shape) for name, shape in outputs.items()],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [onnx.helper.make_opsetid("", opset)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)


def language_model(width: int = 64, words: int = 300) -> onnx.ModelProto:
    """Return a lookup, two products and a last layer that shares its weight with the lookup."""
    nodes = [
        NODE("Gather", ["table", "ids"], ["h0"], name="embed"),
        NODE("MatMul", ["h0", "up"], ["h1"], name="up"),
        NODE("Tanh", ["h1"], ["h2"], name="tanh"),
        NODE("MatMul", ["h2", "down"], ["h3"], name="down"),
        NODE("Reshape", ["h3", "rows"], ["h4"], name="flat"),
        NODE("Gemm", ["h4", "table"], ["y"], name="head", transB=1),
    ]
    weights = {
        "table": some(words, width),
        "up": some(width, 172) / 8,
        "down": some(172, width) / 12,
        "rows": np.array([-1, width]),
    }
    return model_of(nodes, weights, {"ids": (7, ["n", 5])}, {"y": ["m", words]})


def compiled(model: onnx.ModelProto, *passes: str, **keywords: Any) -> graphopt.CompileResult:
    keywords.setdefault("verify", ANYTHING)
    return graphopt.compile(model, passes=["infer-shapes", *passes], **keywords)


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray], *, fuse: bool = True) -> Any:
    options = ort.SessionOptions()
    if not fuse:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)[0]


def saved(result: graphopt.CompileResult, folder: Path) -> onnx.ModelProto:
    result.save(folder / "out.onnx")
    onnx.checker.check_model(folder / "out.onnx")
    return onnx.load(folder / "out.onnx")


def test_a_tied_weight_is_stored_once(tmp_path: Path) -> None:
    original = language_model()
    result = compiled(original, "quantize-weights{accuracy_level=1}")
    model = saved(result, tmp_path)
    assert operators(model) == [
        "Reshape", "GatherBlockQuantized", "Reshape", "MatMulNBits", "Tanh", "MatMulNBits",
        "Reshape", "MatMulNBits",
    ]  # fmt: skip
    sizes = {t.name: tuple(t.dims) for t in model.graph.initializer}
    assert {name: size for name, size in sizes.items() if name.startswith("table")} == {
        "table_scales": (300, 2),
        "table_scales_shape": (3,),
        "table_int4": (300, 2, 16),
        "table_zero_points_rows": (300, 2, 1),
        "table_rows_shape": (3,),
        "table_zero_points": (300, 1),
    }
    readers = [node.op_type for node in model.graph.node if "table_int4" in node.input]
    assert readers == ["GatherBlockQuantized", "MatMulNBits"]
    assert {o.domain: o.version for o in model.opset_import} == {"": 18, "com.microsoft": 1}
    ids = RNG.integers(0, 300, (3, 5))
    for fuse in (True, False):
        assert close(run(model, {"ids": ids}, fuse=fuse), rounded(original, 4, {"ids": ids}))


def rounded(model: onnx.ModelProto, bits: int, feeds: dict[str, np.ndarray]) -> Any:
    """Return what ``model`` computes with the float weights that the integers stand for."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    turned = {n.input[1] for n in copy.graph.node if n.op_type == "Gemm"}
    scheme = BlockScheme(bits, 32)
    for tensor in copy.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.ndim == 2:
            by_column = tensor.name not in turned
            parts = quantize_matrix(array, scheme, by_column=by_column)
            wide = dequantize(parts, scheme, array.shape[0 if by_column else 1])
            wide = np.ascontiguousarray(wide.T if by_column else wide)
            tensor.CopyFrom(onnx.numpy_helper.from_array(wide, tensor.name))
    return run(copy, feeds)


def close(found: np.ndarray, wanted: np.ndarray) -> bool:
    return bool(np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("bits", [4, 8])
def test_the_result_computes_with_the_rounded_weights(bits: int, tmp_path: Path) -> None:
    original = language_model()
    result = compiled(original, f"quantize-weights{{bits={bits},accuracy_level=1}}")
    ids = RNG.integers(0, 300, (2, 5))
    found = run(saved(result, tmp_path), {"ids": ids})
    assert close(found, rounded(original, bits, {"ids": ids}))


def test_the_file_loads_again_and_its_plan_is_complete(tmp_path: Path) -> None:
    result = compiled(language_model(), "quantize-weights", bindings={"n": 4})
    assert result.plan.not_planned == ()
    result.save(tmp_path / "out.onnx")
    again = graphopt.plan(tmp_path / "out.onnx", bindings={"n": 4})
    assert again.not_planned == ()
    assert again.arena_bytes == result.plan.arena_bytes
    before = sum(pool.weight_bytes for pool in result.baseline.pools)
    after = sum(pool.weight_bytes for pool in result.plan.pools)
    assert after < before / 5
    # The blocks of looked-up rows are joined by a view: the rows are in memory once.
    buffers = {alias.value: b for b in again.buffers for alias in b.values}
    assert buffers["h0"] is buffers["h0_gatherblockquantized"]


def test_a_second_compile_changes_nothing(tmp_path: Path) -> None:
    result = compiled(language_model(), "quantize-weights")
    result.save(tmp_path / "out.onnx")
    again = graphopt.compile(
        tmp_path / "out.onnx", passes=["infer-shapes", "quantize-weights"], verify=Tolerance()
    )
    assert again.report[-1].rewrites == 0


def test_large_weights_wait_until_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantized: list[tuple[int, ...]] = []

    def counted(matrix: np.ndarray, *args: Any, **keywords: Any) -> Any:
        quantized.append(matrix.shape)
        return quantize_matrix(matrix, *args, **keywords)

    monkeypatch.setattr(weight_emission, "quantize_matrix", counted)
    result = compiled(language_model(512, 600), "quantize-weights", verify=False)
    assert quantized == []
    initializers = result.program.graph.initializers
    assert isinstance(initializers["table_int4"].const_value, ir.LazyTensor)
    saved(result, tmp_path)
    # Integers, scales and both kinds of zero points of one weight are made together.
    assert sorted(quantized) == [(172, 512), (512, 172), (600, 512)]


def test_readers_of_different_axes_have_integers_of_their_own(tmp_path: Path) -> None:
    nodes = [
        NODE("MatMul", ["x", "w"], ["h"], name="rows"),
        NODE("Gemm", ["h", "w"], ["y"], name="columns", transB=1),
    ]
    weights = {"w": some(64, 48)}
    original = model_of(nodes, weights, {"x": (1, [2, 64])}, {"y": [2, 64]})
    model = saved(compiled(original, "quantize-weights"), tmp_path)
    assert operators(model) == ["MatMulNBits", "MatMulNBits"]
    shapes = [tuple(t.dims) for t in model.graph.initializer if "int4" in t.name]
    assert shapes == [(48, 2, 16), (64, 3, 8)]
    x = some(2, 64)
    found, wanted = run(model, {"x": x}), x @ weights["w"] @ weights["w"].T
    assert worst(sqnr_db([{"y": wanted}], [{"y": found}])) > 14


def test_a_tied_weight_whose_rows_are_no_whole_blocks_is_shared_by_no_one(tmp_path: Path) -> None:
    result = compiled(language_model(width=40), "quantize-weights")
    model = saved(result, tmp_path)
    shapes = {tuple(t.dims) for t in model.graph.initializer if t.name.startswith("table_int4")}
    assert shapes == {(300, 3, 8), (300, 20)}
    ids = RNG.integers(0, 300, (3, 5))
    wanted = run(language_model(width=40), {"ids": ids})
    assert run(model, {"ids": ids}).shape == wanted.shape


def body_model() -> onnx.ModelProto:
    """Return an If whose branches multiply by a weight of the main graph."""
    info = onnx.helper.make_tensor_value_info

    def branch(name: str, scale: str) -> onnx.GraphProto:
        nodes = [
            NODE("MatMul", ["x", "w"], [f"{name}_m"], name=f"{name}_product"),
            NODE(scale, [f"{name}_m"], [f"{name}_y"], name=f"{name}_after"),
        ]
        return onnx.helper.make_graph(nodes, name, [], [info(f"{name}_y", 1, [2, 48])])

    nodes = [
        NODE("If", ["c"], ["y"], then_branch=branch("a", "Tanh"), else_branch=branch("b", "Abs"))
    ]
    inputs: dict[str, tuple[int, list[Any]]] = {"c": (9, []), "x": (1, [2, 64])}
    return model_of(nodes, {"w": some(64, 48)}, inputs, {"y": [2, 48]})


def test_products_in_branches_share_the_integers(tmp_path: Path) -> None:
    original = body_model()
    model = saved(compiled(original, "quantize-weights{bits=8}"), tmp_path)
    assert [t.name for t in model.graph.initializer] == ["w_int8", "w_scales", "w_zero_points"]
    for flag in (True, False):
        feeds = {"c": np.array(flag), "x": some(2, 64)}
        wanted, found = run(original, feeds), run(model, feeds)
        assert worst(sqnr_db([{"y": wanted}], [{"y": found}])) > 35


def convolutions(sizes: list[int], opset: int = 18) -> onnx.ModelProto:
    nodes, weights, source = [], {}, "x"
    before = 4
    for index, size in enumerate(sizes):
        weights[f"w{index}"] = some(size, before, 3, 3) / 10
        nodes.append(
            NODE("Conv", [source, f"w{index}"], [f"c{index}"], name=f"conv{index}", pads=[1] * 4)
        )
        source, before = f"c{index}", size
    nodes.append(NODE("ConvTranspose", [source, "t"], ["y"], name="back"))
    weights["t"] = some(before, 8, 3, 3) / 10
    inputs: dict[str, tuple[int, list[Any]]] = {"x": (1, [1, 4, 6, 6])}
    return model_of(nodes, weights, inputs, {"y": [1, 8, 8, 8]}, opset)


def test_convolutions_are_widened_where_that_pays(tmp_path: Path) -> None:
    original = convolutions([16, 16, 16])
    model = saved(compiled(original, "quantize-weights{bits=8}"), tmp_path)
    assert operators(model).count("DequantizeLinear") == 3
    x = {"x": some(1, 4, 6, 6)}
    assert worst(sqnr_db([{"y": run(original, x)}], [{"y": run(model, x)}])) > 35
    # The float copy of the only one left would take more than its integers save.
    alone = "bits=8,min_elements=30000"
    result = compiled(convolutions([16, 256]), f"quantize-weights{{{alone}}}")
    assert {s.node: s.reason for s in result.report[-1].skipped} == {
        "conv0": "small",
        "conv1": "widened-at-run",
        "back": "small",
    }
    asked = compiled(convolutions([16, 256]), f"quantize-weights{{{alone},form=standard}}")
    assert [s.node for s in asked.report[-1].skipped] == ["conv0", "back"]


STANDARD = [
    ("bits=8,block=0,symmetric=true", 13, "INT8"),
    ("bits=8,block=0", 13, "UINT8"),
    ("bits=8,block=32", 21, "UINT8"),
    ("bits=4,block=32,symmetric=true", 21, "INT4"),
    ("bits=4,block=32", 21, "UINT4"),
    ("bits=4,block=0", 21, "UINT4"),
]


@pytest.mark.parametrize(("options", "opset", "dtype"), STANDARD)
@pytest.mark.parametrize("method", ["rtn", "mse", "hqq"])
def test_the_standard_form_runs_everywhere(
    options: str, opset: int, dtype: str, method: str, tmp_path: Path
) -> None:
    nodes = [
        NODE("MatMul", ["x", "w"], ["h"], name="first"),
        NODE("Gemm", ["h", "v", "b"], ["y"], name="second", transB=1),
    ]
    weights = {"w": some(96, 40), "v": some(24, 40), "b": some(24)}
    original = model_of(nodes, weights, {"x": (1, [3, 96])}, {"y": [3, 24]}, opset)
    text = f"quantize-weights{{form=standard,min_elements=1,method={method},{options}}}"
    result = compiled(original, text)
    model = saved(result, tmp_path)
    assert operators(model) == ["DequantizeLinear", "MatMul", "DequantizeLinear", "Gemm"]
    kinds = {ir.DataType(t.data_type).name for t in model.graph.initializer if "int" in t.name}
    assert kinds == {dtype}
    x = {"x": some(3, 96)}
    wanted = [{"y": run(original, x)}]
    floor = 34 if "bits=8" in options else (12 if "block=0" in options else 15)
    assert worst(sqnr_db(wanted, [{"y": run(model, x, fuse=False)}])) > floor
    # What the runtime fuses computes the same up to the rounding of its 8-bit activations.
    assert worst(sqnr_db(wanted, [{"y": run(model, x)}])) > min(floor, 30)


def test_half_floats_stay_half_floats(tmp_path: Path) -> None:
    nodes = [NODE("MatMul", ["x", "w"], ["y"], name="product")]
    weights = {"w": some(64, 48).astype(np.float16)}
    original = model_of(nodes, weights, {"x": (10, [2, 64])}, {"y": [2, 48]}, kind=10)
    model = saved(compiled(original, "quantize-weights{bits=8}"), tmp_path)
    assert {t.name: t.data_type for t in model.graph.initializer}["w_scales"] == 10
    x = {"x": some(2, 64).astype(np.float16)}
    assert worst(sqnr_db([{"y": run(original, x)}], [{"y": run(model, x)}])) > 35


def test_a_constant_node_goes_with_its_weight(tmp_path: Path) -> None:
    value = onnx.numpy_helper.from_array(some(64, 48), "v")
    nodes = [
        NODE("Constant", [], ["w"], value=value, name="weight"),
        NODE("MatMul", ["x", "w"], ["y"], name="product"),
    ]
    original = model_of(nodes, {}, {"x": (1, [2, 64])}, {"y": [2, 48]})
    assert operators(saved(compiled(original, "quantize-weights"), tmp_path)) == ["MatMulNBits"]


def test_new_values_have_types_and_shapes() -> None:
    model = ir.from_proto(language_model())
    InferShapes()(model)
    QuantizeWeights()(model)
    for node in model.graph:
        assert dims_of(node.outputs[0]) is not None
        assert node.outputs[0].dtype is ir.DataType.FLOAT
    before = {v.name: str(v.shape) for node in model.graph for v in node.outputs}
    InferShapes()(model)
    assert {v.name: str(v.shape) for node in model.graph for v in node.outputs} == before


def test_many_readers_of_few_weights_share_the_integers() -> None:
    count = 5000
    rows = ["h0 = MatMul (x, w0)"]
    rows += [f"h{i} = MatMul (h{i - 1}, w{i % 50})" for i in range(1, count)]
    inputs = ", ".join(f"float[16,16] w{index}" for index in range(50))
    text = f"g (float[2,16] x, {inputs}) => (float[2,16] h{count - 1}) {{ {' '.join(rows)} }}"
    model = graph(text)
    for value in list(model.graph.inputs)[1:]:
        value.const_value = ir.tensor(np.ones((16, 16), np.float32), name=value.name)
        model.graph.register_initializer(value)
    while len(model.graph.inputs) > 1:
        model.graph.inputs.pop()
    InferShapes()(model)
    result = QuantizeWeights(min_elements=1, block=16)(model)
    assert isinstance(result, PassResult)
    assert result.rewrites == count
    assert len(model.graph.initializers) == 3 * 50


@pytest.mark.parametrize(
    "options",
    ["bits=5", "block=20", "method=gptq", "form=other", "accuracy_level=7", "block=0"],
)
def test_options_that_do_not_exist_are_refused(options: str) -> None:
    with pytest.raises(OptionError) as caught:
        compiled(language_model(), f"quantize-weights{{{options}}}")
    assert caught.value.code == "weight-scheme"


def by_weight_precision(precision: str, target: str = "cpu") -> list[str]:
    resolved = resolve_target(target)
    return [*default_pipeline(resolved), *weight_precision_passes(precision, resolved)]


@pytest.mark.parametrize(("precision", "decibels"), [("int8-weights", 32), ("int4-weights", 14)])
def test_the_passes_of_a_precision_do_what_it_says(
    precision: str, decibels: float, tmp_path: Path
) -> None:
    original = language_model()
    passes = by_weight_precision(precision)
    model = saved(graphopt.compile(original, passes=passes, verify=ANYTHING), tmp_path)
    bits = {a.i for n in model.graph.node for a in n.attribute if a.name == "bits"}
    assert bits == {4 if precision == "int4-weights" else 8}
    feeds = {"ids": RNG.integers(0, 300, (3, 5))}
    wanted, found = run(original, feeds), run(model, feeds)
    assert worst(sqnr_db([{"y": wanted}], [{"y": found}])) > decibels


def test_what_has_no_4_bit_operator_is_stored_in_8(tmp_path: Path) -> None:
    passes = by_weight_precision("int4-weights")
    original = convolutions([16, 16, 16], opset=11)
    model = saved(graphopt.compile(original, passes=passes, verify=ANYTHING), tmp_path)
    assert operators(model).count("DequantizeLinear") == 3
    assert {ir.DataType(t.data_type).name for t in model.graph.initializer} == {"INT8", "FLOAT"}


@pytest.mark.parametrize("target", ["cpu", "arm64-cpu", "raspberry-pi-5", "nvidia-l4"])
def test_onnxruntime_targets_get_its_operators(target: str) -> None:
    resolved = resolve_target(target)
    for precision in ("int8-weights", "int4-weights"):
        text = " ".join(weight_precision_passes(precision, resolved))
        assert "standard" not in text
        assert ("accuracy_level=0" in text) == (resolved.kind == "gpu")


def test_a_compiler_gets_the_standard_form() -> None:
    passes = weight_precision_passes("int8-weights", resolve_target("apple-m4"))
    assert all("standard" in text for text in passes if text.startswith("quantize"))


@pytest.mark.parametrize(
    ("target", "precision", "reason"),
    [
        ("apple-m4", "int4-weights", "stores float16, int8"),
        ("ethos-u55", "int8-weights", "integer activations"),
        ("hexagon-v73", "int4-weights", "integer activations"),
        ("stm32h743", "int8-weights", "float weights"),
    ],
)
def test_targets_without_kernels_are_refused(target: str, precision: str, reason: str) -> None:
    with pytest.raises(UnsupportedError, match=reason) as caught:
        weight_precision_passes(precision, resolve_target(target))
    assert caught.value.code == "precision-no-kernel"


@pytest.mark.parametrize(("precision", "decibels"), [("int8-weights", 36), ("int4-weights", 16)])
def test_a_trained_language_model_keeps_its_outputs(
    precision: str, decibels: float, assets: Path, tmp_path: Path
) -> None:
    path = assets / "models" / "stories260k_prefill.onnx"
    result = graphopt.compile(path, passes=by_weight_precision(precision), verify=ANYTHING)
    model = saved(result, tmp_path)
    assert operators(model).count("MatMulNBits") == 36
    assert operators(model).count("GatherBlockQuantized") == 1
    feeds = {"tokens": np.array([[1, 403, 407, 261, 378, 432, 383, 286, 261, 380]])}
    wanted = run(onnx.load(path), feeds)
    assert worst(sqnr_db([{"y": wanted}], [{"y": run(model, feeds)}])) > decibels
