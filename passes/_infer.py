"""Shape inference as passes use it: with an exact count of the values that it changed."""

from collections.abc import Iterator

import onnx_ir as ir

from graphopt.ir.program import graphs_of
from graphopt.ir.rewrite import program_of
from graphopt.ir.shapes import ShapeReport, infer_shapes


def infer_counted(model: ir.Model) -> tuple[ShapeReport, int]:
    """Infer the shapes of ``model``; return the report and how many values changed.

    Raises:
        InvalidModelError: the shapes at some node are impossible.
    """
    # Inference gives values new types and shapes and leaves the old ones as they are.
    before = {value: (value.type, value.shape) for value in _values(model)}
    report = infer_shapes(program_of(model))
    changed = sum(before.get(value) != (value.type, value.shape) for value in _values(model))
    return report, changed


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in graphs_of(model.graph):
        yield from graph.inputs
        yield from graph.initializers.values()
        for node in graph:
            yield from node.outputs
