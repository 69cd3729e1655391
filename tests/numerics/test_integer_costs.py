"""What a missed goal advises: costly nodes, and the target for machines with VNNI."""

from pathlib import Path

import pytest

from graphopt.numerics import integer_costs
from graphopt.numerics.integer_costs import advice, has_vnni
from graphopt.targets.loader import resolve_target

CPU, VNNI, ARM, DEVICE = map(resolve_target, ("cpu", "cpu-vnni", "arm64-cpu", "ethos-u55"))
COSTS = [("a", 10.04), ("b, c", 20.0)]
NAMED = "no node may return to float on this target; alone in integers cost most: 'a' (10.0 dB), "
NAMED += "'b, c' (20.0 dB)"


def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(integer_costs, "_CPU_INFO", path)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("processor\t: 0\nflags\t\t: fpu sse avx2 avx512_vnni\n\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx_vnni sse\n\n", True),
        ("processor\t: 0\nflags\t\t: fpu sse avx2 avx512f\n\n", False),
        ("processor\t: 0\nflags\t\t: fpu\n\nprocessor\t: 1\nflags\t\t: avx_vnni\n", False),
        ("model name\t: avx512_vnni\nbugs\t: avx_vnni\nvmx flags\t: avx_vnni\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd\n", False),
        ("", False),
        (None, False),
    ],
)
def test_the_flags_say_whether_there_is_vnni(
    text: str | None, found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(tmp_path, monkeypatch, text)
    assert has_vnni() is found


def test_the_hint_is_given_only_where_it_is_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hint = "this machine has VNNI: for such machines, target 'cpu-vnni' keeps all 8 bits of a "
    hint += "weight, 'cpu' about 7"
    machine(tmp_path, monkeypatch, "flags : avx_vnni")
    assert advice([], "accept less", CPU) == f"{hint}. accept less"
    assert advice([], None, CPU) == hint
    assert advice(COSTS, "accept less", CPU) == f"{NAMED}. {hint}. accept less"
    for target in (VNNI, ARM, DEVICE):
        assert advice([], "accept less", target) == "accept less"
    machine(tmp_path, monkeypatch, "flags : avx2")
    assert advice([], "accept less", CPU) == "accept less"
    assert advice([], None, CPU) is None
    assert advice(COSTS, None, CPU) == NAMED
