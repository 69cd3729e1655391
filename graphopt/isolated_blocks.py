"""Products with weights in blocks, run as plain products: the weights are made floats here.

In: a node ``MatMulNBits`` whose weights lie in a file. Out: a ``MatMul`` that reads a matrix of
floats, and that matrix. Without packed weights onnxruntime does the same inside the node, again for
every sample and several times slower.
"""

from collections.abc import Container, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from graphopt.quantization.threads import each

# Numbers that stay in the cache of a processor while several operations pass over them.
_CACHED = 1 << 17
_BITS_OF_WORD = 32

Array = npt.NDArray[Any]


def numbers_of(node: onnx.NodeProto) -> dict[str, int]:
    """Return the attributes of ``node`` that are integers."""
    return {a.name: a.i for a in node.attribute if a.type == onnx.AttributeProto.INT}


def is_product(
    node: onnx.NodeProto, tensors: Mapping[str, onnx.TensorProto], in_files: Container[str]
) -> bool:
    """Return whether ``node`` is a product whose weights can be made floats here.

    Args:
        node: Any node.
        tensors: Initializers by name.
        in_files: Names of those whose data lie in files that may be read.
    """
    if node.op_type != "MatMulNBits" or node.domain != "com.microsoft":
        return False
    names = [*node.input, "", "", ""][1:5]
    if any(name and name not in tensors for name in names) or names[0] not in in_files or names[3]:
        return False
    numbers = numbers_of(node)
    zeros = tensors.get(names[2])
    return (
        numbers.get("bits") in (4, 8)
        and numbers["bits"] * numbers["block_size"] % _BITS_OF_WORD == 0
        and tensors[names[1]].data_type == onnx.TensorProto.FLOAT
        and (zeros is None or zeros.data_type == onnx.TensorProto.UINT8)
    )


def wide_name(node: onnx.NodeProto) -> str:
    """Return the name of the matrix of floats; nodes with the same weights share it."""
    shape = (f"{key}{number}" for key, number in sorted(numbers_of(node).items()))
    return "/".join([*(name for name in node.input[1:4] if name), *shape, "wide"])


def as_plain(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return the nodes that make what ``node`` makes, of the matrix of floats."""
    bias = node.input[5] if len(node.input) > 5 else ""
    product = f"{node.output[0]}/product" if bias else node.output[0]
    make = onnx.helper.make_node
    nodes = [make("MatMul", [node.input[0], wide_name(node)], [product], name=node.name)]
    if bias:
        nodes.append(make("Add", [product, bias], [node.output[0]], name=f"{node.name}/bias"))
    return nodes


def widen(
    packed: Array, scales: Array, zeros: Array | None, bits: int, block: int, floats: Array
) -> None:
    """Write the weights of a product to ``floats``.

    Args:
        packed: Integers, [columns, blocks, bytes of a block].
        scales: One for each block, columns first.
        zeros: Zero points, packed for each column; None for the middle of the range.
        bits: 4 or 8.
        block: Numbers that share a scale.
        floats: [rows, columns]; the last block may be longer than what is left of the rows.
    """
    rows, columns = floats.shape
    blocks = -(-rows // block)
    words = packed.reshape(columns, blocks, -1).view("<u4")
    factors = np.ascontiguousarray(scales.reshape(columns, blocks).T)
    shifts = np.arange(0, _BITS_OF_WORD, bits, dtype=np.uint32)[:, None]
    points = _zero_points(zeros, bits, columns, blocks)
    step = max(1, _CACHED // (block * columns))

    def work(start: int) -> None:
        some = slice(start, start + step)
        # The first number of a word is in its lowest bits.
        turned = np.ascontiguousarray(words[:, some].transpose(1, 2, 0))[:, :, None]
        integers = turned >> shifts
        integers &= np.uint32((1 << bits) - 1)
        first, last = start * block, min((start + step) * block, rows)
        grouped = integers.view(np.int32).reshape(len(turned), block, columns)
        whole = len(turned) * block == last - first
        wide = floats[first:last].reshape(grouped.shape) if whole else np.empty(grouped.shape, "f4")
        np.copyto(wide, grouped)
        wide -= points[some, None]
        wide *= factors[some, None]
        if not whole:
            floats[first:last] = wide.reshape(-1, columns)[: last - first]

    each(work, range(0, blocks, step))


def _zero_points(zeros: Array | None, bits: int, columns: int, blocks: int) -> Array:
    """Return the zero points as floats, [blocks, columns]."""
    if zeros is None:
        return np.full((blocks, columns), 1 << (bits - 1), np.float32)
    packed = zeros.reshape(columns, -1)
    if bits == 4:
        packed = np.stack([packed & 15, packed >> 4], -1).reshape(columns, -1)
    return np.ascontiguousarray(packed[:, :blocks].T, np.float32)
