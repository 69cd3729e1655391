"""The placement verifier must be seen to object: each rule broken once, each mutation caught."""

import dataclasses
import random
import time

import pytest

from graphopt.errors import InvariantError
from graphopt.memory.problem import Item, Placement, Problem
from graphopt.memory.verify_placement import verify_placement

# Two 4-byte items alive together, a third that follows the first at the same offset.
STACKED = Problem(
    (Item("a", 0, 2, 4), Item("b", 1, 3, 4, alignment=4), Item("c", 2, 4, 2, offset=0)),
    capacity=8,
)
GOOD = Placement((0, 4, 0), 8, "by hand", lower_bound=8, optimal=True)


def rule_broken(problem: Problem, placement: Placement) -> str:
    with pytest.raises(InvariantError) as caught:
        verify_placement(problem, placement)
    assert caught.value.code == "placement-invalid"
    rule = caught.value.details["rule"]
    assert isinstance(rule, str)
    return rule


def with_item(problem: Problem, index: int, **changes: object) -> Problem:
    items = list(problem.items)
    items[index] = dataclasses.replace(items[index], **changes)  # type: ignore[arg-type]
    return dataclasses.replace(problem, items=tuple(items))


def test_accepts_good_and_empty() -> None:
    verify_placement(STACKED, GOOD)
    verify_placement(Problem(()), Placement((), 0, "none", 0, optimal=True))


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"offsets": (0, 4)}, "count"),
        ({"offsets": (-4, 4, 0)}, "offset"),
        ({"offsets": (0, 5, 0)}, "alignment"),
        ({"offsets": (0, 4, 2)}, "pin"),
        ({"height": 9}, "height"),
        ({"height": 7}, "height"),
        ({"lower_bound": 9}, "bound"),
        ({"optimal": False}, "optimal"),
        ({"lower_bound": 7}, "optimal"),
        ({"offsets": (8, 4, 0), "height": 12, "optimal": False}, "capacity"),
        ({"offsets": (0, 0, 0), "height": 4}, "bound"),
        ({"offsets": (0, 0, 0), "height": 4, "lower_bound": 4}, "overlap"),
        ({"offsets": (2, 4, 0)}, "overlap"),
    ],
)
def test_names_the_broken_rule(changes: dict[str, object], rule: str) -> None:
    broken = dataclasses.replace(GOOD, **changes)  # type: ignore[arg-type]
    assert rule_broken(STACKED, broken) == rule


@pytest.mark.parametrize("changes", [{"size": 0}, {"end": 0}])
def test_rejects_items_that_are_nothing(changes: dict[str, object]) -> None:
    assert rule_broken(with_item(STACKED, 0, **changes), GOOD) == "item"


def test_overlap_names_both_items() -> None:
    with pytest.raises(InvariantError, match=r"'a' at \[2, 6\) alive \[0, 2\).*'b' at \[4, 8\)"):
        verify_placement(STACKED, dataclasses.replace(GOOD, offsets=(2, 4, 0)))


def test_without_capacity_any_height_is_accepted() -> None:
    free = dataclasses.replace(STACKED, capacity=None)
    verify_placement(free, dataclasses.replace(GOOD, offsets=(8, 4, 0), height=12, optimal=False))


def test_touching_lifetimes_may_share_bytes_and_one_step_longer_may_not() -> None:
    problem = Problem((Item("a", 0, 2, 4), Item("b", 2, 4, 4)))
    shared = Placement((0, 0), 4, "by hand", 4, optimal=True)
    verify_placement(problem, shared)
    assert rule_broken(with_item(problem, 0, end=3), shared) == "overlap"
    assert rule_broken(with_item(problem, 1, start=1), shared) == "overlap"


def tight_tiling(seed: int) -> tuple[Problem, Placement]:
    """Cut the rectangle [0, 32) x [0, 256) into items that fill it: any change must collide."""
    rng = random.Random(seed)
    rectangles = [(0, 32, 0, 256)]
    while len(rectangles) < 24:
        start, end, low, top = rectangles.pop(rng.randrange(len(rectangles)))
        if rng.random() < 0.5 and end - start > 1:
            cut = rng.randrange(start + 1, end)
            rectangles += [(start, cut, low, top), (cut, end, low, top)]
        elif top - low > 8:
            cut = rng.randrange(low // 8 + 1, top // 8) * 8
            rectangles += [(start, end, low, cut), (start, end, cut, top)]
        else:
            rectangles.append((start, end, low, top))
    items = tuple(Item(f"i{k}", r[0], r[1], r[3] - r[2], 8) for k, r in enumerate(rectangles))
    offsets = tuple(r[2] for r in rectangles)
    return Problem(items, 256), Placement(offsets, 256, "tiling", 256, optimal=True)


@pytest.mark.parametrize("seed", range(20))
def test_every_mutation_of_a_tight_tiling_is_caught(seed: int) -> None:
    problem, placement = tight_tiling(seed)
    verify_placement(problem, placement)
    for index, item in enumerate(problem.items):
        for shift in (-8, 8):
            offsets = list(placement.offsets)
            offsets[index] += shift
            moved = dataclasses.replace(placement, offsets=tuple(offsets))
            assert rule_broken(problem, moved) in ("overlap", "offset", "height")
        shifted = list(placement.offsets)
        shifted[index] += 1
        misaligned = dataclasses.replace(placement, offsets=tuple(shifted))
        assert rule_broken(problem, misaligned) == "alignment"
        grown = with_item(problem, index, size=item.size + 1)
        assert rule_broken(grown, placement) in ("overlap", "height")
        for changes in ({"end": item.end + 1}, {"start": item.start - 1}):
            stretched = with_item(problem, index, **changes)
            at_the_border = item.end == 32 if "end" in changes else item.start == 0
            if at_the_border:
                verify_placement(stretched, placement)
            else:
                assert rule_broken(stretched, placement) == "overlap"


def test_a_shrunk_top_item_leaves_the_height_wrong() -> None:
    problem, placement = tight_tiling(0)
    top = [i for i, o in enumerate(placement.offsets) if o + problem.items[i].size == 256]
    for index in top:
        problem = with_item(problem, index, size=problem.items[index].size - 1)
    assert rule_broken(problem, placement) == "height"


def test_twenty_thousand_items_take_no_square_of_time() -> None:
    items = tuple(Item(f"v{i}", i, i + 3, 64) for i in range(20_000))
    offsets = tuple(i % 3 * 64 for i in range(20_000))
    placement = Placement(offsets, 192, "by hand", 192, optimal=True)
    start = time.process_time()
    verify_placement(Problem(items), placement)
    assert time.process_time() - start < 5, (
        "a tenth of a second; comparing all pairs takes a minute"
    )
