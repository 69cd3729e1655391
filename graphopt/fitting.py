"""The largest batch, sequence or resolution that fits a target: proved at its edge.

The search doubles until the plan exceeds a limit or the bounds of the dimension end, then halves.
The answer is a size whose plan fits and whose successor does not; where the need does not grow with
the size, a larger size could fit again, which the report does not claim to exclude.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graphopt.errors import DoesNotFitError, OptionError
from graphopt.ir.dims import Bounds, Dim
from graphopt.ir.program import Program
from graphopt.limits import owners_of
from graphopt.memory.peak_formula import PeakFormula, peak_formula
from graphopt.memory.plan import MemoryPlan
from graphopt.memory.planning import make_plan
from graphopt.memory.sizes import input_symbols
from graphopt.targets.schema import Target
from graphopt.units import format_bytes

_LARGEST_TRIED = 1 << 31


@dataclass(frozen=True)
class PoolFit:
    """What one pool says: the largest size that it alone would allow."""

    pool: str
    limit_bytes: int
    largest: int | None
    needed_bytes: int
    next_bytes: int | None


@dataclass(frozen=True)
class FitReport:
    """The answer of ``fit``.

    Attributes:
        dimension: The dimension that was searched. largest: Its largest size that fits. at_bound:
        Whether the bounds of the dimension end there, so that no limit is reached. plan: The plan
        at that size. constraints: Per limited pool what it allows, the tightest first; the second
        is the runner-up.
        formula: The peak as a function of the dimension, where there is one.
        tried: Sizes that were planned.
    """

    dimension: str
    largest: int
    at_bound: bool
    plan: MemoryPlan
    constraints: tuple[PoolFit, ...]
    formula: PeakFormula | None
    tried: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return {
            "dimension": self.dimension,
            "largest": self.largest,
            "at_bound": self.at_bound,
            "constraints": [vars(c) for c in self.constraints],
            "formula": None if self.formula is None else str(self.formula).splitlines(),
            "tried": list(self.tried),
            "plan": self.plan.model_dump(mode="json"),
        }

    def __str__(self) -> str:
        lines = [f"{self.dimension} = {self.largest} is the largest that fits"]
        if self.at_bound:
            lines[0] = f"{self.dimension} = {self.largest} fits, and its bounds end there"
        for rank, c in enumerate(self.constraints):
            role = ("limit    ", "runner-up")[rank] if rank < 2 else "         "
            allows = "any size that was tried" if c.largest is None else str(c.largest)
            text = f"  {role} {c.pool}: {format_bytes(c.needed_bytes)} of "
            text += f"{format_bytes(c.limit_bytes)}, allows {allows}"
            if c.next_bytes is not None and rank == 0:
                text += f"; {self.largest + 1} would need {format_bytes(c.next_bytes)}"
            lines.append(text)
        if self.formula is not None:
            lines += [f"  {line}" for line in str(self.formula).splitlines()]
        else:
            lines.append("  the peak has no formula in this dimension")
        return "\n".join(lines)


def fit_program(
    program: Program,
    target: Target,
    dimension: str,
    bindings: Mapping[str, int],
    limits: Mapping[str, int],
    upper_bounds: Mapping[str, Dim],
) -> FitReport:
    """Return the largest size of ``dimension`` whose plan is within ``limits``.

    Raises:
        OptionError: no such dimension, or no limit to fit into.
        DoesNotFitError: not even the smallest size fits.
    """
    names = input_symbols(program.graph.inputs)
    if dimension not in names:
        raise OptionError(
            "dimension-unknown",
            f"no dimension of the inputs is called '{dimension}'",
            hint=f"named dimensions: {', '.join(names) or 'none, the model is static'}",
        )
    if not limits:
        raise OptionError(
            "limit-missing",
            f"target '{target.name}' states no limit to fit into",
            hint="give --memory-limit SIZE",
        )
    search = _Search(program, target, dimension, dict(bindings), limits, upper_bounds)
    return search.run()


class _Search:
    """Plans at sizes of one dimension, each once."""

    def __init__(
        self,
        program: Program,
        target: Target,
        dimension: str,
        bindings: dict[str, int],
        limits: Mapping[str, int],
        upper_bounds: Mapping[str, Dim],
    ) -> None:
        self.program = program
        self.target = target
        self.dimension = dimension
        self.bindings = bindings
        self.limits = limits
        self.upper_bounds = upper_bounds
        self.plans: dict[int, MemoryPlan] = {}

    def plan(self, size: int) -> MemoryPlan:
        if size not in self.plans:
            sizes = {**self.bindings, self.dimension: size}
            plan = make_plan(
                self.program,
                self.target,
                sizes,
                upper_bounds=self.upper_bounds,
                limits=self.limits,
            )
            if plan.not_planned:
                first = plan.not_planned[0]
                raise OptionError(
                    "limit-not-provable",
                    f"{len(plan.not_planned)} values have no known size: '{first.name}' "
                    f"({first.reason})",
                    hint="bind the other named dimensions (--dim NAME=SIZE)",
                )
            self.plans[size] = plan
        return self.plans[size]

    def fits(self, size: int, pools: Mapping[str, int] | None = None) -> bool:
        allowed = self.limits if pools is None else pools
        return all(
            pool.total_bytes <= allowed[pool.name]
            for pool in self.plan(size).pools
            if pool.name in allowed
        )

    def largest(self, pools: Mapping[str, int], low: int, high: int) -> tuple[int, bool]:
        """Return the largest size that fits ``pools``, and whether that is ``high``."""
        good, step = low, max(1, low)
        while True:
            bad = min(high, good + step)
            if bad == good:
                return good, True
            if not self.fits(bad, pools):
                break
            good, step = bad, step * 2
        while bad - good > 1:
            middle = (good + bad) // 2
            good, bad = (middle, bad) if self.fits(middle, pools) else (good, middle)
        return good, False

    def run(self) -> FitReport:
        bounds = self.program.bounds.get(self.dimension, Bounds())
        low = max(1, bounds.lower)
        high = _LARGEST_TRIED if bounds.upper is None else bounds.upper
        self._smallest_fits(low)
        size, at_bound = self.largest(self.limits, low, high)
        constraints = self._constraints(low, size, high)
        formula = peak_formula(
            self.program,
            self.target,
            self.dimension,
            self.bindings,
            low=low,
            high=max(size, low),
            upper_bounds=self.upper_bounds,
        )
        final = make_plan(
            self.program,
            self.target,
            {**self.bindings, self.dimension: size},
            upper_bounds=self.upper_bounds,
            effort="exact",
            limits=self.limits,
        )
        return FitReport(
            self.dimension, size, at_bound, final, constraints, formula, tuple(sorted(self.plans))
        )

    def _smallest_fits(self, low: int) -> None:
        if self.fits(low):
            return
        plan = self.plan(low)
        pool = next(p for p in plan.pools if p.total_bytes > self.limits.get(p.name, p.total_bytes))
        raise DoesNotFitError(
            pool=pool.name,
            required_bytes=pool.total_bytes,
            available_bytes=self.limits[pool.name],
            owners=owners_of(plan, pool),
            hint=f"not even {self.dimension} = {low} fits",
            report=plan,
        )

    def _constraints(self, low: int, size: int, high: int) -> tuple[PoolFit, ...]:
        """Return what each limited pool allows by itself, the tightest first."""
        found = []
        cap = min(high, max(size * 4, size + 16))
        for pool in self.plan(size).pools:
            if pool.name not in self.limits or not pool.total_bytes:
                continue
            alone = {pool.name: self.limits[pool.name]}
            largest, open_end = self.largest(alone, size, cap)
            following: int | None = None
            if not open_end:
                plan = self.plan(largest + 1)
                following = next(p.total_bytes for p in plan.pools if p.name == pool.name)
            found.append(
                PoolFit(
                    pool.name,
                    self.limits[pool.name],
                    None if open_end else largest,
                    pool.total_bytes,
                    following,
                )
            )
        infinite = cap + 1
        return tuple(sorted(found, key=lambda c: (c.largest or infinite, c.pool)))
