"""The pieces of which terminal output is made: tables, sentences and a sparkline.

Everything is a ``rich`` renderable, so a terminal gets colours; ``to_text`` renders the same pieces
as plain text for pipes and files. Text of a model never becomes markup.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from graphopt.report.text import ascii_only, cell_width, elide, visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

_EIGHTHS = "▁▂▃▄▅▆▇█"
_ASCII_LEVELS = ".:-=+*#@"
_NARROWEST_NAME = 24
_GAP = 2

Align = Literal["left", "right", "name"]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    A ``name`` column gives way and elides its cells in the middle; the others never lose a digit.
    Where the width is not enough for that, columns with the highest ``spare`` above 0 go first.
    """

    header: str
    align: Align = "right"
    spare: int = 0


@dataclass(frozen=True)
class Style:
    """How text may look: whether characters outside ASCII are allowed."""

    unicode: bool = True

    def show(self, text: str) -> str:
        """Return ``text`` as it may be printed."""
        shown = visible(text)
        return shown if self.unicode else ascii_only(shown)

    @property
    def mark(self) -> str:
        """What stands for the part of a name that is left out."""
        return "…" if self.unicode else "..."


def table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    style: Style,
    width: int,
    *,
    bold_row: int = -1,
) -> RenderableType:
    """Return a table without rules for ``width`` columns of a terminal.

    Laid out here and not by ``rich.table``: that elides at the end, where names differ, and takes
    10 s for the steps of a plan of 20,000.
    """
    from rich.text import Text

    shown = [[style.show(cell) for cell in row] for row in rows]
    widths = [max((cell_width(row[i]) for row in shown), default=0) for i, _ in enumerate(columns)]
    widths = [max(w, cell_width(c.header)) for w, c in zip(widths, columns, strict=True)]
    kept = _kept(columns, widths, width)
    _give_way(columns, widths, kept, width)
    lines = [_line([c.header for c in columns], columns, widths, kept, style)]
    lines += [_line(row, columns, widths, kept, style) for row in shown]
    lines = lines if lines[0] else lines[1:]
    text = Text("\n".join(lines), no_wrap=True, overflow="ignore")
    headers = len(lines) - len(rows)
    if headers:
        text.stylize("dim", 0, len(lines[0]))
    if 0 <= bold_row < len(rows):
        start = sum(len(line) + 1 for line in lines[: headers + bold_row])
        text.stylize("bold", start, start + len(lines[headers + bold_row]))
    return text


def _line(
    cells: Sequence[str],
    columns: Sequence[Column],
    widths: Sequence[int],
    kept: Sequence[int],
    style: Style,
) -> str:
    parts = []
    for index in kept:
        cell = elide(cells[index], widths[index], style.mark)
        space = " " * (widths[index] - cell_width(cell))
        parts.append(space + cell if columns[index].align == "right" else cell + space)
    return (" " * _GAP).join(parts).rstrip()


def _give_way(
    columns: Sequence[Column], widths: list[int], kept: Sequence[int], width: int
) -> None:
    """Shorten the widest name columns until the kept columns fit, none below its narrowest."""
    excess = sum(widths[i] for i in kept) + _GAP * (len(kept) - 1) - width
    while excess > 0:
        names = [i for i in kept if columns[i].align == "name" and widths[i] > _NARROWEST_NAME]
        if not names:
            return
        widest = max(names, key=lambda i: widths[i])
        widths[widest] -= 1
        excess -= 1


def _kept(columns: Sequence[Column], widths: Sequence[int], width: int) -> list[int]:
    """Return the indices of the columns that fit into ``width``, names at their narrowest."""
    needs = [
        min(w, _NARROWEST_NAME) if c.align == "name" else w
        for c, w in zip(columns, widths, strict=True)
    ]
    kept = [i for i, _ in enumerate(columns)]
    while sum(needs[i] for i in kept) + _GAP * (len(kept) - 1) > width:
        spare = max(kept, key=lambda i: columns[i].spare)
        if not columns[spare].spare:
            break
        kept.remove(spare)
    return kept


def sentence(text: str, style: Style, *, look: str = "", hang: int = 0) -> RenderableType:
    """Return a paragraph that wraps at the width it gets.

    Args:
        text: The sentence.
        style: How text may look.
        look: A style of rich.
        hang: Columns left free before every line but the first; in the first, ``text`` fills them.
    """
    from rich.table import Table
    from rich.text import Text

    shown = style.show(text)
    if not hang:
        return Text(shown, look, overflow="fold")
    grid = Table.grid()
    grid.add_column(width=hang, no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(shown[:hang], "dim"), Text(shown[hang:].lstrip(), look))
    return grid


def heading(text: str, style: Style) -> RenderableType:
    """Return a heading with an empty line before it."""
    from rich.console import Group
    from rich.text import Text

    return Group(Text(""), Text(style.show(text), "bold"))


def sparkline(levels: Sequence[int], width: int, style: Style) -> str:
    """Return ``levels`` as one line of at most ``width`` characters, each the largest of its part.

    The scale starts at 0; a level above 0 never shows as the lowest character that 0 has.
    """
    if not levels or width <= 0:
        return ""
    count = len(levels)
    columns = min(width, count)
    signs = _EIGHTHS if style.unicode else _ASCII_LEVELS
    top = max(levels)
    line = []
    for column in range(columns):
        level = max(levels[column * count // columns : (column + 1) * count // columns])
        rank = -(-level * len(signs) // top) if top else 0
        line.append(signs[rank - 1] if rank else " ")
    return "".join(line)


def to_text(pieces: Sequence[RenderableType], width: int) -> str:
    """Return ``pieces`` as plain text: no colours, no markup, no space at the end of a line."""
    from rich.console import Console

    out = io.StringIO()
    console = Console(
        file=out,
        width=width,
        height=25,
        color_system=None,
        force_terminal=False,
        legacy_windows=False,
        markup=False,
        emoji=False,
        highlight=False,
        _environ={},
    )
    for piece in pieces:
        console.print(piece, crop=False)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())
