"""What a builder returns, and what every builder needs: a private seed and a named dimension."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

BATCH = Dim("batch", min=1, max=64)
"""The batch dimension of every model."""

EXAMPLE_BATCH = 2
"""Of example inputs; `torch.export` would take an example size of 1 for a constant."""


@dataclass(frozen=True, eq=False)
class Sample:
    """A model and what is needed to call and export it.

    Attributes:
        module: In eval mode.
        example_inputs: One tensor per positional argument of `module.forward`.
        dynamic_shapes: As `torch.export.export` takes it; None when every size is fixed.
        input_names: One per example input.
        output_names: One per tensor that `module.forward` returns.
    """

    module: nn.Module
    example_inputs: tuple[Tensor, ...]
    dynamic_shapes: tuple[Any, ...] | dict[str, Any] | None
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds torch's CPU generator inside the block and puts its state back after it.

    Generators of other devices are left alone, so a block must draw on the CPU.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def image_sample(
    module: nn.Module,
    resolution: int,
    *,
    channels: int = 3,
    output_names: tuple[str, ...] = ("logits",),
) -> Sample:
    """Wraps a module of one input, `images`, drawn from N(0, 1), with a dynamic batch."""
    images = torch.randn(EXAMPLE_BATCH, channels, resolution, resolution)
    return Sample(module.eval(), (images,), ({0: BATCH},), ("images",), output_names)
