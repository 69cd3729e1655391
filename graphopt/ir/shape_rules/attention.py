"""Rules for attention and what belongs to it."""

import onnx_ir as ir

from graphopt.ir.dims import Dim, add, floordiv, mul
from graphopt.ir.shape_rules.facts import Snapshot
from graphopt.ir.shape_rules.registry import rule
from graphopt.ir.shape_rules.view import NodeView, Shape

FLOAT = ir.DataType.FLOAT


@rule("RotaryEmbedding")
def rotary_embedding(view: NodeView) -> None:
    """The output looks like the input."""
    view.types(view.dtype(0))
    view.out(0, view.ranked(0, 3, 4))


def heads(view: NodeView, name: str) -> int:
    """Return a number of heads that the operator requires."""
    count = view.int_(name, 0)
    if count < 1:
        view.malformed(f"attribute '{name}' is {count}")
    return count


def _split_heads(view: NodeView, index: int, name: str) -> Shape:
    """Return batch, heads, length and head size of an input of three or four axes."""
    dims = view.ranked(index, 3, 4)
    if len(dims) == 4:
        return dims
    count = heads(view, name)
    if isinstance(dims[2], int) and dims[2] % count:
        view.impossible(f"{dims[2]} is no multiple of {count} heads")
    return (dims[0], count, dims[1], floordiv(dims[2], count))


@rule("Attention")
def attention(view: NodeView) -> None:
    """The attended values, the caches with the past in front, and the scores."""
    dtype = view.dtype(0)
    view.types(dtype, view.dtype(1), view.dtype(2), dtype)
    query = _split_heads(view, 0, "q_num_heads")
    key = _split_heads(view, 1, "kv_num_heads")
    value = _split_heads(view, 2, "kv_num_heads")
    view.same(query[3], key[3], "head sizes of query and key")
    batch = view.same(view.same(query[0], key[0], "batch sizes"), value[0], "batch sizes")
    length = view.same(key[2], value[2], "lengths of keys and values")
    past: Dim = view.ranked(4, 4, 4)[2] if view.has(4) else 0
    total = add(past, length)
    if len(view.dims(0)) == 4:
        view.out(0, (batch, query[1], query[2], value[3]))
    else:
        view.out(0, (batch, query[2], mul(query[1], value[3])))
    view.out(1, (batch, key[1], total, key[3]))
    view.out(2, (batch, value[1], total, value[3]))
    view.out(3, (batch, query[1], query[2], total))


@rule("FlexAttention", domain="ai.onnx.preview")
def flex_attention(view: NodeView) -> None:
    """The attended values; the bodies see the scores."""
    dtype = view.dtype(0)
    view.types(dtype)
    query, key, value = (view.ranked(i, 4, 4) for i in range(3))
    view.out(0, (*query[:3], value[3]))
    double = dtype == ir.DataType.DOUBLE
    precision = view.data_type("softmax_precision", ir.DataType.DOUBLE if double else FLOAT)
    scores = (*query[:3], key[2])
    for name in ("score_mod", "prob_mod"):
        if view.has_attribute(name):
            body = view.graph(name)
            for target in body.inputs:
                view.facts.assign(target, Snapshot(precision, scores, None, None), "")
            view.run_body(body)


@rule("LinearAttention")
def linear_attention(view: NodeView) -> None:
    """The attended values, heads packed into the last axis, and the state of each head."""
    state_type = view.dtype(3) if view.has(3) else view.dtype(0)
    view.types(view.dtype(0), state_type)
    queries, keys = heads(view, "q_num_heads"), heads(view, "kv_num_heads")
    query, key, value = (view.ranked(i, 3, 3) for i in range(3))
    size = floordiv(value[2], keys)
    view.out(0, (*query[:2], mul(size, queries)))
    view.out(1, (query[0], keys, floordiv(key[2], keys), size))
