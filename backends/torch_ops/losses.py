"""Losses over classes."""

import torch
from torch import Tensor

from graphopt.backends.torch_ops.registry import op


def _loss(
    scores: Tensor, target: Tensor, weight: Tensor | None, ignored: int | None, reduction: str
) -> Tensor:
    """Return the weighted negative score of the target class (axis 1), reduced."""
    kept = torch.ones_like(target, dtype=torch.bool) if ignored is None else target != ignored
    index = torch.where(kept, target, torch.zeros_like(target)).to(torch.int64)
    loss = -scores.gather(1, index.unsqueeze(1)).squeeze(1)
    factor = torch.ones_like(loss) if weight is None else weight[index]
    factor = torch.where(kept, factor, torch.zeros_like(factor))
    loss = torch.where(kept, loss * factor, torch.zeros_like(loss))
    if reduction == "none":
        return loss
    total = loss.sum()
    return total if reduction == "sum" else total / factor.sum()


@op("NegativeLogLikelihoodLoss")
def _negative_log_likelihood(
    scores: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    return _loss(scores, target, weight, ignore_index, reduction)


@op("SoftmaxCrossEntropyLoss", several=True)
def _softmax_cross_entropy(
    scores: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
    count: int,
) -> tuple[Tensor, ...]:
    logarithms = torch.log_softmax(scores, 1)
    return (_loss(logarithms, target, weight, ignore_index, reduction), logarithms)[:count]
