"""Replays an arena module as one CUDA graph: every kernel of a call in one launch.

In: a module with an arena, loaded on a GPU, and inputs of its sizes. Out: a function that computes
the same. What always holds: a call takes no memory; inputs and outputs have places of their own
beside the arena, made once; what operators took while they were captured is known and was allowed.

Such a module writes at the same addresses in every call, at one set of sizes: what a CUDA graph
asks for. It is meant for networks whose kernels take longer to launch than to run.
"""

import functools
import gc
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from graphopt.backends.torch_counts import SMALL_BYTES, most_held
from graphopt.backends.torch_device import require_device
from graphopt.backends.torch_trace import torch_quiet
from graphopt.errors import OptionError, UnsupportedError

_ROWS = torch.contiguous_format
_OTHER_SIZES = ": expected sizes "  # what the module says itself
# The executor of TorchScript looks at the first calls; libraries make handles and workspaces.
_CALLS_BEFORE = 3


class StaticCall:
    """A call of an arena module on tensors that stay where they are.

    Attributes:
        inputs: Copied into before a call.
        outputs: What a call leaves; the next one writes over it.
    """

    def __init__(self, module: Any, inputs: Sequence[Tensor]) -> None:
        self._module = module
        self.inputs = tuple(torch.empty_like(x).copy_(x) for x in map(_contiguous, inputs))
        with torch.no_grad(), torch_quiet():
            try:
                found = module(*self.inputs)
            except RuntimeError as error:
                if _OTHER_SIZES not in str(error):
                    raise
                raise _refused_inputs(str(error)) from error
        self.outputs = tuple(torch.empty_like(y, memory_format=_ROWS).copy_(y) for y in found)

    def run(self) -> None:
        """Compute the outputs from the inputs."""
        with torch.no_grad():
            self._module.run_into(*self.inputs, list(self.outputs))

    def load(self, inputs: Sequence[Tensor]) -> None:
        """Copy ``inputs`` to where the call reads them.

        Raises:
            OptionError: they have other sizes or types (``cuda-graph-inputs``).
        """
        if len(inputs) != len(self.inputs):
            raise _refused_inputs(f"expected {len(self.inputs)} tensors, got {len(inputs)}")
        for number, (place, given) in enumerate(zip(self.inputs, inputs, strict=True)):
            if (place.shape, place.dtype) != (given.shape, given.dtype):
                expected, got = _form(place), _form(given)
                raise _refused_inputs(f"input {number}: expected {expected}, got {got}")
            place.copy_(given)


class CudaGraph:
    """A captured call. Calling it returns its output tensors, over which the next call writes.

    Attributes:
        extra_bytes: Most bytes that operators held beside the arena while they were captured; the
            graph keeps memory for them.
    """

    def __init__(self, call: StaticCall, replay: Callable[[], object], extra_bytes: int) -> None:
        self._call = call
        self._replay = replay
        self.extra_bytes = extra_bytes

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The tensors that every call leaves its results in."""
        return self._call.outputs

    def replay(self) -> None:
        """Compute again from the inputs of the last call."""
        self._replay()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Copy the inputs to their places, compute, and return the outputs.

        Raises:
            OptionError: they have other sizes or types (``cuda-graph-inputs``).
        """
        self._call.load(inputs)
        self._replay()
        return self._call.outputs


def cuda_graph(
    module: Any, inputs: Sequence[Tensor], *, most_bytes: int = SMALL_BYTES
) -> CudaGraph:
    """Return ``module`` as a CUDA graph.

    The module must not be called otherwise while the graph is in use: both write into one arena.

    Args:
        module: What ``torch.jit.load`` gives for a file that was saved with ``arena=True`` for a
            target that is a GPU.
        inputs: Tensors on that GPU, of the sizes of the plan. Their values do not matter, save that
            the module is called on them.
        most_bytes: What operators may hold beside the arena, which the graph then keeps: scratch
            of convolutions, and results that torch cannot direct. ``not_enforced`` in the file's
            ``graphopt_arena.json`` lists them.

    Raises:
        UnsupportedError: torch sees no GPU (``cuda-missing``), the module has no arena
            (``cuda-graph-module``), takes more memory (``cuda-graph-memory``), or does what cannot
            be captured (``cuda-graph-refused``).
        OptionError: the inputs are not for this module (``cuda-graph-inputs``).
    """
    if not hasattr(module, "run_into"):
        raise UnsupportedError(
            "cuda-graph-module",
            f"a CUDA graph is captured of a module with an arena, got {type(module).__name__} "
            "without a method run_into",
            hint="save with arena=True, and load that file",
        )
    device = torch.device("cuda")
    require_device(device, "a CUDA graph")
    places = {str(x.device) for x in (*inputs, module.arenas.device_mark)}
    if len(places) != 1 or not all(x.is_cuda for x in inputs):
        raise _refused_inputs(f"module and inputs on one GPU expected, got {sorted(places)}")
    device = module.arenas.device_mark.device
    with torch.cuda.device(device):
        call = StaticCall(module, inputs)
        graph, held = _captured(call, device)
    if held > most_bytes:
        raise UnsupportedError(
            "cuda-graph-memory",
            f"operators held {held:,} bytes beside the arena while they were captured, "
            f"{most_bytes:,} are allowed",
            hint=f"allow them with most_bytes={held}, or call the module without a graph",
        )
    return CudaGraph(call, graph.replay, held)


@functools.cache
def _stream(device: torch.device) -> Any:
    """Return the stream of all captures on a GPU: cuBLAS keeps a workspace for every stream."""
    cuda: Any = torch.cuda  # without annotations
    return cuda.Stream(device)


def _captured(call: StaticCall, device: torch.device) -> tuple[Any, int]:
    """Return the graph of a call, and the bytes that it took meanwhile."""
    graph: Any = torch.cuda.CUDAGraph()
    stream = _stream(device)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch_quiet():
        for _ in range(_CALLS_BEFORE):
            call.run()
    torch.cuda.current_stream().wait_stream(stream)

    def capture() -> None:
        with torch_quiet(), torch.cuda.graph(graph, stream=stream):
            call.run()

    torch.cuda.synchronize(device)
    gc.collect()  # what it would free while the graph is captured is not the graph's
    try:
        held = most_held(capture, device)
    except RuntimeError as error:
        raise UnsupportedError(
            "cuda-graph-refused",
            f"CUDA cannot capture a call: {str(error).partition(chr(10))[0][:300]}",
            hint="call the module without a graph",
        ) from error
    return graph, held


def _contiguous(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous()


def _form(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} of type {str(tensor.dtype).removeprefix('torch.')}"


def _refused_inputs(what: str) -> OptionError:
    return OptionError(
        "cuda-graph-inputs",
        f"these inputs are not for this module: {what.strip().splitlines()[-1][:300]}",
        hint="give tensors of the sizes of the plan on the GPU of the module",
    )
