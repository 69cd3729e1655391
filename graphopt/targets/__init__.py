"""Targets: one TOML descriptor per device, found by name or path.

The names below are loaded on first use: they need pydantic, and ``graphopt --help`` must not
wait for it.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphopt.targets.loader import Problem as Problem
    from graphopt.targets.loader import TargetSummary as TargetSummary
    from graphopt.targets.loader import list_targets as list_targets
    from graphopt.targets.loader import resolve_target as resolve_target
    from graphopt.targets.loader import validate_target as validate_target
    from graphopt.targets.schema import Pool as Pool
    from graphopt.targets.schema import Target as Target

_MODULE_BY_NAME = {
    "Pool": "graphopt.targets.schema",
    "Problem": "graphopt.targets.loader",
    "Target": "graphopt.targets.schema",
    "TargetSummary": "graphopt.targets.loader",
    "list_targets": "graphopt.targets.loader",
    "resolve_target": "graphopt.targets.loader",
    "validate_target": "graphopt.targets.loader",
}

__all__ = [
    "Pool",
    "Problem",
    "Target",
    "TargetSummary",
    "list_targets",
    "resolve_target",
    "validate_target",
]


def __getattr__(name: str) -> object:
    module = _MODULE_BY_NAME.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
