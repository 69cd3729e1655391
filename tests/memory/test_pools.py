"""Several pools: what spills, where to, and that every plan over pools is proven."""

from graphopt.memory.dataflow import Dataflow, DataValue, Role, Step
from graphopt.memory.placing import Rules
from graphopt.memory.plan import MemoryPlan
from graphopt.memory.planning import assemble
from graphopt.memory.pools import Offer, Resident, assign_pools
from graphopt.targets.loader import resolve_target
from tests.memory.flows import FACTS, chain, random_flow


def plan_on_mcu(flow: Dataflow, limits: dict[str, int], *, io: bool = True) -> MemoryPlan:
    """A plan on stm32h743: AXI SRAM, D2 SRAM, DTCM, SRAM4 and flash, alignment 32."""
    target = resolve_target("stm32h743")
    return assemble(FACTS, target, flow, Rules(32, True, io), "greedy", limits)


def arenas(plan: MemoryPlan) -> dict[str, int]:
    return {pool.name: pool.arena_bytes for pool in plan.pools if pool.arena_bytes}


def test_all_stays_in_the_first_pool_when_it_fits() -> None:
    plan = plan_on_mcu(chain([320, 640, 320]), {"axi-sram": 1280, "d2-sram": 1280})
    assert set(arenas(plan)) == {"axi-sram"}


def test_what_does_not_fit_spills_to_the_next_pool() -> None:
    plan = plan_on_mcu(chain([320, 640, 320]), {"axi-sram": 640, "d2-sram": 640})
    found = arenas(plan)
    assert set(found) == {"axi-sram", "d2-sram"}
    assert all(size <= 640 for size in found.values())
    assert plan.arena_bytes == sum(found.values())


def test_the_least_traffic_moves() -> None:
    """Both would do; the one read once moves, the one read five times stays in the fast pool."""
    residents = [Resident(0, 4, 100, 5), Resident(0, 4, 100, 1)]
    offers = [Offer("fast", 100, 1), Offer("slow", None, 1)]
    assert assign_pools(residents, offers, 4) == [0, 1]


def test_a_long_life_off_the_peak_is_preferred_to_a_short_one() -> None:
    residents = [Resident(0, 10, 100, 2), *(Resident(i, i + 1, 100, 2) for i in range(10))]
    offers = [Offer("fast", 100, 1), Offer("slow", None, 1)]
    assert assign_pools(residents, offers, 10) == [1, *([0] * 10)]


def test_spilling_goes_on_to_the_third_pool() -> None:
    residents = [Resident(0, 1, 100, 1)] * 3
    offers = [Offer("a", 100, 1), Offer("b", 100, 1), Offer("c", None, 1)]
    assert sorted(assign_pools(residents, offers, 1)) == [0, 1, 2]


def test_when_nothing_fits_the_first_pool_tells_the_whole_need() -> None:
    limits = {"axi-sram": 64, "d2-sram": 64, "dtcm": 64, "sram4": 64}
    plan = plan_on_mcu(chain([320, 640, 320]), limits)
    assert arenas(plan) == {"axi-sram": 960}


def test_weights_take_the_next_pool_when_one_is_full() -> None:
    values = (
        DataValue("x", 32, Role.INPUT),
        *(DataValue(f"w{i}", 320, Role.WEIGHT) for i in range(3)),
        DataValue("y", 32, Role.OUTPUT),
    )
    flow = Dataflow(values, (Step("n", "Op", (0, 1, 2, 3), (4,)),), (4,))
    cpu = resolve_target("cpu")
    (dram,) = cpu.pools
    small = dram.model_copy(update={"name": "small", "size_bytes": 640})
    target = cpu.model_copy(update={"pools": (small, dram)})
    plan = assemble(FACTS, target, flow, Rules(64, True, False), "greedy", {"small": 640})
    assert {p.name: p.weight_bytes for p in plan.pools} == {"small": 320, "dram": 640}


def test_random_flows_over_small_pools_are_proven() -> None:
    spilled = 0
    limits = {"axi-sram": 160, "d2-sram": 128, "dtcm": 256, "sram4": 4096}
    for seed in range(400):
        plan = plan_on_mcu(random_flow(seed, most_steps=20), limits, io=seed % 2 == 0)
        spilled += len(arenas(plan)) > 1
    assert spilled > 40
