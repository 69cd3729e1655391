"""Orders of steps: the given one, three simple rules, a beam, and ours, with proof and time.

The rules work on single steps, as others run them: least peak memory first, depth first and breadth
first as in torch's inductor, and a beam of 48 sets. Bytes are the planner's own live bytes; cells,
random wirings and trees count units (one per value). ``--models`` exports the builders of
``models/`` at batch 1 (minutes; needs torch), ``--trained`` takes the networks of the assets
(``GRAPHOPT_ASSETS``, else ``../shared``); both after the passes of target ``cpu``.

    python benchmarks/order.py [--models] [--trained] [--large] [--only NAME ...]
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.trained_networks import assets, dims_for  # noqa: E402
from graphopt.compiler import load_program  # noqa: E402
from graphopt.ir.shapes import infer_shapes  # noqa: E402
from graphopt.memory.dataflow import Dataflow  # noqa: E402
from graphopt.memory.ordering.board import Board  # noqa: E402
from graphopt.memory.ordering.contract import UnitGraph, unit_graph  # noqa: E402
from graphopt.memory.ordering.costs import costs_of  # noqa: E402
from graphopt.memory.ordering.groups import groups_of  # noqa: E402
from graphopt.memory.ordering.heuristics import (  # noqa: E402
    breadth_first,
    depth_first,
    least_bytes_first,
)
from graphopt.memory.ordering.masks import MaskGraph  # noqa: E402
from graphopt.memory.ordering.search import beam_order  # noqa: E402
from graphopt.memory.placing import Rules  # noqa: E402
from graphopt.memory.planning import program_dataflow, rules_for  # noqa: E402
from graphopt.memory.schedule import best_order, peak_of_order  # noqa: E402
from graphopt.options import CompileOptions  # noqa: E402
from graphopt.passes import default_pipeline  # noqa: E402
from graphopt.pipeline.pipeline import PassPipeline, build_passes  # noqa: E402
from graphopt.targets.loader import resolve_target  # noqa: E402
from tests.memory.order_flows import (  # noqa: E402
    breadth_first_branches,
    darts_cells,
    nasnet_cells,
    random_local,
    random_tree,
    randwire,
)

UNITS = Rules(1, False, False)
BEAM_WIDTH = 48
MOST_BEAM_STEPS = 700
Case = tuple[str, Dataflow, Rules]


def small_cases() -> Iterator[Case]:
    """Graphs on which orders differ, without a framework."""
    yield "NASNet-A, 6 cells", nasnet_cells(), UNITS
    yield "DARTS, 6 cells", darts_cells(), UNITS
    for seed in range(10):
        yield f"WS(32,4,0.75) seed {seed}", randwire(32, seed), UNITS
    yield "WS(32,4,0.75) x 20 stages", randwire(32, 1, stages=20), UNITS
    yield "WS(48,4,0.75)", randwire(48, 2), UNITS
    yield "6 branches, breadth first", breadth_first_branches(6), Rules(1, True, False)
    yield "tree, 3,000 steps", random_tree(3000, 1), UNITS
    yield "local, 1,000 steps", random_local(1000, 10, 1), UNITS


def large_cases() -> Iterator[Case]:
    """Graphs beyond the exact search."""
    for steps in (20_000, 100_000):
        yield f"local, {steps:,} steps", random_local(steps, 12, 1), UNITS
        yield f"WS(32,4,0.75) x {steps // 33} stages", randwire(32, 1, stages=steps // 33), UNITS


def model_cases() -> Iterator[Case]:
    """The builders of ``models/``."""
    from models import REGISTRY, build

    for name in REGISTRY:
        sample = build(name)
        options = CompileOptions(dynamic_shapes=sample.dynamic_shapes)
        yield program_case(name, sample.module, sample.example_inputs, options, {"batch": 1})


def trained_cases() -> Iterator[Case]:
    """The trained networks of the assets."""
    for path in sorted((assets() / "models").glob("*.onnx")):
        yield program_case(path.stem, path, None, CompileOptions(), dims_for(path))


def program_case(
    name: str, model: object, inputs: object, options: CompileOptions, sizes: dict[str, int]
) -> Case:
    """Return the dataflow of a model as the ordering pass of target ``cpu`` meets it."""
    target = resolve_target("cpu")
    program = load_program(model, inputs, options)
    names = [text for text in default_pipeline(target) if not text.startswith("reorder-for-peak")]
    infer_shapes(program)
    PassPipeline(build_passes(None, (), names)).run(program)
    bounds = infer_shapes(program).upper_bounds
    bindings = {symbol: size for symbol, size in sizes.items() if symbol in program.bounds}
    flow, _ = program_dataflow(program, target, bindings, bounds)
    return name, flow, rules_for(target)


def print_case(name: str, flow: Dataflow, rules: Rules) -> None:
    """Print one line of the table."""
    count = len(flow.steps)
    costs = costs_of(flow, groups_of(flow, rules), rules)
    graph = unit_graph(Board(costs, range(count)).region(0, count), 1, contract=False)

    def beam(graph: UnitGraph) -> list[int]:
        return beam_order(MaskGraph(graph), BEAM_WIDTH)

    rules_of_others: list[Callable[[UnitGraph], list[int]]] = [
        least_bytes_first,
        depth_first,
        breadth_first,
    ]
    if count <= MOST_BEAM_STEPS:
        rules_of_others.append(beam)
    peaks = [peak_of_order(flow, rules)]
    for rule in rules_of_others:
        order = graph.steps_of(rule(graph))
        peaks.append(peak_of_order(flow.reordered(order), rules))
    started = time.perf_counter()
    ours = best_order(flow, rules)
    seconds = time.perf_counter() - started
    cells = [f"{peak:>13,}" for peak in peaks] + [" " * 12 + "-"] * (5 - len(peaks))
    proof = "proven" if ours.optimal else ours.stopped or f">= {ours.lower_bound_bytes:,}"
    print(
        f"{name:<28}{count:>7} {' '.join(cells)} {ours.peak_bytes:>13,} "
        f"{proof:<16} {ours.nodes:>8,} {seconds:>7.2f}  {ours.method}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", action="store_true", help="export the builders of models/")
    parser.add_argument("--trained", action="store_true", help="take the networks of the assets")
    parser.add_argument("--large", action="store_true", help="graphs of 20,000 and 100,000 steps")
    parser.add_argument("--only", nargs="*", help="names of the lines to print")
    options = parser.parse_args()
    names = ("given", "LPMF", "depth", "breadth", f"beam {BEAM_WIDTH}", "ours")
    columns = " ".join(f"{column:>13}" for column in names)
    print(f"{'':<28}{'steps':>7} {columns} {'':<16} {'nodes':>8} {'seconds':>7}  found by")
    sources = [small_cases()]
    sources += [large_cases()] if options.large else []
    sources += [model_cases()] if options.models else []
    sources += [trained_cases()] if options.trained else []
    for source in sources:
        for name, flow, rules in source:
            if not options.only or name in options.only:
                print_case(name, flow, rules)


if __name__ == "__main__":
    main()
