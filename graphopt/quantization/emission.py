"""Write a placement into a model: Q/DQ pairs, integer weights, integer biases.

Every edit goes through the ``Rewriter``, so names, provenance and graph outputs are kept. A value
that an integer node makes keeps its name on the dequantized side, which all its readers see.
Integer nodes of a branch read what is around it as integers and dequantize it themselves: runtimes
fuse conversions with nodes of the same graph.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.ir.constants import array_of, constant_of, read_array
from graphopt.ir.program import is_onnx, tag
from graphopt.ir.rewrite import Rewriter, sole_user
from graphopt.quantization.bodies import Scope, scopes_of
from graphopt.quantization.description import Description, Plan
from graphopt.quantization.placed import Placement
from graphopt.quantization.ranges import Params, quantize_array
from graphopt.quantization.rules import FLOAT_SUM, INTEGER_MATMUL, is_depthwise, weight_axis
from graphopt.quantization.tables import table_scales
from graphopt.quantization.weight_files import weight_files_of
from graphopt.quantization.weights import (
    WeightScheme,
    integer_bias,
    widen_for_bias,
)

_TYPES = {"uint8": ir.DataType.UINT8, "int8": ir.DataType.INT8}
_MICROSOFT = "com.microsoft"
_FLOAT_MOVES = ("Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
Floats = npt.NDArray[np.float64]


def emit(
    edit: Rewriter,
    placement: Placement,
    description: Description,
    plan: Plan,
    *,
    store_kept: bool = True,
) -> None:
    """Rewrite the model of ``edit`` as ``placement`` says; counts one rewrite per integer node.

    Args:
        edit: Edits of the model.
        placement: What is quantized.
        description: Means of channels, which repair biases.
        plan: What the target asks.
        store_kept: Whether the weights of nodes that were kept float are stored as int8.
    """
    emission = _Emission(edit, placement, description, plan)
    for product, add in placement.direct.items():
        if add is not None:
            emission.take_bias(product, add)
    for clamp, before in placement.absorbed.items():
        emission.forget_bounds(clamp)
        _absorb(edit, clamp, before)
    placement.move_params_of_absorbed()
    for value in list(placement.params):
        emission.quantize(value)
    for (node, index), params in placement.converted.items():
        emission.convert(node, index, params)
    for node, rule in placement.integer.items():
        if rule.kind == "linear":
            emission.quantize_weights(node)
        edit.rewrites += 1
    for node, rule in placement.integer.items():
        # Behind the linear nodes: a table that is also their weight is stored once.
        if rule.table:
            emission.store_table(node)
    for node in placement.stored if store_kept else ():
        emission.store_weights(node)
        edit.rewrites += 1
    for node in placement.sums:
        edit.replace([node], FLOAT_SUM, list(node.inputs), [])
        edit.rewrites += 1
    emission.drop_unread()
    emission.delay_products()


def _describe(value: ir.Value, shape: Iterable[int | ir.SymbolicDim | None] | None) -> None:
    """Make ``value`` floats of ``shape``."""
    value.type = ir.TensorType(ir.DataType.FLOAT)
    value.shape = None if shape is None else ir.Shape(shape)


def _absorb(edit: Rewriter, clamp: ir.Node, before: ir.Node) -> None:
    """Let ``before`` make what ``clamp`` made, under its name."""
    result, name = before.outputs[0], clamp.outputs[0].name or "value"
    edit.redirect(clamp.outputs[0], result)
    tag(before, edit.pass_name, [before, clamp])
    edit.drop(clamp)
    if result.name != name:
        edit.names.release_value(result.name or "")
        result.name = edit.names.fresh_value(name)


def _insert_before(node: ir.Node, *added: ir.Node) -> None:
    assert node.graph is not None, "the node is in a graph"
    node.graph.insert_before(node, added)


class _Emission:
    def __init__(
        self, edit: Rewriter, placement: Placement, description: Description, plan: Plan
    ) -> None:
        self.edit = edit
        self.placement = placement
        self._scopes: dict[ir.Graph, Scope] = {}
        # Where nodes of branches stand in them.
        self._order: dict[ir.Node, int] = {}
        for scope in scopes_of(edit.model):
            self._scopes[scope.graph] = scope
            if scope.depth:
                self._order.update((node, index) for index, node in enumerate(scope.graph))
        self.description = description
        self.plan = plan
        self._files = weight_files_of(edit.model)
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self._weights: dict[tuple[ir.Value, int, bytes], ir.Value] = {}
        self._old: dict[ir.Value, None] = {}
        self._scales: dict[ir.Value, Params] = {}
        self._biases: dict[ir.Node, ir.Value] = {}
        self._in_store: dict[ir.Value, tuple[int, npt.NDArray[np.float32]]] = {}
        self._back: dict[ir.Node, None] = {}
        self._products: list[ir.Node] = []

    def take_bias(self, product: ir.Node, add: ir.Node) -> None:
        """Let ``product`` make what ``add`` made; the bias is kept for its integer form."""
        bias = next(v for v in add.inputs if v is not None and v is not product.outputs[0])
        self._biases[product] = bias
        self._old[bias] = None
        _absorb(self.edit, add, product)

    def forget_bounds(self, clamp: ir.Node) -> None:
        """Note the constants of a node that vanishes: perhaps nobody else reads them."""
        for value in clamp.inputs[1:]:
            if value is not None and constant_of(value) is not None:
                self._old[value] = None

    def quantize(self, value: ir.Value) -> None:
        """Put Q and DQ behind ``value``, for all its readers or for the integer ones."""
        params = self.placement.params[value]
        if constant_of(value) is not None:
            self._quantize_constant(value, params)
            return
        name, producer, home = value.name or "value", value.producer(), value.graph
        assert home is not None, "the value belongs to a graph"
        everyone = value in self.placement.after
        readers: dict[ir.Graph, list[tuple[ir.Node, int]]] = {home: []} if everyone else {}
        for user, index in value.uses():
            inside = self._wants(user, index)
            if inside or everyone:
                graph = user.graph if inside else home
                assert graph is not None, "a reader is in a graph"
                readers.setdefault(graph, []).append((user, index))
        integers: dict[ir.Graph, ir.Value] = {}
        for graph in sorted(readers, key=lambda graph: self._scopes[graph].depth):
            users = readers[graph]
            first = min(users, key=lambda use: self._order.get(use[0], 0))[0] if users else None
            source = [one for one in (producer, first) if one is not None][:1]
            known = self._nearest(integers, graph)
            nodes = self._conversions(name, value, params, known, source)
            if known is None:
                integers[graph] = nodes[0].outputs[0]
            if graph is not home and first is not None:
                graph.insert_before(first, nodes)
            elif producer is not None:
                graph.insert_after(producer, nodes)
            else:
                graph.insert_before(graph[0], nodes)
            result = nodes[-1].outputs[0]
            if everyone and graph is home:
                self._take_name(value, result)
            else:
                result.name = self.edit.names.fresh_value(f"{name}_dequantized")
            for user, index in users:
                user.replace_input_with(index, result)
            self._scales[result] = params

    def _nearest(self, integers: dict[ir.Graph, ir.Value], graph: ir.Graph) -> ir.Value | None:
        """Return the integers that are known in ``graph`` or around it."""
        scope: Scope | None = self._scopes[graph]
        while integers and scope is not None:
            if scope.graph in integers:
                return integers[scope.graph]
            scope = scope.around
        return None

    def _conversions(
        self,
        name: str,
        value: ir.Value,
        params: Params,
        integers: ir.Value | None,
        source: list[ir.Node],
    ) -> list[ir.Node]:
        """Return the nodes that quantize ``value``, where ``integers`` are not known, and back."""
        scale, zero = self._scale_and_zero(name, params)
        nodes = []
        if integers is None:
            stem = f"{name}_quantized"
            nodes.append(self._node("QuantizeLinear", [value, scale, zero], stem, source))
            integers = nodes[0].outputs[0]
            integers.type = ir.TensorType(_TYPES[self.plan.activation.dtype])
            integers.shape = value.shape
        nodes.append(self._node("DequantizeLinear", [integers, scale, zero], "", source))
        result = nodes[-1].outputs[0]
        result.type, result.shape = value.type, value.shape
        return nodes

    def _wants(self, node: ir.Node, index: int) -> bool:
        rule = self.placement.integer.get(node)
        return rule is not None and (rule.inputs is None or index in rule.inputs)

    def _take_name(self, value: ir.Value, result: ir.Value, ending: str = "float") -> None:
        """Let ``result`` be called what ``value`` is called, in the graph outputs too."""
        name = value.name or "value"
        if value.is_graph_output():
            assert value.graph is not None, "it is an output of its graph"
            outputs = value.graph.outputs
            for index in [i for i, output in enumerate(outputs) if output is value]:
                outputs[index] = result
        value.name = self.edit.names.fresh_value(f"{name}_{ending}")
        result.name = name
        result.metadata_props.update(value.metadata_props)

    def _node(
        self, op_type: str, inputs: list[ir.Value], stem: str, source: list[ir.Node]
    ) -> ir.Node:
        node = ir.Node("", op_type, inputs, num_outputs=1)
        node.name = self.edit.names.fresh_node(f"{inputs[0].name}_{op_type}")
        if stem:
            node.outputs[0].name = self.edit.names.fresh_value(stem)
        return tag(node, self.edit.pass_name, source)

    def _constant(self, stem: str, array: npt.NDArray[Any]) -> ir.Value:
        """Return an initializer that holds ``array``; equal ones are one."""
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.edit.constant(stem, ir.Tensor(array))
        return self._constants[key]

    def _scale_and_zero(self, name: str, params: Params) -> tuple[ir.Value, ir.Value]:
        """Return scale and zero point of an activation as initializers."""
        dtype = self.plan.activation.dtype
        return (
            self._constant(f"{name}_scale", np.array(params.scale, np.float32)),
            self._constant(f"{name}_zero_point", np.array(params.zero_point, dtype)),
        )

    def _quantize_constant(self, value: ir.Value, params: Params) -> None:
        """Store a constant operand as integers, for the integer nodes that read it."""
        tensor = constant_of(value)
        assert tensor is not None, "the caller asked"
        scheme = self.plan.activation
        name = value.name or "constant"
        users = [(use.node, use.idx) for use in value.uses() if self._wants(use.node, use.idx)]
        forms: dict[Params, ir.Value] = {}
        for user, index in users:
            wanted = self.placement.converted.pop((user, index), params)
            if wanted not in forms:
                integers = read_array(tensor, partial(quantize_array, params=wanted, scheme=scheme))
                forms[wanted] = self.edit.constant(f"{name}_quantized", ir.Tensor(integers))
            stored = forms[wanted]
            scale, zero = self._scale_and_zero(name, wanted)
            back = self._node(
                "DequantizeLinear", [stored, scale, zero], f"{name}_dequantized", [user]
            )
            back.outputs[0].type, back.outputs[0].shape = value.type, value.shape
            _insert_before(user, back)
            user.replace_input_with(index, back.outputs[0])
            self._scales[back.outputs[0]] = wanted
        self._old[value] = None

    def convert(self, node: ir.Node, index: int, params: Params) -> None:
        """Bring an input of ``node`` to another scale, for this reader alone."""
        value = node.inputs[index]
        assert value is not None, "placement looked at it"
        name = value.name or "value"
        scale, zero = self._scale_and_zero(name, params)
        quantized = self._node("QuantizeLinear", [value, scale, zero], f"{name}_converted", [node])
        integers = quantized.outputs[0]
        integers.type = ir.TensorType(_TYPES[self.plan.activation.dtype])
        integers.shape = value.shape
        stem = f"{name}_converted_dequantized"
        back = self._node("DequantizeLinear", [integers, scale, zero], stem, [node])
        back.outputs[0].type, back.outputs[0].shape = value.type, value.shape
        _insert_before(node, quantized, back)
        node.replace_input_with(index, back.outputs[0])
        self._scales[back.outputs[0]] = params

    def quantize_weights(self, node: ir.Node) -> None:
        """Store the weights of ``node`` as int8 and its bias as int32."""
        axis = weight_axis(node)
        weight, source = node.inputs[1], node.inputs[0]
        assert weight is not None, "a linear node has weights"
        assert source is not None, "a linear node has an input"
        tensor = constant_of(weight)
        assert tensor is not None, "placement asked for constant weights"
        scheme = self.plan.weight
        scheme = WeightScheme(
            scheme.per_channel and node.op_type not in self.plan.per_tensor,
            scheme.pairs_in_16_bits and not is_depthwise(node),
        )
        scales = self._files.scales(tensor, axis, scheme)
        channels = int(tensor.shape.numpy()[axis])
        bias = self._bias(node, channels)
        means = self.description.means.get(self._observed_name(source))
        if means is not None:
            bias = self._repair(node, tensor, scales, means) + (0.0 if bias is None else bias)
        input_scale = self._scales[source].scale
        if bias is not None and self.plan.integer_bias:
            scales = widen_for_bias(scales, bias, input_scale)
        self._old[weight] = None
        if node in self.placement.direct:
            integers = self._integers(weight, tensor, axis, scales)
            kept = scales if len(scales) > 1 else scales.reshape(())
            scale = self._constant(f"{weight.name}_scale", kept)
            self._write_integer_matmul(node, (integers, scale), bias, channels)
            return
        stored = self._stored_weight(weight, tensor, axis, scales)
        back = self._dequantized(node, stored, axis if len(scales) > 1 else None, weight)
        node.replace_input_with(1, back)
        if bias is not None:
            factors = (input_scale, scales) if self.plan.integer_bias else None
            self._set_bias(node, bias, channels, factors)

    def _write_integer_matmul(
        self,
        node: ir.Node,
        weight: tuple[ir.Value, ir.Value],
        bias: Floats | None,
        channels: int,
    ) -> None:
        """Put the integer operator with its float bias in the place of a ``MatMul``."""
        back = None if node.inputs[0] is None else node.inputs[0].producer()
        assert back is not None, "the input was quantized before"
        integers, scale, zero = back.inputs[:3]
        inputs = [integers, weight[0], scale, weight[1], zero]
        if bias is not None and bias.any():
            wide = np.broadcast_to(bias, (channels,)).astype(np.float32)
            # The zero point of weights is 0, as it is where there is none.
            inputs += [None, self._constant(f"{node.outputs[0].name}_bias", wide)]
        old = node.outputs[0]
        new = self.edit.insert(
            node, old, INTEGER_MATMUL, inputs, replaced=[node], domain=_MICROSOFT
        )
        if old in self.placement.after:
            # What gave its name to a conversion gets it back when that goes.
            self.placement.after.add(new.outputs[0])
        self._products.append(new)
        self.edit.drop(node)
        self._back[back] = None
        self.edit.model.graph.opset_imports.setdefault(_MICROSOFT, 1)

    def store_table(self, node: ir.Node) -> None:
        """Store the table of a ``Gather`` as int8, and widen the rows that it gathers."""
        (table, indices), rows = node.inputs[:2], node.outputs[0]
        tensor = constant_of(table)
        assert table is not None, "a table is a constant"
        assert tensor is not None, "a table is a constant"
        assert indices is not None, "a Gather has indices"
        known = self._in_store.get(table)
        axis, scales = read_array(tensor, table_scales) if known is None else known
        node.replace_input_with(0, self._integers(table, tensor, axis, scales))
        self._old[table] = None
        users = [(use.node, use.idx) for use in rows.uses()]
        name, shape = rows.name or "rows", rows.shape
        rows.type = ir.TensorType(ir.DataType.INT8)
        if len(scales) == 1:
            _, scale, zero = self._stored_weight(table, tensor, axis, scales)
            added = [self._node("DequantizeLinear", [rows, scale, zero], "", [node])]
        else:
            # A DequantizeLinear with a scale per column is several times slower in onnxruntime,
            # and none has a scale per row.
            cast = self._node("Cast", [rows], f"{name}_widened", [node])
            cast.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
            _describe(cast.outputs[0], shape)
            scale = self._constant(f"{table.name}_scale", scales if axis else scales[:, None])
            added = [cast]
            if axis == 0:
                added.append(self._node("Gather", [scale, indices], f"{name}_scale", [node]))
                scale = added[-1].outputs[0]
                _describe(scale, None if shape is None else [*shape[:-1], 1])
            added.append(self._node("Mul", [cast.outputs[0], scale], "", [node]))
        result = added[-1].outputs[0]
        _describe(result, shape)
        assert node.graph is not None, "the node is in a graph"
        node.graph.insert_after(node, added)
        self._take_name(rows, result, "integers")
        for user, index in users:
            user.replace_input_with(index, result)
        tag(node, self.edit.pass_name, [node])

    def store_weights(self, node: ir.Node) -> None:
        """Store the weights of a float ``node`` as int8 behind a ``DequantizeLinear``."""
        axis = weight_axis(node)
        weight = node.inputs[1]
        assert weight is not None, "a linear node has weights"
        tensor = constant_of(weight)
        assert tensor is not None, "placement asked for constant weights"
        if node.op_type == "MatMul" and len(tensor.shape) != 2:
            return
        # Between integer neighbours a runtime may fuse a node without a float bias after all.
        fusable = len(node.inputs) < 3 and self.plan.weight.pairs_in_16_bits
        scheme = WeightScheme(self.plan.weight.per_channel, fusable and not is_depthwise(node))
        scales = self._files.scales(tensor, axis, scheme)
        if node.op_type != "MatMul":
            self._repair_float(node, tensor, scales)
        stored = self._stored_weight(weight, tensor, axis, scales)
        back = self._dequantized(node, stored, axis if len(scales) > 1 else None, weight)
        node.replace_input_with(1, back)
        self._old[weight] = None

    def _repair_float(
        self, node: ir.Node, tensor: ir.TensorProtocol, scales: npt.NDArray[np.float32]
    ) -> None:
        """Add to the float bias of ``node`` the mean that the rounding of its weights took."""
        source = node.inputs[0]
        means = None if source is None else self.description.means.get(self._observed_name(source))
        channels = int(tensor.shape.numpy()[weight_axis(node)])
        old = node.inputs[2] if len(node.inputs) > 2 else None
        constant = constant_of(old)
        if means is None or (old is not None and (constant is None or constant.size != channels)):
            return
        bias = self._repair(node, tensor, scales, means)
        known = self._bias(node, channels)
        self._set_bias(node, bias if known is None else bias + known, channels, None)

    def _observed_name(self, value: ir.Value) -> str:
        """Return the name under which calibration knew what ``value`` dequantizes."""
        node = value.producer()
        while node is not None and node.op_type in ("DequantizeLinear", "QuantizeLinear"):
            if value.name in self.description.means:
                break
            assert node.inputs[0] is not None, "Q and DQ have an input"
            value = node.inputs[0]
            node = value.producer()
        return value.name or ""

    def _bias(self, node: ir.Node, channels: int) -> Floats | None:
        value = node.inputs[2] if len(node.inputs) > 2 else self._biases.get(node)
        array = array_of(value, most_bytes=1 << 62)
        if array is None:
            return None
        beta = node.attributes.get("beta") if is_onnx(node, "Gemm") else None
        factor = 1.0 if beta is None else beta.as_float()
        wide: Floats = np.broadcast_to(array.astype(np.float64).reshape(-1) * factor, (channels,))
        return wide

    def _repair(
        self,
        node: ir.Node,
        tensor: ir.TensorProtocol,
        scales: npt.NDArray[np.float32],
        means: Floats,
    ) -> Floats:
        """Return the bias that gives each channel back the mean that rounding took."""
        if node.op_type == "MatMul" and node not in self.placement.direct:
            # It has no bias; adding one costs a node that may not fuse.
            return np.zeros(1)
        axis = weight_axis(node)
        group = node.attributes.get("group")
        groups = 1 if group is None else group.as_int()
        shape = tensor.shape.numpy()
        if len(means) != shape[1 - axis] * groups:
            return np.zeros(1)
        return self._files.lost(tensor, scales, axis, means, 1 - axis, groups)

    def _stored_weight(
        self,
        weight: ir.Value,
        tensor: ir.TensorProtocol,
        axis: int,
        scales: npt.NDArray[np.float32],
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        stored, name = self._integers(weight, tensor, axis, scales), weight.name or "weight"
        shape = scales if len(scales) > 1 else scales.reshape(())
        scale = self._constant(f"{name}_scale", shape)
        zero = self._constant(f"{name}_zero_point", np.zeros(shape.shape, np.int8))
        return stored, scale, zero

    def _integers(
        self,
        weight: ir.Value,
        tensor: ir.TensorProtocol,
        axis: int,
        scales: npt.NDArray[np.float32],
    ) -> ir.Value:
        """Return the initializer that holds ``weight`` as integers; equal ones are one."""
        key = (weight, axis, scales.tobytes())
        if key not in self._weights:
            name = f"{weight.name or 'weight'}_quantized"
            integers = self._files.integers(tensor, scales, axis)
            self._weights[key] = self.edit.constant(name, integers)
            self._in_store.setdefault(weight, (axis, scales))
        return self._weights[key]

    def _dequantized(
        self,
        node: ir.Node,
        constants: tuple[ir.Value, ir.Value, ir.Value],
        axis: int | None,
        old: ir.Value,
    ) -> ir.Value:
        back = self._node("DequantizeLinear", list(constants), f"{old.name}_dequantized", [node])
        if axis is not None:
            back.attributes["axis"] = ir.AttrInt64("axis", axis)
        result = back.outputs[0]
        result.type, result.shape = ir.TensorType(ir.DataType.FLOAT), old.shape
        _insert_before(node, back)
        return result

    def _set_bias(
        self,
        node: ir.Node,
        bias: Floats,
        channels: int,
        integers: tuple[float, npt.NDArray[np.float32]] | None,
    ) -> None:
        """Give ``node`` a bias; as 32-bit integers where the scales of its factors are given."""
        old = node.inputs[2] if len(node.inputs) > 2 else None
        wide = np.broadcast_to(np.asarray(bias, np.float64), (channels,))
        if old is None and not wide.any():
            return
        if old is None:
            node.resize_inputs(3)
        name = f"{node.outputs[0].name}_bias" if old is None else old.name or "bias"
        if integers is not None:
            stored, scale = integer_bias(wide, *integers)
            constants = (
                self.edit.constant(f"{name}_quantized", ir.Tensor(stored)),
                self._constant(f"{name}_scale", scale),
                self._constant(f"{name}_zero_point", np.zeros(channels, np.int32)),
            )
            shaped = ir.Value(name=name, shape=ir.Shape([channels]))
            node.replace_input_with(2, self._dequantized(node, constants, 0, shaped))
        else:
            tensor = ir.Tensor(wide.astype(np.float32))
            node.replace_input_with(2, self.edit.constant(f"{name}_repaired", tensor))
        node.attributes.pop("beta", None)
        if old is not None:
            self._old[old] = None

    def delay_products(self) -> None:
        """Compute float results of products right before what computes with them.

        Until then their input is alive in a quarter of the bytes for each element.
        """
        for node in reversed(self._products):
            weight = constant_of(node.inputs[1])
            assert weight is not None, "the integers were stored"
            rows, columns = weight.shape.numpy()
            chain, user = [node], sole_user(node.outputs[0])
            graph = node.graph
            assert graph is not None, "the node is in a graph"
            while user is not None and user.graph is graph and is_onnx(user, *_FLOAT_MOVES):
                chain.append(user)
                user = sole_user(user.outputs[0])
            if user is not None and user.graph is graph and rows <= 4 * columns:
                graph.remove(chain)
                _insert_before(user, *chain)

    def _drop_conversion(self, back: ir.Node) -> None:
        """Remove a ``DequantizeLinear``; the value that gave it its name gets it back."""
        name, quantizer = back.outputs[0].name or "value", back.inputs[0]
        value = None if quantizer is None else quantizer.producer()
        source = None if value is None else value.inputs[0]
        # What reads it in a branch has another name.
        named = source is not None and source.graph is back.graph
        self.edit.drop(back)
        if named and source in self.placement.after:
            self.edit.names.release_value(source.name or "")
            source.name = self.edit.names.fresh_value(name)

    def drop_unread(self) -> None:
        """Remove the conversions and the float constants that nobody reads any more."""
        for node in self._back:
            if not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
                self._drop_conversion(node)
        for value in self._old:
            if value.is_initializer() and not value.uses() and not value.is_graph_output():
                assert value.name is not None, "initializers have names"
                assert value.graph is not None, "an initializer is in a graph"
                del value.graph.initializers[value.name]
                self.edit.names.release_value(value.name)
