"""NASNet-A for mobile sizes (Zoph et al. 2017, arXiv:1707.07012, figure 4 and appendix A.4)."""

from __future__ import annotations

from torch import Tensor, nn

from models.cells import Cell, CellSpec
from models.layers import ConvNorm, PoolHead
from models.sample import Sample, image_sample, seeded

NORMAL = CellSpec(
    nodes=(
        ("sep_conv_3x3", 1, "skip", 1),
        ("sep_conv_3x3", 0, "sep_conv_5x5", 1),
        ("avg_pool_3x3", 1, "skip", 0),
        ("avg_pool_3x3", 0, "avg_pool_3x3", 0),
        ("sep_conv_5x5", 0, "sep_conv_3x3", 0),
    ),
    concat=(0, 2, 3, 4, 5, 6),
)

REDUCTION = CellSpec(
    nodes=(
        ("sep_conv_7x7", 0, "sep_conv_5x5", 1),
        ("max_pool_3x3", 1, "sep_conv_7x7", 0),
        ("avg_pool_3x3", 1, "sep_conv_5x5", 0),
        ("avg_pool_3x3", 2, "skip", 3),
        ("sep_conv_3x3", 2, "max_pool_3x3", 1),
    ),
    concat=(3, 4, 5, 6),
)


class NasNetA(nn.Module):
    """Image classifier: images [batch, 3, height, width] to logits [batch, num_classes]."""

    def __init__(self, repeats: int, channels: int, stem_channels: int, num_classes: int) -> None:
        super().__init__()
        self.stem = ConvNorm(3, stem_channels, stride=2, activation=None)
        plan = [(REDUCTION, channels // 4), (REDUCTION, channels // 2)]
        for stage in range(3):
            if stage > 0:
                plan.append((REDUCTION, channels * 2**stage))
            plan += [(NORMAL, channels * 2**stage)] * repeats
        before, previous, previous_reduced = stem_channels, stem_channels, False
        self.cells = nn.ModuleList()
        for spec, cell_channels in plan:
            reduces = spec is REDUCTION
            cell = Cell(
                spec,
                before,
                previous,
                cell_channels,
                reduces=reduces,
                previous_reduced=previous_reduced,
            )
            self.cells.append(cell)
            before, previous, previous_reduced = previous, cell.out_channels, reduces
        self.relu = nn.ReLU()
        self.head = PoolHead(previous, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits."""
        before: Tensor = self.stem(images)
        previous = before
        for cell in self.cells:
            before, previous = previous, cell(before, previous)
        logits: Tensor = self.head(self.relu(previous))
        return logits


def nasnet_a(
    repeats: int = 4,
    channels: int = 44,
    stem_channels: int = 32,
    resolution: int = 224,
    num_classes: int = 1000,
    seed: int = 0,
) -> Sample:
    """Builds NASNet-A (4 @ 1056).

    Args:
        repeats: Normal cells per stage; three stages.
        channels: Of a node in the first stage, a multiple of 4; doubled per stage.
        stem_channels: Of the first convolution.
        resolution: Height and width of the images, in pixels; a multiple of 32.
        num_classes: Number of logits.
        seed: Of weights and example inputs.
    """
    with seeded(seed):
        module = NasNetA(repeats, channels, stem_channels, num_classes)
        return image_sample(module, resolution)
