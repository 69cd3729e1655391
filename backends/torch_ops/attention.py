"""Attention and rotary embeddings (ONNX opset 23 and later)."""

import math
from typing import Any

import torch
from torch import Tensor

from graphopt.backends.torch_ops.dtypes import torch_type
from graphopt.backends.torch_ops.registry import op
from graphopt.backends.torch_ops.small import shape_numbers
from graphopt.errors import UnsupportedError


def _heads(x: Tensor, count: int | None) -> Tensor:
    """Return (batch, head, sequence, size) from (batch, sequence, head * size)."""
    if x.dim() == 4:
        return x
    sizes: list[Any] = [*shape_numbers(x)[:2], count, -1]
    return x.reshape(sizes).transpose(1, 2)


def _allowed(query: Tensor, key: Tensor, offset: Any) -> Tensor:
    """Return which keys each query may see: those up to its own place behind ``offset``."""
    rows = torch.arange(query.shape[2]).unsqueeze(1)
    columns = torch.arange(key.shape[2])
    if isinstance(offset, Tensor) and offset.dim() == 1:
        return columns <= rows + offset.reshape([-1, 1, 1, 1])
    return columns <= rows + offset  # type: ignore[no-any-return]  # numbers are Any


def _mask(
    query: Tensor, key: Tensor, mask: Tensor | None, causal: bool, past: Any, lengths: Tensor | None
) -> Tensor | None:
    """Return what is added to the scores, -inf where a key is hidden; None for nothing."""
    hidden = float("-inf")
    total: Tensor | None = None
    if mask is not None:
        if mask.dtype is torch.bool:
            zero = torch.zeros_like(mask, dtype=query.dtype)
            mask = torch.where(mask, zero, hidden)
        missing = key.shape[2] - mask.shape[-1]
        if isinstance(missing, int) and missing > 0:
            mask = torch.nn.functional.pad(mask, [0, missing], value=hidden)
        total = mask
    if causal:
        seen = _allowed(query, key, past if lengths is None else lengths - query.shape[2])
        bias = torch.where(seen, torch.zeros([], dtype=query.dtype), hidden)
        total = bias if total is None else total + bias
    if lengths is not None:
        inside = torch.arange(key.shape[2]) < lengths.reshape([-1, 1, 1, 1])
        bias = torch.where(inside, torch.zeros([], dtype=query.dtype), hidden)
        total = bias if total is None else total + bias
    return total


@op("Attention", several=True)
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    lengths: Tensor | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
    count: int,
) -> tuple[Tensor, ...]:
    flat = q.dim() == 3
    query, key, value = _heads(q, q_num_heads), _heads(k, kv_num_heads), _heads(v, kv_num_heads)
    past: Any = 0
    if past_key is not None and past_value is not None:
        past = past_key.shape[2]
        key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
    present = (key, value)
    groups = int(query.shape[1]) // int(key.shape[1])
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    root = math.sqrt(1 / math.sqrt(int(query.shape[3])) if scale is None else scale)
    raw = torch.matmul(query * root, key.transpose(2, 3) * root)
    bias = _mask(query, key, mask, bool(is_causal), past, lengths)
    scores = raw
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    capped = scores
    scores = scores if bias is None else scores + bias
    kind = q.dtype if softmax_precision is None else torch_type(softmax_precision)
    weights = _softmax(scores.to(kind)).to(q.dtype)
    result = torch.matmul(weights, value)
    if flat:
        batch, heads, length, size = shape_numbers(result)
        result = result.transpose(1, 2).reshape([batch, length, heads * size])
    shown = (raw, capped, scores, weights)
    return (result, *present, shown[qk_matmul_output_mode])[:count]


def _softmax(scores: Tensor) -> Tensor:
    """Return the softmax, zeros where every key is hidden."""
    weights = torch.softmax(scores, -1)
    return torch.where(torch.isnan(weights), torch.zeros_like(weights), weights)


@op("RotaryEmbedding")
def _rotary_embedding(
    x: Tensor,
    cosine: Tensor,
    sine: Tensor,
    positions: Tensor | None = None,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    if x.dim() == 3 and not num_heads:
        raise UnsupportedError("torch-operator-form", "RotaryEmbedding without a number of heads")
    y = _heads(x, num_heads)
    size = rotary_embedding_dim or int(y.shape[3])
    turned, rest = y[..., :size], y[..., size:]
    if positions is not None:
        cosine, sine = cosine[positions], sine[positions]
    cosine, sine = cosine.unsqueeze(1), sine.unsqueeze(1)
    if interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned.chunk(2, -1)
    real, imaginary = first * cosine - second * sine, first * sine + second * cosine
    if interleaved:
        result = torch.stack([real, imaginary], -1).flatten(-2)
    else:
        result = torch.cat([real, imaginary], -1)
    result = torch.cat([result, rest], -1)
    return result.transpose(1, 2).reshape(x.shape) if x.dim() == 3 else result
