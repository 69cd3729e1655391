"""The byte limit: what the user allows and the device offers, against what the plan takes."""

from collections.abc import Mapping

from graphopt.errors import DoesNotFitError, OptionError, Owner
from graphopt.memory.plan import MemoryPlan, PoolPlan
from graphopt.targets.schema import Target
from graphopt.units import parse_bytes

MemoryLimit = int | str | Mapping[str, int | str] | None


def resolve_limits(limit: MemoryLimit, target: Target) -> dict[str, int]:
    """Return the bytes allowed per pool: the user's limit, else what the target's pool offers.

    A plain number limits the pool that holds the arena.

    Raises:
        OptionError: no size, or a pool that the target does not have.
    """
    names = [pool.name for pool in target.pools]
    if limit is None:
        asked: dict[str, int] = {}
    elif isinstance(limit, Mapping):
        asked = {name: parse_bytes(size) for name, size in limit.items()}
    else:
        asked = {target.pool_for("activation").name: parse_bytes(limit)}
    for name in asked:
        if name not in names:
            raise OptionError(
                "pool-unknown",
                f"target '{target.name}' has no pool '{name}'",
                hint=f"its pools: {', '.join(names)}",
            )
    allowed = {pool.name: pool.limit_bytes for pool in target.pools if pool.limit_bytes is not None}
    return {**allowed, **asked}


def check_limits(plan: MemoryPlan, limits: Mapping[str, int], report: object = None) -> None:
    """Accept the plan, or say by how much it exceeds which pool, and who holds the bytes.

    Raises:
        DoesNotFitError: a pool takes more than allowed.
        OptionError: a limit is set, but sizes are unknown, so nothing can be promised.
    """
    for pool in plan.pools:
        allowed = limits.get(pool.name)
        if allowed is None:
            continue
        if pool.total_bytes > allowed:
            raise DoesNotFitError(
                pool=pool.name,
                required_bytes=pool.total_bytes,
                available_bytes=allowed,
                owners=owners_of(plan, pool),
                hint=_advice(pool, allowed),
                report=report,
            )
        if plan.not_planned:
            first = plan.not_planned[0]
            raise OptionError(
                "limit-not-provable",
                f"pool '{pool.name}' is limited to {allowed} bytes, but "
                f"{len(plan.not_planned)} values have no known size: "
                f"'{first.name}' ({first.reason})",
                hint="bind the named dimensions (--dim NAME=SIZE), or give them upper bounds",
            )


def owners_of(plan: MemoryPlan, pool: PoolPlan, most: int = 5) -> list[Owner]:
    """Return who holds most bytes of ``pool`` at the peak of the arena, largest first."""
    peak = plan.peak.step
    held = [
        b
        for b in plan.buffers
        if b.pool == pool.name and b.start <= peak < b.end and b.padded_bytes
    ]
    held.sort(key=lambda b: (-b.padded_bytes, b.name))
    return [Owner(b.name, b.producer or b.kind, b.padded_bytes) for b in held[:most]]


def _advice(pool: PoolPlan, allowed: int) -> str:
    if pool.weight_bytes > allowed:
        return (
            f"the weights alone take {pool.weight_bytes} bytes: a smaller network or data type is "
            "needed"
        )
    return (
        f"arena {pool.arena_bytes}, weights {pool.weight_bytes}, inputs and outputs "
        f"{pool.io_bytes} bytes; in this order no arena is below {pool.lower_bound_bytes} bytes. "
        "Smaller inputs (--dim) or another target are what is left"
    )
