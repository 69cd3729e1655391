"""Recurrent layers for torch: weights in torch's order in the file, steps inside the arena."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import graphopt

torch = pytest.importorskip("torch")

from graphopt.backends import torch_out_recurrent  # noqa: E402 - torch may be missing
from graphopt.backends.torch_counts import requested_bytes  # noqa: E402
from graphopt.backends.torch_lowering import lower_to_torch  # noqa: E402
from graphopt.frontends.onnx_loader import load_onnx  # noqa: E402

pytestmark = pytest.mark.torch
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def layer(
    kind: str,
    direction: str,
    *,
    biases: bool = True,
    time: Any = 6,
    batch: int = 2,
    **attributes: Any,
) -> onnx.ModelProto:
    """Return a layer of 64 units for sequences of 48 features."""
    rng = np.random.default_rng(len(kind) + len(direction))
    count = 2 if direction == "bidirectional" else 1
    sizes: dict[str, tuple[int, ...]] = {
        "w": (count, GATES[kind] * 64, 48),
        "r": (count, GATES[kind] * 64, 64),
    }
    if biases:
        sizes["b"] = (count, 2 * GATES[kind] * 64)
    weights = [
        onnx.numpy_helper.from_array(rng.standard_normal(size).astype(np.float32) * 0.2, name)
        for name, size in sizes.items()
    ]
    outputs = ["y", "h", "c"] if kind == "LSTM" else ["y", "h"]
    node = helper.make_node(
        kind, ["x", *sizes], outputs, name="n", hidden_size=64, direction=direction, **attributes
    )
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [time, batch, 48])
    graph = helper.make_graph([node], "g", [x], values, weights)
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, ir_version=8, opset_imports=opset)


def saved(model: onnx.ModelProto, folder: Path) -> tuple[Any, dict[str, Any]]:
    result = graphopt.compile(model)
    result.save(folder / "m.ts", arena=True)
    files = {"graphopt_arena.json": ""}
    module = torch.jit.load(str(folder / "m.ts"), _extra_files=files)
    return module, json.loads(files["graphopt_arena.json"])


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("kind", sorted(GATES))
def test_a_layer_runs_inside_the_arena(kind: str, direction: str, tmp_path: Path) -> None:
    attributes: dict[str, Any] = {"linear_before_reset": 1} if kind == "GRU" else {}
    module, report = saved(layer(kind, direction, **attributes), tmp_path)
    assert report["not_enforced"] == []
    x = torch.randn(6, 2, 48)
    with torch.no_grad():
        outputs = [torch.empty_like(y) for y in module(x)]
        module.run_into(x, outputs)
        assert requested_bytes(lambda: module.run_into(x, outputs)) == []


def test_a_layer_without_biases_runs_inside_the_arena(tmp_path: Path) -> None:
    _, report = saved(layer("LSTM", "bidirectional", biases=False), tmp_path)
    assert report["not_enforced"] == []


@pytest.mark.parametrize(("batch", "strides"), [(1, (1, 256)), (2, (64, 1))])
def test_one_row_is_multiplied_by_a_matrix_of_columns(
    batch: int, strides: tuple[int, int], tmp_path: Path
) -> None:
    module, _ = saved(layer("LSTM", "forward", batch=batch), tmp_path)
    found = [w.stride() for _, w in module.weights.named_buffers() if w.shape == (256, 64)]
    assert found == [strides]


def test_a_long_sequence_keeps_the_kernel_and_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graphopt.backends import torch_tape

    monkeypatch.setattr(torch_out_recurrent, "MOST_STEPS", 5)
    monkeypatch.setattr(torch_tape, "_CHOICES", {})
    _, report = saved(layer("LSTM", "forward"), tmp_path)
    (entry,) = report["not_enforced"]
    assert entry["operator"] == "aten.mkldnn_rnn_layer.default"
    assert entry["node"] == "n"
    assert entry["holds_result"]


def parameters(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    module = lower_to_torch(load_onnx(model))
    return {name: tuple(p.shape) for name, p in module.named_parameters()}


def test_weights_lie_in_the_order_of_the_kernel() -> None:
    found = parameters(layer("LSTM", "bidirectional"))
    one = [(256, 48), (256, 64), (256,), (256,)]
    assert list(found.values()) == one * 2
    model = layer("LSTM", "forward")
    module: Any = lower_to_torch(load_onnx(model))
    w = onnx.numpy_helper.to_array(model.graph.initializer[0])[0]
    i, o, f, c = np.split(w, 4)
    np.testing.assert_array_equal(module.n_0.numpy(), np.concatenate([i, f, c, o]))


@pytest.mark.parametrize(
    "model",
    [
        layer("LSTM", "forward", time="steps"),
        layer("LSTM", "forward", clip=3.0),
        layer("LSTM", "forward", activations=["Sigmoid", "Tanh", "Relu"]),
        layer("GRU", "forward"),
    ],
    ids=["open-time", "clip", "activations", "reset-before"],
)
def test_other_forms_keep_their_weights(model: onnx.ModelProto) -> None:
    assert list(parameters(model)) == ["w", "r", "b"]


def test_a_shared_weight_is_not_held_twice() -> None:
    model = layer("LSTM", "forward")
    twin = model.graph.node.add()
    twin.CopyFrom(model.graph.node[0])
    twin.name = "twin"
    twin.output[:] = ["y2", "h2", "c2"]
    model.graph.output.append(helper.make_tensor_value_info("y2", TensorProto.FLOAT, None))
    assert sorted(parameters(model)) == ["b", "r", "w"]


@pytest.mark.parametrize("wrong", ["rank", "batch", "hidden"])
def test_a_state_that_does_not_fit_is_an_error(wrong: str) -> None:
    from graphopt.backends.torch_ops.recurrent import _state

    shapes = {"rank": (1, 1, 2, 8), "batch": (1, 3, 8), "hidden": (1, 2, 7)}
    with pytest.raises(ValueError, match="a state"):
        _state(torch.zeros(shapes[wrong]), torch.zeros(4, 2, 5), 1, 8)
    with pytest.raises(ValueError, match="rank 3"):
        _state(None, torch.zeros(1, 1, 4, 2, 5), 1, 8)
