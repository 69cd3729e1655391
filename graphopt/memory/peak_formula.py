"""The peak of live arena bytes as a function of one named dimension: exact pieces and ranges.

In: a program, the dimension, the sizes of all others. Out: pieces ``[low, high]`` of sizes, each
with the polynomial that is the peak there and the step that holds it.

How: the dataflow is built once, at a reference size; every buffer has its bytes as an expression
of the dimension (``ir.dims``), padding included, so the live bytes of a step are a sum of
expressions. The peak is the upper envelope over the steps, evaluated at every size of the range.
Which values share a buffer was decided at the reference size, and may differ at others: the range
is cut to where the formula agrees with the peak measured afresh, at the ends of every piece and
between them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphopt.ir.dims import Dim, add, ceildiv, evaluate, mul, substitute
from graphopt.ir.program import Program, graphs_of, size_bytes
from graphopt.ir.program import dims_of as dims_of_value
from graphopt.memory.dataflow import Dataflow
from graphopt.memory.liveness import Lifetime, lifetimes
from graphopt.memory.placing import Rules, segment_of
from graphopt.memory.planning import best_aliasing, peak_of, program_dataflow, rules_for
from graphopt.targets.schema import Target

_MOST_SIZES = 4096
_CHECKS_PER_PIECE = 3


@dataclass(frozen=True)
class Piece:
    """The peak for the sizes from ``low`` to ``high``, both included.

    Attributes:
        low: Smallest size.
        high: Largest size.
        peak: Bytes as an expression of the dimension.
        node: Name of the node at which the peak is.
        op: Its operator.
    """

    low: int
    high: int
    peak: Dim
    node: str
    op: str


@dataclass(frozen=True)
class PeakFormula:
    """Pieces in increasing order, without gaps.

    Attributes:
        dimension: The free dimension.
        bindings: Sizes of the others.
        pieces: Where which expression is the peak.
        checked: Sizes at which the formula was compared with a peak measured afresh.
    """

    dimension: str
    bindings: Mapping[str, int]
    pieces: tuple[Piece, ...]
    checked: tuple[int, ...]

    def __str__(self) -> str:
        return "\n".join(
            f"{p.low} <= {self.dimension} <= {p.high}: peak = {p.peak} bytes, at {p.op} '{p.node}'"
            for p in self.pieces
        )


def peak_formula(
    program: Program,
    target: Target,
    dimension: str,
    bindings: Mapping[str, int],
    *,
    low: int,
    high: int,
    upper_bounds: Mapping[str, Dim],
) -> PeakFormula | None:
    """Return the peak as a function of ``dimension`` for sizes from ``low`` to ``high``.

    None when the peak has no formula: sizes that depend on data, or bodies whose arena was packed
    at the reference size.
    """
    if upper_bounds:
        return None
    others = {name: size for name, size in bindings.items() if name != dimension}
    rules = rules_for(target)
    flow, _ = program_dataflow(program, target, {**others, dimension: high}, upper_bounds)
    if flow.not_planned or any(step.scratch_bytes for step in flow.steps):
        return None
    steps = _step_expressions(program, flow, rules, others)
    if steps is None:
        return None
    sizes = _sizes(low, high)
    pieces = _envelope(steps, flow, dimension, sizes)
    return _checked(pieces, program, target, dimension, others)


def _step_expressions(
    program: Program, flow: Dataflow, rules: Rules, others: Mapping[str, int]
) -> list[Dim] | None:
    """Return the live bytes of every step as an expression."""
    bytes_of = {}
    for graph in graphs_of(program.graph):
        for value in (*graph.inputs, *(v for node in graph for v in node.outputs)):
            dims = dims_of_value(value)
            size = None if dims is None or value.dtype is None else size_bytes(value.dtype, dims)
            if size is not None:
                bytes_of[value.name or ""] = substitute(size, others)
    aliasing = best_aliasing(flow, rules)
    change: list[Dim] = [0] * (len(flow.steps) + 1)
    for life in lifetimes(flow, aliasing):
        if segment_of(life.role, rules) != "arena":
            continue
        size = _buffer_expression(life, flow, bytes_of, aliasing.offset)
        if size is None:
            return None
        padded = mul(ceildiv(size, rules.alignment), rules.alignment)
        change[life.start] = add(change[life.start], padded)
        change[life.end] = add(change[life.end], mul(padded, -1))
    live: list[Dim] = []
    total: Dim = 0
    for step in range(len(flow.steps)):
        total = add(total, change[step])
        live.append(total)
    return live


def _buffer_expression(
    life: Lifetime, flow: Dataflow, bytes_of: Mapping[str, Dim], offsets: Sequence[int]
) -> Dim | None:
    """Return the bytes of a buffer: those of the member that reaches furthest at the reference."""
    furthest = max(life.members, key=lambda m: (offsets[m] + flow.values[m].size_bytes, -m))
    size = bytes_of.get(flow.values[furthest].name)
    return None if size is None else add(size, offsets[furthest])


def _sizes(low: int, high: int) -> list[int]:
    if high - low < _MOST_SIZES:
        return list(range(low, high + 1))
    spread = np.linspace(low, high, _MOST_SIZES)
    return sorted({int(x) for x in spread} | {low, high})


def _envelope(
    steps: list[Dim], flow: Dataflow, dimension: str, sizes: list[int]
) -> tuple[Piece, ...]:
    """Return the runs of sizes at which one expression is the largest."""
    distinct: dict[Dim, int] = {}
    for number, expression in enumerate(steps):
        distinct.setdefault(expression, number)
    expressions = list(distinct)
    table: npt.NDArray[np.int64] = np.array(
        [[evaluate(e, {dimension: size}) for size in sizes] for e in expressions], dtype=np.int64
    )
    winner = table.argmax(axis=0)
    pieces: list[Piece] = []
    for position, size in enumerate(sizes):
        expression = expressions[int(winner[position])]
        step = flow.steps[distinct[expression]]
        if pieces and pieces[-1].peak == expression:
            last = pieces.pop()
            pieces.append(Piece(last.low, size, expression, last.node, last.op))
        else:
            start = pieces[-1].high + 1 if pieces else size
            pieces.append(Piece(start, size, expression, step.name, step.op))
    return tuple(pieces)


def _checked(
    pieces: tuple[Piece, ...],
    program: Program,
    target: Target,
    dimension: str,
    others: Mapping[str, int],
) -> PeakFormula | None:
    """Compare with peaks measured afresh, from large sizes down, and keep what agrees."""
    kept: list[Piece] = []
    checked: list[int] = []
    for piece in reversed(pieces):
        points = sorted({int(x) for x in np.linspace(piece.low, piece.high, _CHECKS_PER_PIECE)})
        lowest: int | None = None
        for size in reversed(points):
            measured = peak_of(program, target, {**others, dimension: size}, upper_bounds={})
            if measured != evaluate(piece.peak, {dimension: size}):
                break
            lowest = size
            checked.append(size)
        if lowest is None:
            break
        kept.append(Piece(lowest, piece.high, piece.peak, piece.node, piece.op))
        if lowest != piece.low:
            break
    if not kept:
        return None
    return PeakFormula(dimension, dict(others), tuple(reversed(kept)), tuple(sorted(checked)))
