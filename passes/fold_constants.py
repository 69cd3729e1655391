"""Nodes that read only constants become constants, within a budget of bytes."""

from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.errors import InvariantError
from graphopt.ir.constants import constant_of, read_array, static_dims
from graphopt.ir.program import bodies_of, graphs_of
from graphopt.passes._constant_cones import neutral_cones
from graphopt.passes._edit import Edit
from graphopt.passes._evaluate import NUMBERS, evaluate, is_evaluable, is_rounded
from graphopt.passes._evaluate_moves import NotComputableError
from graphopt.passes._inline_if import inline_if, live_branch
from graphopt.passes._result_size import most_elements
from graphopt.pipeline.base import Pass, PassResult

_LAZY_BYTES = 1 << 16
_ACCOUNT_KEY = "graphopt.fold-constants"


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Compute nodes whose inputs are constants, and take the live branch of a decided ``If``.

    Fires when:
        1. All inputs of a node are constants, and its result replaces as many bytes, or is small,
           or stays within the budget. Large results are computed when the file is written.
        2. Several such nodes together replace as many bytes as their results take: a weight that is
           cut up and joined in another order.
        3. The condition of an ``If`` is constant: the nodes of that branch take its place.

    Leaves alone:
        1. ``operator-not-evaluated``: random operators, ``QuantizeLinear`` and
           ``DequantizeLinear`` (weights are meant to stay small), operators without a rule.
        2. ``not-computable``: the result is not defined, as in integer division by zero.
        3. ``input-too-large``: an input has more than ``max_input_bytes``.
        4. ``output-too-large``: the result grows the model by more than ``max_output_bytes``.
        5. ``over-budget``: all results together grow the model by more than ``max_growth``.
        6. ``widens-weights``: a ``Cast`` to a wider type; narrow weights stay narrow.
        7. ``rounds``: with ``exact``, a result that runtimes round differently.
        8. ``graph-output``: the result is an output of its graph.

    Preserves:
        Values, exactly or to the last place of a correctly rounded result; nothing is computed
        before its size is known, so a small file cannot make a large constant.

    Options:
        max_input_bytes: Larger constants are not read.
        max_output_bytes: Largest growth of the model by one node.
        max_growth: Largest growth of the model by all nodes, as a fraction of its weights.
        small_bytes: A result of up to this many bytes is always computed.
        exact: Leave functions alone that libraries round differently.

    Example:
        ``a = Add (c, c)`` with ``<float[2] c = {1, 2}>`` becomes ``<float[2] a = {2, 4}>``.
    """

    name: ClassVar[str] = "fold-constants"
    runs_after: ClassVar[tuple[str, ...]] = ("lift-constants",)
    preserves_bits: ClassVar[bool] = False

    max_input_bytes: int = 1 << 30
    max_output_bytes: int = 1 << 20
    max_growth: float = 0.05
    small_bytes: int = 1024
    exact: bool = False

    def call(self, model: ir.Model) -> PassResult:
        """Fold the constants of ``model``."""
        # The budget is one for the life of the model: a second run does not get another.
        account = model.meta.setdefault(_ACCOUNT_KEY, _Account(_weight_bytes(model)))
        run = _Run(self, Edit(self, model), account)
        run.cones = neutral_cones(model.graph, run.is_computable, self.small_bytes)
        for graph in graphs_of(model.graph):
            pending = deque(graph)
            while pending:
                node = pending.popleft()
                branch = live_branch(node)
                if branch is None:
                    run.fold(node)
                else:
                    pending.extendleft(reversed(inline_if(run.edit, node, branch)))
                    run.edit.rewrites += 1
        return run.edit.result()


@dataclass
class _Account:
    """Bytes of the weights before the first run, and by how much results grew them since."""

    weight_bytes: int
    growth: int = 0


def _weight_bytes(model: ir.Model) -> int:
    weights = [v for g in graphs_of(model.graph) for v in g.initializers.values()]
    return sum(v.const_value.nbytes for v in weights if v.const_value is not None)


@dataclass
class _Run:
    options: FoldConstants
    edit: Edit
    account: _Account
    cones: frozenset[ir.Node] = frozenset()

    def is_computable(self, node: ir.Node) -> bool:
        """Say whether nothing but bytes speaks against computing ``node``."""
        types = [v.dtype for v in (*node.inputs, *node.outputs) if v is not None]
        if not is_evaluable(node) or any(t not in NUMBERS for t in types):
            return False
        return node.op_type != "Cast" and not (self.options.exact and is_rounded(node))

    def fold(self, node: ir.Node) -> None:
        """Replace ``node`` by constants where it may be."""
        if not node.inputs or bodies_of(node):
            return
        tensors = [constant_of(value) for value in node.inputs]
        if any(v is not None and t is None for v, t in zip(node.inputs, tensors, strict=True)):
            return
        read = [tensor for tensor in tensors if tensor is not None]
        freed = _freed_bytes(node, self.options.small_bytes)
        reason, detail = self._refusal(node, read, freed)
        if not reason:
            try:
                results = _results(node, self._bytes(node) or 0)
            except NotComputableError as error:
                reason, detail = "not-computable", str(error)
        if reason:
            self.edit.skip(reason, node, detail)
            return
        made = sum(t.nbytes for t in results)
        self.account.growth += (made if made > self.options.small_bytes else 0) - freed
        for value, tensor in zip(node.outputs, results, strict=True):
            if value.name:
                self.edit.become_constant(value, tensor)
        self.edit.drop(node)
        self.edit.rewrites += 1

    def _refusal(self, node: ir.Node, read: list[ir.TensorProtocol], freed: int) -> tuple[str, str]:
        """Return why ``node`` is left alone, and details; empty when it may be computed."""
        options = self.options
        if not is_evaluable(node) or any(t.dtype not in NUMBERS for t in read):
            return "operator-not-evaluated", node.op_type
        if any(value.is_graph_output() for value in node.outputs):
            return "graph-output", ""
        largest = max((t.nbytes for t in read), default=0)
        if largest > options.max_input_bytes:
            return "input-too-large", f"{largest} bytes"
        count = self._bytes(node)
        if count is None:
            return "not-computable", "the size of the result is not known"
        if node.op_type == "Cast" and count > max(options.small_bytes, largest):
            return "widens-weights", f"{largest} to {count} bytes"
        if options.exact and is_rounded(node):
            return "rounds", node.op_type
        growth = count - freed
        if count <= options.small_bytes or growth <= 0 or node in self.cones:
            return "", ""
        if growth > options.max_output_bytes:
            return "output-too-large", f"{count} bytes"
        budget = int(self.account.weight_bytes * options.max_growth)
        if self.account.growth + growth > budget:
            return "over-budget", f"{self.account.growth + growth} bytes, budget {budget}"
        return "", ""

    def _bytes(self, node: ir.Node) -> int | None:
        count = most_elements(node)
        if count is None:
            return None
        dtype = _result_type(node)
        return (count * (64 if dtype is None else dtype.bitwidth) + 7) // 8


def _result_type(node: ir.Node) -> ir.DataType | None:
    if node.op_type == "Cast":
        return ir.DataType(node.attributes["to"].as_int())
    return node.outputs[0].dtype


def _freed_bytes(node: ir.Node, small_bytes: int) -> int:
    """Return the bytes of the constants that only ``node`` reads, which go when it goes.

    Small ones are not counted: they cost nothing when they are made either.
    """
    freed = 0
    for value in dict.fromkeys(v for v in node.inputs if v is not None):
        tensor = constant_of(value)
        if tensor is None or tensor.nbytes <= small_bytes or value.is_graph_output():
            continue
        if all(use.node is node for use in value.uses()):
            freed += tensor.nbytes
    return freed


def _results(node: ir.Node, count: int) -> list[ir.TensorProtocol]:
    """Return the outputs of ``node``: computed, or to be computed when somebody reads them."""
    tensors = [constant_of(value) for value in node.inputs]
    forms = [(static_dims(value), value.dtype) for value in node.outputs]
    if count <= _LAZY_BYTES or any(dims is None or dtype is None for dims, dtype in forms):
        arrays = evaluate(node, [None if t is None else read_array(t, np.array) for t in tensors])
        return [ir.Tensor(a, dtype=ir.DataType.from_numpy(a.dtype)) for a in arrays]
    # The node leaves the graph; its operator and attributes are all that is needed of it.
    attributes = list(node.attributes.values())
    form = ir.Node("", node.op_type, [], attributes, num_outputs=len(forms))
    results: list[ir.TensorProtocol] = []
    for index, (dims, dtype) in enumerate(forms):
        assert dims is not None, "checked above"
        assert dtype is not None, "checked above"
        compute = partial(_compute_later, form, tensors, index, dtype, dims)
        results.append(ir.LazyTensor(compute, dtype, ir.Shape(dims)))
    return results


def _compute_later(
    form: ir.Node,
    tensors: list[ir.TensorProtocol | None],
    index: int,
    dtype: ir.DataType,
    dims: tuple[int, ...],
) -> ir.TensorProtocol:
    arrays = evaluate(form, [None if t is None else read_array(t, np.array) for t in tensors])
    array = arrays[index]
    if array.shape != dims or ir.DataType.from_numpy(array.dtype) is not dtype:
        raise InvariantError(
            "constant-not-as-inferred",
            f"{form.op_type} of constants gives {array.dtype} of {array.shape}, "
            f"expected {dtype} of {dims}",
            hint="this is a bug of fold-constants; leave the pass out and report the model",
        )
    return ir.Tensor(array, dtype=dtype)
