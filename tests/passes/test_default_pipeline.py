"""The default pipeline on random graphs and on trained networks."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from graphopt.frontends.onnx_loader import load_onnx
from graphopt.ir.graph_checks import check_structure
from graphopt.ir.program import Program, dims_of
from graphopt.passes import DEFAULT_PIPELINE, REGISTRY, default_pipeline, load_pass
from graphopt.pipeline.base import PassResult
from graphopt.pipeline.options import pass_from_text
from graphopt.pipeline.pipeline import build_passes, model_size
from graphopt.targets.loader import resolve_target
from tests.passes.graphs import Arrays, assert_equal, random_inputs, run, text_of
from tests.passes.random_graphs import random_program

ROOT = Path(__file__).resolve().parent.parent.parent

# Nodes that are left, and the largest relative difference of an output. Rounding of half precision
# depends on where the runtime casts, so that network is apart.
NETWORKS = {
    "deeplabv3_mnv2_portrait": (107, 1e-5),
    "dnsmos_sig_bak_ovr": (44, 0.0),
    "dscnn_kws": (23, 0.0),
    "dscnn_kws_dqweights": (28, 0.0),
    "dtln_1": (20, 0.0),
    "dtln_2": (66, 0.0),
    "espcn_x3": (8, 0.0),
    "lprnet_plate": (53, 0.0),
    "magika_v3_3": (75, 1e-6),
    "mnist_cntk": (8, 1e-6),
    "nnsplit_en": (22, 0.0),
    "ppocr_det_v1_1": (173, 2e-5),
    "resnet20_cifar10": (54, 0.0),
    "resnet56_cifar10": (144, 0.0),
    "resnet8_cifar10_nhwc": (24, 0.0),
    # Weights that are constants are packed when they are loaded, and products round otherwise.
    "silero_vad": (148, 1e-5),
    "sinet_portrait": (208, 0.0),
    "squeezenet1_1_fp16": (65, 2e-3),
    "squeezenet1_1_imagenet": (65, 0.0),
    "stories260k_decode": (402, 1e-5),
    "stories260k_prefill": (365, 0.0),
    "ultraface_rfb320": (125, 1e-5),
    "yolox_nano_416": (365, 0.0),
}
SIZES = {"seq": 7, "past": 5, "height": 24, "width": 30, "length": 20}
SIZES |= {"image_2": 64, "image_3": 64, "input_1": 576}


def clean_up(model: ir.Model) -> bool:
    """Run the default pipeline; return whether it changed anything."""
    results = [pass_from_text(text)(model) for text in DEFAULT_PIPELINE]
    return any(result.modified for result in results)


@pytest.mark.parametrize("seed", range(24))
def test_random_graphs_compute_the_same_after_every_pass(seed: int) -> None:
    model = random_program(seed).model
    feeds = random_inputs(model, {"n": 3}, seed)
    wanted = before = run(model, feeds)
    for text in DEFAULT_PIPELINE:
        pass_ = pass_from_text(text)
        result = pass_(model)
        assert isinstance(result, PassResult)
        check_structure(model, 2)
        if result.modified:
            after = run(model, feeds)
            assert_equal(after, before, exact=pass_.preserves_bits, rtol=3e-5)
            assert_equal(after, wanted, exact=False, rtol=3e-5)
            before = after
        assert not pass_(model).modified, text
    assert model.graph.num_nodes() < random_program(seed).model.graph.num_nodes()


@pytest.mark.parametrize("seed", range(12))
def test_a_second_clean_up_finds_nothing(seed: int) -> None:
    model = random_program(seed).model
    assert clean_up(model)
    text = text_of(model)
    assert not clean_up(model)
    assert text_of(model) == text


def feeds_of(program: Program) -> Arrays:
    feeds = random_inputs(program.model, {name: SIZES.get(name, 1) for name in program.bounds})
    for name, array in feeds.items():
        if name == "sr":
            feeds[name] = np.full_like(array, 16_000)
        elif array.dtype.kind in "iu":
            feeds[name] = np.arange(array.size).reshape(array.shape).astype(array.dtype) % 250
        else:
            # The large numbers of random_inputs saturate a trained network.
            feeds[name] = np.clip(array, -3, 3)
    return feeds


@pytest.mark.assets
@pytest.mark.parametrize("name", NETWORKS)
def test_trained_networks(name: str, assets: Path) -> None:
    nodes, tolerance = NETWORKS[name]
    path = assets / "models" / f"{name}.onnx"
    program = load_onnx(path)
    model = program.model
    feeds = feeds_of(program)
    wanted = run(load_onnx(path).model, feeds)
    before = model_size(model)
    signature = [(v.name, v.dtype) for v in (*model.graph.inputs, *model.graph.outputs)]
    clean_up(model)
    after = model_size(model)
    check_structure(model, 2)
    print(f"{name}: nodes {before[0]} -> {after[0]}, weights {before[1]} -> {after[1]} bytes")  # noqa: T201
    assert after[0] == nodes
    assert signature == [(v.name, v.dtype) for v in (*model.graph.inputs, *model.graph.outputs)]
    assert_equal(run(model, feeds), wanted, exact=tolerance == 0, rtol=tolerance)
    assert not clean_up(model)


@pytest.mark.assets
def test_folding_in_branches_keeps_every_bit(assets: Path, tmp_path: Path) -> None:
    original = assets / "models" / "silero_vad.onnx"
    program = load_onnx(original)
    feeds = feeds_of(program)
    clean_up(program.model)
    ir.save(program.model, tmp_path / "clean.onnx")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Else products with weights that are constants go through other kernels.
    options.add_session_config_entry("session.disable_prepacking", "1")
    wanted, got = (
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(
            None, feeds
        )
        for path in (original, tmp_path / "clean.onnx")
    )
    assert all(a.tobytes() == b.tobytes() for a, b in zip(wanted, got, strict=True))


@pytest.mark.assets
@pytest.mark.parametrize("name", ["ultraface_rfb320", "stories260k_prefill", "sinet_portrait"])
def test_every_value_has_a_size_afterwards(name: str, assets: Path) -> None:
    model = load_onnx(assets / "models" / f"{name}.onnx").model
    clean_up(model)
    unknown = [v.name for node in model.graph for v in node.outputs if dims_of(v) is None]
    assert unknown == []


def test_the_pipeline_runs_in_a_valid_order() -> None:
    passes = build_passes(None, (), default_pipeline(resolve_target("cpu")))
    assert [p.name for p in passes] == [*DEFAULT_PIPELINE, "reorder-for-peak"]
    # Not portable, see the head of its file.
    unused = set(REGISTRY) - {p.name for p in passes}
    # fix-dimensions is for targets that take fixed shapes, quantization is asked for.
    precisions = {
        "convert-to-half",
        "equalize-channels",
        "fuse-qdq",
        "insert-qdq",
        "integer-interface",
        "lower-for-integers",
        "quantize-recurrent",
        "quantize-weights",
        "raise-opset",
        "split-products",
    }
    assert unused - precisions == {
        "fuse-activation",
        "fix-dimensions",
    }


@pytest.mark.parametrize("name", REGISTRY)
def test_the_registry_names_the_pass(name: str) -> None:
    kind = load_pass(name)
    assert kind.name == name
    assert kind.__module__ == f"graphopt.passes.{name.replace('-', '_')}"
    assert kind.__name__ == "".join(part.capitalize() for part in name.split("-"))
    assert list(REGISTRY) == sorted(REGISTRY)


@pytest.mark.slow
def test_the_result_does_not_depend_on_the_hash_seed() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from tests.passes.test_default_pipeline import digest\n"
        "print(digest())"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code, str(ROOT)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1] == f"{digest()}\n"


def digest() -> str:
    """Return a digest of what the pipeline makes of a few graphs, for the test above."""
    total = hashlib.sha256()
    for seed in range(8):
        model = random_program(seed, moves=40).model
        clean_up(model)
        total.update(ir.to_proto(model).SerializeToString(deterministic=True))
    return total.hexdigest()
