"""A BERT-like encoder (Devlin et al. 2018, arXiv:1810.04805).

Six layers and no segment embeddings, as in DistilBERT (Sanh et al. 2019, arXiv:1910.01108).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

from models.layers import RESIDUAL_GAIN, layer_norm, linear
from models.sample import BATCH, EXAMPLE_BATCH, Sample, seeded


class EncoderLayer(nn.Module):
    """Attention and a two-layer perceptron, each added to its input and normalized after."""

    def __init__(self, hidden: int, heads: int, intermediate: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = linear(hidden, hidden)
        self.key = linear(hidden, hidden)
        self.value = linear(hidden, hidden)
        self.project = linear(hidden, hidden, gain=RESIDUAL_GAIN)
        self.attention_norm = layer_norm(hidden, eps=1e-12)
        self.mlp = nn.Sequential(
            linear(hidden, intermediate),
            nn.GELU(),
            linear(intermediate, hidden, gain=RESIDUAL_GAIN),
        )
        self.mlp_norm = layer_norm(hidden, eps=1e-12)

    def split_heads(self, x: Tensor) -> Tensor:
        """Maps [batch, sequence, hidden] to [batch, heads, sequence, hidden / heads]."""
        batch, sequence, hidden = x.shape
        return x.reshape(batch, sequence, self.heads, hidden // self.heads).transpose(1, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Maps [batch, sequence, hidden] to the same shape; `mask` is added to the scores."""
        mixed = functional.scaled_dot_product_attention(
            self.split_heads(self.query(x)),
            self.split_heads(self.key(x)),
            self.split_heads(self.value(x)),
            attn_mask=mask,
        )
        x = self.attention_norm(x + self.project(mixed.transpose(1, 2).flatten(2)))
        y: Tensor = self.mlp_norm(x + self.mlp(x))
        return y


class Bert(nn.Module):
    """Text encoder: ids and mask [batch, sequence], int64, to states [batch, sequence, hidden]."""

    def __init__(
        self,
        layers: int,
        hidden: int,
        heads: int,
        intermediate: int,
        vocabulary: int,
        max_positions: int,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, hidden)
        self.positions = nn.Embedding(max_positions, hidden)
        self.norm = layer_norm(hidden, eps=1e-12)
        self.layers = nn.ModuleList(
            EncoderLayer(hidden, heads, intermediate) for _ in range(layers)
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Returns the states of the last layer; `attention_mask` is 0 where a token is padding."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        states: Tensor = self.norm(self.tokens(input_ids) + self.positions(positions))
        lowest = torch.finfo(states.dtype).min
        mask = (1.0 - attention_mask[:, None, None, :].to(states.dtype)) * lowest
        for layer in self.layers:
            states = layer(states, mask)
        return states


def bert(
    layers: int = 6,
    hidden: int = 768,
    heads: int = 12,
    intermediate: int = 3072,
    vocabulary: int = 30522,
    max_positions: int = 512,
    sequence: int = 16,
    seed: int = 0,
) -> Sample:
    """Builds a BERT-like encoder with dynamic batch and sequence.

    Args:
        layers: Number of encoder layers.
        hidden: Size of a token's state; a multiple of `heads`.
        heads: Attention heads.
        intermediate: Size of the hidden layer of the perceptrons.
        vocabulary: Number of token ids.
        max_positions: Longest sequence, in tokens.
        sequence: Tokens of the example inputs; the last quarter of the second sentence is padding.
        seed: Of weights and example inputs.
    """
    with seeded(seed):
        module = Bert(layers, hidden, heads, intermediate, vocabulary, max_positions).eval()
        input_ids = torch.randint(vocabulary, (EXAMPLE_BATCH, sequence))
        attention_mask = torch.ones_like(input_ids)
        attention_mask[1, sequence - sequence // 4 :] = 0
        sizes = {0: BATCH, 1: Dim("sequence", min=1, max=max_positions)}
        return Sample(
            module,
            (input_ids, attention_mask),
            (sizes, sizes),
            ("input_ids", "attention_mask"),
            ("last_hidden_state",),
        )
