"""Random graphs and random placements through the proofs, and broken ones that must be refused.

Every plan of a random graph goes through ``verify_plan`` and is executed in the poisoned arena;
every placement of a random problem goes through ``verify_placement``. Then each is broken in every
way listed here, and each broken one has to be refused. A buffer moved onto a live one may be
harmless (the verifier allows a write over what the step reads last); then the run has to agree.

    python benchmarks/proofs.py [--graphs 2000] [--problems 2000]
"""

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from graphopt.errors import InvariantError, VerificationError  # noqa: E402
from graphopt.isolation import Worker  # noqa: E402
from graphopt.memory.plan import MemoryPlan, PlannedBuffer  # noqa: E402
from graphopt.memory.planners import plan_placement  # noqa: E402
from graphopt.memory.problem import Placement, Problem  # noqa: E402
from graphopt.memory.verify_placement import verify_placement  # noqa: E402
from graphopt.numerics.arena_runner import run_in_arena  # noqa: E402
from tests.memory.test_packing import random_problem  # noqa: E402
from tests.numerics.arena import (  # noqa: E402
    accepted_by_verifier,
    cpu,
    planned,
    with_arena,
    with_buffer,
)
from tests.numerics.random_models import random_model  # noqa: E402

TARGETS = ("cpu", "stm32h743", "ethos-u55")


def broken_plans(plan: MemoryPlan, rng: random.Random) -> dict[str, MemoryPlan]:
    """Return ways to break ``plan``; none of them can be right."""
    places = [
        at for at, b in enumerate(plan.buffers) if b.segment == "arena" and b.bytes and b.values
    ]
    if not places:
        return {}
    at = rng.choice(places)
    one: PlannedBuffer = plan.buffers[at]
    top = max(places, key=lambda p: plan.buffers[p].offset + plan.buffers[p].bytes)
    steps, peak = plan.steps, plan.peak
    dear = max(range(len(steps)), key=lambda step: steps[step].live_bytes)
    cheaper = steps[dear].model_copy(update={"live_bytes": steps[dear].live_bytes - 1})
    return {
        "misaligned": with_buffer(plan, at, offset=one.offset + 1),
        "before the arena": with_buffer(plan, at, offset=-64),
        "above the arena": with_buffer(plan, at, offset=-(-plan.arena_bytes // 64) * 64),
        "too small": with_buffer(plan, at, bytes=one.bytes - 1),
        "freed a step early": with_buffer(plan, at, end=one.end - 1),
        "alive a step late": with_buffer(plan, at, start=one.start + 1),
        "value in no buffer": with_buffer(plan, at, values=()),
        "value in two buffers": plan.model_copy(update={"buffers": (*plan.buffers, one)}),
        "arena understated": with_arena(
            plan, plan.buffers[top].offset + plan.buffers[top].bytes - 1
        ),
        "peak understated": plan.model_copy(
            update={"peak": peak.model_copy(update={"bytes": peak.bytes - 1})}
        ),
        "live bytes understated": plan.model_copy(
            update={"steps": (*steps[:dear], cheaper, *steps[dear + 1 :])}
        ),
        "step missing": plan.model_copy(update={"steps": steps[:-1]}),
        "steps turned round": plan.model_copy(update={"steps": tuple(reversed(steps))}),
    }


def moved_onto_another(plan: MemoryPlan, rng: random.Random) -> MemoryPlan | None:
    """Return ``plan`` with a buffer at the offset of another that is alive with it."""
    arena = [(at, b) for at, b in enumerate(plan.buffers) if b.segment == "arena" and b.bytes]
    pairs = [
        (at, other)
        for at, one in arena
        for _, other in arena
        if one is not other
        and one.pool == other.pool
        and one.start < other.end
        and other.start < one.end
        and not (one.offset < other.offset + other.bytes and other.offset < one.offset + one.bytes)
        and other.offset + one.padded_bytes <= plan.arena_bytes
    ]
    if not pairs:
        return None
    at, other = rng.choice(pairs)
    return with_buffer(plan, at, offset=other.offset)


def graphs(count: int) -> int:
    """Prove and break the plans of ``count`` random graphs; return the number of failures."""
    seen: Counter[str] = Counter()
    failures = 0
    started = time.perf_counter()
    with Worker() as worker:
        for seed in range(count):
            kinds = (*TARGETS, cpu(io_in_arena=True), cpu(in_place=False))
            target = kinds[seed % 5]
            program, plan = planned(random_model(seed, 8 + seed % 25), target=target)
            run_in_arena(program, plan, worker=worker, seed=seed)
            seen["accepted"] += 1
            rng = random.Random(seed)
            for kind, broken in broken_plans(plan, rng).items():
                refused = not accepted_by_verifier(program, broken, target)
                seen[f"refused: {kind}"] += refused
                if not refused:
                    failures += 1
                    print(f"seed {seed}: '{kind}' was accepted")
            onto = moved_onto_another(plan, rng)
            if onto is None:
                continue
            if not accepted_by_verifier(program, onto, target):
                seen["refused: moved onto a live buffer"] += 1
                continue
            try:
                run_in_arena(program, onto, worker=worker, seed=seed)
                seen["moved onto a live buffer, harmless: accepted and runs"] += 1
            except VerificationError as error:
                # Stricter by design: where a buffer ends the run poisons all of it, also the
                # bytes that a permitted write over it has just handed on.
                if error.details.get("rule") == "freed":
                    seen["moved onto a live buffer, permitted: refused by the run alone"] += 1
                    continue
                failures += 1
                print(f"seed {seed}: the verifier accepts what the run refuses: {error}")
    report("graphs", seen, failures, started)
    return failures


def broken_placements(
    problem: Problem, placement: Placement
) -> dict[str, tuple[Problem, Placement]]:
    """Return ways to break ``placement``; none of them can be right."""
    items, offsets = problem.items, placement.offsets
    top = max(range(len(items)), key=lambda at: offsets[at] + items[at].size)

    def moved(at: int, offset: int) -> Placement:
        return replace(placement, offsets=(*offsets[:at], offset, *offsets[at + 1 :]))

    ways: dict[str, tuple[Problem, Placement]] = {
        "before the arena": (problem, moved(top, -items[top].alignment)),
        "above the height": (problem, moved(top, offsets[top] + 4)),
        "height understated": (problem, replace(placement, height=placement.height - 1)),
        "height overstated": (problem, replace(placement, height=placement.height + 1)),
        "bound above the height": (problem, replace(placement, lower_bound=placement.height + 1)),
        "optimal without a proof": (
            problem,
            replace(placement, lower_bound=placement.height - 1, optimal=True),
        ),
        "an offset missing": (problem, replace(placement, offsets=offsets[:-1])),
        "above the capacity": (replace(problem, capacity=placement.height - 1), placement),
    }
    for at, one in enumerate(items):
        for other, two in enumerate(items):
            meet = at != other and one.start < two.end and two.start < one.end
            if meet and one.offset is None and offsets[other] % one.alignment == 0:
                ways["onto another"] = (problem, moved(at, offsets[other]))
        if one.alignment > 1 and one.offset is None:
            ways["misaligned"] = (problem, moved(at, offsets[at] + 1))
        if one.offset is not None:
            ways["pin moved"] = (problem, moved(at, offsets[at] + one.alignment))
    return ways


def placements(count: int) -> int:
    """Prove and break the placements of ``count`` random problems."""
    seen: Counter[str] = Counter()
    failures = 0
    started = time.perf_counter()
    for seed in range(count):
        problem = random_problem(seed, 24)
        placement = plan_placement(problem, effort="exact", node_limit=20_000)
        verify_placement(problem, placement)
        seen["accepted"] += 1
        seen["proved minimal"] += placement.optimal
        for kind, (asked, broken) in broken_placements(problem, placement).items():
            try:
                verify_placement(asked, broken)
            except InvariantError:
                seen[f"refused: {kind}"] += 1
            else:
                failures += 1
                print(f"seed {seed}: '{kind}' was accepted")
    report("placement problems", seen, failures, started)
    return failures


def report(title: str, seen: Counter[str], failures: int, started: float) -> None:
    """Print the counts."""
    print(f"{title}, {time.perf_counter() - started:.0f} s, {failures} failures")
    for kind, number in seen.items():
        print(f"  {number:>6} {kind}")


def main() -> None:
    """Run both; exit 1 on a failure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--graphs", type=int, default=2000)
    parser.add_argument("--problems", type=int, default=2000)
    options = parser.parse_args()
    runs: list[tuple[Callable[[int], int], int]] = [
        (placements, options.problems),
        (graphs, options.graphs),
    ]
    failures = sum(run(count) for run, count in runs)
    if failures:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
