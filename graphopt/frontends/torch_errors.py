"""What torch's exporters report, in one or two lines that show the user's own source line.

Imports nothing of torch: its exceptions are told apart by the names of their classes and by the
fixed parts of their texts, and the nodes of a graph by what they carry.
"""

import re
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from graphopt.errors import GraphoptError, OptionError, UnsupportedError
from graphopt.frontends.user_code import SourceLine, chain_of, line_raising, source_of

_MAX_CHARS = 300
_MUTATED = re.compile(r"Constant (?P<name>\S+) is mutated in the forward method")

_BRANCH_HINT = (
    "write torch.where(condition, a, b), or torch.cond(condition, f, g, inputs) for branches; "
    "a loop whose length depends on values has no fixed graph"
)
_NUMBER_HINT = (
    "a size may come from n = tensor.item() with torch._check(n >= 0) behind it, when the tensor "
    "holds integers; other values must stay tensors"
)
_NUMPY_HINT = (
    "use torch operations only: numpy and .tolist() see no values while a graph is captured"
)
_RUN_HINT = (
    "run the module on the example inputs; if that works, replace this line by torch operations "
    "that torch.export can trace"
)
_SHAPES_HINT = (
    'write dynamic_shapes={"input": {axis: torch.export.Dim("name", min=1, max=64)}}, one entry '
    "per input of forward"
)
# Class name and fixed part of the text -> what it means, and what to do about it.
_KNOWN: tuple[tuple[str, str, str, str], ...] = (
    (
        "GuardOnDataDependentSymNode",
        "Could not guard",
        "what runs next depends on the values of a tensor",
        _BRANCH_HINT,
    ),
    (
        "GuardOnDataDependentSymNode",
        "Could not extract",
        "the value of a tensor is needed as a Python number",
        _NUMBER_HINT,
    ),
    ("RuntimeError", ".numpy() is not supported", "a tensor is turned into numpy", _NUMPY_HINT),
)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:_MAX_CHARS] if lines else ""


def capture_error(owner: str, error: Exception) -> GraphoptError:
    """Return what ``torch.export`` means by ``error``.

    Args:
        owner: How to call the module in messages.
        error: What it raised.
    """
    chain = chain_of(error)
    names = {base.__name__ for one in chain for base in type(one).__mro__}
    text = str(error)
    if "ConstraintViolationError" in names or text.startswith("Constraints violated"):
        return _refused_shapes(owner, text)
    if "UserError" in names and "dynamic_shapes" in text:
        reason = _first_line(error).split(" For more information", maxsplit=1)[0]
        return OptionError("dynamic-shapes-invalid", f"{owner}: {reason}", hint=_SHAPES_HINT)
    reason, hint = f"{type(error).__name__}: {_first_line(error)}", _RUN_HINT
    for kind, fixed_text, meaning, advice in _KNOWN:
        if kind in names and any(str(one).startswith(fixed_text) for one in chain):
            reason, hint = meaning, advice
            break
    return _unsupported(
        "torch-not-capturable",
        f"torch.export cannot capture {owner}: {reason}",
        hint,
        line_raising(error),
    )


def _refused_shapes(owner: str, text: str) -> OptionError:
    """Return the error for a dimension that is not free to take the sizes the user allowed."""
    lines = text.split("The error above", maxsplit=1)[0].splitlines()
    reasons = [line.strip().removeprefix("- ") for line in lines if line.startswith("  - ")]
    fixes: list[str] = []
    if "Suggested fixes:" in lines:
        start = lines.index("Suggested fixes:") + 1
        fixes = [line.strip() for line in lines[start:] if line.strip()]
    # torch's advice on its other ways to mark dimensions follows the first sentence.
    said = [reason.split(". If you're using", maxsplit=1)[0] for reason in reasons]
    reason = "; ".join(said) or (lines[0] if lines else "")
    hint = f"torch suggests: {'; '.join(fixes)}" if fixes else None
    return OptionError(
        "dynamic-shapes-refused",
        f"{owner} does not accept these dynamic_shapes: {reason[:_MAX_CHARS]}",
        hint=hint or "narrow the range of the dimension, or leave it fixed",
    )


def _unsupported(
    code: str, message: str, hint: str, line: SourceLine | None, node: str | None = None
) -> UnsupportedError:
    details = {} if line is None else {"file": line.file, "line": line.line, "source": line.code}
    where = "" if line is None else f"\n  {line}"
    return UnsupportedError(code, f"{message}{where}", hint=hint, node=node, details=details)


def unregistered_state(owner: str, attribute: str) -> UnsupportedError:
    """Return the error for a tensor that is carried from one call to the next unknown to torch."""
    return UnsupportedError(
        "torch-unregistered-state",
        f"{owner} keeps state in '{attribute}', which is no buffer: it would be frozen",
        hint="register it with register_buffer, or make it an argument and a result of forward",
    )


def translation_error(owner: str, error: Exception) -> UnsupportedError:
    """Return what torch's ONNX exporter means by ``error``: the operator, and where it is used."""
    chain = chain_of(error)
    root = chain[-1]
    for one in chain:
        mutated = _MUTATED.search(str(one))
        if mutated is not None:
            return unregistered_state(owner, f"self.{mutated['name']}")
    node = next((n for one in reversed(chain) for n in _nodes_at_fault(one.__traceback__)), None)
    if node is None:
        return UnsupportedError(
            "torch-not-convertible",
            f"{owner} cannot be translated to ONNX: {type(root).__name__}: {_first_line(root)}",
            hint="if torch.onnx.export(..., dynamo=True) accepts the module, please report this",
        )
    operator = str(node.target)
    missing = any(type(one).__name__ == "DispatchError" for one in chain)
    why = "has no ONNX form" if missing else f"cannot be translated to ONNX: {_first_line(root)}"
    return _unsupported(
        "torch-operator-unsupported",
        f"{owner}: operator {operator} {why}",
        "replace it by operators that ONNX has, or keep this part outside of the module",
        source_of(node.meta.get("stack_trace")),
        node.name,
    )


def _nodes_at_fault(trace: TracebackType | None) -> Iterator[Any]:
    """Yield the graph nodes that the frames of a traceback worked on, innermost first.

    The exporter names the node in its text only in part; the frame has all of it.
    """
    frames = [frame for frame, _ in traceback.walk_tb(trace)]
    for frame in reversed(frames):
        node = frame.f_locals.get("node")
        if getattr(node, "op", None) == "call_function" and isinstance(
            getattr(node, "meta", None), dict
        ):
            yield node
