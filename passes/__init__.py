"""The passes by name; importing this file imports no pass.

A pass is one file, one line here, one folder of golden texts.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphopt.pipeline.base import Pass

REGISTRY: dict[str, str] = {}


def load_pass(name: str) -> "type[Pass]":
    """Return the pass class called ``name``.

    Raises:
        KeyError: no pass has that name.
    """
    module, _, attribute = REGISTRY[name].partition(":")
    found: type[Pass] = getattr(importlib.import_module(module), attribute)
    return found
