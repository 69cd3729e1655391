"""Searched cells: small directed graphs of operations, shared by NASNet-A and DARTS.

A cell reads the outputs of the two cells before it. Node n (from 2 on; 0 and 1 are the two inputs)
adds two operations on earlier nodes; some nodes are concatenated into the output. Many orders of
the nodes are valid and their peaks differ: these models are interesting to a memory planner.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.layers import RELU_GAIN, batch_norm, conv2d

ADD_GAIN = 0.7


@dataclass(frozen=True)
class CellSpec:
    """A cell as a table.

    Attributes:
        nodes: Per node, from node 2 on: first operation, node it reads, second operation, node
            it reads.
        concat: The nodes that form the output, in order.
    """

    nodes: tuple[tuple[str, int, str, int], ...]
    concat: tuple[int, ...]


def relu_conv_norm(in_channels: int, out_channels: int) -> nn.Sequential:
    """Returns ReLU, 1x1 convolution and batch normalization."""
    return nn.Sequential(
        nn.ReLU(), conv2d(in_channels, out_channels, 1, bias=False), batch_norm(out_channels)
    )


def separable(channels: int, kernel_size: int, stride: int, dilation: int = 1) -> list[nn.Module]:
    """Returns ReLU, depthwise convolution, 1x1 convolution and batch normalization."""
    depthwise = conv2d(
        channels,
        channels,
        kernel_size,
        stride=stride,
        dilation=dilation,
        groups=channels,
        bias=False,
    )
    pointwise = conv2d(channels, channels, 1, bias=False, gain=ADD_GAIN)
    return [nn.ReLU(), depthwise, pointwise, batch_norm(channels)]


class FactorizedReduction(nn.Module):
    """Halves the size with two strided 1x1 convolutions, the second on a map shifted by a pixel."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.relu = nn.ReLU()
        self.even = conv2d(in_channels, half, 1, stride=2, bias=False, gain=RELU_GAIN)
        self.odd = conv2d(in_channels, out_channels - half, 1, stride=2, bias=False, gain=RELU_GAIN)
        self.norm = batch_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [batch, in_channels, h, w], both even, to [batch, out_channels, h / 2, w / 2]."""
        x = self.relu(x)
        joined: Tensor = self.norm(torch.cat([self.even(x), self.odd(x[:, :, 1:, 1:])], dim=1))
        return joined


def make_operation(name: str, channels: int, stride: int) -> nn.Module:
    """Returns the operation that a cell's table names, e.g. `sep_conv_3x3`."""
    if name == "skip":
        return nn.Identity() if stride == 1 else FactorizedReduction(channels, channels)
    kind, kernel_size = name[:-4], int(name[-1])
    if kind == "avg_pool":
        return nn.AvgPool2d(kernel_size, stride, padding=kernel_size // 2, count_include_pad=False)
    if kind == "max_pool":
        return nn.MaxPool2d(kernel_size, stride, padding=kernel_size // 2)
    if kind == "dil_conv":
        return nn.Sequential(*separable(channels, kernel_size, stride, dilation=2))
    if kind == "sep_conv":
        return nn.Sequential(
            *separable(channels, kernel_size, stride), *separable(channels, kernel_size, 1)
        )
    raise ValueError(f"unknown operation of a cell: '{name}'")


class Cell(nn.Module):
    """One cell.

    Args:
        spec: Its table.
        before_channels: Channels of the output of the cell before the previous one.
        previous_channels: Channels of the output of the previous cell.
        channels: Channels of every node.
        reduces: Whether the cell halves the size: operations on nodes 0 and 1 then have stride 2.
        previous_reduced: Whether the previous cell did, so that the two inputs differ in size.
    """

    def __init__(
        self,
        spec: CellSpec,
        before_channels: int,
        previous_channels: int,
        channels: int,
        *,
        reduces: bool,
        previous_reduced: bool,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.out_channels = len(spec.concat) * channels
        self.prepare_before: nn.Module = (
            FactorizedReduction(before_channels, channels)
            if previous_reduced
            else relu_conv_norm(before_channels, channels)
        )
        self.prepare_previous = relu_conv_norm(previous_channels, channels)
        self.operations = nn.ModuleList(
            make_operation(name, channels, 2 if reduces and source < 2 else 1)
            for first, first_source, second, second_source in spec.nodes
            for name, source in ((first, first_source), (second, second_source))
        )

    def forward(self, before: Tensor, previous: Tensor) -> Tensor:
        """Returns [batch, len(concat) * channels, height, width] or half of the size."""
        nodes: list[Tensor] = [self.prepare_before(before), self.prepare_previous(previous)]
        for index, (_, first_source, _, second_source) in enumerate(self.spec.nodes):
            first: Tensor = self.operations[2 * index](nodes[first_source])
            second: Tensor = self.operations[2 * index + 1](nodes[second_source])
            nodes.append(first + second)
        return torch.cat([nodes[index] for index in self.spec.concat], dim=1)
