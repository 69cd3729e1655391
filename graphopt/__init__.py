"""graphopt: a model compiler for memory."""

from graphopt._version import __version__

__all__ = ["__version__"]
