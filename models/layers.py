"""Layers shared by the builders.

They draw their own weights from torch's default generator, so a seed and the order of construction
decide every value. `gain` is the ratio of the root mean square of a layer's output to that of its
input; the default keeps the scale of activations through a chain of convolution and ReLU (He et al.
2015, arXiv:1502.01852). The last layer of a residual branch takes a smaller gain, so that a deep
sum of branches stays in range although the running statistics are random and normalize nothing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import init

RELU_GAIN = math.sqrt(2.0)
SILU_GAIN = 1.7
RESIDUAL_GAIN = 0.5


def round_channels(channels: float, multiple: int = 8) -> int:
    """Returns the multiple nearest to `channels` that is not below 90 % of it."""
    rounded = max(multiple, int(channels + multiple / 2) // multiple * multiple)
    return rounded + multiple if rounded < 0.9 * channels else rounded


def conv2d(
    in_channels: int,
    out_channels: int,
    kernel_size: int | tuple[int, int] = 3,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | None = None,
    dilation: int = 1,
    groups: int = 1,
    bias: bool = True,
    gain: float = RELU_GAIN,
) -> nn.Conv2d:
    """Returns a 2-D convolution; `padding=None` keeps the size for odd kernels and stride 1."""
    rows, columns = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    if padding is None:
        padding = (dilation * (rows - 1) // 2, dilation * (columns - 1) // 2)
    conv = nn.Conv2d(
        in_channels,
        out_channels,
        (rows, columns),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=bias,
    )
    init.normal_(conv.weight, std=gain / math.sqrt(in_channels // groups * rows * columns))
    if conv.bias is not None:
        init.normal_(conv.bias, std=0.05)
    return conv


def linear(
    in_features: int, out_features: int, *, bias: bool = True, gain: float = 1.0
) -> nn.Linear:
    """Returns a linear layer."""
    layer = nn.Linear(in_features, out_features, bias=bias)
    init.normal_(layer.weight, std=gain / math.sqrt(in_features))
    if bias:
        init.normal_(layer.bias, std=0.05)
    return layer


def batch_norm(channels: int, eps: float = 1e-5) -> nn.BatchNorm2d:
    """Returns a batch normalization whose four vectors are random and near the identity."""
    norm = nn.BatchNorm2d(channels, eps=eps)
    init.uniform_(norm.weight, 0.8, 1.2)
    init.normal_(norm.bias, std=0.1)
    running_mean, running_var = norm.running_mean, norm.running_var
    assert running_mean is not None
    assert running_var is not None
    init.normal_(running_mean, std=0.1)
    init.uniform_(running_var, 0.8, 1.25)
    return norm


def layer_norm(features: int, eps: float = 1e-5) -> nn.LayerNorm:
    """Returns a layer normalization of the last axis whose vectors are random and near identity."""
    norm = nn.LayerNorm(features, eps=eps)
    init.uniform_(norm.weight, 0.8, 1.2)
    init.normal_(norm.bias, std=0.1)
    return norm


def parameter(*shape: int, std: float) -> nn.Parameter:
    """Returns a parameter drawn from N(0, std**2)."""
    return nn.Parameter(torch.randn(*shape) * std)


class ConvNorm(nn.Sequential):
    """Convolution without bias, batch normalization and, unless None, an activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | None = None,
        dilation: int = 1,
        groups: int = 1,
        activation: type[nn.Module] | None = nn.ReLU,
        gain: float = RELU_GAIN,
        eps: float = 1e-5,
    ) -> None:
        conv = conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=False,
            gain=gain,
        )
        layers: list[nn.Module] = [conv, batch_norm(out_channels, eps)]
        if activation is not None:
            layers.append(activation())
        super().__init__(*layers)


class Residual(nn.Module):
    """Adds the output of `body` to its input."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """Maps any shape to the same shape."""
        branch: Tensor = self.body(x)
        return x + branch


class Branches(nn.Module):
    """Feeds one input to several branches and concatenates what they return over the channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [batch, channels, height, width] to the branches' channels at the branches' size."""
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class PoolHead(nn.Sequential):
    """Averages over height and width, classifies: [batch, channels, h, w] to [batch, classes]."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(channels, num_classes))
