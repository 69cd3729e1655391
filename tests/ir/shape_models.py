"""Small models for shape tests, and what onnxruntime makes of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import helper, numpy_helper

from graphopt.ir.dims import Bounds, Dim, evaluate
from graphopt.ir.program import Program, dims_of, graphs_of
from graphopt.ir.shapes import ShapeReport, infer_shapes

Array = npt.NDArray[Any]
HEAD = '<ir_version: 10, opset_import: ["" : {opset}]>\n'


def program(text: str, opset: int = 18, **constants: Array) -> Program:
    """Return the program of a graph in ONNX text; inputs that ``constants`` names are constant."""
    model = ir.from_onnx_text(
        text if text.lstrip().startswith("<") else HEAD.format(opset=opset) + text
    )
    for value in list(model.graph.inputs):
        array = constants.pop(value.name or "", None)
        if array is not None:
            assert value.dtype is not None
            value.const_value = ir.Tensor(array, dtype=value.dtype, name=value.name)
            model.graph.inputs.remove(value)
            model.graph.register_initializer(value)
    assert not constants
    return Program(model)


def values_of(subject: Program) -> dict[str, ir.Value]:
    """Return all named values by name."""
    found: dict[str, ir.Value] = {}
    for graph in graphs_of(subject.graph):
        for value in (*graph.inputs, *graph.initializers.values()):
            found[value.name or ""] = value
        for node in graph:
            for value in node.outputs:
                found[value.name or ""] = value
    return found


def shape_text(subject: Program, name: str) -> str:
    """Return dtype and dims of a value, as ``FLOAT[batch, 3]``."""
    value = values_of(subject)[name]
    dims = dims_of(value)
    assert dims is not None, f"{name} has no shape"
    assert value.dtype is not None
    return f"{value.dtype.name}[{', '.join(str(d) for d in dims)}]"


def inferred(
    text: str, opset: int = 18, bounds: Mapping[str, Bounds] | None = None, **constants: Array
) -> tuple[Program, ShapeReport]:
    """Return a program after inference, and the report."""
    subject = program(text, opset, **constants)
    subject.bounds.update(bounds or {})
    return subject, infer_shapes(subject)


def shapes(text: str, opset: int = 18, **constants: Array) -> dict[str, str]:
    """Return dtype and dims of all outputs of a graph that resolves completely."""
    subject, report = inferred(text, opset, None, **constants)
    assert report.unresolved == {}
    return {v.name or "": shape_text(subject, v.name or "") for v in subject.graph.outputs}


def node_model(
    op_type: str,
    inputs: Sequence[Array | None],
    opset: int,
    /,
    *,
    runtime: int = 1,
    outputs: int = 1,
    domain: str = "",
    **attributes: Any,
) -> onnx.ModelProto:
    """Return a model of one node.

    Args:
        op_type: The operator.
        inputs: Its inputs; None is left out.
        opset: Version of the default operator set.
        runtime: How many of the inputs are graph inputs; the others are initializers.
        outputs: How many outputs the node has.
        domain: Domain of the operator.
        **attributes: Attributes of the node.
    """
    names = ["" if a is None else f"x{i}" for i, a in enumerate(inputs)]
    results = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op_type, names, results, name="node", domain=domain, **attributes)
    graph = helper.make_graph(
        [node],
        "graph",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in zip(names[:runtime], inputs[:runtime], strict=True)
            if a is not None
        ],
        [onnx.ValueInfoProto(name=r) for r in results],
        [
            numpy_helper.from_array(a, n)
            for n, a in zip(names[runtime:], inputs[runtime:], strict=True)
            if a is not None
        ],
    )
    opsets = [helper.make_opsetid("", opset)]
    opsets += [helper.make_opsetid(domain, 1)] if domain else []
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def make_symbolic(model: onnx.ModelProto) -> dict[str, int]:
    """Replace every size of every input by a symbol of its own; return the bindings."""
    bindings: dict[str, int] = {}
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_value"):
                name = f"s{len(bindings)}"
                bindings[name] = dim.dim_value
                dim.dim_param = name
    return bindings


def run(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Return what onnxruntime computes, without its optimizer."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def run_all_values(path: Path, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Return every value of the main graph as onnxruntime computes it."""
    model = onnx.load(path)
    present = {o.name for o in model.graph.output}
    for node in model.graph.node:
        for name in node.output:
            if name and name not in present:
                model.graph.output.append(onnx.ValueInfoProto(name=name))
    return run(model, feeds)


def bound(dims: Sequence[Dim], bindings: Mapping[str, int]) -> tuple[int, ...]:
    """Return ``dims`` at ``bindings``."""
    return tuple(evaluate(d, bindings) for d in dims)


def zeros(*dims: int, dtype: Any = np.float32) -> Array:
    """Return an array of zeros."""
    return np.zeros(dims, dtype)


def ints(*numbers: int) -> Array:
    """Return a vector of int64."""
    return np.array(numbers, np.int64)
