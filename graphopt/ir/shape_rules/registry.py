"""The table of shape rules by domain and operator."""

from collections.abc import Callable

from graphopt.ir.shape_rules.view import NodeView

Rule = Callable[[NodeView], None]

_RULES: dict[tuple[str, str], Rule] = {}


def rule(*op_types: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Register the decorated function for ``op_types`` of ``domain``."""

    def register(function: Rule) -> Rule:
        for op_type in op_types:
            if (domain, op_type) in _RULES:
                raise AssertionError(f"two shape rules for {domain}:{op_type}")
            _RULES[domain, op_type] = function
        return function

    return register


def find_rule(domain: str, op_type: str) -> Rule | None:
    """Return the rule of an operator, None when there is none."""
    return _RULES.get(("" if domain == "ai.onnx" else domain, op_type))


def covered(domain: str = "") -> frozenset[str]:
    """Return the operators of ``domain`` that have a rule."""
    return frozenset(op_type for owner, op_type in _RULES if owner == domain)
