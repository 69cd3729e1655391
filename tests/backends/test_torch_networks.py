"""Trained networks and builders out as TorchScript and .pt2, read back and compared."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphopt

pytest.importorskip("torch")

from graphopt.frontends.onnx_loader import load_onnx
from graphopt.ir.dims import Bounds
from graphopt.numerics.torch_files import save_for_torch
from models import REGISTRY, SMALL, build

pytestmark = [pytest.mark.torch, pytest.mark.slow]

NETWORKS = (
    "deeplabv3_mnv2_portrait",
    "dnsmos_sig_bak_ovr",
    "dscnn_kws",
    "dscnn_kws_dqweights",
    "dtln_1",
    "dtln_2",
    "espcn_x3",
    "lprnet_plate",
    "magika_v3_3",
    "mnist_cntk",
    "nnsplit_en",
    "ppocr_det_v1_1",
    "resnet20_cifar10",
    "resnet56_cifar10",
    "resnet8_cifar10_nhwc",
    "silero_vad",
    "sinet_portrait",
    "squeezenet1_1_fp16",
    "squeezenet1_1_imagenet",
    "stories260k_decode",
    "stories260k_prefill",
    "ultraface_rfb320",
    "yolox_nano_416",
)
# torch takes a size that becomes 1 inside the network for a constant, and checks that when it runs.
BOUNDS = {"ppocr_det_v1_1": {"image_2": Bounds(64, 640), "image_3": Bounds(64, 640)}}


def speech() -> list[dict[str, Any]]:
    """Return a sample for each sample rate, which a branch of the network belongs to."""
    rng = np.random.default_rng(0)

    def sample(batch: int, length: int, rate: int) -> dict[str, Any]:
        return {
            "input": rng.standard_normal((batch, length)).astype(np.float32) * 0.1,
            "state": rng.standard_normal((2, batch, 128)).astype(np.float32) * 0.1,
            "sr": np.array(rate, dtype=np.int64),
        }

    return [sample(1, 576, 16000), sample(2, 288, 8000)]


SAMPLES: dict[str, Callable[[], list[dict[str, Any]]]] = {"silero_vad": speech}


@pytest.mark.assets
@pytest.mark.parametrize("suffix", ["ts", "pt2"])
@pytest.mark.parametrize("name", NETWORKS)
def test_trained_network(name: str, suffix: str, assets: Path, tmp_path: Path) -> None:
    program = load_onnx(assets / "models" / f"{name}.onnx", bounds=BOUNDS.get(name))
    samples = SAMPLES[name]() if name in SAMPLES else None
    path = tmp_path / f"{name}.{suffix}"
    assert save_for_torch(program, path, example_inputs=samples) == [path]
    assert path.stat().st_size > 1000


@pytest.mark.parametrize("suffix", ["ts", "pt2"])
@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_builder(name: str, suffix: str, tmp_path: Path) -> None:
    sample = build(name, **SMALL[name])
    result = graphopt.compile(
        sample.module, sample.example_inputs, dynamic_shapes=sample.dynamic_shapes
    )
    (path,) = result.save(tmp_path / f"{name}.{suffix}")
    assert path.stat().st_size > 1000
