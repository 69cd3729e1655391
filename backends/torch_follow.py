"""Lets a traced module follow its inputs to another device.

In: the graph of ``torch.jit.trace``, in which the device of the samples stands as a constant. Out:
the same graph, whose tensors are made on the device of its first input, so that
``torch.jit.load(path, map_location="cuda")`` gives a module for CUDA. What always holds: on the
device of the samples nothing changes but for copies to where a tensor already is.

Every tensor is on the *device* or on the *host*. On the host are sizes, numbers and what is
computed from these alone, as in every program of torch: a kernel on a device could not be launched
with a size that lies there. What is read from inputs and weights, and every new tensor of rank 1
or more, is on the device. Where an operator reads both, what is on the host is brought over,
except for numbers that an elementwise operator takes from the host as they are.
"""

from collections.abc import Iterable
from typing import Any

import torch

_HOST = torch.device("cpu")
# The types of constants that are numbers without a loss.
_NUMBERS = frozenset(
    {
        torch.bool,
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    }
)


def follow_inputs(graph: Any) -> None:
    """Change the graph of a traced module so that it runs on the device of its inputs."""
    _Follower(graph).run()


def overload_of(node: Any) -> Any:
    """Return the operator of a node; None where it is none that ``torch.ops`` knows.

    The schema starts with ``namespace::name.overload``.
    """
    namespace, _, rest = node.schema().partition("(")[0].partition("::")
    name, _, overload = rest.partition(".")
    packet = getattr(getattr(torch.ops, namespace, None), name, None) if name else None
    return getattr(packet, overload or "default", None)


class _Follower:
    """Decides for every tensor where it is, in the order of the graph."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self._on_device: dict[str, bool] = {}
        self._moved: dict[str, Any] = {}
        self._constants: dict[Any, Any] = {}
        self._start = next(iter(graph.nodes()), None)
        self._device: Any = None
        self._first: Any = None

    def run(self) -> None:
        """Change the graph."""
        for value in self._graph.inputs():
            if _is_tensor(value):
                self._on_device[value.debugName()] = True
                self._first = value if self._first is None else self._first
        if self._first is None:
            return
        for node in list(self._graph.nodes()):
            self._node(node)
        self._require_device(self._graph.return_node())
        torch._C._jit_pass_dce(self._graph)
        torch._C._jit_pass_lint(self._graph)

    def _node(self, node: Any) -> None:
        kind = node.kind()
        if kind == "prim::Constant":
            if _is_tensor(node.output()):
                self._constant(node)
        elif kind == "prim::GetAttr":
            self._note(node, True)
        elif kind == "prim::CallMethod":
            self._require_device(node)
            self._note(node, True)
        elif kind in ("prim::TupleUnpack", "prim::ListUnpack"):
            self._note(node, self._on_device.get(node.inputsAt(0).debugName(), True))
        elif kind not in ("prim::ListConstruct", "prim::TupleConstruct"):
            self._operator(node)

    def _operator(self, node: Any) -> None:
        places = [self._on_device[value.debugName()] for value in _tensors_of(node.inputs())]
        device = _constant_device(node)
        if not places:
            outputs = [value for value in node.outputs() if _is_tensor(value)]
            on_device = bool(outputs) and device is not None and outputs[0].type().dim() != 0
        else:
            on_device = any(places)
        if on_device and places and not all(places):
            op = overload_of(node)
            takes_numbers = op is not None and torch.Tag.pointwise in op.tags
            self._require_device(node, but_numbers=takes_numbers)
        if on_device and device is not None:
            node.replaceInput(device, self._where())
        self._note(node, on_device)

    def _note(self, node: Any, on_device: bool) -> None:
        for value in node.outputs():
            self._on_device[value.debugName()] = on_device

    def _constant(self, node: Any) -> None:
        """Make a number of a constant of rank 0; a larger one goes to the device.

        ``map_location`` moves all constants of a file, and ``Module.to`` none of them.
        """
        tensor, value = node.t("value"), node.output()
        if tensor.dim() == 0 and tensor.dtype in _NUMBERS:
            number, dtype = self._fixed(tensor.item()), self._fixed(tensor.dtype)
            given = [number, dtype, self._fixed(None), self._fixed(_HOST), self._fixed(None)]
            made = self._graph.create("aten::scalar_tensor", given, 1)
            made.insertAfter(node)
            made.output().setType(value.type())
            value.replaceAllUsesWith(made.output())
            self._on_device[made.output().debugName()] = False
            return
        self._on_device[value.debugName()] = True
        left = [use for use in value.uses() if _constant_device(use.user) is None]
        if left:
            made = self._brought(value)
            for use in left:
                use.user.replaceInput(use.offset, made)

    def _require_device(self, node: Any, *, but_numbers: bool = False) -> None:
        """Bring what ``node`` reads, also in lists and tuples, to the device."""
        for index, value in enumerate(list(node.inputs())):
            maker = value.node()
            if maker.kind() in ("prim::ListConstruct", "prim::TupleConstruct"):
                self._require_device(maker)
            elif _is_tensor(value) and not self._on_device[value.debugName()]:
                if but_numbers and value.type().dim() == 0:
                    continue
                node.replaceInput(index, self._to_device(value))

    def _to_device(self, value: Any) -> Any:
        name = value.debugName()
        if name not in self._moved:
            self._moved[name] = self._brought(value)
        return self._moved[name]

    def _brought(self, value: Any) -> Any:
        """Return ``value`` on the device, brought there where it is made."""
        none, no = self._fixed(None), self._fixed(False)
        # The arguments of aten::to.dtype_layout.
        given = [value, none, none, self._where(), none, no, no, none]
        made = self._graph.create("aten::to", given, 1)
        made.insertAfter(value.node())
        made.output().setType(value.type())
        self._on_device[made.output().debugName()] = True
        return made.output()

    def _fixed(self, content: Any) -> Any:
        """Return a constant, made at the start of the graph."""
        key = (type(content), repr(content))
        if key not in self._constants:
            with self._graph.insert_point_guard(self._start):
                self._constants[key] = self._graph.insertConstant(content)
        return self._constants[key]

    def _where(self) -> Any:
        """Return the device of the first input, read once at the start of the graph."""
        if self._device is None:
            node = self._graph.create("prim::device", [self._first], 1)
            node.output().setType(torch._C.DeviceObjType.get())
            self._graph.prependNode(node)
            self._device = node.output()
        return self._device


def _is_tensor(value: Any) -> bool:
    return bool(value.type().kind() == "TensorType")


def _tensors_of(values: Iterable[Any]) -> list[Any]:
    found = []
    for value in values:
        maker = value.node()
        if _is_tensor(value):
            found.append(value)
        elif maker.kind() in ("prim::ListConstruct", "prim::TupleConstruct"):
            found += [part for part in maker.inputs() if _is_tensor(part)]
    return found


def _constant_device(node: Any) -> int | None:
    """Return the position of the input that is a constant device."""
    for index, value in enumerate(node.inputs()):
        if str(value.type()) == "Device" and value.node().kind() == "prim::Constant":
            return index
    return None
