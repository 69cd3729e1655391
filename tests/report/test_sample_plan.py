"""The plans that the other tests render are sound: nothing overlaps and the sums are right."""

from itertools import pairwise

import pytest

from graphopt.memory.plan import MemoryPlan
from tests.report.sample_plan import chain_plan, empty_plan, mobilenet_plan, one_step_plan

PLANS = {
    "before": mobilenet_plan(optimized=False),
    "after": mobilenet_plan(optimized=True),
    "empty": empty_plan(),
    "one step": one_step_plan(),
    "chain": chain_plan(300),
}


@pytest.mark.parametrize("name", PLANS)
def test_plan_is_sound(name: str) -> None:
    plan = PLANS[name]
    assert MemoryPlan.from_json(plan.to_json()) == plan
    arena = [b for b in plan.buffers if b.segment == "arena" and b.padded_bytes]
    for number, step in enumerate(plan.steps):
        alive = sorted((b.offset, b.padded_bytes) for b in arena if b.start <= number < b.end)
        assert sum(size for _, size in alive) == step.live_bytes
        assert all(a[0] + a[1] <= b[0] for a, b in pairwise(alive))
        assert not alive or sum(alive[-1]) <= plan.pools[0].arena_bytes
    assert plan.peak.bytes == max((s.live_bytes for s in plan.steps), default=0)
    assert plan.peak.bytes == sum(owner.bytes for owner in plan.peak.owners)
