"""Programs with their plans, and ways to break a plan, for the tests of the arena runner."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from graphopt.compiler import plannable
from graphopt.errors import InvariantError
from graphopt.frontends.onnx_loader import load_onnx
from graphopt.ir.dims import Bounds
from graphopt.ir.program import Program
from graphopt.ir.shapes import infer_shapes
from graphopt.memory.plan import MemoryPlan, PlannedBuffer
from graphopt.memory.planning import make_plan, verify_for_program
from graphopt.targets.loader import resolve_target
from graphopt.targets.schema import Target


def planned(
    model: str | Path | onnx.ModelProto,
    bindings: Mapping[str, int] | None = None,
    target: str | Target = "cpu",
    bounds: Mapping[str, Bounds] | None = None,
) -> tuple[Program, MemoryPlan]:
    """The program of a file, a message or ONNX text, and its plan."""
    source = onnx.parser.parse_model(model) if isinstance(model, str) else model
    program = load_onnx(source, bounds=bounds)
    sized, most = plannable(program, bindings)
    return program, make_plan(sized, resolve_target(target), bindings, upper_bounds=most)


def accepted_by_verifier(program: Program, plan: MemoryPlan, target: str | Target = "cpu") -> bool:
    bounds = infer_shapes(program).upper_bounds
    try:
        verify_for_program(plan, program, resolve_target(target), bounds)
    except InvariantError:
        return False
    return True


def cpu(*, io_in_arena: bool = False, in_place: bool = True) -> Target:
    target = resolve_target("cpu")
    options = {"io_in_arena": io_in_arena, "in_place": in_place}
    return target.model_copy(update={"runtime": target.runtime.model_copy(update=options)})


def index_of(plan: MemoryPlan, value: str) -> int:
    """Index of the buffer that holds ``value``."""
    return next(
        at for at, b in enumerate(plan.buffers) if any(alias.value == value for alias in b.values)
    )


def buffer_of(plan: MemoryPlan, value: str) -> PlannedBuffer:
    return plan.buffers[index_of(plan, value)]


def with_buffer(plan: MemoryPlan, at: int, **changes: Any) -> MemoryPlan:
    """The plan with fields of one buffer changed, whatever the rest says."""
    buffers = list(plan.buffers)
    buffers[at] = buffers[at].model_copy(update=changes)
    return plan.model_copy(update={"buffers": tuple(buffers)})


def with_arena(plan: MemoryPlan, arena_bytes: int) -> MemoryPlan:
    pools = tuple(
        pool.model_copy(update={"arena_bytes": arena_bytes}) if pool is plan.arena_pool else pool
        for pool in plan.pools
    )
    return plan.model_copy(update={"pools": pools})


def aliases(plan: MemoryPlan) -> dict[str, str]:
    """Value -> how it came into its buffer."""
    return {alias.value: alias.relation for b in plan.buffers for alias in b.values}
