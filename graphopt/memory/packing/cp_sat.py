"""A second opinion on a placement: OR-Tools' CP-SAT (extra ``solver``) on the same problem.

Every item is a rectangle, its lifetime wide and its size high; no two may overlap. A cumulative
constraint over the same rectangles repeats that live bytes stay below the height, from which the
solver learns faster. Kept out of the default search: on hard problems it needs minutes where
:mod:`exact` needs tenths of a second.
"""

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

from graphopt.errors import UnsupportedError
from graphopt.memory.problem import Item, Placement, Problem


def improve_with_cp_sat(
    problem: Problem, best: Placement, *, seconds: float, workers: int = 1
) -> Placement:
    """Return a lower placement than ``best``, or ``best`` with what was proven about it.

    Args:
        problem: The items, checked. With a capacity, any placement that fits it will do.
        best: A valid placement, given to the solver as its first solution.
        seconds: Wall-clock limit.
        workers: Threads.

    Raises:
        UnsupportedError: ``solver-missing``: ortools is not installed.
    """
    cp_model = _cp_model()
    model = cp_model.CpModel()
    offsets = _variables(model, problem.items, best)
    items = list(zip(problem.items, offsets, strict=True))
    times = [
        model.new_fixed_size_interval_var(item.start, item.end - item.start, "")
        for item, _ in items
    ]
    spaces = [model.new_fixed_size_interval_var(offset, item.size, "") for item, offset in items]
    model.add_no_overlap_2d(times, spaces)
    height = model.new_int_var(best.lower_bound, best.height, "height")
    for item, offset in items:
        model.add(offset + item.size <= height)
    model.add_cumulative(times, [item.size for item in problem.items], height)
    if problem.capacity is None:
        model.minimize(height)
    else:
        model.add(height <= problem.capacity)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = seconds
    solver.parameters.num_workers = workers
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE and problem.capacity is not None:
        bound = max(best.lower_bound, problem.capacity + 1)
        return Placement(best.offsets, best.height, best.planner, bound, best.height == bound)
    proven = best.lower_bound
    if problem.capacity is None:
        proven = max(proven, min(int(solver.best_objective_bound), best.height))
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Placement(best.offsets, best.height, best.planner, proven, best.height == proven)
    found = tuple(int(solver.value(offset)) for offset in offsets)
    top = max(o + item.size for o, item in zip(found, problem.items, strict=True))
    return Placement(found, top, "cp-sat", proven, top == proven)


def _cp_model() -> Any:
    if importlib.util.find_spec("ortools") is None:
        raise UnsupportedError(
            "solver-missing",
            "the solver cp-sat needs ortools, which is not installed",
            hint="pip install 'graphopt[solver]', or leave the choice of the solver out",
        )
    return importlib.import_module("ortools.sat.python.cp_model")


def _variables(model: Any, items: Sequence[Item], best: Placement) -> list[Any]:
    """Return the offset of every item: pinned, or a multiple of its alignment."""
    offsets = []
    for item, start in zip(items, best.offsets, strict=True):
        if item.offset is not None:
            offsets.append(model.new_constant(item.offset))
            continue
        units = model.new_int_var(0, max(best.height - item.size, 0) // item.alignment, "")
        model.add_hint(units, start // item.alignment)
        offset = model.new_int_var(0, best.height, "")
        model.add(offset == units * item.alignment)
        offsets.append(offset)
    return offsets
