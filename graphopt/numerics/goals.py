"""What a quantized model must reach: decibels of its outputs, or a number that the user measures.

In: a tolerance, models as files. Out: a ``Score`` for each model, and whether it is enough. The
user's function runs in this process, the model in the child, as it will be run: optimizations on.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

from graphopt.backends.emit_onnx import emit_onnx
from graphopt.errors import GraphoptError, OptionError, VerificationError
from graphopt.frontends.user_code import line_raising
from graphopt.ir.program import Program
from graphopt.isolation import Worker
from graphopt.numerics.compare import Comparison, Metric, MetricChange, Tolerance
from graphopt.numerics.verify import Outputs, Reference, user_feeds
from graphopt.temporary import TemporaryFolder


@dataclass(frozen=True)
class Score:
    """How good a candidate is.

    Attributes:
        decibels: Of each output.
        lowest: Of the worst of them, less what it needs above the others.
        metric: What the user's function returned; None where decibels are the goal.
    """

    decibels: Mapping[str, float]
    lowest: float
    metric: float | None = None

    @property
    def rank(self) -> tuple[float, float]:
        """The larger of two ranks is the better candidate."""
        return (self.lowest if self.metric is None else self.metric), self.lowest


@dataclass(frozen=True)
class Goal:
    """What a candidate must reach.

    Attributes:
        sqnr_db: Decibels of the worst output; not asked for where there is a metric.
        least: Smallest value of the metric; None where decibels are the goal.
    """

    sqnr_db: float
    least: float | None = None

    def met(self, score: Score, margin_db: float = 0.0) -> bool:
        """Return whether ``score`` is enough, where decibels count with ``margin_db`` to spare."""
        if self.least is None or score.metric is None:
            return score.lowest >= self.sqnr_db + margin_db
        return score.metric >= self.least


def metric_name(metric: Metric) -> str:
    """Return what the user called a function."""
    inner = metric.func if isinstance(metric, partial) else metric
    return str(getattr(inner, "__name__", type(inner).__name__))


def measured(metric: Metric, program: Program, worker: Worker, files: Sequence[Path]) -> float:
    """Return the metric of the model in ``files``, whose inputs are those of ``program``.

    Raises:
        OptionError: the function failed, or returned no number; or a sample does not fit.
        UnsupportedError: onnxruntime does not run the model on a sample.
    """

    def run(sample: Any) -> Outputs:
        several = isinstance(sample, (Mapping, tuple, list))
        whole = tuple(sample) if isinstance(sample, list) else sample
        feed = user_feeds(program, whole if several else (whole,))[0]
        return worker.run_model(files[0], feed, optimize=True, data_files=tuple(files[1:]))

    found = _called(metric, run)
    if isinstance(found, bool) or not isinstance(found, Real) or not math.isfinite(float(found)):
        raise OptionError(
            "metric-value",
            f"the metric '{metric_name(metric)}' returned {found!r}, expected a finite number",
            hint="return a float that is higher for a better model",
        )
    return float(found)


def _called(metric: Metric, run: Callable[[Any], Outputs]) -> Any:
    try:
        return metric(run)
    except (GraphoptError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        line = line_raising(error)
        lines = str(error).strip().splitlines() or [""]
        raise OptionError(
            "metric-failed",
            f"the metric '{metric_name(metric)}' raised {type(error).__name__}: {lines[0][:300]}"
            + (f"\n  {line}" if line else ""),
            hint="this is an error of the metric's own code; it gets a function: run(feed)",
        ) from error


def verify_by_metric(reference: Reference, program: Program, tolerance: Tolerance) -> Comparison:
    """Compare ``program`` with the original by the metric of ``tolerance``.

    Raises:
        VerificationError: the metric fell too far.
    """
    assert tolerance.metric is not None, "the caller asked"
    comparison = reference.compare(program)
    with TemporaryFolder("verify") as folder, Worker() as worker:
        files = emit_onnx(program, folder / "result.onnx", external_data=True)
        before, after = (
            measured(tolerance.metric, program, worker, one) for one in (reference.files, files)
        )
    comparison.metric = metric_change(tolerance, before, after)
    return check_metric(comparison)


def metric_change(tolerance: Tolerance, before: float, after: float) -> MetricChange:
    """Return how far the metric of ``tolerance`` fell."""
    assert tolerance.metric is not None, "the caller asked"
    assert tolerance.max_drop is not None, "a tolerance has both"
    return MetricChange(metric_name(tolerance.metric), before, after, tolerance.max_drop)


def check_metric(comparison: Comparison) -> Comparison:
    """Return ``comparison`` when its metric did not fall too far.

    Raises:
        VerificationError: it did; says what was reached.
    """
    change = comparison.metric
    if change is not None and not change.accepted:
        raise VerificationError(
            "metric-drop",
            f"metric '{change.name}' is {change.after:.6g} for the result and {change.before:.6g} "
            f"for the original; accepted is a drop of {change.max_drop:g}",
            hint="accept more with max_drop, calibrate on more samples, or use a finer precision",
            details={"verification": comparison.to_dict()},
        )
    return comparison
