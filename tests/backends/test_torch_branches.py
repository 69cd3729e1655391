"""Branches in .pt2 files: at fixed sizes one that cannot run refuses, open sizes are an error."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import graphopt

torch = pytest.importorskip("torch")

from graphopt.backends.emit_pt2 import emit_pt2  # noqa: E402 - torch may be missing
from graphopt.backends.torch_ops import control  # noqa: E402
from graphopt.backends.torch_ops.small import maximum, minimum  # noqa: E402
from graphopt.frontends.onnx_loader import load_onnx  # noqa: E402

pytestmark = pytest.mark.torch
MODULE: Any = torch.nn.Module


def branch(name: str, operators: list[Any]) -> onnx.GraphProto:
    value = helper.make_tensor_value_info(operators[-1].output[0], TensorProto.FLOAT, None)
    return helper.make_graph(operators, name, [], [value])


def choosing(size: Any) -> onnx.ModelProto:
    """Return ``MatMul`` with a matrix of 4 rows or of 6, by an input."""
    rng = np.random.default_rng(0)
    weights = [
        onnx.numpy_helper.from_array(rng.standard_normal((rows, 3)).astype(np.float32), f"w{rows}")
        for rows in (4, 6)
    ]
    bodies = {
        name: branch(name, [helper.make_node("MatMul", ["x", f"w{rows}"], [f"y{rows}"])])
        for name, rows in (("then_branch", 4), ("else_branch", 6))
    }
    nodes = [
        helper.make_node("Equal", ["rate", "four"], ["is_four"]),
        helper.make_node("If", ["is_four"], ["y"], name="chosen", **bodies),
    ]
    four = onnx.numpy_helper.from_array(np.array(4, np.int64), "four")
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, size]),
        helper.make_tensor_value_info("rate", TensorProto.INT64, []),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [*weights, four])
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def feed(rate: int) -> dict[str, Any]:
    return {"x": np.ones((2, rate), np.float32), "rate": np.array(rate, np.int64)}


@pytest.mark.parametrize("rate", [4, 6])
def test_a_branch_that_cannot_run_refuses(rate: int, tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    model = choosing(rate)
    emit_pt2(load_onnx(model), path, feeds=[feed(rate)])
    module = torch.export.load(str(path)).module()
    x, chosen = torch.ones(2, rate), torch.tensor(rate)
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0 if rate == 4 else 1])
    with torch.no_grad():
        np.testing.assert_allclose(module(x, chosen)[0], np.ones((2, rate)) @ weight, rtol=1e-5)
        with pytest.raises(RuntimeError, match="node 'chosen': the branch of this condition"):
            module(x, torch.tensor(10 - rate))


def test_a_branch_that_cannot_be_captured_names_the_node() -> None:
    def one(x: Any) -> Any:
        return (x + 1,)

    def other(x: Any) -> Any:
        raise ValueError("a sequence of rank 3")

    class Chooses(MODULE):  # type: ignore[misc]  # torch may be missing
        def forward(self, x: Any, condition: Any) -> Any:
            return control.if_(condition, one, other, x, node="chosen")

    with pytest.raises(graphopt.UnsupportedError, match="rank 3") as caught:
        torch.export.export(Chooses(), (torch.ones(5), torch.tensor(True)), strict=False)
    assert caught.value.code == "torch-branch-sizes"
    assert caught.value.node == "chosen"


def test_open_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(graphopt.UnsupportedError) as caught:
        emit_pt2(load_onnx(choosing("size")), tmp_path / "m.pt2", feeds=[feed(4)])
    assert caught.value.code == "torch-capture-failed"
    assert list(tmp_path.iterdir()) == []


def test_sizes_of_a_branch_are_compared_as_they_are() -> None:
    class Chooses(MODULE):  # type: ignore[misc]  # torch may be missing
        def forward(self, x: Any, condition: Any) -> Any:
            def one(x: Any) -> Any:
                return (x * maximum(2 * x.shape[0], 1) + 100 * minimum(x.shape[0], 1),)

            def other(x: Any) -> Any:
                return (x + 0,)

            return torch.cond(condition, one, other, (x,))

    exported = torch.export.export(Chooses(), (torch.ones(5), torch.tensor(True)), strict=False)
    found = exported.module()(torch.ones(5), torch.tensor(True))[0]
    assert found.tolist() == [110.0] * 5
