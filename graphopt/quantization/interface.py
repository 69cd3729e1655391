"""Integer inputs and outputs: how a model states their scales, and the same model with floats.

The scale and the zero point of each integer input and output are recorded in the model's own
``metadata_props``, as JSON under ``INTERFACE_KEY``, so that firmware can convert its samples:
``integer = round(number / scale) + zero_point``, halves to the even one, cut to the type;
``number = (integer - zero_point) * scale``.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import InvalidModelError
from graphopt.ir.program import Program
from graphopt.ir.rewrite import Names

INTERFACE_KEY = "graphopt.integer_interface"
_TYPES = {"int8": ir.DataType.INT8, "uint8": ir.DataType.UINT8}


@dataclass(frozen=True)
class Port:
    """One input or output that is integer in the place of float.

    Attributes:
        name: Its name in the graph.
        dtype: Its integer type, "int8" or "uint8".
        scale: What one step is worth.
        zero_point: The integer that stands for 0.0.
    """

    name: str
    dtype: str
    scale: float
    zero_point: int


@dataclass(frozen=True)
class Interface:
    """The integer inputs and outputs of a model; those not listed are as they were."""

    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.inputs or self.outputs)

    def to_json(self) -> str:
        """Return the text that is recorded in the model."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))


def record(model: ir.Model, interface: Interface) -> None:
    """Write ``interface`` into the metadata of ``model``."""
    model.metadata_props[INTERFACE_KEY] = interface.to_json()


def interface_of(model: ir.Model) -> Interface:
    """Return the integer inputs and outputs that ``model`` states; none where it states none.

    Raises:
        InvalidModelError: what the file states is no interface, or not that of its graph.
    """
    text = model.metadata_props.get(INTERFACE_KEY)
    if text is None:
        return Interface()
    try:
        plain = json.loads(text)
        return Interface(
            _ports(plain["inputs"], model.graph.inputs),
            _ports(plain["outputs"], model.graph.outputs),
        )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InvalidModelError(
            "integer-interface",
            f"the metadata '{INTERFACE_KEY}' state no integer interface of this model: "
            f"{type(error).__name__}: {str(error)[:200]}",
            hint="compile the float model again, or remove that entry",
        ) from error


def _ports(plain: Any, values: Iterable[ir.Value]) -> tuple[Port, ...]:
    """Return the inputs or outputs that ``plain`` describes.

    Raises:
        ValueError, TypeError or KeyError: it describes something else.
    """
    dtypes = {value.name: value.dtype for value in values}
    ports = tuple(Port(**one) for one in plain)
    for port in ports:
        if dtypes[port.name] is not _TYPES[port.dtype]:
            raise ValueError(f"'{port.name}' is not {port.dtype}")
        limits = np.iinfo(port.dtype)
        if type(port.zero_point) is not int or not limits.min <= port.zero_point <= limits.max:
            raise ValueError(f"zero point of '{port.name}' is {port.zero_point!r}")
        if type(port.scale) is not float or not 0 < port.scale < float("inf"):
            raise ValueError(f"scale of '{port.name}' is {port.scale!r}")
    if len({port.name for port in ports}) < len(ports):
        raise ValueError("a name is repeated")
    return ports


def integer_samples(model: ir.Model, samples: Any) -> Any:
    """Return ``samples`` with floats in the place of integer inputs converted to these.

    Args:
        model: States its integer inputs, or none; then the samples are returned as they are.
        samples: A dictionary, a tuple, an array, or a list of these; or None.
    """
    ports = {port.name: port for port in interface_of(model).inputs}
    if not ports or samples is None:
        return samples
    names = [value.name or "" for value in model.graph.inputs]

    def converted(sample: Any) -> Any:
        if isinstance(sample, Mapping):
            return {name: _integers(array, ports.get(name)) for name, array in sample.items()}
        arrays = sample if isinstance(sample, tuple) else (sample,)
        pairs = zip(names, arrays, strict=False)
        return tuple(_integers(array, ports.get(name)) for name, array in pairs)

    return [converted(one) for one in samples] if isinstance(samples, list) else converted(samples)


def _integers(array: Any, port: Port | None) -> Any:
    plain = np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)
    if port is None or plain.dtype.kind != "f":
        return array
    wide = np.rint(plain / np.float32(port.scale)) + port.zero_point
    limits = np.iinfo(port.dtype)
    return np.clip(wide, limits.min, limits.max).astype(port.dtype)


def with_float_interface(program: Program) -> Program:
    """Return ``program`` with float inputs and outputs, as the model had that it was made from.

    Without integer inputs and outputs this is ``program`` itself; else a copy that converts by the
    scales that the model states.
    """
    interface = interface_of(program.model)
    if not interface:
        return program
    model = program.model.clone()
    model.meta.update(program.model.meta)
    names = Names(model)
    for port in interface.inputs:
        _read_floats(model, port, names)
    for port in interface.outputs:
        _make_floats(model, port, names)
    del model.metadata_props[INTERFACE_KEY]
    return replace(program, model=model, source=replace(program.source, path=None))


def _position(values: Iterable[ir.Value], port: Port) -> int:
    return next(index for index, value in enumerate(values) if value.name == port.name)


def _read_floats(model: ir.Model, port: Port, names: Names) -> None:
    graph = model.graph
    index = _position(graph.inputs, port)
    old = graph.inputs[index]
    users = tuple(old.uses())
    new = ir.Value(name=port.name, type=ir.TensorType(ir.DataType.FLOAT), shape=old.shape)
    node = _conversion(graph, "QuantizeLinear", new, port, names)
    node.outputs[0].type, node.outputs[0].shape = old.type, old.shape
    for user, place in users:
        user.replace_input_with(place, node.outputs[0])
    graph.inputs[index] = new
    old.name = None
    graph.insert_before(graph[0], [node])


def _make_floats(model: ir.Model, port: Port, names: Names) -> None:
    graph = model.graph
    index = _position(graph.outputs, port)
    old = graph.outputs[index]
    old.name = names.fresh_value(f"{port.name}_integers")
    node = _conversion(graph, "DequantizeLinear", old, port, names)
    new = node.outputs[0]
    new.name, new.shape, new.type = port.name, old.shape, ir.TensorType(ir.DataType.FLOAT)
    graph.append(node)
    graph.outputs[index] = new


def _conversion(
    graph: ir.Graph, op_type: str, value: ir.Value, port: Port, names: Names
) -> ir.Node:
    parts = [value]
    arrays = {
        "scale": np.array(port.scale, np.float32),
        "zero_point": np.array(port.zero_point, port.dtype),
    }
    for what, array in arrays.items():
        name = names.fresh_value(f"{port.name}_{what}")
        tensor = ir.Tensor(array, name=name)
        constant = ir.Value(
            name=name, shape=ir.Shape(()), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        graph.register_initializer(constant)
        parts.append(constant)
    node = ir.Node("", op_type, parts, num_outputs=1)
    node.name = names.fresh_node(f"{port.name}_{op_type}")
    node.outputs[0].name = names.fresh_value(f"{port.name}_converted")
    return node
