"""Exact search."""

from graphopt.memory.problem import Placement, Problem


def improve_placement(
    problem: Problem, best: Placement, *, seconds: float, node_limit: int | None
) -> Placement:
    """Return ``best``."""
    del problem, seconds, node_limit
    return best
