"""Nodes that hand on their input unchanged go away; neighbours that undo each other merge.

Works on a queue: a node is looked at once, and again when the last other reader of its input is
gone. Every rewrite removes a node, so the work is linear.
"""

from collections import Counter, deque
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.ir.constants import axes_of
from graphopt.ir.op_facts import views
from graphopt.ir.program import bounds_in, dims_of, is_onnx
from graphopt.ir.rewrite import nodes_of, sole_user
from graphopt.passes._edit import Edit
from graphopt.passes._exact import holds_all, neutral_operand, same_type_and_dims
from graphopt.passes._reshape import reshape_target, target_tensor
from graphopt.pipeline.base import Pass, PassResult

_RESHAPES = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class EliminateIdentity(Pass):
    """Remove nodes whose output is their input bit by bit, and merge neighbours that rearrange.

    Fires when:
        1. The output is the same bytes with the same type and dimensions: ``Identity``, a
           ``Dropout`` that does not train, a ``Cast`` to the same type, and every view
           (``Reshape``, ``Transpose``, ``Pad``, ``Slice``, ``Expand``, ``Concat`` of one, ...)
           that changes no dimension.
        2. A view restores the dimensions that the view before it changed, and a ``Cast`` the type
           that a widening ``Cast`` before it changed.
        3. Two ``Transpose`` in a row: one with the combined permutation, or none.
        4. Two of ``Reshape``, ``Flatten``, ``Squeeze``, ``Unsqueeze`` in a row: one ``Reshape``.
        5. An operand that changes no bit: ``x * 1``, ``x / 1``, ``x - 0``, integer ``x + 0``.

    Leaves alone:
        1. ``graph-output``: the result has a name to keep, and so has the input.
        2. ``mask-used``: the second output of a ``Dropout`` is read.
        3. ``used-elsewhere``: the first of two neighbours has other readers.
        4. ``target-not-expressible``: no constant target gives the wanted dimensions.
        5. ``signed-zero``: ``x + 0.0`` turns -0.0 into 0.0, so it is no identity.

    Preserves:
        Every bit of every output; names and types of graph inputs and outputs.

    Options:
        None.

    Example:
        Readers of ``y`` in ``a = Transpose <perm = [1, 0]> (x)``, ``y = Transpose <perm = [1, 0]>
        (a)`` read ``x``.
    """

    name: ClassVar[str] = "eliminate-identity"
    runs_after: ClassVar[tuple[str, ...]] = ("lift-constants",)

    def call(self, model: ir.Model) -> PassResult:
        """Remove the identities of ``model``."""
        run = _Run(Edit(self, model))
        run.queue.extend(nodes_of(model))
        while run.queue:
            node = run.queue.popleft()
            # A dropped node has no graph any more.
            if node.graph is not None and node.outputs and node.inputs:
                run.visit(node)
        return run.edit.result()


class _Run:
    def __init__(self, edit: Edit) -> None:
        self.edit = edit
        self.queue: deque[ir.Node] = deque()
        # Readers that must go before a value can have only one: counting them takes time.
        self.too_many: Counter[ir.Value] = Counter()

    def visit(self, node: ir.Node) -> None:
        source = node.inputs[0]
        before = None if source is None else source.producer()
        if source is not None and _copies_input(node, source):
            self._bypass(node, source)
        elif before is not None and before.inputs and _undoes(node, before):
            self._bypass(node, before.inputs[0])
        elif before is not None and is_onnx(node, "Transpose") and is_onnx(before, "Transpose"):
            self._merge_transposes(before, node)
        elif before is not None and is_onnx(node, *_RESHAPES) and is_onnx(before, *_RESHAPES):
            self._merge_reshapes(before, node)
        else:
            self._neutral_operand(node)

    def _bypass(self, node: ir.Node, value: ir.Value | None) -> None:
        assert value is not None, "the caller checked the input"
        if any(extra.uses() or extra.is_graph_output() for extra in node.outputs[1:]):
            self.edit.skip("mask-used", node)
        elif not self.edit.redirect(node.outputs[0], value):
            self.edit.skip("graph-output", node)
        else:
            self._drop(node)
            self._look_again(value)

    def _drop(self, node: ir.Node) -> None:
        read = [value for value in node.inputs if value is not None]
        self.edit.drop(node)
        self.edit.rewrites += 1
        for value in read:
            self._look_again(value)

    def _look_again(self, value: ir.Value) -> None:
        self.too_many[value] -= 1
        user = self._sole_reader(value)
        if user is not None:
            self.queue.append(user)

    def _sole_reader(self, value: ir.Value) -> ir.Node | None:
        if self.too_many[value] > 0:
            return None
        user = sole_user(value)
        if user is None:
            self.too_many[value] = len(value.uses()) - 1
        return user

    def _merge_transposes(self, first: ir.Node, second: ir.Node) -> None:
        orders = [_permutation(first), _permutation(second)]
        source = first.inputs[0]
        if orders[0] is None or orders[1] is None or source is None:
            return
        combined = [orders[0][axis] for axis in orders[1]]
        if combined == sorted(combined) and self.edit.can_redirect(second.outputs[0], source):
            self._bypass(second, source)
        elif self._sole_reader(first.outputs[0]) is None:
            self.edit.skip("used-elsewhere", second)
        else:
            self._merge(first, second, [source], [ir.AttrInt64s("perm", combined)], "Transpose")

    def _merge_reshapes(self, first: ir.Node, second: ir.Node) -> None:
        source, result = first.inputs[0], second.outputs[0]
        before, after = (None if source is None else dims_of(source)), dims_of(result)
        if source is None or before is None or after is None:
            return
        if self._sole_reader(first.outputs[0]) is None:
            self.edit.skip("used-elsewhere", second)
            return
        target = reshape_target(before, after, bounds_in(self.edit.model))
        if target is None:
            self.edit.skip("target-not-expressible", second)
            return
        shape = self.edit.constant(f"{result.name}_shape", target_tensor(target))
        self._merge(first, second, [source, shape], [], "Reshape")

    def _merge(
        self,
        first: ir.Node,
        second: ir.Node,
        inputs: list[ir.Value],
        attributes: list[ir.Attr],
        op_type: str,
    ) -> None:
        merged = self.edit.replace([first, second], op_type, inputs, attributes)
        self.edit.rewrites += 1
        self.queue.append(merged)

    def _neutral_operand(self, node: ir.Node) -> None:
        if not is_onnx(node, "Add", "Div", "Mul", "Sub") or len(node.inputs) != 2:
            return
        places = (1, 0) if is_onnx(node, "Add", "Mul") else (1,)
        for place in places:
            kept = node.inputs[1 - place]
            if kept is None or not same_type_and_dims(kept, node.outputs[0]):
                continue
            verdict = neutral_operand(node.op_type, node.inputs[place])
            if verdict == "neutral":
                self._bypass(node, kept)
                return
            if verdict:
                self.edit.skip(verdict, node)


def _copies_input(node: ir.Node, source: ir.Value) -> bool:
    if is_onnx(node, "Identity"):
        return True
    if (0, 0) not in views(node):
        return False
    if is_onnx(node, "Cast", "CastLike", "Dropout", "Concat", "Sum", "Max", "Min", "Mean", "Split"):
        return True
    if is_onnx(node, "Transpose"):
        order = _permutation(node)
        if order is not None and order == sorted(order):
            return True
    return same_type_and_dims(source, node.outputs[0])


def _undoes(node: ir.Node, before: ir.Node) -> bool:
    """Return whether ``node`` gives back the input of ``before``."""
    source = before.inputs[0]
    if source is None or before.outputs[0] is not node.inputs[0]:
        return False
    if is_onnx(node, "Cast") and is_onnx(before, "Cast"):
        middle = before.outputs[0].dtype
        wanted = ir.DataType(node.attributes["to"].as_int())
        return source.dtype == wanted and middle is not None and holds_all(middle, wanted)
    if is_onnx(node, "Squeeze") and is_onnx(before, "Unsqueeze"):
        axes = axes_of(node, 1)
        if axes is not None and axes == axes_of(before, 1):
            return True
    if (0, 0) not in views(node) or (0, 0) not in views(before):
        return False
    return same_type_and_dims(source, node.outputs[0])


def _permutation(node: ir.Node) -> list[int] | None:
    attribute = node.attributes.get("perm")
    if attribute is not None:
        return list(attribute.as_ints())
    dims = None if node.inputs[0] is None else dims_of(node.inputs[0])
    return None if dims is None else list(range(len(dims)))[::-1]
