"""The whole compile from the torch side: every builder, a graph module, symbols kept."""

from pathlib import Path

import onnx
import pytest

import graphopt

torch = pytest.importorskip("torch")

from models import REGISTRY, SMALL, build  # noqa: E402 - torch may be missing


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_builder_compiles_and_is_compared_with_torch(name: str, tmp_path: Path) -> None:
    sample = build(name, **SMALL[name])
    result = graphopt.compile(
        sample.module, sample.example_inputs, dynamic_shapes=sample.dynamic_shapes
    )
    assert result.verification is not None
    assert result.verification.passed
    assert result.verification.reference.endswith("compared with torch")
    assert result.plan.is_complete
    assert result.plan.peak_bytes <= result.baseline.peak_bytes
    (path,) = result.save(tmp_path / "out.onnx")
    onnx.checker.check_model(str(path), full_check=True)


@pytest.mark.torch
def test_dynamic_batch_and_sequence_stay_symbolic(tmp_path: Path) -> None:
    sample = build("bert", **SMALL["bert"])
    result = graphopt.compile(
        sample.module, sample.example_inputs, dynamic_shapes=sample.dynamic_shapes
    )
    (path,) = result.save(tmp_path / "bert.onnx")
    for info in onnx.load(str(path)).graph.input:
        dims = [d.dim_param for d in info.type.tensor_type.shape.dim]
        assert dims == ["batch", "sequence"]
    # The bounds travel in the file: the saved model is planned at the same sizes.
    assert graphopt.plan(path).model.bounds == result.plan.model.bounds


@pytest.mark.torch
def test_graph_module() -> None:
    sample = build("digits_cnn")
    traced = torch.fx.symbolic_trace(sample.module)
    result = graphopt.compile(traced, sample.example_inputs)
    assert result.verification is not None
    assert result.verification.passed


@pytest.mark.torch
def test_a_wrong_capture_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt.frontends import torch_eager

    real = torch_eager.eager_outputs

    def shifted(*arguments: object) -> object:
        outputs = real(*arguments)  # type: ignore[arg-type]  # passed through
        assert outputs is not None
        return [outputs[0] + 1.0]

    monkeypatch.setattr(torch_eager, "eager_outputs", shifted)
    sample = build("mlp", **SMALL["mlp"])
    with pytest.raises(graphopt.VerificationError) as caught:
        graphopt.compile(sample.module, sample.example_inputs)
    assert caught.value.code == "capture-differs"
