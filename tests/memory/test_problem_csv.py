from pathlib import Path

import pytest

from graphopt.errors import InvalidModelError, OutputError
from graphopt.memory.problem import Item, Placement, Problem
from graphopt.memory.problem_csv import (
    format_problem_csv,
    parse_problem_csv,
    read_problem_csv,
    write_problem_csv,
)

PROBLEM = Problem((Item("a", 0, 2, 4), Item("b, too", 1, 3, 8)), capacity=16)
TEXT = 'id,lower,upper,size\na,0,2,4\n"b, too",1,3,8\n'


def test_four_columns_both_ways() -> None:
    assert format_problem_csv(PROBLEM) == TEXT
    assert parse_problem_csv(TEXT, capacity=16) == PROBLEM


def test_placement_fills_the_fifth_column_and_reads_back_as_pins() -> None:
    text = format_problem_csv(PROBLEM, Placement((8, 0), 12, "by hand", 12, optimal=True))
    assert text == 'id,lower,upper,size,offset\na,0,2,4,8\n"b, too",1,3,8,0\n'
    assert [item.offset for item in parse_problem_csv(text).items] == [8, 0]


def test_empty_offset_is_free_and_alignment_survives() -> None:
    problem = Problem((Item("a", -1, 2, 4, alignment=64), Item("b", 1, 3, 8, offset=128)))
    text = format_problem_csv(problem)
    assert text == "id,lower,upper,size,offset,alignment\na,-1,2,4,,64\nb,1,3,8,128,1\n"
    assert parse_problem_csv(text) == problem


def test_columns_in_any_order_with_spaces_blank_lines_and_crlf() -> None:
    text = "size, upper ,lower,ID\r\n4, 2,0,a\r\n\r\n"
    assert parse_problem_csv(text).items == (Item("a", 0, 2, 4),)


def test_no_rows_is_a_problem_without_items() -> None:
    assert parse_problem_csv("id,lower,upper,size\n").items == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: the file is empty"),
        ("id,lower,size\n", "line 1: columns id,lower,size"),
        ("id,lower,upper,size,gaps\n", "line 1: columns id,lower,upper,size,gaps"),
        ("id,lower,upper,size,size\n", "line 1: columns"),
        (TEXT + "a,0,2,4\n", "line 4: id 'a' is already on line 2"),
        (TEXT + "c,2,2,4\n", r"line 4: upper 2 is not above lower 2"),
        (TEXT + "c,2,3,0\n", "line 4: size 0"),
        (TEXT + "c,2,3\n", "line 4: 3 cells, expected 4"),
        (TEXT + "c,2,3,4.0\n", "line 4: size '4.0' is not a whole number"),
        (TEXT + "c,2,3,-\n", "line 4: size '-' is not a whole number"),
        (TEXT + "c,2,3,\n", "line 4: size '' is not a whole number"),
        ("id,lower,upper,size,offset\na,0,1,2,-8\n", "line 2: offset -8"),
        ("id,lower,upper,size,alignment\na,0,1,2,3\n", "line 2: alignment 3"),
        ('id,lower,upper,size\n"a,0,1,2\n', "unexpected end of data"),
    ],
)
def test_nonsense_is_refused_with_its_line(text: str, said: str) -> None:
    with pytest.raises(InvalidModelError, match=said) as caught:
        parse_problem_csv(text, source="p.csv")
    assert caught.value.code == "problem-csv-invalid"
    assert caught.value.details["source"] == "p.csv"


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "problem.csv"
    write_problem_csv(path, PROBLEM)
    assert path.read_bytes() == TEXT.encode()
    assert read_problem_csv(path, capacity=16) == PROBLEM
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(InvalidModelError, match=r"missing\.csv"):
        read_problem_csv(tmp_path / "missing.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidModelError, match="cannot read"):
        read_problem_csv(tmp_path / "binary.csv")


def test_failed_write_keeps_what_was_there(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught:
        write_problem_csv(tmp_path / "no-folder" / "problem.csv", PROBLEM)
    assert caught.value.code == "problem-csv-unwritable"
    target = tmp_path / "taken"
    target.mkdir()
    with pytest.raises(OutputError):
        write_problem_csv(target, PROBLEM)
    assert list(tmp_path.iterdir()) == [target]


def test_minimalloc_instances_read_and_write_byte_for_byte(assets: Path) -> None:
    files = sorted((assets / "data" / "minimalloc").glob("*.1048576.csv"))
    if not files:
        pytest.skip("the minimalloc instances are not there")
    assert [len(read_problem_csv(file).items) for file in files] == [
        154, 170, 203, 213, 215, 296, 308, 316, 374, 409, 454,
    ]  # fmt: skip
    for file in files:
        assert format_problem_csv(read_problem_csv(file)) == file.read_text(encoding="utf-8")
