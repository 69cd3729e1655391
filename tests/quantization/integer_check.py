"""What a file for an integer device must be, read from the file alone: no code of the compiler."""

from collections import defaultdict
from typing import Any

import numpy as np
import onnx

_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
# Numbers that a kernel is made with, by operator: inputs that are no tensors of the network.
_PARAMETERS = {"Clip": (1, 2), "Pad": (2,), "Resize": (1, 2)}
_SAME_SCALE = {
    "AveragePool", "Clip", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GlobalMaxPool",
    "Identity", "Max", "MaxPool", "Min", "Pad", "ReduceMax", "ReduceMin", "Reshape", "Resize",
    "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip


class File:
    """A model with who makes and who reads each value."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
        self.graph = graph
        self.constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        infos = [*graph.input, *graph.output, *graph.value_info]
        self.types = {info.name: info.type.tensor_type.elem_type for info in infos}
        self.types |= {t.name: t.data_type for t in graph.initializer}
        self.maker = {value: node for node in graph.node for value in node.output}
        self.readers: dict[str, list[Any]] = defaultdict(list)
        for node in graph.node:
            for value in node.input:
                self.readers[value].append(node)
        self.outputs = {info.name for info in graph.output}

    def is_float(self, value: str) -> bool:
        """Return whether ``value`` is a float; a value without a type is a fault of the file."""
        return bool(value) and self.types[value] in _FLOATS

    def scale_of(self, conversion: Any) -> tuple[float, int]:
        scale, zero = (self.constants[name] for name in conversion.input[1:3])
        return float(scale), int(zero)


def float_faults(model: onnx.ModelProto) -> list[str]:
    """Return every place where a float of ``model`` is not between its integers."""
    file = File(model)
    faults = []
    for node in file.graph.node:
        if node.op_type in _CONVERSIONS:
            continue
        parameters = _PARAMETERS.get(node.op_type, ())
        for index, value in enumerate(node.input):
            if not file.is_float(value) or (index in parameters and value in file.constants):
                continue
            made = file.maker.get(value)
            if made is None or made.op_type != "DequantizeLinear":
                faults.append(f"{node.op_type} '{node.name}' reads the float '{value}'")
        for value in node.output:
            if not file.is_float(value):
                continue
            readers = [reader.op_type for reader in file.readers[value]]
            if readers != ["QuantizeLinear"] or value in file.outputs:
                faults.append(
                    f"{node.op_type} '{node.name}' gives the float '{value}' to {readers}"
                )
    for info in file.graph.input:
        readers = [reader.op_type for reader in file.readers[info.name]]
        if file.is_float(info.name) and set(readers) != {"QuantizeLinear"}:
            faults.append(f"the float input '{info.name}' is read by {readers}")
    floats = [info.name for info in file.graph.output if file.is_float(info.name)]
    bad = [name for name in floats if file.maker[name].op_type != "DequantizeLinear"]
    return faults + [f"the float output '{name}' is not dequantized" for name in bad]


def scale_faults(model: onnx.ModelProto) -> list[str]:
    """Return what breaks the rules on scales: of moves, of fixed ranges, of weights and biases."""
    file = File(model)
    faults = []
    for node in file.graph.node:
        if node.op_type in _CONVERSIONS:
            continue
        back = [file.maker.get(value) for value in node.input]
        scales = [file.scale_of(n) for n in back if n is not None and _has_one_scale(file, n)]
        onward = [file.readers[value][0] for value in node.output if file.is_float(value)]
        if node.op_type in _SAME_SCALE:
            scales += [file.scale_of(n) for n in onward if n.op_type == "QuantizeLinear"]
            if len(set(scales)) > 1:
                faults.append(f"{node.op_type} '{node.name}' has scales {sorted(set(scales))}")
        if node.op_type in ("Softmax", "Sigmoid", "HardSigmoid", "Tanh"):
            wanted = 1 / 128 if node.op_type == "Tanh" else 1 / 256
            faults += [f"'{node.name}'" for n in onward if file.scale_of(n)[0] != wanted]
        if node.op_type in ("Conv", "ConvTranspose", "Gemm") and len(node.input) > 2:
            faults += _bias_faults(file, node)
    return faults


def _has_one_scale(file: File, node: Any) -> bool:
    return node.op_type == "DequantizeLinear" and file.constants[node.input[1]].size == 1


def _bias_faults(file: File, node: Any) -> list[str]:
    source, weight, bias = (file.maker[value] for value in node.input[:3])
    if file.types[bias.input[0]] != onnx.TensorProto.INT32:
        return [f"the bias of '{node.name}' is no int32"]
    wanted = file.constants[source.input[1]] * file.constants[weight.input[1]]
    same = np.allclose(file.constants[bias.input[1]], wanted, rtol=1e-6)
    return [] if same else [f"the bias of '{node.name}' has another scale than the products"]
