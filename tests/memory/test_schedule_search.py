"""The pieces of the search: units, bounds, rules, exact search, trees, and where orders are cut."""

import random
import time
from collections.abc import Iterator
from heapq import heappop, heappush

import pytest

from graphopt.memory.dataflow import Dataflow
from graphopt.memory.ordering.board import Board
from graphopt.memory.ordering.bounds import lower_bound
from graphopt.memory.ordering.contract import UnitGraph, unit_graph
from graphopt.memory.ordering.costs import Costs, Sharing, costs_of
from graphopt.memory.ordering.groups import groups_of
from graphopt.memory.ordering.heuristics import HEURISTICS
from graphopt.memory.ordering.hills import hills_and_valleys
from graphopt.memory.ordering.masks import MaskGraph
from graphopt.memory.ordering.regions import cut_positions
from graphopt.memory.ordering.search import Effort, beam_order, find_order
from graphopt.memory.ordering.wholes import joined
from graphopt.memory.placing import Rules
from tests.memory.flows import random_flow
from tests.memory.order_flows import (
    FlowBuilder,
    all_orders,
    nasnet_cells,
    random_local,
    random_order,
    random_tree,
    randwire,
)

UNITS = Rules(1, False, False)
INSIDE = Rules(1, True, True)


def costs(flow: Dataflow, rules: Rules = UNITS, *, with_parts: bool = False) -> Costs:
    groups = groups_of(flow, rules)
    plain = costs_of(flow, groups, rules)
    return costs_of(flow, groups, rules, joined(groups, Sharing())) if with_parts else plain


def graph_of(found: Costs, *, contract: bool = True) -> UnitGraph:
    count = found.num_steps
    return unit_graph(Board(found, range(count)).region(0, count), 256, contract=contract)


def least_peak(graph: UnitGraph) -> int:
    """The lowest peak of any order of the units, by searching downwards."""
    masks, effort = MaskGraph(graph), Effort(10**9, time.monotonic() + 60)
    best = max(graph.runs_of(range(len(graph.units)))) + 1
    while True:
        answer = find_order(masks, best - 1, effort, 10**9)
        if answer.order is None:
            assert answer.needed_bytes is not None
            assert answer.needed_bytes >= best
            return best
        found = max(graph.runs_of(answer.order))
        assert found < best
        best = found


def least_peak_of_all_sets(graph: UnitGraph, most: int) -> int | None:
    """The lowest peak, by shortest paths over all sets of units; None for more than ``most``."""
    masks, region = MaskGraph(graph), graph.region
    pending, seen = [(region.base_bytes, 0, region.base_bytes)], set()
    while pending:
        peak, done, level = heappop(pending)
        if done == masks.everything:
            return peak
        if done in seen:
            continue
        seen.add(done)
        if len(seen) > most:
            return None
        first = 0 if done else region.first_bytes
        for unit, before in enumerate(masks.preds):
            if not done >> unit & 1 and not before & ~done:
                hill, net = graph.units[unit].cost(masks.favours_of(unit, done))
                needed = max(peak, level + hill + first)
                heappush(pending, (needed, done | 1 << unit, level + net))
    raise AssertionError("no order")


def random_graphs(count: int) -> Iterator[Costs]:
    """Trees, random wirings, local graphs, and flows with every alias, plain and with parts."""
    for seed in range(count):
        kind = seed % 5
        if kind == 0:
            yield costs(random_tree(8 + seed % 20, seed))
        elif kind == 1:
            yield costs(randwire(10 + seed % 8, seed))
        elif kind == 2:
            yield costs(random_local(12 + seed % 9, 4 + seed % 6, seed))
        else:
            flow = random_flow(seed, 22)
            flow = flow.reordered(random_order(flow, random.Random(seed)))
            yield costs(flow, INSIDE, with_parts=kind == 4)


def test_search_is_exact_on_every_kind_of_graph() -> None:
    """In several of these trees a part of a valley is the deeper valley; see the search."""
    compared = 0
    for found in random_graphs(500):
        apart, together = graph_of(found, contract=False), graph_of(found)
        least = least_peak_of_all_sets(apart, 3000)
        if least is None:
            continue
        compared += 1
        assert least_peak_of_all_sets(together, 3000) == least
        assert least_peak(apart) == least
        assert least_peak(together) == least
    assert compared > 400


@pytest.mark.parametrize("block", range(4))
def test_joining_steps_and_searching_keep_the_optimum(block: int) -> None:
    joined_units = 0
    for seed in range(block * 100, block * 100 + 100):
        flow = random_flow(seed, 9)
        orders = all_orders(flow, 300)
        if orders is None:
            continue
        for with_parts in (False, True):
            found = costs(flow, INSIDE, with_parts=with_parts)
            peaks = [Board(found, order).peak for order in orders]
            apart, together = graph_of(found, contract=False), graph_of(found)
            joined_units += len(apart.units) - len(together.units)
            assert least_peak(apart) == min(peaks)
            assert least_peak(together) == min(peaks)
    assert joined_units > 100


def test_units_run_their_steps_in_a_valid_order() -> None:
    for seed in range(200):
        flow = random_flow(seed, 25)
        graph = graph_of(costs(flow, INSIDE))
        order = graph.steps_of(range(len(graph.units)))
        flow.reordered(order)  # raises when the order is not valid


def test_cells_are_joined_to_few_units() -> None:
    flow = nasnet_cells()
    assert len(flow.steps) == 189
    assert len(graph_of(costs(flow)).units) < 25


def test_bound_is_below_the_optimum_and_often_meets_it() -> None:
    met = 0
    for seed in range(300):
        flow = random_flow(seed, 9)
        graph = graph_of(costs(flow, INSIDE))
        order = list(range(len(graph.units)))
        runs = graph.runs_of(order)
        best = least_peak(graph)
        bound = lower_bound(graph, order, runs)
        assert bound <= best
        met += bound == best
    assert met > 150


def test_rules_and_beam_give_valid_orders() -> None:
    rng = random.Random(0)
    for seed in range(60):
        flow = random_flow(seed, 25)
        flow = flow.reordered(random_order(flow, rng))
        for with_parts in (False, True):
            graph = graph_of(costs(flow, INSIDE, with_parts=with_parts))
            orders = [rule(graph) for _, rule in HEURISTICS]
            orders += [hills_and_valleys(graph).order, beam_order(MaskGraph(graph), 8)]
            for order in orders:
                assert sorted(order) == list(range(len(graph.units)))
                flow.reordered(graph.steps_of(order))


def test_each_rule_is_the_best_one_somewhere() -> None:
    wins: dict[str, int] = {}
    for seed in range(60):
        graph = graph_of(costs(randwire(24, seed)))
        peaks = {name: max(graph.runs_of(rule(graph))) for name, rule in HEURISTICS}
        best = [name for name, peak in peaks.items() if peak == min(peaks.values())]
        for name in best:
            wins[name] = wins.get(name, 0) + 1
    assert set(wins) == {name for name, _ in HEURISTICS}


def test_a_wide_beam_is_exact() -> None:
    for seed in range(20):
        graph = graph_of(costs(randwire(14, seed)))
        assert max(graph.runs_of(beam_order(MaskGraph(graph), 10**6))) == least_peak(graph)


def test_hills_and_valleys_are_optimal_for_trees() -> None:
    for seed in range(150):
        found = costs(random_tree(4 + seed % 24, seed))
        for contract in (False, True):
            graph = graph_of(found, contract=contract)
            tree = hills_and_valleys(graph)
            assert tree.is_optimal
            assert max(graph.runs_of(tree.order)) == least_peak(graph)


def test_hills_and_valleys_say_when_a_graph_is_no_tree() -> None:
    assert not hills_and_valleys(graph_of(costs(randwire(16, 0)))).is_optimal


def test_long_chains_and_wide_trees_do_not_recurse() -> None:
    b = FlowBuilder()
    ends = []
    for branch in range(3):
        value = b.x
        for step in range(4000):
            value = b.op([value], 1 + (step * (branch + 2)) % 7)
        ends.append(value)
    ends += [b.op([b.x]) for _ in range(4000)]
    graph = graph_of(costs(b.flow([b.op(ends)])))
    tree = hills_and_valleys(graph)
    assert tree.is_optimal
    assert len(tree.order) == len(graph.units)


def test_the_limit_ends_a_search_without_an_answer() -> None:
    graph = graph_of(costs(randwire(32, 8)))
    effort = Effort(10**6, time.monotonic() + 60)
    answer = find_order(MaskGraph(graph), 15, effort, 100)
    assert answer.order is None
    assert answer.needed_bytes is None
    assert effort.is_limited
    assert not effort.is_late
    assert 0 < effort.nodes < 1000
    late = Effort(10**6, time.monotonic() - 1)
    assert find_order(MaskGraph(graph), 15, late, 10**6).needed_bytes is None
    assert late.is_late


def test_cuts_are_where_every_order_agrees() -> None:
    for seed in range(200):
        flow = random_flow(seed, 9)
        orders = all_orders(flow, 400)
        if orders is None:
            continue
        found = cut_positions(costs(flow, INSIDE), range(len(flow.steps)))
        agree = [
            place
            for place in range(len(flow.steps) + 1)
            if len({frozenset(order[:place]) for order in orders}) == 1
        ]
        # A place between two cuts may agree too; a cut that does not agree would be wrong.
        assert set(found) <= set(agree)
        assert {0, len(flow.steps)} <= set(found)


def test_a_chain_is_cut_everywhere() -> None:
    b = FlowBuilder()
    value = b.x
    for _ in range(10):
        value = b.op([value])
    assert cut_positions(costs(b.flow([value])), range(10)) == list(range(11))


def test_a_part_of_the_order_can_be_replaced() -> None:
    rng = random.Random(1)
    for seed in range(100):
        flow = random_flow(seed, 25)
        found = costs(flow, INSIDE)
        board = Board(found, range(found.num_steps))
        low = rng.randrange(found.num_steps)
        high = rng.randrange(low, found.num_steps) + 1
        region = board.region(low, high)
        graph = unit_graph(region, 1)
        order = graph.steps_of(beam_order(MaskGraph(graph), 4))
        board.replace(low, region, order)
        fresh = Board(found, board.order)
        assert (board.runs, board.levels) == (fresh.runs, fresh.levels)
