"""Placement for targets that compute nothing but integers: every node, every value between them.

In: a model, the description of its values, the plan of the target. Out: a ``Placement`` in which
every float value of the main graph has scale and zero point, or an error that names every node
that has no integer form. Every step is linear in the graph.

1. A ``Relu`` or ``Clip`` is absorbed into the node before it where saturation does the same.
2. What copies, joins or chooses elements shares one scale. A value that cannot (its operator
   dictates one, or a clamp was absorbed into it) is brought to the common one for that reader.
"""

import math

import onnx_ir as ir

from graphopt.errors import UnsupportedError
from graphopt.ir.constants import array_of, constant_of, static_dims
from graphopt.ir.program import bodies_of, is_onnx
from graphopt.quantization.description import Description, Plan
from graphopt.quantization.device_rules import device_rule, fixed_params
from graphopt.quantization.placed import Placement
from graphopt.quantization.rule import Rule
from graphopt.quantization.rules import clamp_bounds, saturates, unsupported_form
from graphopt.quantization.shared_scales import Range, SharedScales

_CLAMPS = ("Clip", "Relu")
_CONVERSIONS = ("DequantizeLinear", "QuantizeLinear")
_MOST_NAMED = 20
_FINITE = (
    "integers have no infinity: calibrate on samples that give none, or write a finite number in "
    "the model, such as -100 in a mask in front of Softmax"
)

Refusal = tuple[ir.Node, str]


def is_float(value: ir.Value | None) -> bool:
    """Return whether ``value`` is a tensor of floats, of whatever width."""
    return value is not None and value.dtype is not None and value.dtype.is_floating_point()


def refusals(model: ir.Model, plan: Plan) -> list[Refusal]:
    """Return the nodes of ``model`` that the target has no integer kernel for, and why.

    Nodes that were quantized before are not among them.
    """
    found = []
    for node in model.graph:
        reason = "" if _is_quantized(node) else _refusal(node, plan)
        if reason:
            found.append((node, reason))
    return found


def require_integer_forms(model: ir.Model, plan: Plan, where: str = "the target") -> None:
    """Raise unless every node of ``model`` can be computed in integers.

    Raises:
        UnsupportedError: names the nodes and what would help.
    """
    found = refusals(model, plan)
    quantized = [(n, "the model is quantized already") for n in model.graph if _is_conversion(n)]
    if found or quantized:
        raise refused([*quantized, *found], where)


def refused(found: list[Refusal], where: str, hint: str = "") -> UnsupportedError:
    """Return the error that names the nodes in ``found``; ``hint`` says what helps, where known."""
    lines = [f"  '{node.name}' ({_kind(node)}): {reason}" for node, reason in found[:_MOST_NAMED]]
    if len(found) > _MOST_NAMED:
        lines.append(f"  and {len(found) - _MOST_NAMED} more")
    kinds = list(dict.fromkeys(_kind(node) for node, _ in found))
    nodes = "1 node has" if len(found) == 1 else f"{len(found)} nodes have"
    return UnsupportedError(
        "full-integer-operator",
        "\n".join([f"{nodes} no integer form on {where}:", *lines]),
        hint=hint
        or (
            f"rewrite the model without {', '.join(kinds[:6])}, cut the model in front of them, "
            "name further operators in [quantization] of the target if its compiler has kernels "
            "for them, or choose a target that computes floats, too"
        ),
        node=found[0][0].name,
        details={
            "nodes": [
                {"node": node.name, "operator": _kind(node), "reason": reason}
                for node, reason in found
            ]
        },
    )


def _kind(node: ir.Node) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def _is_conversion(node: ir.Node) -> bool:
    return is_onnx(node, *_CONVERSIONS)


def _computes(node: ir.Node) -> bool:
    """Return whether ``node`` reads or makes floats that are not constants."""
    if bodies_of(node):
        return True
    if any(constant_of(value) is not None for value in node.outputs):
        return False
    return any(is_float(v) for v in (*node.inputs, *node.outputs))


def _refusal(node: ir.Node, plan: Plan) -> str:
    """Return why ``node`` cannot be computed in integers, or ""."""
    if not _computes(node) or _is_conversion(node):
        return ""
    rule = device_rule(node, plan.operators)
    if rule is None:
        return "it has sub-graphs" if bodies_of(node) else "no integer kernel"
    odd = next((v for v in _data(node, rule) if v.dtype is not ir.DataType.FLOAT), None)
    if odd is not None:
        return f"it reads '{odd.name}', which is {str(odd.dtype).lower()}"
    if rule.kind == "linear":
        return _linear_refusal(node)
    return unsupported_form(node)


def _linear_refusal(node: ir.Node) -> str:
    """Return why the kernel of a product does not compute ``node``, or ""."""
    weight = constant_of(node.inputs[1])
    if weight is None or weight.dtype is not ir.DataType.FLOAT:
        return "its weights are not constants of 32-bit floats"
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    dims = None if bias is None else static_dims(bias)
    if bias is not None and constant_of(bias) is None:
        return "its bias is computed"
    if dims is not None and any(dim != 1 for dim in dims[:-1]):
        return "its bias is not one number for each channel"
    group = node.attributes.get("group")
    if is_onnx(node, "ConvTranspose") and group is not None and group.as_int() != 1:
        return "a transposed convolution in groups"
    return unsupported_form(node)


def _data(node: ir.Node, rule: Rule) -> list[ir.Value]:
    """Return the inputs that are quantized as activations."""
    return [value for _, value in _places(node, rule)]


def _places(node: ir.Node, rule: Rule) -> list[tuple[int, ir.Value]]:
    places = range(len(node.inputs)) if rule.inputs is None else rule.inputs
    found = ((i, node.inputs[i]) for i in places if i < len(node.inputs))
    return [(i, value) for i, value in found if value is not None and is_float(value)]


def place_everything(
    model: ir.Model, description: Description, plan: Plan, keep_float: frozenset[str]
) -> Placement:
    """Return a placement in which every node of the main graph computes in integers.

    Args:
        model: The float model, nodes in order.
        description: Ranges of its values.
        plan: What the target asks.
        keep_float: Names of nodes that stay float all the same, to measure what the others cost.

    Raises:
        UnsupportedError: a node has no integer form, or a value no finite range.
    """
    found = refusals(model, plan)
    if found:
        raise refused(found, "the target")
    builder = _Everything(model, description, plan, keep_float)
    builder.collect()
    builder.absorb_clamps()
    builder.share()
    builder.choose_params()
    return builder.placement


class _Everything:
    def __init__(
        self, model: ir.Model, description: Description, plan: Plan, keep_float: frozenset[str]
    ) -> None:
        self.graph = model.graph
        self.description = description
        self.plan = plan
        self.keep_float = keep_float
        self.placement = Placement()
        self.unknown: list[Refusal] = []

    def collect(self) -> None:
        """Make every node integer that computes with floats."""
        for node in self.graph:
            if not _computes(node) or _is_conversion(node):
                continue
            if _is_quantized(node):
                self.placement.reasons[node] = ("already-quantized", "")
            elif (node.name or "") in self.keep_float:
                self.placement.reasons[node] = ("kept-float", "")
            else:
                rule = device_rule(node, self.plan.operators)
                assert rule is not None, "it was refused before"
                self.placement.integer[node] = rule

    def absorb_clamps(self) -> None:
        """Let saturation replace clamps behind nodes that scale their result anyway."""
        for node in list(self.placement.integer):
            source = node.inputs[0]
            before = None if source is None else source.producer()
            if (
                not is_onnx(node, *_CLAMPS)
                or source is None
                or before not in self.placement.integer
                or before in self.placement.absorbed
                or self.plan.activation.symmetric
                or self.placement.integer[before].kind in ("move", "join")
                or fixed_params(before, self.plan.activation) is not None
                or source.is_graph_output()
                or len(source.uses()) != 1
                or not saturates(node, self.description.ranges.get(node.outputs[0].name or ""))
            ):
                continue
            del self.placement.integer[node]
            self.placement.absorb(node, before)

    def results(self, node: ir.Node) -> list[ir.Value]:
        """Return the float values that ``node`` makes once clamps are absorbed."""
        values = [self.placement.result_of(node), *node.outputs[1:]]
        return [value for value in values if value.name and is_float(value)]

    def share(self) -> None:
        """Find out which values share a scale, and which are brought to another one."""
        open_ended = (-math.inf, math.inf)
        clamps = self.placement.absorbed
        limits = {clamp.outputs[0]: clamp_bounds(clamp) or open_ended for clamp in clamps}
        self.scales = SharedScales(limits)
        self.wanted: dict[ir.Value, None] = {}
        moved: set[ir.Value] = set()
        for node, rule in self.placement.integer.items():
            inputs, results = _data(node, rule), self.results(node)
            self.wanted.update(dict.fromkeys([*inputs, *results]))
            self.placement.after.update(results)
            if rule.kind != "move" or not inputs:
                continue
            for value in results:
                self.scales.unite(inputs[0], value)
            # What it fills in, or clamps to, may lie outside of what it read.
            if not is_onnx(node, *_CLAMPS, "Pad"):
                moved.update(results)
        self._tell(moved)
        self._join()

    def _tell(self, moved: set[ir.Value]) -> None:
        """Tell ranges and dictated scales, those of joined values last."""
        scheme = self.plan.activation
        for value in self.wanted:
            producer = value.producer()
            params = None if producer is None else fixed_params(producer, scheme)
            if params is not None and value in self.placement.after:
                self.scales.fix(value, params)
            elif value not in moved:
                known = self._range(value)
                if known is not None:
                    self.scales.add(value, known)
        for value in self.wanted:
            if not self.scales.is_known(value):
                user = value.producer() or next(iter(value.uses())).node
                self.unknown.append((user, f"'{value.name}' was infinite or NaN, or not observed"))
        if self.unknown:
            raise refused(self.unknown, "the target", _FINITE)

    def _join(self) -> None:
        self.joined: list[tuple[ir.Node, int, ir.Value]] = []
        for node, rule in self.placement.integer.items():
            if rule.kind != "join":
                continue
            places, result = _places(node, rule), self.placement.result_of(node)
            # Constants first: they take any scale that does not keep them out.
            places.sort(key=lambda place: constant_of(place[1]) is None)
            apart = self.scales.join_all([value for _, value in places], result)
            self.joined += [(node, places[index][0], result) for index in apart]

    def choose_params(self) -> None:
        """Give every value scale and zero point."""
        scheme = self.plan.activation
        for value in self.wanted:
            self.placement.params[value] = self.scales.params_of(value, scheme)
        for node, index, result in self.joined:
            params = self.placement.params[result]
            source = node.inputs[index]
            assert source is not None, "it was looked at"
            if self.placement.params[source] != params:
                self.placement.converted[node, index] = params

    def _range(self, value: ir.Value) -> Range | None:
        known = self.description.ranges.get(value.name or "")
        if known is not None or constant_of(value) is None:
            return known
        array = array_of(value, most_bytes=1 << 62)
        assert array is not None, "it is a constant"
        return float(array.min(initial=0.0)), float(array.max(initial=0.0))


def _is_quantized(node: ir.Node) -> bool:
    """Return whether ``node`` reads what a ``DequantizeLinear`` makes."""
    producers = (value.producer() for value in node.inputs if value is not None)
    return any(p is not None and is_onnx(p, "DequantizeLinear") for p in producers)
