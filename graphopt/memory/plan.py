"""MemoryPlan: where every byte is at every step, as plain data with a published JSON Schema.

All sizes are bytes; lifetimes are half-open intervals of steps. Buffers lie in *segments* of a
pool: ``arena`` (what the runtime reuses), ``weights`` (resident), ``io`` (inputs, outputs and
states that the caller owns). An offset counts from the start of the segment.
"""

import csv
import io
import json
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1

Segment = Literal["arena", "weights", "io"]


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Alias(_Data):
    """One value inside a buffer: how it came to share the bytes.

    ``relation`` is "" for the value that opened the buffer, "view" for the same bytes under another
    shape, "in-place" for a write over ``of``, "part" for a piece of ``of``. ``offset`` counts bytes
    from the start of the buffer.
    """

    value: str
    relation: Literal["", "view", "in-place", "part"]
    of: str
    offset: int = 0


class PlannedBuffer(_Data):
    """A buffer: its values, its kind, its place and its lifetime ``[start, end)``."""

    name: str
    kind: Literal["input", "output", "activation", "weight", "state", "scratch"]
    values: tuple[Alias, ...]
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    padded_bytes: int
    pool: str
    segment: Segment
    offset: int
    start: int
    end: int
    producer: str


class PlannedStep(_Data):
    """One execution of a node; ``live_bytes`` is what is alive in the arena, scratch included."""

    node: str
    op: str
    live_bytes: int
    scratch_bytes: int
    recompute_of: str | None = None


class PoolPlan(_Data):
    """What the plan takes from one pool.

    ``total_bytes = arena_bytes + weight_bytes + io_bytes``. ``overhead_bytes`` is what the
    process of the runtime takes besides, stated beside the plan and in no sum.
    ``lower_bound_bytes`` is the proven least arena for this order and these buffers,
    ``fragmentation`` their ratio; ``optimal`` says that no smaller arena exists for them.
    """

    name: str
    capacity_bytes: int | None
    limit_bytes: int | None
    alignment: int
    arena_bytes: int
    weight_bytes: int
    io_bytes: int
    overhead_bytes: int
    total_bytes: int
    lower_bound_bytes: int
    fragmentation: float
    optimal: bool
    planner: str
    peak_step: int


class PeakOwner(_Data):
    """A buffer alive at the peak."""

    name: str
    kind: str
    producer: str
    bytes: int


class Peak(_Data):
    """The step at which the arena holds most, and who holds it, largest first."""

    bytes: int
    step: int
    node: str
    owners: tuple[PeakOwner, ...]


class Unplanned(_Data):
    """A value that is in no figure, and why."""

    name: str
    producer: str
    reason: str


class ModelFacts(_Data):
    """Which model, and at which sizes."""

    name: str
    sha256: str
    opset: int
    nodes: int
    inputs: dict[str, str]
    outputs: dict[str, str]
    bindings: dict[str, int]
    bounds: dict[str, tuple[int, int | None]]


class RuntimeFacts(_Data):
    """Which executor the figures are for."""

    name: str
    description: str
    options: dict[str, bool]


class PassBytes(_Data):
    """Peak arena bytes before and after one pass."""

    name: str
    peak_before: int | None
    peak_after: int | None


class CallPrediction(_Data):
    """What one call in another runtime, which allocates by itself, is predicted to hold at most.

    ``peak_bytes = live_bytes + scratch_bytes`` at the operator ``op`` that makes ``value``; inputs
    and weights are in neither, results are. ``liveness_bytes`` would be the peak if no operator
    took scratch. ``reason`` says why there is no prediction, and the figures are None then.
    """

    version: str
    options: dict[str, int]
    counted: str
    peak_bytes: int | None = None
    live_bytes: int | None = None
    scratch_bytes: int | None = None
    liveness_bytes: int | None = None
    op: str = ""
    value: str = ""
    owners: tuple[PeakOwner, ...] = ()
    reason: str = ""


class MemoryPlan(_Data):
    """The whole plan; see the file docstring for the words."""

    schema_version: Literal[1] = 1
    tool: str
    version: str
    model: ModelFacts
    target: dict[str, Any]
    target_sha256: str
    runtime: RuntimeFacts
    pools: tuple[PoolPlan, ...]
    buffers: tuple[PlannedBuffer, ...]
    steps: tuple[PlannedStep, ...]
    peak: Peak
    bytes_by_kind: dict[str, int]
    naive_bytes: int
    not_planned: tuple[Unplanned, ...] = ()
    assumptions: tuple[str, ...] = ()
    passes: tuple[PassBytes, ...] = Field(default=())
    predictions: dict[str, CallPrediction] = Field(default_factory=dict)

    @property
    def peak_bytes(self) -> int:
        """Most bytes alive in the arena at any step."""
        return self.peak.bytes

    @cached_property
    def arena_pool(self) -> PoolPlan:
        """The pool that holds the arena."""
        return max(self.pools, key=lambda pool: (pool.arena_bytes, -self.pools.index(pool)))

    @property
    def arena_bytes(self) -> int:
        """Bytes of the arena, all pools together."""
        return sum(pool.arena_bytes for pool in self.pools)

    @property
    def lower_bound_bytes(self) -> int:
        """Proven least arena for this order and these buffers, all pools together."""
        return sum(pool.lower_bound_bytes for pool in self.pools)

    @property
    def is_complete(self) -> bool:
        """Whether every value is in the figures."""
        return not self.not_planned

    def with_passes(self, passes: tuple[PassBytes, ...]) -> "MemoryPlan":
        """Return the same plan with the bytes that each pass saved."""
        return self.model_copy(update={"passes": passes})

    def with_prediction(self, runtime: str, prediction: CallPrediction) -> "MemoryPlan":
        """Return the same plan with what ``runtime`` is predicted to hold."""
        return self.model_copy(update={"predictions": {**self.predictions, runtime: prediction}})

    def to_json(self, *, indent: int | None = 1) -> str:
        """Return the plan as JSON text; ``from_json`` reads it back equal."""
        return json.dumps(self.model_dump(mode="json"), indent=indent, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "MemoryPlan":
        """Return the plan that ``to_json`` wrote.

        Raises:
            OptionError: the text is no plan of this schema version.
        """
        from pydantic import ValidationError

        from graphopt.errors import OptionError

        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise OptionError(
                "plan-unreadable", f"no memory plan: {where}: {first['msg']}"
            ) from None

    def to_csv(self) -> str:
        """Return the arena as the five-column CSV ``id,lower,upper,size,offset``."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("id", "lower", "upper", "size", "offset"))
        for buffer in self.buffers:
            if buffer.segment == "arena" and buffer.padded_bytes:
                row = (buffer.name, buffer.start, buffer.end, buffer.padded_bytes, buffer.offset)
                writer.writerow(row)
        return text.getvalue()

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """Return the JSON Schema of ``to_json``."""
        return cls.model_json_schema()
