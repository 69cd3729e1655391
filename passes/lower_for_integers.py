"""Operators without an integer kernel on a device become others that have one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ir.constants import Array, array_of
from graphopt.ir.op_facts import is_inference_batch_norm
from graphopt.ir.program import dims_of, is_onnx, tag
from graphopt.passes._edit import Edit
from graphopt.pipeline.base import Pass, PassResult


@dataclass(frozen=True)
class LowerForIntegers(Pass):
    """Write operators that a device lacks in products, sums and clamps, which it has.

    Fires when:
        1. ``BatchNormalization`` of an inference, with constant parameters: a product and a sum.
        2. ``Div`` by a constant: a product with its reciprocal.
        3. ``HardSigmoid``: a product, a sum and a ``Clip``; ``HardSwish``: these and a product.
        4. ``Reciprocal``: ``Div`` of one, where ``operators`` names that.

    Leaves alone:
        1. ``parameters-not-constant``: the device would have to compute them.
        2. ``no-operator``: the device lacks what it would become, too.
        3. ``type-not-float32``: only 32-bit floats are quantized.

    Preserves:
        Outputs within rounding; the new constants are computed in double precision.

    Options:
        operators: Operators that the device has; these are left as they are.

    Example:
        ``y = Div (x, c)`` with ``float c = {4}`` becomes ``y = Mul (x, y_factor)`` with 0.25.
    """

    name: ClassVar[str] = "lower-for-integers"
    runs_after: ClassVar[tuple[str, ...]] = ("fold-batch-norm", "raise-opset")
    preserves_bits: ClassVar[bool] = False

    operators: tuple[str, ...] = ("Add", "Clip", "Mul")

    def call(self, model: ir.Model) -> PassResult:
        """Lower the operators of the main graph of ``model`` that are not in ``operators``."""
        edit = Edit(self, model)
        known = frozenset(self.operators)
        for node in model.graph:
            if not is_onnx(node, *_FORMS) or node.op_type in known:
                continue
            needs, write = _FORMS[node.op_type]
            source = node.inputs[0]
            if source is None or source.dtype is not ir.DataType.FLOAT:
                edit.skip("type-not-float32", node)
            elif not known.issuperset(needs):
                edit.skip("no-operator", node, ", ".join(sorted(set(needs) - known)))
            elif not write(_Chain(edit, node), node):
                edit.skip("parameters-not-constant", node)
        return edit.result()


class _Chain:
    """Nodes that take the place of one node; the last makes its result."""

    def __init__(self, edit: Edit, node: ir.Node) -> None:
        self.edit = edit
        self.node = node
        assert node.inputs[0] is not None, "the caller looked"
        self.source: ir.Value = node.inputs[0]

    def constant(self, what: str, array: Array) -> ir.Value:
        """Return a constant of 32-bit floats."""
        name = f"{self.node.outputs[0].name}_{what}"
        return self.edit.constant(name, ir.Tensor(array.astype(np.float32)))

    def then(self, op_type: str, *inputs: ir.Value) -> ir.Value:
        """Return the result of a node in front of the one that is replaced."""
        graph, old = self.node.graph, self.node.outputs[0]
        assert graph is not None, "the node is in a graph"
        new = ir.Node("", op_type, inputs, num_outputs=1)
        new.name = self.edit.names.fresh_node(f"{self.node.name}_{op_type}")
        value = new.outputs[0]
        value.name = self.edit.names.fresh_value(f"{old.name}_{op_type}")
        value.type, value.shape = old.type, old.shape
        graph.insert_before(self.node, [tag(new, self.edit.pass_name, [self.node])])
        return value

    def end(self, op_type: str, *inputs: ir.Value) -> bool:
        """Let a node make the result; drop the old one, and the constants that only it read."""
        old = [value for value in self.node.inputs if value is not None and value.is_initializer()]
        self.edit.replace([self.node], op_type, inputs, [])
        for value in old:
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                self.edit.model.graph.initializers.pop(value.name or "", None)
                self.edit.names.release_value(value.name or "")
        self.edit.rewrites += 1
        return True


def _batch_norm(chain: _Chain, node: ir.Node) -> bool:
    dims = dims_of(chain.source)
    scale, shift, mean, variance = (array_of(value) for value in node.inputs[1:5])
    if dims is None or len(dims) < 2 or not is_inference_batch_norm(node):
        return False
    if scale is None or shift is None or mean is None or variance is None:
        return False
    epsilon = node.attributes.get("epsilon")
    # The default of ONNX is the 32-bit number nearest to 1e-5.
    wide = variance.astype(np.float64) + float(
        np.float32(1e-5 if epsilon is None else epsilon.as_float())
    )
    factor = scale / np.sqrt(wide)
    shape = (-1, *(1 for _ in dims[2:]))
    product = chain.then("Mul", chain.source, chain.constant("factor", factor.reshape(shape)))
    rest = (shift - mean * factor).reshape(shape)
    return chain.end("Add", product, chain.constant("shift", rest))


def _div(chain: _Chain, node: ir.Node) -> bool:
    divisor = array_of(node.inputs[1], most_bytes=1 << 20)
    if divisor is None or not divisor.all():
        return False
    factor = chain.constant("factor", 1 / divisor.astype(np.float64))
    return chain.end("Mul", chain.source, factor)


def _hard_sigmoid(chain: _Chain, node: ir.Node) -> bool:
    alpha, beta = (node.attributes.get(name) for name in ("alpha", "beta"))
    slope = 0.2 if alpha is None else alpha.as_float()
    middle = 0.5 if beta is None else beta.as_float()
    return chain.end("Clip", *_ramp(chain, slope, middle))


def _hard_swish(chain: _Chain, node: ir.Node) -> bool:
    gate = chain.then("Clip", *_ramp(chain, 1 / 6, 0.5))
    return chain.end("Mul", chain.source, gate)


def _ramp(chain: _Chain, slope: float, middle: float) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Return what is clamped, and its bounds 0 and 1."""
    product = chain.then("Mul", chain.source, chain.constant("slope", np.array(slope)))
    moved = chain.then("Add", product, chain.constant("middle", np.array(middle)))
    return moved, chain.constant("low", np.array(0.0)), chain.constant("high", np.array(1.0))


def _reciprocal(chain: _Chain, node: ir.Node) -> bool:
    return chain.end("Div", chain.constant("one", np.array(1.0)), chain.source)


# Operator -> what its other form needs, and what writes that.
_FORMS: dict[str, tuple[tuple[str, ...], Callable[[_Chain, ir.Node], bool]]] = {
    "BatchNormalization": (("Add", "Mul"), _batch_norm),
    "Div": (("Mul",), _div),
    "HardSigmoid": (("Add", "Clip", "Mul"), _hard_sigmoid),
    "HardSwish": (("Add", "Clip", "Mul"), _hard_swish),
    "Reciprocal": (("Div",), _reciprocal),
}
