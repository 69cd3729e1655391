"""The data that the page carries for hover, sort and filter, as compact JSON.

Columns instead of records; lists named ``*Gap`` hold differences to the element before, so that
most numbers have one or two digits; bytes are counted in ``unit`` (a common divisor). Every string
is stored once, in the order of first use, as the length it shares with the string before it and the
rest: names of a graph share long prefixes with their neighbours. ``report.js`` is the reader.
"""

from __future__ import annotations

import json
import re
from functools import reduce
from itertools import pairwise
from math import gcd
from typing import TYPE_CHECKING, Any

from graphopt.report.charts import buffers_of
from graphopt.report.data import KINDS
from graphopt.report.text import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from graphopt.memory.plan import MemoryPlan, PlannedBuffer

_OPS_OF_CLASS = {
    "convolution": """
        Conv ConvTranspose ConvInteger QLinearConv DeformConv FusedConv NhwcConv
    """,
    "matrix product": """
        Gemm MatMul MatMulInteger QLinearMatMul QGemm MatMulNBits FusedMatMul FusedGemm
        Einsum Attention GroupQueryAttention MultiHeadAttention LSTM GRU RNN
    """,
    "element-wise": """
        Abs Add And BiasGelu BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Ceil Celu
        Clip Cos Div Elu Equal Erf Exp FastGelu Floor Gelu Greater GreaterOrEqual
        HardSigmoid HardSwish LeakyRelu Less LessOrEqual Log Max Min Mish Mod Mul Neg Not
        Or PRelu Pow QLinearAdd QLinearLeakyRelu QLinearMul QLinearSigmoid QuickGelu
        Reciprocal Relu Round Selu Sigmoid Sign Sin Softplus Softsign Sqrt Sub Sum Swish
        Tanh ThresholdedRelu Where Xor
    """,
    "normalization": """
        BatchNormalization GroupNormalization InstanceNormalization LayerNormalization
        LpNormalization LRN MeanVarianceNormalization RMSNormalization
        SimplifiedLayerNormalization SkipLayerNormalization Softmax LogSoftmax Hardmax
    """,
    "pooling, reduction": """
        ArgMax ArgMin AveragePool CumSum GlobalAveragePool GlobalLpPool GlobalMaxPool
        LpPool MaxPool MaxRoiPool QLinearAveragePool QLinearGlobalAveragePool ReduceL1
        ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
        ReduceSum ReduceSumSquare RoiAlign TopK
    """,
    "data movement": """
        Compress Concat DepthToSpace Expand Flatten Gather GatherElements GatherND
        Identity Pad QLinearConcat Reshape Resize ReverseSequence ScatterElements
        ScatterND Slice SpaceToDepth Split Squeeze Tile Transpose Trilu Unsqueeze Upsample
    """,
    "quantization": """
        Cast CastLike DequantizeLinear DynamicQuantizeLinear QuantizeLinear
    """,
}

OP_CLASSES = (*_OPS_OF_CLASS, "other")

_CLASS_OF = {op: index for index, ops in enumerate(_OPS_OF_CLASS.values()) for op in ops.split()}


class _Strings:
    """Strings by number, in the order of first use."""

    def __init__(self) -> None:
        self._index: dict[str, int] = {}

    def number(self, text: str) -> int:
        return self._index.setdefault(visible(text), len(self._index))

    def encoded(self) -> list[Any]:
        """Return ``[length shared with the string before, rest, ...]``."""
        result: list[Any] = []
        before = ""
        for text in self._index:
            # Whole UTF-16 units count in JavaScript; text outside the basic plane shares nothing.
            plain = max(text, default="") < "\U00010000" and max(before, default="") < "\U00010000"
            shared = _shared(before, text) if plain else 0
            result += [shared, text[shared:]]
            before = text
        return result


def _shared(one: str, other: str) -> int:
    """Return the length of the common prefix."""
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return min(len(one), len(other))


def payload(plan: MemoryPlan) -> str:
    """Return the data of ``plan`` as JSON that may stand inside a ``<script>`` element."""
    strings = _Strings()
    ops: dict[str, int] = {}
    step_of = {step.node: index for index, step in enumerate(plan.steps)}
    pools = {p.name: buffers_of(plan, p.name) for p in plan.pools if p.arena_bytes}
    unit = reduce(gcd, _sizes(plan, pools.values()), 0) or 1
    names = _names_in_order(plan, pools.values(), strings)
    data = {
        "unit": unit,
        "kinds": KINDS,
        "classes": OP_CLASSES,
        "steps": {
            "nameGap": _gaps(names),
            "op": [ops.setdefault(visible(step.op), len(ops)) for step in plan.steps],
            "live": [step.live_bytes // unit for step in plan.steps],
            "scratch": _sparse(step.scratch_bytes for step in plan.steps),
            "again": _sparse(
                strings.number(step.recompute_of) + 1 if step.recompute_of else 0
                for step in plan.steps
            ),
        },
        "pools": [
            {"name": visible(name), "height": plan_pool.arena_bytes}
            | _columns_of(pools[name], unit, strings, step_of)
            for name, plan_pool in ((p.name, p) for p in plan.pools if p.arena_bytes)
        ],
        "ops": list(ops),
        "opClass": [_CLASS_OF.get(op, len(OP_CLASSES) - 1) for op in ops],
        "strings": strings.encoded(),
    }
    return safe_json(data)


def safe_json(data: Any) -> str:
    """Return JSON in ASCII without ``<``, ``>`` and ``&``: it cannot end or open an element."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    return re.sub("[<>&]", lambda match: f"\\u{ord(match.group()):04x}", text)


def _sizes(plan: MemoryPlan, pools: Iterable[Sequence[PlannedBuffer]]) -> Iterable[int]:
    for step in plan.steps:
        yield step.live_bytes
    for buffers in pools:
        for buffer in buffers:
            yield buffer.offset
            yield buffer.padded_bytes


def _names_in_order(
    plan: MemoryPlan, pools: Iterable[Sequence[PlannedBuffer]], strings: _Strings
) -> list[int]:
    """Number the names step by step, each node followed by what it writes."""
    opened: dict[int, list[str]] = {}
    for buffers in pools:
        for buffer in buffers:
            opened.setdefault(buffer.start, []).append(buffer.name)
    numbers = []
    for index, step in enumerate(plan.steps):
        numbers.append(strings.number(step.node))
        for name in opened.get(index, ()):
            strings.number(name)
    return numbers


def _columns_of(
    buffers: Sequence[PlannedBuffer], unit: int, strings: _Strings, step_of: dict[str, int]
) -> dict[str, Any]:
    types: dict[str, int] = {}
    by = [step_of.get(buffer.producer, -1) for buffer in buffers]
    return {
        "nameGap": _gaps([strings.number(b.name) for b in buffers]),
        "kind": [KINDS.index(b.kind) for b in buffers],
        "startGap": _gaps([b.start for b in buffers]),
        "span": [b.end - b.start for b in buffers],
        "offset": [b.offset // unit for b in buffers],
        "size": [b.padded_bytes // unit for b in buffers],
        "pad": _sparse(b.padded_bytes - b.bytes for b in buffers),
        "type": [types.setdefault(_type_text(b), len(types)) for b in buffers],
        "types": list(types),
        # Steps back from the start to the producer, nearly always 0.
        "lag": _sparse(b.start - s if s >= 0 else 0 for b, s in zip(buffers, by, strict=True)),
        "from": [
            [i, strings.number(b.producer) if b.producer else -1]
            for i, (b, s) in enumerate(zip(buffers, by, strict=True))
            if s < 0
        ],
        "shared": [
            [
                i,
                alias.relation,
                strings.number(alias.value),
                strings.number(alias.of),
                alias.offset,
            ]
            for i, b in enumerate(buffers)
            for alias in b.values
            if alias.relation
        ],
    }


def _type_text(buffer: PlannedBuffer) -> str:
    shape = "\N{MULTIPLICATION SIGN}".join(str(size) for size in buffer.shape)
    return visible(f"{buffer.dtype} {shape}".strip())


def _gaps(numbers: Sequence[int]) -> list[int]:
    return [after - before for before, after in pairwise([0, *numbers])]


def _sparse(numbers: Iterable[int]) -> list[list[int]]:
    return [[index, number] for index, number in enumerate(numbers) if number]
