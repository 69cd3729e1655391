"""Compiles the search with numba when it is installed (extra ``fast``), else leaves it as is."""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])

#: True when the search runs compiled; without numba the same code runs in Python, far slower.
IS_COMPILED: bool = importlib.util.find_spec("numba") is not None


def jit(function: _Function) -> _Function:
    """Return ``function`` compiled, cached on disk so that only the first run ever compiles."""
    if not IS_COMPILED:
        return function
    numba = importlib.import_module("numba")
    # No function here allocates or keeps an array, so the reference counts of the 40 arrays of a
    # State need not be kept either: counting them makes the search 30 times slower.
    compiled: _Function = numba.njit(cache=True, _nrt=False)(function)
    return compiled
