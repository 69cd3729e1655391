"""``graphopt check``: one model, two models, or a model and a plan."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graphopt.cli.common import Loaded, parse_dims, unknown_shapes
from graphopt.cli.outcome import print_json
from graphopt.compiler import load_program
from graphopt.errors import InvariantError, OptionError, UnsupportedError, VerificationError
from graphopt.ir.program import Program
from graphopt.ir.shapes import infer_shapes
from graphopt.memory.plan import MemoryPlan
from graphopt.numerics.compare import Comparison, Tolerance
from graphopt.options import CompileOptions


def run_check(
    model: str,
    other: str | None,
    plan_file: Path | None,
    *,
    rtol: float,
    samples: int,
    seed: int,
    dim: Sequence[str],
    trust: bool,
    as_json: bool,
) -> None:
    """Check what is given; every line printed is something that was established."""
    program, examples = _open(model, trust=trust)
    report = infer_shapes(program)
    done: dict[str, Any] = {"model": model, "structure": "valid"}
    lines = [f"{model}: structure valid, {len(program.graph)} nodes, opset {program.opset}"]
    lines += [f"  {line}" for line in unknown_shapes(report.unresolved)]
    done["unknown_shapes"] = report.unresolved
    if Path(model).suffix != ".onnx":
        lines.append("  the ONNX checker reads files only: not run")
    elif other is None and plan_file is None:
        _native_check(Path(model))
        done["checker"] = "accepted"
        lines.append("  accepted by the ONNX checker, in a child process")
    if other is not None:
        comparison = _compare(
            program, other, examples, parse_dims(dim), Tolerance(rtol, samples=samples), seed, trust
        )
        done["comparison"] = comparison.to_dict()
        lines.append(
            f"  {other}: {len(comparison.outputs)} outputs on {comparison.samples} samples, "
            f"largest error {comparison.max_rel_error:.3g} of the scale; accepted {rtol:g}"
        )
    if plan_file is not None:
        plan, planned = _verify_plan(program, plan_file)
        done["plan"] = {"file": str(plan_file), "arena_bytes": plan.arena_bytes}
        lines.append(
            f"  {plan_file}: plan proven: {len(plan.steps)} steps inside {plan.arena_bytes} bytes"
        )
        done["plan"]["run"], line = _execute_plan(planned, plan, seed)
        lines.append(f"  {plan_file}: {line}")
    if as_json:
        print_json(done)
    else:
        print("\n".join(lines))


def _open(text: str, *, trust: bool) -> tuple[Program, Any]:
    loaded = Loaded(text)
    options = CompileOptions(dynamic_shapes=loaded.dynamic_shapes, trust=trust)
    program = load_program(loaded.model, loaded.example_inputs, options)
    return program, loaded.example_inputs


def _native_check(path: Path) -> None:
    from graphopt.isolation import Worker

    with Worker() as worker:
        worker.call("check", {"model": path})


def _compare(
    program: Program,
    other: str,
    examples: Any,
    bindings: dict[str, int],
    tolerance: Tolerance,
    seed: int,
    trust: bool,
) -> Comparison:
    from graphopt.numerics.verify import Reference
    from graphopt.quantization.interface import with_float_interface

    candidate = with_float_interface(_open(other, trust=trust)[0])
    infer_shapes(candidate)
    # In floats, whichever of the two has integer inputs.
    program = with_float_interface(program)
    infer_shapes(program)
    reference = Reference(program, examples, bindings=bindings, tolerance=tolerance, seed=seed)
    try:
        return reference.verify(candidate)
    finally:
        reference.close()


def _execute_plan(program: Program, plan: MemoryPlan, seed: int) -> tuple[dict[str, Any], str]:
    """Run the model inside the memory of the plan; return what happened, as data and as a line.

    A model that cannot be run so (random numbers, no kernel) is said to be not executed.

    Raises:
        VerificationError: the plan does not stand the run.
    """
    from graphopt.numerics.arena_runner import run_in_arena

    try:
        run = run_in_arena(program, plan, seed=seed)
    except UnsupportedError as error:
        return {"executed": False, **error.to_dict()}, f"not executed: {error.message}"
    kernels = ", ".join(f"{count} by {who}" for who, count in run.kernels.items() if count)
    outside = f", {len(run.outside)} values outside of the plan" if run.outside else ""
    return {"executed": True, **run.to_dict()}, (
        f"executed: {run.steps} steps ({kernels}) wrote up to byte {run.written_high_water} of "
        f"{run.arena_bytes}{outside}; largest error {run.comparison.max_rel_error:.3g} "
        "of the scale"
    )


def _verify_plan(program: Program, path: Path) -> tuple[MemoryPlan, Program]:
    """Verify a plan file against the model, with the target and sizes that it states.

    Returns:
        The plan, and the model in the operators that it was made for.

    Raises:
        OptionError: the file is no plan, or a plan of another model.
        VerificationError: the plan is wrong.
    """
    from graphopt.compiler import as_it_runs, plannable
    from graphopt.memory.planning import verify_for_program
    from graphopt.targets.schema import Target

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError("plan-unreadable", f"cannot read '{path}': {error}") from error
    plan = MemoryPlan.from_json(text)
    try:
        target = Target.model_validate(plan.target)
        planned, upper_bounds = plannable(program, plan.model.bindings)
        planned = as_it_runs(planned, target)
        verify_for_program(plan, planned, target, upper_bounds)
    except InvariantError as error:
        raise VerificationError(
            "plan-rejected",
            f"'{path}' is wrong for this model: {error.message}",
            hint="was the plan made for this file? A plan belongs to the model it was made from",
        ) from error
    return plan, planned
