"""Writes an arena plan down as a TorchScript module.

In: an ``ArenaPlan``. Out: a scripted module with ``forward``, ``run_into`` and the arenas. What
always holds: the operators in the compiled code are the overloads that were probed, in the same
order; that is checked, since TorchScript picks overloads by itself.

Tensors of an arena are views that the first call makes and the module keeps, beside its arenas; no
file holds them. A copy of the module has copies of the views that lie elsewhere, and moved weights
have other arenas: a call that finds its views outside of the arena makes them again. Until then a
copy holds the bytes of all views, so where these are many, every call makes its views.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from graphopt.backends.torch_arena import Arena, ArenaPlan
from graphopt.backends.torch_tape import Call, Place
from graphopt.errors import InvariantError

_JIT: Any = torch.jit
MOST_KEPT_BYTES = 16 << 20
# What the code calls besides the operators of the plan, to make views of what it is given.
_HELPERS = frozenset(
    {"aten::__getitem__.t", "aten::add.int", "aten::as_strided", "aten::storage_offset"}
)


def script_of(plan: ArenaPlan, arguments: Sequence[str]) -> Any:
    """Return the module; ``arguments`` names the arguments of its ``forward``.

    Raises:
        InvariantError: TorchScript took another overload than the one that was probed.
        RuntimeError: TorchScript refuses the code.
    """
    root = _holder("ArenaModule")
    root.add_module("arenas", _arenas(plan))
    root.add_module("weights", _weights(plan))
    module = _JIT.script(root)
    code = _Code(plan, arguments)
    steps = code.steps()
    module.define(code.checked())
    module.define(code.views())
    module.define(steps)
    module.define(code.run_into())
    module.define(code.forward())
    _check_overloads(module, plan.tape.calls)
    return module


def _holder(name: str) -> nn.Module:
    """Return a module without content, of a class of its own: TorchScript adds methods to that."""
    kind: type[nn.Module] = type(name, (nn.Module,), {})
    return kind().eval()


def _weights(plan: ArenaPlan) -> nn.Module:
    holder = _holder("Weights")
    used = {place.storage for call in plan.tape.calls for place in call.reads}
    used |= {plan.tape.outputs[position].storage for position in plan.copies}
    for number in sorted(used):
        storage = plan.tape.storages[number]
        if storage.kind == "weight":
            assert storage.data is not None
            holder.register_buffer(_weight_name(number), storage.data)
    return holder


def _weight_name(number: int) -> str:
    return f"w{number}"


def _arenas(plan: ArenaPlan) -> Any:
    """Return the module that holds the arenas; a file keeps their sizes only."""
    holder = _holder("Arenas")
    device = plan.tape.device
    holder.register_buffer("device_mark", torch.zeros([1], dtype=torch.uint8, device=device))
    made = []
    for arena in plan.arenas:
        count = _count(arena)
        name = _arena_name(arena.dtype)
        holder.register_buffer(name, torch.empty([count], dtype=arena.dtype, device=device))
        made.append(f"self.{name} = torch.empty([{count}], dtype={arena.dtype}, device=where)")
    holder.views = _JIT.annotate(list[torch.Tensor], [])
    holder.__annotations__ = {"views": list[torch.Tensor]}
    module = _JIT.script(holder)
    module.define(
        "def __getstate__(self) -> Tuple[Tensor, bool]:\n"
        "    return self.device_mark, self.training\n"
    )
    lines = [
        "self.device_mark = state[0]",
        "self.training = state[1]",
        "where = state[0].device",
        *made,
        "self.views = torch.jit.annotate(List[Tensor], [])",
    ]
    module.define(_function("__setstate__", "state: Tuple[Tensor, bool]", "", lines))
    return module


def _count(arena: Arena) -> int:
    return arena.placement.height // arena.dtype.itemsize


def _arena_name(dtype: torch.dtype) -> str:
    return str(dtype).replace("torch.", "arena_")


def _function(name: str, arguments: str, returns: str, lines: Sequence[str]) -> str:
    arrow = f" -> {returns}" if returns else ""
    comma = ", " if arguments else ""
    body = "".join(f"    {line}\n" for line in lines or ["pass"])
    return f"def {name}(self{comma}{arguments}){arrow}:\n{body}"


class _Code:
    """The text of the methods."""

    def __init__(self, plan: ArenaPlan, arguments: Sequence[str]) -> None:
        self._plan = plan
        self._tape = plan.tape
        self._prefix = "t"
        while any(name.startswith(self._prefix) for name in (*arguments, "outputs", "self")):
            self._prefix += "_"
        self._arguments = list(arguments)
        self._parameters = ", ".join(f"{name}: Tensor" for name in arguments)
        self._lines: list[str] = []
        self._names: dict[Place, str] = {}
        self._bases: dict[int, str] = {}
        self._name_by_view: dict[str, str] = {}
        self._kept: dict[str, str] = {}  # name by view
        # A view of a whole arena shows whether what is kept lies there.
        self._marks = {
            _arena_name(arena.dtype): f"{self._prefix}{_arena_name(arena.dtype)}"
            f".as_strided([{_count(arena)}], [1])"
            for arena in plan.arenas
        }
        self._keeps = _bytes_of_views(plan) <= MOST_KEPT_BYTES
        self._device = f"{self._prefix}where"  # a name of the code

    def checked(self) -> str:
        """Return the method that refuses tensors of other sizes or types."""
        lines = [
            "if tensor.size() != size or tensor.dtype != kind:",
            "    got = str(tensor.size())",
            "    if tensor.dtype != kind:",
            "        got = got + ' of another type'",
            "    expected = str(size) + ' of type ' + name",
            "    raise RuntimeError(what + ': expected sizes ' + expected + ', got ' + got)",
        ]
        arguments = "what: str, tensor: Tensor, size: List[int], kind: int, name: str"
        return _function("_check", arguments, "", lines)

    def steps(self) -> str:
        """Return the method that runs the calls."""
        given = tree_leaves([(call.args, call.kwargs) for call in self._tape.calls])
        if any(isinstance(value, torch.device) for value in given):
            self._lines.append(f"{self._device} = self.arenas.device_mark.device")
        for arena in self._plan.arenas:
            name = _arena_name(arena.dtype)
            self._lines.append(f"{self._prefix}{name} = self.arenas.{name}")
        for position, place in enumerate(self._tape.inputs):
            self._bases[place.storage] = self._arguments[position]
            self._names[place] = self._arguments[position]
        for number, position in self._plan.outputs.items():
            self._output(position, number)
        for call in self._tape.calls:
            self._call(call)
        for position in self._plan.copies:
            source = self._operand(self._tape.outputs[position])
            self._lines.append(f"outputs[{position}].copy_({source})")
        arguments = ", ".join(filter(None, (self._parameters, "outputs: List[Tensor]")))
        unpacked = []
        if self._kept:
            names = [
                *self._kept.values(),
                *(f"{self._prefix}m{i}" for i in range(len(self._marks))),
            ]
            unpacked = [f"{', '.join(names)}, = self._views()"]
        return _function("_run", arguments, "", [*unpacked, *self._lines])

    def views(self) -> str:
        """Return the method that gives what is kept, known once ``steps`` has run."""
        made = [*self._kept, *self._marks.values()]
        tests = [f"len(views) == {len(made)}"]
        for index, arena in enumerate(self._marks, len(self._kept)):
            tests.append(f"views[{index}].is_set_to(self.arenas.{arena})")
        lines = [
            "views = self.arenas.views",
            f"if not ({' and '.join(tests)}):",
            *[f"    {self._prefix}{name} = self.arenas.{name}" for name in self._marks],
            f"    views = torch.jit.annotate(List[Tensor], [{', '.join(made)}])",
            "    self.arenas.views = views",
            "return views",
        ]
        return _function("_views", "", "List[Tensor]", lines)

    def run_into(self) -> str:
        """Return the method that checks what it is given and runs."""
        lines = []
        outputs = self._tape.outputs
        text = f"RuntimeError('outputs: expected {len(outputs)} tensors, got ' + str(len(outputs)))"
        lines += [f"if len(outputs) != {len(outputs)}:", f"    raise {text}"]
        for position, place in enumerate(outputs):
            lines.append(self._check(f"output {position}", f"outputs[{position}]", place))
            lines.append(f"if not outputs[{position}].is_contiguous():")
            lines.append(f"    raise RuntimeError('output {position} is not contiguous')")
        lines += self._prepared()
        arguments = ", ".join(filter(None, (self._parameters, "outputs: List[Tensor]")))
        return _function("run_into", arguments, "", lines)

    def forward(self) -> str:
        """Return the method that makes the results."""
        outputs = self._tape.outputs
        lines = [f"{self._device} = self.arenas.device_mark.device", "outputs: List[Tensor] = []"]
        for place in outputs:
            made = f"torch.empty({_ints(place.size)}, dtype={place.dtype}, device={self._device})"
            lines.append(f"outputs.append({made})")
        lines += self._prepared()
        results = "".join(f"outputs[{i}], " for i in range(len(outputs)))
        kinds = ", ".join("Tensor" for _ in outputs)
        lines.append(f"return ({results})")
        return _function("forward", self._parameters, f"Tuple[{kinds}]", lines)

    def _prepared(self) -> list[str]:
        lines = []
        for name, place, storage in zip(
            self._arguments, self._tape.inputs, self._names_of_inputs(), strict=True
        ):
            lines.append(self._check(f"input '{storage}'", name, place))
        contiguous = "".join(f"{name}.contiguous(), " for name in self._arguments)
        lines.append(f"self._run({contiguous}outputs)")
        return lines

    def _names_of_inputs(self) -> list[str]:
        return [self._tape.storages[place.storage].name for place in self._tape.inputs]

    def _check(self, what: str, name: str, place: Place) -> str:
        kind = json.dumps(str(place.dtype).removeprefix("torch."))
        given = f"{name}, {_ints(place.size)}, {place.dtype}, {kind}"
        return f"self._check({json.dumps(what)}, {given})"

    def _output(self, position: int, number: int) -> None:
        name = f"{self._prefix}out{position}"
        self._lines.append(f"{name} = outputs[{position}]")
        self._bases[number] = name
        self._names[self._tape.storages[number].whole] = name

    def _call(self, call: Call) -> None:
        arguments = call.op._schema.arguments
        parts = [self._literal(v, a.type) for v, a in zip(call.args, arguments, strict=False)]
        kinds = {a.name: a.type for a in arguments}
        parts += [f"{n}={self._literal(v, kinds[n])}" for n, v in call.kwargs.items()]
        namespace, _, name = call.op._schema.name.partition("::")
        text = f"torch.ops.{namespace}.{name}({', '.join(parts)})"
        if not call.makes:
            self._lines.append(text)
            return
        names: list[str] = []
        for place in call.results:
            name = f"{self._prefix}{len(self._names)}_{len(names)}"
            names.append(name)
            if place is not None and self._tape.storages[place.storage].kind == "heap":
                self._names[place] = self._bases[place.storage] = name
        # A result of several is unpacked, also where it is a list.
        several = (
            len(call.op._schema.returns) > 1 or str(call.op._schema.returns[0].type) != "Tensor"
        )
        comma = "," if several and len(names) == 1 else ""
        self._lines.append(f"{', '.join(names)}{comma} = {text}")

    def _operand(self, place: Place) -> str:
        """Return the name of a tensor, made in a line of its own where it is first used."""
        known = self._names.get(place)
        if known is not None:
            return known
        storage = self._tape.storages[place.storage]
        if storage.kind == "weight" and place == storage.whole:
            return self._weight(place.storage)
        made = self._view(place)
        # Tensors that lie in the same place in the same form are one view.
        if made not in self._name_by_view:
            name = self._name_by_view[made] = f"{self._prefix}{len(self._names)}"
            if self._keeps and place.storage not in self._bases:
                self._kept[made] = name
            else:
                self._lines.append(f"{name} = {made}")
        self._names[place] = self._name_by_view[made]
        return self._names[place]

    def _view(self, place: Place) -> str:
        storage = self._tape.storages[place.storage]
        form = f"{_ints(place.size)}, {_ints(place.stride)}"
        if place.storage in self._plan.offsets:
            start = self._plan.offsets[place.storage] // place.dtype.itemsize + place.offset
            return f"{self._prefix}{_arena_name(place.dtype)}.as_strided({form}, {start})"
        base = self._bases.get(place.storage, self._weight(place.storage))
        start = place.offset - storage.whole.offset
        if not start:
            return f"{base}.as_strided({form})"
        return f"{base}.as_strided({form}, {base}.storage_offset() + {start})"

    def _weight(self, number: int) -> str:
        return f"self.weights.{_weight_name(number)}"

    def _literal(self, value: Any, kind: Any) -> str:
        if isinstance(value, Place):
            return self._operand(value)
        if isinstance(value, (list, tuple)):
            text = f"[{', '.join(self._literal(item, kind) for item in value)}]"
            listed = _list_type(kind)
            # TorchScript takes no list of tensors for one of optional tensors.
            if value and None not in value and not listed.startswith("List[Optional"):
                return text
            return f"torch.jit.annotate({listed}, {text})"
        if isinstance(value, float) and not math.isfinite(value):
            return f"float('{value}')"
        if isinstance(value, torch.device):
            return self._device
        return repr(value)


def _bytes_of_views(plan: ArenaPlan) -> int:
    """Return the bytes of all tensors that lie in arenas or are views of weights."""
    tape = plan.tape
    places = {place for call in tape.calls for place in (*call.reads, *call.writes)}
    return sum(
        place.dtype.itemsize * math.prod(place.size)
        for place in places
        if place.storage in plan.offsets
        or (
            (tape.storages[place.storage].kind == "weight")
            and place != tape.storages[place.storage].whole
        )
    )


def _list_type(kind: Any) -> str:
    text = str(kind)
    while text.startswith("Optional[List"):
        text = text.removeprefix("Optional[").removesuffix("]")
    return text


def _ints(numbers: Sequence[int]) -> str:
    return str(list(numbers)) if numbers else "torch.jit.annotate(List[int], [])"


def _check_overloads(module: Any, calls: Sequence[Call]) -> None:
    taken = []
    for node in module._c._get_method("_run").graph.nodes():
        name = node.schema().partition("(")[0]
        if "::" in name and not node.kind().startswith("prim::") and name not in _HELPERS:
            taken.append(name)
    wanted = [str(call.op._schema).partition("(")[0] for call in calls]
    wanted += taken[len(wanted) :] if set(taken[len(wanted) :]) <= {"aten::copy_"} else []
    for found, expected in zip(taken, wanted, strict=False):
        if found != expected:
            raise InvariantError(
                "arena-overload", f"TorchScript takes {found} where {expected} was probed"
            )
    if len(taken) != len(wanted):
        raise InvariantError(
            "arena-overload", f"TorchScript runs {len(taken)} operators, {len(wanted)} were planned"
        )
