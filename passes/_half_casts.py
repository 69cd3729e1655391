"""Write a decision about half precision into a model: types, constants, casts at the borders.

Every reader gets the type it wants. A constant is stored in each type that is read; another value
gets one ``Cast`` for all its readers of the other type, before the first of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from graphopt.ir.constants import constant_of
from graphopt.ir.half_facts import FLOAT, is_float, reads_any_type
from graphopt.ir.program import graphs_of, is_onnx, tag
from graphopt.passes._edit import Edit
from graphopt.passes._half import Decision
from graphopt.quantization.half_precision import HalfFacts, half_tensor

Uses = list[tuple[ir.Node, int]]


@dataclass
class _Readers:
    """Who reads a value, by the type that is wanted: inputs of nodes, outputs of its graph."""

    half: Uses = field(default_factory=list)
    floats: Uses = field(default_factory=list)
    any: Uses = field(default_factory=list)
    half_output: bool = False
    float_output: bool = False

    @property
    def want_half(self) -> bool:
        return bool(self.half) or self.half_output

    @property
    def want_float(self) -> bool:
        return bool(self.floats) or self.float_output


class Writer:
    """Carries out one decision.

    Args:
        edit: The edits of the pass.
        decision: Which nodes are half.
        facts: Counts what is done.
        keep_io: Whether inputs and outputs of the main graph stay float32.
    """

    def __init__(self, edit: Edit, decision: Decision, facts: HalfFacts, *, keep_io: bool) -> None:
        self.edit, self.decision, self.facts, self.keep_io = edit, decision, facts, keep_io
        self.dtype = decision.dtype
        self.graphs = list(graphs_of(edit.model.graph))
        self._order = {node: i for graph in self.graphs for i, node in enumerate(graph)}
        self._places = {value: i for g in self.graphs for i, value in enumerate(g.outputs)}

    def run(self) -> None:
        """Convert every value; the graphs around a body come before it."""
        main = self.edit.model.graph
        if not self.keep_io:
            self.edit.rewrites += sum(is_float(v) for v in (*main.inputs, *main.outputs))
        for graph in self.graphs:
            nodes = list(graph)
            values = [*graph.inputs, *graph.initializers.values()]
            for value in dict.fromkeys((*values, *(v for node in nodes for v in node.outputs))):
                if is_float(value):
                    self._value(graph, value)
            for node in nodes:
                if node in self.decision.half:
                    self._attributes(node)
        for graph in self.graphs:
            for node in list(graph):
                self._drop_empty_cast(node)
        self.facts.nodes += [node.name or "" for node in self.decision.half]
        self.edit.rewrites += len(self.decision.half)

    def _readers(self, graph: ir.Graph, value: ir.Value) -> _Readers:
        found = _Readers()
        for user, index in value.uses():
            if reads_any_type(user):
                found.any.append((user, index))
            elif self.decision.takes_half(user, index):
                found.half.append((user, index))
            else:
                found.floats.append((user, index))
        if value.is_graph_output():
            found.half_output = self._border_is_half(graph)
            found.float_output = not found.half_output
        return found

    def _border_is_half(self, graph: ir.Graph) -> bool:
        """Return whether the floats that ``graph`` takes and gives are halves."""
        holder = self.decision.holders.get(graph)
        return not self.keep_io if holder is None else holder in self.decision.half

    def _value(self, graph: ir.Graph, value: ir.Value) -> None:
        readers = self._readers(graph, value)
        producer = value.producer()
        if value.is_graph_input():
            self._made(value, readers, half=self._border_is_half(graph))
        elif constant_of(value) is not None:
            self._constant(graph, value, readers)
        elif producer is not None and is_onnx(producer, "Cast"):
            self._cast_result(value, producer, readers)
        else:
            self._made(value, readers, half=self.decision.is_made_half(value))

    def _made(self, value: ir.Value, readers: _Readers, *, half: bool) -> None:
        """Type what a node or a caller makes; who wants the other type reads a ``Cast``."""
        if half:
            value.type = ir.TensorType(self.dtype)
            if value.const_value is not None:
                value.const_value = self._half(value, value.const_value)
            if readers.want_float:
                self._cast(value, value, FLOAT, readers.floats, output=readers.float_output)
        elif readers.want_half:
            self._cast(value, value, self.dtype, readers.half, output=readers.half_output)

    def _half(self, value: ir.Value, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        """Return the constant ``tensor`` in half precision."""
        scan = self.facts.scan(tensor)
        mask = value in self.decision.masks
        if self.dtype is ir.DataType.FLOAT16:
            self.facts.vanished += scan.vanishing
            self.facts.masks += not scan.fits(self.dtype)
        return half_tensor(tensor, self.dtype, mask=mask)

    def _constant(self, graph: ir.Graph, value: ir.Value, readers: _Readers) -> None:
        tensor, name = constant_of(value), value.name or "constant"
        if tensor is None or not readers.want_half:
            return
        if value.is_initializer() and not readers.want_float and not readers.any:
            value.const_value = self._half(value, tensor)
            value.const_value.name = name
            value.type = ir.TensorType(self.dtype)
            return
        stored = self.edit.constant(f"{name}_half", self._half(value, tensor))
        for user, index in readers.half:
            user.replace_input_with(index, stored)
        if readers.half_output:
            # A graph returns what a node of it makes.
            copy = self._node("Identity", stored, self.dtype, value, [], output=True)
            graph.append(copy)
            self._take_output(value, copy.outputs[0])
        producer = value.producer()
        if producer is not None and not value.uses() and not value.is_graph_output():
            self.edit.drop(producer)

    def _cast_result(self, value: ir.Value, cast: ir.Node, readers: _Readers) -> None:
        """Let a ``Cast`` of the model make what its readers want: never two in a row."""
        source = cast.inputs[0]
        if source is None or not readers.want_half:
            return
        if source.dtype is self.dtype:
            for user, index in readers.half:
                user.replace_input_with(index, source)
            readers.half = []
            if not value.uses() and not value.is_graph_output():
                self.edit.drop(cast)
        if not readers.want_half:
            return
        if readers.want_float or readers.any:
            self._cast(value, source, self.dtype, readers.half, output=readers.half_output)
            return
        cast.attributes["to"] = ir.AttrInt64("to", int(self.dtype))
        value.type = ir.TensorType(self.dtype)
        tag(cast, self.edit.pass_name, [cast])

    def _cast(
        self, value: ir.Value, source: ir.Value, dtype: ir.DataType, uses: Uses, *, output: bool
    ) -> None:
        """Let ``uses`` and the outputs of the graph have ``source`` as ``dtype``, not ``value``."""
        producer = value.producer()
        first = None if output and producer is not None else self._first(value, uses)
        cast = self._node("Cast", source, dtype, value, [producer or first], output=output)
        cast.attributes["to"] = ir.AttrInt64("to", int(dtype))
        if first is None:
            assert producer is not None, "an output of a graph is made by a node"
            assert producer.graph is not None, "the node is in a graph"
            producer.graph.insert_after(producer, cast)
        else:
            assert first.graph is not None, "the node is in a graph"
            first.graph.insert_before(first, cast)
        if output:
            self._take_output(value, cast.outputs[0])
        for user, index in uses:
            user.replace_input_with(index, cast.outputs[0])
        self.facts.casts += 1

    def _first(self, value: ir.Value, uses: Uses) -> ir.Node:
        """Return the first node of its graph that reads ``value``, in its bodies or itself."""
        found: list[ir.Node] = []
        for user, _ in uses:
            node = user
            while node.graph is not value.graph:
                assert node.graph is not None, "the node is in a graph"
                node = self.decision.holders[node.graph]
            found.append(node)
        return min(found, key=lambda node: self._order[node])

    def _node(
        self,
        op_type: str,
        source: ir.Value,
        dtype: ir.DataType,
        like: ir.Value,
        origin: Sequence[ir.Node | None],
        *,
        output: bool,
    ) -> ir.Node:
        made, other = ("float", "half") if dtype is FLOAT else ("half", "float")
        name = self.edit.names.fresh_node(f"{like.name}_to_{made}")
        node = ir.Node("", op_type, [source], num_outputs=1, name=name)
        result = node.outputs[0]
        # Among the outputs the new value takes over the name, and the old one gets this.
        result.name = self.edit.names.fresh_value(f"{like.name}_{other if output else made}")
        result.type, result.shape = ir.TensorType(dtype), like.shape
        return tag(node, self.edit.pass_name, [n for n in origin if n is not None] or [node])

    def _take_output(self, old: ir.Value, new: ir.Value) -> None:
        """Put ``new`` in the place of ``old`` among the outputs, and swap their names."""
        graph = old.graph
        assert graph is not None, "a graph output has a graph"
        graph.outputs[self._places[old]] = new
        name, free = old.name, new.name
        old.name = new.name = None
        old.name, new.name = free, name

    def _attributes(self, node: ir.Node) -> None:
        """Convert what ``ConstantOfShape`` fills with; without an attribute it is a float zero."""
        if not is_onnx(node, "ConstantOfShape"):
            return
        attribute = node.attributes.get("value")
        zero = ir.tensor([0.0], dtype=FLOAT)
        tensor = zero if attribute is None else attribute.as_tensor()
        node.attributes["value"] = ir.AttrTensor("value", self._half(node.outputs[0], tensor))
        tag(node, self.edit.pass_name, [node])

    def _drop_empty_cast(self, node: ir.Node) -> None:
        """Drop a ``Cast`` of the model to the type that its input has now."""
        source = node.inputs[0] if is_onnx(node, "Cast") else None
        if source is None or source.dtype is not self.dtype:
            return
        if node.attributes["to"].as_int() != int(self.dtype):
            return
        if self.edit.redirect(node.outputs[0], source):
            self.edit.drop(node)
            self.edit.rewrites += 1
