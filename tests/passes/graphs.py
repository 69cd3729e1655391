"""Small graphs for pass tests: from text, to text, random inputs for them, and running them."""

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort

from graphopt.ir.program import dims_of, graphs_of

HEAD = '<ir_version: 10, opset_import: ["" : 18]>\n'
Arrays = dict[str, npt.NDArray[Any]]


def graph(text: str, **constants: npt.NDArray[Any]) -> ir.Model:
    """Return the model of a graph in ONNX text; nodes without a name get one.

    Inputs that ``constants`` names become initializers.
    """
    model = ir.from_onnx_text(text if text.lstrip().startswith("<") else HEAD + text)
    number = 0
    for inner in graphs_of(model.graph):
        for node in inner:
            if not node.name:
                number += 1
                node.name = f"{node.op_type}_{number}"
    for value in list(model.graph.inputs):
        if value.name in constants:
            array = constants[value.name]
            assert value.dtype is not None
            value.const_value = ir.Tensor(array, dtype=value.dtype, name=value.name)
            model.graph.inputs.remove(value)
            model.graph.register_initializer(value)
    return model


def text_of(model: ir.Model) -> str:
    """Return ``model`` as ONNX text, without the repeated types of initializers."""
    proto = ir.to_proto(model)
    pending = [proto.graph]
    while pending:
        current = pending.pop()
        constants = {tensor.name for tensor in current.initializer}
        kept = [info for info in current.value_info if info.name not in constants]
        del current.value_info[:]
        current.value_info.extend(kept)
        for node in current.node:
            pending += [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    lines = onnx.printer.to_text(proto).strip().splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"


def ops_of(model: ir.Model) -> list[str]:
    """Return the operators of all graphs in order."""
    return [node.op_type for inner in graphs_of(model.graph) for node in inner]


def random_inputs(model: ir.Model, sizes: Mapping[str, int] | None = None, seed: int = 0) -> Arrays:
    """Return an input for ``model`` with negative numbers, both zeros, and a few large ones."""
    rng = np.random.default_rng(seed)
    feeds: Arrays = {}
    for value in model.graph.inputs:
        dims = dims_of(value)
        assert dims is not None, f"input {value.name} has no shape"
        assert value.dtype is not None, f"input {value.name} has no type"
        shape = tuple(d if isinstance(d, int) else (sizes or {}).get(str(d), 3) for d in dims)
        dtype = value.dtype.numpy()
        if dtype == np.bool_:
            array = rng.integers(0, 2, shape).astype(bool)
        elif dtype.kind in "iu":
            array = rng.integers(0, 3, shape).astype(dtype)
        else:
            array = rng.standard_normal(shape)
            flat = array.reshape(-1)
            for place, number in enumerate((0.0, -0.0, 6e4, -6e4, 1e-7)[: flat.size // 4]):
                flat[place * 2] = number
            array = array.astype(dtype)
        feeds[value.name or ""] = array
    return feeds


def run(model: ir.Model, feeds: Arrays) -> list[npt.NDArray[Any]]:
    """Return the outputs of ``model`` on onnxruntime without any optimization."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    proto = ir.to_proto(model)
    for tensor in proto.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            weight = model.graph.initializers[tensor.name].const_value
            assert weight is not None
            tensor.CopyFrom(onnx.numpy_helper.from_array(weight.numpy(), tensor.name))
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    outputs: list[npt.NDArray[Any]] = session.run(None, feeds)
    return outputs


def assert_equal(
    got: list[npt.NDArray[Any]],
    wanted: list[npt.NDArray[Any]],
    *,
    exact: bool,
    rtol: float = 1e-5,
) -> None:
    """Assert equal outputs: bit by bit, or within ``rtol`` of the largest magnitude."""
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        if exact or (a.dtype.kind not in "f" and a.dtype != ml_dtypes.bfloat16):
            assert a.tobytes() == b.tobytes()
        else:
            scale = float(np.abs(b.astype(np.float64)).max(initial=0.0))
            np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * scale)
