"""``.pt2`` backend: an exported program that ``torch.export.load`` runs without graphopt.

In: a program, its plan, samples. Out: the ``ExportedProgram`` of the lowered module, its named
dimensions open within the bounds of the program, the plan beside it in the archive as
``graphopt_plan.json`` and the names of inputs and outputs as ``graphopt_signature.json`` (read both
with ``extra_files``). The bytes differ from run to run: torch serializes the program with names and
times of its own.
"""

import contextlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch._dynamo.exc import UserError
from torch.export import Dim, ExportedProgram

from graphopt.backends.emit_torchscript import PLAN_FILE, SIGNATURE_FILE
from graphopt.backends.torch_branches import refuse_impossible
from graphopt.backends.torch_lowering import lower_to_torch
from graphopt.backends.torch_trace import (
    Check,
    Feed,
    refused,
    runner,
    running,
    signature,
    torch_quiet,
)
from graphopt.errors import GraphoptError, UnsupportedError
from graphopt.ir.dims import Bounds, symbols_of
from graphopt.ir.dims import Dim as Size
from graphopt.ir.program import Program, dims_of
from graphopt.memory.plan import MemoryPlan
from graphopt.safe_files import OutputTransaction

_MULTIPLE = re.compile(r"^\s*(\w+) = (\d+)\*_\1\s*$", re.MULTILINE)
_LARGEST = re.compile(r"^\s*(\w+) = Dim\('\1', max=(\d+)\)\s*$", re.MULTILINE)
_BEYOND_ANY_SIZE = 1 << 24


def emit_pt2(
    program: Program,
    path: Path,
    *,
    feeds: Sequence[Feed],
    plan: MemoryPlan | None = None,
    check: Check | None = None,
    inputs: Iterable[Path] = (),
) -> list[Path]:
    """Write ``program`` as an exported program; return the files written.

    Args:
        program: The model.
        path: The file.
        feeds: Samples, of which the first that torch runs is captured.
        plan: Written into the archive.
        check: Called with a function that runs the file as read back; when it raises, nothing is
            written.
        inputs: Files that must not be touched.

    Raises:
        UnsupportedError: an operator has no torch form, or torch cannot capture the model.
        OutputError: nothing could be written; what was there before is still there.
    """
    module = lower_to_torch(program)
    exported = export(module, running(module, feeds), program)
    names = signature(module)
    extra: dict[str, Any] = {SIGNATURE_FILE: json.dumps(names)}
    if plan is not None:
        extra[PLAN_FILE] = plan.model_dump_json(indent=1)
    with OutputTransaction(inputs=inputs) as transaction:
        pending = transaction.path_for(path)
        with torch_quiet():
            torch.export.save(exported, str(pending), extra_files=extra)
            del exported, module
            if check is not None:
                loaded = torch.export.load(str(pending)).module()
                check(runner(loaded, names["inputs"], names["outputs"]))
    return [path]


def export(
    module: fx.GraphModule, samples: Sequence[tuple[Tensor, ...]], program: Program
) -> ExportedProgram:
    """Return the exported program of a lowered module.

    A sample so small that a size inside the network becomes 1 makes torch take that size for a
    constant, so the samples are tried in turn.

    Raises:
        UnsupportedError: torch cannot capture it.
    """
    shapes: Any = dynamic_shapes(program)
    refusal: Exception | None = None
    with torch.no_grad(), torch_quiet():
        if not any(shapes):
            refuse_impossible(module, samples[0])
        for sample in samples:
            try:
                return _exported(module, sample, shapes)
            except UnsupportedError as error:
                if error.code != "torch-branch-sizes":
                    raise
                refusal = refusal or error
            except Exception as error:
                refusal = refusal or error
                refined = _refined(error, shapes)
                if refined is not None:
                    with contextlib.suppress(UserError):
                        return _exported(module, sample, refined)
    assert refusal is not None
    if isinstance(refusal, GraphoptError):
        raise refusal
    raise refused("an exported program", refusal) from refusal


def _exported(module: fx.GraphModule, sample: tuple[Tensor, ...], shapes: Any) -> ExportedProgram:
    return torch.export.export(
        module,
        sample,
        dynamic_shapes=shapes if shapes else None,
        strict=False,
        # A relation between sizes that the model needs is checked when it runs: torch does not
        # prove those of a network that halves its input again and again.
        prefer_deferred_runtime_asserts_over_guards=True,
    )


def _refined(error: Exception, shapes: tuple[dict[int, Any], ...]) -> Any:
    """Return the dimensions as torch says that the network takes them, None when it does not say.

    A network may take only multiples of a number, or sizes below one that no tensor reaches; its
    file does not say so, but torch does in its refusal. Nothing else that torch suggests is done.
    """
    multiples = dict(_MULTIPLE.findall(str(error)))
    largest = {n: int(m) for n, m in _LARGEST.findall(str(error)) if int(m) >= _BEYOND_ANY_SIZE}
    names = {size.__name__ for axes in shapes for size in axes.values() if size is not Dim.AUTO}
    if not (multiples or largest) or not {*multiples, *largest} <= names:
        return None
    changed = {name: int(factor) * Dim(f"_{name}", min=1) for name, factor in multiples.items()}
    changed |= {name: Dim(name, min=1, max=size) for name, size in largest.items()}
    return tuple(
        {axis: changed.get(getattr(size, "__name__", ""), size) for axis, size in axes.items()}
        for axes in shapes
    )


def dynamic_shapes(program: Program) -> tuple[dict[int, Any], ...]:
    """Return the open dimensions of each input in the form of ``torch.export``."""
    known: dict[str, Any] = {}
    result = []
    for value in program.graph.inputs:
        axes: dict[int, Any] = {}
        for axis, size in enumerate(dims_of(value) or ()):
            if not isinstance(size, int):
                axes[axis] = _dimension(size, program, known)
        result.append(axes)
    return tuple(result)


def _dimension(size: Size, program: Program, known: dict[str, Any]) -> Any:
    names = sorted(symbols_of(size))
    if len(names) != 1 or str(size) != names[0]:
        return Dim.AUTO  # an expression: torch finds it again
    name = names[0]
    if name not in known:
        bounds = program.bounds.get(name, Bounds())
        known[name] = Dim(name, min=max(bounds.lower, 1), max=bounds.upper)
    return known[name]
