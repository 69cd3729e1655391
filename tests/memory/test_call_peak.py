"""Peaks of calls that free a value after its last use: figures by hand."""

from collections.abc import Sequence, Set

from graphopt.memory.call_peak import CallPeak, CallStep, CallStorage, call_peak


def step(name: str, reads: tuple[int, ...], makes: tuple[int, ...], most: int) -> CallStep:
    return CallStep(name, "op", reads, makes, most)


def peak_of(steps: Sequence[CallStep], sizes: Sequence[int | None], results: Set[int]) -> CallPeak:
    storages = [None if n is None else CallStorage(f"s{i}", "op", n) for i, n in enumerate(sizes)]
    return call_peak(steps, storages, results)


def test_what_is_read_last_goes_when_the_step_is_over() -> None:
    steps = [step("a", (0,), (1,), 100), step("b", (1,), (2,), 30), step("c", (2,), (3,), 20)]
    peak = peak_of(steps, [None, 100, 30, 20], {3})
    assert peak.peak_bytes == peak.live_bytes == peak.liveness_bytes == 130
    assert (peak.step, peak.name, peak.scratch_bytes) == (1, "b", 0)
    assert [(o.name, o.bytes) for o in peak.owners] == [("s1", 100), ("s2", 30)]


def test_scratch_counts_at_its_step_only_and_moves_the_peak() -> None:
    steps = [step("a", (0,), (1,), 100), step("b", (1,), (2,), 30), step("c", (2,), (3,), 200)]
    peak = peak_of(steps, [None, 100, 30, 20], {3})
    assert (peak.peak_bytes, peak.step) == (30 + 200, 2)
    assert (peak.live_bytes, peak.scratch_bytes, peak.liveness_bytes) == (50, 180, 130)
    assert [(o.name, o.kind, o.bytes) for o in peak.owners] == [
        ("c", "scratch", 180),
        ("s2", "activation", 30),
        ("s3", "activation", 20),
    ]


def test_a_view_keeps_the_storage_it_lies_in() -> None:
    # "view" makes nothing; its reader reads the storage of "a".
    steps = [
        step("a", (0,), (1,), 100),
        step("view", (1,), (), 0),
        step("b", (0,), (2,), 70),
        step("c", (1, 2), (3,), 10),
    ]
    assert peak_of(steps, [None, 100, 70, 10], {3}).peak_bytes == 180
    steps[3] = step("c", (2,), (3,), 10)
    assert peak_of(steps, [None, 100, 70, 10], {3}).peak_bytes == 100


def test_results_stay_and_what_nobody_reads_goes() -> None:
    steps = [
        step("result", (0,), (1,), 50),
        step("unread", (0,), (2,), 40),
        step("last", (0,), (3,), 45),
    ]
    assert peak_of(steps, [None, 50, 40, 45], {1, 3}).peak_bytes == 50 + 45
    assert peak_of(steps, [None, 50, 40, 45], {3}).peak_bytes == 50


def test_what_the_caller_owns_is_in_no_figure() -> None:
    steps = [step("a", (0, 1), (), 0)]
    assert peak_of(steps, [None, None], {0}).peak_bytes == 0
    assert peak_of([], [None], {0}).owners == ()


def test_an_operator_that_holds_less_than_it_makes_has_no_negative_scratch() -> None:
    # torch may hand out memory that it kept: the profiler does not see it asked for.
    peak = peak_of([step("a", (0,), (1,), 10)], [None, 64], {1})
    assert (peak.peak_bytes, peak.scratch_bytes) == (64, 0)
