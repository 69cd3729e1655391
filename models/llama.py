"""A LLaMA-like decoder: prefill of a prompt, and one step of decoding with a key and value cache.

RMS normalization, rotary embeddings, grouped-query attention and SwiGLU (Touvron et al. 2023,
arXiv:2302.13971; Ainslie et al. 2023, arXiv:2305.13245). The default sizes are those of SmolLM-135M
(model card of HuggingFaceTB/SmolLM-135M): 134,515,008 parameters, 538 MB in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

from models.layers import RESIDUAL_GAIN, linear
from models.sample import BATCH, EXAMPLE_BATCH, Sample, seeded

ROTARY_BASE = 10000.0


class RmsNorm(nn.Module):
    """Divides by the root mean square over the last axis and scales."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(features).uniform_(0.8, 1.2))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., features] to the same shape."""
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


def rotary_tables(max_positions: int, head_size: int) -> Tensor:
    """Returns cosines and sines of the rotation angles: [2, max_positions, head_size]."""
    frequencies = ROTARY_BASE ** (-torch.arange(0, head_size, 2) / head_size)
    angles = torch.arange(max_positions)[:, None] * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Turns the pairs (i, i + head_size / 2) of [batch, heads, sequence, head_size]."""
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * rotary[0] + turned * rotary[1]


class Attention(nn.Module):
    """Causal self-attention in which several query heads share one key and value head."""

    def __init__(self, hidden: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_size = heads, kv_heads, hidden // heads
        self.query = linear(hidden, heads * self.head_size, bias=False)
        self.key = linear(hidden, kv_heads * self.head_size, bias=False)
        self.value = linear(hidden, kv_heads * self.head_size, bias=False)
        self.project = linear(heads * self.head_size, hidden, bias=False, gain=RESIDUAL_GAIN)

    def split_heads(self, x: Tensor) -> Tensor:
        """Maps [batch, sequence, n * head_size] to [batch, n, sequence, head_size]."""
        return x.reshape(*x.shape[:2], -1, self.head_size).transpose(1, 2)

    def forward(
        self, x: Tensor, rotary: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the output, and keys and values [batch, kv_heads, past + sequence, head_size]."""
        query = rotate(self.split_heads(self.query(x)), rotary)
        key = rotate(self.split_heads(self.key(x)), rotary)
        value = self.split_heads(self.value(x))
        if past is not None:
            key = torch.cat([past[0], key], dim=2)
            value = torch.cat([past[1], value], dim=2)
        mixed = functional.scaled_dot_product_attention(
            query, key, value, is_causal=past is None, enable_gqa=True
        )
        return self.project(mixed.transpose(1, 2).flatten(2)), key, value


class DecoderLayer(nn.Module):
    """Attention and a gated perceptron, each normalized before and added to its input."""

    def __init__(self, hidden: int, heads: int, kv_heads: int, intermediate: int) -> None:
        super().__init__()
        self.attention_norm = RmsNorm(hidden)
        self.attention = Attention(hidden, heads, kv_heads)
        self.mlp_norm = RmsNorm(hidden)
        self.gate = linear(hidden, intermediate, bias=False)
        self.up = linear(hidden, intermediate, bias=False)
        self.down = linear(intermediate, hidden, bias=False, gain=RESIDUAL_GAIN)

    def forward(
        self, x: Tensor, rotary: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the states [batch, sequence, hidden], the keys and the values."""
        mixed, key, value = self.attention(self.attention_norm(x), rotary, past)
        x = x + mixed
        y = self.mlp_norm(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y)), key, value


class Llama(nn.Module):
    """Decoder: input_ids [batch, sequence], int64, and optionally a cache of `past` tokens.

    With a cache, the sequence must be one token. Input and output embeddings are one parameter.
    """

    def __init__(
        self,
        layers: int,
        hidden: int,
        heads: int,
        kv_heads: int,
        intermediate: int,
        vocabulary: int,
        max_positions: int,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, hidden)
        nn.init.normal_(self.tokens.weight, std=hidden**-0.5)
        self.layers = nn.ModuleList(
            DecoderLayer(hidden, heads, kv_heads, intermediate) for _ in range(layers)
        )
        self.norm = RmsNorm(hidden)
        rotary = rotary_tables(max_positions, hidden // heads)
        self.register_buffer("rotary", rotary, persistent=False)
        self.rotary: Tensor

    def forward(self, input_ids: Tensor, *cache: Tensor) -> tuple[Tensor, ...]:
        """Returns the logits of the last token, then key and value of every layer.

        Args:
            input_ids: [batch, sequence].
            *cache: Key and value of every layer in turn: [batch, kv_heads, past, head_size].

        Returns:
            [batch, 1, vocabulary], then [batch, kv_heads, past + sequence, head_size] each.
        """
        past = cache[0].shape[2] if cache else 0
        positions = torch.arange(past, past + input_ids.shape[1], device=input_ids.device)
        rotary = self.rotary[:, positions]
        states: Tensor = self.tokens(input_ids)
        present: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            pair = (cache[2 * index], cache[2 * index + 1]) if cache else None
            states, key, value = layer(states, rotary, pair)
            present += [key, value]
        logits = functional.linear(self.norm(states[:, -1:]), self.tokens.weight)
        return logits, *present


def cache_names(prefix: str, layers: int) -> tuple[str, ...]:
    """Returns `<prefix>.<layer>.key` and `<prefix>.<layer>.value` of every layer in turn."""
    return tuple(f"{prefix}.{layer}.{part}" for layer in range(layers) for part in ("key", "value"))


def llama_prefill(
    layers: int = 30,
    hidden: int = 576,
    heads: int = 9,
    kv_heads: int = 3,
    intermediate: int = 1536,
    vocabulary: int = 49152,
    max_positions: int = 2048,
    sequence: int = 16,
    seed: int = 0,
) -> Sample:
    """Builds the prefill of a prompt, with dynamic batch and sequence.

    Args:
        layers: Number of decoder layers.
        hidden: Size of a token's state; a multiple of `heads`.
        heads: Query heads; a multiple of `kv_heads`.
        kv_heads: Key and value heads.
        intermediate: Size of the hidden layer of the perceptrons.
        vocabulary: Number of token ids.
        max_positions: Longest sequence, in tokens.
        sequence: Tokens of the example input.
        seed: Of weights and example inputs; prefill and decode of one seed share their weights.
    """
    with seeded(seed):
        module = Llama(layers, hidden, heads, kv_heads, intermediate, vocabulary, max_positions)
        input_ids = torch.randint(vocabulary, (EXAMPLE_BATCH, sequence))
        shapes = ({0: BATCH, 1: Dim("sequence", min=1, max=max_positions)},)
        outputs = ("logits", *cache_names("present", layers))
        return Sample(module.eval(), (input_ids,), shapes, ("input_ids",), outputs)


def llama_decode(
    layers: int = 30,
    hidden: int = 576,
    heads: int = 9,
    kv_heads: int = 3,
    intermediate: int = 1536,
    vocabulary: int = 49152,
    max_positions: int = 2048,
    past: int = 16,
    seed: int = 0,
) -> Sample:
    """Builds one step of decoding, with dynamic batch and past.

    The arguments are those of `llama_prefill`, with `past`, the number of tokens in the cache of
    the example inputs, instead of `sequence`.
    """
    with seeded(seed):
        module = Llama(layers, hidden, heads, kv_heads, intermediate, vocabulary, max_positions)
        input_ids = torch.randint(vocabulary, (EXAMPLE_BATCH, 1))
        cache = torch.randn(2 * layers, EXAMPLE_BATCH, kv_heads, past, hidden // heads)
        sizes = {0: BATCH, 2: Dim("past", min=1, max=max_positions - 1)}
        return Sample(
            module.eval(),
            (input_ids, *(value.clone() for value in cache)),
            ({0: BATCH}, (sizes,) * (2 * layers)),
            ("input_ids", *cache_names("past", layers)),
            ("logits", *cache_names("present", layers)),
        )
