"""TorchScript backend: one ``.ts`` file that ``torch.jit.load`` runs without graphopt.

In: a program, its plan, samples. Out: the traced module, its calls in the order of the program, the
plan beside it in the archive as ``graphopt_plan.json`` and the names of inputs and outputs as
``graphopt_signature.json`` (read both with ``_extra_files``). Weights are written as they are.

The file follows its inputs: ``torch.jit.load(path, map_location="cuda")`` gives a module for CUDA.
TorchScript is deprecated by torch (2.11 and later) but works; ``.pt2`` is its successor. A fresh
process writes the same bytes for the same program, sample and installation. A process that has
traced before does not: torch numbers the classes that it traced, and the archive holds that number
and the paths of the source files that were traced.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphopt.backends.torch_branches import BranchRecorder, Seen
from graphopt.backends.torch_device import CPU, device_of_target
from graphopt.backends.torch_follow import follow_inputs
from graphopt.backends.torch_lowering import lower_to_torch
from graphopt.backends.torch_ops import control
from graphopt.backends.torch_ops.small import tensor_of
from graphopt.backends.torch_peak import torchscript_prediction
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
from graphopt.ir.program import Program
from graphopt.memory.plan import MemoryPlan
from graphopt.safe_files import OutputTransaction

_JIT: Any = torch.jit  # without annotations
PLAN_FILE = "graphopt_plan.json"
SIGNATURE_FILE = "graphopt_signature.json"


def emit_torchscript(
    program: Program,
    path: Path,
    *,
    feeds: Sequence[Feed],
    plan: MemoryPlan | None = None,
    check: Check | None = None,
    inputs: Iterable[Path] = (),
    note: Callable[[MemoryPlan], None] | None = None,
) -> list[Path]:
    """Write ``program`` as TorchScript; return the files written.

    Args:
        program: The model.
        path: The file.
        feeds: Samples, of which the first that torch runs is traced.
        plan: Written into the archive, with the peak that a call is predicted to take at its sizes;
            for a target that is a GPU, there and on the CPU.
        check: Called with a function that runs the file as read back; when it raises, nothing is
            written.
        inputs: Files that must not be touched.
        note: Called with the plan as it was written.

    Raises:
        UnsupportedError: an operator has no torch form, or torch cannot trace the model.
        OutputError: nothing could be written; what was there before is still there.
    """
    module = lower_to_torch(program)
    traced = trace(module, running(module, feeds))
    names = signature(module)
    extra = {SIGNATURE_FILE: json.dumps(names)}
    if plan is not None:
        prediction = torchscript_prediction(traced, program, plan.model.bindings)
        plan = plan.with_prediction("torchscript", prediction)
        device = device_of_target(plan.target)
        if device != CPU:
            there = torchscript_prediction(traced, program, plan.model.bindings, device)
            plan = plan.with_prediction("torch-cuda", there)
        extra[PLAN_FILE] = plan.model_dump_json(indent=1)
    with OutputTransaction(inputs=inputs) as transaction:
        pending = transaction.path_for(path)
        with torch_quiet():
            torch.jit.save(traced, str(pending), _extra_files=extra)
            del traced, module
            if check is not None:
                loaded = _JIT.load(str(pending))
                check(runner(loaded, names["inputs"], names["outputs"]))
    if note is not None and plan is not None:
        note(plan)
    return [path]


def trace(module: fx.GraphModule, samples: Sequence[tuple[Tensor, ...]]) -> Any:
    """Return the TorchScript module that tracing ``module`` on the first sample gives.

    A branch of an ``If`` is traced on the first sample that enters it.

    Raises:
        UnsupportedError: torch cannot trace it.
    """
    if not samples[0]:
        raise UnsupportedError(
            "torch-capture-failed",
            "torch cannot trace a model without inputs",
            hint="save as .onnx",
        )
    with torch.no_grad(), torch_quiet():
        try:
            _script_branches(module, samples)
            return _traced(module, samples[0])
        except GraphoptError:
            raise
        except Exception as error:
            raise refused("TorchScript", error) from error


def _script_branches(module: fx.GraphModule, samples: Sequence[tuple[Any, ...]]) -> None:
    """Replace every ``If`` by a scripted module that holds both branches, traced.

    The tracer would keep the branch that the sample took.
    """
    if not any(node.target is control.if_ for node in module.graph.nodes):
        return
    seen: Seen = {}
    for sample in samples:
        BranchRecorder(module, seen).run(*sample)
    for number, (node, entered) in enumerate(seen.items()):
        bodies = [module.get_submodule(str(node.args[i].target)) for i in (1, 2)]  # type: ignore[union-attr]  # get_attr nodes
        name = f"if_{number}"
        module.add_submodule(name, _scripted(node, bodies, entered))
        with module.graph.inserting_before(node):
            operands = (node.args[0], *node.args[3:])
            tensors = [module.graph.call_function(tensor_of, (a,)) for a in operands]
            called = module.graph.call_module(name, tuple(tensors))
        node.replace_all_uses_with(called)
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()


def _scripted(node: fx.Node, bodies: list[Any], entered: tuple[list[Any], list[Any]]) -> nn.Module:
    """Return a module that chooses one of two bodies when it runs."""
    branches: list[Any] = []
    code: list[str] = []
    count = len((*entered[0], *entered[1])[0])
    names = ", ".join(f"a{i}" for i in range(count)) or "torch.zeros([1], device=condition.device)"
    for body, own, others in ((bodies[0], *entered), (bodies[1], *reversed(entered))):
        try:
            branches.append(_traced_body(body, own or others))
            field = ("then_branch", "else_branch")[len(code)]
            code.append(f"return self.{field}({names})")
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            if own:
                raise refused("TorchScript", error) from error
            # The samples do not enter this branch and do not fit it: the file says so there.
            branches.append(nn.Identity())
            text = f"no sample entered this branch of {node.meta.get('onnx_node')!s} when traced"
            code.append(f"raise RuntimeError({text!r})")
    chosen = _JIT.script(_Branches(*branches))
    parameters = "".join(f", a{i}: Tensor" for i in range(count))
    chosen.define(
        f"def forward(self, condition: Tensor{parameters}):\n"
        f"    if bool(condition):\n"
        f"        {code[0]}\n"
        f"    else:\n"
        f"        {code[1]}\n"
    )
    return chosen  # type: ignore[no-any-return]  # a ScriptModule is a module


def _traced_body(body: fx.GraphModule, samples: list[tuple[Tensor, ...]]) -> Any:
    # torch traces no function of nothing: a body without operands gets one it does not read.
    _script_branches(body, samples)
    if samples[0]:
        return _traced(body, samples[0])
    return _traced(_Alone(body), (torch.zeros([1]),))


def _traced(module: nn.Module, sample: tuple[Any, ...]) -> Any:
    traced = _JIT.trace(module, sample, check_trace=False)
    follow_inputs(traced.graph)
    return traced


class _Branches(nn.Module):
    """Two traced bodies; TorchScript code that chooses is added to it."""

    def __init__(self, then_branch: nn.Module, else_branch: nn.Module) -> None:
        super().__init__()
        self.then_branch = then_branch
        self.else_branch = else_branch


class _Alone(nn.Module):
    """A body without inputs, as a module with one that it does not read."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, unread: Tensor) -> Any:
        """Run the body."""
        return self.body()
