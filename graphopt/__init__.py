"""graphopt: a model compiler for memory.

``compile``, ``plan`` and ``fit`` are the calls; everything else here is what they take or return.
Importing this package imports neither torch nor onnxruntime: names are loaded when they are first
used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from graphopt._version import __version__
from graphopt.api import compile, fit, plan
from graphopt.errors import (
    DoesNotFitError,
    GraphoptError,
    InvalidModelError,
    InvariantError,
    OptionError,
    OutputError,
    PassFailed,
    UnsupportedError,
    VerificationError,
)

if TYPE_CHECKING:
    from graphopt.fitting import FitReport
    from graphopt.memory.plan import MemoryPlan
    from graphopt.numerics.compare import Tolerance
    from graphopt.result import CompileResult
    from graphopt.targets.schema import Target

_LAZY = {
    "CompileResult": "graphopt.result",
    "FitReport": "graphopt.fitting",
    "MemoryPlan": "graphopt.memory.plan",
    "Target": "graphopt.targets.schema",
    "Tolerance": "graphopt.numerics.compare",
}

__all__ = [
    "CompileResult",
    "DoesNotFitError",
    "FitReport",
    "GraphoptError",
    "InvalidModelError",
    "InvariantError",
    "MemoryPlan",
    "OptionError",
    "OutputError",
    "PassFailed",
    "Target",
    "Tolerance",
    "UnsupportedError",
    "VerificationError",
    "__version__",
    "compile",
    "fit",
    "plan",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'graphopt' has no attribute '{name}'")
