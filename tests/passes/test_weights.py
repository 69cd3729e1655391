"""Passes touch weights late, one at a time, and let go of them."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from graphopt.ir.constants import Array
from graphopt.passes import DEFAULT_PIPELINE, deduplicate_initializers
from graphopt.passes.deduplicate_initializers import DeduplicateInitializers
from graphopt.passes.fold_batch_norm import FoldBatchNorm
from graphopt.passes.fold_constants import FoldConstants
from graphopt.pipeline.options import pass_from_text
from tests.passes.graphs import assert_equal, graph, random_inputs, run

MIB = 1 << 20
SIZE = 512  # a weight of 512 x 512 floats is 1 MiB


def large_model(folder: Path, weights: int, *, equal: bool) -> ir.Model:
    """Return a chain of products with ``weights`` external matrices of 1 MiB."""
    rng = np.random.default_rng(0)
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2, SIZE]))
    main = ir.Graph([x], [], nodes=[], opset_imports={"": 18}, name="g")
    value = x
    first = rng.standard_normal((SIZE, SIZE)).astype(np.float32) / SIZE
    for index in range(weights):
        array = first if equal else rng.standard_normal((SIZE, SIZE)).astype(np.float32) / SIZE
        tensor = ir.Tensor(array, name=f"w{index}")
        weight = ir.Value(
            name=f"w{index}",
            const_value=tensor,
            type=ir.TensorType(ir.DataType.FLOAT),
            shape=ir.Shape([SIZE, SIZE]),
        )
        main.register_initializer(weight)
        node = ir.node("MatMul", [value, weight], name=f"product{index}")
        main.append(node)
        value = node.outputs[0]
    value.name = "y"
    value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([2, SIZE])
    main.outputs.append(value)
    path = folder / "model.onnx"
    ir.save(ir.Model(main, ir_version=10), path, external_data="model.data")
    return ir.load(path)


def peak_bytes(action: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def mapped(model: ir.Model) -> list[str]:
    tensors = model.graph.initializers.tensors()
    return [t.name or "" for t in tensors if isinstance(t, ir.ExternalTensor) and t.raw is not None]


def test_different_weights_are_told_apart_by_their_first_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = large_model(tmp_path, 8, equal=False)

    def no_digest(value: ir.Value) -> bytes:
        raise AssertionError(f"read all of {value.name}")

    monkeypatch.setattr(deduplicate_initializers, "_digest", no_digest)
    assert not DeduplicateInitializers()(model).modified
    assert mapped(model) == []


def test_equal_weights_are_compared_one_at_a_time(tmp_path: Path) -> None:
    model = large_model(tmp_path, 8, equal=True)
    wanted = run(model, random_inputs(model))
    fresh = large_model(tmp_path, 8, equal=True)
    used = peak_bytes(lambda: DeduplicateInitializers()(fresh))
    assert used < MIB
    assert list(fresh.graph.initializers) == ["w0"]
    assert mapped(fresh) == []
    assert_equal(run(fresh, random_inputs(fresh)), wanted, exact=True)


def test_nothing_in_the_default_pipeline_reads_large_weights(tmp_path: Path) -> None:
    model = large_model(tmp_path, 16, equal=False)

    def prepare() -> None:
        for text in DEFAULT_PIPELINE:
            pass_from_text(text)(model)

    prepare()  # modules that are imported on the way are no memory of the passes
    model = large_model(tmp_path, 16, equal=False)
    assert peak_bytes(prepare) < MIB
    assert mapped(model) == []


def test_a_large_constant_is_folded_when_it_is_read(tmp_path: Path) -> None:
    model = large_model(tmp_path, 4, equal=False)
    for node in list(model.graph):
        turned = ir.node("Transpose", [node.inputs[1]], {"perm": [1, 0]})
        turned.outputs[0].name = f"{node.name}_turned"
        turned.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        turned.outputs[0].shape = ir.Shape([SIZE, SIZE])
        model.graph.insert_before(node, turned)
        node.replace_input_with(1, turned.outputs[0])
    feeds = random_inputs(model)
    wanted = run(model, feeds)
    for tensor in model.graph.initializers.tensors():
        assert isinstance(tensor, ir.ExternalTensor)
        tensor.release()
    used = peak_bytes(lambda: FoldConstants()(model))
    assert used < MIB // 2
    assert [node.op_type for node in model.graph] == ["MatMul"] * 4
    folded = model.graph.initializers["product3_turned"].const_value
    assert isinstance(folded, ir.LazyTensor)
    original = model.graph.initializers["w3"].const_value
    assert original is not None
    np.testing.assert_array_equal(folded.numpy(), original.numpy().T)
    # The runtime multiplies by a constant matrix in another order.
    assert_equal(run(model, feeds), wanted, exact=False)


def test_large_weights_are_scaled_when_they_are_read() -> None:
    rng = np.random.default_rng(0)
    text = """g (float[1, 64, 4, 4] x, float[256, 64, 2, 2] w, float[256] k, float[256] v)
        => (float[1, 256, 3, 3] y) {
        c = Conv (x, w)
        y = BatchNormalization (c, k, k, k, v)
    }"""
    weight = rng.standard_normal((256, 64, 2, 2)).astype(np.float32)
    scale = rng.standard_normal(256).astype(np.float32)
    model = graph(text, w=weight, k=scale, v=scale * scale)
    feeds = random_inputs(model)
    wanted = run(model, feeds)
    assert FoldBatchNorm()(model).modified
    scaled = model.graph.initializers["w"].const_value
    assert isinstance(scaled, ir.LazyTensor)
    factor = scale.astype(np.float64) / np.sqrt((scale * scale).astype(np.float64) + 1e-5)
    np.testing.assert_allclose(
        scaled.numpy(), weight * factor[:, None, None, None].astype(np.float32), rtol=1e-6
    )
    assert_equal(run(model, feeds), wanted, exact=False)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_weights_keep_their_type_when_they_are_scaled(dtype: type) -> None:
    weight: Array = np.array([[[[1.0]]], [[[3.0]]]]).astype(dtype)
    two: Array = np.array([2.0, 4.0]).astype(dtype)
    kind = ir.DataType.from_numpy(np.dtype(dtype)).name.lower().replace("float32", "float")
    text = f"""g ({kind}[1, 1, 2, 2] x, {kind}[2, 1, 1, 1] w, {kind}[2, 1, 1] k)
        => ({kind}[1, 2, 2, 2] y) {{
        c = Conv (x, w)
        y = Mul (c, k)
    }}"""
    model = graph(text, w=weight, k=two.reshape(2, 1, 1))
    assert FoldBatchNorm()(model).modified
    scaled = model.graph.initializers["w"].const_value
    assert scaled is not None
    assert scaled.numpy().dtype == dtype
    assert scaled.numpy().astype(np.float64).ravel().tolist() == [2.0, 12.0]
