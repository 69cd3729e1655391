"""The one view that memory analysis works on: values and steps; knows no dialect.

A *value* is a tensor with a size in bytes. A *step* is one execution of a node: it reads values
and writes values. What must share storage (views) and what may (in-place writes) are facts of the
step, stated by whoever builds the dataflow; whether a permission is used is decided later, for an
order.

Valid when: every value is written by at most one step; a value without a writer has a role other
than ACTIVATION; a step reads only values that are written by an earlier step or have no writer;
``view_of`` and ``may_overwrite`` pairs name a value that the step writes and one that it reads.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from graphopt.errors import InvariantError


class Role(StrEnum):
    """What a value is for; pools and accounts go by it."""

    INPUT = "input"
    OUTPUT = "output"
    ACTIVATION = "activation"
    WEIGHT = "weight"
    STATE = "state"
    SCRATCH = "scratch"


@dataclass(frozen=True, slots=True)
class DataValue:
    """A tensor.

    Attributes:
        name: Unique name of the value.
        size_bytes: Bytes without padding; 0 only for a tensor with a zero dimension.
        role: What it is for.
        dtype: Name of the element type, for the report.
        shape: Concrete sizes under the bindings of the plan.
        producer: Name of the step that writes it, or "" for inputs and weights.
    """

    name: str
    size_bytes: int
    role: Role
    dtype: str = ""
    shape: tuple[int, ...] = ()
    producer: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One execution of a node. Indices point into ``Dataflow.values``.

    Attributes:
        name: Name of the node.
        op: Operator type, for the report.
        reads: Values that must be intact while the step runs.
        writes: Values that the step defines.
        view_of: Pairs (written, read): the written value is the same bytes as the read one.
        may_overwrite: Pairs (written, read): the step may write over the read value if nobody needs
            that value any more.
        cuts: Triples (written, read, offset): the written value is the bytes of the read one from
            ``offset`` on; the step may leave them there and copy nothing.
        joins: Triples (written, read, offset): the read value is the bytes of the written one from
            ``offset`` on; whoever writes it may write it there, and the step copies nothing.
        scratch_bytes: Working memory of the step itself, alive only while it runs.
        scratch_note: What the scratch is for, for the report.
    """

    name: str
    op: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    view_of: tuple[tuple[int, int], ...] = ()
    may_overwrite: tuple[tuple[int, int], ...] = ()
    cuts: tuple[tuple[int, int, int], ...] = ()
    joins: tuple[tuple[int, int, int], ...] = ()
    scratch_bytes: int = 0
    scratch_note: str = ""


@dataclass(frozen=True, slots=True)
class NotPlanned:
    """A value whose size is not known, with the reason: listed, never counted as zero."""

    name: str
    producer: str
    reason: str


@dataclass(frozen=True)
class Dataflow:
    """Values and steps of one graph, in a valid order.

    Attributes:
        values: All tensors with a known size.
        steps: The executions, in the order of the graph.
        results: Values that must be intact at the end.
        not_planned: Values whose size is unknown; their bytes are in no figure.
        assumptions: Sentences that the figures rest on.
    """

    values: tuple[DataValue, ...]
    steps: tuple[Step, ...]
    results: tuple[int, ...]
    not_planned: tuple[NotPlanned, ...] = ()
    assumptions: tuple[str, ...] = ()
    _writer: dict[int, int] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        for index, step in enumerate(self.steps):
            for value in step.writes:
                if value in self._writer:
                    raise InvariantError(
                        "dataflow-invalid", f"value '{self.values[value].name}' is written twice"
                    )
                self._writer[value] = index
        self._check()

    def _check(self) -> None:
        for index, step in enumerate(self.steps):
            for value in step.reads:
                if self._writer.get(value, -1) >= index:
                    raise InvariantError(
                        "dataflow-invalid",
                        f"step '{step.name}' reads '{self.values[value].name}' too early",
                    )
            reads, writes = set(step.reads), set(step.writes)
            parts = (*step.cuts, *step.joins)
            pairs = (*step.view_of, *step.may_overwrite, *((w, r) for w, r, _ in parts))
            for written, read in pairs:
                if written not in writes or read not in reads:
                    raise InvariantError(
                        "dataflow-invalid", f"step '{step.name}' aliases values it does not touch"
                    )
            for whole, part, offset in (
                *((r, w, o) for w, r, o in step.cuts),
                *step.joins,
            ):
                end = offset + self.values[part].size_bytes
                if not 0 <= offset <= end <= self.values[whole].size_bytes:
                    raise InvariantError(
                        "dataflow-invalid", f"step '{step.name}' has a part outside of the whole"
                    )
        for index, held in enumerate(self.values):
            if index not in self._writer and held.role is Role.ACTIVATION:
                raise InvariantError("dataflow-invalid", f"nobody writes '{held.name}'")

    def writer(self, value: int) -> int | None:
        """Return the index of the step that writes ``value``, None for inputs and weights."""
        return self._writer.get(value)

    def reordered(self, order: Sequence[int]) -> "Dataflow":
        """Return the same dataflow with its steps in ``order``, a permutation of step indices.

        Raises:
            InvariantError: the order is no permutation or runs a reader before its writer.
        """
        if sorted(order) != list(range(len(self.steps))):
            raise InvariantError("dataflow-invalid", "a schedule must run every step once")
        return Dataflow(
            self.values,
            tuple(self.steps[i] for i in order),
            self.results,
            self.not_planned,
            self.assumptions,
        )
