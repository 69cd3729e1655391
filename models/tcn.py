"""TCN: dilated causal convolutions over a sequence (Bai et al. 2018, arXiv:1803.01271).

Weight normalization is left out: a trained model has it folded.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

from models.layers import RELU_GAIN, RESIDUAL_GAIN
from models.sample import BATCH, EXAMPLE_BATCH, Sample, seeded


def conv1d(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    dilation: int = 1,
    gain: float = RELU_GAIN,
) -> nn.Conv1d:
    """Returns a 1-D convolution without padding."""
    conv = nn.Conv1d(in_channels, out_channels, kernel_size, dilation=dilation)
    nn.init.normal_(conv.weight, std=gain / math.sqrt(in_channels * kernel_size))
    return conv


class TemporalBlock(nn.Module):
    """Two causal convolutions and a shortcut; a step of the output sees no later step."""

    def __init__(self, in_channels: int, channels: int, kernel_size: int, dilation: int) -> None:
        super().__init__()
        self.padding = (kernel_size - 1) * dilation
        self.first = conv1d(in_channels, channels, kernel_size, dilation=dilation)
        self.second = conv1d(channels, channels, kernel_size, dilation=dilation, gain=RESIDUAL_GAIN)
        self.shortcut: nn.Module = (
            nn.Identity() if in_channels == channels else conv1d(in_channels, channels, 1, gain=1.0)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps [batch, in_channels, sequence] to [batch, channels, sequence]."""
        y = functional.relu(self.first(functional.pad(x, (self.padding, 0))))
        y = functional.relu(self.second(functional.pad(y, (self.padding, 0))))
        return functional.relu(y + self.shortcut(x))


class Tcn(nn.Module):
    """Labels steps: signal [batch, in_channels, sequence] to logits [batch, classes, sequence]."""

    def __init__(
        self, in_channels: int, channels: tuple[int, ...], kernel_size: int, num_classes: int
    ) -> None:
        super().__init__()
        inputs = (in_channels, *channels[:-1])
        self.blocks = nn.Sequential(
            *(
                TemporalBlock(before, after, kernel_size, dilation=2**level)
                for level, (before, after) in enumerate(zip(inputs, channels, strict=True))
            )
        )
        self.classifier = conv1d(channels[-1], num_classes, 1, gain=1.0)

    def forward(self, signal: Tensor) -> Tensor:
        """Returns the logits of every step."""
        logits: Tensor = self.classifier(self.blocks(signal))
        return logits


def tcn(
    in_channels: int = 1,
    channels: tuple[int, ...] = (25,) * 8,
    kernel_size: int = 7,
    sequence: int = 784,
    num_classes: int = 10,
    seed: int = 0,
) -> Sample:
    """Builds a TCN with dynamic batch and sequence; by default the paper's for sequential MNIST.

    Args:
        in_channels: Values per step.
        channels: Per block; block i dilates by `2**i`.
        kernel_size: Of every convolution.
        sequence: Steps of the example input.
        num_classes: Number of logits per step.
        seed: Of weights and example inputs.
    """
    with seeded(seed):
        module = Tcn(in_channels, channels, kernel_size, num_classes).eval()
        signal = torch.randn(EXAMPLE_BATCH, in_channels, sequence)
        shapes = ({0: BATCH, 2: Dim("sequence", min=1, max=4096)},)
        return Sample(module, (signal,), shapes, ("signal",), ("logits",))
