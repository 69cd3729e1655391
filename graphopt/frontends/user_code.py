"""Where in the user's own code something happened.

Frames of the standard library, of graphopt, and of the packages that trace or run a module are not
the user's; everything else is, installed packages included.
"""

import importlib.util
import os
import re
import sysconfig
import traceback
from dataclasses import dataclass
from functools import cache

_MAX_CODE_CHARS = 120
_FRAME = re.compile(
    r'File "(?P<file>[^"\n]+)", line (?P<line>\d+), in [^\n]*\n[ \t]*(?P<code>[^\n]*)'
)


@dataclass(frozen=True)
class SourceLine:
    """A line of the user's code."""

    file: str
    line: int
    code: str

    def __str__(self) -> str:
        place = f"{_shorter(self.file)}:{self.line}"
        code = self.code
        if len(code) > _MAX_CODE_CHARS:
            code = f"{code[:_MAX_CODE_CHARS]} ..."
        return f"{place}: {code}" if code else place


def _shorter(path: str) -> str:
    """Return a path inside the working directory relative to it, any other one as it is."""
    prefix = os.getcwd() + os.sep
    return path.removeprefix(prefix)


def source_of(stack_trace: str | None) -> SourceLine | None:
    """Return the innermost line of user code in a stack trace that torch left on a node."""
    lines = [
        SourceLine(found["file"], int(found["line"]), found["code"].strip())
        for found in _FRAME.finditer(stack_trace or "")
    ]
    return next((line for line in reversed(lines) if _is_users(line.file)), None)


@cache
def _foreign_folders() -> tuple[tuple[str, ...], str]:
    """Return the folders whose code is not the user's, and the one inside them that may be."""
    folders = [sysconfig.get_path("stdlib"), os.path.dirname(os.path.dirname(__file__))]
    for package in ("torch", "onnxscript", "onnx_ir"):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            folders.append(os.path.dirname(spec.origin))
    return tuple(folder + os.sep for folder in folders), sysconfig.get_path("purelib") + os.sep


def _is_users(file: str) -> bool:
    foreign, site = _foreign_folders()
    if file.startswith("<"):
        return False
    # The installed packages lie inside the folder of the standard library.
    stdlib, *others = foreign
    if file.startswith(tuple(others)):
        return False
    return file.startswith(site) or not file.startswith(stdlib)


def chain_of(error: BaseException) -> list[BaseException]:
    """Return ``error`` and what caused it, outermost first."""
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in found:
        found.append(current)
        current = current.__cause__ or current.__context__
    return found


def line_raising(error: BaseException) -> SourceLine | None:
    """Return the innermost line of user code that the exception, or one behind it, passed."""
    for one in reversed(chain_of(error)):
        frames = traceback.extract_tb(one.__traceback__)
        for frame in reversed(frames):
            if _is_users(frame.filename):
                return SourceLine(frame.filename, frame.lineno or 0, (frame.line or "").strip())
    return None
