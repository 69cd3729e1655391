"""``graphopt bisect``."""

from collections.abc import Callable, Sequence
from typing import Any

from graphopt.cli.common import Loaded, parse_dims
from graphopt.cli.outcome import print_json
from graphopt.compiler import load_program
from graphopt.errors import OptionError
from graphopt.ir.program import Program
from graphopt.ir.shapes import infer_shapes
from graphopt.memory.planning import peak_of
from graphopt.numerics.compare import Tolerance
from graphopt.options import CompileOptions
from graphopt.pipeline.bisect import Culprit, Verdict, bisect_passes
from graphopt.pipeline.pipeline import build_passes
from graphopt.targets.loader import resolve_target
from graphopt.targets.schema import Target
from graphopt.units import format_bytes

_MOST_LINES = 40


def run_bisect(
    model: str,
    metric: str,
    target: str,
    passes: str | None,
    *,
    rtol: float,
    dim: Sequence[str],
    seed: int,
    trust: bool,
    as_json: bool,
) -> None:
    """Print the guilty pass and what it changed; nothing to print when there is none."""
    from graphopt.passes import default_pipeline

    resolved = resolve_target(target)
    loaded = Loaded(model)
    options = CompileOptions(dynamic_shapes=loaded.dynamic_shapes, trust=trust)
    bindings = parse_dims(dim)

    def load() -> Program:
        program = load_program(loaded.model, loaded.example_inputs, options)
        infer_shapes(program)
        return program

    chosen = build_passes(passes.split() if passes else None, (), default_pipeline(resolved))
    if metric == "peak":
        culprit = bisect_passes(load, chosen, _peak_judge(load(), resolved, bindings))
    elif metric == "error":
        from graphopt.numerics.verify import Reference

        reference = Reference(
            load(), loaded.example_inputs, bindings=bindings, tolerance=Tolerance(rtol), seed=seed
        )
        try:

            def judge(program: Program) -> Verdict:
                found = reference.compare(program)
                text = f"largest error {found.max_rel_error:.3g} of the scale"
                return Verdict(not found.passed, found.max_rel_error, text)

            culprit = bisect_passes(load, chosen, judge)
        finally:
            reference.close()
    else:
        raise OptionError("metric-unknown", f"no metric is called '{metric}'", hint="error or peak")
    _show(culprit, as_json=as_json)


def _peak_judge(
    original: Program, target: Target, bindings: dict[str, int]
) -> Callable[[Program], Verdict]:
    def measure(program: Program) -> int:
        upper_bounds = infer_shapes(program).upper_bounds
        peak = peak_of(program, target, bindings, upper_bounds=upper_bounds)
        if peak is None:
            raise OptionError(
                "limit-not-provable",
                "the peak is not known: sizes are unknown",
                hint="bind the named dimensions (--dim NAME=SIZE)",
            )
        return peak

    allowed = measure(original)

    def judge(program: Program) -> Verdict:
        peak = measure(program)
        return Verdict(peak > allowed, peak, f"peak {format_bytes(peak)}")

    return judge


def _show(culprit: Culprit | None, *, as_json: bool) -> None:
    if as_json:
        plain: dict[str, Any] = {"found": culprit is not None}
        if culprit is not None:
            plain |= {**vars(culprit), "before": vars(culprit.before), "after": vars(culprit.after)}
        print_json(plain)
        return
    if culprit is None:
        print("no pass is guilty: the result of the whole pipeline is good")
        return
    print(f"pass {culprit.index} '{culprit.options}' is guilty, found in {culprit.runs} runs")
    print(f"  before: {culprit.before.text}\n  after:  {culprit.after.text}")
    if culprit.nodes:
        print(f"  the rewrite: {', '.join(culprit.nodes[:_MOST_LINES])}")
    for line in culprit.changed[:_MOST_LINES]:
        print(f"  {line}")
    if len(culprit.changed) > _MOST_LINES:
        print(f"  ... {len(culprit.changed) - _MOST_LINES} more lines")
