"""Names that try to leave their place, in every string that a report shows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from graphopt.memory.plan import MemoryPlan
from graphopt.report.html import ReportData
from tests.report.sample_plan import mobilenet_report, with_unplanned

NAMES = (
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "</style></title><img src=x onerror=alert(3)>",
    '" onmouseover="alert(4)" x="',
    "' onfocus='alert(5)' autofocus='",
    "<!-- ]]> {{ 7 * 7 }} {% raw %} ${1}",
    "&lt;b&gt;&#x3c;script&#x3e;",
    "\u202egnp.exe \u2066x\u2069 \u200b\ufeff",
    "\x1b[31mred\x1b]0;title\x07 \x00\r\n\t\x85\u2028",
    "z\u0335\u0321\u0322\u0327\u0328\u0334\u0336 \ue000",
    "javascript:alert(6) https://example.invalid/x.js",
    "[bold red]markup[/bold red] :smile:",
)


class Poison:
    """Hands out the names in turn."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.at = 0

    def text(self, original: str) -> str:
        self.at += 1
        return f"{self.names[self.at % len(self.names)]} {original}"

    def deep(self, value: Any, keep: tuple[str, ...] = ()) -> Any:
        """Return ``value`` with every string in it changed, but not those under ``keep``."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.deep(item, keep) for item in value]
        if isinstance(value, dict):
            # A pass, a node and a buffer must still be found under their (changed) names.
            return {k: v if k in keep else self.deep(v, keep) for k, v in value.items()}
        return value


_CLOSED = ("kind", "segment", "relation", "pool", "schema_version")


def hostile_plan(plan: MemoryPlan, poison: Poison) -> MemoryPlan:
    plain = plan.model_dump(mode="json")
    changed = poison.deep(plain, _CLOSED)
    model = changed["model"]
    for key in ("inputs", "outputs", "bindings", "bounds"):
        model[key] = {poison.text(name): value for name, value in model[key].items()}
    for pool in changed["pools"]:
        pool["name"] = pool["name"].split()[-1]
    return MemoryPlan.model_validate(changed)


def hostile_report(names: tuple[str, ...] = NAMES) -> ReportData:
    poison = Poison(names)
    data = mobilenet_report()
    passes = tuple(
        replace(
            report,
            name=poison.text(report.name),
            options=poison.text(report.options),
            skipped=tuple(
                skip._replace(
                    reason=poison.text(skip.reason),
                    node=poison.text(skip.node),
                    detail=poison.text(skip.detail),
                )
                for skip in report.skipped
            ),
        )
        for report in data.passes
    )
    assert data.verification is not None
    verification = poison.deep(data.verification)
    verification["reference"] = poison.text("the original")
    for output in verification["outputs"]:
        output |= {"accepted": False, "reason": poison.text("why")}
    assert data.baseline is not None
    return replace(
        data,
        title=poison.text(data.title),
        plan=hostile_plan(with_unplanned(data.plan), poison),
        baseline=hostile_plan(data.baseline, poison),
        passes=passes,
        verification=verification,
        warnings=tuple(poison.text(text) for text in NAMES),
    )
