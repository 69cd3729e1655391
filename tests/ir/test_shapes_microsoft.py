"""Rules of com.microsoft against onnxruntime, the only definition of those operators."""

from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt.ir.program import Program, dims_of
from graphopt.ir.shape_rules.registry import covered
from graphopt.ir.shapes import infer_shapes
from tests.ir.shape_models import Array, bound, make_symbolic, node_model, run, zeros

ONE = np.array(1, np.float32)
POINT = np.array(0, np.uint8)


class Node(NamedTuple):
    op_type: str
    inputs: list[Array | None]
    attributes: dict[str, Any]
    runtime: int = 1
    outputs: int = 1


def byte(*dims: int) -> Array:
    return zeros(*dims, dtype=np.uint8)


NODES = {
    "FusedConv": Node("FusedConv", [zeros(2, 3, 8, 9), zeros(4, 3, 3, 3)], {"activation": "Relu"}),
    "FusedGemm": Node("FusedGemm", [zeros(2, 3), zeros(4, 3)], {"transB": 1, "activation": "Relu"}),
    "FusedMatMul": Node("FusedMatMul", [zeros(5, 2, 3), zeros(5, 4, 3)], {"transB": 1}),
    "FusedMatMul-a": Node("FusedMatMul", [zeros(5, 3, 2), zeros(5, 3, 4)], {"transA": 1}),
    "FusedMatMul-batch": Node("FusedMatMul", [zeros(2, 5, 3), zeros(5, 3, 4)], {"transBatchA": 1}),
    "BiasGelu": Node("BiasGelu", [zeros(2, 3, 4), zeros(4)], {}),
    "FastGelu": Node("FastGelu", [zeros(2, 3, 4), zeros(4)], {}),
    "Gelu": Node("Gelu", [zeros(2, 3)], {}),
    "QuickGelu": Node("QuickGelu", [zeros(2, 3)], {}),
    "Inverse": Node("Inverse", [np.stack([np.eye(3, dtype=np.float32)] * 2)], {}),
    "GridSample": Node("GridSample", [zeros(2, 3, 5, 6), zeros(2, 7, 8, 2)], {}, 2),
    "QLinearAdd": Node(
        "QLinearAdd", [byte(2, 1, 4), ONE, POINT, byte(3, 4), ONE, POINT, ONE, POINT], {}
    ),
    "QLinearMul": Node(
        "QLinearMul", [byte(2, 1, 4), ONE, POINT, byte(3, 4), ONE, POINT, ONE, POINT], {}
    ),
    "QLinearSigmoid": Node("QLinearSigmoid", [byte(2, 3), ONE, POINT, ONE, POINT], {}),
    "QLinearLeakyRelu": Node("QLinearLeakyRelu", [byte(2, 3), ONE, POINT, ONE, POINT], {}),
    "QLinearSoftmax": Node(
        "QLinearSoftmax", [byte(2, 3), ONE, POINT, ONE, POINT], {"opset": 13, "axis": -1}
    ),
    "QLinearConcat": Node(
        "QLinearConcat",
        [ONE, POINT, byte(2, 3), ONE, POINT, byte(2, 4), ONE, POINT],
        {"axis": 1},
        0,
    ),
    "QLinearAveragePool": Node(
        "QLinearAveragePool",
        [byte(1, 3, 8, 9), ONE, POINT, ONE, POINT],
        {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1},
    ),
    "QLinearAveragePool-last": Node(
        "QLinearAveragePool",
        [byte(1, 8, 9, 3), ONE, POINT, ONE, POINT],
        {"kernel_shape": [3, 2], "channels_last": 1},
    ),
    "QLinearGlobalAveragePool": Node(
        "QLinearGlobalAveragePool", [byte(2, 3, 8, 9), ONE, POINT, ONE, POINT], {}
    ),
    "QLinearGlobalAveragePool-last": Node(
        "QLinearGlobalAveragePool",
        [byte(2, 8, 9, 3), ONE, POINT, ONE, POINT],
        {"channels_last": 1},
    ),
    "MatMulIntegerToFloat": Node("MatMulIntegerToFloat", [byte(2, 5, 3), byte(3, 4), ONE, ONE], {}),
    "DynamicQuantizeMatMul": Node("DynamicQuantizeMatMul", [zeros(2, 5, 3), byte(3, 4), ONE], {}),
    "MatMulNBits": Node(
        "MatMulNBits",
        [zeros(2, 5, 32), byte(6, 1, 16), zeros(6)],
        {"K": 32, "N": 6, "bits": 4, "block_size": 32},
    ),
    "MatMulBnb4": Node(
        "MatMulBnb4",
        [zeros(2, 5, 32), byte(96), zeros(3)],
        {"K": 32, "N": 6, "block_size": 64, "quant_type": 1},
    ),
    "DynamicQuantizeLSTM": Node(
        "DynamicQuantizeLSTM",
        [
            zeros(7, 2, 3),
            zeros(2, 3, 20, dtype=np.int8),
            zeros(2, 5, 20, dtype=np.int8),
            *[None] * 5,
            *(zeros(2, 20), zeros(2, 20, dtype=np.int8)) * 2,
        ],
        {"hidden_size": 5, "direction": "bidirectional"},
        outputs=3,
    ),
    "GatherBlockQuantized": Node(
        "GatherBlockQuantized",
        [byte(9, 24), zeros(2, 5, dtype=np.int64), zeros(9, 3)],
        {"bits": 4, "block_size": 16, "gather_axis": 0, "quantize_axis": 1},
        2,
    ),
    "GatherBlockQuantized-rows": Node(
        "GatherBlockQuantized",
        [byte(9, 3, 16), zeros(2, dtype=np.int64), zeros(9, 3, 1)],
        {"bits": 8, "block_size": 16, "gather_axis": 0, "quantize_axis": 2},
        2,
    ),
    "SkipLayerNormalization": Node(
        "SkipLayerNormalization", [zeros(2, 3, 4), zeros(2, 3, 4), zeros(4), zeros(4)], {}
    ),
    "SkipSimplifiedLayerNormalization": Node(
        "SkipSimplifiedLayerNormalization", [zeros(2, 3, 4), zeros(2, 3, 4), zeros(4)], {}
    ),
    "MultiHeadAttention": Node(
        "MultiHeadAttention", [zeros(2, 3, 8), zeros(2, 5, 8), zeros(2, 5, 8)], {"num_heads": 2}, 3
    ),
    "RotaryEmbedding": Node(
        "RotaryEmbedding",
        [zeros(2, 3, 16), zeros(2, 3, dtype=np.int64), zeros(9, 4), zeros(9, 4)],
        {"num_heads": 2},
    ),
    "QuantizeLinear": Node("QuantizeLinear", [zeros(2, 3), ONE, POINT], {}),
    "DequantizeLinear": Node("DequantizeLinear", [byte(2, 3), ONE, POINT], {}),
}

# No kernel of onnxruntime for the processor runs these here.
NOT_RUN = {"BiasSoftmax", "GroupNorm", "LayerNormalization", "SimplifiedLayerNormalization"}


def make(node: Node) -> onnx.ModelProto:
    return node_model(
        node.op_type,
        node.inputs,
        18,
        runtime=node.runtime,
        outputs=node.outputs,
        domain="com.microsoft",
        **node.attributes,
    )


@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
@pytest.mark.parametrize("name", NODES)
def test_shape_and_type_are_those_of_onnxruntime(name: str, symbolic: bool) -> None:
    model = make(NODES[name])
    feeds = {f"x{i}": NODES[name].inputs[i] for i in range(NODES[name].runtime)}
    real = run(model, {k: v for k, v in feeds.items() if v is not None})
    bindings = make_symbolic(model) if symbolic else {}
    program = Program(ir.from_proto(model))
    report = infer_shapes(program)
    assert report.unresolved == {}
    assert report.data_dependent == {}
    for value in program.graph.outputs:
        dims = dims_of(value)
        assert dims is not None
        assert bound(dims, bindings) == real[value.name or ""].shape
        assert value.dtype == ir.DataType.from_numpy(real[value.name or ""].dtype)


def test_every_rule_is_compared() -> None:
    assert {node.op_type for node in NODES.values()} | NOT_RUN == covered("com.microsoft")
