"""From an exception to what the user reads and the exit code the shell sees."""

import json
import os
import sys
import traceback
from typing import Any

import typer

from graphopt.errors import GraphoptError

# Typer carries its own copy of click in some releases and depends on it in others: the base of its
# usage errors is found through the class that it exports.
_USAGE_ERROR: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
INTERRUPTED = 130
_ISSUE_HINT = "this is a defect of graphopt: please report it with the lines above"


def report_error(error: BaseException, *, as_json: bool) -> int:
    """Print ``error`` to stderr (to stdout as JSON) and return the exit code."""
    if isinstance(error, (typer.Exit, SystemExit)):
        code = error.exit_code if isinstance(error, typer.Exit) else error.code
        return code if isinstance(code, int) else 0
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        print("graphopt: interrupted", file=sys.stderr)
        return INTERRUPTED
    if isinstance(error, _USAGE_ERROR):
        error.show()
        return int(error.exit_code)
    if isinstance(error, BrokenPipeError):
        # The reader of stdout is gone; what is left in the buffer must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if isinstance(error, GraphoptError):
        if as_json:
            print(json.dumps(error.to_dict(), ensure_ascii=False))
        print(f"graphopt: error: {error.message} [{error.code}]", file=sys.stderr)
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)
        return error.exit_code
    if isinstance(error, MemoryError):
        print("graphopt: error: out of memory", file=sys.stderr)
        return 1
    traceback.print_exception(error, file=sys.stderr)
    print(f"graphopt: internal error: {error}\n  {_ISSUE_HINT}", file=sys.stderr)
    return 1


def print_json(data: object) -> None:
    """Print one JSON object to stdout."""
    print(json.dumps(data, indent=1, ensure_ascii=False))
