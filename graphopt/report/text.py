"""Strings of a model made safe to show: no invisible characters, no more than a given width.

Names come from model files that anybody may have written. A control character can rewrite a
terminal, a bidirectional override can make one name read as another, a lone surrogate cannot be
encoded at all. Everything that a report shows passes through ``visible`` first.
"""

import unicodedata

_HEAD_SHARE = 0.4
_MAX_MARKS = 3


def visible(text: str) -> str:
    r"""Return ``text`` with every character that does not print as an escape such as ``\x1b``.

    Control, format (bidirectional, zero width), surrogate, private and unassigned characters and
    all spaces but the plain one are escaped, and so are combining marks beyond three in a row.
    """
    if text.isprintable() and (text.isascii() or not _has_piles(text)):
        return text
    parts = []
    marks = 0
    for char in text:
        marks = marks + 1 if unicodedata.combining(char) else 0
        parts.append(char if char.isprintable() and marks <= _MAX_MARKS else _escape(char))
    return "".join(parts)


def _has_piles(text: str) -> bool:
    marks = 0
    for char in text:
        marks = marks + 1 if unicodedata.combining(char) else 0
        if marks > _MAX_MARKS:
            return True
    return False


def _escape(char: str) -> str:
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def ascii_only(text: str) -> str:
    """Return ``text`` with every character outside ASCII as an escape."""
    return text if text.isascii() else text.encode("ascii", "backslashreplace").decode("ascii")


def cell_width(text: str) -> int:
    """Return the number of terminal columns that ``text`` takes."""
    if text.isascii():
        return len(text)
    return sum(_columns(char) for char in text)


def _columns(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def elide(text: str, width: int, mark: str = "…") -> str:
    """Return ``text`` in at most ``width`` columns, the middle replaced by ``mark``.

    The end of a name says more than its beginning (``/features/.../Conv_output_0``), so it keeps
    the larger share.
    """
    if cell_width(text) <= width:
        return text
    room = width - cell_width(mark)
    if room <= 0:
        return mark[:width]
    head = _take(text, max(1, int(room * _HEAD_SHARE)) if room > 1 else 0)
    tail = _take(text[::-1], room - cell_width(head))[::-1]
    return head + mark + tail


def _take(text: str, width: int) -> str:
    taken = 0
    for index, char in enumerate(text):
        taken += _columns(char)
        if taken > width:
            return text[:index]
    return text
