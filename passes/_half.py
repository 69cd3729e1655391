"""Which nodes compute in half precision: the decision of ``convert-to-half``, before any edit.

A node is *half* when it computes in half precision, *float* when it stays at 32 bits; one without
32-bit floats, a ``Cast`` and a ``Constant`` are neither. A node that holds graphs (``If``,
``Loop``, ``Scan``) is half when the values at the border of its bodies are; what is inside of a
float one is float as a whole.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import onnx_ir as ir

from graphopt.ir.constants import constant_of
from graphopt.ir.half_facts import (
    CONTROL_FLOW,
    counting_nodes,
    has_half_form,
    is_float,
    keeps_input,
    keeps_output,
    mask_values,
    reads_any_type,
    rounds_nothing,
)
from graphopt.ir.program import FROM_NODES_KEY, bodies_of, graphs_of, is_onnx, opset_of
from graphopt.quantization.half_precision import HalfFacts

Reason = tuple[str, str]


@dataclass
class Decision:
    """Which nodes are half, and why the others are not.

    Attributes:
        dtype: Float16 or bfloat16.
        half: The half nodes, in order.
        reasons: Float node -> (reason code, detail).
        masks: Values that only say which elements ``Softmax`` leaves out.
        holders: Body -> the node that holds it.
    """

    dtype: ir.DataType
    half: dict[ir.Node, None] = field(default_factory=dict)
    reasons: dict[ir.Node, Reason] = field(default_factory=dict)
    masks: set[ir.Value] = field(default_factory=set)
    holders: dict[ir.Graph, ir.Node] = field(default_factory=dict)

    def takes_half(self, node: ir.Node, index: int) -> bool:
        """Return whether ``node`` reads input ``index`` in half precision."""
        return node in self.half and not keeps_input(node, index)

    def is_made_half(self, value: ir.Value) -> bool:
        """Return whether the node or the body that makes ``value`` makes it in half precision."""
        node = value.producer()
        if node is not None:
            return node in self.half and not keeps_output(node, value.index() or 0)
        holder = None if value.graph is None else self.holders.get(value.graph)
        return holder in self.half and not value.is_initializer()


def decide(
    model: ir.Model, dtype: ir.DataType, keep: Sequence[str], facts: HalfFacts, *, keep_io: bool
) -> Decision:
    """Return which nodes of ``model`` compute in ``dtype``."""
    decision = Decision(dtype)
    opset = opset_of(model)
    kept = Kept(keep)
    decision.masks = mask_values(model.graph)
    counting = counting_nodes(model)
    for graph in graphs_of(model.graph):
        holder = decision.holders.get(graph)
        for node in graph:
            decision.holders.update((body, node) for body in bodies_of(node))
            if reads_any_type(node) or is_onnx(node, "Constant") or not _has_floats(node):
                # What holds bodies without floats at their border decides about them all the same.
                if bodies_of(node) and (holder in decision.reasons or node in kept):
                    decision.reasons[node] = ("kept", "") if node in kept else ("float-body", "")
                continue
            reason = _reason(node, opset, decision, kept, facts)
            if reason is None and node in counting:
                reason = "counts", ""
            if holder in decision.reasons:
                reason = "float-body", ""
            if reason is None:
                decision.half[node] = None
            else:
                decision.reasons[node] = reason
    _leave_moves(model, decision, keep_io=keep_io)
    return decision


class Kept:
    """The nodes that the user keeps at 32 bits.

    Args:
        entries: Names of nodes, of nodes that a pass rewrote into them, operators, or globs.
    """

    def __init__(self, entries: Sequence[str]) -> None:
        self._names = frozenset(entries)
        self._globs = [entry for entry in entries if any(sign in entry for sign in "*?[")]

    def __contains__(self, node: ir.Node) -> bool:
        return self.entry_for(node) is not None

    def entry_for(self, node: ir.Node) -> str | None:
        """Return the entry that names ``node``."""
        origins: str = node.metadata_props.get(FROM_NODES_KEY, "")
        names: list[str] = [node.name or "", node.op_type, *origins.split(",")]
        for name in filter(None, names):
            if name in self._names:
                return name
            for glob in self._globs:
                if fnmatchcase(name, glob):
                    return glob
        return None


def _reason(
    node: ir.Node, opset: int, decision: Decision, kept: Kept, facts: HalfFacts
) -> Reason | None:
    """Return why ``node`` itself stays float."""
    entry = kept.entry_for(node)
    if entry is not None:
        return "kept", entry
    if not has_half_form(node, node.version or opset, decision.dtype):
        return "no-half-form", f"{node.op_type} of opset {node.version or opset}"
    if not _is_typed(node):
        return "type-unknown", ""
    for value, tensor in _constants_of(node):
        scan = facts.scan(tensor)
        if not scan.fits(decision.dtype, mask=value in decision.masks):
            return "out-of-range", f"{value.name}: {scan.low:g} to {scan.high:g}"
    return None


def _constants_of(node: ir.Node) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    """Yield the 32-bit constants that ``node`` reads or holds in its half form."""
    read = [(i, v) for i, v in enumerate(node.inputs) if not keeps_input(node, i)]
    outputs = [value for body in bodies_of(node) for value in body.outputs]
    for value in (*(v for _, v in read), *outputs):
        tensor = constant_of(value) if is_float(value) else None
        if value is not None and tensor is not None:
            yield value, tensor
    attribute = node.attributes.get("value") if is_onnx(node, "ConstantOfShape") else None
    if attribute is not None:
        yield node.outputs[0], attribute.as_tensor()


def _has_floats(node: ir.Node) -> bool:
    """Return whether the half form of ``node`` differs from it, or some type is not known."""
    values = [v for i, v in enumerate(node.inputs) if not keeps_input(node, i)]
    values += [v for i, v in enumerate(node.outputs) if not keeps_output(node, i)]
    if is_onnx(node, *CONTROL_FLOW):
        values += [v for body in bodies_of(node) for v in (*body.inputs, *body.outputs)]
    return any(is_float(v) or (v is not None and v.type is None and v.name) for v in values)


def _is_typed(node: ir.Node) -> bool:
    """Return whether the types that must agree are known, and agree."""
    bodies = bodies_of(node)
    borders = [v for body in bodies for v in (*body.inputs, *body.outputs)]
    named = [v for v in (*node.inputs, *node.outputs) if v is not None and (v.name or v.uses())]
    if any(value.type is None for value in (*named, *borders)):
        return False
    if is_onnx(node, "If"):
        sides = [[is_float(v) for v in body.outputs] for body in bodies]
        return all(side == [is_float(v) for v in node.outputs] for side in sides)
    return True


def _leave_moves(model: ir.Model, decision: Decision, *, keep_io: bool) -> None:
    """Make nodes that round nothing, or make no floats, float where they stand between float ones.

    They are looked at in the groups that they form: a chain of them is converted as a whole.
    """
    seen: set[ir.Node] = set()
    for first in list(decision.half):
        if first in seen or not _is_move(first):
            continue
        group, before, after = [first], False, False
        seen.add(first)
        for node in group:
            makers = [v.producer() for v in node.inputs if v is not None and is_float(v)]
            neighbours = [maker for maker in makers if maker is not None]
            for value in node.inputs:
                if is_float(value) and value is not None and constant_of(value) is None:
                    before |= _is_float_source(value, decision, keep_io=keep_io)
            after |= not any(is_float(v) for v in node.outputs)
            for value in node.outputs:
                after |= _has_float_reader(value, decision, model, keep_io=keep_io)
                neighbours += [user for user, _ in value.uses()] if is_float(value) else []
            for other in neighbours:
                if other in decision.half and other not in seen and _is_move(other):
                    seen.add(other)
                    group.append(other)
        if before and after:
            for node in group:
                del decision.half[node]
                decision.reasons[node] = "float-neighbours", ""


def _is_move(node: ir.Node) -> bool:
    if bodies_of(node):
        return False
    return rounds_nothing(node) or not any(is_float(v) for v in node.outputs)


def _is_float_source(value: ir.Value, decision: Decision, *, keep_io: bool) -> bool:
    node = value.producer()
    if node is None:
        holder = None if value.graph is None else decision.holders.get(value.graph)
        return keep_io if holder is None else holder in decision.reasons
    return node in decision.reasons


def _has_float_reader(
    value: ir.Value, decision: Decision, model: ir.Model, *, keep_io: bool
) -> bool:
    if not is_float(value):
        return False
    if value.is_graph_output():
        holder = None if value.graph is None else decision.holders.get(value.graph)
        if keep_io if holder is None else holder in decision.reasons:
            return True
    return any(user in decision.reasons for user, _ in value.uses())
