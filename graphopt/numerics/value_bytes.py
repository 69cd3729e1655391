"""Values in groups that are looked at together: no run holds more than some bytes of them."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import onnx_ir as ir

from graphopt.ir.constants import constant_of
from graphopt.ir.dims import evaluate, symbols_of
from graphopt.ir.program import Program, dims_of
from graphopt.ir.rewrite import nodes_of
from graphopt.numerics.feeds import Feed

# From these bytes of weights on, reading them takes longer than starting a run.
HEAVY_BYTES = 64 << 20
# Inputs and values of samples that are run at once.
_TOGETHER_BYTES = 32 << 20


def grouped(
    program: Program, values: Sequence[ir.Value], feed: Feed, most: int
) -> Iterator[list[str]]:
    """Yield the names of ``values`` in groups of at most ``most`` bytes, or of one value.

    Args:
        program: Its inputs settle the sizes of symbols.
        values: A value of unknown size counts as nothing.
        feed: A sample.
        most: Bytes of a group.
    """
    sizes = _sizes(program, feed)
    group: list[str] = []
    total = 0
    for value in values:
        size = _bytes_of(value, sizes)
        if group and total + size > most:
            yield group
            group, total = [], 0
        group.append(value.name or "")
        total += size
    if group:
        yield group


def observed_together(
    program: Program, values: Sequence[ir.Value], feeds: Iterable[Feed]
) -> Iterator[list[Feed]]:
    """Yield samples that are run at once: one, or several where reading the weights takes longest.

    Args:
        program: What is run.
        values: What is observed of each sample.
        feeds: The samples.
    """
    weights = weight_bytes(program.model)
    some: list[Feed] = []
    held = 0
    for feed in feeds:
        needed = sum(array.nbytes for array in feed.values())
        needed += values_bytes(program, values, feed)
        if some and (weights < HEAVY_BYTES or held + needed > _TOGETHER_BYTES):
            yield some
            some, held = [], 0
        some.append(feed)
        held += needed
    if some:
        yield some


def values_bytes(program: Program, values: Iterable[ir.Value], feed: Feed) -> int:
    """Return the bytes of ``values`` on a sample; those of unknown size count as nothing."""
    sizes = _sizes(program, feed)
    return sum(_bytes_of(value, sizes) for value in values)


def _sizes(program: Program, feed: Feed) -> dict[str, int]:
    """Return the sizes of the symbols that the shapes of ``feed`` settle."""
    sizes: dict[str, int] = {}
    for value in program.graph.inputs:
        dims = dims_of(value)
        array = feed.get(value.name or "")
        if dims is None or array is None:
            continue
        for dim, size in zip(dims, array.shape, strict=False):
            names = symbols_of(dim)
            if len(names) == 1 and str(dim) in names:
                sizes[str(dim)] = size
    return sizes


def _bytes_of(value: ir.Value, sizes: Mapping[str, int]) -> int:
    """Return the bytes of ``value``; one of unknown size counts as nothing and is capped apart."""
    dims = dims_of(value)
    if dims is None or value.dtype is None:
        return 0
    try:
        return math.prod(evaluate(dim, sizes) for dim in dims) * value.dtype.itemsize.__ceil__()
    except KeyError:
        return 0


def working_bytes(program: Program, feed: Feed) -> dict[ir.Node, int]:
    """Return what each node, of bodies too, holds while it runs: its inputs and results.

    Args:
        program: The float program.
        feed: A sample; it settles sizes that the program leaves open. What stays unknown, and
            constants, count as nothing.
    """
    sizes = _sizes(program, feed)
    held: dict[ir.Node, int] = {}
    for node in nodes_of(program.model):
        values = dict.fromkeys(value for value in node.inputs if value is not None)
        values.update(dict.fromkeys(node.outputs))
        held[node] = sum(_bytes_of(v, sizes) for v in values if constant_of(v) is None)
    return held


def weight_bytes(model: ir.Model) -> int:
    """Return the bytes of the weights of the main graph."""
    return sum(_stored(value) for value in model.graph.initializers.values())


def constant_bytes(node: ir.Node) -> int:
    """Return the bytes of the constants that ``node`` reads: a matrix, weights, or a table."""
    return sum(_stored(value) for value in node.inputs[:3] if value is not None)


def _stored(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.nbytes
