"""Predicts the peak of one call of a TorchScript module without running the module.

In: a module as it was traced, and types and sizes of its inputs. Out: a ``CallPeak``. The graph is
walked in its order, which is the order of the plan: each distinct operator runs once, alone, on
made-up tensors of the device (``torch_scratch``), which says where its results lie and what it
holds besides. From that alone lifetimes follow: TorchScript frees a value after the last operator
that takes it.
Numbers and sizes are computed; no more than one operator's tensors exist at a time.

Where values of the inputs choose between two blocks, the graph is walked once for each choice and
the largest peak counts. Other decisions by values are an error: no peak follows from sizes then.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from graphopt.backends.torch_counts import block_bytes
from graphopt.backends.torch_device import CPU, name_of, require_device
from graphopt.backends.torch_follow import overload_of
from graphopt.backends.torch_ops.dtypes import BYTE_TYPES, TORCH_TYPES
from graphopt.backends.torch_scratch import Outcome, Storages, places_in, run_operator
from graphopt.backends.torch_tape import Place
from graphopt.backends.torch_trace import torch_quiet
from graphopt.errors import UnsupportedError
from graphopt.ir.dims import evaluate, symbols_of
from graphopt.ir.program import Program, dims_of
from graphopt.memory.call_peak import CallPeak, CallStep, CallStorage, call_peak
from graphopt.memory.plan import CallPrediction

_MOST_WALKS = 32
_COUNTED = (
    "requests of torch's allocators in one call after two to warm up, results included; not inputs "
    "and weights, nor what MKL, oneDNN and the C library keep for themselves"
)
_COUNTED_ON_CUDA = (
    "blocks of torch's CUDA allocator in one call after some to warm up, without TorchScript's "
    "fuser, results included: torch.cuda.max_memory_allocated less torch.cuda.memory_allocated "
    "before the call; not inputs and weights"
)
_UNKNOWN = object()  # a condition that depends on values of the inputs

Inputs = Sequence[tuple[torch.dtype, tuple[int, ...]]]


def inputs_at(program: Program, bindings: Mapping[str, int]) -> Inputs:
    """Return types and sizes of the inputs of ``program`` when its dimensions have these sizes.

    Raises:
        UnsupportedError: an input has no known size or no type in torch (``torch-sizes-open``).
    """
    found = []
    for value in program.graph.inputs:
        dims = dims_of(value)
        number = int(value.dtype or 0)
        dtype = TORCH_TYPES.get(number, BYTE_TYPES.get(number))
        is_open = dims is None or any(symbols_of(d) - bindings.keys() for d in dims)
        if dims is None or is_open or dtype is None:
            raise UnsupportedError(
                "torch-sizes-open",
                f"input '{value.name}' has no size or no type of torch",
                hint="bind its dimensions: bindings={...} of compile, or --dim NAME=SIZE",
            )
        found.append((dtype, tuple(int(evaluate(d, bindings)) for d in dims)))
    return found


def predict_call_peak(module: Any, inputs: Inputs, device: torch.device = CPU) -> CallPeak:
    """Return the peak of one call of a TorchScript module that has been called before.

    The module follows its inputs (``follow_inputs``); its weights may lie on another device.

    Raises:
        UnsupportedError: there is no such device (``cuda-missing``), an operator does not run alone
            (``torch-probe-refused``), or what runs depends on values of the inputs
            (``torch-values-decide``).
    """
    require_device(device, "a prediction for CUDA")
    graph = module.inlined_graph
    names = [value.debugName() for value in graph.inputs()]
    largest: CallPeak | None = None
    pending: list[tuple[bool, ...]] = [()]
    for _ in range(_MOST_WALKS):
        if not pending:
            break
        walk = _Walk(pending.pop(), device)
        walk.values[names[0]] = module
        for name, (dtype, size) in zip(names[1:], inputs, strict=True):
            walk.values[name] = walk.input(dtype, size)
        try:
            walk.run(graph)
        except _RaisingError:
            pending.extend(walk.others())
            continue
        pending.extend(walk.others())
        results = places_in([walk.values[value.debugName()] for value in graph.outputs()])
        kept = {place.storage for place in results}
        peak = call_peak(walk.steps, walk.made, kept, block_bytes=block_bytes(device))
        if largest is None or peak.peak_bytes > largest.peak_bytes:
            largest = peak
    if pending or largest is None:
        what = f"more than {_MOST_WALKS} ways to run" if pending else "every way to run raises"
        raise _decided(f"values of the inputs choose between blocks: {what}")
    return largest


def torchscript_prediction(
    module: Any, program: Program, bindings: Mapping[str, int], device: torch.device = CPU
) -> CallPrediction:
    """Return what one call of ``module``, traced from ``program``, holds at most at these sizes.

    Where it cannot be told, the prediction says why: for a GPU, also that there is none here.
    """
    on_cpu = device.type == "cpu"
    version, counted = str(torch.__version__), _COUNTED if on_cpu else _COUNTED_ON_CUDA
    options = {"threads": torch.get_num_threads()} if on_cpu else {"block": block_bytes(device)}
    figures: dict[str, Any]
    try:
        with torch_quiet():
            peak = predict_call_peak(module, inputs_at(program, bindings), device)
    except UnsupportedError as refusal:
        figures = {"reason": refusal.message}
    else:
        figures = {
            "peak_bytes": peak.peak_bytes,
            "live_bytes": peak.live_bytes,
            "scratch_bytes": peak.scratch_bytes,
            "liveness_bytes": peak.liveness_bytes,
            "op": peak.op,
            "value": peak.name,
            "owners": peak.owners,
        }
        version += "" if on_cpu else f", {name_of(device)}"
    return CallPrediction(version=version, options=options, counted=counted, **figures)


class _RaisingError(Exception):
    """A block that is no part of a call that returns."""


def _decided(what: str) -> UnsupportedError:
    return UnsupportedError(
        "torch-values-decide",
        what,
        hint="this is about the prediction only; the file is not concerned",
    )


class _Walk:
    """Runs the nodes of a graph, each on its own; tensors are places."""

    def __init__(self, choices: tuple[bool, ...], device: torch.device) -> None:
        self._choices = choices
        self._taken: list[bool] = []
        self.values: dict[str, Any] = {}
        self.steps: list[CallStep] = []
        self.storages = Storages(device)
        self._made: dict[int, CallStorage] = {}

    def others(self) -> list[tuple[bool, ...]]:
        """Return the choices that differ from those taken here after those that were given."""
        taken = tuple(self._taken)
        return [(*taken[:i], not taken[i]) for i in range(len(self._choices), len(taken))]

    @property
    def made(self) -> list[CallStorage | None]:
        """By number of a storage, what the call made; None for what it was given."""
        return [self._made.get(number) for number in range(len(self.storages.nbytes))]

    def input(self, dtype: torch.dtype, size: tuple[int, ...]) -> Place:
        """Return the place of an input: contiguous, in a storage of its own."""
        like = torch.empty(size, dtype=dtype, device="meta")
        number = self.storages.open(like.numel() * dtype.itemsize)
        return Place(number, dtype, size, like.stride(), 0)

    def run(self, block: Any) -> None:
        """Run the nodes of a block in order."""
        for node in block.nodes():
            kind = node.kind()
            if kind == "prim::If":
                self._branch(node)
            elif kind == "prim::RaiseException":
                raise _RaisingError
            elif kind == "prim::Uninitialized":
                self._bind(node, [None])
            elif kind == "prim::device":
                self._bind(node, [self.storages.device])
            elif node.schema() != "(no schema)":
                self._call(node)
            else:
                self._plain(node, kind)

    def _plain(self, node: Any, kind: str) -> None:
        """Run a node that computes nothing."""
        inputs = [self.values[value.debugName()] for value in node.inputs()]
        match kind:
            case "prim::Constant":
                self._bind(node, [self._held(_constant(node))])
            case "prim::GetAttr":
                self._bind(node, [self._held(getattr(inputs[0], node.s("name")))])
            case "prim::ListConstruct":
                self._bind(node, [inputs])
            case "prim::TupleConstruct":
                self._bind(node, [tuple(inputs)])
            case "prim::ListUnpack" | "prim::TupleUnpack":
                self._bind(node, inputs[0])
            case _:
                raise _decided(f"{kind} at value '{_name(node)}' does not run by sizes alone")

    def _held(self, value: Any) -> Any:
        return self.storages.held(value) if isinstance(value, Tensor) else value

    def _bind(self, node: Any, results: Sequence[Any]) -> None:
        for value, result in zip(node.outputs(), results, strict=True):
            self.values[value.debugName()] = result

    def _branch(self, node: Any) -> None:
        condition = self.values[next(iter(node.inputs())).debugName()]
        if condition is _UNKNOWN:
            number = len(self._taken)
            condition = self._choices[number] if number < len(self._choices) else True
            self._taken.append(condition)
        block = list(node.blocks())[0 if condition else 1]
        self.run(block)
        self._bind(node, [self.values[value.debugName()] for value in block.outputs()])

    def _call(self, node: Any) -> None:
        op = _overload(node)
        args = tuple(self.values[value.debugName()] for value in node.inputs())
        try:
            outcome = run_operator(op, args, self.storages)
        except UnsupportedError as refusal:
            if refusal.code != "torch-values-decide" or not _only_chooses(node):
                raise
            outcome = Outcome(_UNKNOWN, (), 0)
        name = _name(node)
        for number in outcome.makes:
            # What an operator leaves on the CPU is not in the figures of another device.
            size = 0 if self.storages.on_host[number] else self.storages.nbytes[number]
            self._made[number] = CallStorage(name, node.kind(), size)
        reads = tuple(dict.fromkeys(place.storage for place in places_in(args)))
        if reads or outcome.most_bytes:
            step = CallStep(name, node.kind(), reads, outcome.makes, outcome.most_bytes)
            self.steps.append(step)
        outputs = list(node.outputs())
        self._bind(node, [outcome.result] if len(outputs) == 1 else outcome.result)


def _constant(node: Any) -> Any:
    # A traced constant of rank 0 would come out as a number, where an operator takes a tensor.
    if node.hasAttribute("value") and node.kindOf("value") == "t":
        return node.t("value")
    return node.output().toIValue()


def _only_chooses(node: Any) -> bool:
    """Return whether all that a node gives is a condition of branches."""
    uses = [use for value in node.outputs() for use in value.uses()]
    return all(use.user.kind() == "prim::If" for use in uses)


def _name(node: Any) -> str:
    outputs = list(node.outputs())
    return str(outputs[0].debugName()) if outputs else ""


def _overload(node: Any) -> Any:
    found = overload_of(node)
    if found is None:
        raise UnsupportedError(
            "torch-probe-refused",
            f"{node.kind()} at value '{_name(node)}' is no operator that runs alone",
            hint="this is about the prediction only; the file is not concerned",
        )
    return found
