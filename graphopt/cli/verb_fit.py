"""``graphopt fit`` and ``graphopt pack``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.cli.common import Loaded, note, parse_dims, parse_limits
from graphopt.cli.outcome import print_json
from graphopt.errors import DoesNotFitError, OptionError
from graphopt.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from graphopt.memory.problem import Placement, Problem


def run_fit(
    model: str,
    target: str,
    dims: Sequence[str],
    limits: Sequence[str],
    *,
    trust: bool,
    as_json: bool,
) -> None:
    """Print the largest size of the one dimension that is named without a size."""
    from graphopt.compiler import fit_model

    free = [text for text in dims if "=" not in text]
    if len(free) != 1:
        raise OptionError(
            "dim-unreadable",
            f"fit searches one dimension, {len(free)} are named without a size",
            hint="write --dim batch, and --dim NAME=SIZE for the others",
        )
    loaded = Loaded(model)
    report = fit_model(
        loaded.model,
        target,
        free[0],
        parse_dims([text for text in dims if "=" in text]),
        parse_limits(limits),
        example_inputs=loaded.example_inputs,
        dynamic_shapes=loaded.dynamic_shapes,
        trust=trust,
    )
    if as_json:
        print_json(report.to_dict())
    else:
        print(report)


_NO_NODE_LIMIT = 1 << 62


def _solve(problem: "Problem", solver: str, seconds: float) -> "Placement":
    """Return the placement of the solver called ``solver``; only ``seconds`` limits it."""
    from graphopt.memory.packing.cp_sat import improve_with_cp_sat
    from graphopt.memory.planners import plan_placement

    if solver == "own":
        return plan_placement(problem, effort="exact", seconds=seconds, node_limit=_NO_NODE_LIMIT)
    if solver != "cp-sat":
        raise OptionError(
            "solver-unknown", f"no solver is called '{solver}'", hint="use 'own' or 'cp-sat'"
        )
    return improve_with_cp_sat(problem, plan_placement(problem), seconds=seconds)


def run_pack(
    problem_file: Path,
    capacity: str | None,
    output: Path | None,
    *,
    seconds: float,
    solver: str,
    as_json: bool,
) -> None:
    """Solve a placement problem from a CSV file; fail when the capacity is not met."""
    from graphopt.memory.problem import Problem
    from graphopt.memory.problem_csv import read_problem_csv, write_problem_csv
    from graphopt.memory.verify_placement import verify_placement

    allowed = None if capacity is None else parse_bytes(capacity)
    problem = read_problem_csv(problem_file, capacity=allowed)
    placement = _solve(problem, solver, seconds)
    fits = allowed is None or placement.height <= allowed
    verify_placement(Problem(problem.items), placement)
    facts = {
        "items": len(problem.items),
        "height": placement.height,
        "lower_bound": placement.lower_bound,
        "optimal": placement.optimal,
        "planner": placement.planner,
        "capacity": allowed,
        "fits": fits,
    }
    if output is not None and fits:
        write_problem_csv(output, problem, placement)
        note(f"wrote {output}")
    if as_json:
        print_json(facts)
    else:
        gap = placement.height - placement.lower_bound
        proof = "proved minimal" if placement.optimal else f"{gap} bytes above the lower bound"
        print(
            f"{len(problem.items)} buffers in {placement.height} bytes "
            f"({format_bytes(placement.height)}), {proof}, by {placement.planner}"
        )
    if not fits and allowed is not None:
        raise DoesNotFitError(
            pool=problem_file.name,
            required_bytes=placement.height,
            available_bytes=allowed,
            hint=f"no placement is below {placement.lower_bound} bytes"
            if placement.lower_bound > allowed
            else f"none was found in {seconds:g} seconds, but none below {placement.lower_bound} "
            "bytes exists; a longer --seconds may find one",
        )
