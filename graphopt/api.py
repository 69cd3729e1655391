"""The calls that users make. Heavy imports happen inside them."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphopt.fitting import FitReport
    from graphopt.limits import MemoryLimit
    from graphopt.memory.plan import MemoryPlan
    from graphopt.numerics.compare import Tolerance
    from graphopt.pipeline.base import Pass
    from graphopt.result import CompileResult
    from graphopt.targets.schema import Target


def compile(
    model: Any,
    example_inputs: Any = None,
    *,
    target: "str | os.PathLike[str] | Target" = "cpu",
    dynamic_shapes: Any = None,
    bindings: Mapping[str, int] | None = None,
    precision: Any = None,
    sparsity: Any = None,
    calibration_data: "Iterable[Any] | str | os.PathLike[str] | None" = None,
    calibration_method: str = "auto",
    memory_limit: "MemoryLimit" = None,
    objective: str = "memory",
    max_recompute: float = 0.0,
    passes: "Sequence[str | Pass] | None" = None,
    skip_passes: Sequence[str] = (),
    verify: "bool | Tolerance" = True,
    verify_each: bool = False,
    dump_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
    trust: bool = False,
    **unknown: Any,
) -> "CompileResult":
    """Return an optimized model with its memory plan and the evidence for both.

    Args:
        model: A ``torch.nn.Module``, ``torch.fx.GraphModule`` or
            ``torch.export.ExportedProgram``, an ``onnx.ModelProto`` or ``onnx_ir.Model``, or the
            path of an ``.onnx`` or trusted ``.pt2`` file. Files are never changed.
        example_inputs: Inputs as a tuple (by position) or dictionary (by name). Required for
            modules; for ONNX models they are the samples that the result is verified on.
        target: Name of a preset, path of a ``.toml`` descriptor, or a ``Target``.
        dynamic_shapes: torch.export's own syntax; for ONNX ``{"x": {0: ("batch", 1, 8)}}``.
        bindings: Sizes of named dimensions at which the plan is made. Dimensions without one are
            planned at their upper bounds.
        precision: None to keep it; ``"int8"``: static quantization for the target's integer
            kernels, where nodes that cost too much accuracy stay float; ``"int8-weights"`` or
            ``"int4-weights"``: weights in blocks of few bits, activations stay float;
            ``"nf4-weights"``: the same through a fixed table of values that are not evenly spaced,
            for targets that store it; ``"fp16"`` or ``"bf16"``: half precision, where nodes that
            leave its range or cost too much accuracy stay float32, for targets that compute in it.
        sparsity: Not served yet; must stay None.
        calibration_data: For int8, and better than seeded samples for fp16 and bf16: real inputs,
            any iterable of dictionaries or tuples, read once; or the path of a folder of ``.npz``
            files. Memory does not grow with their number. With int4-weights and int8-weights, the
            weights of products are rounded for these inputs (GPTQ), and verified on them.
        calibration_method: For int8, which ranges values get: ``"min-max"``, all that was seen;
            ``"percentile"``, all but 0.001 % of the elements; ``"entropy"``, the smallest
            Kullback-Leibler divergence; ``"mse"``, the smallest squared error; ``"auto"``: those of
            the first, the second or the last with which the result loses least.
        memory_limit: Bytes, text such as ``"320KiB"``, or a mapping from pool to either.
        objective: Only ``"memory"`` is served.
        max_recompute: Only 0 is served.
        passes: Passes, or option strings such as ``"fold-constants{max_output_bytes=65536}"``;
            None for the pipeline of the target.
        skip_passes: Names of passes to leave out.
        verify: True to compare with the original at the default tolerance, a ``Tolerance``, or
            False. For int8 ``Tolerance(sqnr_db=...)`` is the accuracy that is aimed at, or
            ``Tolerance(metric=function, max_drop=0.01)``: ``function(run)`` returns a number,
            higher for a better model, and ``run(feed)`` the outputs of the model under test.
        verify_each: Also compare after every pass; slow, for debugging.
        dump_dir: Folder for the graph after every pass.
        seed: Seed of the samples.
        progress: Called with (index, count, name) before each pass.
        trust: Whether a ``.pt2`` file may be loaded: that can run code from the file.
        **unknown: Refused, with the closest known keyword.

    Raises:
        OptionError: an argument makes no sense.
        InvalidModelError: the file is unreadable, malformed or refused for safety.
        UnsupportedError: the model or an option is outside of what is served.
        DoesNotFitError: the plan exceeds the limit; its ``report`` is the result so far.
        VerificationError: the result does not compute what the original computes.
        PassFailed: a pass failed; names the pass.
    """
    from graphopt.compiler import compile_model
    from graphopt.options import options_from

    keywords = {
        "target": target,
        "dynamic_shapes": dynamic_shapes,
        "bindings": bindings,
        "precision": precision,
        "sparsity": sparsity,
        "calibration_data": calibration_data,
        "calibration_method": calibration_method,
        "memory_limit": memory_limit,
        "objective": objective,
        "max_recompute": max_recompute,
        "passes": passes,
        "skip_passes": skip_passes,
        "verify": verify,
        "verify_each": verify_each,
        "dump_dir": dump_dir,
        "seed": seed,
        "progress": progress,
        "trust": trust,
    }
    return compile_model(model, example_inputs, options_from({**keywords, **unknown}))


def plan(
    model: Any,
    target: "str | os.PathLike[str] | Target" = "cpu",
    bindings: Mapping[str, int] | None = None,
    *,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    trust: bool = False,
) -> "MemoryPlan":
    """Return the memory plan of a model as it is; nothing is rewritten.

    The arguments are those of ``compile``.

    Raises:
        OptionError: an argument makes no sense.
        InvalidModelError: the file is unreadable, malformed or refused for safety.
        UnsupportedError: the model is outside of what is served.
    """
    from graphopt.compiler import plan_model

    return plan_model(
        model,
        target,
        bindings,
        example_inputs=example_inputs,
        dynamic_shapes=dynamic_shapes,
        trust=trust,
    )


def fit(
    model: Any,
    target: "str | os.PathLike[str] | Target",
    dim: str,
    *,
    bindings: Mapping[str, int] | None = None,
    memory_limit: "MemoryLimit" = None,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    trust: bool = False,
) -> "FitReport":
    """Return the largest size of the named dimension ``dim`` at which the model fits the target.

    Args:
        model: As in ``compile``.
        target: As in ``compile``.
        dim: Name of the dimension: a batch, a sequence, a resolution.
        bindings: Sizes of the other named dimensions.
        memory_limit: As in ``compile``; None for what the target offers.
        example_inputs: As in ``compile``.
        dynamic_shapes: As in ``compile``.
        trust: As in ``compile``.

    Raises:
        OptionError: no such dimension, no limit, or sizes that are unknown.
        DoesNotFitError: not even the smallest size fits.
        InvalidModelError: the file is unreadable, malformed or refused for safety.
    """
    from graphopt.compiler import fit_model

    return fit_model(
        model,
        target,
        dim,
        bindings,
        memory_limit,
        example_inputs=example_inputs,
        dynamic_shapes=dynamic_shapes,
        trust=trust,
    )
