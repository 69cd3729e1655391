"""Counts what torch's allocators give out while something runs, on the CPU or a GPU.

On the CPU the allocator is watched by the profiler that came before kineto: it reports every
request, costs a tenth of a millisecond and prints nothing. What oneDNN or MKL keep for themselves
does not pass torch's allocators; the benchmarks count that apart. On a GPU the caching allocator
counts by itself: ``torch.cuda.memory_stats`` has the bytes that were asked for, before they are
rounded up to blocks, so figures do not depend on which blocks were free.
"""

from collections.abc import Callable
from typing import Any

import torch

from graphopt.backends.torch_device import CPU

SMALL_BYTES = 4096
"""Requests below are metadata and scalars: no arena is worth them."""
CUDA_BLOCK_BYTES = 512
"""torch's CUDA allocator gives out multiples of this: kMinBlockSize of CUDACachingAllocator.cpp.

``torch.cuda.max_memory_allocated`` counts such blocks. A block of more than 1 MiB may be larger
than asked for by up to 1 MiB more: its allocator does not split off less than that.
"""

_PROFILER: Any = torch._C._profiler
_AUTOGRAD: Any = torch.autograd
_REQUESTED = "requested_bytes.all"


def block_bytes(device: torch.device) -> int:
    """Return what the allocator of a device rounds requests up to, 1 for not at all."""
    return 1 if device.type == "cpu" else CUDA_BLOCK_BYTES


def requested_bytes(run: Callable[[], object], device: torch.device = CPU) -> list[int]:
    """Return the requests of ``SMALL_BYTES`` or more that ``run`` makes of torch's allocators.

    On a GPU they are one figure, their sum with smaller ones, left out where it is small itself.
    """
    if device.type != "cpu":
        total = cuda_requested(run, device)
        return [total] if total >= SMALL_BYTES else []
    return [size for sizes in _cpu_events(run) for size in sizes if size >= SMALL_BYTES]


def most_held(run: Callable[[], object], device: torch.device = CPU) -> int:
    """Return the most bytes of torch's allocators that ``run`` holds at one time."""
    if device.type != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_stats(device)[f"{_REQUESTED}.current"]
        run()
        return int(torch.cuda.memory_stats(device)[f"{_REQUESTED}.peak"] - before)
    # Events have an order within a thread only: peaks of several threads are taken as one.
    total = 0
    for sizes in _cpu_events(run):
        held = most = 0
        for size in sizes:
            held += size
            most = max(most, held)
        total += most
    return total


def cuda_requested(run: Callable[[], object], device: torch.device) -> int:
    """Return the bytes that ``run`` asks of the CUDA allocator, all requests together."""
    key = f"{_REQUESTED}.allocated"
    before = torch.cuda.memory_stats(device)[key]
    run()
    return int(torch.cuda.memory_stats(device)[key] - before)


def _cpu_events(run: Callable[[], object]) -> list[list[int]]:
    """Return the bytes taken, and given back as negative ones, in order, thread by thread."""
    config = _PROFILER.ProfilerConfig(
        _PROFILER.ProfilerState.CPU,
        False,  # shapes
        True,  # memory
        False,  # stack
        False,  # operations
        False,  # modules
        _PROFILER._ExperimentalConfig(),
    )
    _AUTOGRAD._enable_profiler_legacy(config)
    try:
        run()
    finally:
        threads = _AUTOGRAD._disable_profiler_legacy()
    return [
        [int(event.cpu_memory_usage()) for event in events if event.kind() == "memory_alloc"]
        for events in threads
    ]
