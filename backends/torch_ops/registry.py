"""The table of operators: which torch function computes which ONNX operator."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

from torch import Tensor

from graphopt.backends.torch_ops.small import Small, tensor_of

Function = TypeVar("Function", bound=Callable[..., Any])
# Called with the constant inputs 1 to 3 and the attributes.
Packed = Callable[..., "list[Tensor] | None"]


@dataclass(frozen=True)
class Operator:
    """One operator.

    Attributes:
        function: Inputs in order, then attributes by name.
        keywords: Names the function takes by keyword: attributes, and of the extra facts
            ``opset`` (version of the operator set) and ``count`` (number of outputs).
        several: Whether it returns a tuple with one entry per output, also when there is one.
        most_inputs: How many inputs it takes; None for any number.
        any_attribute: Whether it hands attributes on to another function.
        packed: Returns constant inputs in the order that torch's kernel takes, for the keyword
            ``parameters``, in the place of inputs 1 to 3; None where no kernel computes this form.
    """

    function: Callable[..., Any]
    keywords: frozenset[str]
    several: bool
    most_inputs: int | None
    any_attribute: bool = False
    packed: "Packed | None" = None

    def takes(self, name: str, *, exact: bool = False) -> bool:
        """Return whether ``name`` is a keyword; ``exact``: one that the function spells out."""
        return name in self.keywords or (self.any_attribute and not exact)


REGISTRY: dict[tuple[str, str], Operator] = {}


def find_operator(domain: str, op_type: str) -> Operator | None:
    """Return the function of an operator, None when there is none."""
    return REGISTRY.get(("" if domain == "ai.onnx" else domain, op_type))


def op(
    *names: str,
    small: bool = False,
    several: bool = False,
    domain: str = "",
    packed: Packed | None = None,
) -> Callable[[Function], Function]:
    """Register a function for the operators ``names``.

    Args:
        names: Operator types.
        small: Whether it takes numbers (``Small``) as they are; otherwise they become tensors.
        several: Whether it returns one entry per output.
        domain: Domain of the operators.
        packed: See ``Operator``.
    """

    def register(function: Function) -> Function:
        parameters = inspect.signature(function).parameters.values()
        keywords = frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
        variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
        positional = sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
        most = None if variadic else positional
        called = function if small else _with_tensors(function)
        for name in names:
            REGISTRY[domain, name] = Operator(called, keywords, several, most, anything, packed)
        return function

    return register


def _with_tensors(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def run(*inputs: Any, **attributes: Any) -> Any:
        return function(
            *(tensor_of(x) if isinstance(x, Small) else x for x in inputs), **attributes
        )

    return run
