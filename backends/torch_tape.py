"""Records what torch does for a lowered module at fixed sizes, as calls that write into storages.

In: a lowered module, samples. Out: a *tape*: storages, and calls in order. Every tensor of a call
is a *place*: a storage, a type, sizes, strides and an offset; a view is no call, it is another
place in the same storage. What always holds: running the calls in order, with the storages of kind
``arena`` anywhere in memory as long as those in use do not overlap, computes what the module
computes at these sizes for all values; what depends on more than sizes is an error, not an accident
that is recorded.

How an operator is computed is chosen by trying (``torch_out_probe``): the form that takes fewest
bytes besides its result; if every form takes some, what torch itself opens the operator to. What is
left returns tensors of its own: its storages are of kind ``heap``, and the call keeps their bytes.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.multiprocessing import reductions
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from graphopt.backends.torch_counts import SMALL_BYTES, requested_bytes
from graphopt.backends.torch_device import CPU, identity_of
from graphopt.backends.torch_lowering import NamingInterpreter
from graphopt.backends.torch_out_forms import forms_of, opening_of
from graphopt.backends.torch_out_probe import (
    Form,
    difference,
    overwritable,
    poisoned,
    probe_form,
)
from graphopt.backends.torch_trace import signature
from graphopt.errors import UnsupportedError

_DEEPEST_OPENING = 4
_OPENED_ERROR = 1e-5  # of the largest result: other order of the same sums
_WEAK: Any = reductions.StorageWeakRef  # without annotations
_UNSET = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"})
_RESHAPING = frozenset({"resize_", "resize_as_", "set_"})
_REFUSALS = (RuntimeError, TypeError, ValueError, IndexError, AttributeError)


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: elements of ``storage`` from ``offset`` on, by sizes and strides."""

    storage: int
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @property
    def is_dense(self) -> bool:
        """Whether it has no gaps and no element twice."""
        expected = 1
        for stride, size in sorted(zip(self.stride, self.size, strict=True)):
            if size != 1:
                if stride != expected:
                    return False
                expected *= size
        return True


@dataclass
class Storage:
    """One piece of memory.

    Attributes:
        kind: ``input``, ``weight``, ``arena`` (made by calls, may lie anywhere) or ``heap`` (made
            by torch in a call that cannot be told where to write).
        nbytes: Its size.
        whole: The tensor that it was made for.
        name: Which input or weight it is.
        data: The weight; of kind ``arena`` or ``heap``, what it holds for all inputs, if that is
            small and known.
        varies: Whether what it holds depends on inputs.
    """

    kind: str
    nbytes: int
    whole: Place
    name: str = ""
    data: Tensor | None = None
    varies: bool = False


@dataclass(frozen=True)
class Call:
    """One call of an operator; tensors among its arguments are places.

    Attributes:
        op: The overload.
        args: Arguments by position.
        kwargs: Arguments by name.
        reads: Places that it reads.
        writes: Places that it writes.
        results: Places of the tensors that it returns, where torch says where they lie; None for
            what is no tensor. Empty where it was told where to write.
        bytes: Requests of 4096 bytes or more that it made of torch's allocators.
        node: The ONNX node that it came from.
        over: Places of arguments over which it may write its one result.
    """

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    reads: tuple[Place, ...]
    writes: tuple[Place, ...]
    results: tuple[Place | None, ...]
    bytes: int
    node: str
    over: tuple[Place, ...] = ()

    @property
    def makes(self) -> tuple[Place, ...]:
        """Places of the tensors that torch allocates for it."""
        return tuple(place for place in self.results if place is not None)


@dataclass
class Tape:
    """The recording.

    Attributes:
        storages: By number.
        calls: In order.
        inputs: Places of the inputs, by position.
        outputs: Places of the outputs, by position.
        device: Where it was recorded.
    """

    storages: list[Storage] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    inputs: list[Place] = field(default_factory=list)
    outputs: list[Place] = field(default_factory=list)
    device: torch.device = CPU

    @property
    def loose_bytes(self) -> int:
        """Bytes that the calls take of torch's allocators."""
        return sum(call.bytes for call in self.calls)


def record(module: fx.GraphModule, sample: Sequence[Tensor], device: torch.device = CPU) -> Tape:
    """Run ``module`` on ``sample`` and return what it does.

    Args:
        module: A lowered module, on ``device``.
        sample: Inputs on ``device``.
        device: Where new tensors are made, too (``working_on``).

    Raises:
        UnsupportedError: what is computed depends on more than the sizes (``arena-values-decide``).
    """
    recorder = _Recorder(device)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        recorder.open(tensor, "weight", name)
    for name, tensor in zip(signature(module)["inputs"], sample, strict=True):
        place = recorder.open(tensor, "input", name)
        recorder.tape.storages[place.storage].varies = True
        recorder.tape.inputs.append(place)
    with torch.no_grad(), _NoPeeking(recorder), recorder:
        outputs = _Running(module, recorder).run(*sample)
    recorder.tape.outputs = [recorder.place(tensor) for tensor in outputs]
    return recorder.tape


class _Running(NamingInterpreter):
    """Tells the recorder which node runs."""

    def __init__(self, module: fx.GraphModule, recorder: "_Recorder") -> None:
        super().__init__(module)
        self._recorder = recorder

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        self._recorder.node = n.meta.get("onnx_node") or n.name
        return super().run_node(n)


class _NoPeeking(TorchFunctionMode):
    """Refuses what reads the values of a tensor into Python, where they depend on inputs."""

    _PEEKS = (Tensor.tolist, Tensor.numpy, Tensor.__array__)

    def __init__(self, recorder: "_Recorder") -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in self._PEEKS and self._recorder.varies(args):
            raise self._recorder.decides(func.__name__)
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class _Choice:
    """How an operator is computed for arguments of one signature: a form, opened, or neither."""

    bytes: int
    form: Form | None = None
    is_opened: bool = False
    over: frozenset[int] = frozenset()


_CHOICES: dict[Any, _Choice] = {}


class _NotOpenedError(Exception):
    """An operator that is no part of a computation that can be written down."""


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no annotations
    """Takes every operator that torch is about to run."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape = Tape(device=device)
        self._identity = identity_of(device)
        self.node = ""
        self._numbers: dict[int, int] = {}
        self._alive: list[Any] = []
        self._constants: dict[Any, Tensor] = {}
        self._depth = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            self.place(tensor)
        if self._depth and func.namespace not in ("aten", "mkldnn"):
            raise _NotOpenedError(str(func))
        if _depends_on_values(func, args) and self.varies((args, kwargs)):
            raise self.decides(str(func))
        if torch.Tag.inplace_view in func.tags or not func._schema.is_mutable:
            return self._compute(func, args, kwargs)
        return self._write(func, args, kwargs)

    def open(self, tensor: Tensor, kind: str, name: str = "") -> Place:
        """Number the storage of ``tensor``; return its place."""
        if tensor.layout is not torch.strided or tensor.is_conj() or tensor.is_neg():
            raise self._kind_refused(f"a tensor of layout {tensor.layout} or a lazy conjugate")
        storage = tensor.untyped_storage()
        if storage._cdata not in self._numbers:
            number = self._numbers[storage._cdata] = len(self.tape.storages)
            # A weak reference keeps the address from being given away again.
            self._alive.append(_WEAK(storage))
            data = tensor.detach() if kind == "weight" else None
            made = Storage(kind, storage.nbytes(), _place(tensor, number), name, data)
            self.tape.storages.append(made)
        return self.place(tensor)

    def place(self, tensor: Tensor) -> Place:
        """Return the place of a tensor; one that came from nowhere is a constant."""
        number = self._numbers.get(tensor.untyped_storage()._cdata)
        if number is None:
            return self.open(tensor, "weight")
        if tensor.dtype != self.tape.storages[number].whole.dtype:
            raise self._kind_refused(f"a {tensor.dtype} view of another type")
        return _place(tensor, number)

    def varies(self, tree: Any) -> bool:
        """Return whether a tensor in ``tree`` depends on inputs."""
        numbers = (self._numbers.get(t.untyped_storage()._cdata) for t in _tensors(tree))
        return any(n is not None and self.tape.storages[n].varies for n in numbers)

    def decides(self, what: str) -> UnsupportedError:
        """Return the error for a value that decides what is computed."""
        return UnsupportedError(
            "arena-values-decide",
            f"node '{self.node}': what is computed depends on values of the inputs, not only on "
            f"their sizes ({what}), so no plan holds for all inputs",
            hint="save without arena",
            node=self.node,
        )

    def _kind_refused(self, what: str) -> UnsupportedError:
        return UnsupportedError(
            "arena-tensor-kind",
            f"node '{self.node}': {what} cannot lie in an arena of one data type",
            hint="save without arena",
            node=self.node,
        )

    def _compute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        made = _tensors(result)
        fresh = [t for t in made if t.untyped_storage()._cdata not in self._numbers]
        if not fresh:
            for tensor in made:
                self.place(tensor)
            return result
        if func._schema.name.removeprefix("aten::") in _UNSET:
            self.open(fresh[0], "arena")
            return result
        args = self._numbers_as_tensors(func, args)
        choice = self._choice(func, args, kwargs, made)
        varies = self.varies((args, kwargs)) or torch.Tag.nondeterministic_seeded in func.tags
        first = len(self.tape.storages)
        if choice.is_opened:
            result = self._open_up(func, args, kwargs)
        elif choice.form is not None:
            result = self._through_form(choice, made, args, kwargs, result)
        else:
            self._functional(func, args, kwargs, result, choice.bytes)
        self._note_known(_tensors(result), first, varies)
        return result

    def _note_known(self, made: list[Tensor], first: int, varies: bool) -> None:
        """Keep what is small and the same for all inputs; it need not be computed again."""
        for tensor in made:
            number = self._numbers[tensor.untyped_storage()._cdata]
            storage = self.tape.storages[number]
            if number >= first and varies:
                storage.varies = True
            elif number >= first and storage.nbytes < SMALL_BYTES and not storage.varies:
                storage.data = tensor

    def _choice(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], expected: list[Tensor]
    ) -> _Choice:
        key = (self._identity, *_signature(func, args, kwargs))
        if key not in _CHOICES:
            _CHOICES[key] = self._choose(func, args, kwargs, expected)
        return _CHOICES[key]

    def _choose(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], expected: list[Tensor]
    ) -> _Choice:
        best = _Choice(sum(requested_bytes(lambda: func(*args, **kwargs), self.tape.device)))
        for form in forms_of(func):
            probe = probe_form(form, expected, args, kwargs, self.tape.device)
            if probe is None or not probe.agrees:
                continue
            if best.form is None or probe.bytes < best.bytes:
                best = _Choice(probe.bytes, form)
            if not probe.bytes:
                break
        if best.form is not None and torch.Tag.pointwise in func.tags and len(expected) == 1:
            over = overwritable(best.form, expected[0], args, kwargs)
            best = _Choice(best.bytes, best.form, over=over)
        if best.bytes and self._depth < _DEEPEST_OPENING:
            opened = self._bytes_opened(func, args, kwargs, expected)
            if opened is not None and opened < best.bytes:
                return _Choice(opened, is_opened=True)
        return best

    def _bytes_opened(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], expected: list[Tensor]
    ) -> int | None:
        """Return the bytes that the parts of ``func`` take; nothing stays on the tape."""
        if opening_of(func) is None:
            return None
        calls, storages = len(self.tape.calls), len(self.tape.storages)
        try:
            found = _tensors(self._open_up(func, args, kwargs))
            taken = sum(call.bytes for call in self.tape.calls[calls:])
        except (_NotOpenedError, UnsupportedError, *_REFUSALS):
            return None
        finally:
            del self.tape.calls[calls:]
            del self.tape.storages[storages:]
            del self._alive[storages:]
            self._numbers = {k: n for k, n in self._numbers.items() if n < storages}
        pairs = zip(expected, found, strict=False)
        same = len(found) == len(expected) and all(lies_alike(a, b) for a, b in pairs)
        return taken if same else None

    def _open_up(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        opening = opening_of(func)
        assert opening is not None
        self._depth += 1
        try:
            with self:
                return opening(*args, **kwargs)
        finally:
            self._depth -= 1

    def _through_form(
        self,
        choice: _Choice,
        made: list[Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Any,
    ) -> Any:
        outs = [poisoned(tensor) for tensor in made]
        for out in outs:
            self.open(out, "arena")
        assert choice.form is not None
        calls = len(self.tape.calls)
        with self:
            choice.form(outs, args, kwargs)
        if choice.over and len(self.tape.calls) == calls + 1:
            over = tuple(self.place(args[position]) for position in sorted(choice.over))
            self.tape.calls[-1] = replace(self.tape.calls[-1], over=over)
        iterator = iter(outs)
        return tree_map(lambda x: next(iterator) if isinstance(x, Tensor) else x, result)

    def _functional(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Any,
        taken: int,
    ) -> None:
        reads = tuple(self.place(tensor) for tensor in _tensors((args, kwargs)))
        items = result if isinstance(result, (list, tuple)) else (result,)
        made = tuple(self.open(x, "heap") if isinstance(x, Tensor) else None for x in items)
        call = Call(func, *self._as_places(args, kwargs), reads, (), made, taken, self.node)
        self.tape.calls.append(call)

    def _write(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func._schema.name.removeprefix("aten::") in _RESHAPING:
            raise self._kind_refused(f"a tensor that {func} changes in size")
        args = self._numbers_as_tensors(func, args)
        targets, reads = [], []
        for argument, value in _bound(func, args, kwargs):
            if argument.alias_info is not None and argument.alias_info.is_write:
                targets.extend(_tensors(value))
            if not argument.is_out:
                reads.extend(_tensors(value))
        for tensor in targets:
            storage = self.tape.storages[self.place(tensor).storage]
            if storage.kind in ("input", "weight"):
                raise UnsupportedError(
                    "arena-write-outside",
                    f"node '{self.node}': {func} writes over an input or a weight",
                    hint="save without arena",
                    node=self.node,
                )
            storage.data = None
            storage.varies = storage.varies or self.varies((args, kwargs))
        results: list[Any] = []
        run = functools.partial(func, *args, **kwargs)
        taken = sum(requested_bytes(lambda: results.append(run()), self.tape.device))
        made = [t for t in _tensors(results) if t.untyped_storage()._cdata not in self._numbers]
        if made:
            raise self._kind_refused(f"what {func} returns besides the tensor that it writes")
        self.tape.calls.append(
            Call(
                func,
                *self._as_places(args, kwargs),
                tuple(map(self.place, reads)),
                tuple(map(self.place, targets)),
                (),
                taken,
                self.node,
            )
        )
        return results[0]

    def _as_places(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        def placed(x: Any) -> Any:
            return self.place(x) if isinstance(x, Tensor) else x

        return tree_map(placed, args), tree_map(placed, kwargs)

    def _numbers_as_tensors(self, func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the arguments with numbers in the place of tensors as tensors of rank 0.

        TorchScript would take an overload with a number instead, which writes elsewhere.
        """
        others = [x for x in args if isinstance(x, Tensor)]
        result = list(args)
        for index, argument in enumerate(func._schema.arguments[: len(args)]):
            number = args[index]
            if str(argument.type) == "Tensor" and not isinstance(number, Tensor) and others:
                kind = torch.result_type(others[0], number)
                made = torch.tensor(number, dtype=kind, device=self.tape.device)
                result[index] = self._constants.setdefault((kind, repr(number)), made)
        return tuple(result)


def _depends_on_values(func: Any, args: tuple[Any, ...]) -> bool:
    """Return whether a size or a number that ``func`` gives depends on values of its arguments."""
    if func is torch.ops.aten.index.Tensor:
        # The tag is there for masks; places that are picked by number are as many as there are.
        return any(x.dtype in (torch.bool, torch.uint8) for x in _tensors(args[1]))
    depends = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
    return any(tag in func.tags for tag in depends)


def lies_alike(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same sizes and type and nearly the same values."""
    if one.size() != other.size() or one.dtype != other.dtype:
        return False
    return difference(one, other) <= _OPENED_ERROR


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_flatten(tree)[0] if isinstance(x, Tensor)]


def _place(tensor: Tensor, number: int) -> Place:
    return Place(
        number, tensor.dtype, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())
    )


def _bound(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Return the arguments of the schema with the values that were given."""
    arguments = func._schema.arguments
    named = [(a, kwargs[a.name]) for a in arguments[len(args) :] if a.name in kwargs]
    return [*zip(arguments, args, strict=False), *named]


def _signature(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    items, spec = tree_flatten((args, kwargs))
    described = tuple(
        (tuple(x.shape), x.stride(), x.dtype, x.device) if isinstance(x, Tensor) else repr(x)
        for x in items
    )
    return func, str(spec), described
