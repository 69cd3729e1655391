"""Runs passes in order, with instruments around them, and reports what each did.

The pipeline decides nothing about the model. A pass that raises, or that breaks the structure of
the graph, ends the run with ``PassFailed``, which names the pass, its options, the passes before
it and, when the run dumps, the file that reproduces the failure.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import onnx_ir as ir

from graphopt.errors import GraphoptError, OptionError, PassFailed
from graphopt.ir.graph_checks import check_structure
from graphopt.ir.program import Program, graphs_of
from graphopt.pipeline.base import Pass, PassResult, Skip
from graphopt.pipeline.options import near_miss, pass_from_text, pass_to_text


@dataclass
class PassReport:
    """What one pass did.

    Attributes:
        index: Position in the pipeline, from 1.
        name: Name of the pass.
        options: The pass as text, options included.
        modified: Whether the model changed.
        rewrites: Sites rewritten.
        skipped: Sites left alone, each with a reason.
        seconds: Time of the pass itself, without instruments.
        nodes_before: Nodes of all graphs before; after likewise.
        weight_bytes_before: Bytes of all initializers before; after likewise.
        peak_before: Peak of live arena bytes before, None when sizes are unknown; after likewise.
        max_error: Largest difference of an output to the original model, None when not compared.
    """

    index: int
    name: str
    options: str
    modified: bool = False
    rewrites: int = 0
    skipped: tuple[Skip, ...] = ()
    seconds: float = 0.0
    nodes_before: int = 0
    nodes_after: int = 0
    weight_bytes_before: int = 0
    weight_bytes_after: int = 0
    peak_before: int | None = None
    peak_after: int | None = None
    max_error: float | None = None

    def to_dict(self) -> dict[str, object]:
        """Return the report as plain data."""
        plain: dict[str, object] = dict(vars(self))
        plain["skipped"] = [skip._asdict() for skip in self.skipped]
        return plain


class Instrument(Protocol):
    """Something that happens around every pass; instruments never rewrite the model."""

    def start(self, program: Program) -> None:
        """Called once, before the first pass."""

    def after(self, program: Program, pass_: Pass, report: PassReport) -> None:
        """Called after each pass; may fill fields of ``report`` or raise."""

    def failed(self, program: Program, pass_: Pass, report: PassReport) -> str:
        """Called when a pass failed; returns a sentence about what was kept, or ""."""


@dataclass
class PassPipeline:
    """Passes in order.

    Attributes:
        passes: The passes.
        instruments: What happens around them.
        on_pass: Told (index, count, name) before each pass, for progress.
    """

    passes: tuple[Pass, ...]
    instruments: tuple[Instrument, ...] = ()
    on_pass: Callable[[int, int, str], None] | None = None
    reports: list[PassReport] = field(default_factory=list)

    def run(self, program: Program) -> list[PassReport]:
        """Run all passes on ``program`` in place; return one report per pass.

        Raises:
            PassFailed: a pass raised something untyped or left the graph invalid.
            GraphoptError: a pass refused the model with a typed error.
        """
        self.reports = []
        for instrument in self.instruments:
            instrument.start(program)
        nodes, weights = model_size(program.model)
        for index, pass_ in enumerate(self.passes, start=1):
            if self.on_pass is not None:
                self.on_pass(index, len(self.passes), pass_.name)
            report = PassReport(index, pass_.name, pass_to_text(pass_))
            report.nodes_before, report.weight_bytes_before = nodes, weights
            self._run_one(program, pass_, report)
            if report.modified:
                nodes, weights = model_size(program.model)
            report.nodes_after, report.weight_bytes_after = nodes, weights
            for instrument in self.instruments:
                instrument.after(program, pass_, report)
            self.reports.append(report)
        return self.reports

    def _run_one(self, program: Program, pass_: Pass, report: PassReport) -> None:
        started = time.perf_counter()
        try:
            result = pass_(program.model)
            if result.modified:
                check_structure(program.model)
        except Exception as error:
            self._fail(program, pass_, report, error)
        report.seconds = time.perf_counter() - started
        report.modified = result.modified
        if isinstance(result, PassResult):
            report.rewrites = result.rewrites
            report.skipped = result.skipped

    def _fail(self, program: Program, pass_: Pass, report: PassReport, error: Exception) -> None:
        kept = " ".join(i.failed(program, pass_, report) for i in self.instruments).strip()
        cause = error.__cause__ if isinstance(error, ir.passes.InvariantError) else error
        if isinstance(cause, GraphoptError) and cause.exit_code != 1:
            raise cause
        before = " ".join(report.options for report in self.reports) or "none"
        raise PassFailed(
            "pass-failed",
            f"pass {report.index} '{report.options}' failed: {type(cause).__name__}: {cause}",
            hint=f"passes before it: {before}. {kept or 'Run with --dump DIR to keep the graph.'}",
            node=getattr(cause, "node", None),
        ) from error


def model_size(model: ir.Model) -> tuple[int, int]:
    """Return the number of nodes and the bytes of the initializers of all graphs of ``model``."""
    nodes = weights = 0
    for graph in graphs_of(model.graph):
        nodes += len(graph)
        for value in graph.initializers.values():
            if value.const_value is not None:
                weights += value.const_value.nbytes
    return nodes, weights


def build_passes(
    chosen: Sequence[str | Pass] | None, skip: Sequence[str], default: Sequence[str]
) -> tuple[Pass, ...]:
    """Return the passes to run.

    Args:
        chosen: Passes as objects or option strings; None for ``default``.
        skip: Names of passes to leave out.
        default: The option strings of the target's pipeline.

    Raises:
        OptionError: a pass is unknown, ``skip`` names a pass that is not in the pipeline, or a pass
            stands before one that it must run after.
    """
    source: Sequence[str | Pass] = default if chosen is None else chosen
    passes = [p if isinstance(p, Pass) else pass_from_text(p) for p in source]
    names = {p.name for p in passes}
    for name in skip:
        if name not in names:
            raise OptionError(
                "pass-unknown",
                f"cannot skip '{name}': it is not in the pipeline",
                hint=near_miss(name, sorted(names), "graphopt passes list"),
            )
    passes = [p for p in passes if p.name not in skip]
    last = {p.name: i for i, p in enumerate(passes)}
    first = {p.name: i for i, p in reversed(list(enumerate(passes)))}
    for pass_ in passes:
        for earlier in pass_.runs_after:
            if earlier in first and first[earlier] > last[pass_.name]:
                raise OptionError("pass-order", f"pass '{pass_.name}' must run after '{earlier}'")
    return tuple(passes)
