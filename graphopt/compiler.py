"""The compile itself: front end, baseline, passes, plan, limit, verification, in that order."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import OptionError, UnsupportedError
from graphopt.fitting import FitReport, fit_program
from graphopt.ir.dims import Bounds, Dim
from graphopt.ir.program import (
    IMPOSSIBLE_KEY,
    OLDEST_OPSET_OF_FACTS,
    UPPER_BOUNDS_KEY,
    Program,
    is_onnx,
)
from graphopt.ir.rewrite import nodes_of
from graphopt.ir.shapes import ShapeReport, infer_shapes
from graphopt.limits import MemoryLimit, check_limits, resolve_limits
from graphopt.memory.plan import MemoryPlan, PassBytes
from graphopt.memory.planning import make_plan
from graphopt.memory.sizes import input_symbols
from graphopt.numerics.compare import Comparison, Tolerance
from graphopt.options import AUTOMATIC, HALF_PRECISIONS, CompileOptions, Progress
from graphopt.pipeline.base import Pass
from graphopt.pipeline.instruments import CompareEach, DumpText, MeasureMemory
from graphopt.pipeline.pipeline import Instrument, PassPipeline, PassReport, build_passes
from graphopt.quantization.precisions import WEIGHT_PRECISIONS, weight_precision_passes
from graphopt.result import CompileResult
from graphopt.targets.loader import resolve_target
from graphopt.targets.schema import Target
from graphopt.temporary import remove_abandoned

if TYPE_CHECKING:
    from graphopt.numerics.half import HalfReport
    from graphopt.numerics.hessians import WeightRounder
    from graphopt.numerics.quantize import Quantizer
    from graphopt.numerics.verify import Reference


def compile_model(model: Any, example_inputs: Any, options: CompileOptions) -> CompileResult:
    """Compile ``model``; see ``graphopt.compile`` for what the options mean."""
    remove_abandoned()
    target = resolve_target(options.target)
    limits = resolve_limits(options.memory_limit, target)
    program = load_program(model, example_inputs, options)
    original = Original(model, program, example_inputs, options)
    planned, upper_bounds = plannable(program, options.bindings)
    baseline = make_plan(planned, target, options.bindings, upper_bounds=upper_bounds)
    with original, _weight_rounder(program, options) as rounder:
        reports = _run_passes(program, target, options, upper_bounds, original, rounder)
        quantizer = half = None
        if options.precision == "int8":
            quantizer = _quantize(program, target, options, reports, original.files)
        elif options.precision in HALF_PRECISIONS:
            half = _halve(program, target, options, reports, original.samples())
        planned, upper_bounds = plannable(program, options.bindings)
        plan = make_plan(
            as_it_runs(planned, target),
            target,
            options.bindings,
            upper_bounds=upper_bounds,
            effort="exact",
            limits=limits,
        ).with_passes(tuple(_pass_bytes(report) for report in reports))
        result = CompileResult(
            program=program,
            plan=plan,
            baseline=baseline,
            report=reports,
            verification=None,
            warnings=(*_warnings(program, target, options), *_kept_float(half)),
            title=_title(program),
            limits=limits,
            input_files=_input_files(program),
            input_bytes=_input_bytes(program),
            example_inputs=original.samples(),
            quantization=None if quantizer is None else quantizer.report,
            half=half,
            rounding=None if rounder is None else rounder.report,
        )
        check_limits(plan, limits, result)
        if options.tolerance is not None:
            result.verification = original.verify(program, quantizer, half, rounder)
    return result


def plan_model(
    model: Any,
    target: str | os.PathLike[str] | Target,
    bindings: Mapping[str, int] | None,
    *,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    limits: Mapping[str, int] | None = None,
    trust: bool = False,
) -> MemoryPlan:
    """Return the plan of ``model`` as it is, without rewriting anything."""
    options = CompileOptions(
        target=target, bindings=bindings, dynamic_shapes=dynamic_shapes, trust=trust
    )
    resolved = resolve_target(target)
    program = load_program(model, example_inputs, options)
    planned, upper_bounds = plannable(program, bindings)
    planned = as_it_runs(planned, resolved)
    return make_plan(
        planned, resolved, bindings, upper_bounds=upper_bounds, effort="exact", limits=limits
    )


def fit_model(
    model: Any,
    target: str | os.PathLike[str] | Target,
    dimension: str,
    bindings: Mapping[str, int] | None,
    memory_limit: MemoryLimit,
    *,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    trust: bool = False,
) -> FitReport:
    """Return the largest size of ``dimension`` that fits; nothing is rewritten."""
    options = CompileOptions(target=target, dynamic_shapes=dynamic_shapes, trust=trust)
    resolved = resolve_target(target)
    limits = resolve_limits(memory_limit, resolved)
    program = load_program(model, example_inputs, options)
    upper_bounds = _upper_bounds(program)
    return fit_program(program, resolved, dimension, bindings or {}, limits, upper_bounds)


def load_program(model: Any, example_inputs: Any, options: CompileOptions) -> Program:
    """Return the program of any accepted kind of model.

    Raises:
        OptionError: the object is no model.
        InvalidModelError: the file is unreadable, malformed or refused for safety.
        UnsupportedError: the model is outside of what graphopt serves.
    """
    import onnx_ir as ir

    if isinstance(model, (str, os.PathLike)) and Path(model).suffix == ".pt2":
        from graphopt.frontends.pt2 import load_pt2
        from graphopt.frontends.torch_capture import capture_torch

        exported = load_pt2(Path(model), trust=options.trust)
        return capture_torch(exported, example_inputs, dynamic_shapes=options.dynamic_shapes)
    kind = f"{type(model).__module__}.{type(model).__name__}"
    if isinstance(model, (str, os.PathLike, ir.Model)) or kind.startswith("onnx."):
        from graphopt.frontends.onnx_loader import load_onnx

        return load_onnx(model, bounds=_onnx_bounds(options.dynamic_shapes))
    if _is_torch(model):
        from graphopt.frontends.torch_capture import capture_torch

        return capture_torch(model, example_inputs, dynamic_shapes=options.dynamic_shapes)
    raise OptionError(
        "model-unknown",
        f"not a model: {kind}",
        hint=(
            "give a path, an onnx.ModelProto, an onnx_ir.Model, a torch.nn.Module, "
            "a torch.fx.GraphModule or a torch.export.ExportedProgram"
        ),
    )


def _is_torch(model: Any) -> bool:
    """Return whether ``model`` is torch's, without importing torch for those who do not use it."""
    return any(
        base.__module__.partition(".")[0] == "torch"
        and base.__name__ in ("Module", "ExportedProgram")
        for base in type(model).__mro__
    )


def _onnx_bounds(dynamic_shapes: Any) -> dict[str, Bounds]:
    """Return the bounds that ``{"x": {0: ("batch", 1, 8)}}`` states, by symbol name.

    Raises:
        OptionError: the structure is something else.
    """
    bounds: dict[str, Bounds] = {}
    if dynamic_shapes is None:
        return bounds
    try:
        for axes in dynamic_shapes.values():
            for name, lower, upper in axes.values():
                bounds[str(name)] = Bounds(int(lower), None if upper is None else int(upper))
    except (AttributeError, TypeError, ValueError):
        raise OptionError(
            "dynamic-shapes-unreadable",
            f"dynamic_shapes is {dynamic_shapes!r}",
            hint='for ONNX models write {"input": {0: ("batch", 1, 8)}}: name, smallest, largest',
        ) from None
    return bounds


@dataclass
class Original:
    """The model as it came in, kept to compare with; nothing is kept when nothing is compared."""

    model: Any
    program: Program
    example_inputs: Any
    options: CompileOptions
    _reference: "Reference | None" = None

    def __enter__(self) -> "Original":
        if self.options.tolerance is not None or self.options.verify_each:
            from graphopt.numerics.verify import Reference

            truth = self._truth()
            # An int8 result is compared on its calibration samples, and the original runs there.
            elsewhere = self.options.precision == "int8" and truth is None
            self._reference = Reference(
                self.program,
                self.samples(),
                truth=truth,
                run=self.options.verify_each or not elsewhere,
                bindings=self.options.bindings or {},
                tolerance=self.options.tolerance or Tolerance(),
                seed=self.options.seed,
            )
        return self

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of the original, the model first; none when nothing is compared."""
        return () if self._reference is None else self._reference.files

    def samples(self) -> Any:
        """Return the user's samples; those of a torch model are by input name after capture."""
        captured = self.program.model.meta.get("graphopt.example_inputs")
        return self.example_inputs if captured is None else captured

    def _truth(self) -> Any:
        """Return what the torch module itself computes on the sample."""
        if not _is_torch(self.model):
            return None
        from graphopt.frontends.torch_eager import eager_outputs

        return eager_outputs(self.model, self.example_inputs, self.program)

    def __exit__(self, *exception: object) -> None:
        if self._reference is not None:
            self._reference.close()

    def verify(
        self,
        program: Program,
        quantizer: "Quantizer | None" = None,
        half: "HalfReport | None" = None,
        rounder: "WeightRounder | None" = None,
    ) -> Comparison:
        """Compare ``program`` with the original; raise when it is outside the tolerance.

        A program of another precision is compared on the samples it was made on, by decibels.
        """
        assert self._reference is not None
        if half is not None:
            from graphopt.numerics.half import verify_half

            return verify_half(program, self._reference.files, half)
        if quantizer is not None:
            return quantizer.verify(self._reference.files)
        tolerance = self.options.tolerance
        if tolerance is not None and tolerance.metric is not None:
            from graphopt.numerics.goals import verify_by_metric

            return verify_by_metric(self._reference, program, tolerance)
        if rounder is not None and self.options.tolerance is not None:
            return rounder.verify(program, self._reference.files, self.options.tolerance)
        return self._reference.verify(program)

    def error_of(self, program: Program) -> float:
        """Return the largest relative error of ``program``."""
        assert self._reference is not None
        return self._reference.compare(program).max_rel_error


def _upper_bounds(program: Program) -> Mapping[str, Dim]:
    """Infer the shapes of ``program``; return what data-dependent sizes never exceed.

    The rules of inference hold from opset 7 on: below it the shapes that the file states are all
    that is known.
    """
    return _infer(program).upper_bounds


def _infer(program: Program) -> ShapeReport:
    if program.opset < OLDEST_OPSET_OF_FACTS:
        return ShapeReport()
    report = infer_shapes(program)
    for graph, reason in report.impossible.items():
        graph.meta[IMPOSSIBLE_KEY] = reason
    program.model.meta[UPPER_BOUNDS_KEY] = report.upper_bounds
    return report


def plannable(
    program: Program, bindings: Mapping[str, int] | None
) -> tuple[Program, Mapping[str, Dim]]:
    """Return the program to plan, with what its data-dependent sizes never exceed.

    That is ``program`` itself, unless a shape is unknown only because a size is open which
    ``bindings`` fix (a branch that depends on a length): then it is a copy at these sizes.
    """
    report = _infer(program)
    if not report.unresolved or not bindings:
        return program, report.upper_bounds
    bounds = {
        name: Bounds(bindings[name], bindings[name]) if name in bindings else limits
        for name, limits in program.bounds.items()
    }
    copy = Program(program.model.clone(), bounds, program.source, program.states, program.notes)
    return copy, _infer(copy).upper_bounds


def _run_passes(
    program: Program,
    target: Target,
    options: CompileOptions,
    upper_bounds: Mapping[str, Dim],
    original: Original,
    rounder: "WeightRounder | None" = None,
) -> list[PassReport]:
    from graphopt.passes import default_pipeline

    default = default_pipeline(target, options.bindings)
    chosen = options.passes
    if options.precision in WEIGHT_PRECISIONS:
        weights = weight_precision_passes(options.precision, target, calibrated=rounder is not None)
        # The order is chosen last, for the operators that will run.
        default = (*default[:-1], *weights, default[-1])
        chosen = None if chosen is None else [*chosen, *weights]
    passes = build_passes(chosen, options.skip_passes, default)
    if rounder is not None:
        passes = rounder.passes(passes)
    if passes and program.opset < OLDEST_OPSET_OF_FACTS:
        raise UnsupportedError(
            "opset-too-old",
            f"the model uses opset {program.opset}, passes need {OLDEST_OPSET_OF_FACTS} or newer",
            hint="convert it first: onnx.version_converter.convert_version(model, 13)",
        )
    instruments: list[Instrument] = [MeasureMemory(target, options.bindings, upper_bounds)]
    if options.verify_each:
        instruments.append(CompareEach(original.error_of))
    if options.dump_path is not None:
        instruments.append(DumpText(options.dump_path))
    return PassPipeline(passes, tuple(instruments), options.progress).run(program)


def _weight_rounder(
    program: Program, options: CompileOptions
) -> "AbstractContextManager[WeightRounder | None]":
    """Return what rounds weights on samples, where there are samples for it."""
    if options.precision not in WEIGHT_PRECISIONS or options.calibration_data is None:
        return nullcontext()
    from graphopt.numerics.hessians import WeightRounder

    return WeightRounder(program, options.calibration_data, progress=_open_ended(options.progress))


def _open_ended(told: Progress | None) -> Callable[[int, str], None] | None:
    """Return the progress of work of which nobody knows how much there is: always one more."""
    return None if told is None else lambda done, what: told(done, done + 1, what)


def as_it_runs(program: Program, target: Target) -> Program:
    """Return ``program`` in the operators that the runtime of ``target`` computes.

    onnxruntime computes nodes between Q and DQ in integer operators, and so do devices that compute
    nothing else: the floats between them are never in memory. Without such nodes this is
    ``program`` itself.
    """
    if not any(is_onnx(node, "QuantizeLinear") for node in nodes_of(program.model)):
        return program
    if target.quantization is not None and target.quantization.full_integer:
        from graphopt.quantization.planned_form import planned_form

        in_place_ops = target.compute.in_place_ops or ()
        return replace(program, model=planned_form(program.model, in_place_ops))
    if target.runtime.executes_with != "onnxruntime" or target.kind != "cpu":
        return program
    from graphopt.passes.fuse_qdq import FuseQdq

    model = program.model.clone()
    model.meta.update(program.model.meta)
    FuseQdq()(model)
    return replace(program, model=model)


def _quantize(
    program: Program,
    target: Target,
    options: CompileOptions,
    reports: list[PassReport],
    original: Sequence[Path],
) -> "Quantizer":
    """Quantize ``program`` in place for ``target``; adds to ``reports`` what the passes did."""
    from graphopt.numerics.quantize import AUTOMATIC_METHODS, Quantizer
    from graphopt.passes.raise_opset import RaiseOpset
    from graphopt.passes.split_products import SplitProducts

    method = options.calibration_method
    quantizer = Quantizer(
        program,
        target,
        options.calibration_data,
        tolerance=options.tolerance,
        original=original,
        methods=AUTOMATIC_METHODS if method == AUTOMATIC else (method,),
        progress=_open_ended(options.progress),
    )
    # What the float graph around the conversions would take is nobody's memory: not measured.
    steps: list[Callable[[], tuple[Pass, ...]]] = [
        lambda: (RaiseOpset(),),
        quantizer.lower,
        quantizer.prepare,
        quantizer.run,
        # Bits stay as they were measured.
        lambda: (SplitProducts(),) if _has_products(program) else (),
    ]
    for make in steps:
        pipeline = PassPipeline(make(), (), options.progress)
        for report in pipeline.run(program):
            report.index = len(reports) + 1
            reports.append(report)
    quantizer.forget()
    return quantizer


def _has_products(program: Program) -> bool:
    """Return whether there are products of integers with a float result."""
    return any(node.op_type == "MatMulIntegerToFloat" for node in program.graph)


def _halve(
    program: Program,
    target: Target,
    options: CompileOptions,
    reports: list[PassReport],
    samples: Any,
) -> "HalfReport":
    """Convert ``program`` in place to the half precision that is asked for."""
    from graphopt.numerics.half import convert_program

    data = options.calibration_data
    half = convert_program(
        program,
        target,
        options.precision,
        samples if data is None else data,
        tolerance=options.tolerance,
        bindings=options.bindings,
        seed=options.seed,
        progress=_open_ended(options.progress),
    )
    for report in half.passes:
        report.index = len(reports) + 1
        reports.append(report)
    return half


def _pass_bytes(report: PassReport) -> PassBytes:
    return PassBytes(name=report.name, peak_before=report.peak_before, peak_after=report.peak_after)


def _warnings(program: Program, target: Target, options: CompileOptions) -> tuple[str, ...]:
    warnings = list(program.notes)
    if options.tolerance is None:
        warnings.append("verification is off: nothing shows that the result computes the same")
    warnings += _unfit_shapes(program, target)
    limit = target.runtime.max_opset
    if limit is not None and program.opset > limit:
        warnings.append(
            f"opset {program.opset} is above what the runtime of '{target.name}' takes ({limit})"
        )
    return tuple(warnings)


def _kept_float(half: "HalfReport | None") -> list[str]:
    """Return how many nodes half precision left out on seeded samples, and what would change it."""
    if half is None or half.inputs != "seeded":
        return []
    cautious = sum(reason in ("range", "error") for reason, _ in half.kept.values())
    if not cautious:
        return []
    text = (
        f"{cautious} nodes stay float32, judged by range and error on seeded samples: real ones "
        "(example_inputs, calibration_data, --calib) may show that they need not"
    )
    return [text]


def _unfit_shapes(program: Program, target: Target) -> list[str]:
    """Return what the runtime of the target does not take: high ranks, dynamic dimensions."""
    warnings = []
    most = target.runtime.max_rank
    if most is not None:
        high = [
            value.name or ""
            for node in program.graph
            for value in node.outputs
            if value.shape is not None and len(value.shape) > most
        ]
        if high:
            warnings.append(
                f"{len(high)} tensors have more than the {most} dimensions that the runtime of "
                f"'{target.name}' takes, the first is '{high[0]}'"
            )
    names = input_symbols(program.graph.inputs)
    if target.runtime.static_shapes_only and names:
        warnings.append(
            f"the runtime of '{target.name}' takes fixed shapes only, and {', '.join(names)} "
            "are free in the emitted file"
        )
    return warnings


def _title(program: Program) -> str:
    path = program.source.path
    return path.name if path is not None else (program.graph.name or "model")


def _input_files(program: Program) -> tuple[Path, ...]:
    path = program.source.path
    return (*((path,) if path is not None else ()), *program.source.external_files)


def _input_bytes(program: Program) -> int | None:
    files = _input_files(program)
    return sum(file.stat().st_size for file in files) if files else None
