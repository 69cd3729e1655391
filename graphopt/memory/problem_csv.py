"""A placement problem as CSV: ``id,lower,upper,size[,offset]``, one buffer per row.

The format is that of the minimalloc benchmark, so a hard instance can be handed to any other
solver and its answer read back. ``lower`` and ``upper`` are the half-open lifetime, ``size`` and
``offset`` are bytes. A sixth column, ``alignment``, is written only when an item asks for one.
"""

import csv
import io
import os
from pathlib import Path

from graphopt.errors import InvalidModelError, OutputError
from graphopt.memory.problem import Item, Placement, Problem

_REQUIRED = ("id", "lower", "upper", "size")
_OPTIONAL = ("offset", "alignment")


def read_problem_csv(path: str | os.PathLike[str], *, capacity: int | None = None) -> Problem:
    """Read a problem from a file.

    Args:
        path: The CSV file, UTF-8.
        capacity: Bytes of the arena; the format itself has no place for it.

    Returns:
        The items in file order. A filled ``offset`` cell pins its item, so an answer is read as a
        problem in which every item is pinned.

    Raises:
        InvalidModelError: code ``problem-csv-invalid``: unreadable, or a line that makes no sense.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidModelError(
            "problem-csv-invalid", f"cannot read the placement problem '{path}': {error}"
        ) from error
    return parse_problem_csv(text, source=str(path), capacity=capacity)


def parse_problem_csv(
    text: str, *, source: str = "CSV text", capacity: int | None = None
) -> Problem:
    """Read a problem from text; see :func:`read_problem_csv`.

    Args:
        text: The CSV.
        source: What error texts call it.
        capacity: Bytes of the arena.

    Raises:
        InvalidModelError: code ``problem-csv-invalid``.
    """
    try:
        rows = list(csv.reader(io.StringIO(text), strict=True))
    except csv.Error as error:
        raise _invalid(source, 1, str(error)) from error
    if not rows:
        raise _invalid(source, 1, "the file is empty")
    column = _columns(rows[0], source)
    items: list[Item] = []
    line_by_id: dict[str, int] = {}
    for line, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        if len(row) != len(rows[0]):
            raise _invalid(source, line, f"{len(row)} cells, expected {len(rows[0])}")
        item = _item(row, column, source, line)
        if item.id in line_by_id:
            raise _invalid(source, line, f"id '{item.id}' is already on line {line_by_id[item.id]}")
        line_by_id[item.id] = line
        items.append(item)
    return Problem(tuple(items), capacity)


def format_problem_csv(problem: Problem, placement: Placement | None = None) -> str:
    """Return ``problem`` as CSV text with a newline after each row.

    Args:
        problem: The items.
        placement: Its offsets fill the ``offset`` column; without it the column holds the pinned
            offsets and is left out when nothing is pinned.
    """
    offsets: list[int | None] = [item.offset for item in problem.items]
    if placement is not None:
        offsets = list(placement.offsets)
    has_offsets = placement is not None or any(offset is not None for offset in offsets)
    has_alignments = any(item.alignment != 1 for item in problem.items)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    header = list(_REQUIRED) + ["offset"] * has_offsets + ["alignment"] * has_alignments
    writer.writerow(header)
    for item, offset in zip(problem.items, offsets, strict=True):
        row: list[object] = [item.id, item.start, item.end, item.size]
        if has_offsets:
            row.append("" if offset is None else offset)
        if has_alignments:
            row.append(item.alignment)
        writer.writerow(row)
    return out.getvalue()


def write_problem_csv(
    path: str | os.PathLike[str], problem: Problem, placement: Placement | None = None
) -> None:
    """Write :func:`format_problem_csv` to a file; on failure, what was there is still there.

    Raises:
        OutputError: code ``problem-csv-unwritable``.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.partial")
    try:
        partial.write_text(format_problem_csv(problem, placement), encoding="utf-8", newline="")
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(
            "problem-csv-unwritable", f"cannot write the placement problem '{path}': {error}"
        ) from error


def _columns(header: list[str], source: str) -> dict[str, int]:
    names = [name.strip().lower() for name in header]
    missing = [name for name in _REQUIRED if name not in names]
    unknown = [name for name in names if name not in (*_REQUIRED, *_OPTIONAL)]
    if missing or unknown or len(set(names)) != len(names):
        raise _invalid(
            source, 1, f"columns {','.join(names)}; expected id,lower,upper,size[,offset]"
        )
    return {name: index for index, name in enumerate(names)}


def _item(row: list[str], column: dict[str, int], source: str, line: int) -> Item:
    number = {name: _number(row[column[name]], name, source, line) for name in _REQUIRED[1:]}
    if number["upper"] <= number["lower"]:
        raise _invalid(
            source,
            line,
            f"upper {number['upper']} is not above lower {number['lower']} (half-open lifetime)",
        )
    if number["size"] < 1:
        raise _invalid(source, line, f"size {number['size']}, expected at least 1 byte")
    offset: int | None = None
    if "offset" in column and row[column["offset"]].strip():
        offset = _number(row[column["offset"]], "offset", source, line)
        if offset < 0:
            raise _invalid(source, line, f"offset {offset}, expected 0 or more")
    alignment = 1
    if "alignment" in column and row[column["alignment"]].strip():
        alignment = _number(row[column["alignment"]], "alignment", source, line)
        if alignment < 1 or alignment & (alignment - 1):
            raise _invalid(source, line, f"alignment {alignment}, expected a power of two")
    name = row[column["id"]].strip()
    return Item(name, number["lower"], number["upper"], number["size"], alignment, offset)


def _number(cell: str, column: str, source: str, line: int) -> int:
    text = cell.strip()
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 19:
        raise _invalid(source, line, f"{column} '{cell}' is not a whole number")
    return int(text)


def _invalid(source: str, line: int, text: str) -> InvalidModelError:
    return InvalidModelError(
        "problem-csv-invalid",
        f"not a placement problem: {source}, line {line}: {text}",
        hint="the format is id,lower,upper,size[,offset]: one buffer per row, whole numbers",
        details={"source": source, "line": line},
    )
