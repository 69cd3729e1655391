"""Inputs for a comparison: seeded arrays that respect data types, shapes, bounds and index ranges.

In: the inputs of a program. Out: for a choice of sizes, one dictionary of arrays. An integer
input that is used as an index (``Gather`` and friends, also behind casts and reshapes) stays
inside the axis it indexes; one that is compared with constants (``Equal``: a sample rate, a mode)
takes one of them. The same seed gives the same arrays, whatever the order of the inputs.
"""

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.errors import UnsupportedError
from graphopt.ir.constants import ints_of
from graphopt.ir.dims import Bounds, evaluate, symbols_of
from graphopt.ir.program import Program, dims_of, is_onnx

Feed = dict[str, npt.NDArray[np.generic]]

# Sizes tried for a dimension that has neither a binding nor an upper bound, until the original
# model accepts one: small first, then what convolutional and recurrent networks usually need.
_TRIED_SIZES = (8, 32, 64, 96, 224, 512, 2, 1)
_INDEX_OPS = {"Gather": 1, "GatherElements": 1, "GatherND": 1, "OneHot": 0}
_TRANSPARENT = ("Cast", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten", "Transpose")


def size_choices(program: Program, bindings: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Yield sizes for the symbols of the inputs, most wanted first; the last ones are attempts.

    A bound symbol keeps its size. A symbol that leads an input (a batch) is 2 where its bounds
    allow, so that a rewrite that assumed 1 shows. Others take the sizes of a fixed list, cut to
    their bounds.
    """
    leading: set[str] = set()
    others: set[str] = set()
    for value in program.graph.inputs:
        for axis, dim in enumerate(dims_of(value) or ()):
            (leading if axis == 0 else others).update(symbols_of(dim))
    leading -= others
    seen = set()
    for attempt in _TRIED_SIZES:
        choice = {}
        for name in sorted(leading | others):
            bounds = program.bounds.get(name, Bounds())
            wanted = 2 if name in leading else attempt
            upper = wanted if bounds.upper is None else min(wanted, bounds.upper)
            choice[name] = bindings.get(name, max(upper, bounds.lower, 0))
        key = tuple(choice.items())
        if key not in seen:
            seen.add(key)
            yield choice
    # A network may accept one batch size only, although its file does not say so.
    ones = {n: bindings.get(n, 1 if n in leading else s) for n, s in choice.items()}
    for attempt in _TRIED_SIZES:
        choice = {n: ones[n] if n in leading or n in bindings else attempt for n in ones}
        if tuple(choice.items()) not in seen:
            yield choice


def make_feed(program: Program, sizes: Mapping[str, int], seed: int) -> Feed:
    """Return one array per graph input.

    Raises:
        UnsupportedError: an input is no dense tensor, or its rank is unknown.
    """
    feed: Feed = {}
    for value in program.graph.inputs:
        name = value.name or ""
        dims = dims_of(value)
        if dims is None or value.dtype is None or not isinstance(value.type, ir.TensorType):
            raise UnsupportedError(
                "input-not-dense",
                f"cannot make samples for input '{name}' of type {value.type}, shape {value.shape}",
                hint="give example inputs, or turn verification off",
            )
        shape = tuple(evaluate(dim, sizes) for dim in dims)
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        feed[name] = _array(generator, value, shape, index_limit(value, sizes))
    return feed


def _array(
    generator: np.random.Generator, value: ir.Value, shape: tuple[int, ...], limit: int | None
) -> npt.NDArray[np.generic]:
    dtype = value.dtype
    assert dtype is not None
    if dtype is ir.DataType.BOOL:
        return generator.integers(0, 2, shape).astype(np.bool_)
    if dtype is ir.DataType.STRING:
        words = generator.integers(0, 1000, shape)
        return np.array([f"w{n}" for n in words.ravel()], dtype=object).reshape(shape)
    if dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
        parts = generator.standard_normal((2, *shape))
        complex_: npt.NDArray[np.generic] = (parts[0] + 1j * parts[1]).astype(dtype.numpy())
        return complex_
    if dtype.is_integer():
        choices = compared_with(value)
        if choices:
            picked = generator.choice(np.array(choices, dtype=dtype.numpy()), shape)
            return np.asarray(picked, dtype=dtype.numpy())
        if limit is not None:
            return generator.integers(0, max(1, limit), shape).astype(dtype.numpy())
        high = (
            128 if dtype.bitwidth <= 8 and dtype.is_signed() else 256 if dtype.bitwidth == 8 else 10
        )
        if dtype.bitwidth < 8:
            high = 2 ** (dtype.bitwidth - 1)
        return generator.integers(0, high, shape).astype(dtype.numpy())
    return generator.standard_normal(shape).astype(np.float32).astype(dtype.numpy())


def index_limit(value: ir.Value, sizes: Mapping[str, int]) -> int | None:
    """Return the smallest axis that ``value`` indexes, None when it is no index."""
    limit: int | None = None
    for use, node in _uses_behind_moves(value):
        if is_onnx(node, *_INDEX_OPS) and _INDEX_OPS[node.op_type] == use:
            size = _indexed_size(node, sizes)
            if size is not None:
                limit = size if limit is None else min(limit, size)
    return limit


def compared_with(value: ir.Value) -> list[int]:
    """Return the constants that ``value`` is compared with for equality, sorted."""
    found: set[int] = set()
    for use, node in _uses_behind_moves(value):
        if is_onnx(node, "Equal"):
            other = node.inputs[1 - use]
            numbers = ints_of(other)
            if numbers is not None and len(numbers) == 1:
                found.add(numbers[0])
    return sorted(found)


def _uses_behind_moves(value: ir.Value) -> Iterator[tuple[int, ir.Node]]:
    """Yield (input index, node) of every use of ``value``, also behind casts and reshapes."""
    pending, seen = [value], {value}
    while pending:
        for use in pending.pop().uses():
            yield use.idx, use.node
            if is_onnx(use.node, *_TRANSPARENT) and use.idx == 0:
                fresh = [out for out in use.node.outputs if out not in seen]
                seen.update(fresh)
                pending.extend(fresh)


def _indexed_size(node: ir.Node, sizes: Mapping[str, int]) -> int | None:
    if node.op_type == "OneHot":
        depth = node.inputs[1]
        numbers = ints_of(depth)
        return numbers[0] if numbers else None
    data = node.inputs[0]
    dims = None if data is None else dims_of(data)
    if not dims:
        return None
    if node.op_type == "GatherND":
        return min(evaluate(dim, sizes) for dim in dims)
    attribute = node.attributes.get("axis")
    axis = attribute.as_int() if attribute is not None else 0
    try:
        return evaluate(dims[axis], sizes)
    except KeyError:
        return None
