"""Dataflow of an ``onnx_ir`` graph.

In: a program whose values have shapes, and the sizes to plan at. Out: a ``Dataflow`` in the order
of the graph. Rules:

1. Initializers, those of nested bodies included, are WEIGHT values; they are resident.
2. A view (``op_facts.views``) shares the bytes of its source, unless that would make a graph
   output share bytes with an input, a weight or another output: an output has a buffer of its
   own, so there the step copies.
3. A piece of a contiguous whole (``part_facts``) is stated as a permission when its place does not
   depend on a size that is not fixed: everything before the axis is one element, and what lies
   before the piece is an exact number of bytes.
4. ``If``, ``Loop`` and ``Scan``: the arena that a body needs is scratch of the node. The body of an
   ``If`` writes its results straight into the outputs of the node; a loop also needs room for the
   carried values it reads and writes in one iteration.
5. What a kernel takes while it runs (``scratch_facts``) is scratch of its node, too.
6. A value without a known size is listed as not planned with its reason; its bytes are in no
   figure.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from graphopt.ir.op_facts import may_overwrite, views
from graphopt.ir.part_facts import Part, cuts, joins
from graphopt.ir.program import (
    IMPOSSIBLE_KEY,
    Program,
    bodies_of,
    graphs_of,
    is_onnx,
    outer_reads,
)
from graphopt.ir.scratch_facts import kernel_scratch
from graphopt.memory.dataflow import Dataflow, DataValue, NotPlanned, Role, Step
from graphopt.memory.sizes import Sizes, UnknownSizeError

ScratchPlanner = Callable[[Dataflow], int]


def dataflow_of(
    program: Program,
    sizes: Sizes,
    scratch_planner: ScratchPlanner,
    *,
    in_place_ops: Collection[str] | None = None,
) -> Dataflow:
    """Return the dataflow of the main graph.

    Args:
        program: The model; every value should have a shape.
        sizes: The sizes to plan at.
        scratch_planner: Returns the arena bytes that the dataflow of a body needs.
        in_place_ops: Operator types that may write over an input; None: all that the facts allow.
    """
    state_inputs = {name for name, _ in program.states}
    state_outputs = {name for _, name in program.states}
    builder = _Builder(sizes, scratch_planner, in_place_ops)
    for value in program.graph.inputs:
        builder.add(value, Role.STATE if value.name in state_inputs else Role.INPUT)
    for graph in graphs_of(program.graph):
        for value in graph.initializers.values():
            builder.add(value, Role.WEIGHT)
    outputs = {
        value: Role.STATE if value.name in state_outputs else Role.OUTPUT
        for value in program.graph.outputs
    }
    return builder.build(program.graph, outputs)


@dataclass
class _Builder:
    """Collects values and steps of one graph."""

    sizes: Sizes
    scratch_planner: ScratchPlanner
    in_place_ops: Collection[str] | None = None
    values: list[DataValue] = field(default_factory=list)
    index: dict[ir.Value, int] = field(default_factory=dict)
    not_planned: list[NotPlanned] = field(default_factory=list)
    # Per value: the first value of its view group, and whether that group may not hold an output.
    root: dict[int, int] = field(default_factory=dict)
    closed: set[int] = field(default_factory=set)

    def add(self, value: ir.Value, role: Role) -> int | None:
        """Register ``value``; None when its size is unknown."""
        if value in self.index:
            return self.index[value]
        producer = value.producer()
        maker = (producer.name or producer.op_type) if producer else ""
        try:
            size, shape = self.sizes.of(value)
        except UnknownSizeError as unknown:
            self.not_planned.append(NotPlanned(value.name or "", maker, str(unknown)))
            return None
        dtype = "" if value.dtype is None else value.dtype.name.lower()
        number = len(self.values)
        self.values.append(DataValue(value.name or "", size, role, dtype, shape, maker))
        self.index[value] = number
        self.root[number] = number
        if role is not Role.ACTIVATION:
            self.closed.add(number)
        return number

    def build(self, graph: ir.Graph, outputs: dict[ir.Value, Role]) -> Dataflow:
        """Return the dataflow of ``graph`` after its inputs and weights were added."""
        steps = [self._step(node, outputs) for node in graph]
        results = tuple(self.index[value] for value in outputs if value in self.index)
        return Dataflow(
            tuple(self.values),
            tuple(steps),
            tuple(dict.fromkeys(results)),
            tuple(self.not_planned),
            tuple(self.sizes.assumptions),
        )

    def _step(self, node: ir.Node, outputs: dict[ir.Value, Role]) -> Step:
        sources = [value for value in node.inputs if value is not None]
        sources += outer_reads(node)
        reads = tuple(dict.fromkeys(self.index[v] for v in sources if v in self.index))
        writes = []
        for value in node.outputs:
            if not value.name:  # an optional output that the node does not produce
                continue
            number = self.add(value, outputs.get(value, Role.ACTIVATION))
            if number is not None:
                writes.append(number)
        scratch, note = self._scratch(node)
        return Step(
            name=node.name or node.op_type,
            op=node.op_type if not node.domain else f"{node.domain}.{node.op_type}",
            reads=reads,
            writes=tuple(writes),
            view_of=tuple(self._views(node)),
            may_overwrite=tuple(self._pairs(node, self._in_place(node))),
            cuts=tuple(self._parts(node, cuts(node), of_input=True)),
            joins=tuple(self._parts(node, joins(node), of_input=False)),
            scratch_bytes=scratch,
            scratch_note=note,
        )

    def _in_place(self, node: ir.Node) -> tuple[tuple[int, int], ...]:
        allowed = self.in_place_ops is None or node.op_type in self.in_place_ops
        return may_overwrite(node) if allowed else ()

    def _pairs(
        self, node: ir.Node, pairs: tuple[tuple[int, int], ...]
    ) -> Iterator[tuple[int, int]]:
        for out, source in pairs:
            written, read = node.outputs[out], node.inputs[source]
            if read is not None and written in self.index and read in self.index:
                yield self.index[written], self.index[read]

    def _views(self, node: ir.Node) -> Iterator[tuple[int, int]]:
        for written, read in self._pairs(node, views(node)):
            if self.values[written].size_bytes != self.values[read].size_bytes:
                # Upper bounds of the two shapes may differ although the bytes are the same.
                continue
            root = self.root[read]
            is_result = self.values[written].role is not Role.ACTIVATION
            if is_result and root in self.closed:
                continue
            self.root[written] = root
            if is_result:
                self.closed.add(root)
            yield written, read

    def _parts(
        self, node: ir.Node, parts: tuple[Part, ...], *, of_input: bool
    ) -> Iterator[tuple[int, int, int]]:
        """Yield (written, read, offset) of the parts whose place does not depend on a size."""
        for part in parts:
            written, read = node.outputs[part.output], node.inputs[part.input]
            if read is None or written not in self.index or read not in self.index:
                continue
            whole, piece = (read, written) if of_input else (written, read)
            offset = self.sizes.part_offset(whole, part.axis, part.before)
            piece_bytes = self.values[self.index[piece]].size_bytes
            whole_bytes = self.values[self.index[whole]].size_bytes
            if offset is None or offset + piece_bytes > whole_bytes or not piece_bytes:
                continue
            yield self.index[written], self.index[read], offset

    def _scratch(self, node: ir.Node) -> tuple[int, str]:
        bodies = []
        for body in bodies_of(node):
            reason = body.meta.get(IMPOSSIBLE_KEY)
            if reason is None:
                bodies.append(body)
            else:
                self.sizes.assumptions.append(
                    f"a branch of '{node.name}' cannot run at these sizes and is left out: {reason}"
                )
        if not bodies:
            return kernel_scratch(node)
        arenas = [self._body_arena(node, body) for body in bodies]
        return max(arenas), f"largest of {len(bodies)} bodies" if len(bodies) > 1 else "body"

    def _body_arena(self, node: ir.Node, body: ir.Graph) -> int:
        inner = _Builder(self.sizes, self.scratch_planner, self.in_place_ops)
        for value in body.inputs:
            inner.add(value, Role.STATE)
        direct = is_onnx(node, "If")
        role = Role.OUTPUT if direct else Role.STATE
        outputs = {v: role for v in body.outputs if v.producer() in _owned(body)}
        flow = inner.build(body, outputs)
        self.not_planned.extend(flow.not_planned)
        return self.scratch_planner(flow)


def _owned(body: ir.Graph) -> set[ir.Node]:
    return set(body)
