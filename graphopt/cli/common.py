"""What several verbs share: reading ``NAME=SIZE``, loading any kind of model, progress, output."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from graphopt.errors import OptionError
from graphopt.units import parse_bytes

_MOST_UNKNOWN = 5
_UNKNOWN_WIDTH = 80


def parse_dims(texts: Sequence[str]) -> dict[str, int]:
    """Return ``{"batch": 4}`` from ``["batch=4"]``.

    Raises:
        OptionError: a text is no NAME=SIZE.
    """
    sizes = {}
    for text in texts:
        name, separator, size = text.partition("=")
        if not separator or not name or not size.isdecimal():
            raise OptionError("dim-unreadable", f"not a size: '{text}'", hint="write --dim batch=4")
        sizes[name] = int(size)
    return sizes


def parse_limits(texts: Sequence[str]) -> int | dict[str, int | str] | None:
    """Return the memory limit that ``["320KiB"]`` or ``["sram=320KiB", ...]`` states.

    Raises:
        OptionError: a size is unreadable, or a plain size stands beside others.
    """
    if not texts:
        return None
    if len(texts) == 1 and "=" not in texts[0]:
        return parse_bytes(texts[0])
    limits: dict[str, int | str] = {}
    for text in texts:
        pool, separator, size = text.partition("=")
        if not separator:
            raise OptionError(
                "size-unreadable",
                f"limit '{text}' names no pool",
                hint="write one size, or POOL=SIZE for each pool",
            )
        limits[pool] = parse_bytes(size)
    return limits


class Loaded:
    """A model as the command line names it: what to hand to the API."""

    def __init__(self, text: str) -> None:
        from graphopt.frontends.factory import is_factory

        self.text = text
        self.model: Any = text
        self.example_inputs: Any = None
        self.dynamic_shapes: Any = None
        if is_factory(text):
            from graphopt.frontends.factory import load_factory

            note(f"running the code of '{text}' to build the model")
            made = load_factory(text)
            self.model = made.module
            self.example_inputs = made.example_inputs
            self.dynamic_shapes = made.dynamic_shapes


def note(text: str) -> None:
    """Print one line to stderr."""
    print(f"graphopt: {text}", file=sys.stderr)


def progress_line() -> Callable[[int, int, str], None] | None:
    """Return a progress callback that rewrites one line of a terminal; None elsewhere.

    It clears the line when the index is the count.
    """
    if not sys.stderr.isatty() or os.environ.get("CI"):
        return None

    def show(index: int, count: int, name: str) -> None:
        # A line that is wrapped could not be cleared.
        width = os.get_terminal_size(sys.stderr.fileno()).columns or _UNKNOWN_WIDTH
        text = f"[{index}/{count}] {name}"[: width - 1] if index < count else ""
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    return show


def text_style() -> dict[str, Any]:
    """Return width and character set for tables on this stdout."""
    encoding = (getattr(sys.stdout, "encoding", "") or "").lower()
    width = 100
    if sys.stdout.isatty():
        width = max(60, min(160, os.get_terminal_size(sys.stdout.fileno()).columns))
    return {"width": width, "unicode": encoding.startswith("utf")}


def unknown_shapes(unresolved: Mapping[str, str]) -> list[str]:
    """Return a few lines about values whose shape is unknown; --json has them all."""
    lines = [f"unknown shape: {n}: {reason}" for n, reason in unresolved.items()]
    if len(lines) > _MOST_UNKNOWN:
        more = len(lines) - _MOST_UNKNOWN
        lines = [*lines[:_MOST_UNKNOWN], f"... and {more} more values of unknown shape (--json)"]
    return lines


def write_text(path: Path, text: str, inputs: Sequence[Path] = ()) -> None:
    """Write ``text`` to ``path`` whole or not at all.

    Raises:
        OutputError: it could not be written.
    """
    from graphopt.safe_files import write_file

    write_file(path, text.encode(), inputs=inputs)
