"""Static int8 quantization of a program: calibrate, place, measure, take back what costs too much.

In: a float program, calibration samples, a target. Out: the program quantized in place, and a
``Quantization`` that says what was measured and why each node is integer or float.

The accuracy loop: the whole placement is tried with each calibration method and the best is kept.
Then the same with channels evened out, which is kept where it gains half a decibel: at most five
ways, so fifteen candidates and five recalibrations, each on the eight samples that are kept. Where
the goal is met and the weights exceed 64 MiB that is left out.

While the outputs are below the goal (decibels, or a metric of the user's), nodes are returned to
float, see ``back_off.py``. The best candidate so far is always what is returned.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphopt.errors import UnsupportedError, VerificationError
from graphopt.ir.program import Program, is_onnx
from graphopt.ir.rewrite import nodes_of
from graphopt.isolation import Worker
from graphopt.numerics.back_off import (
    Choice,
    Group,
    names_of,
    returned_to_float,
    too_large_to_widen,
)
from graphopt.numerics.calibration import Calibration, calibrate, recalibrate
from graphopt.numerics.candidates import Candidates, Outputs, emit_mapped, run_samples
from graphopt.numerics.compare import Comparison, Tolerance
from graphopt.numerics.goals import Goal, Score, check_metric, measured, metric_change
from graphopt.numerics.integer_costs import advice, costs_of
from graphopt.numerics.parts import NO_PARTS, parts_of
from graphopt.numerics.quantization_report import Quantization
from graphopt.numerics.sqnr import DEFAULT_SQNR_DB, compare_by_sqnr, sqnr_db, worst
from graphopt.numerics.value_bytes import constant_bytes, weight_bytes, working_bytes
from graphopt.passes.equalize_channels import EqualizeChannels
from graphopt.passes.insert_qdq import InsertQdq
from graphopt.passes.integer_interface import IntegerInterface
from graphopt.passes.lower_for_integers import LowerForIntegers
from graphopt.passes.quantize_recurrent import RECURRENT, QuantizeRecurrent
from graphopt.passes.quantize_weights import QuantizeWeights
from graphopt.pipeline.base import Pass
from graphopt.pipeline.options import pass_to_text
from graphopt.quantization.description import META_KEY, Description, Plan, plan_for
from graphopt.quantization.equalization import FACTS_KEY, Divided
from graphopt.quantization.full_integer import require_integer_forms
from graphopt.quantization.interface import with_float_interface
from graphopt.quantization.placement import place
from graphopt.quantization.rules import EVERYTHING
from graphopt.targets.schema import Target
from graphopt.temporary import TemporaryFolder

# Tried in this order; the first of equals is kept.
AUTOMATIC_METHODS = ("mse", "min-max", "percentile")
MOST_GROUPS = 48
# Ways to even out channels. First those that cost the model nothing, then with products in front of
# linear nodes whose largest channel is four times the middle one.
EQUALIZERS = (
    EqualizeChannels(alpha=0.5),
    EqualizeChannels(alpha=0.75),
    EqualizeChannels(),
    EqualizeChannels(alpha=0.5, insert=4.0),
    EqualizeChannels(alpha=0.75, insert=4.0),
)
# What must be gained for it: less may be chance on the few samples that are kept.
LEAST_GAIN_DB = 0.5
ALWAYS_EQUALIZED_BYTES = 64 << 20
_NOT_PRODUCTS = ("Conv", "ConvTranspose", "Gather")

Progress = Callable[[int, str], None]


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
    if scheme.activation not in ("uint8", "int8") or scheme.weight != "int8":
        raise UnsupportedError(
            "quantization-scheme",
            f"target '{target.name}' wants {scheme.activation} activations and {scheme.weight} "
            "weights; uint8 or int8 with int8 are served",
            hint="describe another scheme in [quantization]",
        )
    return plan_for(scheme)


@dataclass(frozen=True)
class _Chosen:
    """Ranges of activations, and the pass that evens out channels before they hold."""

    description: Description
    decibels: dict[str, float]
    equalizer: EqualizeChannels | None = None


def _products(program: Program) -> frozenset[str]:
    return frozenset(n.name or "" for n in nodes_of(program.model) if is_onnx(n, "Gemm", "MatMul"))


def _reads_blocks(target: Target) -> bool:
    """Return whether products may read weights in blocks, as ``int8-weights`` stores them."""
    return target.runtime.executes_with == "onnxruntime" and target.kind == "cpu"


class _Trial:
    """Measures what is float for ``back_off.returned_to_float``."""

    def __init__(self, quantizer: "Quantizer", description: Description) -> None:
        self._quantizer = quantizer
        self._description = description

    def met(self, choice: Choice, what: str, margin_db: float = 0.0) -> bool:
        """Return whether the goal is met, decibels with ``margin_db`` to spare."""
        self._quantizer.keep_wide = names_of(choice.wide)
        names = names_of(choice.kept)
        return self._quantizer.try_out(self._description, names, what, margin_db)

    def decibels(self, choice: Choice, what: str) -> float:
        """Return the decibels of the worst output."""
        self._quantizer.keep_wide = names_of(choice.wide)
        return self._quantizer.decibels_of(self._description, names_of(choice.kept), what)


class Quantizer:
    """Quantizes one program: ``prepare``, then ``run``.

    Args:
        program: The float program, opset 13 or later; only its meta data are changed here, and
            names that values of several branches share: the passes that are returned do the rest.
        target: What the result is for.
        data: Calibration samples.
        tolerance: Its ``metric`` or ``sqnr_db`` is the goal; None for the default.
        original: The files of the model as it came in, the model first; a metric needs them.
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
        original: Sequence[Path] = (),
        methods: Sequence[str] = AUTOMATIC_METHODS,
        progress: Progress | None = None,
    ) -> None:
        self.program = program
        self.target = target
        self.plan = scheme_for(target)
        self.data = data
        self.methods = methods
        # Nodes whose weights are floats in storage where they are kept float.
        self.keep_wide: frozenset[str] = frozenset()
        self.progress = progress
        self.original = tuple(original)
        self.tolerance = tolerance or Tolerance()
        if self.tolerance.metric is None and self.tolerance.sqnr_db is None:
            self.tolerance = replace(self.tolerance, sqnr_db=DEFAULT_SQNR_DB)
        self.goal = Goal(self.tolerance.sqnr_db or 0.0)
        self.report = Quantization(
            activation=self.plan.activation.dtype,
            weight="int8",
            wanted_db=self.goal.sqnr_db,
        )
        self._best: Score | None = None
        self.parts = NO_PARTS
        self._has_recurrent = any(is_onnx(n, *RECURRENT) for n in nodes_of(program.model))
        self._large: frozenset[str] = frozenset()
        self._products = _products(program) if _reads_blocks(target) else frozenset()

    def lower(self) -> tuple[Pass, ...]:
        """Return the pass, run first, that writes what a device lacks in operators that it has."""
        if not self.plan.full_integer:
            return ()
        known = sorted(self.plan.operators - {EVERYTHING})
        return (LowerForIntegers(operators=tuple(known)),)

    def prepare(self) -> tuple[EqualizeChannels, ...]:
        """Calibrate and choose the ranges.

        Returns:
            The pass that evens out channels, where that pays; to be run before ``run`` is called.

        Raises:
            UnsupportedError: the target computes nothing but integers, and a node has no such form.
        """
        if self.plan.full_integer:
            where = f"target '{self.target.name}'"
            require_integer_forms(self.program.model, self.plan, where)
        calibration = calibrate(
            self.program, self.data, self.plan.operators, progress=self.progress
        )
        self.kept = calibration.kept
        self.report.samples = calibration.samples
        with self._candidates():
            self.parts = parts_of(self.program, self.kept, self.candidates.worker)
            chosen = self._best_method(calibration)
            self._measure_original()
            met = (
                self._worst(chosen.decibels) >= self.goal.sqnr_db and self.tolerance.metric is None
            )
            if not met or weight_bytes(self.program.model) <= ALWAYS_EQUALIZED_BYTES:
                chosen = self._equalized(calibration, chosen)
        self._chosen = chosen
        self.report.method = chosen.description.method
        if chosen.equalizer is None:
            return ()
        self.report.equalized = pass_to_text(chosen.equalizer)
        # It carries the magnitudes of channels, which the factors follow from.
        self.program.model.meta[META_KEY] = self._observed
        return (chosen.equalizer,)

    def run(self) -> tuple[Pass, ...]:
        """Return the passes that quantize the program as was found best; fills ``report``."""
        description = self._chosen.description
        self.program.model.meta[META_KEY] = description
        with self._candidates():
            if self.tolerance.metric is None:
                self._keep(self._score(self._chosen.decibels), frozenset())
            else:
                self.try_out(description, frozenset(), "everything")
            self._back_off(description)
            self._explain(description)
        passes = self.passes_for(frozenset(self.report.returned))
        scheme = self.target.quantization
        integers = scheme is not None and scheme.integer_interface
        return (*passes, IntegerInterface()) if integers else passes

    @contextmanager
    def _candidates(self) -> Iterator[None]:
        """Keep a child, and a folder for the files of candidates of the program as it is."""
        with TemporaryFolder("quantize") as folder, Worker() as worker:
            self.candidates = Candidates(self.program, self.kept, worker, folder)
            yield

    def forget(self) -> None:
        """Take out of the program what the passes have used."""
        for key in (META_KEY, FACTS_KEY):
            self.program.model.meta.pop(key, None)
        Candidates.forget(self.program)

    def _measure_original(self) -> None:
        """Measure the metric of the model as it came in, and set the goal by it."""
        metric = self.tolerance.metric
        if metric is None:
            return
        before = measured(metric, self.program, self.candidates.worker, self.original)
        self.report.metric = metric_change(self.tolerance, before, before)
        self.goal = Goal(0.0, self.report.metric.least)

    def passes_for(self, keep_float: frozenset[str]) -> tuple[Pass, ...]:
        """Return the passes for the target that leave ``keep_float`` alone, in order."""
        scheme = self.target.quantization
        assert scheme is not None, "refused before"
        keep = tuple(sorted(keep_float))
        insert = InsertQdq(
            activation=scheme.activation,
            symmetric=scheme.symmetric_activation,
            per_channel=scheme.per_channel,
            reduce_range=scheme.reduce_range,
            quantize_results=scheme.quantize_results,
            integer_bias=scheme.integer_bias,
            operators=scheme.operators,
            keep_float=keep,
            keep_wide=tuple(sorted(self.keep_wide | self._products | self._large)),
            full_integer=scheme.full_integer,
            per_tensor=scheme.per_tensor_operators,
        )
        passes: list[Pass] = [insert]
        if scheme.dynamic_recurrent and self._has_recurrent:
            passes.insert(0, QuantizeRecurrent(reduce_range=scheme.reduce_range, keep=keep))
        if keep_float & self._products:
            # A kernel reads these integers in blocks, so no run widens them.
            left = (*_NOT_PRODUCTS, *sorted(self.keep_wide))
            passes.append(
                QuantizeWeights(bits=8, block=128, symmetric=True, method="rtn", keep=left)
            )
        return tuple(passes)

    def _best_method(self, calibration: Calibration) -> _Chosen:
        """Return the ranges with which everything in integers loses least."""
        found = []
        for method in self.methods:
            description = calibration.describe(method, self.plan.activation)
            what = f"everything, ranges by {method}"
            found.append(_Chosen(description, self._decibels(description, what)))
        return max(found, key=lambda one: self._worst(one.decibels))

    def _equalized(self, calibration: Calibration, best: _Chosen) -> _Chosen:
        """Return the best way to even out channels, or ``best`` where none gains enough."""
        self._observed = calibration.describe("min-max", self.plan.activation)
        # A product in front of a node must gain as much again as what costs the model nothing.
        may_insert = not self.plan.full_integer or "Mul" in self.plan.operators
        for inserts in (False, True) if may_insert else (False,):
            found = [
                one
                for equalizer in EQUALIZERS
                if bool(equalizer.insert) is inserts
                for one in self._tried_after(equalizer, calibration)
            ]
            first = max(found, key=lambda one: self._worst(one.decibels), default=best)
            if self._worst(first.decibels) >= self._worst(best.decibels) + LEAST_GAIN_DB:
                best = first
        return best

    def _tried_after(
        self, equalizer: EqualizeChannels, calibration: Calibration
    ) -> Iterator[_Chosen]:
        """Yield the ranges by every method once ``equalizer`` has evened out channels."""
        model = self.program.model.clone()
        model.meta[META_KEY] = self._observed
        equalizer(model)
        divided: dict[str, Divided] = model.meta[FACTS_KEY]
        inserted = any(one.source != name for name, one in divided.items())
        if not divided or inserted is not bool(equalizer.insert):
            return
        copy = Program(model, dict(self.program.bounds), self.program.source)
        after = recalibrate(copy, calibration, self.plan.operators, self.candidates.worker)
        for method in self.methods:
            description = after.describe(method, self.plan.activation)
            what = f"everything, ranges by {method}, after {pass_to_text(equalizer)}"
            decibels = self._decibels(description, what, equalizer)
            yield _Chosen(description, decibels, equalizer)

    def _decibels(
        self, description: Description, what: str, equalizer: EqualizeChannels | None = None
    ) -> dict[str, float]:
        """Return the decibels of everything in integers."""
        outputs = self._outputs(description, frozenset(), equalizer)
        decibels = self._sqnr(outputs)
        self._tell(what, self._worst(decibels))
        return decibels

    def decibels_of(self, description: Description, keep_float: frozenset[str], what: str) -> float:
        """Return the decibels of the worst output with ``keep_float`` in float."""
        outputs = self._outputs(description, keep_float)
        value = self._worst(self._sqnr(outputs))
        self._tell(what, value)
        return value

    def _sqnr(self, outputs: Sequence[Outputs]) -> dict[str, float]:
        return sqnr_db(self.candidates.expected, outputs, self.parts)

    def _worst(self, decibels: Mapping[str, float]) -> float:
        return worst(decibels, self.parts)

    def _score(self, decibels: Mapping[str, float], metric: float | None = None) -> Score:
        return Score(decibels, self._worst(decibels), metric)

    def _tell(self, what: str, decibels: float) -> None:
        self.report.tried.append((what, decibels))
        if self.progress is not None:
            self.progress(len(self.report.tried), "measure")

    def try_out(
        self,
        description: Description,
        keep_float: frozenset[str],
        what: str,
        margin_db: float = 0.0,
    ) -> bool:
        """Return whether the goal is met with ``keep_float`` in float; remember the best."""
        outputs = self._outputs(description, keep_float)
        decibels = self._sqnr(outputs)
        value = None
        if self.tolerance.metric is not None:
            value = self._metric()
            what = f"{what}: metric {value:.6g}"
        self._tell(what, self._worst(decibels))
        score = self._score(decibels, value)
        if self._best is None or score.rank > self._best.rank:
            self._keep(score, keep_float)
        return self.goal.met(score, margin_db)

    def _metric(self) -> float:
        """Return the metric of the candidate that was run last."""
        assert self.tolerance.metric is not None, "the caller asked"
        candidates = self.candidates
        return measured(self.tolerance.metric, self.program, candidates.worker, candidates.files)

    def _keep(self, score: Score, keep_float: frozenset[str]) -> None:
        self._best = score
        self.report.sqnr_db = dict(score.decibels)
        self.report.returned = tuple(sorted(keep_float))
        self._best_wide = self.keep_wide

    def _outputs(
        self,
        description: Description,
        keep_float: frozenset[str],
        equalizer: EqualizeChannels | None = None,
    ) -> list[Outputs]:
        def quantize(model: ir.Model) -> None:
            if equalizer is not None:
                model.meta[META_KEY] = self._observed
                equalizer(model)
            model.meta[META_KEY] = description
            for one in self.passes_for(keep_float):
                one(model)

        return self.candidates.outputs(quantize)

    def _back_off(self, description: Description) -> None:
        """Return nodes to float until the goal is met; the best candidate is in the report."""
        assert self._best is not None, "everything in integers was measured"
        if self.goal.met(self._best):
            return
        if self.plan.full_integer:
            placement = place(self.program.model, description, self.plan, frozenset())
            measure = partial(self.decibels_of, description)
            self.report.costs = costs_of(placement, self._groups(description), measure)
            return
        self._large = self._too_large()
        choice = returned_to_float(self._groups(description), _Trial(self, description))
        if choice is None:
            self.keep_wide = self._best_wide
            return
        self.keep_wide = names_of(choice.wide)
        # It meets the goal with fewer nodes in float than the best that was seen.
        self.report.returned = tuple(sorted(names_of(choice.kept)))

    def _too_large(self) -> frozenset[str]:
        """Return the convolutions whose weights, widened in a run, would be most of its memory."""
        working = working_bytes(self.program, self.kept[0])
        convolutions = [node for node in working if is_onnx(node, "Conv")]
        weights = {node.name or "": (constant_bytes(node), working[node]) for node in convolutions}
        return too_large_to_widen(weights, max(working.values(), default=0))

    def _groups(self, description: Description) -> list[Group]:
        """Return the integer nodes, neighbours together, in at most 48 groups."""
        placement = place(self.program.model, description, self.plan, frozenset())
        placed = {
            node: node.name or ""
            for node, rule in placement.integer.items()
            if rule.kind in ("linear", "compute")
        }
        placed.update((node, node.name or "") for node in self._recurrent())
        working = working_bytes(self.program, self.kept[0])
        nodes = list(placed)
        size = max(1, -(-len(nodes) // MOST_GROUPS))
        return [
            Group(
                tuple(placed[node] for node in some),
                max(working.get(node, 0) for node in some),
                sum(constant_bytes(node) for node in some),
            )
            for some in (nodes[i : i + size] for i in range(0, len(nodes), size))
        ]

    def _recurrent(self) -> list[ir.Node]:
        """Return the layers that become integer without calibrated ranges."""
        first = self.passes_for(frozenset())[0]
        if not isinstance(first, QuantizeRecurrent):
            return []
        return first.layers_of(self.program.model)

    def _explain(self, description: Description) -> None:
        """Fill in what became of every node, and the decibels at the outputs that were chosen."""
        keep_float = frozenset(self.report.returned)
        placement = place(self.program.model, description, self.plan, keep_float)
        self.report.reasons = {
            node.name or "": reason for node, reason in placement.reasons.items()
        }
        outputs = self._outputs(description, keep_float)
        self.report.sqnr_db = self._sqnr(outputs)
        if self.report.metric is not None:
            self.report.metric = replace(self.report.metric, after=self._metric())
        self.report.layers = self.candidates.layers(placement)
        if self.target.runtime.executes_with == "onnxruntime" and self.target.kind == "cpu":
            int8 = self.plan.activation.dtype == "int8"
            self.report.kernels = self.candidates.kernels(placement, int8=int8)

    def verify(self, original: Sequence[Path]) -> Comparison:
        """Compare the quantized program with the original on the kept samples, and by the metric.

        Raises:
            VerificationError: an output is below the accepted decibels, or the metric fell too far.
        """
        with TemporaryFolder("verify") as folder, Worker() as worker:
            # Samples are floats: an integer interface converts them as the model itself states.
            program = with_float_interface(self.program)
            files = emit_mapped(program, folder / "quantized.onnx")
            expected = run_samples(worker, original, self.kept)
            found = run_samples(worker, files, self.kept)
            change = None
            if self.tolerance.metric is not None and self.report.metric is not None:
                after = measured(self.tolerance.metric, program, worker, files)
                change = metric_change(self.tolerance, self.report.metric.before, after)
                self.report.metric = change
        comparison = Comparison(
            metric=change,
            outputs=compare_by_sqnr(expected, found, self.tolerance, self.parts),
            samples=len(self.kept),
            inputs="calibration",
            tolerance=self.tolerance,
        )
        if change is not None:
            try:
                return check_metric(comparison)
            except VerificationError as error:
                error.hint = advice(self.report.costs, error.hint, self.target)
                raise
        if not comparison.passed:
            bad = next(output for output in comparison.outputs if not output.accepted)
            raise VerificationError(
                "quantization-error",
                f"output '{bad.name}' is {bad.reason or 'different'} from the original; "
                f"accepted are {self.tolerance.sqnr_db:g} dB or more",
                hint=advice(
                    self.report.costs,
                    "verify=Tolerance(sqnr_db=...) accepts less; more samples may show the ranges",
                    self.target,
                ),
                details={
                    "verification": comparison.to_dict(),
                    "costs": [{"nodes": n, "sqnr_db": value} for n, value in self.report.costs],
                },
            )
        return comparison
