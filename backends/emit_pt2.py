"""``.pt2`` backend: an exported program that ``torch.export.load`` runs without graphopt.

In: a program, its plan, samples. Out: the ``ExportedProgram`` of the lowered module, its named
dimensions open within the bounds of the program, the plan beside it in the archive as
``graphopt_plan.json`` and the names of inputs and outputs as ``graphopt_signature.json`` (read both
with ``extra_files``). The bytes differ from run to run: torch serializes the program with names and
times of its own.
"""

import contextlib
import json
import logging
import operator
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch._dynamo.exc import UserError
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config

from graphopt.backends.emit_torchscript import PLAN_FILE, SIGNATURE_FILE
from graphopt.backends.torch_branches import refuse_impossible, take_sampled
from graphopt.backends.torch_lowering import lower_to_torch
from graphopt.backends.torch_ops import control
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
_SMALLEST = re.compile(r"^\s*(\w+) = Dim\('\1', min=(\d+)\)\s*$", re.MULTILINE)
_SAME = re.compile(r"^\s*(\w+) = ([A-Za-z_]\w*)\s*$", re.MULTILINE)
_BEYOND_ANY_SIZE = 1 << 24

_log = logging.getLogger(__name__)


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
    with torch.no_grad(), torch_quiet():
        if not any(shapes):
            refuse_impossible(module, samples[0])
        elif any(node.target is control.if_ for node in module.graph.nodes) and take_sampled(
            module, samples
        ):
            # Sizes inside the branches that are not taken may well be 1.
            with _config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]  # made when torch is imported
                grown = [_grown(sample, shapes, 1) for sample in samples]
                grown.append(_grown(samples[0], shapes, 16))
                return _first_exported(module, grown, shapes, branches=True)
        return _first_exported(module, samples, shapes, branches=False)


def _first_exported(
    module: fx.GraphModule, samples: Sequence[tuple[Tensor, ...]], shapes: Any, *, branches: bool
) -> ExportedProgram:
    """Return the program of the first sample that torch can capture."""
    refusal: Exception | None = None
    for sample in samples:
        try:
            return _exported(module, sample, shapes)
        except UnsupportedError as error:
            if error.code != "torch-branch-sizes":
                raise
            refusal = refusal or error
        except Exception as error:
            refusal = refusal or error
            refined = _refined(error, shapes, branches=branches)
            if refined is not None:
                with contextlib.suppress(UserError):
                    return _exported(module, sample, refined)
    assert refusal is not None
    if isinstance(refusal, GraphoptError):
        raise refusal
    raise refused("an exported program", refusal) from refusal


def _exported(module: fx.GraphModule, sample: tuple[Tensor, ...], shapes: Any) -> ExportedProgram:
    exported = torch.export.export(
        module,
        sample,
        dynamic_shapes=shapes if shapes else None,
        strict=False,
        # A relation between sizes that the model needs is checked when it runs: torch does not
        # prove those of a network that halves its input again and again.
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    for graph in exported.graph_module.modules():
        if isinstance(graph, fx.GraphModule):
            _without_sums(graph)
    return exported


def _without_sums(module: fx.GraphModule) -> None:
    """Add sizes one by one: torch makes sums of several, which its own files cannot hold."""
    for node in module.graph.find_nodes(op="call_function", target=torch.sym_sum):
        total, *others = node.args[0]
        with module.graph.inserting_before(node):
            for other in others:
                value = _size(total) + _size(other)
                total = module.graph.call_function(operator.add, (total, other))
                total.meta = {**node.meta, "val": value}
        node.replace_all_uses_with(total)
        module.graph.erase_node(node)
    module.recompile()


def _size(value: Any) -> Any:
    return value.meta["val"] if isinstance(value, fx.Node) else value


def _grown(sample: tuple[Tensor, ...], shapes: Any, factor: int) -> tuple[Tensor, ...]:
    """Return a sample to capture, not to run, with larger open sizes, none of them 1."""
    return tuple(
        torch.zeros([max(2, factor * n) if i in axes else n for i, n in enumerate(x.shape)]).to(
            x.dtype
        )
        for x, axes in zip(sample, shapes, strict=True)
    )


def _refined(error: Exception, shapes: tuple[dict[int, Any], ...], *, branches: bool) -> Any:
    """Return the dimensions as torch says that the network takes them, None when it does not say.

    A network may take only multiples of a number, or sizes below one that no tensor reaches; its
    file does not say so, but torch does in its refusal. Of one with branches torch also says which
    sizes are equal, and from which size on both can be captured, which may be more than one of them
    needs. Nothing else that torch suggests is done.
    """
    multiples = dict(_MULTIPLE.findall(str(error)))
    largest = {n: int(m) for n, m in _LARGEST.findall(str(error)) if int(m) >= _BEYOND_ANY_SIZE}
    smallest = dict(_SMALLEST.findall(str(error))) if branches else {}
    same = dict(_SAME.findall(str(error))) if branches else {}
    known = {d.__name__: d for axes in shapes for d in axes.values() if d is not Dim.AUTO}
    found = {*multiples, *largest, *smallest, *same, *same.values()}
    if not found or not found <= known.keys():
        return None
    changed = {name: int(factor) * Dim(f"_{name}", min=1) for name, factor in multiples.items()}
    changed |= {name: Dim(name, min=1, max=size) for name, size in largest.items()}
    for name, size in smallest.items():
        _log.warning(
            "the .pt2 file takes sizes of '%s' from %s on: one branch needs them", name, size
        )
        changed[name] = Dim(name, min=int(size), max=known[name].max)
    for name, other in same.items():
        _log.warning("the .pt2 file takes equal sizes of '%s' and '%s' only", name, other)
        changed[name] = changed.get(other) or known[other]
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
