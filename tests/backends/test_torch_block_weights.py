"""Weights of 4 and 8 bits in blocks: the torch forms against onnxruntime, and saved files."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch")

import graphopt  # noqa: E402 - torch may be missing
from graphopt.backends.torch_lowering import lower_to_torch  # noqa: E402
from graphopt.errors import UnsupportedError  # noqa: E402
from graphopt.frontends.onnx_loader import load_onnx  # noqa: E402
from graphopt.numerics.verify import run_program  # noqa: E402

pytestmark = pytest.mark.torch
Array = npt.NDArray[np.generic]
ROWS, INNER, BLOCK = 3, 40, 16
BLOCKS = 3


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def compare(
    op_type: str,
    feed: tuple[str, Array],
    operands: dict[str, Array | onnx.TensorProto | None],
    first: int,
    **attributes: Any,
) -> None:
    """Run one node on ``feed``, its input number ``first``, here and in onnxruntime."""
    constants = [
        numpy_helper.from_array(a, n) if isinstance(a, np.ndarray) else a
        for n, a in operands.items()
        if a is not None
    ]
    names = [n if a is not None else "" for n, a in operands.items()]
    names.insert(first, feed[0])
    node = helper.make_node(op_type, names, ["y"], domain="com.microsoft", **attributes)
    kind = helper.np_dtype_to_tensor_dtype(feed[1].dtype)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(feed[0], kind, feed[1].shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        constants,
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    program = load_onnx(helper.make_model(graph, opset_imports=imports, ir_version=10))
    with torch.no_grad():
        (found,) = lower_to_torch(program)(torch.from_numpy(feed[1]))
    wanted = run_program(program, {feed[0]: feed[1]})["y"].astype(np.float32)
    assert found.shape == wanted.shape
    assert np.abs(found.numpy() - wanted).max() <= 1e-5 * np.abs(wanted).max()


def product(bits: int, **extra: Array | None) -> None:
    r = rng()
    packed = r.integers(0, 256, (ROWS, BLOCKS, BLOCK * bits // 8), dtype=np.uint8)
    scales = r.random((ROWS, BLOCKS)).astype(np.float32)
    x = r.standard_normal((2, INNER)).astype(np.float32)
    compare(
        "MatMulNBits",
        ("x", x),
        {"b": packed, "s": scales, **extra},
        0,
        K=INNER,
        N=ROWS,
        bits=bits,
        block_size=BLOCK,
    )


def packed_zeros(bits: int) -> Array:
    return rng().integers(0, 256, (ROWS, -(-BLOCKS * bits // 8)), dtype=np.uint8)


BIAS = np.array([5.0, -7.0, 90.0], np.float32)
GROUPS = np.array([2, 0, 1, 1] * 10, np.int32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", [False, True])
def test_a_bias_is_added(bits: int, zeros: bool) -> None:
    product(bits, z=packed_zeros(bits) if zeros else None, g=None, c=BIAS)


@pytest.mark.parametrize("zeros", [False, True])
def test_groups_say_the_block_of_a_row(zeros: bool) -> None:
    points = rng().random((ROWS, BLOCKS)).astype(np.float32) * 9
    product(4, z=points if zeros else None, g=GROUPS, c=BIAS)


def test_unpacked_zero_points() -> None:
    product(4, z=rng().random((ROWS, BLOCKS)).astype(np.float32) * 9)


def test_groups_with_packed_zero_points_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="groups and packed zeros") as caught:
        product(4, z=packed_zeros(4), g=GROUPS)
    assert caught.value.code == "torch-operator-form"


INDICES = np.array([[0, 4, -1], [-5, 3, 3]])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("indices", [INDICES, np.array([1, 5, -6, 99, 2]), np.array(3)])
def test_rows_of_bytes(bits: int, zeros: bool, indices: Array) -> None:
    r = rng()
    data = r.integers(0, 256, (5, INNER * bits // 8), dtype=np.uint8)
    scales = r.random((5, BLOCKS)).astype(np.float32)
    points = r.integers(0, 256, (5, -(-BLOCKS * bits // 8)), dtype=np.uint8)
    operands: dict[str, Any] = {"d": data, "s": scales, **({"z": points} if zeros else {})}
    compare(
        "GatherBlockQuantized", ("i", indices), operands, 1, bits=bits, block_size=BLOCK,
        gather_axis=0, quantize_axis=1,
    )  # fmt: skip


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", [False, True])
def test_rows_of_blocks(bits: int, zeros: bool) -> None:
    r = rng()
    data = r.integers(0, 256, (5, BLOCKS, BLOCK * bits // 8), dtype=np.uint8)
    scales = r.random((5, BLOCKS, 1)).astype(np.float32)
    points = r.integers(0, 16, (5, BLOCKS, 1), dtype=np.uint8)
    operands: dict[str, Any] = {"d": data, "s": scales, **({"z": points} if zeros else {})}
    compare(
        "GatherBlockQuantized", ("i", INDICES), operands, 1, bits=bits, block_size=BLOCK,
        gather_axis=0, quantize_axis=2,
    )  # fmt: skip


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("gathered", "blocked"), [(0, 1), (1, 0), (0, 0), (-1, -1)])
def test_integers_of_type_int4(gathered: int, blocked: int, zeros: bool) -> None:
    r = rng()
    shape = [32, 32]
    shape[blocked] = 2
    data = helper.make_tensor("d", TensorProto.INT4, [32, 32], r.integers(-8, 8, 1024))
    points = helper.make_tensor("z", TensorProto.INT4, shape, r.integers(-8, 8, 64))
    scales = r.random(shape).astype(np.float32)
    operands: dict[str, Any] = {"d": data, "s": scales, **({"z": points} if zeros else {})}
    compare(
        "GatherBlockQuantized", ("i", np.array([[0, 17, 31, -3]])), operands, 1, bits=4,
        block_size=16, gather_axis=gathered, quantize_axis=blocked,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["ts", "pt2"])
@pytest.mark.parametrize("precision", ["int8-weights", "int4-weights"])
def test_weight_only_results_are_saved(precision: str, suffix: str, tmp_path: Path) -> None:
    r = rng()
    table = r.standard_normal((64, 64)).astype(np.float32)
    bias = r.standard_normal(64).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "i"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w"], ["p"]),
        helper.make_node("Add", ["p", "c"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("i", TensorProto.INT64, ["length"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["length", 64])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(table.T.copy() * 0.1, "w"),
            numpy_helper.from_array(bias, "c"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    result = graphopt.compile(model, precision=precision)
    assert result.save(tmp_path / f"m.{suffix}") == [tmp_path / f"m.{suffix}"]
