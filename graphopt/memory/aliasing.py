"""Which values share a buffer: views always, in-place writes where the last reader permits.

Correctness of an in-place write of ``w`` over ``r`` at step ``s``, argued:

1. ``may_overwrite`` says that byte ``i`` of ``w`` depends on byte range ``i`` of ``r`` only, so the
   step itself is right when both are the same storage.
2. Nobody else may need the old bytes. The buffer of ``r`` holds ``r`` and the values merged with
   it so far (its views, and what it was written over). The write is allowed only when no step
   after ``s`` reads any of them and none is a result of the graph.
3. Another operand of ``s`` in the same buffer is a view of the same bytes in the same order with
   the same number of elements (``op_facts`` allows no broadcast), so element ``i`` of it is read
   for element ``i`` of ``w`` as well.
4. Buffers owned by somebody else are never overwritten: weights, and inputs unless the runtime
   keeps them inside the arena. Carried state is an input for this purpose.
5. Sizes are equal, so the write cannot reach past the buffer.
"""

from dataclasses import dataclass

from graphopt.memory.dataflow import Dataflow, Role


@dataclass(frozen=True)
class Aliasing:
    """Values grouped into buffers.

    Attributes:
        root: For each value the value that names its buffer.
        relation: For each value "" when it opened its buffer, else "view", "in-place" or "part".
        source: For each value the value it shares bytes with, itself when it opened its buffer.
        offset: For each value where it starts in its buffer, in bytes.
    """

    root: tuple[int, ...]
    relation: tuple[str, ...]
    source: tuple[int, ...]
    offset: tuple[int, ...]

    def groups(self) -> dict[int, list[int]]:
        """Return the members of each buffer, by root, in the order of the values."""
        members: dict[int, list[int]] = {}
        for value, root in enumerate(self.root):
            members.setdefault(root, []).append(value)
        return members


def resolve_aliases(dataflow: Dataflow, *, in_place: bool, io_in_arena: bool) -> Aliasing:
    """Return which values share a buffer when the steps run in the order of ``dataflow``.

    Args:
        dataflow: Values and steps in their final order.
        in_place: Whether the runtime writes in place at all.
        io_in_arena: Whether graph inputs belong to the arena and may be written over.
    """
    count = len(dataflow.values)
    root = list(range(count))
    relation = [""] * count
    source = list(range(count))
    for step in dataflow.steps:
        for written, read in step.view_of:
            root[written], relation[written], source[written] = root[read], "view", read
    if in_place:
        _merge_in_place(dataflow, root, relation, source, io_in_arena=io_in_arena)
    return Aliasing(tuple(root), tuple(relation), tuple(source), (0,) * count)


def _merge_in_place(
    dataflow: Dataflow,
    root: list[int],
    relation: list[str],
    source: list[int],
    *,
    io_in_arena: bool,
) -> None:
    # Everything below is per view group; an in-place write joins the group of w to that of r, and
    # `target` leads from the root of a joined group to the root of the buffer.
    target: dict[int, int] = {}
    last_use = dict.fromkeys(root, -1)
    size = dict.fromkeys(root, 0)
    held: set[int] = set()
    for index, value in enumerate(dataflow.values):
        group = root[index]
        size[group] = max(size[group], value.size_bytes)
        callers = value.role is Role.WEIGHT or not io_in_arena
        if callers and dataflow.writer(index) is None:
            held.add(group)
    for number, step in enumerate(dataflow.steps):
        for read in step.reads:
            last_use[root[read]] = number
    held.update(root[value] for value in dataflow.results)
    written_over: set[int] = set()
    for number, step in enumerate(dataflow.steps):
        for written, read in step.may_overwrite:
            group, over = root[written], root[read]
            if relation[written] or group in target or over == group:
                continue
            if over in held or over in written_over or last_use[over] != number:
                continue
            if size[group] != size[over] or size[group] == 0:
                continue
            if not _alone_at(dataflow, step.writes, root, over):
                continue
            written_over.add(over)
            target[group] = over
            relation[written], source[written] = "in-place", read
    for index, group in enumerate(root):
        final = group
        while final in target:
            final = target[final]
        # Path compression keeps long chains of in-place writes linear.
        while group in target and target[group] != final:
            target[group], group = final, target[group]
        root[index] = final


def _alone_at(dataflow: Dataflow, writes: tuple[int, ...], root: list[int], over: int) -> bool:
    """Return whether no output of the step is itself a view into the group to be overwritten."""
    return all(root[value] != over for value in writes)
