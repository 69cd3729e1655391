"""ESPCN: super-resolution by sub-pixel convolution (Shi et al. 2016, arXiv:1609.05158)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim

from models.layers import conv2d
from models.sample import BATCH, EXAMPLE_BATCH, Sample, seeded


class Espcn(nn.Module):
    """Super-resolution: images [batch, 1, h, w] to enlarged [batch, 1, scale * h, scale * w]."""

    def __init__(self, channels: int, scale: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            conv2d(1, channels, 5, gain=1.0),
            nn.Tanh(),
            conv2d(channels, channels // 2, 3),
            nn.Tanh(),
            conv2d(channels // 2, scale**2, 3, gain=1.0),
            nn.PixelShuffle(scale),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Returns the enlarged luminance."""
        enlarged: Tensor = self.layers(images)
        return enlarged


def espcn(channels: int = 64, scale: int = 3, resolution: int = 224, seed: int = 0) -> Sample:
    """Builds ESPCN with dynamic batch, height and width.

    Args:
        channels: Of the first layer, even; the second has half as many.
        scale: Factor on height and width.
        resolution: Width of the example image, in pixels; its height is three quarters of that.
        seed: Of weights and example inputs.
    """
    with seeded(seed):
        module = Espcn(channels, scale).eval()
        images = torch.randn(EXAMPLE_BATCH, 1, resolution * 3 // 4, resolution)
        sizes = {0: BATCH, 2: Dim("height", min=4, max=1024), 3: Dim("width", min=4, max=1024)}
        return Sample(module, (images,), (sizes,), ("images",), ("enlarged",))
