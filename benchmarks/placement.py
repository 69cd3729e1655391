"""Placement of the 11 hard problems of minimalloc: ours, SuperMalloc and CP-SAT in one run.

First the decision: everything below the capacity of 1,048,576 bytes, processor seconds on one
thread with compiled code warm. Then the lowest height within ``--seconds``. SuperMalloc
(omnimalloc) has no capacity to give, so its time to the capacity is the time its minimizing takes
at ``--threads`` workers; its bound ladder has ``threads // 3`` rungs, so a single one would cripple
it. Peers that are not installed are left out: ``pip install omnimalloc ortools``. Every placement
goes through ``verify_placement``.

    python benchmarks/placement.py [--seconds 20] [--threads 12] [--only A D J] [--no-peers]

``--easy`` measures the placements of ordinary networks instead: milliseconds of an exact plan, and
whether the arena equals the bound.
"""

import argparse
import importlib
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import graphopt  # noqa: E402
from benchmarks.arena_table import built, trained  # noqa: E402
from benchmarks.trained_networks import assets  # noqa: E402
from graphopt.memory import placing  # noqa: E402
from graphopt.memory.packing.cp_sat import improve_with_cp_sat  # noqa: E402
from graphopt.memory.packing.jit import IS_COMPILED  # noqa: E402
from graphopt.memory.planners import plan_placement  # noqa: E402
from graphopt.memory.problem import Placement, Problem, lower_bound_bytes  # noqa: E402
from graphopt.memory.problem_csv import read_problem_csv  # noqa: E402
from graphopt.memory.verify_placement import verify_placement  # noqa: E402

CAPACITY = 1_048_576
NO_LIMIT = 1 << 62
Solver = Callable[[Problem, float], Placement]


def ours(problem: Problem, seconds: float) -> Placement:
    """The exact search of graphopt, on one thread."""
    return plan_placement(problem, effort="exact", seconds=seconds, node_limit=NO_LIMIT)


def cp_sat(*, cumulative: bool) -> Solver:
    """Return OR-Tools on the same problem, on two threads."""

    def solve(problem: Problem, seconds: float) -> Placement:
        first = plan_placement(problem)
        return improve_with_cp_sat(
            problem, first, seconds=seconds, workers=2, cumulative=cumulative
        )

    return solve


def supermalloc(threads: int) -> Solver:
    """Return the minimizing solver of omnimalloc."""
    omnimalloc = importlib.import_module("omnimalloc")
    allocator = importlib.import_module("omnimalloc.allocators").SupermallocAllocator
    omnimalloc.set_max_threads(threads)

    def solve(problem: Problem, seconds: float) -> Placement:
        given = [
            omnimalloc.Allocation(id=i.id, size=i.size, start=i.start, end=i.end)
            for i in problem.items
        ]
        done = omnimalloc.allocate(given, allocator(timeout=seconds, num_threads=threads))
        by_id = {allocation.id: allocation.offset for allocation in done}
        offsets = tuple(by_id[item.id] for item in problem.items)
        top = max(o + item.size for o, item in zip(offsets, problem.items, strict=True))
        bound = lower_bound_bytes(problem)
        return Placement(offsets, top, "supermalloc", bound, top == bound)

    return solve


def timed(solve: Solver, problem: Problem, seconds: float) -> tuple[float, float, Placement]:
    """Return wall seconds, processor seconds and a placement that was verified."""
    wall, cpu = time.perf_counter(), time.process_time()
    placement = solve(problem, seconds)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    verify_placement(Problem(problem.items), placement)
    return wall, cpu, placement


def show(label: str, result: tuple[float, float, Placement], capacity: int | None) -> str:
    """Return one cell of the table."""
    wall, cpu, placement = result
    if capacity is not None and placement.height > capacity:
        return f"{label}: no in {wall:.1f} s"
    proof = " proved" if placement.optimal else ""
    return f"{label}: {placement.height:,}{proof} in {wall:.2f} s ({cpu:.2f} s cpu)"


def hard(arguments: argparse.Namespace) -> None:
    """Print both tables of the hard problems."""
    folder = assets() / "data" / "minimalloc"
    problems = {path.stem[0]: read_problem_csv(path) for path in sorted(folder.glob("*.csv"))}
    solvers: dict[str, Solver] = {"graphopt": ours}
    if not arguments.no_peers:
        if importlib.util.find_spec("omnimalloc"):
            solvers["SuperMalloc"] = supermalloc(arguments.threads)
        if importlib.util.find_spec("ortools"):
            solvers["CP-SAT"] = cp_sat(cumulative=False)
            solvers["CP-SAT with Cumulative"] = cp_sat(cumulative=True)
    print(f"compiled: {IS_COMPILED}; peers: {', '.join(list(solvers)[1:]) or 'none installed'}")
    ours(replace(problems["K"], capacity=CAPACITY), 20)
    ours(problems["K"], 20)
    for capacity in (CAPACITY,) if arguments.no_minimize else (CAPACITY, None):
        print(f"\n{'capacity ' + format(capacity, ',') if capacity else 'lowest height'}")
        total = slowest = 0.0
        for name in arguments.only or problems:
            problem = replace(problems[name], capacity=capacity)
            cells = []
            for label, solve in solvers.items():
                result = timed(solve, problem, arguments.seconds)
                cells.append(show(label, result, capacity))
                if label == "graphopt":
                    total, slowest = total + result[1], max(slowest, result[1])
            bound = lower_bound_bytes(problem)
            print(f"{name} bound {bound:>9,}  " + "   ".join(cells), flush=True)
        print(f"graphopt: {total:.2f} s cpu in all, slowest {slowest:.2f} s")


def easy(small: bool) -> None:
    """Print how long the exact placements of each trained and built network take."""
    calls: list[tuple[float, Problem, Placement]] = []

    def recorded(problem: Problem, **keywords: Any) -> Placement:
        started = time.perf_counter()
        placement = plan_placement(problem, **keywords)
        if keywords.get("effort") == "exact":
            # The plan of the model as it came in is made by the greedy planners alone.
            calls.append((time.perf_counter() - started, problem, placement))
        return placement

    placing.plan_placement = recorded  # type: ignore[attr-defined]
    recorded(warm_up(), effort="exact", seconds=1)
    with tempfile.TemporaryDirectory() as scratch:
        for name, path, dims in (*trained(), *built(Path(scratch), small)):
            calls.clear()
            graphopt.compile(path, target="cpu", bindings=dims, verify=False)
            seconds, problem, placement = max(calls, key=lambda call: len(call[1].items))
            state = "proved" if placement.optimal else f"bound {placement.lower_bound:,}"
            print(
                f"{name:<24}{len(problem.items):>6} items {placement.height:>13,} {state:<18}"
                f"{placement.planner:<28}{1e3 * seconds:>8.1f} ms",
                flush=True,
            )


def warm_up() -> Problem:
    """Return a problem that needs the exact search, so that its code is compiled."""
    return read_problem_csv(assets() / "data" / "minimalloc" / "K.1048576.csv")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=12)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--no-minimize", action="store_true", help="the decision only")
    parser.add_argument("--easy", action="store_true")
    parser.add_argument("--small", action="store_true", help="small builders, with --easy")
    arguments = parser.parse_args()
    if arguments.easy:
        easy(arguments.small)
    else:
        hard(arguments)


if __name__ == "__main__":
    main()
