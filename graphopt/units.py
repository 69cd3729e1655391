"""Bytes as people write them: ``320KiB`` in, ``320.00 KiB`` out."""

import re

from graphopt.errors import OptionError

_UNIT_BYTES = {
    "": 1,
    "b": 1,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
}
_SIZE = re.compile(r"\s*(\d{1,18}(?:\.\d{1,9})?)\s*([a-zA-Z]*)\s*")


def parse_bytes(text: int | str) -> int:
    """Return the number of bytes that ``text`` names.

    Args:
        text: A whole number of bytes, or text with a binary (``KiB``, ``MiB``, ``GiB``, ``TiB``) or
            decimal (``kB``, ``MB``, ``GB``, ``TB``) unit, in any case.

    Raises:
        OptionError: the text is no size, is negative, or is not a whole number of bytes.
    """
    if isinstance(text, bool) or not isinstance(text, (int, str)):
        raise OptionError("size-unreadable", f"not a size in bytes: {text!r}")
    if isinstance(text, int):
        if text < 0:
            raise OptionError("size-unreadable", f"a size cannot be negative: {text}")
        return text
    match = _SIZE.fullmatch(text)
    unit = _UNIT_BYTES.get(match.group(2).lower()) if match else None
    if match is None or unit is None:
        raise OptionError(
            "size-unreadable",
            f"not a size: {text!r}",
            hint='write bytes ("65536") or a unit ("320KiB", "1.5GiB")',
        )
    exact = float(match.group(1)) * unit if "." in match.group(1) else int(match.group(1)) * unit
    if exact != int(exact):
        raise OptionError("size-unreadable", f"not a whole number of bytes: {text!r}")
    return int(exact)


def format_bytes(count: int) -> str:
    """Return ``count`` bytes as text with two decimals and a binary unit, exact below 1 KiB."""
    if abs(count) < 1024:
        return f"{count} B"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if abs(value) < 1024:
            return f"{value:.2f} {unit}"
    return f"{value / 1024:.2f} TiB"


def format_change(before: int, after: int) -> str:
    """Return the relative change from ``before`` to ``after`` as ``-37.5 %``.

    ``=`` when equal, ``~ 0 %`` when the change rounds to nothing.
    """
    if before == after:
        return "="
    if before == 0:
        return "new"
    percent = f"{(after - before) / before * 100:+.1f} %"
    return "~ 0 %" if percent[1:] == "0.0 %" else percent
