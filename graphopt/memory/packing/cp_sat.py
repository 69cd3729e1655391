"""A second opinion on a placement: OR-Tools' CP-SAT (extra ``solver``) on the same problem.

Every item is a rectangle, its lifetime wide and its size high; no two may overlap. A cumulative
constraint over the same rectangles repeats that live bytes stay below the height, from which the
solver mostly learns faster. Kept out of the default search: on hard problems it needs minutes where
:mod:`exact` needs tenths of a second.
"""

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from graphopt.errors import UnsupportedError
from graphopt.memory.packing.instance import build_instance
from graphopt.memory.problem import Item, Placement, Problem


def improve_with_cp_sat(
    problem: Problem,
    best: Placement,
    *,
    seconds: float,
    workers: int = 1,
    cumulative: bool = True,
) -> Placement:
    """Return a lower placement than ``best``, or ``best`` with what was proven about it.

    Args:
        problem: The items, checked. With a capacity, any placement that fits it will do.
        best: A valid placement, given to the solver as its first solution.
        seconds: Wall-clock limit.
        workers: Threads.
        cumulative: Whether live bytes are bounded too; sometimes quicker without.

    Raises:
        UnsupportedError: ``solver-missing``: ortools is not installed.
    """
    cp_model = _cp_model()
    model = cp_model.CpModel()
    # Offsets are counted in the unit of the sizes: small domains are what this solver needs.
    # Rounding pinned items outward could make them overlap each other, so they forbid it.
    is_pinned = any(item.offset is not None for item in problem.items)
    unit = 1 if is_pinned else build_instance(problem).unit
    top = best.height if problem.capacity is None else min(best.height, problem.capacity)
    offsets = _offsets(model, problem.items, best, top, unit)
    items = list(zip(problem.items, offsets, strict=True))
    sizes = [-(-item.size // unit) for item in problem.items]
    interval = model.new_fixed_size_interval_var
    times = [interval(item.start, item.end - item.start, "") for item in problem.items]
    spaces = [interval(offset, size, "") for offset, size in zip(offsets, sizes, strict=True)]
    model.add_no_overlap_2d(times, spaces)
    if problem.capacity is None:
        height = model.new_int_var(best.lower_bound, best.height, "height")
        for item, offset in items:
            model.add(unit * offset + item.size <= height)
        model.minimize(height)
    if cumulative:
        model.add_cumulative(times, sizes, -(-top // unit))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = seconds
    solver.parameters.num_workers = workers
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE and problem.capacity is not None:
        bound = max(best.lower_bound, problem.capacity + 1)
        return replace(best, lower_bound=bound, optimal=best.height == bound)
    proven = best.lower_bound
    if problem.capacity is None:
        proven = max(proven, min(int(solver.best_objective_bound), best.height))
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return replace(best, lower_bound=proven, optimal=best.height == proven)
    found = tuple(int(solver.value(offset)) * unit for offset in offsets)
    reached = max(o + item.size for o, item in zip(found, problem.items, strict=True))
    return Placement(found, reached, "cp-sat", proven, reached == proven)


def _cp_model() -> Any:
    if importlib.util.find_spec("ortools") is None:
        raise UnsupportedError(
            "solver-missing",
            "the solver cp-sat needs ortools, which is not installed",
            hint="pip install 'graphopt[solver]', or leave the choice of the solver out",
        )
    return importlib.import_module("ortools.sat.python.cp_model")


def _offsets(model: Any, items: Sequence[Item], best: Placement, top: int, unit: int) -> list[Any]:
    """Return the offset of every item in units: pinned, or a multiple of its alignment."""
    offsets = []
    for item, start in zip(items, best.offsets, strict=True):
        if item.offset is not None:
            offsets.append(model.new_constant(item.offset // unit))
            continue
        highest = max(top - item.size, 0) // unit
        offset = model.new_int_var(0, highest, "")
        if item.alignment > unit:
            step = model.new_int_var(0, highest, "")
            model.add(offset == step * (item.alignment // unit))
        model.add_hint(offset, start // unit)
        offsets.append(offset)
    return offsets
