"""DARTS: the cells of the second-order search (Liu et al. 2018, arXiv:1806.09055, section 3)."""

from __future__ import annotations

from torch import Tensor, nn

from models.cells import Cell, CellSpec
from models.layers import ConvNorm, PoolHead
from models.sample import Sample, image_sample, seeded

NORMAL = CellSpec(
    nodes=(
        ("sep_conv_3x3", 0, "sep_conv_3x3", 1),
        ("sep_conv_3x3", 0, "sep_conv_3x3", 1),
        ("sep_conv_3x3", 1, "skip", 0),
        ("skip", 0, "dil_conv_3x3", 2),
    ),
    concat=(2, 3, 4, 5),
)

REDUCTION = CellSpec(
    nodes=(
        ("max_pool_3x3", 0, "max_pool_3x3", 1),
        ("skip", 2, "max_pool_3x3", 1),
        ("max_pool_3x3", 0, "skip", 2),
        ("skip", 2, "max_pool_3x3", 1),
    ),
    concat=(2, 3, 4, 5),
)


class Darts(nn.Module):
    """Image classifier: images [batch, 3, height, width] to logits [batch, num_classes]."""

    def __init__(self, cells: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.first_stem = nn.Sequential(
            ConvNorm(3, channels // 2, stride=2),
            ConvNorm(channels // 2, channels, stride=2, activation=None),
        )
        self.second_stem = nn.Sequential(
            nn.ReLU(), ConvNorm(channels, channels, stride=2, activation=None)
        )
        reduction_indices = {cells // 3, 2 * cells // 3}
        before, previous, previous_reduced = channels, channels, True
        self.cells = nn.ModuleList()
        for index in range(cells):
            reduces = index in reduction_indices
            if reduces:
                channels *= 2
            cell = Cell(
                REDUCTION if reduces else NORMAL,
                before,
                previous,
                channels,
                reduces=reduces,
                previous_reduced=previous_reduced,
            )
            self.cells.append(cell)
            before, previous, previous_reduced = previous, cell.out_channels, reduces
        self.head = PoolHead(previous, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits."""
        before: Tensor = self.first_stem(images)
        previous: Tensor = self.second_stem(before)
        for cell in self.cells:
            before, previous = previous, cell(before, previous)
        logits: Tensor = self.head(previous)
        return logits


def darts(
    cells: int = 6,
    channels: int = 48,
    resolution: int = 224,
    num_classes: int = 1000,
    seed: int = 0,
) -> Sample:
    """Builds a network of DARTS cells; the paper's ImageNet model has 14 of the same width.

    Args:
        cells: Number of cells, at least 3; those at one third and two thirds halve the size.
        channels: Of a node in the first cells, even; doubled by each reduction.
        resolution: Height and width of the images, in pixels; a multiple of 32.
        num_classes: Number of logits.
        seed: Of weights and example inputs.
    """
    with seeded(seed):
        return image_sample(Darts(cells, channels, num_classes), resolution)
