"""What the TorchScript and the ``.pt2`` backend share: samples, running a file, torch's warnings.

TorchScript is deprecated in torch 2.11 and later: every use of it warns. It stays an output format
of graphopt; the warnings end here.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor, fx

from graphopt.backends.torch_device import CPU, exact_float32, working_on
from graphopt.backends.torch_lowering import NamingInterpreter, torch_tensor
from graphopt.backends.torch_ops.dtypes import NUMBERS
from graphopt.errors import UnsupportedError

Feed = Mapping[str, npt.NDArray[Any]]
Outputs = dict[str, npt.NDArray[Any]]
Run = Callable[[Feed], Outputs]
# Called with a function that runs the file as it was read back; raises to have nothing written.
Check = Callable[[Run], None]


@contextlib.contextmanager
def torch_quiet() -> Iterator[None]:
    """Keep the deprecation warnings of TorchScript and the remarks of its tracer to itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def tensors_of(feed: Feed, names: Sequence[str]) -> tuple[Tensor, ...]:
    """Return the arrays of a feed as tensors, in the order of ``names``.

    Raises:
        UnsupportedError: torch has no such type.
    """
    return tuple(torch_tensor(ir.tensor(np.asarray(feed[n])), n).clone() for n in names)


def array_of(tensor: Tensor) -> npt.NDArray[Any]:
    """Return a tensor as an array of the same type, also where numpy itself has none."""
    plain = tensor.detach().cpu().contiguous()
    known = ir.DataType(NUMBERS[plain.dtype]).numpy()
    if known.kind in "biufc" and known.num <= 23:
        return plain.numpy()
    carrier = torch.int16 if plain.dtype.itemsize == 2 else torch.uint8
    return plain.reshape(-1).view(carrier).numpy().view(known).reshape(tuple(plain.shape))


def signature(module: Any) -> dict[str, tuple[str, ...]]:
    """Return the names of inputs and outputs of a lowered module, in order."""
    return {"inputs": module.graphopt_inputs, "outputs": module.graphopt_outputs}


def running(
    module: fx.GraphModule, feeds: Sequence[Feed], device: torch.device = CPU
) -> list[tuple[Tensor, ...]]:
    """Return the samples that the module accepts, at least one, on the device of the module.

    Raises:
        UnsupportedError: an operator has no torch form for this model, or no sample runs.
    """
    names = signature(module)["inputs"]
    refusal: Exception | None = None
    samples = []
    for feed in feeds:
        sample = tuple(tensor.to(device) for tensor in tensors_of(feed, names))
        try:
            with torch.no_grad(), torch_quiet(), working_on(device):
                NamingInterpreter(module).run(*sample)
        except UnsupportedError:
            raise
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            refusal = refusal or error
        else:
            samples.append(sample)
    if samples:
        return samples
    raise UnsupportedError(
        "torch-sample-refused",
        f"torch does not run the model on any of {len(feeds)} samples: "
        f"{str(refusal).partition(chr(10))[0][:200]}",
        hint="give example inputs or sizes (--dim NAME=SIZE), or save as .onnx",
    )


def runner(
    called: Callable[..., Any],
    inputs: Sequence[str],
    outputs: Sequence[str],
    device: torch.device = CPU,
) -> Run:
    """Return a function that runs a reloaded module, which is on ``device``, on a feed."""

    def run(feed: Feed) -> Outputs:
        given = [tensor.to(device) for tensor in tensors_of(feed, inputs)]
        exact = contextlib.nullcontext() if device.type == "cpu" else exact_float32()
        with torch.no_grad(), torch_quiet(), exact:
            found = called(*given)
        values = found if isinstance(found, (tuple, list)) else (found,)
        return {name: array_of(value) for name, value in zip(outputs, values, strict=True)}

    return run


def refused(what: str, error: Exception) -> UnsupportedError:
    """Return the error for a model that torch runs but cannot write."""
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return UnsupportedError(
        "torch-capture-failed",
        f"torch cannot write this model as {what}: {type(error).__name__}: {first[:300]}",
        hint="save as .onnx, or in the other torch format",
    )
