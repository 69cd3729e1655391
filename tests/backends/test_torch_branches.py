"""Branches in .pt2 files: one that cannot run refuses, at fixed sizes and at open ones."""

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


def framed() -> onnx.ModelProto:
    """Return a network that wants one frame, of 4 samples or of 6 by an input, at any batch."""
    scalar = {
        name: onnx.numpy_helper.from_array(np.array(value, np.int64), name)
        for name, value in (("four", 4), ("zero", 0), ("one", 1), ("two", 2), ("ones", [1]))
    }
    scalar["axis"] = onnx.numpy_helper.from_array(np.array([2], np.int64), "axis")
    weights = onnx.numpy_helper.from_array(np.arange(3, dtype=np.float32)[None], "weights")
    bodies = {}
    for name, size in (("then_branch", 4), ("else_branch", 6)):
        pool: dict[str, Any] = {"kernel_shape": [size], "strides": [size]}
        inner = {
            "then_branch": [helper.make_node("Squeeze", [f"p{size}", "axis"], [f"s{size}"])],
            "else_branch": [helper.make_node("Identity", [f"p{size}"], [f"i{size}"])],
        }
        operators = [
            helper.make_node("Unsqueeze", ["x", "ones"], [f"u{size}"]),
            helper.make_node("AveragePool", [f"u{size}"], [f"p{size}"], **pool),
            helper.make_node("Shape", [f"p{size}"], [f"shape{size}"]),
            helper.make_node("Gather", [f"shape{size}", "two"], [f"count{size}"]),
            helper.make_node("Equal", [f"count{size}", "one"], [f"single{size}"]),
            helper.make_node(
                "If",
                [f"single{size}"],
                [f"f{size}"],
                name=f"frame{size}",
                **{key: branch(f"{key}{size}", nodes) for key, nodes in inner.items()},
            ),
            helper.make_node("Gemm", [f"f{size}", "weights"], [f"y{size}"]),
        ]
        bodies[name] = branch(name, operators)
    nodes = [
        helper.make_node("Equal", ["rate", "four"], ["is_four"]),
        helper.make_node("If", ["is_four"], ["y"], name="chosen", **bodies),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "size"]),
        helper.make_tensor_value_info("rate", TensorProto.INT64, []),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [*scalar.values(), weights])
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def run_framed(module: Any, batch: int, size: int, rate: int) -> Any:
    x = np.arange(batch * size, dtype=np.float32).reshape(batch, size)
    with torch.no_grad():
        found = module(torch.from_numpy(x), torch.tensor(rate))[0].numpy()
    wanted = x[:, :rate].mean(axis=1, keepdims=True) * np.arange(3, dtype=np.float32)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_branches_at_open_sizes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "m.pt2"
    emit_pt2(load_onnx(framed()), path, feeds=[feed(4), feed(6)])
    assert said(caplog) == ["the .pt2 file takes sizes of 'size' from 6 on: one branch needs them"]
    module = torch.export.load(str(path)).module()
    for batch in (1, 2, 5):
        for size, rate in ((6, 4), (7, 4), (6, 6), (8, 6), (11, 6)):
            run_framed(module, batch, size, rate)
    for size, rate in ((8, 4), (11, 4), (12, 6)):
        with pytest.raises(RuntimeError, match=f"node 'frame{rate}': no sample took the branch"):
            run_framed(module, 2, size, rate)
    with pytest.raises(AssertionError, match="size\\(\\)\\[1\\] >= 6"):
        run_framed(module, 2, 5, 4)


def test_a_branch_that_no_sample_took_refuses(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "m.pt2"
    emit_pt2(load_onnx(framed()), path, feeds=[feed(4)])
    assert said(caplog) == [
        "a branch of node 'chosen' refuses in the .pt2 file: no sample took it",
        "the .pt2 file takes sizes of 'size' from 4 on: one branch needs them",
    ]
    module = torch.export.load(str(path)).module()
    run_framed(module, 3, 7, 4)
    with pytest.raises(RuntimeError, match="node 'chosen': no sample took this branch"):
        run_framed(module, 3, 6, 6)


def test_an_unsampled_branch_that_computes_stays(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    sample: dict[str, Any] = {"x": np.ones((1, 7), np.float32), "rate": np.array(4)}
    emit_pt2(load_onnx(framed()), path, feeds=[sample])
    module = torch.export.load(str(path)).module()
    run_framed(module, 3, 6, 4)
    run_framed(module, 3, 11, 6)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings of the backends."""
    return [r.getMessage() for r in caplog.records if r.name.startswith("graphopt.backends")]
