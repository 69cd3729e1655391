"""Save a program for torch, and compare the file as read back with the program in onnxruntime.

In: a program, a path with the suffix of a torch format. Out: the file, or an error and no file. The
samples are those the program came with, else seeded ones; where dimensions are open one more
sample has other sizes, so that a size that torch took for a constant shows. A module with an arena
is for the sizes of the plan only; its second sample has other values at the same sizes.
"""

import contextlib
import importlib
import importlib.util
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.backends import BACKENDS
from graphopt.errors import GraphoptError, OptionError, UnsupportedError, VerificationError
from graphopt.ir.dims import Bounds, symbol, symbols_of
from graphopt.ir.program import Program, dims_of
from graphopt.memory.plan import MemoryPlan
from graphopt.memory.sizes import input_symbols
from graphopt.numerics.compare import Tolerance, compare_outputs
from graphopt.numerics.feeds import Feed, make_feed, size_choices
from graphopt.numerics.sqnr import DEFAULT_SQNR_DB, compare_by_sqnr
from graphopt.numerics.verify import Outputs, run_program, user_feeds

if TYPE_CHECKING:
    from graphopt.backends.torch_arena_emit import ArenaReport

_MOST_TRIES = 12
_OTHER_SIZES = (1, 2, 8, 32)


def save_for_torch(
    program: Program,
    path: Path,
    *,
    plan: MemoryPlan | None = None,
    verify: bool = True,
    tolerance: Tolerance | None = None,
    example_inputs: Any = None,
    inputs: Iterable[Path] = (),
    note: Callable[[MemoryPlan], None] | None = None,
) -> list[Path]:
    """Write ``program`` in the torch format that the suffix of ``path`` names.

    Args:
        program: The model.
        path: A ``.ts`` or ``.pt2`` file.
        plan: Written into the archive.
        verify: Whether the file is compared with the program in onnxruntime.
        tolerance: What difference is accepted.
        example_inputs: Samples in the form of ``compile``; None: seeded ones.
        inputs: Files that must not be touched.
        note: Called with the plan as it was written, where the format adds a prediction to it.

    Raises:
        UnsupportedError: torch is missing, the model has no torch form, or no sample runs.
        VerificationError: the file does not compute what the program computes.
        OutputError: nothing could be written; what was there before is still there.
    """
    emit = _emitter(BACKENDS[path.suffix], path)
    noted: dict[str, Any] = {"note": note} if path.suffix == ".ts" else {}
    if not verify:
        feeds = _unchecked_feeds(program, example_inputs, plan)
        files: list[Path] = emit(program, path, feeds=feeds, plan=plan, inputs=inputs, **noted)
        return files
    samples = _samples(program, example_inputs, plan)
    check = _check(path, samples, _accepted(program, tolerance))
    feeds = [feed for feed, _ in samples]
    files = emit(program, path, feeds=feeds, plan=plan, check=check, inputs=inputs, **noted)
    return files


def save_with_arena(
    program: Program,
    path: Path,
    *,
    plan: MemoryPlan,
    verify: bool = True,
    tolerance: Tolerance | None = None,
    example_inputs: Any = None,
    inputs: Iterable[Path] = (),
) -> tuple[list[Path], "ArenaReport"]:
    """Write ``program`` as TorchScript with an arena, for the sizes of ``plan``.

    Args:
        program: The model.
        path: A ``.ts`` file.
        plan: Says the sizes; written into the archive.
        verify: Whether the file is compared with the program in onnxruntime.
        tolerance: What difference is accepted.
        example_inputs: Samples in the form of ``compile``; None: seeded ones.
        inputs: Files that must not be touched.

    Returns:
        The files written, and what the module takes.

    Raises:
        OptionError: a dimension has no size (``arena-sizes-open``).
        UnsupportedError: torch is missing, the model has no torch form, or what it computes depends
            on more than its sizes.
        VerificationError: the file does not compute what the program computes.
        OutputError: nothing could be written; what was there before is still there.
    """
    emit = _emitter("graphopt.backends.torch_arena_emit:emit_torch_arena", path)
    feeds = _planned_feeds(program, plan, example_inputs)
    check = None
    if verify:
        samples = [(feeds[0], run_program(program, feeds[0]))]
        with contextlib.suppress(UnsupportedError):
            # Other values: what was taken from those of the first sample shows.
            samples += [(feed, run_program(program, feed)) for feed in feeds[1:]]
        check = _check(path, samples, _accepted(program, tolerance))
    found: tuple[list[Path], ArenaReport] = emit(
        program, path, feeds=feeds, plan=plan, check=check, inputs=inputs
    )
    return found


def _emitter(target: str, path: Path) -> Any:
    if importlib.util.find_spec("torch") is None:
        raise UnsupportedError(
            "torch-missing",
            f"writing '{path}' needs torch, which is not installed",
            hint="pip install graphopt[torch], or save as .onnx",
        )
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _planned_feeds(program: Program, plan: MemoryPlan, example_inputs: Any) -> list[Feed]:
    """Return samples of the sizes of the plan: the user's own where they have these, and seeded."""
    sizes = plan.model.bindings
    for name in input_symbols(program.graph.inputs):
        assumed = any(text.startswith(f"'{name}', ") for text in plan.assumptions)
        if name not in sizes or assumed:
            raise OptionError(
                "arena-sizes-open",
                f"dimension '{name}' has no size, and an arena is planned for one size",
                hint=f"bind it: bindings={{'{name}': N}} of compile, or --dim {name}=N",
            )
    feeds = [make_feed(program, sizes, seed) for seed in (0, 1)]
    given = [] if example_inputs is None else user_feeds(program, example_inputs)
    shapes = {name: array.shape for name, array in feeds[0].items()}
    fitting = [f for f in given if {name: array.shape for name, array in f.items()} == shapes]
    return [*fitting, *feeds]


def _accepted(program: Program, tolerance: Tolerance | None) -> Tolerance:
    """Return what the file is compared by: decibels where onnxruntime itself rounds more.

    ``MatMulNBits`` with an ``accuracy_level`` of 4 rounds its other factor to 8 bits inside the
    kernel; torch computes in the type of that factor, which is nearer to the float model. What the
    weights of few bits may lose against the float model (``tolerance``) is another question: the
    file holds the same integers.
    """
    stated = tolerance or Tolerance()
    rounds = any(
        node.op_type == "MatMulNBits" and node.attributes.get_int("accuracy_level", 0) == 4
        for node in program.graph
    )
    if rounds:
        return replace(stated, sqnr_db=DEFAULT_SQNR_DB)
    return replace(stated, sqnr_db=None)


def _check(
    path: Path, samples: Sequence[tuple[Feed, Outputs]], accepted: Tolerance
) -> Callable[[Any], None]:
    def check(run: Any) -> None:
        for feed, expected in samples:
            _compare(path, run, feed, expected, accepted)

    return check


def _compare(path: Path, run: Any, feed: Feed, expected: Outputs, tolerance: Tolerance) -> None:
    sizes = {name: list(array.shape) for name, array in feed.items()}
    try:
        found = run(feed)
    except (RuntimeError, ValueError, AssertionError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        raise VerificationError(
            "torch-file-refuses",
            f"'{path.name}' as read back does not run at sizes {sizes}, which the model accepts: "
            f"{first[:300]}",
            hint="narrow the bounds of the open dimensions (dynamic_shapes, --dim NAME=LOW..HIGH), "
            "or save as .onnx",
        ) from error
    if tolerance.sqnr_db is None:
        outputs = compare_outputs(expected, found, tolerance)
    else:
        outputs = compare_by_sqnr([expected], [found], tolerance)
    for output in outputs:
        if not output.accepted:
            raise VerificationError(
                "torch-file-differs",
                f"'{path.name}' as read back differs from the program in onnxruntime at sizes "
                f"{sizes}: output '{output.name}': {output.reason}",
                hint="please report this; --rtol accepts a larger error, .onnx is not concerned",
            )


def _samples(
    program: Program, example_inputs: Any, plan: MemoryPlan | None
) -> list[tuple[Feed, Outputs]]:
    """Return samples that onnxruntime runs, with its outputs; at least one."""
    if example_inputs is not None:
        feeds = user_feeds(program, example_inputs)
        samples = [(feed, run_program(program, feed)) for feed in feeds]
        # Samples of one size would not show that a size became a constant in the trace.
        return samples + (_second(program, _sizes_of(program, feeds[0])) if feeds else [])
    refusal: GraphoptError | None = None
    for sizes in _tried_sizes(program, plan):
        feed = make_feed(program, sizes, 0)
        try:
            samples = [(feed, run_program(program, feed))]
        except UnsupportedError as error:
            refusal = refusal or error
            continue
        return samples + _second(program, sizes)
    raise UnsupportedError(
        "torch-sample-refused",
        "onnxruntime does not run the model on seeded samples, so no sample can be traced: "
        f"{refusal.message if refusal else 'no sizes to try'}",
        hint="compile with example inputs",
    )


def _sizes_of(program: Program, feed: Feed) -> dict[str, int]:
    """Return the sizes that the arrays of ``feed`` give to the dimensions with a name."""
    sizes: dict[str, int] = {}
    for value in program.graph.inputs:
        array = feed.get(value.name or "")
        dims = dims_of(value)
        if array is None or dims is None:
            continue
        for dim, size in zip(dims, array.shape, strict=False):
            for name in symbols_of(dim):
                if dim == symbol(name):
                    sizes[name] = size
    return sizes


def _second(program: Program, first: Mapping[str, int]) -> list[tuple[Feed, Outputs]]:
    """Return a sample with other sizes of the open dimensions, where onnxruntime accepts one."""
    symbols = input_symbols(program.graph.inputs)
    if not symbols or not set(symbols) <= first.keys():
        return []
    for more in _OTHER_SIZES:
        sizes = {}
        for name, size in first.items():
            bounds = program.bounds.get(name, Bounds())
            larger = size + more
            fits = bounds.upper is None or larger <= bounds.upper
            sizes[name] = larger if fits else max(bounds.lower, size - more, 1)
        if sizes == dict(first):
            continue
        with contextlib.suppress(UnsupportedError):
            feed = make_feed(program, sizes, 1)
            return [(feed, run_program(program, feed))]
    return []


def _unchecked_feeds(program: Program, example_inputs: Any, plan: MemoryPlan | None) -> list[Feed]:
    if example_inputs is not None:
        return user_feeds(program, example_inputs)
    return [make_feed(program, sizes, 0) for sizes in _tried_sizes(program, plan)]


def _tried_sizes(program: Program, plan: MemoryPlan | None) -> list[dict[str, int]]:
    """Return the sizes that samples are tried at, those of the plan last.

    A network may take only sizes that fit each other in a way that its file does not say; the user
    who bound them knows. They come last because a size of 1 becomes a constant in a capture.
    """
    choices = list(itertools.islice(size_choices(program, {}), _MOST_TRIES))
    symbols = input_symbols(program.graph.inputs)
    bound = {} if plan is None else plan.model.bindings
    planned = {name: bound[name] for name in symbols if name in bound}
    if len(planned) == len(symbols) and planned not in choices:
        choices.append(planned)
    return choices
