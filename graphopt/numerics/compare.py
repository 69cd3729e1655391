"""How far two sets of outputs are apart, and whether a stated tolerance accepts that.

The error of an output is compared with the scale of the reference: ``max |a - b|`` against
``atol + rtol * max |reference|``. Integers, booleans and strings must be equal. NaN equals NaN and
infinities equal themselves; a NaN on one side only is an infinite error.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.errors import OptionError

Metric = Callable[[Callable[[Any], dict[str, npt.NDArray[Any]]]], float]


@dataclass(frozen=True)
class Tolerance:
    """What difference to the original is accepted.

    Attributes:
        rtol: Part of the largest magnitude of the reference output that the error may reach.
        atol: Absolute error that is always accepted.
        samples: Number of seeded samples, when the user gives none.
        sqnr_db: Accepted signal to quantization noise of a quantized result, in decibels, which is
            then compared by this in place of rtol and atol; None for the default of quantization.
        metric: ``metric(run)`` returns a number, higher for a better model; ``run(feed)`` returns
            the outputs of the model under test, by name. A quantized result is then compared by it
            in place of decibels.
        max_drop: How far the metric may fall below that of the original; goes with ``metric``.

    Raises:
        OptionError: ``metric`` and ``max_drop`` do not go together.
    """

    rtol: float = 1e-4
    atol: float = 1e-6
    samples: int = 2
    sqnr_db: float | None = None
    metric: Metric | None = None
    max_drop: float | None = None

    def __post_init__(self) -> None:
        problem = ""
        if (self.metric is None) != (self.max_drop is None):
            missing = "max_drop" if self.max_drop is None else "metric"
            problem = f"{missing} is missing: metric and max_drop go together"
        elif self.metric is None or self.max_drop is None:
            return
        elif not callable(self.metric):
            problem = f"metric is {type(self.metric).__name__}, expected a function"
        elif isinstance(self.max_drop, bool) or not isinstance(self.max_drop, (int, float)):
            problem = f"max_drop is {self.max_drop!r}, expected a number"
        elif not (math.isfinite(self.max_drop) and self.max_drop >= 0):
            problem = f"max_drop is {self.max_drop:g}, expected 0 or more"
        elif self.sqnr_db is not None:
            problem = "metric and sqnr_db are both given: one of them is the goal"
        if problem:
            raise OptionError(
                "metric-options",
                problem,
                hint="write Tolerance(metric=function, max_drop=0.01)",
            )

    def for_dtype(self, dtype: npt.DTypeLike) -> tuple[float, float]:
        """Return (rtol, atol) for outputs of ``dtype``: never finer than its own rounding.

        Half precision rounds at 2**-11 of a value (bfloat16 at 2**-8), and a rewrite may move where
        a sum is rounded: 16 roundings are allowed.
        """
        name = np.dtype(dtype).name
        rounding = {"float16": 2.0**-11, "bfloat16": 2.0**-8}.get(name, 0.0)
        return max(self.rtol, 16 * rounding), max(self.atol, 16 * rounding * 1e-3)


@dataclass
class OutputError:
    """The largest difference of one output over all samples."""

    name: str
    max_abs_error: float = 0.0
    max_rel_error: float = 0.0
    accepted: bool = True
    reason: str = ""
    sqnr_db: float | None = None

    def merge(self, other: "OutputError") -> None:
        """Take over what is worse in ``other``."""
        self.max_abs_error = max(self.max_abs_error, other.max_abs_error)
        self.max_rel_error = max(self.max_rel_error, other.max_rel_error)
        if self.accepted and not other.accepted:
            self.accepted, self.reason = False, other.reason


@dataclass(frozen=True)
class MetricChange:
    """What a metric of the user's is for two models."""

    name: str
    before: float
    after: float
    max_drop: float

    @property
    def least(self) -> float:
        """The smallest accepted value; a difference of rounding is none."""
        return self.before - self.max_drop - 1e-9 * max(1.0, abs(self.before))

    @property
    def accepted(self) -> bool:
        """Whether it fell no further than it may."""
        return self.after >= self.least

    def to_dict(self) -> dict[str, Any]:
        """Return the change as plain data."""
        return dict(vars(self))


@dataclass
class Comparison:
    """Two models on the same inputs.

    Attributes:
        outputs: One entry per output, in the order of the graph.
        samples: Number of samples compared.
        inputs: "user" or "seeded".
        sizes: Sizes of the named dimensions in each sample.
        tolerance: What was accepted.
        reference: What the outputs were compared with.
        metric: What the user's metric is; it alone then decides.
    """

    outputs: list[OutputError]
    samples: int
    inputs: str
    tolerance: Tolerance
    sizes: list[dict[str, int]] = field(default_factory=list)
    reference: str = "the original model in onnxruntime, optimization off"
    metric: MetricChange | None = None

    @property
    def passed(self) -> bool:
        """Whether every output is within the tolerance, or the metric of all."""
        if self.metric is not None:
            return self.metric.accepted
        return all(output.accepted for output in self.outputs)

    @property
    def max_rel_error(self) -> float:
        """Largest error relative to the scale of its output."""
        return max((o.max_rel_error for o in self.outputs), default=0.0)

    def _accepted(self) -> dict[str, float]:
        """Return what was accepted, in the measure that was used."""
        if self.tolerance.max_drop is not None:
            return {"max_drop": self.tolerance.max_drop}
        if self.tolerance.sqnr_db is not None:
            return {"sqnr_db": self.tolerance.sqnr_db}
        return {"rtol": self.tolerance.rtol, "atol": self.tolerance.atol}

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain data, for JSON and the report."""
        return {
            "compared": len(self.outputs),
            "samples": self.samples,
            "inputs": self.inputs,
            "sizes": self.sizes,
            "reference": self.reference,
            "max_abs_error": max((o.max_abs_error for o in self.outputs), default=0.0),
            "max_rel_error": self.max_rel_error,
            "tolerance": self._accepted(),
            "passed": self.passed,
            "metric": None if self.metric is None else self.metric.to_dict(),
            "outputs": [dict(vars(output)) for output in self.outputs],
        }


Arrays = Mapping[str, npt.NDArray[Any]]


def compare_outputs(
    reference: Arrays, candidate: Arrays, tolerance: Tolerance
) -> list[OutputError]:
    """Compare two sets of outputs name by name."""
    result = []
    for name, expected in reference.items():
        found = candidate.get(name)
        if found is None:
            result.append(OutputError(name, np.inf, np.inf, False, "the output is missing"))
        else:
            result.append(compare_arrays(name, expected, found, tolerance))
    return result


def compare_arrays(
    name: str, expected: npt.NDArray[Any], found: npt.NDArray[Any], tolerance: Tolerance
) -> OutputError:
    """Compare one output."""
    if expected.shape != found.shape or expected.dtype != found.dtype:
        reason = (
            f"{found.dtype}{list(found.shape)} in place of {expected.dtype}{list(expected.shape)}"
        )
        return OutputError(name, np.inf, np.inf, False, reason)
    if expected.size == 0:
        return OutputError(name)
    if not _is_inexact(expected.dtype):
        differing = int(np.count_nonzero(expected != found))
        reason = f"{differing} of {expected.size} elements differ" if differing else ""
        error = float(differing > 0)
        return OutputError(name, error, error, not differing, reason)
    kind = np.complex128 if expected.dtype.kind == "c" else np.float64
    a, b = expected.astype(kind), found.astype(kind)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.where(same, 0.0, np.abs(a - b))
    difference = np.where(np.isnan(difference), np.inf, difference)
    finite = np.abs(a[np.isfinite(a)])
    scale = float(finite.max()) if finite.size else 0.0
    worst = float(difference.max())
    relative = worst / scale if scale else (0.0 if worst == 0 else np.inf)
    rtol, atol = tolerance.for_dtype(expected.dtype)
    accepted = worst <= atol + rtol * scale
    reason = "" if accepted else f"error {worst:.3g} at scale {scale:.3g}"
    return OutputError(name, worst, relative, accepted, reason)


def _is_inexact(dtype: np.dtype[Any]) -> bool:
    # ml_dtypes' bfloat16 and float8 are of kind "V" or "f"; numpy's own test misses them.
    return np.issubdtype(dtype, np.inexact) or dtype.name.startswith(("bfloat", "float"))
