"""Places that are picked by number have planned places; what a mask picks has no size."""

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

import graphopt

pytest.importorskip("torch")

import torch

pytestmark = pytest.mark.torch
PICKED = [n * 7 % 64 for n in range(64)]


def picking(*, constant: bool) -> onnx.ModelProto:
    places = [helper.make_tensor("i", TensorProto.INT64, [64, 1], PICKED)]
    graph = helper.make_graph(
        [
            helper.make_node("GatherND", ["x", "i"], ["picked"]),
            helper.make_node("Relu", ["picked"], ["y"]),
        ],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [64, 32]),
            *([] if constant else [helper.make_tensor_value_info("i", TensorProto.INT64, [64, 1])]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [64, 32])],
        places if constant else [],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("constant", [True, False])
def test_places_that_an_index_picks_lie_in_the_arena(constant: bool, tmp_path: Path) -> None:
    graphopt.compile(picking(constant=constant)).save(tmp_path / "m.ts", arena=True)
    jit: Any = torch.jit
    module = jit.load(str(tmp_path / "m.ts"))
    x, index = torch.randn(64, 32), torch.tensor(PICKED).unsqueeze(1)
    found = module(x) if constant else module(x, index)
    assert torch.equal(found[0], x[PICKED].relu())
    if not constant:
        other = torch.flip(index, [0])
        assert torch.equal(module(x, other)[0], x[PICKED[::-1]].relu())
