"""Weights that are streamed: copied into the arena one step ahead of their use, then forgotten.

In: a dataflow whose steps read weights where they lie. Out: the same with a ``Stream`` step per
use, which reads the weight and writes a copy into the arena; the user reads the copy. The copy
for step ``i`` is made before step ``i - 1`` runs, so it can be transferred while that step
computes: two sets of weights are in the arena at a time (double buffering). Lifetimes, placement
and proof then need no special case. For devices that compute from fast memory while weights wait
in a slow one.
"""

from dataclasses import replace

from graphopt.memory.dataflow import Dataflow, DataValue, Role, Step

STREAM_OP = "Stream"


def stream_weights(flow: Dataflow) -> Dataflow:
    """Return ``flow`` with every use of a weight served from a copy in the arena."""
    values = list(flow.values)
    loads: list[list[Step]] = []
    users: list[Step] = []
    for step in flow.steps:
        copies: dict[int, int] = {}
        load: list[Step] = []
        for read in step.reads:
            weight = flow.values[read]
            if weight.role is not Role.WEIGHT or not weight.size_bytes:
                continue
            name = f"stream {weight.name} for {step.name}"
            copies[read] = len(values)
            values.append(
                DataValue(
                    f"{weight.name} for {step.name}",
                    weight.size_bytes,
                    Role.ACTIVATION,
                    weight.dtype,
                    weight.shape,
                    name,
                )
            )
            load.append(Step(name, STREAM_OP, (read,), (copies[read],)))
        loads.append(load)
        users.append(_reading(step, copies))
    steps: list[Step] = list(loads[0]) if loads else []
    for number, user in enumerate(users):
        if number + 1 < len(users):
            steps += loads[number + 1]
        steps.append(user)
    return Dataflow(tuple(values), tuple(steps), flow.results, flow.not_planned, flow.assumptions)


def _reading(step: Step, copies: dict[int, int]) -> Step:
    """Return ``step`` with the copies in place of the weights, in every fact that names them."""
    if not copies:
        return step

    def instead(value: int) -> int:
        return copies.get(value, value)

    return replace(
        step,
        reads=tuple(instead(v) for v in step.reads),
        view_of=tuple((w, instead(r)) for w, r in step.view_of),
        may_overwrite=tuple((w, instead(r)) for w, r in step.may_overwrite),
        cuts=tuple((w, instead(r), o) for w, r, o in step.cuts),
        joins=tuple((w, instead(r), o) for w, r, o in step.joins),
    )
