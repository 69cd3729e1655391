"""Strings made safe to show."""

import pytest

from graphopt.report.text import ascii_only, cell_width, elide, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/features/0/Conv", "/features/0/Conv"),
        ("Größe 模型 é", "Größe 模型 é"),
        ("\x1b[31m", r"\x1b[31m"),
        ("a\nb\tc\x00\x7f\x9b", r"a\x0ab\x09c\x00\x7f\x9b"),
        ("\u202eexe\u2066\u200b\ufeff\u2028", r"\u202eexe\u2066\u200b\ufeff\u2028"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
        ("a\xa0b", r"a\xa0b"),
        ("e\u0301", "e\u0301"),
        ("e" + "\u0301" * 5, "e" + "\u0301" * 3 + r"\u0301\u0301"),
    ],
)
def test_what_does_not_print_is_escaped(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert visible(shown) == shown
    shown.encode("utf-8")


def test_ascii_only() -> None:
    assert ascii_only("a\xd7b…\U0001f600") == r"a\xd7b\u2026\U0001f600"


def test_width_counts_wide_and_combining_characters() -> None:
    assert cell_width("abc") == 3
    assert cell_width("模型") == 4
    assert cell_width("e\u0301") == 1


@pytest.mark.parametrize("width", range(1, 40))
@pytest.mark.parametrize("text", ["/model/layers.0/attention/MatMul_output_0", "模型" * 12])
@pytest.mark.parametrize("mark", ["…", "..."])
def test_elided_text_fits_and_keeps_both_ends(text: str, width: int, mark: str) -> None:
    shown = elide(text, width, mark)
    assert cell_width(shown) <= width
    if width >= 8:
        assert shown[0] == text[0]
        assert shown[-1] == text[-1]
        assert mark in shown


def test_short_text_is_left_alone() -> None:
    assert elide("abc", 3) == "abc"
    assert elide("abcd", 3) == "a…d"


def test_elision_does_not_walk_long_names_for_every_character() -> None:
    assert len(elide("x" * 10_000_000, 40)) == 40
