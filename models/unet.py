"""U-Net: encoder, decoder and skips between them (Ronneberger et al. 2015, arXiv:1505.04597).

Convolutions are padded and normalized, as is usual today: the output has the size of the input.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers import RELU_GAIN, ConvNorm, conv2d
from models.sample import Sample, image_sample, seeded


def double_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    """Returns two 3x3 convolutions."""
    return nn.Sequential(ConvNorm(in_channels, out_channels), ConvNorm(out_channels, out_channels))


def up_conv(in_channels: int, out_channels: int) -> nn.ConvTranspose2d:
    """Returns a transposed convolution that doubles height and width."""
    layer = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
    nn.init.normal_(layer.weight, std=RELU_GAIN / in_channels**0.5)
    return layer


class UNet(nn.Module):
    """Segmentation: images [batch, in_channels, h, w] to logits [batch, num_classes, h, w].

    Height and width must be multiples of `2**levels`.
    """

    def __init__(self, width: int, levels: int, in_channels: int, num_classes: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(levels + 1)]
        inputs = [in_channels, *widths[:-1]]
        self.down = nn.ModuleList(map(double_conv, inputs, widths))
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(up_conv(2 * below, below) for below in reversed(widths[:-1]))
        self.merge = nn.ModuleList(double_conv(2 * below, below) for below in reversed(widths[:-1]))
        self.classifier = conv2d(width, num_classes, 1, gain=1.0)

    def forward(self, images: Tensor) -> Tensor:
        """Returns one logit per class and pixel."""
        x: Tensor = images
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else self.pool(x))
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], dim=1))
        logits: Tensor = self.classifier(x)
        return logits


def unet(
    width: int = 64,
    levels: int = 4,
    resolution: int = 256,
    in_channels: int = 3,
    num_classes: int = 2,
    seed: int = 0,
) -> Sample:
    """Builds U-Net.

    Args:
        width: Channels of the first level; doubled per level.
        levels: Number of times the size is halved.
        resolution: Height and width of the images, in pixels; a multiple of `2**levels`.
        in_channels: Channels of the images.
        num_classes: Number of logits per pixel.
        seed: Of weights and example inputs.
    """
    with seeded(seed):
        module = UNet(width, levels, in_channels, num_classes)
        return image_sample(module, resolution, channels=in_channels)
