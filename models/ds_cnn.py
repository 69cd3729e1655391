"""DS-CNN: keyword spotting with separable convolutions (Zhang et al. 2017, arXiv:1711.07128).

The default is the small network of the paper on 49 frames of 10 cepstral coefficients.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers import ConvNorm, PoolHead
from models.sample import BATCH, EXAMPLE_BATCH, Sample, seeded


class DsCnn(nn.Module):
    """Audio classifier: features [batch, 1, frames, coefficients] to logits [batch, classes]."""

    def __init__(self, channels: int, blocks: int, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [ConvNorm(1, channels, (10, 4), stride=2, padding=(5, 1))]
        for _ in range(blocks):
            layers.append(ConvNorm(channels, channels, 3, groups=channels))
            layers.append(ConvNorm(channels, channels, 1))
        self.features = nn.Sequential(*layers)
        self.head = PoolHead(channels, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Returns the logits."""
        logits: Tensor = self.head(self.features(features))
        return logits


def ds_cnn(
    channels: int = 64,
    blocks: int = 4,
    frames: int = 49,
    coefficients: int = 10,
    num_classes: int = 12,
    seed: int = 0,
) -> Sample:
    """Builds DS-CNN.

    Args:
        channels: Of every convolution.
        blocks: Number of depthwise separable blocks.
        frames: Time steps of the input.
        coefficients: Values per time step.
        num_classes: Number of logits.
        seed: Of weights and example inputs.
    """
    with seeded(seed):
        module = DsCnn(channels, blocks, num_classes).eval()
        features = torch.randn(EXAMPLE_BATCH, 1, frames, coefficients)
        return Sample(module, (features,), ({0: BATCH},), ("features",), ("logits",))
