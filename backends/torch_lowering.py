"""From a Program to torch: one function call per node, in the order of the program.

In: a program. Out: an ``fx.GraphModule`` whose parameters share memory with the weights of the
program. It runs as it is, and is what the TorchScript and ``.pt2`` backends trace. Nothing is
decided here: what graphopt has no torch function for is an error that names operator and node.

Weights in memory are shared; weights in a file are mapped where they lie in a data file, and read
where they lie inside the model file. Integers of at most 32 elements in one axis are numbers of the
graph, not parameters: torch wants sizes and axes as numbers.
"""

import keyword
import operator
import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, fx, nn

from graphopt.backends.torch_ops import control
from graphopt.backends.torch_ops.dtypes import BYTE_TYPES, TORCH_TYPES
from graphopt.backends.torch_ops.registry import Operator, find_operator
from graphopt.backends.torch_ops.small import small, tensor_of
from graphopt.errors import UnsupportedError
from graphopt.ir.constants import constant_of, tensor_of_constant
from graphopt.ir.program import (
    Program,
    bodies_of,
    dims_of,
    graphs_of,
    is_onnx,
    opset_of,
    outer_reads,
)

MOST_NUMBERS = 32
_CONTROL = ("If", "Loop", "Scan")
# Inputs that torch wants as numbers although they are floats: scales, bounds, fill values.
_NUMBER_INPUTS = {
    "Clip": (1, 2),
    "NonMaxSuppression": (3, 4),
    "Pad": (2,),
    "Range": (0, 1, 2),
    "Resize": (1, 2),
    "Upsample": (1,),
}
_CARRIER = {1: np.uint8, 2: np.uint16, 4: np.uint32}


def lower_to_torch(program: Program) -> fx.GraphModule:
    """Return the program as a torch module in eval mode.

    Its ``forward`` takes the inputs in order and returns a tuple of the outputs in order; their
    names are in the attributes ``graphopt_inputs`` and ``graphopt_outputs``. ``node.meta`` holds
    the names of node and value that a call came from.

    Raises:
        UnsupportedError: an operator, an attribute or a data type has no torch form.
    """
    lowering = _Lowering(program.graph, opset_of(program.model))
    module: Any = lowering.run()
    module.graphopt_inputs = tuple(v.name or "" for v in program.graph.inputs)
    module.graphopt_outputs = tuple(v.name or "" for v in program.graph.outputs)
    module.eval()
    return module  # type: ignore[no-any-return]  # an fx.GraphModule with two more attributes


class NamingInterpreter(fx.Interpreter):
    """Runs a lowered module node by node, so that an error names the ONNX node at fault."""

    def run_node(self, n: fx.Node) -> Any:
        """Run one node.

        Raises:
            UnsupportedError: the operator cannot compute this form; names the node.
        """
        try:
            return super().run_node(n)
        except UnsupportedError as error:
            if error.node is None and "onnx_node" in n.meta:
                raise UnsupportedError(
                    error.code,
                    f"operator {n.meta['onnx_op']} of node '{n.meta['onnx_node']}': "
                    f"{error.message}",
                    hint=error.hint or "save as .onnx",
                    node=n.meta["onnx_node"],
                ) from error
            raise


class _Lowering:
    """Lowers a graph with its bodies, innermost first, so that depth costs no stack."""

    def __init__(self, graph: ir.Graph, opset: int) -> None:
        self._graph = graph
        self._opset = opset
        self._weights: dict[ir.Value, str] = {}
        self._tensors: dict[int, str] = {}
        self._root = nn.Module()
        self._bodies: dict[ir.Graph, fx.GraphModule] = {}
        self._captures: dict[ir.Node, list[ir.Value]] = {}
        self._owners: dict[ir.Graph, ir.Node] = {}

    def run(self) -> fx.GraphModule:
        inner = [g for g in graphs_of(self._graph) if g is not self._graph]
        for graph in graphs_of(self._graph):
            for node in graph:
                for body in bodies_of(node):
                    self._owners[body] = node
                    self._captures[node] = self._captured(node)
        for body in reversed(inner):
            captures = self._captures[self._owners[body]]
            self._bodies[body] = _GraphLowering(self, body, captures).module(nn.Module())
        return _GraphLowering(self, self._graph, None).module(self._root)

    def _captured(self, node: ir.Node) -> list[ir.Value]:
        """Return what the bodies of ``node`` read from outside, and their own large weights."""
        found = dict.fromkeys(outer_reads(node))
        for body in bodies_of(node):
            for graph in graphs_of(body):
                found.update(dict.fromkeys(graph.initializers.values()))
                for inner in graph:
                    if is_onnx(inner, "Constant") and tensor_of_constant(inner) is not None:
                        found[inner.outputs[0]] = None
        return [value for value in found if not is_number(value)]

    @property
    def opset(self) -> int:
        return self._opset

    def body(self, graph: ir.Graph) -> fx.GraphModule:
        return self._bodies[graph]

    def captures(self, node: ir.Node) -> list[ir.Value]:
        return self._captures[node]

    def weight(self, value: ir.Value) -> str:
        """Return the name of the parameter that holds an initializer."""
        if value not in self._weights:
            tensor = constant_of(value)
            assert tensor is not None
            self._weights[value] = self.add_tensor(value.name or "weight", tensor)
        return self._weights[value]

    def add_tensor(self, name: str, tensor: ir.TensorProtocol) -> str:
        """Register a tensor on the module; return its valid, unique name."""
        return self.add_data(name, torch_tensor(tensor, name))

    def add_data(self, name: str, data: Tensor) -> str:
        """Register data on the module; return its valid, unique name."""
        stem = re.sub(r"\W", "_", name, flags=re.ASCII) or "weight"
        stem = stem if not stem[0].isdigit() else f"_{stem}"
        free, count = stem, 0
        while hasattr(self._root, free) or free in fx.graph._illegal_names:
            count += 1
            free = f"{stem}_{count}"
        if data.dtype.is_floating_point or data.dtype.is_complex:
            self._root.register_parameter(free, nn.Parameter(data, requires_grad=False))
        else:
            self._root.register_buffer(free, data)
        return free


def is_number(value: ir.Value) -> bool:
    """Return whether a constant is a number of the graph: a size, an axis, a bound."""
    tensor = constant_of(value)
    if tensor is None or len(tensor.shape) > 1 or tensor.size > MOST_NUMBERS:
        return False
    if tensor.dtype in (ir.DataType.INT64, ir.DataType.INT32):
        return True
    if tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        return False
    return any(use.idx in _NUMBER_INPUTS.get(use.node.op_type, ()) for use in value.uses())


def torch_tensor(tensor: ir.TensorProtocol, name: str) -> Tensor:
    """Return a torch tensor that shares the memory of ``tensor`` where that is in memory.

    Raises:
        UnsupportedError: torch has no such type.
    """
    number = int(tensor.dtype)
    if number not in TORCH_TYPES and number not in BYTE_TYPES:
        raise UnsupportedError(
            "torch-dtype-missing",
            f"torch has no tensors of type {tensor.dtype.name}, the type of '{name}'",
            hint="save as .onnx",
            node=name,
        )
    array = tensor.numpy()
    if number in BYTE_TYPES:
        # One element a byte, with the integer type that computes the same.
        wanted = np.int8 if BYTE_TYPES[number] is torch.int8 else np.uint8
        return torch.from_numpy(np.ascontiguousarray(array).astype(wanted))
    if not array.flags.c_contiguous or not array.dtype.isnative:
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    dtype = TORCH_TYPES[number]
    with warnings.catch_warnings():
        # Weights are read-only; nothing that graphopt emits writes them.
        warnings.filterwarnings("ignore", message=".*not writable.*")
        if array.dtype.kind not in "biufc" or array.dtype.num > 23:
            carrier = _CARRIER[array.dtype.itemsize]
            shape = array.shape
            return torch.from_numpy(array.reshape(-1).view(carrier)).view(dtype).reshape(shape)
        return torch.from_numpy(array)


class _GraphLowering:
    """Builds the fx graph of one ONNX graph."""

    def __init__(self, owner: _Lowering, graph: ir.Graph, captures: list[ir.Value] | None) -> None:
        self._owner = owner
        self._source = graph
        self._fx = fx.Graph()
        self._known: dict[ir.Value, Any] = {}
        self._is_body = captures is not None
        self._targets: dict[str, nn.Module] = {}
        self._arguments: set[str] = set()
        for value in graph.inputs:
            self._known[value] = self._argument(value)
        for value in captures or ():
            self._known[value] = self._argument(value)

    def _argument(self, value: ir.Value) -> fx.Node:
        """Add an argument; different names may become one identifier."""
        stem = _identifier(value.name or "input")
        name, count = stem, 0
        while name in self._arguments:
            count += 1
            name = f"{stem}_{count}"
        self._arguments.add(name)
        return self._fx.placeholder(name)

    def module(self, root: nn.Module) -> fx.GraphModule:
        for node in self._source:
            self._lower(node)
        outputs = tuple(
            self._fx.call_function(tensor_of, (self._value(v),)) for v in (self._source.outputs)
        )
        self._fx.output(outputs)
        for name, body in self._targets.items():
            root.add_module(name, body)
        return fx.GraphModule(root, self._fx, "Lowered")

    def _value(self, value: ir.Value | None) -> Any:
        if value is None or (not value.name and value.producer() is None):
            return None
        if value not in self._known:
            self._known[value] = self._constant(value)
        return self._known[value]

    def _constant(self, value: ir.Value) -> fx.Node:
        tensor = constant_of(value)
        if tensor is None:
            raise UnsupportedError(
                "torch-value-missing", f"value '{value.name}' has neither data nor a producer"
            )
        if is_number(value):
            return self._numbers(tensor)
        # A body takes its large weights as captures, so only the main graph comes here.
        return self._fx.get_attr(self._owner.weight(value))

    def _numbers(self, tensor: ir.TensorProtocol) -> fx.Node:
        items = tuple(tensor.numpy().reshape(-1).tolist())
        kind = TORCH_TYPES[int(tensor.dtype)]
        return self._fx.call_function(small, (items, kind, len(tensor.shape) == 0))

    def _lower(self, node: ir.Node) -> None:
        if is_onnx(node, "Constant") and tensor_of_constant(node) is not None:
            return  # made where it is read
        called = self._control(node) if is_onnx(node, *_CONTROL) else self._call(node)
        called.meta["onnx_node"] = node.name or ""
        called.meta["onnx_op"] = node.op_type

    def _call(self, node: ir.Node) -> fx.Node:
        found = find_operator(node.domain, node.op_type)
        if found is None:
            raise _missing(node, "has no torch form")
        inputs = list(node.inputs)
        while inputs and (inputs[-1] is None):
            inputs.pop()
        if found.most_inputs is not None and len(inputs) > found.most_inputs:
            raise _missing(node, f"has no torch form with {len(inputs)} inputs")
        attributes = self._attributes(node, found)
        if found.packed is not None:
            inputs = self._packed(node, found, inputs, attributes)
        called = self._fx.call_function(
            found.function, tuple(self._value(v) for v in inputs), attributes
        )
        if not found.several:
            self._name(called, node.outputs[0])
            self._known[node.outputs[0]] = called
            return called
        self._pick(called, node)
        return called

    def _packed(
        self,
        node: ir.Node,
        found: Operator,
        inputs: list[ir.Value | None],
        attributes: dict[str, Any],
    ) -> list[ir.Value | None]:
        """Give a recurrent layer its weights in the order of torch's kernel; return its inputs.

        Otherwise every call of the file would bring them into that order. Only where the kernel
        will run: under ``torch.export`` a time that is open takes the weights as they are.
        """
        source, dims = inputs[0], None if inputs[0] is None else dims_of(inputs[0])
        time = 1 if attributes.get("layout", 0) else 0
        others = [v for i, v in enumerate(inputs) if v is not None and i in (4, 7)]
        if source is None or not dims or not isinstance(dims[time], int) or others:
            return inputs
        values = [*inputs[1:4], *[None] * (4 - len(inputs))]
        tensors = [None if v is None else constant_of(v) for v in values]
        shared = any(v is not None and len(v.uses()) > 1 for v in values)
        absent = any(v is not None and t is None for v, t in zip(values, tensors, strict=True))
        if self._is_body or shared or absent or tensors[0] is None or tensors[1] is None:
            return inputs
        name = node.name or node.op_type
        weights = [None if t is None else torch_tensor(t, name) for t in tensors]
        packed = found.packed and found.packed(*weights, **attributes)
        if packed is None:
            return inputs
        names = [self._owner.add_data(f"{name}_{i}", data) for i, data in enumerate(packed)]
        attributes["parameters"] = [self._fx.get_attr(text) for text in names]
        return [source, None, None, None, *inputs[4:]]

    def _pick(self, called: fx.Node, node: ir.Node) -> None:
        for index, output in enumerate(node.outputs):
            if output.name:
                picked = self._fx.call_function(operator.getitem, (called, index))
                self._name(picked, output)
                self._known[output] = picked

    def _name(self, made: fx.Node, value: ir.Value) -> None:
        made.meta["onnx_value"] = value.name or ""
        made._rename(_identifier(value.name or "value"))

    def _attributes(self, node: ir.Node, found: Operator) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name, attribute in node.attributes.items():
            keyword = name if found.takes(name) else f"attribute_{name}"
            if not found.takes(keyword):
                raise _missing(node, f"has no torch form with attribute '{name}'")
            result[keyword] = self._attribute(node, attribute)
        if found.takes("opset", exact=True):
            result["opset"] = self._owner.opset if node.version is None else node.version
        if found.takes("count", exact=True):
            named = [i for i, v in enumerate(node.outputs) if v.name]
            result["count"] = 1 + max(named, default=0)
        for keyword, index in (("data_number", 0), ("like_number", 1), ("zero_number", 2)):
            # Types below one byte share a torch type with larger ones.
            if found.takes(keyword, exact=True) and len(node.inputs) > index:
                value = node.inputs[index]
                if value is not None and value.dtype is not None:
                    result[keyword] = int(value.dtype)
        return result

    def _attribute(self, node: ir.Node, attribute: ir.Attr) -> Any:
        match attribute.type:
            case ir.AttributeType.INT:
                return attribute.as_int()
            case ir.AttributeType.FLOAT:
                return attribute.as_float()
            case ir.AttributeType.STRING:
                return attribute.as_string()
            case ir.AttributeType.INTS:
                return list(attribute.as_ints())
            case ir.AttributeType.FLOATS:
                return list(attribute.as_floats())
            case ir.AttributeType.STRINGS:
                return list(attribute.as_strings())
            case ir.AttributeType.TENSOR:
                return self._attribute_tensor(node, attribute.as_tensor())
        raise _missing(node, f"has no torch form with attribute '{attribute.name}'")

    def _attribute_tensor(self, node: ir.Node, tensor: ir.TensorProtocol) -> Any:
        small_integer = tensor.dtype in (ir.DataType.INT64, ir.DataType.INT32)
        if small_integer and len(tensor.shape) <= 1 and tensor.size <= MOST_NUMBERS:
            return self._numbers(tensor)
        if self._is_body:
            if tensor.size > 1:
                raise _missing(node, "has no torch form with a tensor inside a body")
            item = torch_tensor(tensor, node.name or "").reshape(-1)[0].item()
            kind = TORCH_TYPES[int(tensor.dtype)]
            return self._fx.call_function(
                torch.full, (list(tensor.shape.numpy()), item), {"dtype": kind}
            )
        return self._fx.get_attr(self._owner.add_tensor(f"{node.name}_value", tensor))

    def _control(self, node: ir.Node) -> fx.Node:
        captures = [self._value(v) for v in self._owner.captures(node)]
        inputs = [self._value(v) for v in node.inputs]
        bodies = {
            name: self._body(node, name, attribute.as_graph())
            for name, attribute in node.attributes.items()
            if attribute.type is ir.AttributeType.GRAPH
        }
        if node.op_type == "If":
            arguments: Sequence[Any] = (
                inputs[0],
                bodies["then_branch"],
                bodies["else_branch"],
                *captures,
            )
            called = self._fx.call_function(
                control.if_, tuple(arguments), {"node": node.name or ""}
            )
        elif node.op_type == "Loop":
            states = len(inputs) - 2
            arguments = (inputs[0] if inputs else None, inputs[1] if len(inputs) > 1 else None)
            outputs = len(node.outputs) - states
            called = self._fx.call_function(
                control.loop,
                (*arguments, bodies["body"], states, outputs, *inputs[2:], *captures),
            )
        else:
            called = self._scan(node, bodies["body"], inputs, captures)
        self._pick(called, node)
        return called

    def _scan(
        self, node: ir.Node, body: fx.Node, inputs: list[Any], captures: list[Any]
    ) -> fx.Node:
        if self._owner.opset == 8:
            raise _missing(node, "has no torch form at opset 8, where it has a batch axis")
        scanned = node.attributes["num_scan_inputs"].as_int()
        states = len(inputs) - scanned
        outputs = len(node.outputs) - states
        lists = [
            list(node.attributes[name].as_ints()) if name in node.attributes else [0] * length
            for name, length in (
                ("scan_input_axes", scanned),
                ("scan_input_directions", scanned),
                ("scan_output_axes", outputs),
                ("scan_output_directions", outputs),
            )
        ]
        arguments = (body, states, scanned, outputs, *lists, *inputs, *captures)
        return self._fx.call_function(control.scan, arguments)

    def _body(self, node: ir.Node, name: str, graph: ir.Graph) -> fx.Node:
        stem = _identifier(f"{node.name or node.op_type}_{name}")
        target, count = stem, 0
        while target in self._targets:
            count += 1
            target = f"{stem}_{count}"
        self._targets[target] = self._owner.body(graph)
        made = self._fx.create_node("get_attr", target)
        return made


def _identifier(name: str) -> str:
    text = re.sub(r"\W", "_", name, flags=re.ASCII)
    return text if text.isidentifier() and not keyword.iskeyword(text) else f"v_{text}"


def _missing(node: ir.Node, what: str) -> UnsupportedError:
    domain = f"{node.domain}." if node.domain not in ("", "ai.onnx") else ""
    return UnsupportedError(
        "torch-operator-missing",
        f"operator {domain}{node.op_type} of node '{node.name}' {what}",
        hint="save as .onnx, or replace the operator",
        node=node.name,
        details={"operator": f"{domain}{node.op_type}"},
    )
