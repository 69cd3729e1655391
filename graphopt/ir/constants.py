"""Constants of a graph: which values are constant, and how to read them without keeping them.

Weights are memory-mapped, so a tensor is read through ``read_array``, which closes the mapping
again: what stays resident is the result of the reading, never the weights read so far.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.ir.program import dims_of, is_onnx

Array = npt.NDArray[Any]
Result = TypeVar("Result")


def constant_of(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the tensor of ``value`` when no caller can change it, else None.

    Constant are the output of a ``Constant`` node and an initializer that is no graph input: an
    initializer that is also an input is only the default of that input.
    """
    if value is None:
        return None
    if value.is_initializer():
        return None if value.is_graph_input() else value.const_value
    node = value.producer()
    return tensor_of_constant(node) if node is not None and is_onnx(node, "Constant") else None


def tensor_of_constant(node: ir.Node) -> ir.TensorProtocol | None:
    """Return the dense tensor that a ``Constant`` node holds, None for strings and sparse ones."""
    attributes = [a for a in node.attributes.values() if not a.is_ref()]
    if len(attributes) != 1 or len(node.attributes) != 1:
        return None
    match attributes[0].name:
        case "value":
            tensor = attributes[0].as_tensor()
            return None if tensor.dtype is ir.DataType.STRING else tensor
        case "value_float":
            return ir.tensor(attributes[0].as_float(), dtype=ir.DataType.FLOAT)
        case "value_floats":
            return ir.tensor(attributes[0].as_floats(), dtype=ir.DataType.FLOAT)
        case "value_int":
            return ir.tensor(attributes[0].as_int(), dtype=ir.DataType.INT64)
        case "value_ints":
            return ir.tensor(attributes[0].as_ints(), dtype=ir.DataType.INT64)
    return None


def read_array(tensor: ir.TensorProtocol, function: Callable[[Array], Result]) -> Result:
    """Return ``function(array of tensor)`` and close the memory mapping behind the array.

    ``function`` must not return the array nor a view of it.
    """
    result = function(tensor.numpy())
    release = getattr(tensor, "release", None)
    if release is not None:
        release()
    return result


def array_of(value: ir.Value | None, *, most_bytes: int = 1 << 16) -> Array | None:
    """Return a copy of a constant, None when it is none, is a string, or is over ``most_bytes``."""
    tensor = constant_of(value)
    if tensor is None or tensor.dtype is ir.DataType.STRING or tensor.nbytes > most_bytes:
        return None
    return read_array(tensor, np.array)


def ints_of(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the elements of a small constant of integers or booleans, else None."""
    tensor = constant_of(value)
    if tensor is None or not (tensor.dtype.is_integer() or tensor.dtype is ir.DataType.BOOL):
        return None
    array = array_of(value)
    return None if array is None else tuple(int(x) for x in array.ravel().tolist())


def static_dims(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the dimensions of ``value`` when all are numbers, else None."""
    dims = None if value is None else dims_of(value)
    if dims is None:
        return None
    numbers = tuple(d for d in dims if isinstance(d, int))
    return numbers if len(numbers) == len(dims) else None


def axes_of(node: ir.Node, index: int) -> tuple[int, ...] | None:
    """Return the constant axes of a node, from attribute ``axes`` or from input ``index``.

    None when they are computed or not given; callers that must tell these apart look at the input.
    """
    attribute = node.attributes.get("axes")
    if attribute is not None:
        return tuple(attribute.as_ints())
    return ints_of(node.inputs[index]) if len(node.inputs) > index else None
