"""What one operator of torch holds while it runs, found by running it alone on made-up tensors.

In: an overload, arguments in which a ``Place`` stands for a tensor, and the storages that these
lie in. Out: where its results lie and the bytes that it held at most, results included. What
always holds: the operator ran here, on tensors of exactly these sizes, strides and types, lying in
each other as said, on the device that the figures are for; nothing about any operator is written
down. Tensors whose values are not known
hold 0.5, 0 or False, so what an operator holds must not depend on values: an operator that reads
such values into a number or a size is an error.

Counted is what passes torch's allocator of that device: tensors, buffers of native kernels (columns
of a convolution), tensors, reorders and scratchpads of oneDNN, which takes them from torch, and
workspaces of cuDNN. Not counted is what MKL and oneDNN keep for themselves, and what the C library
rounds up.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from graphopt.backends.torch_counts import most_held
from graphopt.backends.torch_device import CPU, identity_of
from graphopt.backends.torch_tape import Place
from graphopt.errors import UnsupportedError

KNOWN_BYTES = 4096
"""Values of tensors up to this size are computed where they depend on no input."""

_REFUSALS = (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError)


@dataclass
class Storages:
    """Pieces of memory by number: their bytes, and their content where it is known.

    Attributes:
        device: Where the tensors of the call are.
        nbytes: Sizes.
        data: A tensor whose storage holds the content; None where that depends on inputs.
        on_host: Whether it lies on the CPU, where ``device`` is another one.
    """

    device: torch.device = CPU
    nbytes: list[int] = field(default_factory=list)
    data: list[Tensor | None] = field(default_factory=list)
    on_host: list[bool] = field(default_factory=list)
    _numbers: dict[int, int] = field(default_factory=dict)
    _moved: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def open(self, nbytes: int, data: Tensor | None = None, *, on_host: bool = False) -> int:
        """Return the number of one more storage."""
        self.nbytes.append(nbytes)
        self.data.append(data)
        self.on_host.append(on_host)
        return len(self.nbytes) - 1

    def held(self, tensor: Tensor) -> Place:
        """Return the place of a weight or a constant on the device, opened once."""
        if tensor.device.type != self.device.type:
            whole = tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.size()
            # What is kept keeps the address from being given away again.
            moved = self._moved.setdefault(whole, (tensor, tensor.detach().to(self.device)))
            tensor = moved[1]
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._numbers:
            self._numbers[key] = self.open(storage.nbytes(), tensor.detach())
        return place_of(tensor, self._numbers[key])

    def are_known(self, places: Iterable[Place]) -> bool:
        """Return whether the content of all is known."""
        return all(self.data[place.storage] is not None for place in places)


@dataclass(frozen=True)
class Outcome:
    """What an operator did.

    Attributes:
        result: What it returns, with a ``Place`` for each tensor.
        makes: Storages that it made and that its result lies in.
        most_bytes: Most bytes held at one time while it ran, ``makes`` included.
    """

    result: Any
    makes: tuple[int, ...]
    most_bytes: int


@dataclass(frozen=True)
class _Found:
    """An outcome that holds for any storages: ``result`` numbers arguments, then what is made."""

    result: Any
    made_bytes: tuple[int, ...]
    made_on_host: tuple[bool, ...]
    most_bytes: int


_FOUND: dict[Any, _Found] = {}


def run_operator(op: Any, args: tuple[Any, ...], storages: Storages) -> Outcome:
    """Return what ``op`` does with ``args``, the arguments of its schema in order.

    Raises:
        UnsupportedError: torch does not run it (``torch-probe-refused``), or what it gives depends
            on values of the inputs (``torch-values-decide``).
    """
    places = places_in(args)
    order = list(dict.fromkeys(place.storage for place in places))
    known = storages.are_known(places)
    key = _key(op, args, order, storages)
    found = None if known else _FOUND.get(key)
    if found is not None:
        return _placed(found, order, storages, ())
    tensors, bases = _made_up(args, order, storages)
    if not known:
        _refuse_values(op, tensors)
    found, made = _run(op, tensors, bases, storages.device)
    if known:
        small = all(nbytes <= KNOWN_BYTES for nbytes in found.made_bytes)
        return _placed(found, order, storages, made if small else ())
    if op._schema.is_mutable:
        for number in order:
            storages.data[number] = None
    _FOUND[key] = found
    return _placed(found, order, storages, ())


def _run(
    op: Any, tensors: tuple[Any, ...], bases: list[Tensor], device: torch.device
) -> tuple[_Found, tuple[Tensor, ...]]:
    args, kwargs = _by_name(op, tensors)
    results: list[Any] = []
    try:
        with torch.no_grad():
            op(*args, **kwargs)  # the first call may fill caches
            most = most_held(lambda: results.append(op(*args, **kwargs)), device)
    except _REFUSALS as error:
        raise UnsupportedError(
            "torch-probe-refused",
            f"{op} does not run on tensors of the sizes of the plan: "
            f"{str(error).partition(chr(10))[0][:200]}",
            hint="this is about the prediction only; the file is not concerned",
        ) from error
    numbers = {base.untyped_storage()._cdata: i for i, base in enumerate(bases)}
    made: list[Tensor] = []

    def placed(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        _require_strided(op, value)
        key = value.untyped_storage()._cdata
        if key not in numbers:
            numbers[key] = len(bases) + len(made)
            made.append(value)
        return place_of(value, numbers[key])

    result = tree_map(placed, results[0])
    sizes = tuple(tensor.untyped_storage().nbytes() for tensor in made)
    on_host = tuple(tensor.device.type != device.type for tensor in made)
    return _Found(result, sizes, on_host, max(most, 0)), tuple(made)


def places_in(tree: Any) -> list[Place]:
    """Return the places in nested lists and tuples."""
    return [x for x in tree_flatten(tree)[0] if isinstance(x, Place)]


def place_of(tensor: Tensor, storage: int) -> Place:
    """Return where a tensor lies in the storage with this number."""
    return Place(
        storage, tensor.dtype, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())
    )


def _placed(
    found: _Found, order: list[int], storages: Storages, contents: tuple[Tensor, ...]
) -> Outcome:
    """Return ``found`` for these storages; ``contents`` is what was made, where that is known."""
    data: tuple[Tensor | None, ...] = contents or (None,) * len(found.made_bytes)
    made = [
        storages.open(nbytes, content, on_host=on_host)
        for nbytes, content, on_host in zip(found.made_bytes, data, found.made_on_host, strict=True)
    ]
    numbers = (*order, *made)

    def renumbered(value: Any) -> Any:
        return replace(value, storage=numbers[value.storage]) if isinstance(value, Place) else value

    return Outcome(tree_map(renumbered, found.result), tuple(made), found.most_bytes)


def _made_up(
    args: tuple[Any, ...], order: list[int], storages: Storages
) -> tuple[tuple[Any, ...], list[Tensor]]:
    """Return the arguments with tensors for places, and one tensor of each storage."""
    kinds = {place.storage: place.dtype for place in reversed(places_in(args))}
    bases = []
    for number in order:
        data = storages.data[number]
        if data is None:
            count = storages.nbytes[number] // kinds[number].itemsize
            device = CPU if storages.on_host[number] else storages.device
            data = torch.empty(count, dtype=kinds[number], device=device)
            data.fill_(_filling(kinds[number]))
        bases.append(data)
    index = {number: i for i, number in enumerate(order)}

    def tensor_at(value: Any) -> Any:
        if not isinstance(value, Place):
            return value
        storage = bases[index[value.storage]].untyped_storage()
        made = torch.empty(0, dtype=value.dtype, device=storage.device)
        return made.set_(storage, value.offset, value.size, value.stride)

    return tree_map(tensor_at, args), bases


def _filling(dtype: torch.dtype) -> float | bool:
    if dtype is torch.bool:
        return False
    return 0.5 if dtype.is_floating_point or dtype.is_complex else 0


def _refuse_values(op: Any, args: tuple[Any, ...]) -> None:
    """Raise where a number or a size that ``op`` gives depends on values.

    Tensors without content say so: torch cannot read them.
    """
    sizes_vary = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output} & set(op.tags)
    gives_tensors = all("Tensor" in str(r.type) for r in op._schema.returns)
    if gives_tensors and not sizes_vary:
        return

    def empty(value: Any) -> Any:
        return value.to("meta") if isinstance(value, Tensor) else value

    positional, named = _by_name(op, tree_map(empty, args))
    try:
        with torch.no_grad():
            op(*positional, **named)
    except _REFUSALS as error:
        raise UnsupportedError(
            "torch-values-decide",
            f"what {op} gives depends on values of the inputs, not only on their sizes",
            hint="this is about the prediction only; the file is not concerned",
        ) from error


def _by_name(op: Any, args: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    positional = [a for a in op._schema.arguments if not a.kwarg_only]
    named = op._schema.arguments[len(positional) :]
    split = len(positional)
    return args[:split], {a.name: v for a, v in zip(named, args[split:], strict=False)}


def _key(op: Any, args: tuple[Any, ...], order: list[int], storages: Storages) -> Any:
    """Return what the outcome depends on: sizes, numbers, and integers that are known."""
    index = {number: i for i, number in enumerate(order)}
    items, spec = tree_flatten(args)
    described = tuple(
        replace(x, storage=index[x.storage]) if isinstance(x, Place) else (type(x), repr(x))
        for x in items
    )
    contents = tuple(
        (storages.nbytes[number], storages.on_host[number], _integers(storages.data[number]))
        for number in order
    )
    return op, str(spec), described, contents, identity_of(storages.device)


def _integers(data: Tensor | None) -> Any:
    if data is None or data.is_floating_point() or data.is_complex():
        return None
    if data.untyped_storage().nbytes() > KNOWN_BYTES:
        return None
    storage = data.untyped_storage()
    content = torch.empty(0, dtype=torch.uint8, device=data.device)
    return tuple(content.set_(storage, 0, (storage.nbytes(),), (1,)).tolist())


def _require_strided(op: Any, tensor: Tensor) -> None:
    if tensor.layout is not torch.strided or tensor.is_conj() or tensor.is_neg():
        raise UnsupportedError(
            "torch-probe-refused",
            f"{op} returns a tensor of layout {tensor.layout} or a lazy conjugate, whose bytes "
            "cannot be told from outside",
            hint="this is about the prediction only; the file is not concerned",
        )
