"""RandWire: stages wired by random Watts-Strogatz graphs (Xie et al. 2019, arXiv:1904.01569).

The small regime of table 1, with WS(K=4, P=0.75). An undirected random graph becomes acyclic by
directing every edge from the smaller node index to the larger.
"""

from __future__ import annotations

import networkx
import torch
from torch import Tensor, nn

from models.layers import ConvNorm, PoolHead, batch_norm, conv2d
from models.sample import Sample, image_sample, seeded

NODE_GAIN = 2.0


def wire(nodes: int, neighbors: int, probability: float, seed: int) -> list[list[int]]:
    """Returns the earlier nodes that each node of a Watts-Strogatz graph reads, ascending."""
    graph = networkx.connected_watts_strogatz_graph(nodes, neighbors, probability, seed=seed)
    return [
        sorted(other for other in graph.neighbors(node) if other < node) for node in range(nodes)
    ]


class Node(nn.Module):
    """Weighted sum of the inputs, ReLU, 3x3 separable convolution and batch normalization."""

    def __init__(self, in_channels: int, channels: int, num_inputs: int, stride: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(num_inputs)) if num_inputs > 1 else None
        self.body = nn.Sequential(
            nn.ReLU(),
            conv2d(
                in_channels,
                in_channels,
                stride=stride,
                groups=in_channels,
                bias=False,
                gain=NODE_GAIN,
            ),
            conv2d(in_channels, channels, 1, bias=False, gain=1.0),
            batch_norm(channels),
        )

    def forward(self, inputs: list[Tensor]) -> Tensor:
        """Maps tensors [batch, in_channels, h, w] to one [batch, channels, h / stride, ...]."""
        total = inputs[0]
        if self.weights is not None:
            gates = torch.sigmoid(self.weights)
            total = total * gates[0]
            for index, value in enumerate(inputs[1:], start=1):
                total = total + value * gates[index]
        y: Tensor = self.body(total)
        return y


class RandomStage(nn.Module):
    """A random graph of nodes.

    Nodes without inputs read the stage's input and halve the size; the output is the mean of the
    nodes that no other node reads.
    """

    def __init__(self, sources: list[list[int]], in_channels: int, channels: int) -> None:
        super().__init__()
        self.sources = sources
        is_read = {source for node_sources in sources for source in node_sources}
        self.results = [node for node in range(len(sources)) if node not in is_read]
        self.nodes = nn.ModuleList(
            Node(channels, channels, len(node_sources), 1)
            if node_sources
            else Node(in_channels, channels, 1, 2)
            for node_sources in sources
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps [batch, in_channels, height, width] to [batch, channels, height / 2, width / 2]."""
        values: list[Tensor] = []
        for node, node_sources in zip(self.nodes, self.sources, strict=True):
            values.append(node([values[source] for source in node_sources] or [x]))
        total = values[self.results[0]]
        for result in self.results[1:]:
            total = total + values[result]
        return total / len(self.results)


class RandWire(nn.Module):
    """Image classifier: images [batch, 3, height, width] to logits [batch, num_classes]."""

    def __init__(self, wirings: list[list[list[int]]], channels: int, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            ConvNorm(3, channels // 2, stride=2, activation=None),
            nn.ReLU(),
            ConvNorm(channels // 2, channels, stride=2, activation=None),
        ]
        in_channels = channels
        for stage, sources in enumerate(wirings):
            layers.append(RandomStage(sources, in_channels, channels * 2**stage))
            in_channels = channels * 2**stage
        layers += [nn.ReLU(), ConvNorm(in_channels, 1280, 1)]
        self.features = nn.Sequential(*layers)
        self.head = PoolHead(1280, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits."""
        logits: Tensor = self.head(self.features(images))
        return logits


def randwire(
    nodes: int = 32,
    neighbors: int = 4,
    probability: float = 0.75,
    channels: int = 78,
    stages: int = 3,
    resolution: int = 224,
    num_classes: int = 1000,
    seed: int = 0,
) -> Sample:
    """Builds RandWire.

    Args:
        nodes: Nodes per random graph.
        neighbors: K of the Watts-Strogatz model: edges per node before rewiring.
        probability: P of the Watts-Strogatz model: chance that an edge is rewired.
        channels: Of the first random stage, even; doubled per stage.
        stages: Number of random stages.
        resolution: Height and width of the images, in pixels; a multiple of 32.
        num_classes: Number of logits.
        seed: Of wiring, weights and example inputs.
    """
    wirings = [
        wire(nodes, neighbors, probability, seed=seed * stages + stage) for stage in range(stages)
    ]
    with seeded(seed):
        return image_sample(RandWire(wirings, channels, num_classes), resolution)
