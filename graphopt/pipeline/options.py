"""Passes as text: ``fold-constants{max_output_bytes=1048576}`` to a pass and back.

The option schema is the dataclass itself: fields of type int, float, str, bool, tuple[str, ...] and
tuple[int, ...]. ``pass_from_text(pass_to_text(p)) == p`` for every pass.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, get_args, get_origin, get_type_hints

from graphopt.errors import OptionError
from graphopt.pipeline.base import Pass

_FORM = re.compile(r"\s*([\w-]+)\s*(?:\{(.*)\})?\s*", re.DOTALL)


def pass_to_text(pass_: Pass) -> str:
    """Return ``name{option=value,...}`` with the options that differ from their defaults."""
    parts = []
    for field in fields(pass_):
        value = getattr(pass_, field.name)
        if value != field.default:
            parts.append(f"{field.name}={_value_to_text(value)}")
    return f"{pass_.name}{{{','.join(parts)}}}" if parts else pass_.name


def _value_to_text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ";".join(str(v) for v in value) + "]"
    return str(value)


def pass_from_text(text: str) -> Pass:
    """Return the pass that ``text`` names, with its options.

    Raises:
        OptionError: no such pass, no such option, or a value of the wrong type.
    """
    from graphopt.passes import REGISTRY, load_pass

    match = _FORM.fullmatch(text)
    if match is None:
        raise OptionError(
            "pass-unreadable", f"not a pass: {text!r}", hint="write name or name{option=value,...}"
        )
    name, body = match.group(1), match.group(2)
    if name not in REGISTRY:
        raise OptionError(
            "pass-unknown",
            f"no pass is called '{name}'",
            hint=near_miss(name, REGISTRY, "graphopt passes list"),
        )
    kind = load_pass(name)
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    options: dict[str, Any] = {}
    for part in (body or "").split(","):
        if not part.strip():
            continue
        key, separator, value = (piece.strip() for piece in part.partition("="))
        if key not in names or not separator:
            raise OptionError(
                "pass-option-unknown",
                f"pass '{name}' has no option '{key}'",
                hint=near_miss(key, names, f"graphopt passes show {name}"),
            )
        options[key] = _value_from_text(name, key, value, hints[key])
    return kind(**options)


def _value_from_text(pass_name: str, key: str, text: str, kind: Any) -> Any:
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind in (int, float, str):
            return kind(text)
        if get_origin(kind) is tuple:
            element = get_args(kind)[0]
            inner = text.strip("[]")
            return tuple(element(piece.strip()) for piece in inner.split(";") if piece.strip())
    except (KeyError, ValueError):
        pass
    wanted = getattr(kind, "__name__", str(kind))
    raise OptionError(
        "pass-option-type", f"option '{key}' of pass '{pass_name}' is {text!r}, expected {wanted}"
    )


def near_miss(name: str, choices: Sequence[str] | dict[str, str], where: str) -> str:
    """Return a hint: the closest of ``choices``, or where to look."""
    close = difflib.get_close_matches(name, list(choices), n=1)
    return f"did you mean '{close[0]}'?" if close else f"see '{where}'"
