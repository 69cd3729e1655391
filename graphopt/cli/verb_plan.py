"""``graphopt plan``."""

from collections.abc import Sequence
from pathlib import Path

from graphopt.cli.common import Loaded, note, parse_dims, parse_limits, text_style, write_text
from graphopt.errors import OptionError
from graphopt.memory.plan import MemoryPlan

_FORMATS = ("table", "json", "csv", "html", "trace")


def run_plan(
    model: str,
    target: str,
    dims: Sequence[str],
    format_: str,
    *,
    top: int,
    steps: bool,
    output: Path | None,
    limits: Sequence[str],
    trust: bool,
) -> None:
    """Plan, print or write the plan, then say whether it fits."""
    from graphopt.compiler import plan_model
    from graphopt.limits import check_limits, resolve_limits
    from graphopt.targets.loader import resolve_target

    if format_ not in _FORMATS:
        raise OptionError(
            "format-unknown", f"no format is called '{format_}'", hint=f"one of {_FORMATS}"
        )
    resolved = resolve_target(target)
    allowed = resolve_limits(parse_limits(limits), resolved)
    loaded = Loaded(model)
    plan = plan_model(
        loaded.model,
        resolved,
        parse_dims(dims) or None,
        example_inputs=loaded.example_inputs,
        dynamic_shapes=loaded.dynamic_shapes,
        limits=allowed,
        trust=trust,
    )
    text = _render(plan, format_, Path(model).name, top=top, steps=steps, allowed=allowed)
    if output is None:
        print(text, end="" if text.endswith("\n") else "\n")
    else:
        write_text(output, text, [Path(model)] if Path(model).is_file() else [])
        note(f"wrote {output}")
    check_limits(plan, allowed)


def _render(
    plan: MemoryPlan,
    format_: str,
    title: str,
    *,
    top: int,
    steps: bool,
    allowed: dict[str, int],
) -> str:
    if format_ == "json":
        return plan.to_json()
    if format_ == "csv":
        return plan.to_csv()
    if format_ == "trace":
        from graphopt.report.trace import chrome_trace

        return chrome_trace(plan)
    if format_ == "html":
        from graphopt.report.html import ReportData, render_html

        limit = allowed.get(plan.arena_pool.name)
        return render_html(ReportData(title, plan, None, (), None, limit, (), None))
    from graphopt.report.tables import plan_text

    return plan_text(plan, top=top, steps=steps, **text_style())
