"""Shape inference as passes use it: with an exact count of the values that it changed."""

from collections.abc import Hashable, Iterator

import onnx_ir as ir

from graphopt.ir.program import graphs_of
from graphopt.ir.rewrite import program_of
from graphopt.ir.shapes import ShapeReport, infer_shapes


def infer_counted(model: ir.Model) -> tuple[ShapeReport, int]:
    """Infer the shapes of ``model``; return the report and how many values changed.

    Raises:
        InvalidModelError: the shapes at some node are impossible.
    """
    before = {value: _form(value) for value in _values(model)}
    report = infer_shapes(program_of(model))
    changed = sum(before.get(value) != _form(value) for value in _values(model))
    return report, changed


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in graphs_of(model.graph):
        yield from graph.inputs
        yield from graph.initializers.values()
        for node in graph:
            yield from node.outputs


def _form(value: ir.Value) -> Hashable:
    shape = value.shape
    dims = None
    if shape is not None:
        dims = tuple(d if isinstance(d, int) else d.value for d in shape.dims)
    return value.type, dims
