"""From lifetimes to places: which segment and pool a buffer lies in, and at which offset.

Weights and what the caller owns are stacked in the pools that hold them, the next pool taking
over where one is full. Activations, and inputs and outputs that live in the arena, are placed by
the planner in the first pool that holds them; what does not fit there is spilled to the next
(``pools``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from graphopt.memory.aliasing import Aliasing
from graphopt.memory.dataflow import Dataflow, Role
from graphopt.memory.liveness import Lifetime, lifetimes
from graphopt.memory.plan import Alias, PlannedBuffer, Segment
from graphopt.memory.planners import plan_placement
from graphopt.memory.pools import Offer, Resident, assign_pools
from graphopt.memory.problem import Item, Placement, Problem
from graphopt.targets.schema import Pool, Target

Effort = Literal["greedy", "exact"]
_IO_ROLES = (Role.INPUT, Role.OUTPUT, Role.STATE)
# How often spilling is repeated with less room because the placement left holes.
_SPILL_ROUNDS = 6


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


@dataclass(frozen=True)
class Placed:
    """Buffers with their places, and the placement of the arena of each pool.

    Attributes:
        buffers: All buffers, scratch last.
        arenas: Placement by name of the pool; only pools with an arena.
        excess: Bytes by which the arenas exceed what their pools offer.
    """

    buffers: tuple[PlannedBuffer, ...]
    arenas: Mapping[str, Placement]
    excess: int

    @property
    def arena_bytes(self) -> int:
        """Sum of the arenas."""
        return sum(placement.height for placement in self.arenas.values())


def segment_of(role: Role, rules: Rules) -> Segment:
    """Return the segment of a pool in which buffers of ``role`` lie."""
    if role is Role.WEIGHT:
        return "weights"
    if role in _IO_ROLES and not rules.io_in_arena:
        return "io"
    return "arena"


def padded_size(size: int, alignment: int) -> int:
    """Return ``size`` rounded up to a multiple of ``alignment``."""
    return -(-size // alignment) * alignment


@dataclass(frozen=True)
class _Tenant:
    """Something that needs a place in an arena: a buffer, or the scratch of a step."""

    name: str
    start: int
    end: int
    size: int
    accesses: int


def place_buffers(
    flow: Dataflow,
    aliasing: Aliasing,
    target: Target,
    rules: Rules,
    effort: Effort,
    limits: Mapping[str, int],
) -> Placed:
    """Return the places of all buffers of ``flow``.

    Args:
        flow: Values and steps in their final order.
        aliasing: Which values share a buffer.
        target: The device.
        rules: What its runtime does.
        effort: How hard the placement is searched.
        limits: Bytes allowed by pool, for spilling.
    """
    lives = lifetimes(flow, aliasing)
    outside = [life for life in lives if segment_of(life.role, rules) != "arena"]
    stacked, used = _stack(flow, aliasing, outside, target, rules, limits)
    inside = [life for life in lives if segment_of(life.role, rules) == "arena"]
    tenants = _tenants(flow, aliasing, inside)
    offers = [
        Offer(
            pool.name,
            None if limits.get(pool.name) is None else limits[pool.name] - used.get(pool.name, 0),
            pool.alignment,
            1 / pool.write_gbps / 1e9 if pool.write_gbps else 0.0,
        )
        for pool in _arena_pools(target)
    ]
    pool_of, arenas = _place_tenants(tenants, offers, len(flow.steps), effort)
    offsets = _offsets(tenants, pool_of, offers, arenas)
    buffers = list(stacked)
    for number, tenant in enumerate(tenants):
        offer = offers[pool_of[number]]
        padded = padded_size(tenant.size, offer.alignment)
        if number < len(inside):
            place = (offer.name, offsets[number], padded)
            buffers.append(_buffer(flow, aliasing, inside[number], "arena", place))
        else:
            buffers.append(_scratch(tenant, offer.name, offsets[number], padded))
    excess = sum(
        max(0, placement.height - offer.available)
        for offer in offers
        if offer.available is not None and (placement := arenas.get(offer.name)) is not None
    )
    return Placed(tuple(buffers), arenas, excess)


def _arena_pools(target: Target) -> list[Pool]:
    """Return the pools that can hold every kind of buffer of the arena, preferred first."""
    first = target.pool_for("activation")
    rest = [
        pool
        for pool in target.pools
        if pool is not first and pool.access == "rw" and {"activation", "scratch"} <= pool.holds
    ]
    return [first, *rest]


def _tenants(flow: Dataflow, aliasing: Aliasing, lives: Sequence[Lifetime]) -> list[_Tenant]:
    reads = [0] * len(flow.values)
    for step in flow.steps:
        for value in (*step.reads, *step.writes):
            reads[value] += 1
    tenants = [
        _Tenant(
            flow.values[life.root].name,
            life.start,
            life.end,
            life.size_bytes,
            sum(reads[m] for m in life.members),
        )
        for life in lives
    ]
    tenants += [
        _Tenant(f"scratch of {step.name}", number, number + 1, step.scratch_bytes, 2)
        for number, step in enumerate(flow.steps)
        if step.scratch_bytes
    ]
    return tenants


def _place_tenants(
    tenants: Sequence[_Tenant], offers: Sequence[Offer], steps: int, effort: Effort
) -> tuple[list[int], dict[str, Placement]]:
    """Return the pool of each tenant and the placement of each arena.

    A placement with holes may need more than its live bytes: then the pool offers that much less
    and spilling is repeated. When not all fits even so, everything stays in the first pool, whose
    excess is then the whole truth.
    """
    alone = _solve(tenants, [0] * len(tenants), offers, effort)
    first = offers[0]
    fits = first.available is None or alone[first.name].height <= first.available
    if fits or len(offers) == 1:
        return [0] * len(tenants), alone
    residents = [Resident(t.start, t.end, t.size, t.accesses) for t in tenants]
    room = [offer.available for offer in offers]
    for _ in range(_SPILL_ROUNDS):
        shrunk = [
            Offer(o.name, r, o.alignment, o.seconds_per_byte)
            for o, r in zip(offers, room, strict=True)
        ]
        assigned = assign_pools(residents, shrunk, steps)
        arenas = _solve(tenants, assigned, offers, effort)
        over = [
            0
            if o.available is None or o.name not in arenas
            else arenas[o.name].height - o.available
            for o in offers
        ]
        if max(over) <= 0:
            return assigned, arenas
        for index, excess in enumerate(over):
            limit = room[index]
            if excess > 0 and limit is not None:
                room[index] = max(0, limit - padded_size(excess, offers[index].alignment))
    return [0] * len(tenants), alone


def _solve(
    tenants: Sequence[_Tenant], assigned: Sequence[int], offers: Sequence[Offer], effort: Effort
) -> dict[str, Placement]:
    arenas = {}
    for index, offer in enumerate(offers):
        items = tuple(
            Item(t.name, t.start, t.end, padded_size(t.size, offer.alignment), offer.alignment)
            for t, pool in zip(tenants, assigned, strict=True)
            if pool == index and t.size
        )
        if items or index == 0:
            arenas[offer.name] = plan_placement(Problem(items), effort=effort)
    return arenas


def _offsets(
    tenants: Sequence[_Tenant],
    assigned: Sequence[int],
    offers: Sequence[Offer],
    arenas: Mapping[str, Placement],
) -> list[int]:
    """Return the offset of each tenant, in the order in which ``_solve`` handed them out."""
    following = {
        offer.name: iter(arenas[offer.name].offsets) for offer in offers if offer.name in arenas
    }
    return [
        next(following[offers[pool].name]) if tenant.size else 0
        for tenant, pool in zip(tenants, assigned, strict=True)
    ]


def _stack(
    flow: Dataflow,
    aliasing: Aliasing,
    lives: Sequence[Lifetime],
    target: Target,
    rules: Rules,
    limits: Mapping[str, int],
) -> tuple[list[PlannedBuffer], dict[str, int]]:
    """Return weights and caller-owned buffers at their places, and the bytes taken per pool."""
    tops: dict[tuple[str, Segment], int] = {}
    used: dict[str, int] = {}
    buffers = []
    for life in lives:
        segment = segment_of(life.role, rules)
        pools = [pool for pool in target.pools if life.role.value in pool.holds]
        pool = next(
            (
                p
                for p in pools
                if p.name not in limits
                or used.get(p.name, 0) + padded_size(life.size_bytes, p.alignment) <= limits[p.name]
            ),
            pools[0],
        )
        padded = padded_size(life.size_bytes, pool.alignment)
        offset = tops.get((pool.name, segment), 0)
        tops[pool.name, segment] = offset + padded
        used[pool.name] = used.get(pool.name, 0) + padded
        buffers.append(_buffer(flow, aliasing, life, segment, (pool.name, offset, padded)))
    return buffers, used


def _buffer(
    flow: Dataflow,
    aliasing: Aliasing,
    life: Lifetime,
    segment: Segment,
    place: tuple[str, int, int],
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
        padded_bytes=place[2],
        pool=place[0],
        segment=segment,
        offset=place[1],
        start=0 if whole_run else life.start,
        end=max(1, len(flow.steps)) if whole_run else life.end,
        producer=opener.producer,
    )


def _scratch(tenant: _Tenant, pool: str, offset: int, padded: int) -> PlannedBuffer:
    return PlannedBuffer(
        name=tenant.name,
        kind="scratch",
        values=(),
        dtype="",
        shape=(),
        bytes=tenant.size,
        padded_bytes=padded,
        pool=pool,
        segment="arena",
        offset=offset,
        start=tenant.start,
        end=tenant.end,
        producer=tenant.name.removeprefix("scratch of "),
    )
