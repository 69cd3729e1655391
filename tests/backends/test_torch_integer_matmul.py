"""``MatMulIntegerToFloat`` in torch: what onnxruntime computes, to the last bits of a float."""

from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

pytest.importorskip("torch")
import torch

from graphopt.backends.torch_lowering import lower_to_torch
from graphopt.frontends.onnx_loader import load_onnx
from graphopt.numerics.verify import run_program

RNG = np.random.default_rng(0)


def integers(low: int, high: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    return RNG.integers(low, high, shape).astype(dtype)


@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize("inputs", [4, 5, 6, 7])
def test_the_product_of_integers(per_column: bool, inputs: int) -> None:
    shape = (7,) if per_column else ()
    constants = {
        "b": integers(-127, 128, (16, 7), np.int8),
        "sa": np.float32(0.013),
        "sb": RNG.uniform(0.001, 0.1, shape).astype(np.float32),
        "za": np.uint8(113),
        "zb": np.zeros(shape, np.int8),
        "bias": RNG.standard_normal(7).astype(np.float32),
    }
    names = ["a", "b", "sa", "sb", "za", "zb", "bias"][:inputs]
    node = helper.make_node("MatMulIntegerToFloat", names, ["y"], domain="com.microsoft")
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("a", 2, [2, 5, 16])],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items() if n in names],
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    program = load_onnx(helper.make_model(graph, opset_imports=imports, ir_version=10))
    feed = {"a": integers(0, 256, (2, 5, 16), np.uint8)}
    wanted = run_program(program, feed)["y"]
    with torch.no_grad():
        (found,) = lower_to_torch(program)(torch.from_numpy(feed["a"]))
    assert found.dtype is torch.float32
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-6, atol=1e-6 * np.abs(wanted).max())
