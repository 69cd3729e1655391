"""Which nodes return to float: on noise that adds up, as long as nothing else is known."""

import math
from collections.abc import Mapping, Sequence

import pytest

from graphopt.numerics.back_off import Group, names_of, returned_to_float


class Noise:
    """A network whose integer nodes each add noise of a known power to a signal of one."""

    def __init__(self, powers: Mapping[str, float], goal: float) -> None:
        self.powers = powers
        self.goal = goal
        self.runs = 0

    def decibels(self, keep_float: frozenset[str], what: str) -> float:
        assert what
        self.runs += 1
        total = sum(power for name, power in self.powers.items() if name not in keep_float)
        return 200.0 if total == 0 else -10 * math.log10(total)

    def met(self, keep_float: frozenset[str], what: str) -> bool:
        return self.decibels(keep_float, what) >= self.goal


def groups_of(powers: Mapping[str, float], **working: int) -> list[Group]:
    return [Group((name,), working.get(name, 1)) for name in powers]


def returned(groups: Sequence[Group], noise: Noise) -> set[str]:
    found = returned_to_float(groups, noise)
    assert found is not None
    assert noise.met(names_of(found), "the result")
    return set(names_of(found))


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
        def met(self, keep_float: frozenset[str], what: str) -> bool:
            return False

    powers = {"a": 1e-3, "b": 1e-3}
    assert returned_to_float(groups_of(powers), Never(powers, 28.0)) is None


@pytest.mark.parametrize("goal", [20.0, 25.0, 30.0, 35.0, 40.0])
def test_the_goal_is_met_with_few_runs(goal: float) -> None:
    powers = {f"n{i}": 10 ** -(2 + (i * 7 % 13) / 4) for i in range(48)}
    sizes = {f"n{i}": 2 ** (i % 11) for i in range(48)}
    noise = Noise(powers, goal)
    found = returned_to_float([Group((name,), sizes[name]) for name in powers], noise)
    assert found is not None
    assert noise.runs <= 48 + 1 + 4 + 6 + 10
    largest = max(group.working for group in found)
    below = {name for name in powers if sizes[name] < largest}
    assert not noise.met(frozenset(below), "smaller nodes alone do not suffice")
