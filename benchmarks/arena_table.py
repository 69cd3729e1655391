"""The arena of every network: as it came in, after graphopt, and what peers make of the same graph.

One set of rules for all (alignment 1, inputs and outputs inside the arena, as onnxsim plans):

- ``given``: liveness of the order as it came in, views shared, nothing in place: what every planner
  without in-place writes is bounded by.
- ``ExecuTorch-style``: its greedy, buffers by falling size into shared objects (a
  re-implementation of what its documentation describes; views shared, no in-place writes), on our
  optimized graph.
- ``onnxsim``: its arena on its own simplified graph (greedy best fit with in-place writes).
- ``ours``: order, in-place writes, parts and placement of the compiled model; ``bound``: no arena
  for this order and these buffers is smaller; ``proved``: ours equals it.

    python benchmarks/arena_table.py [--trained] [--builders] [--small] [--only NAME ...]
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import graphopt  # noqa: E402
from benchmarks.trained_networks import assets, dims_for, onnxsim_arena, same_rules  # noqa: E402
from graphopt.memory.aliasing import resolve_aliases  # noqa: E402
from graphopt.memory.dataflow import Dataflow, Role  # noqa: E402
from graphopt.memory.liveness import Lifetime, lifetimes, live_bytes  # noqa: E402
from graphopt.memory.planning import program_dataflow  # noqa: E402
from graphopt.targets.loader import resolve_target  # noqa: E402
from graphopt.targets.schema import Target  # noqa: E402


def trained() -> Iterator[tuple[str, Path, dict[str, int]]]:
    """Yield the trained networks with the sizes to plan at."""
    for path in sorted((assets() / "models").glob("*.onnx")):
        yield path.stem, path, dims_for(path)


def built(folder: Path, small: bool) -> Iterator[tuple[str, Path, dict[str, int]]]:
    """Yield the networks of ``models/``, exported, at their example sizes and batch 1."""
    import torch

    from models import REGISTRY, SMALL, build

    torch.set_num_threads(1)
    for name in sorted(REGISTRY):
        sample = build(name, **(SMALL[name] if small else {}))
        result = graphopt.compile(
            sample.module,
            sample.example_inputs,
            dynamic_shapes=sample.dynamic_shapes,
            passes=["infer-shapes"],
            verify=False,
        )
        path = folder / f"{name}.onnx"
        result.save(path, external_data=False)
        feeds = result.program.model.meta["graphopt.example_inputs"]
        sizes: dict[str, int] = {}
        for value in result.program.graph.inputs:
            for dim, size in zip(value.shape or (), feeds[value.name].shape, strict=True):
                if not isinstance(dim, int) and dim.value in result.program.bounds:
                    sizes[dim.value] = 1 if dim.value == "batch" else size
        yield name, path, sizes


def unshared(flow: Dataflow) -> tuple[list[Lifetime], int]:
    """Return the arena's buffers without in-place writes, and their peak."""
    lives = [
        life
        for life in lifetimes(flow, resolve_aliases(flow, in_place=False, io_in_arena=True))
        if life.role is not Role.WEIGHT and life.size_bytes
    ]
    spans = [(life.start, life.end, life.size_bytes) for life in lives]
    spans += [(i, i + 1, s.scratch_bytes) for i, s in enumerate(flow.steps)]
    return lives, max(live_bytes(spans, len(flow.steps)), default=0)


def shared_objects(lives: list[Lifetime]) -> int:
    """Return the sum of the objects of a greedy by falling size."""
    objects: list[tuple[int, list[tuple[int, int]]]] = []
    for life in sorted(lives, key=lambda one: (-one.size_bytes, one.start, one.root)):
        for _, taken in objects:
            if all(life.end <= start or end <= life.start for start, end in taken):
                taken.append((life.start, life.end))
                break
        else:
            objects.append((life.size_bytes, [(life.start, life.end)]))
    return sum(size for size, _ in objects)


def row(name: str, path: Path, dims: dict[str, int], target: Target) -> dict[str, Any]:
    """Measure one network."""
    started = time.perf_counter()
    result = graphopt.compile(path, target=target, bindings=dims, verify=False)
    seconds = time.perf_counter() - started
    flow, _ = program_dataflow(result.program, target, dims, {})
    given = graphopt.compile(path, target=target, bindings=dims, passes=(), verify=False)
    before, _ = program_dataflow(given.program, target, dims, {})
    theirs, left_out = onnxsim_arena(path, dims)
    return {
        "network": name,
        "given": unshared(before)[1],
        "executorch": shared_objects(unshared(flow)[0]),
        "onnxsim": theirs,
        "left_out": left_out,
        "ours": result.plan.arena_bytes,
        "bound": result.plan.lower_bound_bytes,
        "not_planned": len(result.plan.not_planned),
        "peak_node": result.plan.peak.node,
        "owners": [(o.name, o.bytes) for o in result.plan.peak.owners[:3]],
        "seconds": seconds,
    }


def main() -> None:
    """Print the table; exit 1 where ours is above onnxsim's complete arena."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trained", action="store_true")
    parser.add_argument("--builders", action="store_true")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    worse, rows = 0, []
    print(
        f"{'network':<24}{'given':>13}{'ExecuTorch':>13}{'onnxsim':>13}{'ours':>13}{'bound':>13}"
        f"{'':>3}{'ours/onnxsim':>13}{'s':>6}"
    )
    with tempfile.TemporaryDirectory() as scratch:
        target = resolve_target(same_rules(Path(scratch)))
        both = not (options.trained or options.builders)
        sources: list[Iterator[tuple[str, Path, dict[str, int]]]] = []
        if options.trained or both:
            sources.append(trained())
        if options.builders or both:
            sources.append(built(Path(scratch), options.small))
        for source in sources:
            for name, path, dims in source:
                if options.only and name not in options.only:
                    continue
                one = row(name, path, dims, target)
                rows.append(one)
                theirs = one["onnxsim"]
                ratio = f"{one['ours'] / theirs:.3f}" if theirs else "failed"
                note = f" ({one['left_out']} left out)" if one["left_out"] else ""
                above = theirs is not None and not one["left_out"] and one["ours"] > theirs
                worse += above
                print(
                    f"{name:<24}{one['given']:>13,}{one['executorch']:>13,}{theirs or 0:>13,}"
                    f"{one['ours']:>13,}{one['bound']:>13,}"
                    f"{' =' if one['ours'] == one['bound'] else '  ':>3}{ratio:>13}"
                    f"{one['seconds']:>6.1f}{note}{'  ABOVE' if above else ''}",
                    flush=True,
                )
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    if worse:
        raise SystemExit(f"{worse} networks are above onnxsim")


if __name__ == "__main__":
    main()
