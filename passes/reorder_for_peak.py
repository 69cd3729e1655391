"""The order of nodes with the lowest peak that is found."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir

from graphopt.errors import OptionError
from graphopt.ir.program import OLDEST_OPSET_OF_FACTS, UPPER_BOUNDS_KEY, opset_of
from graphopt.ir.rewrite import program_of
from graphopt.memory.dataflow import Dataflow
from graphopt.memory.dataflow_onnx import dataflow_of
from graphopt.memory.placing import Rules
from graphopt.memory.planning import body_arena_bytes
from graphopt.memory.schedule import SearchEffort, best_order, peak_of_order
from graphopt.memory.sizes import choose_bindings
from graphopt.memory.streaming import stream_weights
from graphopt.passes.fix_dimensions import parse_sizes
from graphopt.pipeline.base import Pass, PassResult, Skip


@dataclass(frozen=True)
class ReorderForPeak(Pass):
    """Run the nodes of the main graph in an order with fewer live bytes at the peak.

    Fires when:
        1. An order is found whose peak, with views, in-place writes and parts, is below that of the
           order as it is.

    Leaves alone:
        1. ``sizes-unknown``: a value has no known size, so orders cannot be compared.
        2. ``order-is-best``: no order with a lower peak was found, or none exists.
        3. Bodies of control flow, whose arena is scratch of their node.

    Preserves:
        Nodes, values and names, bit by bit; only the order changes.

    Options:
        effort: "exact" searches until the order is proven or the node limit is reached; "greedy"
            tries simple rules.
        nodes: Nodes that the search may visit; 0 for the default of the effort.
        seconds: Wall-clock guard of the search.
        alignment: Bytes to which buffers are rounded up.
        writes_in_place: Whether the runtime writes in place.
        io_in_arena: Whether inputs and outputs live in the arena.
        in_place_ops: Operator types that the runtime writes in place; empty: all that may be.
        streams_weights: Whether the runtime copies weights into the arena as they are needed.
        sizes: Sizes of named dimensions as ``name=size``; others count at their upper bounds.

    Example:
        ``a = f (x)``, ``b = f (x)``, ``c = sum (a)``, ``d = sum (b)`` becomes ``a``, ``c``, ``b``,
        ``d``: only one of the large values lives at a time.
    """

    name: ClassVar[str] = "reorder-for-peak"
    runs_after: ClassVar[tuple[str, ...]] = ("infer-shapes", "eliminate-dead-nodes")

    effort: str = "exact"
    nodes: int = 0
    seconds: float = 30.0
    alignment: int = 64
    writes_in_place: bool = True
    io_in_arena: bool = False
    in_place_ops: tuple[str, ...] = ()
    streams_weights: bool = False
    sizes: tuple[str, ...] = ()

    def call(self, model: ir.Model) -> PassResult:
        """Reorder the main graph of ``model``.

        Raises:
            OptionError: an option is none of its values, or a size names no dimension.
        """
        if opset_of(model) < OLDEST_OPSET_OF_FACTS:
            return PassResult(
                model, False, skipped=(Skip("sizes-unknown", model.graph.name or ""),)
            )
        program = program_of(model)
        upper_bounds = model.meta.get(UPPER_BOUNDS_KEY) or {}
        rules = Rules(self.alignment, self.writes_in_place, self.io_in_arena)
        wanted = parse_sizes(self.sizes)
        named = {name: size for name, size in wanted.items() if name in program.bounds}
        sizes = choose_bindings(program, named, upper_bounds)
        flow = dataflow_of(
            program,
            sizes,
            lambda body: body_arena_bytes(body, rules),
            in_place_ops=self.in_place_ops or None,
        )
        schedule = best_order(
            flow,
            rules,
            effort=self._effort(),
            node_limit=self.nodes or None,
            seconds=self.seconds,
        )
        moved = sum(old != new for new, old in enumerate(schedule.order))
        if not moved:
            name = model.graph.name or ""
            proof = "proven" if schedule.optimal else f"searched {schedule.nodes} nodes"
            skip = Skip("order-is-best", name, proof)
            if flow.not_planned:
                skip = Skip("sizes-unknown", name, flow.not_planned[0].name)
            return PassResult(model, False, skipped=(skip,))
        if self.streams_weights and not _lower_with_streams(flow, schedule.order, rules):
            skip = Skip("order-is-best", model.graph.name or "", "counting the streamed weights")
            return PassResult(model, False, skipped=(skip,))
        nodes = list(model.graph)
        model.graph.remove(nodes)
        model.graph.extend(nodes[index] for index in schedule.order)
        return PassResult(model, True, rewrites=moved)

    def _effort(self) -> SearchEffort:
        if self.effort == "exact":
            return "exact"
        if self.effort == "greedy":
            return "greedy"
        raise OptionError(
            "effort-unknown", f"unknown effort '{self.effort}'", hint="use 'greedy' or 'exact'"
        )


def _lower_with_streams(flow: Dataflow, order: Sequence[int], rules: Rules) -> bool:
    """Say whether ``order`` is still lower when the weights of two steps at a time are copied in.

    Which weights those are depends on the order, so they cannot be part of the graph that is
    searched.
    """
    ordered = replace(flow, steps=tuple(flow.steps[index] for index in order))
    return peak_of_order(stream_weights(ordered), rules) < peak_of_order(
        stream_weights(flow), rules
    )
