"""Branches of an ``If`` whose condition depends on inputs: what they read, and whether they run.

In: a lowered module, samples. Out: what every ``If`` read on them; or the module with branches that
``torch.export`` can capture.

Note [branches at all sizes]: ``torch.export`` captures both branches of an ``If`` at the same
sizes. At fixed sizes one of them may not compute, and becomes one that refuses: onnxruntime, too,
refuses it when the condition chooses it. At open sizes each branch is captured for the sizes it is
made for: an ``If`` inside it that asks for sizes takes the branch that samples took, and the file
checks that when it runs; a branch that no sample took, and that cannot compute at their sizes,
refuses.
"""

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses import fake_tensor

from graphopt.backends.torch_lowering import NamingInterpreter
from graphopt.backends.torch_ops import control
from graphopt.backends.torch_ops.small import tensor_of
from graphopt.errors import UnsupportedError

_log = logging.getLogger(__name__)
_REFUSALS = (RuntimeError, ValueError, IndexError, TypeError, UnsupportedError)
# What fake tensors cannot do, which says nothing about sizes.
_UNKNOWN = (
    fake_tensor.DataDependentOutputException,
    fake_tensor.DynamicOutputShapeException,
    fake_tensor.UnsupportedFakeTensorException,
    NotImplementedError,
)

# By ``If``: what it read, for each time that it entered the first branch, and the second.
Seen = dict[fx.Node, tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]]


class BranchRecorder(NamingInterpreter):
    """Notes what every ``If`` reads on a sample, and which branch it takes.

    Args:
        module: A lowered module.
        seen: Where it is noted.
        convert: Applied to every value that is noted.
    """

    def __init__(
        self, module: fx.GraphModule, seen: Seen, convert: Callable[[Any], Any] = tensor_of
    ) -> None:
        super().__init__(module)
        self._seen = seen
        self._convert = convert

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        if n.target is control.if_:
            condition, _, _, *captures = self.fetch_args_kwargs_from_env(n)[0]
            taken = bool(tensor_of(condition))
            operands = tuple(self._convert(value) for value in captures)
            self._seen.setdefault(n, ([], []))[0 if taken else 1].append(operands)
        return super().run_node(n)


def refuse_impossible(module: fx.GraphModule, sample: tuple[Tensor, ...]) -> None:
    """Replace branches that cannot compute at the sizes of ``sample``, which are all there are."""
    if not any(node.target is control.if_ for node in module.graph.nodes):
        return
    seen: Seen = {}
    BranchRecorder(module, seen, lambda value: value).run(*sample)
    for node, entered in seen.items():
        for own, others in ((0, 1), (1, 0)):
            if entered[own] or not entered[others]:
                continue
            operands = entered[others][0]
            bodies: list[Any] = [module.get_submodule(str(node.args[i].target)) for i in (1, 2)]  # type: ignore[union-attr]  # get_attr nodes
            if _cannot_run(bodies[own], operands):
                results = NamingInterpreter(bodies[others]).run(*operands)
                name = str(node.args[1 + own].target)  # type: ignore[union-attr]  # get_attr nodes
                module.set_submodule(name, _Refusal(node.meta.get("onnx_node", ""), results))


def take_sampled(module: fx.GraphModule, samples: Sequence[tuple[Tensor, ...]]) -> bool:
    """Make branches capturable at open sizes; see Note [branches at all sizes].

    Returns:
        Whether the module has branches that values of inputs choose.
    """
    seen: Seen = {}
    for sample in samples:
        BranchRecorder(module, seen, lambda value: value).run(*sample)
    for node, entered in seen.items():
        bodies: list[Any] = [module.get_submodule(str(node.args[i].target)) for i in (1, 2)]  # type: ignore[union-attr]  # get_attr nodes
        for own, others in ((0, 1), (1, 0)):
            runs = entered[own] or entered[others]
            if entered[own] or not _cannot_run(bodies[own], runs[0]):
                _assume(bodies[own], runs)
            else:
                name = str(node.args[1 + own].target)  # type: ignore[union-attr]  # get_attr nodes
                named = f"node '{node.meta.get('onnx_node', '')}'"
                _log.warning("a branch of %s refuses in the .pt2 file: no sample took it", named)
                text = f"{named}: no sample took this branch"
                module.set_submodule(name, _refusing(bodies[others], text))
    return bool(seen)


def _refusing(body: fx.GraphModule, text: str) -> fx.GraphModule:
    """Return a branch that raises when it runs, with results like those of ``body``."""
    made = copy.deepcopy(body)
    first = next(node for node in made.graph.nodes if node.op != "placeholder")
    with made.graph.inserting_before(first):
        made.graph.call_function(_raise, (text,))
    made.recompile()
    return made


def _raise(text: str) -> None:
    torch._assert_async(torch.full([], False), text)


def _assume(body: Any, runs: Sequence[tuple[Any, ...]]) -> None:
    """Have every ``If`` inside a branch take what it took in ``runs``, where sizes decide it."""
    pending = [(body, list(runs))]
    while pending:
        module, operands = pending.pop()
        seen: Seen = {}
        for values in operands:
            BranchRecorder(module, seen, lambda value: value).run(*values)
        for node, entered in seen.items():
            if not all(entered):
                node.kwargs = {**node.kwargs, "assumed": bool(entered[0])}
            for index, inner in enumerate(entered):
                if inner:
                    name = str(node.args[1 + index].target)  # type: ignore[union-attr]  # get_attr nodes
                    pending.append((module.get_submodule(name), inner))
        if seen:
            module.recompile()


def _cannot_run(body: Any, operands: tuple[Any, ...]) -> bool:
    """Return whether sizes alone keep ``body`` from running.

    It fails on the values at hand, and on tensors that have sizes but no values.
    """
    try:
        NamingInterpreter(body).run(*operands)
    except _REFUSALS:
        pass
    else:
        return False
    mode = fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)
    # It would write the refusal that is looked for to stderr.
    log = logging.getLogger(fake_tensor.__name__)
    silent, log.disabled = log.disabled, True
    fakes = [mode.from_tensor(v) if isinstance(v, Tensor) else v for v in operands]
    try:
        with mode:
            NamingInterpreter(body).run(*fakes)
    except _UNKNOWN:
        return False
    except _REFUSALS:
        return True
    finally:
        log.disabled = silent
    return False


class _Refusal(nn.Module):
    """A branch that raises when it runs."""

    def __init__(self, name: str, results: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.text = f"node '{name}': the branch of this condition does not take these sizes"
        self.sizes = [(list(x.shape), x.dtype) for x in results]

    def forward(self, *captures: Any) -> tuple[Tensor, ...]:
        """Raise; the results say sizes and types only."""
        _raise(self.text)
        return tuple(torch.zeros(size, dtype=kind) for size, kind in self.sizes)
