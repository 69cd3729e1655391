"""Which nodes return to float: on noise that adds up, as long as nothing else is known."""

import math
from collections.abc import Mapping, Sequence

import pytest

from graphopt.numerics.back_off import (
    Choice,
    Group,
    names_of,
    returned_to_float,
    too_large_to_widen,
)


class Noise:
    """A network whose integer nodes each add noise of a known power to a signal of one.

    Weights that are stored as integers add a part of it where the node itself is float.
    """

    def __init__(self, powers: Mapping[str, float], goal: float, stored: float = 0.0) -> None:
        self.powers = powers
        self.goal = goal
        self.stored = stored
        self.runs = 0

    def decibels(self, choice: Choice, what: str) -> float:
        assert what
        self.runs += 1
        kept, wide = names_of(choice.kept), names_of(choice.wide)
        assert wide <= kept
        total = sum(power for name, power in self.powers.items() if name not in kept)
        total += sum(self.stored * self.powers[name] for name in kept - wide)
        return 200.0 if total == 0 else -10 * math.log10(total)

    def met(self, choice: Choice, what: str, margin_db: float = 0.0) -> bool:
        return self.decibels(choice, what) >= self.goal + margin_db


def groups_of(powers: Mapping[str, float], **working: int) -> list[Group]:
    return [Group((name,), working.get(name, 1)) for name in powers]


def returned(groups: Sequence[Group], noise: Noise) -> set[str]:
    found = returned_to_float(groups, noise)
    assert found is not None
    assert noise.met(found, "the result")
    return set(names_of(found.kept))


def test_the_noisiest_nodes_return_first() -> None:
    powers = {"a": 1e-4, "b": 1e-2, "c": 1e-3, "d": 1e-5}
    assert returned(groups_of(powers), Noise(powers, 28.0)) == {"b"}
    assert returned(groups_of(powers), Noise(powers, 38.0)) == {"b", "c"}


def test_a_node_with_large_values_stays_integer_where_small_ones_suffice() -> None:
    powers = {"large": 1e-3, "one": 8e-4, "two": 7e-4, "three": 1e-6}
    noise = Noise(powers, 28.0)
    assert returned(groups_of(powers, large=100), noise) == {"one", "two"}
    assert returned(groups_of(powers), Noise(powers, 28.0)) == {"large"}


def test_a_node_with_large_values_returns_where_nothing_else_helps() -> None:
    powers = {"large": 1e-2, "one": 1e-5, "two": 1e-6}
    assert returned(groups_of(powers, large=100), Noise(powers, 28.0)) == {"large"}


def test_weights_are_taken_back_into_integers() -> None:
    powers = {"heavy": 2e-3, "light": 1.9e-3, "third": 1e-3}
    groups = [Group(("heavy",), 1, 1000), Group(("light",), 1, 1), Group(("third",), 1, 1)]
    assert returned(groups, Noise(powers, 24.0)) == {"heavy"}


def test_none_when_not_even_floats_meet_the_goal() -> None:
    class Never(Noise):
        def met(self, choice: Choice, what: str, margin_db: float = 0.0) -> bool:
            return False

    powers = {"a": 1e-3, "b": 1e-3}
    assert returned_to_float(groups_of(powers), Never(powers, 28.0)) is None


@pytest.mark.parametrize("goal", [20.0, 25.0, 30.0, 35.0, 40.0])
def test_the_goal_is_met_with_few_runs(goal: float) -> None:
    powers = {f"n{i}": 10 ** -(2 + (i * 7 % 13) / 4) for i in range(48)}
    sizes = {f"n{i}": 2 ** (i % 11) for i in range(48)}
    noise = Noise(powers, goal)
    groups = [Group((name,), sizes[name]) for name in powers]
    found = returned_to_float(groups, noise)
    assert found is not None
    assert noise.runs <= 48 + 1 + 4 + 6 + 6 + 10
    largest = max(group.working for group in found.kept)
    below = [group for group in groups if group.working < largest]
    assert not noise.met(Choice(below, []), "smaller nodes alone do not suffice")


def test_weights_of_the_costliest_nodes_stay_floats() -> None:
    powers = {"a": 1e-2, "b": 2e-3, "c": 1e-3, "d": 1e-4}
    found = returned_to_float(groups_of(powers), Noise(powers, 28.0, stored=0.1))
    assert found is not None
    assert names_of(found.kept) == {"a", "b"}
    assert names_of(found.wide) == {"a"}


def test_no_weight_stays_float_where_none_needs_to() -> None:
    powers = {"a": 1e-2, "b": 1e-4}
    found = returned_to_float(groups_of(powers), Noise(powers, 28.0, stored=1e-3))
    assert found == Choice([Group(("a",), 1)], [])


def test_a_weight_larger_than_all_activations_is_not_widened() -> None:
    assert too_large_to_widen({"large": (1000, 4)}, peak=8) == {"large"}
    assert too_large_to_widen({"small": (8, 4), "large": (1000, 4)}, peak=12) == {"large"}


def test_many_weights_are_stored_though_each_is_widened() -> None:
    weights = {f"n{i}": (100, 4) for i in range(4)}
    assert too_large_to_widen(weights, peak=8) == frozenset()
    assert too_large_to_widen(weights, peak=1000) == frozenset()
    assert too_large_to_widen({}, peak=0) == frozenset()
