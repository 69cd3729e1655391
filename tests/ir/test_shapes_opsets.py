"""Operators whose form changed between opsets 7 and 20, against onnxruntime."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.ir.program import Program, dims_of
from graphopt.ir.shapes import infer_shapes
from tests.ir.shape_models import Array, bound, ints, make_symbolic, node_model, run, zeros


class Node(NamedTuple):
    op_type: str
    opset: int
    inputs: list[Array | None]
    attributes: Mapping[str, Any] = MappingProxyType({})
    outputs: int = 1


X = zeros(2, 3, 8, 9)
THIN = zeros(2, 1, 3, 1)
SCALES = np.array([1, 1, 2, 1.5], np.float32)
NODES = [
    Node("Squeeze", 11, [THIN], {"axes": [1, -1]}),
    Node("Squeeze", 11, [THIN]),
    Node("Squeeze", 13, [THIN, ints(1, -1)]),
    Node("Unsqueeze", 11, [X], {"axes": [0, 3]}),
    Node("Unsqueeze", 13, [X, ints(0, -1)]),
    Node("Slice", 9, [X], {"starts": [1, -4], "ends": [3, 2**31 - 1], "axes": [2, 3]}),
    Node("Slice", 9, [X], {"starts": [1, 1], "ends": [2, -1]}),
    Node("Slice", 10, [X, ints(1, 8), ints(7, 0), ints(2, 3), ints(2, -3)]),
    Node("Pad", 10, [X], {"pads": [0, 0, 1, 2, 0, 0, 3, 4]}),
    Node("Pad", 11, [X, ints(0, 0, 1, 2, 0, 0, 3, -4)]),
    Node("Pad", 18, [X, ints(1, 2, 3, -4), None, ints(2, -1)]),
    Node("ReduceSum", 11, [X], {"axes": [1, -1], "keepdims": 0}),
    Node("ReduceSum", 13, [X, ints(1, -1)], {"keepdims": 0}),
    Node("ReduceMean", 13, [X], {"axes": [2]}),
    Node("ReduceMean", 18, [X, ints(2)]),
    Node("ReduceMax", 18, [X], {"noop_with_empty_axes": 1}),
    Node("TopK", 9, [X], {"k": 2, "axis": 2}, 2),
    Node("TopK", 11, [X, ints(2)], {"axis": 2}, 2),
    Node("Upsample", 7, [X], {"scales": [1.0, 1.0, 2.0, 1.5]}),
    Node("Upsample", 9, [X, SCALES]),
    Node("Resize", 10, [X, SCALES]),
    Node("Resize", 11, [X, np.array([], np.float32), SCALES]),
    Node("Resize", 13, [X, None, None, ints(2, 3, 5, 20)]),
    Node("Split", 11, [X], {"axis": 2, "split": [3, 5]}, 2),
    Node("Split", 11, [X], {"axis": 2}, 4),
    Node("Split", 13, [X, ints(3, 5)], {"axis": 2}, 2),
    Node("Split", 18, [X], {"axis": 3, "num_outputs": 2}, 2),
    Node("Dropout", 7, [X]),
    Node("Dropout", 10, [X], {}, 2),
    Node("Dropout", 13, [X], {}, 2),
    Node("BatchNormalization", 9, [X, *[zeros(3)] * 4]),
    Node("BatchNormalization", 15, [X, *[zeros(3)] * 4]),
    Node("Clip", 7, [X], {"min": 0.0}),
    Node("Clip", 11, [X, np.array(0, np.float32)]),
    Node("Softmax", 11, [X], {"axis": 1}),
    Node("Softmax", 13, [X]),
    Node("Reshape", 7, [X, ints(0, -1, 9)]),
    Node("Reshape", 14, [zeros(0, 3), ints(3, 0)], {"allowzero": 1}),
    Node("OneHot", 11, [ints(1, 2), np.array(5), zeros(2)], {"axis": 0}),
    Node("CumSum", 11, [X, np.array(2)]),
    Node("Gemm", 7, [zeros(3, 2), zeros(3, 4), zeros(4)], {"transA": 1}),
    Node("Gemm", 11, [zeros(2, 3), zeros(4, 3)], {"transB": 1}),
    Node("LSTM", 11, [zeros(5, 2, 3), zeros(1, 16, 3), zeros(1, 16, 4)], {"hidden_size": 4}, 3),
    Node(
        "LSTM",
        14,
        [zeros(5, 2, 3), zeros(2, 16, 3), zeros(2, 16, 4)],
        {"hidden_size": 4, "direction": "bidirectional"},
        3,
    ),
    Node("GRU", 11, [zeros(5, 2, 3), zeros(1, 12, 3), zeros(1, 12, 4)], {"hidden_size": 4}, 2),
    Node("RNN", 11, [zeros(5, 2, 3), zeros(1, 4, 3), zeros(1, 4, 4)], {"hidden_size": 4}, 2),
    Node("LayerNormalization", 17, [X, zeros(8, 9)], {"axis": 2}, 3),
    Node("InstanceNormalization", 11, [X, zeros(3), zeros(3)]),
    Node("ArgMax", 11, [X], {"axis": 2, "keepdims": 0}),
    Node("DepthToSpace", 11, [zeros(1, 8, 3, 4)], {"blocksize": 2}),
    Node("SpaceToDepth", 13, [zeros(1, 2, 6, 4)], {"blocksize": 2}),
    Node("EyeLike", 9, [zeros(3, 4)], {"dtype": 7}),
    Node("Trilu", 14, [X]),
    Node("GridSample", 16, [X, zeros(2, 5, 6, 2)]),
    Node("MaxPool", 12, [X], {"kernel_shape": [2, 2]}, 2),
    Node("Einsum", 12, [zeros(2, 7, 4), zeros(2, 7, 4, 5)], {"equation": "b...i,b...ij->b...j"}),
    Node("Einsum", 12, [zeros(3, 4)], {"equation": "ij"}),
    Node("QuantizeLinear", 13, [X, np.array(1, np.float32), np.array(0, np.int8)]),
    Node("QuantizeLinear", 13, [X, np.array(1, np.float32)]),
    Node("DynamicQuantizeLinear", 11, [X], {}, 3),
    Node("NonZero", 13, [np.ones((), np.float32)]),
]


@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
@pytest.mark.parametrize("node", NODES, ids=lambda n: f"{n.op_type}-{n.opset}")
def test_old_and_new_forms_agree_with_onnxruntime(node: Node, symbolic: bool) -> None:
    model = node_model(
        node.op_type, node.inputs, node.opset, outputs=node.outputs, **node.attributes
    )
    assert node.inputs[0] is not None
    real = run(model, {"x0": node.inputs[0]})
    bindings = make_symbolic(model) if symbolic else {}
    program = Program(ir.from_proto(model))
    report = infer_shapes(program)
    if symbolic and node.op_type == "Squeeze" and len(node.inputs) == 1 and not node.attributes:
        assert report.unresolved == {"y0": "the rank depends on whether s0 is 1"}
        return
    assert report.unresolved == {}
    for value in program.graph.outputs:
        dims = dims_of(value)
        assert dims is not None
        array = real[value.name or ""]
        for name, upper in report.upper_bounds.items():
            (size,) = [s for d, s in zip(dims, array.shape, strict=True) if str(d) == name]
            bindings[name] = size
            assert bound([upper], bindings)[0] >= size
        assert bound(dims, bindings) == array.shape
        assert value.dtype == ir.DataType.from_numpy(array.dtype)
