"""Which nodes compute in integers, and which values carry scale and zero point.

In: a model, the description of its values, the plan of the target. Out: a ``Placement``; nothing is
rewritten. Every step is linear in the graph. Branches of an ``If`` are looked at with the graph
around them: what a branch reads from there may be integer on both sides. What an ``If`` gives is
float, whichever branch gives it.

1. A ``Relu`` or ``Clip`` is absorbed into the node before it where saturation does the same.
2. Linear nodes with constant weights are integer. Other operators with integer kernels are where
   they stand between integers, so that none of them costs a conversion that nobody uses.
3. Values that only move share one scale: unions over ``move`` and ``join`` nodes.
4. Tables that only ``Gather`` and integer nodes read are stored as integers.
"""

import math
from collections.abc import Iterator, Mapping

import onnx_ir as ir

from graphopt.ir.constants import array_of, constant_of, static_dims
from graphopt.ir.program import is_onnx
from graphopt.quantization.bodies import Scope, observable_nodes, scopes_of
from graphopt.quantization.description import Description, Plan
from graphopt.quantization.full_integer import place_everything
from graphopt.quantization.placed import Placement
from graphopt.quantization.ranges import params_for
from graphopt.quantization.rule import Rule
from graphopt.quantization.rules import (
    FLOAT_SUM,
    INTEGER_MATMUL,
    TABLE,
    bias_after,
    clamp_bounds,
    is_table,
    rule_of,
    saturates,
    unsupported_form,
)
from graphopt.quantization.unions import Unions

# An input of a Concat whose range is narrower than this part of the common one keeps its own
# scale: sharing would cost it more than two of its eight bits.
_NARROW = 0.25


def place(
    model: ir.Model, description: Description, plan: Plan, keep_float: frozenset[str]
) -> Placement:
    """Return what is quantized in the main graph of ``model`` and in the branches in it.

    Args:
        model: The float model, nodes in order.
        description: Ranges of its values.
        plan: What the target asks.
        keep_float: Names of nodes that must stay float.

    Raises:
        UnsupportedError: the target computes nothing but integers, and a node has no such form.
    """
    if plan.full_integer:
        return place_everything(model, description, plan, keep_float)
    builder = _Builder(model, description, plan, keep_float)
    builder.find_candidates()
    builder.spread_forward()
    builder.pull_moves()
    builder.prune()
    builder.absorb_clamps()
    builder.choose_params()
    builder.choose_forms()
    builder.add_tables()
    return builder.placement


class _Builder:
    def __init__(
        self, model: ir.Model, description: Description, plan: Plan, keep_float: frozenset[str]
    ) -> None:
        self.scopes: dict[ir.Graph, Scope] = {}
        self.nodes: list[ir.Node] = []
        self.in_loops: list[tuple[ir.Node, ir.Node]] = []
        for scope in scopes_of(model):
            self.scopes[scope.graph] = scope
            if scope.loop is None:
                self.nodes += scope.graph
            else:
                self.in_loops += [(node, scope.loop) for node in scope.graph]
        self.description = description
        self.plan = plan
        self.keep_float = keep_float
        self.placement = Placement()
        self.candidates: dict[ir.Node, Rule] = {}
        self.clamps: dict[ir.Node, ir.Node] = {}
        self.biased: dict[ir.Node, ir.Node] = {}
        self.tables: dict[ir.Node, None] = {}

    def find_candidates(self) -> None:
        """Collect the nodes that have a rule and whose form, types and ranges allow it."""
        for node, loop in self.in_loops:
            if rule_of(node, self.plan.operators) is not None:
                self.placement.reasons[node] = ("body-of-loop", loop.name or loop.op_type)
        for node in self.nodes:
            rule = rule_of(node, self.plan.operators)
            if rule is None:
                continue
            if is_table(node):
                self._note_table(node)
                continue
            reason = self._refusal(node, rule)
            if reason[0]:
                self.placement.reasons[node] = reason
            elif rule.kind == "clamp":
                self._note_clamp(node)
            elif not self._note_bias(node):
                self.candidates[node] = rule

    def _note_table(self, node: ir.Node) -> None:
        if (node.name or "") in self.keep_float:
            self.placement.reasons[node] = ("kept-float", "")
        elif node.outputs[0].name in self.description.unseen:
            self.placement.reasons[node] = self._unknown(node, node.outputs[0])
        else:
            self.tables[node] = None

    def _note_bias(self, node: ir.Node) -> bool:
        """Remember an ``Add`` that the product before it takes the bias of."""
        if INTEGER_MATMUL not in self.plan.operators or not is_onnx(node, "Add"):
            return False
        for value in node.inputs:
            before = None if value is None else value.producer()
            if before is None or before not in self.candidates or not is_onnx(before, "MatMul"):
                continue
            found = bias_after(before)
            if found is not None and found[0] is node:
                self.biased[node] = before
                self.placement.take_bias(before, node)
                return True
        return False

    def _refusal(self, node: ir.Node, rule: Rule) -> tuple[str, str]:
        if (node.name or "") in self.keep_float:
            if rule.kind == "linear" and self._has_float_weights(node):
                self.placement.stored.append(node)
            return "kept-float", ""
        if any(_is_quantized(value) for value in node.inputs):
            return "already-quantized", ""
        values = [*self.data_inputs(node, rule), *node.outputs[:1]]
        if any(value.dtype is not ir.DataType.FLOAT for value in values):
            return "type-not-float32", ""
        if rule.kind == "linear":
            if not self._has_float_weights(node):
                return "weight-not-constant", ""
            weight = node.inputs[1]
            shape = None if weight is None else weight.shape
            if node.op_type == "MatMul" and (shape is None or len(shape) != 2):
                return "form-without-kernel", "weights of rank other than 2"
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            if bias is not None and (constant_of(bias) is None or not _is_vector(bias)):
                return "weight-not-constant", "bias"
        detail = unsupported_form(node)
        if detail:
            return "form-without-kernel", detail
        if rule.kind == "clamp":
            return "", ""
        unknown = [v for v in values if not self._has_range(v)]
        if unknown and (rule.fixed is None or unknown != [node.outputs[0]]):
            return self._unknown(node, unknown[0])
        return "", ""

    def _unknown(self, node: ir.Node, value: ir.Value) -> tuple[str, str]:
        """Return why nothing is known of ``value``, which ``node`` reads or makes."""
        name = value.name or ""
        if name not in self.description.unseen:
            return "not-observed", name
        assert node.graph is not None, "the node is in a graph"
        where = self.scopes[node.graph].where
        return "never-calibrated", f"{name}, the node is {where}" if where else name

    def _has_float_weights(self, node: ir.Node) -> bool:
        weight = constant_of(node.inputs[1])
        return weight is not None and weight.dtype is ir.DataType.FLOAT and len(weight.shape) > 1

    def _note_clamp(self, node: ir.Node) -> None:
        """Remember a clamp that the node before it could absorb."""
        source = node.inputs[0]
        before = None if source is None else source.producer()
        before = None if before is None else self.biased.get(before, before)
        if (
            before is None
            or source is None
            or before.graph is not node.graph
            or before not in self.candidates
            or not self.plan.quantize_results
            or self.plan.activation.symmetric
            or self.candidates[before].kind in ("move", "join")
            or source.is_graph_output()
            or len(source.uses()) != 1
            or not saturates(node, self.description.ranges.get(node.outputs[0].name or ""))
        ):
            return
        self.clamps[node] = before
        self.placement.absorb(node, before)

    def data_inputs(self, node: ir.Node, rule: Rule) -> list[ir.Value]:
        """Return the inputs that are quantized as activations."""
        places = range(len(node.inputs)) if rule.inputs is None else rule.inputs
        return [v for v in (node.inputs[i] for i in places) if v is not None]

    def _has_range(self, value: ir.Value) -> bool:
        return value.name in self.description.ranges or constant_of(value) is not None

    def results(self, node: ir.Node) -> list[ir.Value]:
        """Return the values that ``node`` makes once clamps are absorbed."""
        return [self.placement.result_of(node), *node.outputs[1:]]

    def spread_forward(self) -> None:
        """Make linear nodes integer, and what stands behind them where it pays."""
        made: set[ir.Value] = set()
        for node, rule in self.candidates.items():
            if rule.kind == "linear":
                ready = True
            else:
                inputs = [v for v in self.data_inputs(node, rule) if constant_of(v) is None]
                integers = [v in made for v in inputs]
                ready = all(integers) if rule.kind == "join" else any(integers)
                ready = ready and bool(integers)
            if ready:
                self.placement.integer[node] = rule
                made.update(self.results(node))

    def pull_moves(self) -> None:
        """Make a move of float values integer where all that reads it is integer."""
        for node, rule in reversed(self.candidates.items()):
            if rule.kind != "move" or node in self.placement.integer:
                continue
            users = [use.node for value in node.outputs for use in value.uses()]
            kept = any(value.is_graph_output() for value in node.outputs)
            if users and not kept and all(user in self.placement.integer for user in users):
                self.placement.integer[node] = rule
        ordered = [n for n in self.candidates if n in self.placement.integer]
        self.placement.integer = {n: self.candidates[n] for n in ordered}

    def prune(self) -> None:
        """Take back what leads to no linear node: its eight bits would serve nobody."""
        useful: set[ir.Node] = set()
        for node, rule in reversed(self.placement.integer.items()):
            readers = [use.node for value in self.results(node) for use in value.uses()]
            if rule.kind == "linear" or any(reader in useful for reader in readers):
                useful.add(node)
        for node, rule in list(self.placement.integer.items()):
            if node not in useful and rule.kind != "move":
                del self.placement.integer[node]
                self.placement.reasons[node] = ("no-integer-reader", "")
        made: set[ir.Value] = set()
        for node, rule in list(self.placement.integer.items()):
            data = self.data_inputs(node, rule)
            if rule.kind == "move" and node not in useful and data[0] not in made:
                del self.placement.integer[node]
                self.placement.reasons[node] = ("no-integer-reader", "")
                continue
            readers = [use.node for value in self.results(node) for use in value.uses()]
            # What can be given as float is not made integer only to be moved and widened.
            if not rule.float_output or any(reader in useful for reader in readers):
                made.update(self.results(node))

    def absorb_clamps(self) -> None:
        """Keep the absorptions into nodes that stayed integer."""
        kept = Placement()
        for add, node in self.biased.items():
            kept.take_bias(node, add)
        for clamp, before in self.clamps.items():
            rule = self.placement.integer.get(before)
            if rule is not None and self._quantizes_result(before, rule):
                kept.absorb(clamp, before)
        self.placement.absorb_as_in(kept)
        for node in self.candidates:
            if node not in self.placement.integer and node not in self.placement.reasons:
                self.placement.reasons[node] = ("float-neighbours", "")

    def choose_params(self) -> None:
        """Give every quantized value scale and zero point, shared where elements only move."""
        wanted: dict[ir.Value, tuple[float, float]] = {}
        groups = _Groups(self._limits())
        for node, rule in self.placement.integer.items():
            inputs, results = self.data_inputs(node, rule), self.results(node)
            for value in inputs:
                wanted.setdefault(value, self._range(value))
            if self._quantizes_result(node, rule):
                self.placement.after.update(results)
                for value in results:
                    wanted[value] = rule.fixed or self._range(value)
            if rule.kind == "move":
                for value in results:
                    groups.move(inputs[0], value)
        for value, known in wanted.items():
            groups.add(value, known)
        for node, rule in self.placement.integer.items():
            if rule.kind == "join" and self.placement.result_of(node) in wanted:
                for value in self.data_inputs(node, rule):
                    groups.join(value, self.placement.result_of(node))
        for value in wanted:
            self.placement.params[value] = params_for(*groups.range_of(value), self.plan.activation)

    def choose_forms(self) -> None:
        """Choose what is written as the operator that the runtime would make of it, or not make."""
        adds = {node: add for add, node in self.biased.items()}
        for node, rule in self.placement.integer.items():
            if INTEGER_MATMUL not in self.plan.operators or not is_onnx(node, "MatMul"):
                continue
            if node in adds or not self._quantizes_result(node, rule):
                self.placement.direct[node] = adds.get(node)
        if FLOAT_SUM not in self.plan.operators:
            return
        gone = self.placement.integer | self.biased
        for node in self.nodes:
            if is_onnx(node, "Add") and node not in gone:
                readers = [use.node for use in node.outputs[0].uses()]
                if any(is_onnx(reader, "LayerNormalization") for reader in readers):
                    self.placement.sums.append(node)

    def add_tables(self) -> None:
        """Store as integers the tables that nobody reads as floats."""
        if not self.tables:
            return
        odd: dict[ir.Value, str] = {}
        stored = {}
        for node in self.tables:
            table = node.inputs[0]
            assert table is not None, "a table is a constant"
            if table not in odd:
                odd[table] = self._float_reader(table)
            if odd[table]:
                self.placement.reasons[node] = ("shared-with-float", odd[table])
            else:
                stored[node] = TABLE
        # In graph order, as the documentation of a placement says.
        found = self.placement.integer | stored
        self.placement.integer = {node: found[node] for node in self.nodes if node in found}

    def _float_reader(self, table: ir.Value) -> str:
        """Return what reads ``table`` as floats, or ""."""
        if table.is_graph_output():
            return "a graph output"
        for use in table.uses():
            rule = self.placement.integer.get(use.node)
            weights = rule is not None and rule.kind == "linear" and use.idx == 1
            if not weights and not (use.node in self.tables and use.idx == 0):
                return use.node.name or use.node.op_type
        return ""

    def _limits(self) -> dict[ir.Value, tuple[float, float]]:
        """Return the ranges that results must not leave, because saturation clamps them."""
        limits = {}
        for clamp in self.placement.absorbed:
            low, high = clamp_bounds(clamp) or (-math.inf, math.inf)
            limits[clamp.outputs[0]] = (low, high)
        return limits

    def _quantizes_result(self, node: ir.Node, rule: Rule) -> bool:
        """Return whether the result is quantized as it is made, whoever reads it."""
        if not self.plan.quantize_results:
            return False
        result = self.placement.result_of(node)
        read = any(use.node in self.placement.integer for use in result.uses())
        return read or not rule.float_output

    def _range(self, value: ir.Value) -> tuple[float, float]:
        known = self.description.ranges.get(value.name or "")
        if known is not None:
            return known
        array = array_of(value, most_bytes=1 << 62)
        assert array is not None, "a value without a range is a constant"
        return (float(array.min(initial=0.0)), float(array.max(initial=0.0)))


class _Groups(Unions):
    """Values that share scale and zero point: union-find, with the range of each group."""

    def __init__(self, limits: Mapping[ir.Value, tuple[float, float]]) -> None:
        super().__init__()
        self._moved: set[ir.Value] = set()
        self._limits = dict(limits)
        self._ranges: dict[ir.Value, tuple[float, float]] = {}

    def move(self, source: ir.Value, result: ir.Value) -> None:
        """Let ``result``, which has no elements of its own, share with ``source``."""
        self.unite(source, result)
        self._moved.add(result)

    def add(self, value: ir.Value, known: tuple[float, float]) -> None:
        """Add the range of a value to its group."""
        root = self.root(value)
        if value in self._moved and root in self._ranges:
            return
        self._ranges[root] = _hull(self._ranges.get(root, known), known)
        if value in self._limits:
            own = self._limits[value]
            self._limits[root] = _cut(self._limits.get(root), own) or own

    def join(self, value: ir.Value, result: ir.Value) -> None:
        """Let both share, unless one is much narrower or must saturate earlier."""
        a, b = self.root(value), self.root(result)
        if a is b:
            return
        mine, common = self._ranges[a], _hull(self._ranges[a], self._ranges[b])
        if mine[1] - mine[0] < _NARROW * (common[1] - common[0]):
            return
        limit = _cut(self._limits.get(a), self._limits.get(b))
        if limit is not None and (common[0] < limit[0] or common[1] > limit[1]):
            return
        self._parents[b] = a
        self._ranges[a] = common
        if limit is not None:
            self._limits[a] = limit

    def range_of(self, value: ir.Value) -> tuple[float, float]:
        return self._ranges[self.root(value)]


def _hull(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    return min(a[0], b[0]), max(a[1], b[1])


def _cut(
    a: tuple[float, float] | None, b: tuple[float, float] | None
) -> tuple[float, float] | None:
    if a is None or b is None:
        return b if a is None else a
    return max(a[0], b[0]), min(a[1], b[1])


def _is_vector(value: ir.Value) -> bool:
    """Return whether ``value`` has one axis, apart from leading ones of size 1."""
    dims = static_dims(value)
    return dims is not None and len(dims) > 0 and all(dim == 1 for dim in dims[:-1])


def _is_quantized(value: ir.Value | None) -> bool:
    node = None if value is None else value.producer()
    return node is not None and node.op_type == "DequantizeLinear"


def observed_values(model: ir.Model, operators: frozenset[str]) -> Iterator[ir.Value]:
    """Yield each value whose range placement may ask for, once, in graph order.

    Values of branches are among them; those of loops are not.
    """
    seen: set[ir.Value] = set()
    for node in observable_nodes(model):
        rule = rule_of(node, operators)
        if rule is None:
            continue
        places = range(len(node.inputs)) if rule.inputs is None else rule.inputs
        for value in (*(node.inputs[i] for i in places if i < len(node.inputs)), *node.outputs):
            if (
                value is None
                or value in seen
                or not value.name
                or value.dtype is not ir.DataType.FLOAT
                or constant_of(value) is not None
            ):
                continue
            seen.add(value)
            yield value
