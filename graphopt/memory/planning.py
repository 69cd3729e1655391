"""From a Program to a MemoryPlan: sizes, dataflow, aliases, lifetimes, placement, proof.

Every plan that leaves this file was accepted by ``verify_plan``, which shares no code with what
made it. The plan is for the runtime ``arena``: an executor that runs the nodes in this order and
keeps every buffer at its offset.
"""

from collections.abc import Iterable, Mapping

import onnx_ir as ir

from graphopt._version import __version__
from graphopt.ir.dims import Dim
from graphopt.ir.program import Program, dims_of
from graphopt.memory.aliasing import Aliasing, resolve_aliases
from graphopt.memory.dataflow import Dataflow, Role
from graphopt.memory.dataflow_onnx import dataflow_of
from graphopt.memory.liveness import lifetimes, live_bytes
from graphopt.memory.parts import place_parts
from graphopt.memory.placing import (
    Effort,
    Placed,
    Rules,
    padded_size,
    place_buffers,
    segment_of,
)
from graphopt.memory.plan import (
    MemoryPlan,
    ModelFacts,
    Peak,
    PeakOwner,
    PlannedBuffer,
    PlannedStep,
    PoolPlan,
    RuntimeFacts,
    Unplanned,
)
from graphopt.memory.planners import plan_placement
from graphopt.memory.problem import Item, Placement, Problem
from graphopt.memory.sizes import Sizes, choose_bindings
from graphopt.memory.streaming import stream_weights
from graphopt.memory.verify_plan import verify_plan
from graphopt.targets.schema import Target

_RUNTIME_TEXT = (
    "an executor that runs the nodes in the order of the plan and keeps every buffer at its offset"
)
_NO_ARENA = Placement((), 0, "", 0, True)


def rules_for(target: Target) -> Rules:
    """Return the rules of the runtime of ``target`` in the pool that holds its arena."""
    pool = target.pool_for("activation")
    return Rules(pool.alignment, target.runtime.in_place, target.runtime.io_in_arena)


def program_dataflow(
    program: Program,
    target: Target,
    bindings: Mapping[str, int] | None,
    upper_bounds: Mapping[str, Dim],
) -> tuple[Dataflow, Sizes]:
    """Return the dataflow of ``program`` at the sizes to plan at, and these sizes.

    Raises:
        OptionError: a binding names no dimension or is outside its bounds.
    """
    sizes = choose_bindings(program, bindings, upper_bounds)
    rules = rules_for(target)
    flow = dataflow_of(
        program,
        sizes,
        lambda body: body_arena_bytes(body, rules),
        in_place_ops=target.compute.in_place_ops,
    )
    return (stream_weights(flow) if target.runtime.stream_weights else flow), sizes


def make_plan(
    program: Program,
    target: Target,
    bindings: Mapping[str, int] | None = None,
    *,
    upper_bounds: Mapping[str, Dim] | None = None,
    effort: Effort = "greedy",
    limits: Mapping[str, int] | None = None,
) -> MemoryPlan:
    """Return the verified plan of ``program`` on ``target``.

    Args:
        program: The model with shapes on its values.
        target: The device.
        bindings: Sizes of named dimensions; others are planned at their upper bounds.
        upper_bounds: Expressions that data-dependent symbols never exceed.
        effort: "greedy" or "exact": how hard the placement is searched.
        limits: Bytes allowed by pool, above which buffers spill to the next; None for what the
            target offers.

    Raises:
        OptionError: a binding names no dimension or is outside its bounds.
    """
    rules = rules_for(target)
    flow, sizes = program_dataflow(program, target, bindings, upper_bounds or {})
    return assemble(_model_facts(program, sizes), target, flow, rules, effort, limits)


def verify_for_program(
    plan: MemoryPlan, program: Program, target: Target, upper_bounds: Mapping[str, Dim]
) -> None:
    """Verify a plan that came from a file against the model and the sizes that it states.

    Raises:
        InvariantError: the plan is wrong for this model.
        OptionError: the sizes it states are not sizes of this model.
    """
    flow, _ = program_dataflow(program, target, plan.model.bindings, upper_bounds)
    verify_plan(plan, flow)


def peak_of(
    program: Program,
    target: Target,
    bindings: Mapping[str, int] | None = None,
    *,
    upper_bounds: Mapping[str, Dim] | None = None,
) -> int | None:
    """Return the peak of live arena bytes without placing anything; None when sizes are unknown.

    This is what the pipeline measures between passes: the liveness of the order as it is.
    """
    rules = rules_for(target)
    flow, _ = program_dataflow(program, target, bindings, upper_bounds or {})
    if flow.not_planned:
        return None
    return min(_live_peak(flow, aliasing, rules) for aliasing in aliasings(flow, rules))


def _live_peak(flow: Dataflow, aliasing: Aliasing, rules: Rules) -> int:
    spans = [
        (life.start, life.end, padded_size(life.size_bytes, rules.alignment))
        for life in lifetimes(flow, aliasing)
        if segment_of(life.role, rules) == "arena"
    ]
    spans += _scratch_spans(flow, rules)
    return max(live_bytes(spans, len(flow.steps)), default=0)


def best_aliasing(flow: Dataflow, rules: Rules) -> Aliasing:
    """Return the way to share buffers with the fewest live bytes at the peak."""
    return min(aliasings(flow, rules), key=lambda aliasing: _live_peak(flow, aliasing, rules))


def aliasings(flow: Dataflow, rules: Rules) -> tuple[Aliasing, ...]:
    """Return the ways in which the values of ``flow`` may share buffers, the plainest first."""
    plain = resolve_aliases(flow, in_place=rules.in_place, io_in_arena=rules.io_in_arena)
    if not rules.in_place:
        return (plain,)
    with_parts = place_parts(flow, plain, alignment=rules.alignment, io_in_arena=rules.io_in_arena)
    return (plain,) if with_parts is plain else (plain, with_parts)


def body_arena_bytes(body: Dataflow, rules: Rules) -> int:
    """Return the arena bytes of one iteration of a body; values of role OUTPUT are elsewhere."""
    aliasing = resolve_aliases(body, in_place=rules.in_place, io_in_arena=False)
    # Carried values stand in the arena of the body although somebody else owns them.
    items = [
        Item(str(life.root), life.start, life.end, padded_size(life.size_bytes, rules.alignment))
        for life in lifetimes(body, aliasing)
        if life.role in (Role.ACTIVATION, Role.STATE) and life.size_bytes
    ]
    items += [
        Item(
            f"scratch {number}",
            number,
            number + 1,
            padded_size(step.scratch_bytes, rules.alignment),
        )
        for number, step in enumerate(body.steps)
        if step.scratch_bytes
    ]
    return plan_placement(Problem(tuple(items))).height


def limits_of(target: Target) -> dict[str, int]:
    """Return what each pool of ``target`` offers, for pools that state it."""
    return {p.name: p.limit_bytes for p in target.pools if p.limit_bytes is not None}


def assemble(
    facts: ModelFacts,
    target: Target,
    flow: Dataflow,
    rules: Rules,
    effort: Effort,
    limits: Mapping[str, int] | None = None,
) -> MemoryPlan:
    """Return the verified plan of ``flow``, whose steps are in their final order.

    ``limits`` are the bytes allowed by pool; None for what the target offers.
    """
    allowed = limits_of(target) if limits is None else limits
    # Fewer live bytes can pack worse: every way to share is placed, the lowest arena wins.
    placed = min(
        (
            place_buffers(flow, aliasing, target, rules, effort, allowed)
            for aliasing in aliasings(flow, rules)
        ),
        key=lambda one: (one.excess, one.arena_bytes),
    )
    buffers = placed.buffers
    spans = [(b.start, b.end, b.padded_bytes) for b in buffers if b.segment == "arena"]
    live = live_bytes(spans, len(flow.steps))
    steps = tuple(
        PlannedStep(node=s.name, op=s.op, live_bytes=live[i], scratch_bytes=s.scratch_bytes)
        for i, s in enumerate(flow.steps)
    )
    peak = _peak(buffers, steps, live)
    plan = MemoryPlan(
        tool="graphopt",
        version=__version__,
        model=facts,
        target=target.model_dump(mode="json"),
        target_sha256=target.digest(),
        runtime=RuntimeFacts(
            name=target.runtime.name,
            description=_RUNTIME_TEXT,
            options={"in_place": rules.in_place, "io_in_arena": rules.io_in_arena},
        ),
        pools=_pools(target, placed, flow, peak.step),
        buffers=buffers,
        steps=steps,
        peak=peak,
        bytes_by_kind=_bytes_by_kind(flow),
        naive_bytes=sum(v.size_bytes for v in flow.values if v.role is Role.ACTIVATION),
        not_planned=tuple(
            Unplanned(name=n.name, producer=n.producer, reason=n.reason) for n in flow.not_planned
        ),
        assumptions=flow.assumptions,
    )
    verify_plan(plan, flow)
    return plan


def _scratch_spans(flow: Dataflow, rules: Rules) -> list[tuple[int, int, int]]:
    return [
        (number, number + 1, padded_size(step.scratch_bytes, rules.alignment))
        for number, step in enumerate(flow.steps)
        if step.scratch_bytes
    ]


def _peak(
    buffers: tuple[PlannedBuffer, ...], steps: tuple[PlannedStep, ...], live: list[int]
) -> Peak:
    if not steps:
        return Peak(bytes=0, step=0, node="", owners=())
    step = max(range(len(live)), key=lambda i: (live[i], -i))
    owners = sorted(
        (b for b in buffers if b.segment == "arena" and b.start <= step < b.end and b.bytes),
        key=lambda b: (-b.padded_bytes, b.name),
    )
    return Peak(
        bytes=live[step],
        step=step,
        node=steps[step].node,
        owners=tuple(
            PeakOwner(name=b.name, kind=b.kind, producer=b.producer, bytes=b.padded_bytes)
            for b in owners
        ),
    )


def _pools(target: Target, placed: Placed, flow: Dataflow, peak_step: int) -> tuple[PoolPlan, ...]:
    taken: dict[tuple[str, str], int] = {}
    for buffer in placed.buffers:
        if buffer.segment != "arena":
            key = (buffer.pool, buffer.segment)
            taken[key] = taken.get(key, 0) + buffer.padded_bytes
    first = target.pool_for("activation").name
    plans = []
    for pool in target.pools:
        arena = placed.arenas.get(pool.name, _NO_ARENA)
        weights = taken.get((pool.name, "weights"), 0)
        io_bytes = taken.get((pool.name, "io"), 0)
        bound = arena.lower_bound
        plans.append(
            PoolPlan(
                name=pool.name,
                capacity_bytes=pool.size_bytes,
                limit_bytes=pool.limit_bytes,
                alignment=pool.alignment,
                arena_bytes=arena.height,
                weight_bytes=weights,
                io_bytes=io_bytes,
                overhead_bytes=_overhead_bytes(target, flow, weights) if pool.name == first else 0,
                total_bytes=arena.height + weights + io_bytes,
                lower_bound_bytes=bound,
                fragmentation=round(arena.height / bound, 6) if bound else 1.0,
                optimal=arena.optimal,
                planner=arena.planner,
                peak_step=peak_step if arena.height else 0,
            )
        )
    return tuple(plans)


def _overhead_bytes(target: Target, flow: Dataflow, weight_bytes: int) -> int:
    overhead = target.overhead
    return (
        overhead.fixed_bytes
        + overhead.per_tensor_bytes * len(flow.values)
        + overhead.per_op_bytes * len(flow.steps)
        + int(overhead.runtime_copy_of_weights * weight_bytes)
    )


def _bytes_by_kind(flow: Dataflow) -> dict[str, int]:
    totals = {role.value: 0 for role in Role}
    for value in flow.values:
        totals[value.role.value] += value.size_bytes
    totals["scratch"] = max((step.scratch_bytes for step in flow.steps), default=0)
    return totals


def _model_facts(program: Program, sizes: Sizes) -> ModelFacts:
    def described(values: Iterable[ir.Value]) -> dict[str, str]:
        result = {}
        for value in values:
            dims = dims_of(value)
            dtype = value.dtype.name.lower() if value.dtype else "unknown"
            shape = "?" if dims is None else ",".join(str(d) for d in dims)
            result[value.name or ""] = f"{dtype}[{shape}]"
        return result

    return ModelFacts(
        name=program.graph.name or "",
        sha256=program.source.sha256,
        opset=program.opset,
        nodes=len(program.graph),
        inputs=described(program.graph.inputs),
        outputs=described(program.graph.outputs),
        bindings=dict(sorted(sizes.bindings.items())),
        bounds={n: (b.lower, b.upper) for n, b in sorted(program.bounds.items())},
    )
