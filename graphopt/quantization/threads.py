"""Work on parts of an array in several threads: numpy lets go of the interpreter while it computes.

Each part is computed alone and lands in its own place, so the result does not depend on the number
of threads.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Part = TypeVar("Part")
Result = TypeVar("Result")

_MOST_THREADS = 8


def each(function: Callable[[Part], Result], parts: Iterable[Part]) -> list[Result]:
    """Return ``function`` of every part, in order.

    A function that fails fails here, as it would in a loop.
    """
    items = list(parts)
    # Where the system does not say which processors a process may use, all that there are.
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = min(_MOST_THREADS, usable or 1, len(items))
    if count <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(count, thread_name_prefix="graphopt") as pool:
        return list(pool.map(function, items))
