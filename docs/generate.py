"""Write docs/passes.md from the docstrings of the passes.

    python docs/generate.py

A test compares the page with the docstrings, so run this after changing one.
"""

import inspect
import re
from dataclasses import fields
from pathlib import Path

from graphopt.passes import DEFAULT_PIPELINE, REGISTRY, load_pass
from graphopt.pipeline.base import Pass

PAGE = Path(__file__).resolve().parent / "passes.md"
_OPTION = re.compile(r"(\w+): (.*)")
_HEAD = """# Passes

Written by `python docs/generate.py` from the docstrings; do not edit. How to write one:
[writing_a_pass.md](writing_a_pass.md).

A pass is named on the command line and in `passes=` as `name` or `name{option=value,...}`. What a
pass leaves alone is in the report with the reason code that stands here.

The default pipeline, in order:

"""


def passes_page() -> str:
    """Return the text of the page."""
    lines = [f"{number}. `{text}`\n" for number, text in enumerate(DEFAULT_PIPELINE, start=1)]
    return _HEAD + "".join(lines) + "".join(_section(name) for name in REGISTRY)


def _section(name: str) -> str:
    kind = load_pass(name)
    text = inspect.cleandoc(kind.__doc__ or "")
    bits = "bit by bit" if kind.preserves_bits else "within rounding"
    facts = [f"Outputs stay equal {bits}."]
    if kind.runs_after:
        facts.append("Runs after " + ", ".join(f"`{other}`" for other in kind.runs_after) + ".")
    defaults = _defaults(kind)
    if defaults:
        facts.append(f"Defaults: {defaults}.")
    body, title = [], ""
    for line in text.replace("``", "`").splitlines():
        if line.endswith(":") and not line.startswith(" "):
            title = line.rstrip(":")
            body.append(f"**{title}**\n")
            continue
        line = line.removeprefix("    ")
        option = _OPTION.fullmatch(line) if title == "Options" else None
        body.append(f"- `{option[1]}`: {option[2]}" if option else line)
    return f"\n## {name}\n\n" + "\n".join(body) + "\n\n" + " ".join(facts) + "\n"


def _defaults(kind: type[Pass]) -> str:
    return ", ".join(f"`{field.name}={field.default!r}`" for field in fields(kind))


if __name__ == "__main__":
    PAGE.write_text(passes_page(), encoding="utf-8")
