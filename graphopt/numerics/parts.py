"""Values that an output joins: each of them is measured on its own.

Boxes in pixels and scores between 0 and 1 in one output, or a new row behind the copied rows of a
cache: decibels of the whole say nothing about the smaller of them. So an output is followed back
through operators that only move elements, or change each where it is, to what they join.

What is carried to the next run, an output that a rewritten input is part of, is held to
``CARRIED_DB`` more than other outputs: ten later runs that read its noise add up to that. On a
decode step with a key/value cache 28 dB cost 4 % of perplexity, 38 dB 2 % (int8_trained.py of the
benchmarks).

In: a float program and samples. Out: for each element of such an output the number of the value
that it comes from. They are found by running the model with outputs that are joined not from the
values but from their numbers, so shapes that only a run knows need no rule of their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.backends.emit_onnx import emit_for_child
from graphopt.ir.op_facts import is_elementwise
from graphopt.ir.program import Program, dims_of, is_onnx
from graphopt.isolation import Worker
from graphopt.numerics.feeds import Feed
from graphopt.temporary import TemporaryFolder

CARRIED_DB = 10.0
# Each element of the outputs is an element of input 0.
_MOVERS = (
    "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile",
    "Transpose", "Unsqueeze",
)  # fmt: skip
# Of any input; of input 0 and of the updates.
_JOINS = ("Concat", "ScatterElements", "ScatterND", "TensorScatter")
# Elements stay where they are.
_NORMALIZATIONS = ("LogSoftmax", "Softmax")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class Parts:
    """What the outputs of a model join.

    Attributes:
        names: Output -> the values it joins.
        carried: Outputs that are carried to the next run.
        labels: For each sample: output -> for each element, the index of its value in ``names``.
    """

    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    labels: Sequence[Mapping[str, npt.NDArray[np.uint32]]] = ()
    carried: frozenset[str] = frozenset()

    def above(self, output: str) -> float:
        """Return how many decibels ``output`` needs above the others."""
        return CARRIED_DB if output in self.carried else 0.0


NO_PARTS = Parts()


def parts_of(program: Program, feeds: Sequence[Feed], worker: Worker) -> Parts:
    """Return what the outputs of ``program`` join on ``feeds``.

    Raises:
        UnsupportedError: onnxruntime does not run the program.
    """
    carried = {result for _, result in program.states}
    joins = {value: _sources(value)[0] for value in program.graph.outputs}
    inputs = set(program.graph.inputs)
    carried |= {value.name or "" for value, some in joins.items() if not inputs.isdisjoint(some)}
    if not any(joins.values()):
        return Parts(carried=frozenset(carried))
    model = program.model.clone()
    names = _number(model.graph)
    copy = Program(model, dict(program.bounds), program.source)
    labels = []
    with TemporaryFolder("parts") as folder:
        path, *data = emit_for_child(copy, folder / "parts.onnx")
        for feed in feeds:
            found = worker.run_model(path, feed, optimize=False, data_files=data)
            labels.append({name: array.astype(np.uint32) for name, array in found.items()})
    return Parts(names, labels, frozenset(carried))


def _number(graph: ir.Graph) -> dict[str, tuple[str, ...]]:
    """Let ``graph`` have only outputs that join values, joined from the numbers of the values."""
    names: dict[str, tuple[str, ...]] = {}
    outputs = list(graph.outputs)
    graph.outputs.clear()
    for output in outputs:
        sources, between = _sources(output)
        if sources:
            numbers = [_numbered(graph, value, index) for index, value in enumerate(sources)]
            result = _copied(graph, output, between, dict(zip(sources, numbers, strict=True)))
            names[output.name or ""] = tuple(value.name or "" for value in sources)
            output.name, result.name = f"{output.name}_before_parts", output.name
            graph.outputs.append(result)
    return names


def _numbered(graph: ir.Graph, value: ir.Value, number: int) -> ir.Value:
    """Return a new value of the shape of ``value``, filled with ``number``."""
    assert value.dtype is not None, "only values of known type are sources"
    shape = ir.node("Shape", [value])
    fill = ir.tensor(np.array([number], value.dtype.numpy()))
    filled = ir.node("ConstantOfShape", [shape.outputs[0]], {"value": fill})
    graph.extend((shape, filled))
    filled.outputs[0].dtype = value.dtype
    return filled.outputs[0]


def _copied(
    graph: ir.Graph,
    output: ir.Value,
    between: Sequence[ir.Node],
    known: dict[ir.Value, ir.Value],
) -> ir.Value:
    """Return ``output`` as the nodes ``between``, copied, make it from the ``known`` values."""
    for node in between:
        inputs = [known.get(v, v) if v is not None else None for v in node.inputs]
        if node.op_type in (*_MOVERS, *_JOINS):
            copy = ir.Node(
                node.domain, node.op_type, inputs, node.attributes.values(),
                num_outputs=len(node.outputs),
            )  # fmt: skip
        else:
            copy = ir.node("Identity", [known[_data_inputs(node)[0]]])
        graph.append(copy)
        for before, after in zip(node.outputs, copy.outputs, strict=True):
            after.type, after.shape = before.type, before.shape
            known[before] = after
    return known[output]


def _sources(output: ir.Value) -> tuple[list[ir.Value], list[ir.Node]]:
    """Return the values that ``output`` joins, none for less than two; and the nodes between.

    A node stands before all that read it.
    """
    sources: dict[ir.Value, None] = {}
    order: list[ir.Node] = []
    joins = False
    seen: set[ir.Node] = set()
    todo: list[tuple[ir.Value, bool]] = [(output, False)]
    while todo:
        value, done = todo.pop()
        node = value.producer()
        inputs = [] if node is None else _data_inputs(node)
        if value.dtype not in _FLOATS:
            return [], []
        if node is None or not inputs:
            sources[value] = None
        elif done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            joins = joins or len(inputs) > 1
            todo.append((value, True))
            todo.extend((one, False) for one in reversed(inputs))
    return (list(sources), order) if joins and len(sources) > 1 else ([], [])


def _data_inputs(node: ir.Node) -> list[ir.Value]:
    """Return the inputs whose elements are found, in place or moved, in the outputs of ``node``."""
    if is_onnx(node, *_JOINS):
        joined = [value for value in node.inputs if value is not None]
        if node.attributes.get_string("reduction", "none") != "none":
            return []
        if node.op_type == "Concat":
            return joined
        return [joined[0], joined[1 if node.op_type == "TensorScatter" else 2]]
    first = node.inputs[0] if node.inputs else None
    if first is None:
        return []
    if is_onnx(node, *_MOVERS, *_NORMALIZATIONS):
        return [first]
    if not is_elementwise(node):
        return []
    data = [v for v in node.inputs if v is not None and v.const_value is None]
    if len(data) != 1 or data[0].dtype != node.outputs[0].dtype:
        return []
    before, after = dims_of(data[0]), dims_of(node.outputs[0])
    return data if before is not None and before == after else []
