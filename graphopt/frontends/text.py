"""Names from a model file: what may stand in one, and how it is shown."""

import re
from typing import Any

from graphopt.errors import InvalidModelError

MAX_NAME_BYTES = 64 << 10

# Controls end a C string or a log line early and drive terminals; the bidirectional marks make a
# name read as another one.
_REFUSED = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def check_name(name: Any, what: str, *, may_be_empty: bool = False) -> str:
    """Return ``name`` when it may stand in a graph.

    Args:
        name: Text from a message; protobuf hands out bytes where it is no UTF-8.
        what: The kind of thing that is named, for the message.
        may_be_empty: Whether the empty text is a name here.

    Raises:
        InvalidModelError: it is no UTF-8, empty, too long, or holds a control character.
    """
    if not isinstance(name, str):
        raise InvalidModelError("not-utf8", f"the name of a {what} is no UTF-8 text: {name[:40]!r}")
    if not name and not may_be_empty:
        raise InvalidModelError("name-missing", f"a {what} has no name")
    if len(name) > MAX_NAME_BYTES // 4 and len(name.encode()) > MAX_NAME_BYTES:
        raise InvalidModelError(
            "name-too-long",
            f"the name of a {what} has more than {MAX_NAME_BYTES} bytes: {shown(name)}",
        )
    if _REFUSED.search(name):
        raise InvalidModelError(
            "name-control-character",
            f"the name of a {what} holds a control character: {shown(name)}",
            hint="rename it with a tool that you trust; such names can deceive terminals and logs",
        )
    return name


def shown(name: Any) -> str:
    """Return ``name`` in quotes for a message: escaped, and cut when it is long."""
    if not isinstance(name, str):
        return ascii(name[:40])
    return f"'{name}'" if len(name) <= 80 and name.isprintable() else ascii(name[:77] + "...")
