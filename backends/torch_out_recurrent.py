"""A layer of an LSTM by operators that write where they are told to, step after step.

In: the arguments of ``mkldnn_rnn_layer``, oneDNN's kernel of a whole layer, which takes memory for
its results, its workspace and weights in its own order. Out: the same results. What always holds:
between the steps nothing is kept but the memory cell, and hidden states are written where the
results lie. The product with the inputs is one for all steps: it reads the weights once.
"""

from typing import Any

import torch
from torch import Tensor

LSTM_MODE = 2
MOST_STEPS = 512
"""Sequences of more steps keep oneDNN's kernel: every step is nine operators in the file."""


def lstm_layer(
    x: Tensor,
    inner: Tensor,
    recurrent: Tensor,
    first_bias: Tensor,
    second_bias: Tensor,
    hidden: Tensor,
    memory: Tensor,
    reverse: bool,
    batch_sizes: list[int],
    mode: int,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, None]:
    """Return the hidden states of all steps, the last one, and the memory cell after it.

    Raises:
        ValueError: it is another kind of layer, or has too many steps.
    """
    size, num_layers, has_biases, _, batch_first, train = rest
    steps, batch, features = x.shape
    if mode != LSTM_MODE or num_layers != 1 or batch_first or train or batch_sizes:
        raise ValueError("not one direction of one layer of an LSTM")
    if steps > MOST_STEPS:
        raise ValueError(f"{steps} steps")
    gates = torch.empty([steps, batch, 4 * size], dtype=x.dtype, device=x.device)
    rows = gates.view(steps * batch, 4 * size)
    torch.mm(x.reshape(steps * batch, features), inner.t(), out=rows)
    if has_biases:
        rows.add_(first_bias)
        rows.add_(second_bias)
    y = torch.empty([steps, batch, size], dtype=x.dtype, device=x.device)
    cell = torch.empty([batch, size], dtype=x.dtype, device=x.device)
    last, kept = hidden.view(batch, size), memory.view(batch, size)
    for step in reversed(range(steps)) if reverse else range(steps):
        now = gates[step]
        now.addmm_(last, recurrent.t())
        _advance(now, kept, cell, y[step])
        last, kept = y[step], cell
    return y, last.view(hidden.shape), cell.view(memory.shape), None


def _advance(gates: Tensor, kept: Tensor, cell: Tensor, out: Tensor) -> None:
    """Write the next memory cell and hidden state; the gates are used up."""
    size = out.shape[1]
    enter_keep, fresh = gates[:, : 2 * size], gates[:, 2 * size : 3 * size]
    enter, keep = gates[:, :size], gates[:, size : 2 * size]
    leave = gates[:, 3 * size :]
    enter_keep.sigmoid_()
    fresh.tanh_()
    leave.sigmoid_()
    torch.mul(keep, kept, out=cell)
    cell.addcmul_(enter, fresh)
    torch.tanh(cell, out=out)
    out.mul_(leave)
