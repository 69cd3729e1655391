import random
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.errors import OptionError
from graphopt.memory.packing.first_fit import Overlaps, place_in_order
from graphopt.memory.planners import (
    GREEDY_PLANNERS,
    placement_bound,
    plan_naive,
    plan_placement,
)
from graphopt.memory.problem import Item, Planner, Problem, lower_bound_bytes
from graphopt.memory.verify_placement import verify_placement

BY_NAME = {planner.name: planner for planner in GREEDY_PLANNERS}


def lifetimes_problem(*rows: tuple[int, int, int]) -> Problem:
    """Rows are (start, end, size)."""
    return Problem(tuple(Item(f"i{k}", *row) for k, row in enumerate(rows)))


@st.composite
def problems(draw: st.DrawFn, max_items: int = 25, *, plain: bool = False) -> Problem:
    """Random problems with alignments and pins; the pins come from a naive placement."""
    items: list[Item] = []
    top = 0
    for index in range(draw(st.integers(0, max_items))):
        start = draw(st.integers(0, 12))
        alignment = 1 if plain else draw(st.sampled_from([1, 1, 2, 4, 16]))
        size = draw(st.integers(1, 20))
        offset = None
        if not plain and draw(st.integers(0, 5)) == 0:
            offset = -(-top // alignment) * alignment
            top = offset + size
        end = start + draw(st.integers(1, 8))
        items.append(Item(f"i{index}", start, end, size, alignment, offset))
    return Problem(tuple(items))


def test_no_items() -> None:
    planners: list[Planner] = [plan_naive, *GREEDY_PLANNERS]
    for planner in planners:
        assert planner(Problem(())).offsets == ()
    placement = plan_placement(Problem((), capacity=4))
    assert (placement.height, placement.lower_bound, placement.optimal) == (0, 0, True)


def test_naive_stacks_everything_with_alignment_above_the_pins() -> None:
    problem = Problem(
        (Item("a", 0, 1, 3), Item("pin", 0, 9, 4, 4, offset=8), Item("b", 5, 6, 5, alignment=8))
    )
    placement = plan_naive(problem)
    assert placement.offsets == (12, 8, 16)
    assert placement.height == 21


def test_first_fit_takes_the_lowest_gap_and_best_fit_the_tightest() -> None:
    # Gaps seen by "new": [0, 6) and [10, 13), then the space from 16 up.
    items = (
        Item("new", 0, 4, 3),
        Item("low", 0, 4, 4, offset=6),
        Item("high", 0, 4, 3, offset=13),
    )
    assert BY_NAME["greedy-size-first-fit"](Problem(items)).offsets[0] == 0
    assert BY_NAME["greedy-size-best-fit"](Problem(items)).offsets[0] == 10


def test_orders() -> None:
    problem = lifetimes_problem((0, 10, 2), (4, 5, 9), (2, 6, 5), (8, 9, 3))

    def placed_first(name: str) -> int:
        return BY_NAME[f"greedy-{name}-first-fit"](problem).offsets.index(0)

    assert placed_first("size") == 1
    assert placed_first("duration") == 0
    assert placed_first("execution") == 0
    assert placed_first("conflicts") == 0
    # Area: 20, 9, 20, 3: a tie, so the item that starts first.
    assert placed_first("area") == 0
    # Breadth: items 0, 1 and 2 share the widest step; the largest of them is first.
    assert placed_first("breadth") == 1


def test_stops_at_the_bound_and_says_so() -> None:
    placement = plan_placement(lifetimes_problem((0, 2, 4), (1, 3, 4), (2, 4, 4)))
    assert placement.offsets == (0, 4, 0)
    assert placement.planner == "greedy-size-first-fit"
    assert placement.optimal


def test_above_capacity_is_returned_all_the_same() -> None:
    placement = plan_placement(Problem((Item("a", 0, 1, 8),), capacity=4))
    assert placement.height == 8


def test_bound_counts_padding_that_alignment_forces() -> None:
    rows = tuple(Item(f"i{k}", 0, 1, 5, alignment=8) for k in range(3))
    assert lower_bound_bytes(Problem(rows)) == 15
    assert placement_bound(Problem(rows)) == 21
    assert plan_placement(Problem(rows)).height == 21


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([Item("a", 0, 1, 1), Item("a", 0, 1, 1)], "'a': the id is used twice"),
        ([Item("a", 1, 1, 1)], r"lifetime \[1, 1\) is empty"),
        ([Item("a", 0, 1, 0)], "size 0"),
        ([Item("a", 0, 1, 1, alignment=3)], "alignment 3"),
        ([Item("a", 0, 1, 1, alignment=4, offset=2)], "pinned to 2"),
        ([Item("a", 0, 1, 1, offset=-1)], "pinned to -1"),
        ([Item("a", 0, 1, 1 << 62)], r"2\*\*62"),
        (
            [Item("a", 0, 2, 4, offset=0), Item("b", 1, 2, 4, offset=3)],
            "'b': pinned onto 'a'",
        ),
        (
            [Item("a", 0, 2, 4, offset=3), Item("b", 1, 2, 4, offset=0)],
            "'b': pinned onto 'a'",
        ),
    ],
)
def test_contradictions_are_refused(items: list[Item], said: str) -> None:
    planners: list[Planner] = [plan_placement, plan_naive, GREEDY_PLANNERS[0]]
    for planner in planners:
        with pytest.raises(OptionError, match=said) as caught:
            planner(Problem(tuple(items)))
        assert caught.value.code == "problem-invalid"


def test_unknown_effort_is_refused() -> None:
    with pytest.raises(OptionError, match="'heroic'") as caught:
        plan_placement(Problem(()), effort="heroic")  # type: ignore[arg-type]
    assert caught.value.code == "effort-unknown"


@settings(max_examples=150, deadline=None)
@given(problems())
def test_every_planner_gives_a_valid_placement_between_bound_and_naive(problem: Problem) -> None:
    best = plan_placement(problem)
    verify_placement(problem, best)
    assert lower_bound_bytes(problem) <= best.lower_bound <= best.height
    naive = plan_naive(problem)
    verify_placement(problem, naive)
    assert best.height <= naive.height
    for planner in GREEDY_PLANNERS:
        placement = planner(problem)
        verify_placement(problem, placement)
        assert best.height <= placement.height


@settings(max_examples=100, deadline=None)
@given(problems(), st.booleans(), st.randoms(use_true_random=False))
def test_lists_and_arrays_place_alike(problem: Problem, best_fit: bool, rng: random.Random) -> None:
    from graphopt.memory.packing import first_fit

    overlaps = Overlaps(problem)
    order = [rank for rank in range(len(problem.items)) if overlaps.pinned[rank] < 0]
    rng.shuffle(order)
    with_lists = first_fit._place_with_lists(overlaps, order, best_fit, 1 << 60)
    assert first_fit._place_with_arrays(overlaps, order, best_fit, 1 << 60) == with_lists
    assert with_lists is not None
    tops = [o + s for o, s in zip(with_lists, overlaps.sizes.tolist(), strict=True)]
    if order:
        free_top = max(tops[rank] for rank in order)
        for limit, expected in ((free_top, with_lists), (free_top - 1, None)):
            assert (
                place_in_order(overlaps, order, best_fit=best_fit, give_up_above=limit) == expected
            )


def test_breadth_is_the_peak_during_the_lifetime() -> None:
    from graphopt.memory.planners import _peak_during

    problem = lifetimes_problem(*[(s, s + 1 + s * 7 % 11, 1 + s * 5 % 13) for s in range(40)])
    items = problem.items
    live = [sum(i.size for i in items if i.start <= t < i.end) for t in range(60)]
    overlaps = Overlaps(problem)
    expected = [max(live[items[i].start : items[i].end]) for i in overlaps.order]
    assert _peak_during(overlaps).tolist() == expected


@pytest.mark.parametrize("num_long", [0, 40])
def test_twenty_thousand_items_take_seconds(num_long: int) -> None:
    rows = [(k, k + 2 + k % 3, 64 * (1 + k * 7919 % 997)) for k in range(20_000 - num_long)]
    rows += [(k, k + 9_000, 64 * (1 + k * 104_729 % 997)) for k in range(num_long)]
    problem = lifetimes_problem(*rows)
    start = time.process_time()
    placement = plan_placement(problem)
    assert time.process_time() - start < 10, "two seconds on a quiet core"
    verify_placement(problem, placement)


def test_many_overlaps_cost_fewer_planners_not_more_time() -> None:
    rows = [(k % 50, 100 + k % 60, 8 * (1 + k * 7919 % 997)) for k in range(3_000)]
    problem = lifetimes_problem(*rows)
    placement = plan_placement(problem)
    verify_placement(problem, placement)
    assert placement.height <= plan_naive(problem).height


def test_greedy_and_easy_exact_never_import_numba() -> None:
    code = (
        "import sys\n"
        "from graphopt.memory.planners import plan_placement\n"
        "from graphopt.memory.problem import Item, Problem\n"
        "items = tuple(Item(f'v{i}', i, i + 2, 64) for i in range(300))\n"
        "assert plan_placement(Problem(items), effort='exact').optimal\n"
        "assert 'numba' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
