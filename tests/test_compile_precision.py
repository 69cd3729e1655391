"""The precisions that need no calibration, through the whole compile."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt


def language_head(vocabulary: int = 256, width: int = 128) -> onnx.ModelProto:
    """An embedding, two layers, and a head that shares the embedding's weight."""
    rng = np.random.default_rng(3)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        values = rng.standard_normal(shape) / np.sqrt(shape[-1])
        return numpy_helper.from_array(values.astype(np.float32), name)

    nodes = [
        helper.make_node("Gather", ["embedding", "tokens"], ["h0"]),
        helper.make_node("MatMul", ["h0", "up"], ["h1"]),
        helper.make_node("Relu", ["h1"], ["h2"]),
        helper.make_node("MatMul", ["h2", "down"], ["h3"]),
        helper.make_node("Transpose", ["embedding"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["h3", "turned"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "head",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, [1, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 8, vocabulary])],
        [
            weight("embedding", vocabulary, width),
            weight("up", width, 4 * width),
            weight("down", 4 * width, width),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


@pytest.mark.parametrize(
    ("precision", "share", "decibels"), [("int8-weights", 0.30, 28), ("int4-weights", 0.19, 12)]
)
def test_weights_of_few_bits(precision: str, share: float, decibels: float, tmp_path: Path) -> None:
    result = graphopt.compile(language_head(), precision=precision)
    assert result.plan.is_complete
    before = sum(pool.weight_bytes for pool in result.baseline.pools)
    after = sum(pool.weight_bytes for pool in result.plan.pools)
    assert after < share * before
    assert result.verification is not None
    (output,) = result.verification.outputs
    assert output.sqnr_db is not None
    assert decibels <= output.sqnr_db < 60
    (path,) = result.save(tmp_path / "out.onnx")
    used = {node.op_type for node in onnx.load(str(path)).graph.node}
    assert {"MatMulNBits", "GatherBlockQuantized"} <= used
    assert graphopt.plan(path).is_complete


def test_weights_that_lose_more_than_accepted_are_refused() -> None:
    with pytest.raises(graphopt.VerificationError) as caught:
        graphopt.compile(
            language_head(), precision="int4-weights", verify=graphopt.Tolerance(sqnr_db=60.0)
        )
    assert "60 dB" in str(caught.value)


def test_a_target_without_kernels_refuses() -> None:
    with pytest.raises(graphopt.UnsupportedError) as caught:
        graphopt.compile(language_head(), precision="int4-weights", target="ethos-u55")
    assert caught.value.code == "precision-no-kernel"


def test_calibration_data_that_nothing_needs_is_refused() -> None:
    with pytest.raises(graphopt.OptionError) as caught:
        graphopt.compile(language_head(), calibration_data=[{}])
    assert caught.value.code == "calibration-unused"


@pytest.mark.parametrize(("precision", "decibels"), [("fp16", 40), ("bf16", 28)])
def test_half_precision(precision: str, decibels: float, tmp_path: Path) -> None:
    result = graphopt.compile(language_head(), precision=precision, target="gpu")
    assert result.half is not None
    assert result.half.nodes >= 4
    before = sum(pool.weight_bytes for pool in result.baseline.pools)
    after = sum(pool.weight_bytes for pool in result.plan.pools)
    assert after < 0.51 * before
    assert result.verification is not None
    (output,) = result.verification.outputs
    assert output.sqnr_db is not None
    assert decibels <= output.sqnr_db < 90
    (path,) = result.save(tmp_path / "out.onnx")
    signature = onnx.load(str(path)).graph
    assert signature.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert result.to_dict()["half"]["type"] == {"fp16": "float16", "bf16": "bfloat16"}[precision]


def test_processors_that_widen_halves_refuse() -> None:
    with pytest.raises(graphopt.UnsupportedError) as caught:
        graphopt.compile(language_head(), precision="fp16", target="cpu")
    assert caught.value.code == "precision-no-kernel"
    assert "widens" in str(caught.value)
