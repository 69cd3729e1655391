"""Factors per channel go into what makes a value, and back out of the weights that read it.

All arithmetic is in double precision and rounded once, to the type of the weights.
"""

from functools import partial

import numpy as np
import onnx_ir as ir

from graphopt.ir.constants import Array, array_of, constant_of, read_array
from graphopt.ir.program import is_onnx, tag
from graphopt.passes._edit import Edit
from graphopt.passes._linear import bias_of, linear_of, scale_weight, set_bias, wide_product
from graphopt.quantization.equalization import LINEAR, Region, input_maxima
from graphopt.quantization.rules import RULES

_LAZY_BYTES = 1 << 16


def is_rounded(value: ir.Value) -> bool:
    """Return whether a kernel of integers is what will make ``value``."""
    node = value.producer()
    if node is None or node.op_type not in RULES:
        return False
    # A product or a sum with a constant belongs to a normalization that was taken apart.
    return not any(constant_of(operand) is not None for operand in node.inputs) or (
        RULES[node.op_type].kind != "compute"
    )


def largest_weights(readers: list[ir.Node], channels: int) -> Array:
    """Return the largest weight that reads each channel."""
    largest: Array = np.max([input_maxima(node, channels) for node in readers], axis=0)
    return largest


def divide(edit: Edit, region: Region, factors: Array) -> None:
    """Divide what the source makes, and multiply it back in the weights of the readers."""
    node, inverse = region.source, 1 / factors
    if is_onnx(node, *LINEAR):
        linear = linear_of(node)
        assert not isinstance(linear, str), "regions asked for constant weights"
        bias = bias_of(linear)
        assert bias is not None, "regions asked for a constant bias"
        scale_weight(linear, inverse)
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            set_bias(edit, linear, bias * inverse)
    elif is_onnx(node, "Mul", "Div"):
        place = 0 if constant_of(node.inputs[0]) is not None else 1
        _scale_constant(edit, node, place, factors if is_onnx(node, "Div") else inverse, region)
    else:
        for place in range(1, min(3, len(node.inputs))):
            if node.inputs[place] is not None:
                _scale_vector(edit, node, place, inverse)
    tag(node, edit.pass_name, [node])
    for shift, place in region.shifts:
        _scale_constant(edit, shift, place, inverse, region)
        tag(shift, edit.pass_name, [shift])
    for reader in region.readers:
        _multiply_inputs(reader, factors)
    edit.rewrites += 1


def _scale_constant(edit: Edit, node: ir.Node, place: int, factors: Array, region: Region) -> None:
    """Multiply a constant operand by ``factors`` along the channels of the result of ``node``."""
    value = node.inputs[place]
    array = array_of(value, most_bytes=1 << 24)
    assert array is not None, "regions asked for a small constant"
    from_end = region.values[node.outputs[0]] - len(node.outputs[0].shape or ())
    spread = factors.reshape(-1, *(1,) * (-from_end - 1))
    _replace(edit, node, place, array.astype(np.float64) * spread)


def _scale_vector(edit: Edit, node: ir.Node, place: int, factors: Array) -> None:
    array = array_of(node.inputs[place], most_bytes=1 << 24)
    assert array is not None, "regions asked for constant vectors"
    _replace(edit, node, place, array.astype(np.float64) * factors)


def _replace(edit: Edit, node: ir.Node, place: int, wide: Array) -> None:
    old = node.inputs[place]
    assert old is not None, "the caller read it"
    stem = old.name or "constant"
    node.replace_input_with(place, edit.constant(stem, ir.Tensor(wide.astype(np.float32))))
    if old.is_initializer() and not old.uses() and not old.is_graph_output():
        del edit.model.graph.initializers[stem]
        edit.names.release_value(stem)


def _multiply_inputs(node: ir.Node, factors: Array) -> None:
    """Multiply the weights of each input channel of a linear node, late if they are large."""
    weight = node.inputs[1]
    old = constant_of(weight)
    assert weight is not None, "a linear node has weights"
    assert old is not None, "regions asked for constant weights"
    compute = partial(_multiplied, old, node, np.array(factors))
    if old.nbytes > _LAZY_BYTES:
        shape = ir.Shape(old.shape.numpy())
        weight.const_value = ir.LazyTensor(compute, old.dtype, shape, name=old.name)
    else:
        weight.const_value = compute()
        weight.const_value.name = old.name


def _multiplied(old: ir.TensorProtocol, node: ir.Node, factors: Array) -> ir.TensorProtocol:
    def multiply(array: Array) -> Array:
        if is_onnx(node, "Conv"):
            groups = len(factors) // array.shape[1]
            shape = (groups, array.shape[0] // groups, *array.shape[1:])
            spread = factors.reshape(groups, 1, array.shape[1], *(1,) * (array.ndim - 2))
            return wide_product(array.reshape(shape), spread).reshape(array.shape)
        flag = node.attributes.get("transB")
        rows = flag is None or flag.as_int() == 0
        return wide_product(array, factors[:, None] if rows else factors)

    return ir.Tensor(read_array(old, multiply), dtype=old.dtype)


def insert_product(
    edit: Edit, value: ir.Value, readers: list[ir.Node], factors: Array, axis: int
) -> ir.Value:
    """Return ``value`` divided by ``factors``, which ``readers`` read from now on."""
    name = value.name or "value"
    inverse = (
        (1 / factors).astype(np.float32).reshape(-1, *(1,) * (len(value.shape or ()) - axis - 1))
    )
    constant = edit.constant(f"{name}_factors", ir.Tensor(inverse))
    node = ir.Node("", "Mul", [value, constant], num_outputs=1)
    node.name = edit.names.fresh_node(f"{name}_equalize")
    result = node.outputs[0]
    result.name = edit.names.fresh_value(f"{name}_equalized")
    result.type, result.shape = value.type, value.shape
    tag(node, edit.pass_name, readers)
    for reader in readers:
        reader.replace_input_with(0, result)
        _multiply_inputs(reader, factors)
    producer, graph = value.producer(), edit.model.graph
    if producer is not None:
        graph.insert_after(producer, [node])
    else:
        graph.insert_before(graph[0], [node])
    edit.rewrites += 1
    return result
