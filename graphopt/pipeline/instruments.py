"""What happens between passes: measure, dump, compare. Instruments never rewrite the model."""

import html
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from graphopt.errors import OutputError
from graphopt.ir.dims import Dim
from graphopt.ir.program import Program
from graphopt.ir.text import diff_lines, program_lines
from graphopt.memory.planning import peak_of
from graphopt.pipeline.base import Pass
from graphopt.pipeline.pipeline import PassReport
from graphopt.targets.schema import Target
from graphopt.units import format_bytes

_OURS = re.compile(r"(\d{3}_[\w-]+\.(onnxtxt|diff|pipeline)|report\.json|index\.html)")


@dataclass
class MeasureMemory:
    """Fills ``peak_before`` and ``peak_after``: most live arena bytes of the order as it is."""

    target: Target
    bindings: Mapping[str, int] | None = None
    upper_bounds: Mapping[str, Dim] = field(default_factory=dict)
    peak: int | None = None

    def start(self, program: Program) -> None:
        """Measure the model as it came in."""
        self.peak = self._measure(program)

    def after(self, program: Program, pass_: Pass, report: PassReport) -> None:
        """Measure again where the pass changed anything."""
        report.peak_before = self.peak
        if report.modified:
            self.peak = self._measure(program)
        report.peak_after = self.peak

    def failed(self, program: Program, pass_: Pass, report: PassReport) -> str:
        """Nothing is kept."""
        return ""

    def _measure(self, program: Program) -> int | None:
        return peak_of(program, self.target, self.bindings, upper_bounds=self.upper_bounds)


@dataclass
class CompareEach:
    """Fills ``max_error`` of each pass that changed the model, by ``compare(program)``."""

    compare: Callable[[Program], float]

    def start(self, program: Program) -> None:
        """The model as it came in is the reference: nothing to do."""

    def after(self, program: Program, pass_: Pass, report: PassReport) -> None:
        """Compare where the pass changed anything."""
        if report.modified:
            report.max_error = self.compare(program)

    def failed(self, program: Program, pass_: Pass, report: PassReport) -> str:
        """Nothing is kept."""
        return ""


@dataclass
class DumpText:
    """Writes the graph after every pass, the difference to the step before, and a report.

    Files: ``000_input.onnxtxt``, ``003_fold-batch-norm.onnxtxt``, ``003_fold-batch-norm.diff``,
    ``report.json``, ``index.html``; after a failure ``NNN_name.pipeline`` with the passes to run
    on the dump before it.
    """

    directory: Path
    lines: list[str] = field(default_factory=list)
    reports: list[PassReport] = field(default_factory=list)

    def start(self, program: Program) -> None:
        """Prepare the folder and write the input.

        Raises:
            OutputError: the folder cannot be made, or holds files that are not dumps.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            for path in sorted(self.directory.iterdir()):
                if not _OURS.fullmatch(path.name):
                    raise OutputError(
                        "dump-folder-not-ours",
                        f"'{self.directory}' holds '{path.name}', which is no dump",
                        hint="name a new or empty folder",
                    )
            for path in sorted(self.directory.iterdir()):
                path.unlink()
        except OSError as error:
            raise OutputError(
                "dump-not-written", f"cannot use '{self.directory}' for dumps: {error.strerror}"
            ) from error
        self.lines = program_lines(program)
        self._write("000_input.onnxtxt", "\n".join(self.lines) + "\n")

    def after(self, program: Program, pass_: Pass, report: PassReport) -> None:
        """Write the graph where it changed, and the report so far."""
        stem = f"{report.index:03}_{pass_.name}"
        if report.modified:
            lines = program_lines(program)
            self._write(f"{stem}.onnxtxt", "\n".join(lines) + "\n")
            self._write(f"{stem}.diff", "\n".join(diff_lines(self.lines, lines)) + "\n")
            self.lines = lines
        self.reports.append(report)
        plain = [r.to_dict() for r in self.reports]
        self._write("report.json", json.dumps(plain, indent=1) + "\n")
        self._write("index.html", _index(self.reports))

    def failed(self, program: Program, pass_: Pass, report: PassReport) -> str:
        """Write what reproduces the failure."""
        name = f"{report.index:03}_{pass_.name}.pipeline"
        passes = [r.options for r in self.reports] + [report.options]
        self._write(name, "\n".join(passes) + "\n")
        return f"The graph before it and the passes are in '{self.directory}' ({name})."

    def _write(self, name: str, text: str) -> None:
        try:
            (self.directory / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise OutputError(
                "dump-not-written", f"cannot write '{self.directory / name}': {error.strerror}"
            ) from error


def _index(reports: list[PassReport]) -> str:
    rows = []
    for r in reports:
        stem = f"{r.index:03}_{r.name}"
        links = (
            f'<a href="{stem}.onnxtxt">graph</a> <a href="{stem}.diff">diff</a>'
            if r.modified
            else ""
        )
        peak = "" if r.peak_after is None else format_bytes(r.peak_after)
        error = "" if r.max_error is None else f"{r.max_error:.3g}"
        cells: tuple[str, ...] = (
            str(r.index),
            html.escape(r.options),
            str(r.rewrites),
            str(len(r.skipped)),
        )
        cells += (f"{r.nodes_before} &rarr; {r.nodes_after}", peak, error, f"{r.seconds * 1e3:.1f}")
        rows.append("<tr>" + "".join(f"<td>{c}</td>" for c in (*cells, links)) + "</tr>")
    head = "".join(
        f"<th>{c}</th>"
        for c in ("#", "pass", "rewrites", "skipped", "nodes", "peak", "max error", "ms", "")
    )
    return (
        '<!doctype html><meta charset="utf-8"><title>graphopt passes</title>'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">"
        "<style>body{font:14px system-ui;margin:2em}td,th{padding:.25em .75em;text-align:left;"
        "border-bottom:1px solid #ddd}td{font-variant-numeric:tabular-nums}</style>"
        '<h1>Passes</h1><p><a href="000_input.onnxtxt">input graph</a></p>'
        f"<table><tr>{head}</tr>{''.join(rows)}</table>\n"
    )
