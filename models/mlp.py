"""A multi-layer perceptron."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from models.layers import RELU_GAIN, linear
from models.sample import BATCH, EXAMPLE_BATCH, Sample, seeded


class Mlp(nn.Module):
    """Linear layers with ReLU between them: x [batch, features[0]] to y [batch, features[-1]]."""

    def __init__(self, features: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for in_features, out_features in itertools.pairwise(features):
            if layers:
                layers.append(nn.ReLU())
            layers.append(linear(in_features, out_features, gain=RELU_GAIN if layers else 1.0))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the output of the last layer."""
        y: Tensor = self.layers(x)
        return y


def mlp(features: tuple[int, ...] = (784, 512, 512, 10), seed: int = 0) -> Sample:
    """Builds a multi-layer perceptron.

    Args:
        features: Sizes of the input, the hidden layers and the output.
        seed: Of weights and example inputs.
    """
    with seeded(seed):
        x = torch.randn(EXAMPLE_BATCH, features[0])
        return Sample(Mlp(features).eval(), (x,), ({0: BATCH},), ("x",), ("y",))
