"""From a Program to a MemoryPlan: sizes, dataflow, aliases, lifetimes, placement, proof.

Every plan that leaves this file was accepted by ``verify_plan``, which shares no code with what
made it. The plan is for the runtime ``arena``: an executor that runs the nodes in this order and
keeps every buffer at its offset.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from graphopt._version import __version__
from graphopt.ir.dims import Dim
from graphopt.ir.program import Program, dims_of
from graphopt.memory.aliasing import Aliasing, resolve_aliases
from graphopt.memory.dataflow import Dataflow, Role
from graphopt.memory.dataflow_onnx import dataflow_of
from graphopt.memory.liveness import Lifetime, lifetimes, live_bytes
from graphopt.memory.parts import place_parts
from graphopt.memory.plan import (
    Alias,
    MemoryPlan,
    ModelFacts,
    Peak,
    PeakOwner,
    PlannedBuffer,
    PlannedStep,
    PoolPlan,
    RuntimeFacts,
    Segment,
    Unplanned,
)
from graphopt.memory.planners import plan_placement
from graphopt.memory.problem import Item, Problem
from graphopt.memory.sizes import Sizes, choose_bindings
from graphopt.memory.verify_plan import verify_plan
from graphopt.targets.schema import Target

_RUNTIME_TEXT = (
    "an executor that runs the nodes in the order of the plan and keeps every buffer at its offset"
)
Effort = Literal["greedy", "exact"]
_IO_ROLES = (Role.INPUT, Role.OUTPUT, Role.STATE)


@dataclass(frozen=True)
class Rules:
    """What the runtime does, as far as the plan is concerned.

    Attributes:
        alignment: Every arena offset and padded size is a multiple of this.
        in_place: The runtime writes in place where the last reader permits.
        io_in_arena: Inputs and outputs live in the arena and are reused; else the caller owns them.
    """

    alignment: int
    in_place: bool
    io_in_arena: bool


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
    return dataflow_of(program, sizes, lambda body: body_arena_bytes(body, rules)), sizes


def make_plan(
    program: Program,
    target: Target,
    bindings: Mapping[str, int] | None = None,
    *,
    upper_bounds: Mapping[str, Dim] | None = None,
    effort: Effort = "greedy",
) -> MemoryPlan:
    """Return the verified plan of ``program`` on ``target``.

    Args:
        program: The model with shapes on its values.
        target: The device.
        bindings: Sizes of named dimensions; others are planned at their upper bounds.
        upper_bounds: Expressions that data-dependent symbols never exceed.
        effort: "greedy" or "exact": how hard the placement is searched.

    Raises:
        OptionError: a binding names no dimension or is outside its bounds.
    """
    rules = rules_for(target)
    flow, sizes = program_dataflow(program, target, bindings, upper_bounds or {})
    return assemble(_model_facts(program, sizes), target, flow, rules, effort)


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
        (life.start, life.end, _padded(life.size_bytes, rules.alignment))
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
        Item(str(life.root), life.start, life.end, _padded(life.size_bytes, rules.alignment))
        for life in lifetimes(body, aliasing)
        if life.role in (Role.ACTIVATION, Role.STATE) and life.size_bytes
    ]
    items += [
        Item(f"scratch {number}", number, number + 1, _padded(step.scratch_bytes, rules.alignment))
        for number, step in enumerate(body.steps)
        if step.scratch_bytes
    ]
    return plan_placement(Problem(tuple(items))).height


def assemble(
    facts: ModelFacts, target: Target, flow: Dataflow, rules: Rules, effort: Effort
) -> MemoryPlan:
    """Return the verified plan of ``flow``, whose steps are in their final order."""
    # Fewer live bytes can pack worse: every way to share is placed, the lowest arena wins.
    placed = [
        _place(flow, aliasing, lifetimes(flow, aliasing), target, rules, effort)
        for aliasing in aliasings(flow, rules)
    ]
    buffers, arena_fields = min(placed, key=lambda one: one[1].height)
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
        pools=_pools(target, buffers, flow, peak.step, arena_fields),
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


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def segment_of(role: Role, rules: Rules) -> Segment:
    """Return the segment of a pool in which buffers of ``role`` lie."""
    if role is Role.WEIGHT:
        return "weights"
    if role in _IO_ROLES and not rules.io_in_arena:
        return "io"
    return "arena"


def _scratch_spans(flow: Dataflow, rules: Rules) -> list[tuple[int, int, int]]:
    return [
        (number, number + 1, _padded(step.scratch_bytes, rules.alignment))
        for number, step in enumerate(flow.steps)
        if step.scratch_bytes
    ]


@dataclass(frozen=True)
class _ArenaFields:
    """What the placement says about the arena."""

    pool: str
    height: int
    lower_bound: int
    optimal: bool
    planner: str


def _place(
    flow: Dataflow,
    aliasing: Aliasing,
    lives: tuple[Lifetime, ...],
    target: Target,
    rules: Rules,
    effort: Effort,
) -> tuple[tuple[PlannedBuffer, ...], _ArenaFields]:
    items: list[Item] = []
    place_of: dict[int, int] = {}
    for life in lives:
        if segment_of(life.role, rules) == "arena" and life.size_bytes:
            place_of[life.root] = len(items)
            padded = _padded(life.size_bytes, rules.alignment)
            name = flow.values[life.root].name
            items.append(Item(name, life.start, life.end, padded, rules.alignment))
    scratch_items: list[tuple[int, int]] = []
    for number, step in enumerate(flow.steps):
        if step.scratch_bytes:
            scratch_items.append((number, len(items)))
            padded = _padded(step.scratch_bytes, rules.alignment)
            items.append(
                Item(f"scratch of {step.name}", number, number + 1, padded, rules.alignment)
            )
    arena_pool = target.pool_for("activation")
    placement = plan_placement(Problem(tuple(items)), effort=effort)
    stacked: dict[tuple[str, Segment], int] = {}
    buffers = []
    for life in lives:
        segment = segment_of(life.role, rules)
        pool = arena_pool if segment == "arena" else target.pool_for(life.role.value)
        padded = _padded(life.size_bytes, pool.alignment)
        if segment == "arena":
            offset = placement.offsets[place_of[life.root]] if life.root in place_of else 0
        else:
            offset = stacked.get((pool.name, segment), 0)
            stacked[pool.name, segment] = offset + padded
        buffers.append(_buffer(flow, aliasing, life, pool.name, segment, offset, padded))
    for number, position in scratch_items:
        step = flow.steps[number]
        buffers.append(
            PlannedBuffer(
                name=items[position].id,
                kind="scratch",
                values=(),
                dtype="",
                shape=(),
                bytes=step.scratch_bytes,
                padded_bytes=items[position].size,
                pool=arena_pool.name,
                segment="arena",
                offset=placement.offsets[position],
                start=number,
                end=number + 1,
                producer=step.name,
            )
        )
    fields = _ArenaFields(
        arena_pool.name,
        placement.height,
        placement.lower_bound,
        placement.optimal,
        placement.planner,
    )
    return tuple(buffers), fields


def _buffer(
    flow: Dataflow,
    aliasing: Aliasing,
    life: Lifetime,
    pool: str,
    segment: Segment,
    offset: int,
    padded: int,
) -> PlannedBuffer:
    opener = flow.values[life.root]
    # Weights and inputs outlive their last reader: they belong to somebody else.
    whole_run = segment in ("weights", "io")
    return PlannedBuffer.model_construct(
        name=opener.name,
        kind=life.role.value,
        values=tuple(
            Alias.model_construct(
                value=flow.values[m].name,
                relation=aliasing.relation[m],
                of=flow.values[aliasing.source[m]].name,
                offset=aliasing.offset[m],
            )
            for m in life.members
        ),
        dtype=opener.dtype,
        shape=opener.shape,
        bytes=life.size_bytes,
        padded_bytes=padded,
        pool=pool,
        segment=segment,
        offset=offset,
        start=0 if whole_run else life.start,
        end=max(1, len(flow.steps)) if whole_run else life.end,
        producer=opener.producer,
    )


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


def _pools(
    target: Target,
    buffers: Iterable[PlannedBuffer],
    flow: Dataflow,
    peak_step: int,
    arena: _ArenaFields,
) -> tuple[PoolPlan, ...]:
    taken: dict[tuple[str, str], int] = {}
    for buffer in buffers:
        if buffer.segment != "arena":
            key = (buffer.pool, buffer.segment)
            taken[key] = taken.get(key, 0) + buffer.padded_bytes
    plans = []
    for pool in target.pools:
        holds_arena = pool.name == arena.pool
        weights = taken.get((pool.name, "weights"), 0)
        io_bytes = taken.get((pool.name, "io"), 0)
        arena_bytes = arena.height if holds_arena else 0
        overhead = _overhead_bytes(target, flow, weights) if holds_arena else 0
        bound = arena.lower_bound if holds_arena else 0
        plans.append(
            PoolPlan(
                name=pool.name,
                capacity_bytes=pool.size_bytes,
                limit_bytes=pool.limit_bytes,
                alignment=pool.alignment,
                arena_bytes=arena_bytes,
                weight_bytes=weights,
                io_bytes=io_bytes,
                overhead_bytes=overhead,
                total_bytes=arena_bytes + weights + io_bytes,
                lower_bound_bytes=bound,
                fragmentation=round(arena_bytes / bound, 6) if bound else 1.0,
                optimal=arena.optimal if holds_arena else True,
                planner=arena.planner if holds_arena else "",
                peak_step=peak_step if holds_arena else 0,
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
