"""What placement decides: which nodes are integer, and which values carry scale and zero point."""

from dataclasses import dataclass, field

import onnx_ir as ir

from graphopt.quantization.ranges import Params
from graphopt.quantization.rule import Rule


@dataclass
class Placement:
    """What is quantized.

    Attributes:
        integer: Nodes that compute in integers, in graph order, with their rules.
        absorbed: Clamps that vanish: node -> node whose result saturates in their place.
        direct: Products that are written as the integer operator of the runtime: node -> the
            ``Add`` that vanishes because the operator takes its bias, None where there is none.
        sums: Float ``Add`` nodes that are written as ``Sum``.
        params: Scale and zero point of each quantized activation or constant operand.
        after: Quantized values that integer nodes make: all readers read the quantized one.
        reasons: Why a node that has a rule stays float: node -> (code, detail).
        stored: Float linear nodes whose weights are stored as integers all the same.
        converted: Inputs that are brought to another scale in front of their reader: (node, index
            of the input) -> what it gets.
    """

    integer: dict[ir.Node, Rule] = field(default_factory=dict)
    absorbed: dict[ir.Node, ir.Node] = field(default_factory=dict)
    direct: dict[ir.Node, ir.Node | None] = field(default_factory=dict)
    sums: list[ir.Node] = field(default_factory=list)
    params: dict[ir.Value, Params] = field(default_factory=dict)
    after: set[ir.Value] = field(default_factory=set)
    reasons: dict[ir.Node, tuple[str, str]] = field(default_factory=dict)
    stored: list[ir.Node] = field(default_factory=list)
    converted: dict[tuple[ir.Node, int], Params] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._results: dict[ir.Node, ir.Value] = {}

    def result_of(self, node: ir.Node) -> ir.Value:
        """Return the first value that ``node`` makes with the bias and clamps that it absorbs."""
        return self._results.get(node, node.outputs[0])

    def absorb_as_in(self, other: "Placement") -> None:
        """Take over what ``other`` absorbs, in the place of what was absorbed here."""
        self.absorbed, self._results = other.absorbed, other._results

    def absorb(self, clamp: ir.Node, into: ir.Node) -> None:
        """Record that ``into`` makes what ``clamp`` made."""
        self.absorbed[clamp] = into
        self._results[into] = clamp.outputs[0]

    def take_bias(self, node: ir.Node, add: ir.Node) -> None:
        """Record that ``node`` makes what ``add`` made."""
        self._results[node] = add.outputs[0]

    def move_params_of_absorbed(self) -> None:
        """Give what is known of the result of what vanishes to the value that took its place."""
        biased = [(add, node) for node, add in self.direct.items() if add is not None]
        for gone, into in [*biased, *self.absorbed.items()]:
            old, new = gone.outputs[0], into.outputs[0]
            if old in self.params:
                self.params[new] = self.params.pop(old)
            if old in self.after:
                self.after.discard(old)
                self.after.add(new)
