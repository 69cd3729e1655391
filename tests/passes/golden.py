"""The golden texts of the passes: what they are given, ``---``, what they make of it.

Lines that start with ``#`` come first: a sentence on why the case is there, and directives:
``# options: {exact=true}``, ``# first: infer-shapes``, ``# sizes: n=2`` for symbolic inputs,
``# not run: reason``. After the ``---`` stand the number of rewrites and the sites left alone.
A case called ``keeps_<reason>`` asserts that nothing fires, for that reason.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from graphopt.pipeline.base import Pass
from graphopt.pipeline.options import pass_from_text
from tests.passes.graphs import graph

FOLDER = Path(__file__).resolve().parent.parent / "golden"
_DIRECTIVE = re.compile(r"# (options|first|sizes|not run): (.*)")


@dataclass(frozen=True)
class Case:
    """One golden text."""

    path: Path
    source: str
    expected: str
    directives: dict[str, str]

    @property
    def pass_(self) -> Pass:
        return pass_from_text(self.path.parent.name + self.directives.get("options", ""))

    @property
    def sizes(self) -> dict[str, int]:
        pairs = (part.split("=") for part in self.directives.get("sizes", "").split(",") if part)
        return {name.strip(): int(size) for name, size in pairs}

    def model(self) -> ir.Model:
        """Return the graph that the pass is given."""
        lines = [line for line in self.source.splitlines() if not line.startswith("#")]
        model = graph("\n".join(lines))
        for name in self.directives.get("first", "").split():
            pass_from_text(name)(model)
        return model


def read_case(path: Path) -> Case:
    source, _, expected = path.read_text(encoding="utf-8").partition("---\n")
    directives = dict(_DIRECTIVE.findall(source))
    return Case(path, source, expected, directives)


def cases() -> list[Case]:
    """Return all golden texts, sorted by path."""
    return [read_case(path) for path in sorted(FOLDER.glob("*/*.onnxtxt"))]
