"""Terminal output: exact text, the width it promises, ASCII when asked, nothing cut off."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graphopt.report.console import Style, sparkline
from graphopt.report.quantization import quantization_line
from graphopt.report.tables import (
    passes_pieces,
    passes_text,
    plan_pieces,
    plan_text,
    summary_pieces,
    summary_text,
)
from graphopt.report.text import cell_width
from graphopt.units import format_bytes
from tests.report.hostile import hostile_report
from tests.report.sample_plan import (
    altered,
    chain_plan,
    empty_plan,
    mobilenet_report,
    one_step_plan,
    plan_only,
    with_unplanned,
)

GOLDEN = Path(__file__).with_name("golden")
REPORT = mobilenet_report()
UNPLANNED = with_unplanned(REPORT.plan)

CASES: dict[str, Callable[[], str]] = {
    "summary-80": lambda: summary_text(REPORT, width=80),
    "summary-120": lambda: summary_text(REPORT, width=120),
    "summary-ascii": lambda: summary_text(REPORT, width=80, unicode=False),
    "plan-80": lambda: plan_text(UNPLANNED, width=80, top=2),
    "plan-120": lambda: plan_text(REPORT.plan, width=120),
    "plan-steps-ascii": lambda: plan_text(REPORT.plan, width=80, steps=True, unicode=False),
    "passes-80": lambda: passes_text(REPORT.passes, width=80),
    "passes-120": lambda: passes_text(REPORT.passes, width=120),
}


@pytest.mark.parametrize("name", CASES)
def test_text_is_as_recorded(name: str) -> None:
    """Record anew with ``python -m tests.report.test_tables`` and read the difference."""
    expected = (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")
    assert CASES[name]() + "\n" == expected


@pytest.mark.parametrize("width", [80, 100, 120])
@pytest.mark.parametrize("unicode", [True, False])
def test_lines_fit_the_width(width: int, unicode: bool) -> None:
    data = hostile_report()
    texts = [
        summary_text(REPORT, width=width, unicode=unicode),
        plan_text(UNPLANNED, width=width, unicode=unicode, steps=True),
        passes_text(REPORT.passes, width=width, unicode=unicode),
        passes_text(data.passes, width=width, unicode=unicode),
    ]
    for line in "\n".join(texts).split("\n"):
        assert cell_width(line) <= width, line
        assert line == line.rstrip()


def test_numbers_are_never_cut_even_when_the_terminal_is_too_narrow() -> None:
    text = summary_text(REPORT, width=40)
    assert format_bytes(REPORT.plan.peak_bytes) in text
    steps = plan_text(REPORT.plan, width=40, steps=True)
    assert all(f"{step.live_bytes:,}" in steps for step in REPORT.plan.steps)


def test_figures_are_those_of_the_plan() -> None:
    text = summary_text(REPORT, width=120)
    plan, base = REPORT.plan, REPORT.baseline
    assert base is not None
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    assert format_bytes(plan.arena_bytes) in lines["arena"]
    assert format_bytes(base.arena_bytes) in lines["arena"]
    assert lines["nodes"].split()[1:3] == ["152", "65"]
    assert format_bytes(plan.pools[1].total_bytes) in lines["total in flash"]


def test_hostile_names_cannot_reach_the_terminal() -> None:
    data = hostile_report()
    for unicode in (True, False):
        text = "\n".join(
            (
                summary_text(data, unicode=unicode),
                plan_text(data.plan, unicode=unicode, steps=True),
                passes_text(data.passes, unicode=unicode),
            )
        )
        assert not [c for c in text if not (c.isprintable() or c == "\n")]
        assert "[bold red]markup[/bold red] :smile:" in text
        assert unicode or text.isascii()


def test_pieces_on_a_terminal_are_the_text_in_colours() -> None:
    from rich.console import Console
    from rich.text import Text

    for pieces, text in (
        (summary_pieces(REPORT, width=80), summary_text(REPORT, width=80)),
        (plan_pieces(REPORT.plan, width=80), plan_text(REPORT.plan, width=80)),
        (passes_pieces(REPORT.passes, width=80), passes_text(REPORT.passes, width=80)),
    ):
        out = io.StringIO()
        console = Console(file=out, width=80, force_terminal=True, color_system="standard")
        for piece in pieces:
            console.print(piece, highlight=False)
        coloured = out.getvalue()
        assert "\x1b[" in coloured
        plain = Text.from_ansi(coloured).plain
        assert [line.rstrip() for line in plain.splitlines()] == text.splitlines()


def test_verdict_has_its_colour() -> None:
    from rich.console import Console

    def shown(limit: int) -> str:
        out = io.StringIO()
        console = Console(file=out, width=80, force_terminal=True, color_system="standard")
        for piece in summary_pieces(mobilenet_report(limit_bytes=limit)):
            console.print(piece)
        return out.getvalue()

    assert "\x1b[1;31mDoes not fit: 56.69 KiB over the limit" in shown(320 << 10)
    assert "\x1b[1;32mFits with 23.31 KiB to spare" in shown(400 << 10)


def test_only_the_deciding_limit_counts() -> None:
    flash = REPORT.plan.pools[1]
    tight = flash.model_copy(update={"limit_bytes": 1 << 20})
    plan = altered(REPORT.plan, pools=(REPORT.plan.pools[0], tight))
    text = plan_text(plan)
    excess = format_bytes(flash.total_bytes - (1 << 20))
    assert f"Does not fit: {excess} over the limit" in text
    assert "1.00 MiB available in flash" in text


def test_extremes() -> None:
    assert "the plan has no steps" in plan_text(empty_plan())
    assert "No memory is planned" in plan_text(altered(empty_plan(), pools=()))
    assert "peak          64 B at step 0 of 1" not in plan_text(one_step_plan())
    assert "peak          128 B at step 0 of 1, Relu relu" in plan_text(one_step_plan())
    assert passes_text(()) == "no pass ran"
    name = "n" * 10_000
    text = plan_text(chain_plan(5, name=name), steps=True, width=80)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "before" not in summary_text(plan_only(one_step_plan()))


def test_thousands_of_steps_take_seconds() -> None:
    text = plan_text(chain_plan(20_000), steps=True, width=120)
    assert len(text.splitlines()) > 20_000


@pytest.mark.parametrize("unicode", [True, False])
def test_sparkline(unicode: bool) -> None:
    style = Style(unicode)
    top, bottom = ("█", "▁") if unicode else ("@", ".")
    assert sparkline([], 10, style) == ""
    assert sparkline([0, 0], 10, style) == "  "
    assert sparkline([0, 1, 800], 10, style) == f" {bottom}{top}"
    many = sparkline([*range(999), 5000], 50, style)
    assert len(many) == 50
    assert many[-1] == top
    assert many.count(top) == 1


def test_sparkline_rises_with_the_levels() -> None:
    assert sparkline([1, 2, 3, 4, 5, 6, 7, 8], 8, Style()) == "▁▂▃▄▅▆▇█"
    assert sparkline([1, 2, 3, 4, 5, 6, 7, 8], 8, Style(unicode=False)) == ".:-=+*#@"


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for case, render in CASES.items():
        (GOLDEN / f"{case}.txt").write_text(render() + "\n", encoding="utf-8")
    sys.stdout.write(f"{len(CASES)} texts recorded\n")


@pytest.mark.parametrize(
    ("kernels", "said"),
    [
        (None, "2 nodes integer, 1 returned to float for accuracy, ranges by mse"),
        (
            {"kernels": {"a": "QLinearConv", "b": "Gemm"}, "float_nodes": {"b": "no kernel"}},
            (
                "2 nodes integer, 1 of them widened by onnxruntime, 1 returned to float for "
                "accuracy, ranges by mse"
            ),
        ),
        (
            {"kernels": {"a": "QLinearConv", "b": "QGemm"}, "float_nodes": {}},
            "2 nodes integer, run as such, 1 returned to float for accuracy, ranges by mse",
        ),
    ],
)
def test_the_line_of_quantization(kernels: dict[str, Any] | None, said: str) -> None:
    plain = {"layers": {"a": 40.0, "b": 30.0}, "returned": ["c"], "method": "mse"}
    assert quantization_line({**plain, "kernels": kernels}) == said
