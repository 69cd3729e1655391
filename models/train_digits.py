"""Trains `DigitsCnn` on scikit-learn's digits in a few seconds, for a real accuracy to measure.

Run with `python -m models.train_digits [folder]` from the root of the repository: prints the
accuracy and, with a folder, writes `digits_cnn.pt2`, `calibration.npz` and `test.npz` there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

from models.digits_cnn import DigitsCnn
from models.sample import BATCH, EXAMPLE_BATCH, Sample, seeded

BATCH_SIZE = 64
CALIBRATION_IMAGES = 128


@dataclass(frozen=True, eq=False)
class TrainedDigits:
    """A trained module and the data to judge it with; images are [n, 1, 8, 8] in [0, 1].

    Attributes:
        module: In eval mode.
        calibration_images: A part of the training images.
        test_images: Images that the training did not see.
        test_labels: Their digits, [n], int64.
        test_accuracy: Fraction of the test images classified right.
    """

    module: nn.Module
    calibration_images: Tensor
    test_images: Tensor
    test_labels: Tensor
    test_accuracy: float

    def sample(self) -> Sample:
        """Returns the module in the form of the other builders."""
        images = self.test_images[:EXAMPLE_BATCH]
        return Sample(self.module, (images,), ({0: BATCH},), ("images",), ("logits",))


@contextmanager
def single_thread() -> Iterator[None]:
    """Limits torch to one thread inside the block, so that sums do not depend on the cores."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def load_images() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns training images and labels, test images and labels; always the same split."""
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16.0).astype(np.float32).reshape(-1, 1, 8, 8)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels.astype(np.int64), test_size=0.25, stratify=labels, random_state=0
    )
    return (
        torch.from_numpy(train_x),
        torch.from_numpy(train_y),
        torch.from_numpy(test_x),
        torch.from_numpy(test_y),
    )


def fit(module: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """Trains in place with Adam and a one-cycle learning rate; leaves the module in eval mode."""
    num_batches = len(images) // BATCH_SIZE
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1e-2, total_steps=epochs * num_batches
    )
    module.train()
    for _ in range(epochs):
        shuffled = torch.randperm(len(images))[: num_batches * BATCH_SIZE]
        for batch in torch.split(shuffled, BATCH_SIZE):
            loss = functional.cross_entropy(module(images[batch]), labels[batch])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    module.eval()


def train_digits(width: int = 16, epochs: int = 12, seed: int = 0) -> TrainedDigits:
    """Trains the network; the result depends on the arguments and the version of torch alone.

    Args:
        width: Channels of the first layers.
        epochs: Passes over the 1,347 training images.
        seed: Of weights and batches.
    """
    train_images, train_labels, test_images, test_labels = load_images()
    with seeded(seed), single_thread():
        module = DigitsCnn(width)
        fit(module, train_images, train_labels, epochs)
        with torch.no_grad():
            predicted = module(test_images).argmax(dim=1)
    accuracy = (predicted == test_labels).float().mean().item()
    calibration_images = train_images[:CALIBRATION_IMAGES]
    return TrainedDigits(module, calibration_images, test_images, test_labels, accuracy)


def main(arguments: list[str]) -> None:
    """Trains with the defaults and writes files where a folder is given."""
    trained = train_digits()
    sys.stdout.write(f"test accuracy {trained.test_accuracy:.4f}\n")
    if arguments:
        folder = Path(arguments[0])
        folder.mkdir(parents=True, exist_ok=True)
        sample = trained.sample()
        program = torch.export.export(
            sample.module, sample.example_inputs, dynamic_shapes=sample.dynamic_shapes
        )
        torch.export.save(program, folder / "digits_cnn.pt2")
        np.savez(folder / "calibration.npz", images=trained.calibration_images.numpy())
        np.savez(
            folder / "test.npz",
            images=trained.test_images.numpy(),
            labels=trained.test_labels.numpy(),
        )


if __name__ == "__main__":
    main(sys.argv[1:])
