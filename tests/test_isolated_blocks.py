"""Products with weights in blocks: floats made here give what onnxruntime's own node gives."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from graphopt.isolated_blocks import as_plain, is_product, wide_name, widen
from graphopt.isolated_pieces import Pieces, Weights
from graphopt.quantization.block_weights import BlockScheme, dequantize, pack, quantize_matrix

RNG = np.random.default_rng(3)


def node_of(rows: int, columns: int, scheme: BlockScheme, *, bias: bool = False) -> onnx.NodeProto:
    inputs = ["x", "b", "s", "" if scheme.symmetric else "z", "", "bias" if bias else ""]
    while not inputs[-1]:
        inputs.pop()
    return onnx.helper.make_node(
        "MatMulNBits",
        inputs,
        ["y"],
        name="n",
        domain="com.microsoft",
        K=rows,
        N=columns,
        bits=scheme.bits,
        block_size=scheme.block,
    )


SCHEMES = [
    BlockScheme(bits, block, symmetric, "rtn")
    for bits in (4, 8)
    for block in (16, 32, 128)
    for symmetric in (False, True)
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("shape", [(256, 40), (100, 7), (48, 1)])
def test_widened_as_they_are_stored(scheme: BlockScheme, shape: tuple[int, int]) -> None:
    rows = shape[0]
    matrix = RNG.standard_normal(shape).astype(np.float32)
    parts = quantize_matrix(matrix, scheme, by_column=True)
    zeros = None if scheme.symmetric else pack(parts.zero_points, scheme.bits)
    floats = np.full(shape, np.nan, np.float32)
    widen(parts.data, parts.scales, zeros, scheme.bits, scheme.block, floats)
    assert np.array_equal(floats, dequantize(parts, scheme, rows).T)


def model_of(node: onnx.NodeProto, tensors: dict[str, np.ndarray], folder: Path) -> onnx.ModelProto:
    """Return a model whose integers lie in a file."""
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [info("x", 1, [2, 3, tensors["x"].shape[-1]])],
        [info("y", 1, None)],
        [onnx.numpy_helper.from_array(a, n) for n, a in tensors.items() if n != "x"],
    )
    packed = next(one for one in graph.initializer if one.name == "b")
    (folder / "w.data").write_bytes(packed.raw_data)
    length = len(packed.raw_data)
    packed.ClearField("raw_data")
    packed.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "w.data"), ("offset", 0), ("length", length)):
        packed.external_data.add(key=key, value=str(value))
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_pieces_give_what_the_node_gives(tmp_path: Path, bits: int, bias: bool) -> None:
    rows, columns, scheme = 100, 24, BlockScheme(bits, 32, False, "rtn")
    parts = quantize_matrix(
        RNG.standard_normal((rows, columns)).astype(np.float32), scheme, by_column=True
    )
    feed = RNG.standard_normal((2, 3, rows)).astype(np.float32)
    tensors: dict[str, np.ndarray] = {
        "x": feed,
        "b": parts.data,
        "s": parts.scales,
        "z": pack(parts.zero_points, bits),
        **({"bias": RNG.standard_normal(columns).astype(np.float32)} if bias else {}),
    }
    model = model_of(node_of(rows, columns, scheme, bias=bias), tensors, tmp_path)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    wanted = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    made: list[list[str]] = []

    def make(serialized: bytes, values: Mapping[str, Any]) -> ort.InferenceSession:
        made.append([node.op_type for node in onnx.load_from_string(serialized).graph.node])
        own = ort.SessionOptions()
        own.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(tmp_path)
        )
        (tmp_path / "weights-are-elsewhere").touch()
        for name, value in values.items():
            own.add_initializer(name, value)
        session = ort.InferenceSession(serialized, own, providers=["CPUExecutionProvider"])
        held.append(values)
        return session

    held: list[Mapping[str, Any]] = []
    weights = Weights(model, str(tmp_path), [str(tmp_path / "w.data")])
    pieces = Pieces(model, weights, make)
    assert pieces.fit
    found = pieces.run([{"x": feed}])[0]["y"].numpy()
    assert made == [["MatMul", "Add"] if bias else ["MatMul"]]
    np.testing.assert_allclose(found, wanted.run(None, {"x": feed})[0], rtol=1e-4, atol=1e-4)
    assert [node.op_type for node in model.graph.node] == ["MatMulNBits"]


def test_what_is_left_to_the_runtime() -> None:
    scheme = BlockScheme(4, 32, False, "rtn")
    node = node_of(64, 8, scheme)
    tensors = {
        "b": onnx.TensorProto(name="b", data_type=onnx.TensorProto.UINT8, dims=[8, 2, 16]),
        "s": onnx.TensorProto(name="s", data_type=onnx.TensorProto.FLOAT, dims=[8, 2]),
        "z": onnx.TensorProto(name="z", data_type=onnx.TensorProto.UINT8, dims=[8, 1]),
    }
    assert is_product(node, tensors, {"b"})
    assert not is_product(node, tensors, {"s"})
    assert not is_product(node, {"b": tensors["b"], "s": tensors["s"]}, {"b"})
    assert not is_product(onnx.helper.make_node("MatMul", ["x", "b"], ["y"]), tensors, {"b"})
    half = dict(tensors, s=onnx.TensorProto(data_type=onnx.TensorProto.FLOAT16))
    assert not is_product(node, half, {"b"})
    fractions = dict(tensors, z=onnx.TensorProto(data_type=onnx.TensorProto.FLOAT))
    assert not is_product(node, fractions, {"b"})
    grouped = onnx.NodeProto()
    grouped.CopyFrom(node)
    grouped.input.append("s")
    assert not is_product(grouped, tensors, {"b"})


def test_nodes_with_the_same_weights_share_the_floats() -> None:
    scheme = BlockScheme(4, 32, True, "rtn")
    one, other = node_of(64, 8, scheme), node_of(64, 8, scheme)
    other.input[0] = "elsewhere"
    assert wide_name(one) == wide_name(other)
    assert wide_name(one) != wide_name(node_of(64, 8, BlockScheme(4, 16, True, "rtn")))
    assert [plain.input[1] for plain in as_plain(one)] == [wide_name(one)]
