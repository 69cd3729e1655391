"""The model builders: registry, sane outputs, one result per seed, export, real sizes."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import models

if TYPE_CHECKING:
    from torch import Tensor

    from models.sample import Sample

torch = pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.torch

NAMES = sorted(models.REGISTRY)
PUBLISHED_PARAMETERS = {
    "densenet121": 7_978_856,
    "mobilenet_v2": 3_504_872,
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "squeezenet1_1": 1_235_496,
    "vit_b_16": 86_567_656,
}


@pytest.fixture(autouse=True, scope="module")
def _single_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def build_small(name: str, seed: int = 0) -> Sample:
    return models.build(name, **models.SMALL[name], seed=seed)


def run(sample: Sample, *inputs: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        outputs = sample.module(*(inputs or sample.example_inputs))
    return outputs if isinstance(outputs, tuple) else (outputs,)


def test_registry_is_alphabetical_and_every_model_has_a_small_variant() -> None:
    assert list(models.REGISTRY) == NAMES
    assert list(models.SMALL) == NAMES


def test_registry_names_every_builder() -> None:
    builders = [
        f"models.{path.stem}:{node.name}"
        for path in (ROOT / "models").glob("*.py")
        if path.stem not in {"__init__", "sample"}
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
        and isinstance(node.returns, ast.Name)
        and node.returns.id == "Sample"
    ]
    assert sorted(builders) == sorted(models.REGISTRY.values())


def test_import_does_not_import_torch() -> None:
    code = "import sys, models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_unknown_name_has_a_hint() -> None:
    with pytest.raises(ValueError, match="did you mean 'mobilenet_v2'"):
        models.build("mobilenetv2")


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_finite_and_differ(name: str) -> None:
    sample = build_small(name)
    outputs = run(sample)
    assert not any(module.training for module in sample.module.modules())
    assert len(outputs) == len(sample.output_names) == len(set(sample.output_names))
    assert len(sample.example_inputs) == len(sample.input_names) == len(set(sample.input_names))
    for output in outputs:
        assert torch.isfinite(output).all()
        assert 1e-3 < output.std() < 1e2
        assert not torch.equal(output[0], output[1])


@pytest.mark.parametrize("name", NAMES)
def test_seed_decides_weights_and_inputs(name: str) -> None:
    state = torch.get_rng_state()
    first, second, other = build_small(name), build_small(name), build_small(name, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    for one, two in zip(first.example_inputs, second.example_inputs, strict=True):
        assert torch.equal(one, two)
    weights = first.module.state_dict()
    same, different = second.module.state_dict(), other.module.state_dict()
    assert all(torch.equal(weights[key], same[key]) for key in weights)
    assert list(weights) != list(different) or not all(
        torch.equal(weights[key], different[key]) for key in weights
    )


@pytest.mark.filterwarnings("ignore:The tensor attributes self.lstm:UserWarning")
@pytest.mark.parametrize("name", NAMES)
def test_exports_with_dynamic_shapes(name: str) -> None:
    sample = build_small(name)
    program = torch.export.export(
        sample.module, sample.example_inputs, dynamic_shapes=sample.dynamic_shapes
    )
    bounds = {
        (constraint.lower, constraint.upper) for constraint in program.range_constraints.values()
    }
    assert (1, 64) in bounds
    assert len(program.graph_signature.user_outputs) == len(sample.output_names)


@pytest.mark.parametrize("name", sorted(PUBLISHED_PARAMETERS))
def test_real_size_has_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        sample = models.build(name)
    num_parameters = sum(parameter.numel() for parameter in sample.module.parameters())
    assert num_parameters == PUBLISHED_PARAMETERS[name]


@pytest.mark.parametrize("name", NAMES)
def test_input_names_are_those_of_forward(name: str) -> None:
    sample = build_small(name)
    names = [
        parameter.name
        for parameter in inspect.signature(sample.module.forward).parameters.values()
        if parameter.kind is not parameter.VAR_POSITIONAL
    ]
    assert list(sample.input_names[: len(names)]) == names


def test_batch_norm_statistics_are_not_trivial() -> None:
    module = build_small("resnet18").module
    norms = [layer for layer in module.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    assert norms
    for norm in norms:
        for vector, trivial in (
            (norm.weight, 1.0),
            (norm.bias, 0.0),
            (norm.running_mean, 0.0),
            (norm.running_var, 1.0),
        ):
            assert not torch.any(vector == trivial)
        assert norm.running_var.min() > 0.5


def test_builder_file_loads_by_path() -> None:
    path = ROOT / "models" / "mobilenet_v2.py"
    spec = importlib.util.spec_from_file_location("loaded_by_path", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sample = module.mobilenet_v2(**models.SMALL["mobilenet_v2"])
    assert type(sample) is type(build_small("mobilenet_v2"))


def test_llama_decode_continues_prefill() -> None:
    prefill, decode = build_small("llama_prefill"), build_small("llama_decode")
    (input_ids,) = prefill.example_inputs
    _, *cache = run(prefill, input_ids[:, :-1])
    stepped = run(decode, input_ids[:, -1:], *cache)
    for one, two in zip(run(prefill), stepped, strict=True):
        torch.testing.assert_close(one, two)


def test_bert_ignores_padding() -> None:
    sample = build_small("bert")
    input_ids, mask = sample.example_inputs
    other_ids = torch.where(mask == 0, (input_ids + 1) % 100, input_ids)
    assert not torch.equal(input_ids, other_ids)
    (states,), (other_states,) = run(sample), run(sample, other_ids, mask)
    torch.testing.assert_close(states[mask == 1], other_states[mask == 1])


def test_tcn_is_causal() -> None:
    sample = build_small("tcn")
    (signal,) = sample.example_inputs
    changed = signal.clone()
    changed[..., -1] += 1.0
    (logits,), (other_logits,) = run(sample), run(sample, changed)
    torch.testing.assert_close(logits[..., :-1], other_logits[..., :-1])
    assert not torch.equal(logits[..., -1], other_logits[..., -1])


def test_swin_shift_only_joins_true_neighbors() -> None:
    from models.swin import shifted_mask

    mask = shifted_mask(size=8, window=4, shift=2)
    assert mask.shape == (4, 16, 16)
    assert not mask[0].any()
    assert [int((window == 0).sum()) for window in mask] == [256, 128, 128, 64]


def test_digits_are_learned() -> None:
    pytest.importorskip("sklearn")
    from models.train_digits import train_digits

    trained = train_digits()
    assert trained.test_accuracy > 0.97
    assert trained.test_images.shape == (450, 1, 8, 8)
    assert trained.calibration_images.shape == (128, 1, 8, 8)
    with torch.no_grad():
        predicted = trained.module(trained.test_images).argmax(1)
    assert (predicted == trained.test_labels).float().mean().item() == trained.test_accuracy


def test_digits_training_is_deterministic() -> None:
    pytest.importorskip("sklearn")
    from models.train_digits import train_digits

    first, second = (train_digits(epochs=1).module.state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
