"""Every error graphopt raises on purpose, sorted by who must act.

An error carries a ``code``, a short kebab-case name that ``graphopt explain CODE`` describes. The
text says what is wrong, which thing, expected and got; ``hint`` says what to do. ``exit_code`` is
the status of the command line for that class of error.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar


class GraphoptError(Exception):
    """Base of all errors that graphopt raises on purpose.

    Args:
        code: Short kebab-case name of the kind of error; must be listed in ``error_codes``.
        message: What is wrong, which thing, expected and got. No trailing period.
        hint: What the user can do about it.
        node: Name of the node (or value) at fault, when there is one.
        details: Plain data for ``--json`` output.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        code: str,
        message: str,
        *,
        hint: str | None = None,
        node: str | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.node = node
        self.details = details or {}

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message

    def to_dict(self) -> dict[str, Any]:
        """Return the error as plain data, the form ``--json`` prints."""
        return {
            "error": type(self).__name__,
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "node": self.node,
            **self.details,
        }


class OptionError(GraphoptError):
    """An option, keyword or command line that makes no sense: the caller must change the call."""

    exit_code = 2


class InvalidModelError(GraphoptError):
    """The input file or model is unreadable, malformed, or refused for safety."""

    exit_code = 3


class UnsupportedError(GraphoptError):
    """A limit of graphopt: names the operator, opset, node or pass that it cannot serve."""

    exit_code = 4


class VerificationError(GraphoptError):
    """The compiled model does not compute what the original computes within the tolerance."""

    exit_code = 5


@dataclass(frozen=True)
class Owner:
    """One buffer alive at the peak: its name, the node that wrote it, and its bytes."""

    name: str
    producer: str
    size_bytes: int


class DoesNotFitError(GraphoptError):
    """The model does not fit the limit.

    Args:
        pool: Name of the pool that overflows.
        required_bytes: What the plan needs in that pool.
        available_bytes: What the pool or the limit offers.
        owners: The largest buffers that hold the bytes at the peak, largest first.
        report: The compile result or plan up to here, when there is one.
    """

    exit_code = 6

    def __init__(
        self,
        *,
        pool: str,
        required_bytes: int,
        available_bytes: int,
        owners: Sequence[Owner] = (),
        hint: str | None = None,
        report: object = None,
    ) -> None:
        self.pool = pool
        self.required_bytes = required_bytes
        self.available_bytes = available_bytes
        self.excess_bytes = required_bytes - available_bytes
        self.owners = tuple(owners)
        self.report = report
        verdict = (
            f"does not fit pool '{pool}': required {required_bytes} bytes, "
            f"available {available_bytes} bytes, excess {self.excess_bytes} bytes"
        )
        lines = [verdict]
        lines += [f"  {o.size_bytes:>12} bytes  {o.name} (from {o.producer})" for o in self.owners]
        super().__init__(
            "does-not-fit",
            "\n".join(lines),
            hint=hint,
            details={
                "pool": pool,
                "required_bytes": required_bytes,
                "available_bytes": available_bytes,
                "excess_bytes": self.excess_bytes,
                "owners": [vars(owner) for owner in self.owners],
            },
        )


class OutputError(GraphoptError):
    """The output could not be written; what was there before is still there."""

    exit_code = 7


class PassFailed(GraphoptError):  # noqa: N818 - the public name that DESIGN fixes
    """A pass raised or broke the model; wraps the cause and names the reproducer."""

    exit_code = 1


class InvariantError(GraphoptError):
    """A fact graphopt established for itself does not hold: our bug, not the user's."""

    exit_code = 1
