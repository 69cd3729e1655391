"""A small convolutional network for the 8x8 images of scikit-learn's digits data set."""

from __future__ import annotations

from torch import Tensor, nn

from models.layers import Branches, ConvNorm, PoolHead, Residual
from models.sample import Sample, image_sample, seeded


class DigitsCnn(nn.Module):
    """Image classifier: images [batch, 1, 8, 8] to logits [batch, 10]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            ConvNorm(1, width),
            Residual(
                nn.Sequential(ConvNorm(width, width), ConvNorm(width, width, activation=None))
            ),
            nn.ReLU(),
            nn.MaxPool2d(2),
            Branches(ConvNorm(width, width, 1), ConvNorm(width, width, 3)),
            ConvNorm(2 * width, 2 * width),
        )
        self.head = PoolHead(2 * width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits."""
        logits: Tensor = self.head(self.features(images))
        return logits


def digits_cnn(width: int = 16, seed: int = 0) -> Sample:
    """Builds the network with random weights; `models.train_digits` trains it.

    Args:
        width: Channels of the first layers.
        seed: Of weights and example inputs.
    """
    with seeded(seed):
        return image_sample(DigitsCnn(width), 8, channels=1)
