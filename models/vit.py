"""ViT-B/16 (Dosovitskiy et al. 2020, arXiv:2010.11929)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.layers import RESIDUAL_GAIN, conv2d, layer_norm, linear, parameter
from models.sample import Sample, image_sample, seeded


class SelfAttention(nn.Module):
    """Multi-head self-attention with one projection for query, key and value."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = linear(hidden, 3 * hidden)
        self.project = linear(hidden, hidden, gain=RESIDUAL_GAIN)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [batch, tokens, hidden] to the same shape."""
        _, tokens, hidden = x.shape
        joined = self.query_key_value(x).reshape(-1, tokens, 3, self.heads, hidden // self.heads)
        query, key, value = joined.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        y: Tensor = self.project(mixed.transpose(1, 2).reshape(-1, tokens, hidden))
        return y


class EncoderBlock(nn.Module):
    """Attention and a two-layer perceptron, each normalized before and added to its input."""

    def __init__(self, hidden: int, heads: int, intermediate: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(layer_norm(hidden, eps=1e-6), SelfAttention(hidden, heads))
        self.mlp = nn.Sequential(
            layer_norm(hidden, eps=1e-6),
            linear(hidden, intermediate),
            nn.GELU(),
            linear(intermediate, hidden, gain=RESIDUAL_GAIN),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps [batch, tokens, hidden] to the same shape."""
        x = x + self.attention(x)
        y: Tensor = x + self.mlp(x)
        return y


class VisionTransformer(nn.Module):
    """Image classifier: images [batch, 3, height, width] to logits [batch, num_classes]."""

    def __init__(
        self,
        resolution: int,
        patch: int,
        layers: int,
        hidden: int,
        heads: int,
        intermediate: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        tokens = (resolution // patch) ** 2 + 1
        self.embed = conv2d(3, hidden, patch, stride=patch, padding=0, gain=1.0)
        self.class_token = parameter(1, 1, hidden, std=0.5)
        self.positions = parameter(1, tokens, hidden, std=0.2)
        self.blocks = nn.Sequential(
            *(EncoderBlock(hidden, heads, intermediate) for _ in range(layers))
        )
        self.norm = layer_norm(hidden, eps=1e-6)
        self.classifier = linear(hidden, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits."""
        patches: Tensor = self.embed(images).flatten(2).transpose(1, 2)
        class_token = self.class_token.expand(images.shape[0], -1, -1)
        tokens = torch.cat([class_token, patches], dim=1) + self.positions
        logits: Tensor = self.classifier(self.norm(self.blocks(tokens))[:, 0])
        return logits


def vit_b_16(
    resolution: int = 224,
    patch: int = 16,
    layers: int = 12,
    hidden: int = 768,
    heads: int = 12,
    intermediate: int = 3072,
    num_classes: int = 1000,
    seed: int = 0,
) -> Sample:
    """Builds ViT-B/16.

    Args:
        resolution: Height and width of the images, in pixels; a multiple of `patch`.
        patch: Height and width of a patch, in pixels.
        layers: Number of encoder blocks.
        hidden: Size of a token; a multiple of `heads`.
        heads: Attention heads.
        intermediate: Size of the hidden layer of the perceptrons.
        num_classes: Number of logits.
        seed: Of weights and example inputs.
    """
    with seeded(seed):
        module = VisionTransformer(
            resolution, patch, layers, hidden, heads, intermediate, num_classes
        )
        return image_sample(module, resolution)
