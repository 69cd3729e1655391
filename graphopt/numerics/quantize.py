"""Static int8 quantization of a program: calibrate, place, measure, take back what costs too much.

In: a float program, calibration samples, a target. Out: the program quantized in place, and a
``Quantization`` that says what was measured and why each node is integer or float.

The accuracy loop: the whole placement is tried with each calibration method and the best is kept.
While the outputs are below the wanted decibels, nodes are returned to float, the costliest first:
each group of nodes is quantized alone once, and the noise that it makes at the outputs is its cost
(noise powers add up while they are small, which is why the groups are not measured by leaving one
out of a network that is already far off). The shortest prefix of that order that meets the goal is
found by bisection, then groups with many weights are tried as integers again. The best candidate so
far is always what is returned.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphopt.errors import UnsupportedError, VerificationError
from graphopt.ir.program import Program
from graphopt.isolation import Worker
from graphopt.numerics.calibration import Calibration, calibrate
from graphopt.numerics.candidates import Candidates, Outputs, emit_mapped, run_plain
from graphopt.numerics.compare import Comparison, Tolerance
from graphopt.numerics.sqnr import DEFAULT_SQNR_DB, compare_by_sqnr, sqnr_db, worst
from graphopt.passes.insert_qdq import InsertQdq
from graphopt.quantization.description import META_KEY, Description, Plan, plan_for
from graphopt.quantization.kernels import KernelReport
from graphopt.quantization.placement import place
from graphopt.targets.schema import Target

# Tried in this order; the first of equals is kept.
AUTOMATIC_METHODS = ("mse", "min-max", "percentile")
MOST_GROUPS = 48
MOST_TAKEN_BACK = 10

Progress = Callable[[int, str], None]


@dataclass
class Quantization:
    """What quantization did, as plain data.

    Attributes:
        activation: Type of quantized activations.
        weight: Type of quantized weights.
        method: Calibration method whose ranges were kept.
        samples: Calibration samples seen.
        sqnr_db: Decibels of each output, quantized against float, on kept calibration samples.
        wanted_db: Decibels that were asked for.
        tried: What was tried: (what, worst decibels).
        returned: Nodes taken back to float for accuracy.
        reasons: Why each other node that has a rule is float: name -> (code, detail).
        kernels: What the runtime made of each node that was placed as integer.
        layers: Decibels of the value that each integer node makes.
    """

    activation: str
    weight: str
    method: str = ""
    samples: int = 0
    sqnr_db: dict[str, float] = field(default_factory=dict)
    wanted_db: float = DEFAULT_SQNR_DB
    tried: list[tuple[str, float]] = field(default_factory=list)
    returned: tuple[str, ...] = ()
    reasons: dict[str, tuple[str, str]] = field(default_factory=dict)
    kernels: KernelReport | None = None
    layers: dict[str, float] = field(default_factory=dict)

    @property
    def worst_db(self) -> float:
        """Decibels of the worst output."""
        return worst(self.sqnr_db)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data, for JSON and the report."""
        plain = dict(vars(self))
        plain["tried"] = [{"what": what, "sqnr_db": value} for what, value in self.tried]
        plain["returned"] = list(self.returned)
        plain["reasons"] = {k: {"reason": r, "detail": d} for k, (r, d) in self.reasons.items()}
        plain["kernels"] = None if self.kernels is None else self.kernels.to_dict()
        return plain


def scheme_for(target: Target) -> Plan:
    """Return what quantization for ``target`` asks.

    Raises:
        UnsupportedError: the target has no integer kernels, or a scheme that is not served.
    """
    scheme = target.quantization
    if scheme is None:
        raise UnsupportedError(
            "quantization-target",
            f"target '{target.name}' describes no integer kernels",
            hint="choose another target, or describe them in [quantization]",
        )
    if scheme.full_integer:
        raise UnsupportedError(
            "quantization-full-integer",
            f"target '{target.name}' takes models only whose inputs and outputs are integer, too",
            hint="this version keeps the interface of the model float; use the vendor's quantizer",
        )
    if scheme.activation not in ("uint8", "int8") or scheme.weight != "int8":
        raise UnsupportedError(
            "quantization-scheme",
            f"target '{target.name}' wants {scheme.activation} activations and {scheme.weight} "
            "weights; uint8 or int8 with int8 are served",
            hint="describe another scheme in [quantization]",
        )
    return plan_for(scheme)


def _names(groups: Sequence[tuple[str, ...]]) -> frozenset[str]:
    return frozenset(name for group in groups for name in group)


def _bytes_of(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.nbytes


class Quantizer:
    """Quantizes one program.

    Args:
        program: The float program, opset 13 or later; ``run`` changes nothing but its meta data.
        target: What the result is for.
        data: Calibration samples.
        tolerance: Its ``sqnr_db`` is the goal; None for the default.
        methods: Calibration methods to try.
        progress: Told (how many, what).
    """

    def __init__(
        self,
        program: Program,
        target: Target,
        data: Any,
        *,
        tolerance: Tolerance | None = None,
        methods: Sequence[str] = AUTOMATIC_METHODS,
        progress: Progress | None = None,
    ) -> None:
        self.program = program
        self.target = target
        self.plan = scheme_for(target)
        self.data = data
        self.methods = methods
        self.store_kept = False
        self.progress = progress
        goal = None if tolerance is None else tolerance.sqnr_db
        self.tolerance = Tolerance(sqnr_db=DEFAULT_SQNR_DB if goal is None else goal)
        self.report = Quantization(
            activation=self.plan.activation.dtype,
            weight="int8",
            wanted_db=self.tolerance.sqnr_db or 0.0,
        )

    def run(self) -> InsertQdq:
        """Return the pass that quantizes the program as was found best; fills ``report``."""
        calibration = calibrate(
            self.program, self.data, self.plan.operators, progress=self.progress
        )
        self.kept = calibration.kept
        self.report.samples = calibration.samples
        with tempfile.TemporaryDirectory(prefix="graphopt-quantize-") as folder, Worker() as worker:
            self.candidates = Candidates(self.program, self.kept, worker, Path(folder))
            description = self._best_method(calibration)
            self.program.model.meta[META_KEY] = description
            self._back_off(description)
            self._explain(description)
        return self.pass_for(frozenset(self.report.returned))

    def forget(self) -> None:
        """Take the description out of the program once the pass has used it."""
        self.program.model.meta.pop(META_KEY, None)

    def pass_for(self, keep_float: frozenset[str]) -> InsertQdq:
        """Return the pass for the target that leaves ``keep_float`` alone."""
        scheme = self.target.quantization
        assert scheme is not None, "refused before"
        return InsertQdq(
            activation=scheme.activation,
            symmetric=scheme.symmetric_activation,
            per_channel=scheme.per_channel,
            reduce_range=scheme.reduce_range,
            quantize_results=scheme.quantize_results,
            integer_bias=scheme.integer_bias,
            operators=scheme.operators,
            keep_float=tuple(sorted(keep_float)),
            store_kept=self.store_kept,
        )

    def _best_method(self, calibration: Calibration) -> Description:
        best: tuple[float, Description] | None = None
        for method in self.methods:
            description = calibration.describe(method, self.plan.activation)
            found = self._try(description, frozenset(), f"everything, ranges by {method}")
            if best is None or found > best[0]:
                best = found, description
        assert best is not None, "there is a method"
        self.report.method = best[1].method
        return best[1]

    def _try(self, description: Description, keep_float: frozenset[str], what: str) -> float:
        """Return the decibels of the worst output with ``keep_float`` in float."""
        decibels = sqnr_db(self.candidates.expected, self._outputs(description, keep_float))
        value = worst(decibels)
        self.report.tried.append((what, value))
        if self.progress is not None:
            self.progress(len(self.report.tried), "measure")
        if not self.report.sqnr_db or value > self.report.worst_db:
            self.report.sqnr_db, self.report.returned = decibels, tuple(sorted(keep_float))
        return value

    def _outputs(self, description: Description, keep_float: frozenset[str]) -> list[Outputs]:
        def quantize(model: ir.Model) -> None:
            model.meta[META_KEY] = description
            self.pass_for(keep_float)(model)

        return self.candidates.outputs(quantize)

    def _back_off(self, description: Description) -> None:
        """Return nodes to float until the goal is met; the best candidate is in the report."""
        goal = self.report.wanted_db
        if self.report.worst_db >= goal:
            return
        groups = self._groups(description)
        order = self._by_cost(description, groups)
        kept = self._shortest_prefix(description, order, goal)
        kept = self._fewer(description, kept, goal)
        self._store(description, kept, goal)

    def _groups(self, description: Description) -> list[tuple[str, ...]]:
        """Return the names of integer nodes, neighbours together, in at most 48 groups."""
        placement = place(self.program.model, description, self.plan, frozenset())
        names = [
            node.name or ""
            for node, rule in placement.integer.items()
            if rule.kind in ("linear", "compute")
        ]
        size = max(1, -(-len(names) // MOST_GROUPS))
        return [tuple(names[i : i + size]) for i in range(0, len(names), size)]

    def _by_cost(
        self, description: Description, groups: list[tuple[str, ...]]
    ) -> list[tuple[str, ...]]:
        """Return ``groups``, the one first that makes most noise when it alone is quantized."""
        everything = frozenset(name for group in groups for name in group)
        found = []
        for group in groups:
            outputs = self._outputs(description, everything - set(group))
            found.append(worst(sqnr_db(self.candidates.expected, outputs)))
            self.report.tried.append((f"int8 alone: {', '.join(group)}", found[-1]))
            if self.progress is not None:
                self.progress(len(self.report.tried), "measure")
        ranked = sorted(range(len(groups)), key=lambda index: found[index])
        return [groups[index] for index in ranked]

    def _shortest_prefix(
        self, description: Description, order: list[tuple[str, ...]], goal: float
    ) -> list[tuple[str, ...]]:
        """Find by bisection how many groups of ``order`` must be float, and choose them.

        Returns:
            The groups that are float.
        """
        low, high, chosen = 0, len(order) - 1, len(order)
        while low <= high:
            middle = (low + high) // 2
            what = f"float: the {middle + 1} costliest of {len(order)} groups"
            if self._try(description, _names(order[: middle + 1]), what) >= goal:
                high, chosen = middle - 1, middle + 1
            else:
                low = middle + 1
        self._choose(_names(order[:chosen]))
        return order[:chosen]

    def _fewer(
        self, description: Description, kept: list[tuple[str, ...]], goal: float
    ) -> list[tuple[str, ...]]:
        """Take groups with many weights back into integers as long as the goal is met."""
        sizes = {
            node.name or "": 0 if len(node.inputs) < 2 or value is None else _bytes_of(value)
            for node in self.program.graph
            for value in (node.inputs[1] if len(node.inputs) > 1 else None,)
        }
        by_size = sorted(kept, key=lambda group: -sum(sizes.get(name, 0) for name in group))
        for group in by_size[:MOST_TAKEN_BACK]:
            rest = [other for other in kept if other != group]
            if rest and self._try(description, _names(rest), "float: one group less") >= goal:
                kept = rest
                self._choose(_names(kept))
        return kept

    def _store(self, description: Description, kept: list[tuple[str, ...]], goal: float) -> None:
        """Store the weights of float nodes as integers where the goal is met all the same."""
        self.store_kept = True
        value = self._try(description, _names(kept), "float nodes with weights stored as int8")
        self.store_kept = value >= goal
        self._choose(_names(kept))

    def _choose(self, names: frozenset[str]) -> None:
        """Make ``names`` what is returned: it meets the goal with fewer nodes in float."""
        self.report.returned = tuple(sorted(names))

    def _explain(self, description: Description) -> None:
        """Fill in what became of every node, and the decibels at the outputs that were chosen."""
        keep_float = frozenset(self.report.returned)
        placement = place(self.program.model, description, self.plan, keep_float)
        self.report.reasons = {
            node.name or "": reason for node, reason in placement.reasons.items()
        }
        outputs = self._outputs(description, keep_float)
        self.report.sqnr_db = sqnr_db(self.candidates.expected, outputs)
        self.report.layers = self.candidates.layers(placement)
        if self.target.runtime.executes_with == "onnxruntime" and self.target.kind == "cpu":
            self.report.kernels = self.candidates.kernels(placement)

    def verify(self, original: Path) -> Comparison:
        """Compare the quantized program with the original on the kept samples.

        Raises:
            VerificationError: an output is below the accepted decibels.
        """
        with tempfile.TemporaryDirectory(prefix="graphopt-verify-") as folder, Worker() as worker:
            files = emit_mapped(self.program, Path(folder) / "quantized.onnx")
            expected = [worker.run_model(original, feed, optimize=False) for feed in self.kept]
            found = [run_plain(worker, files, feed) for feed in self.kept]
        comparison = Comparison(
            outputs=compare_by_sqnr(expected, found, self.tolerance),
            samples=len(self.kept),
            inputs="calibration",
            tolerance=self.tolerance,
        )
        if not comparison.passed:
            bad = next(output for output in comparison.outputs if not output.accepted)
            raise VerificationError(
                "quantization-error",
                f"output '{bad.name}' is {bad.reason or 'different'} from the original; "
                f"accepted are {self.tolerance.sqnr_db:g} dB or more",
                hint="verify=Tolerance(sqnr_db=...) accepts less; more samples may show the ranges",
                details={"verification": comparison.to_dict()},
            )
        return comparison
