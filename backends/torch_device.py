"""The device that a file for torch is planned for: the CPU, or the GPU that torch calls CUDA.

In: a target, by its kind. Out: a device of torch, and what planning on it needs. What always holds:
a figure or a form that was found on one device is never used for another; ``identity_of`` is part
of the key under which such findings are kept.

An ordinary file is written on the CPU and follows its inputs. Only what is tried out, the arena of
a module and the prediction for a call, is made on the device itself, which must be there then.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from graphopt.errors import UnsupportedError

CPU = torch.device("cpu")
_GPU_KIND = "gpu"


def device_of_target(target: Mapping[str, Any]) -> torch.device:
    """Return the device of a resolved target, as the plan holds it."""
    return torch.device("cuda") if target["kind"] == _GPU_KIND else CPU


def require_device(device: torch.device, what: str) -> None:
    """Raise where this torch has no such device; ``what`` is to be done on it.

    Raises:
        UnsupportedError: torch sees no GPU (``cuda-missing``), or its memory is not counted
            (``cuda-allocator``).
    """
    if device.type == "cpu":
        return
    if not torch.cuda.is_available():
        raise UnsupportedError(
            "cuda-missing",
            f"{what} is made on a GPU, and torch {torch.__version__} sees none here",
            hint="do it on a machine with CUDA, or compile for target='cpu'",
        )
    allocator = torch.cuda.get_allocator_backend()
    if allocator != "native":
        raise UnsupportedError(
            "cuda-allocator",
            f"{what} counts what torch's own CUDA allocator gives out, and '{allocator}' is in use",
            hint="leave 'backend' out of PYTORCH_CUDA_ALLOC_CONF",
        )


def name_of(device: torch.device) -> str:
    """Return the name of the chip, "cpu" for the CPU."""
    if device.type == "cpu":
        return "cpu"
    name: str = torch.cuda.get_device_name(device)
    return name


def identity_of(device: torch.device) -> tuple[str, str, int]:
    """Return what a finding about operators depends on: torch, the chip, the threads of the CPU."""
    return str(torch.__version__), name_of(device), torch.get_num_threads()


@contextlib.contextmanager
def working_on(device: torch.device) -> Iterator[None]:
    """Make new tensors on ``device``, where a GPU computes float32 as float32.

    By default torch lets convolutions of a GPU round float32 to TF32, which has 10 bits of 23: a
    file that is compared with the CPU, or a form with its operator, would show that difference.
    """
    if device.type == "cpu":
        yield
        return
    with exact_float32(), device:
        yield


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Have convolutions and recurrent layers of a GPU keep all bits of float32.

    Products keep them by default.
    """
    backend: Any = torch.backends.cudnn  # without annotations
    parts = (backend.conv, backend.rnn)
    before = [part.fp32_precision for part in parts]
    # The older of torch's two settings; its getter raises where somebody has used the newer one.
    backend.allow_tf32 = False
    try:
        yield
    finally:
        backend.allow_tf32 = before[0] == "tf32"
        for part, precision in zip(parts, before, strict=True):
            part.fp32_precision = precision
