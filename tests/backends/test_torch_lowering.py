"""The lowering: shared weights, names, order, errors, and integer operators against onnxruntime."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch")

from graphopt.backends.torch_lowering import (  # noqa: E402 - torch may be missing
    NamingInterpreter,
    lower_to_torch,
)
from graphopt.backends.torch_trace import signature  # noqa: E402
from graphopt.errors import UnsupportedError  # noqa: E402
from graphopt.frontends.onnx_loader import load_onnx  # noqa: E402
from graphopt.ir.program import Program  # noqa: E402
from graphopt.numerics.verify import run_program  # noqa: E402

pytestmark = pytest.mark.torch
Array = npt.NDArray[np.generic]


def program_of(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[int | str]]],
    outputs: dict[str, int],
    weights: dict[str, Array] | None = None,
    opset: int = 21,
) -> Program:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, t, d) for n, (t, d) in inputs.items()],
        [helper.make_tensor_value_info(n, t, None) for n, t in outputs.items()],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in (weights or {}).items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return load_onnx(helper.make_model(graph, opset_imports=imports, ir_version=10))


def lowered(program: Program, feed: dict[str, Array]) -> dict[str, Array]:
    module = lower_to_torch(program)
    names = [v.name or "" for v in program.graph.inputs]
    with torch.no_grad():
        found = module(*(torch.from_numpy(np.array(feed[n])) for n in names))
    outputs = signature(module)["outputs"]
    return {n: v.numpy() for n, v in zip(outputs, found, strict=True)}


def same_bits(program: Program, feed: dict[str, Array]) -> None:
    expected = run_program(program, feed)
    found = lowered(program, feed)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_weights_in_memory_are_shared() -> None:
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    tensor = ir.tensor(weight, name="w")
    value = ir.Value(name="w", const_value=tensor, type=ir.TensorType(ir.DataType.FLOAT))
    x = ir.Value(name="x", shape=ir.Shape([2, 3]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("MatMul", [x, value])
    graph = ir.Graph(
        [x], node.outputs, nodes=[node], initializers=[value], opset_imports={"": 21}, name="g"
    )
    module = lower_to_torch(Program(ir.Model(graph, ir_version=10)))
    parameter = module.get_parameter("w")
    assert parameter.data_ptr() == tensor.numpy().ctypes.data
    assert not parameter.requires_grad


def test_names_and_order() -> None:
    nodes = [
        helper.make_node("Relu", ["a.1"], ["weird/name:0"], name="first"),
        helper.make_node("Add", ["weird/name:0", "class"], ["0"], name="second"),
        helper.make_node("Neg", ["0"], ["last"], name="third"),
    ]
    kind = TensorProto.FLOAT
    program = program_of(
        nodes, {"a.1": (kind, [2]), "class": (kind, [2])}, {"last": kind, "weird/name:0": kind}
    )
    module = lower_to_torch(program)
    assert module.graphopt_inputs == ("a.1", "class")
    assert module.graphopt_outputs == ("last", "weird/name:0")
    called = [n.meta["onnx_node"] for n in module.graph.nodes if "onnx_node" in n.meta]
    assert called == ["first", "second", "third"]
    a, b = torch.tensor([1.0, -1.0]), torch.tensor([2.0, 3.0])
    last, first = module(a, b)
    assert last.tolist() == [-3.0, -3.0]
    assert first.tolist() == [1.0, 0.0]


def test_inputs_whose_names_become_one_identifier() -> None:
    kind = TensorProto.FLOAT
    inputs: dict[str, tuple[int, list[int | str]]] = {"a.1": (kind, [1]), "a_1": (kind, [1])}
    program = program_of([helper.make_node("Sub", ["a.1", "a_1"], ["y"])], inputs, {"y": kind})
    (found,) = lower_to_torch(program)(torch.tensor([5.0]), torch.tensor([3.0]))
    assert found.tolist() == [2.0]


def test_an_operator_without_torch_form_names_itself() -> None:
    node = helper.make_node("StringNormalizer", ["x"], ["y"], name="norm")
    program = program_of(
        [node], {"x": (TensorProto.STRING, [2])}, {"y": TensorProto.STRING}, opset=10
    )
    with pytest.raises(UnsupportedError, match="StringNormalizer of node 'norm'") as caught:
        lower_to_torch(program)
    assert caught.value.code == "torch-operator-missing"
    assert caught.value.node == "norm"


def test_a_form_that_is_not_lowered_names_the_node() -> None:
    node = helper.make_node("Cast", ["x"], ["y"], name="narrow", to=TensorProto.INT4)
    program = program_of([node], {"x": (TensorProto.FLOAT, [2])}, {"y": TensorProto.INT4})
    module = lower_to_torch(program)
    with pytest.raises(UnsupportedError, match="node 'narrow'") as caught:
        NamingInterpreter(module).run(torch.zeros(2))
    assert caught.value.code == "torch-operator-form"
    assert caught.value.node == "narrow"


def test_computed_shapes_stay_dynamic_in_a_trace() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Unsqueeze", ["n", "axes"], ["n1"]),
        helper.make_node("Concat", ["n1", "minus"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
        helper.make_node("Slice", ["y", "zeros", "n1", "ones"], ["z"]),
    ]
    kind = TensorProto.FLOAT
    weights: dict[str, Array] = {
        "zero": np.array(0),
        "axes": np.array([0]),
        "minus": np.array([-1]),
        "zeros": np.array([0]),
        "ones": np.array([1]),
    }
    program = program_of(nodes, {"x": (kind, ["n", 3, 4])}, {"z": kind}, weights)
    module = lower_to_torch(program)
    traced = torch.jit.trace(module, (torch.rand(2, 3, 4),), check_trace=False)
    for rows in (1, 5, 13):
        x = torch.rand(rows, 3, 4)
        (found,) = traced(x)
        assert torch.equal(found, x.reshape(rows, 12)[:, :rows])


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
def test_qdq_is_bit_exact(kind: type) -> None:
    number = TensorProto.UINT8 if kind is np.uint8 else TensorProto.INT8
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=1),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=1),
    ]
    weights: dict[str, Array] = {
        "s": np.array([0.5, 0.25, 2.0], np.float32),
        "z": np.array([3, 0, 100], kind),
    }
    x = np.random.default_rng(0).standard_normal((2, 3, 64)).astype(np.float32) * 200
    x[0, :, :8] = np.array([0.25, 0.75, -0.25, 1.25, 1e9, -1e9, 0.125, 0.375])  # ties, saturation
    program = program_of(
        nodes,
        {"x": (TensorProto.FLOAT, [2, 3, 64])},
        {"q": number, "y": TensorProto.FLOAT},
        weights,
    )
    same_bits(program, {"x": x})


def test_qlinear_conv_and_matmul_are_bit_exact() -> None:
    rng = np.random.default_rng(1)
    nodes = [
        helper.make_node(
            "QLinearConv",
            ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"],
            ["c"],
            pads=[1, 1, 1, 1],
            strides=[2, 2],
        ),
        helper.make_node("Flatten", ["c"], ["f"], axis=2),
        helper.make_node("QLinearMatMul", ["m", "xs", "xz", "n", "xs", "xz", "ys", "yz"], ["p"]),
    ]
    weights: dict[str, Array] = {
        "xs": np.array(0.021, np.float32),
        "xz": np.array(117, np.uint8),
        "w": rng.integers(-128, 128, (8, 3, 3, 3)).astype(np.int8),
        "ws": rng.uniform(0.001, 0.02, 8).astype(np.float32),
        "wz": np.zeros(8, np.int8),
        "ys": np.array(0.11, np.float32),
        "yz": np.array(128, np.uint8),
        "b": rng.integers(-1000, 1000, 8).astype(np.int32),
        "n": rng.integers(0, 256, (32, 16)).astype(np.uint8),
    }
    byte = TensorProto.UINT8
    program = program_of(
        nodes,
        {"x": (byte, [2, 3, 15, 15]), "m": (byte, [4, 32])},
        {"f": byte, "p": byte},
        weights,
    )
    x = rng.integers(0, 256, (2, 3, 15, 15)).astype(np.uint8)
    same_bits(program, {"x": x, "m": rng.integers(0, 256, (4, 32)).astype(np.uint8)})


def test_integer_products_and_dynamic_quantization_are_bit_exact() -> None:
    rng = np.random.default_rng(2)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"]),
        helper.make_node("MatMulInteger", ["q", "w", "qz"], ["y"]),
    ]
    weights: dict[str, Array] = {"w": rng.integers(-128, 128, (16, 8)).astype(np.int8)}
    kind = TensorProto.FLOAT
    program = program_of(
        nodes,
        {"x": (kind, [4, 16])},
        {"q": TensorProto.UINT8, "qs": kind, "qz": TensorProto.UINT8, "y": TensorProto.INT32},
        weights,
    )
    same_bits(program, {"x": rng.standard_normal((4, 16)).astype(np.float32)})


def test_external_weights_are_mapped(tmp_path: Path) -> None:
    weight = np.random.default_rng(3).standard_normal((64, 64)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    kind = TensorProto.FLOAT
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", kind, [2, 64])],
        [helper.make_tensor_value_info("y", kind, [2, 64])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path = tmp_path / "m.onnx"
    onnx.save(model, str(path), save_as_external_data=True, location="m.data", size_threshold=0)
    program = load_onnx(path)
    module = lower_to_torch(program)
    tensor = program.graph.initializers["w"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    assert module.get_parameter("w").data_ptr() == tensor.numpy().ctypes.data
    assert torch.equal(module.get_parameter("w"), torch.from_numpy(weight))
