"""Inception-v3 (Szegedy et al. 2015, arXiv:1512.00567), without the auxiliary classifier."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from models.layers import Branches, ConvNorm, PoolHead
from models.sample import Sample, image_sample, seeded

POOL_CHANNELS = (32, 64, 64)
"""Channels of the pooling branch of each module at 1/8 of the size."""

FACTORIZED_CHANNELS = (128, 160, 160, 192)
"""Inner channels of each module with factorized 7x7 convolutions, at 1/16 of the size."""

Scale = Callable[[int], int]


def chain(
    in_channels: int, *layers: tuple[int, int | tuple[int, int]], stride: int = 1
) -> nn.Module:
    """Returns convolutions given as (channels, kernel size); the last one takes the stride."""
    convs: list[nn.Module] = []
    for index, (out_channels, kernel_size) in enumerate(layers):
        reduces = stride > 1 and index == len(layers) - 1
        convs.append(
            ConvNorm(
                in_channels,
                out_channels,
                kernel_size,
                stride=stride if reduces else 1,
                padding=0 if reduces else None,
                eps=1e-3,
            )
        )
        in_channels = out_channels
    return nn.Sequential(*convs)


def pool_branch(in_channels: int, out_channels: int) -> nn.Module:
    """Returns a 3x3 average pooling and a 1x1 convolution."""
    pool = nn.AvgPool2d(3, stride=1, padding=1)
    return nn.Sequential(pool, chain(in_channels, (out_channels, 1)))


def module_a(in_channels: int, pool_channels: int, scale: Scale) -> tuple[nn.Module, int]:
    """Returns the module of figure 5 of the paper and its output channels."""
    branches = Branches(
        chain(in_channels, (scale(64), 1)),
        chain(in_channels, (scale(48), 1), (scale(64), 5)),
        chain(in_channels, (scale(64), 1), (scale(96), 3), (scale(96), 3)),
        pool_branch(in_channels, scale(pool_channels)),
    )
    return branches, 2 * scale(64) + scale(96) + scale(pool_channels)


def reduction_a(in_channels: int, scale: Scale) -> tuple[nn.Module, int]:
    """Returns the module between 1/8 and 1/16 of the size and its output channels."""
    branches = Branches(
        chain(in_channels, (scale(384), 3), stride=2),
        chain(in_channels, (scale(64), 1), (scale(96), 3), (scale(96), 3), stride=2),
        nn.MaxPool2d(3, stride=2),
    )
    return branches, scale(384) + scale(96) + in_channels


def module_c(in_channels: int, inner: int, scale: Scale) -> tuple[nn.Module, int]:
    """Returns the module of figure 6 of the paper and its output channels."""
    inner, outer = scale(inner), scale(192)
    row, column = (1, 7), (7, 1)
    branches = Branches(
        chain(in_channels, (outer, 1)),
        chain(in_channels, (inner, 1), (inner, row), (outer, column)),
        chain(
            in_channels, (inner, 1), (inner, column), (inner, row), (inner, column), (outer, row)
        ),
        pool_branch(in_channels, outer),
    )
    return branches, 4 * outer


def reduction_b(in_channels: int, scale: Scale) -> tuple[nn.Module, int]:
    """Returns the module between 1/16 and 1/32 of the size and its output channels."""
    inner = scale(192)
    branches = Branches(
        chain(in_channels, (inner, 1), (scale(320), 3), stride=2),
        chain(in_channels, (inner, 1), (inner, (1, 7)), (inner, (7, 1)), (inner, 3), stride=2),
        nn.MaxPool2d(3, stride=2),
    )
    return branches, scale(320) + inner + in_channels


def module_e(in_channels: int, scale: Scale) -> tuple[nn.Module, int]:
    """Returns the module of figure 7 of the paper and its output channels."""
    inner = scale(384)

    def split() -> nn.Module:
        return Branches(chain(inner, (inner, (1, 3))), chain(inner, (inner, (3, 1))))

    branches = Branches(
        chain(in_channels, (scale(320), 1)),
        nn.Sequential(chain(in_channels, (inner, 1)), split()),
        nn.Sequential(chain(in_channels, (scale(448), 1), (inner, 3)), split()),
        pool_branch(in_channels, scale(192)),
    )
    return branches, scale(320) + 4 * inner + scale(192)


class InceptionV3(nn.Module):
    """Image classifier: images [batch, 3, height, width] to logits [batch, num_classes]."""

    def __init__(self, width: float, repeats: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()

        def scale(channels: int) -> int:
            return max(4, int(channels * width))

        layers: list[nn.Module] = [
            chain(3, (scale(32), 3), stride=2),
            ConvNorm(scale(32), scale(32), padding=0, eps=1e-3),
            chain(scale(32), (scale(64), 3)),
            nn.MaxPool2d(3, stride=2),
            chain(scale(64), (scale(80), 1)),
            ConvNorm(scale(80), scale(192), padding=0, eps=1e-3),
            nn.MaxPool2d(3, stride=2),
        ]
        channels = scale(192)
        makers: list[Callable[[int], tuple[nn.Module, int]]] = [
            *(
                lambda before, pool=pool: module_a(before, pool, scale)
                for pool in POOL_CHANNELS[: repeats[0]]
            ),
            lambda before: reduction_a(before, scale),
            *(
                lambda before, inner=inner: module_c(before, inner, scale)
                for inner in FACTORIZED_CHANNELS[: repeats[1]]
            ),
            lambda before: reduction_b(before, scale),
            *[lambda before: module_e(before, scale)] * repeats[2],
        ]
        for make in makers:
            layer, channels = make(channels)
            layers.append(layer)
        self.features = nn.Sequential(*layers)
        self.head = PoolHead(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits."""
        logits: Tensor = self.head(self.features(images))
        return logits


def inception_v3(
    width: float = 1.0,
    repeats: tuple[int, int, int] = (3, 4, 2),
    resolution: int = 299,
    num_classes: int = 1000,
    seed: int = 0,
) -> Sample:
    """Builds Inception-v3.

    Args:
        width: Factor on the channels of every layer.
        repeats: Number of modules at 1/8, 1/16 and 1/32 of the size, at most (3, 4, any).
        resolution: Height and width of the images, in pixels; at least 75.
        num_classes: Number of logits.
        seed: Of weights and example inputs.
    """
    with seeded(seed):
        return image_sample(InceptionV3(width, repeats, num_classes), resolution)
