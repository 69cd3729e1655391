"""Rules for If, Loop and Scan: sub-graphs, and values that change from one iteration to the next.

A state whose shape changes is widened: the axes that change become symbols, and the body is
inferred again until nothing changes (Cousot and Cousot 1977, "Abstract interpretation", section
9, with the symbols as the widening). What was widened stays so when an enclosing body runs again,
so nested loops cost the sum of their widenings and not the product.
"""

from collections.abc import Callable
from typing import NamedTuple

import onnx_ir as ir

from graphopt.errors import InvalidModelError
from graphopt.ir.dims import Dim, Expr, add, symbols_of
from graphopt.ir.program import graphs_of
from graphopt.ir.shape_rules.algebra import at_least, larger, sub, times
from graphopt.ir.shape_rules.contents import Contents, Entry
from graphopt.ir.shape_rules.facts import Element, Snapshot
from graphopt.ir.shape_rules.registry import rule
from graphopt.ir.shape_rules.view import NodeView, Shape

BOOL = ir.DataType.BOOL
INT64 = ir.DataType.INT64

# Widening codes besides axis numbers.
_CONTENTS = -1
_RANK = -2
_MAX_ROUNDS = 8
# A larger trip count stands for "until the condition fails".
_ENDLESS = 2**31


@rule("If")
def if_(view: NodeView) -> None:
    """The branch that a known condition takes; else what both branches agree on."""
    condition = view.scalar(0)
    branches = [view.graph("then_branch"), view.graph("else_branch")]
    failures = [_run_branch(view, body) for body in branches]
    taken = [0, 1]
    if isinstance(condition, int):
        taken = [0 if condition else 1]
    elif None in failures:
        taken = [i for i in taken if failures[i] is None]
    for index in taken:
        failure = failures[index]
        if failure is not None:
            raise failure
        if len(branches[index].outputs) != len(view.outputs):
            view.malformed(f"a branch has {len(branches[index].outputs)} outputs")
    for i in range(len(view.outputs)):
        results = [branches[b].outputs[i] for b in taken]
        sources = [view.facts.snapshot(value) for value in results]
        _merge(view, i, sources, _why(view, results))


def _run_branch(view: NodeView, body: ir.Graph) -> InvalidModelError | None:
    """Infer a branch; a branch that cannot run at these sizes is never taken."""
    facts = view.facts
    facts.impossible.pop(body, None)
    try:
        view.run_body(body)
    except InvalidModelError as error:
        facts.impossible[body] = error.message
        reason = f"its branch cannot run at these sizes: {error.message}"
        for graph in graphs_of(body):
            for node in graph:
                for value in node.outputs:
                    if value not in facts.dims:
                        facts.reasons.setdefault(value, reason)
        return error
    return None


def _why(view: NodeView, results: list[ir.Value]) -> str:
    """Return why the first of ``results`` without a shape has none."""
    found = view.facts
    reasons = [found.reasons.get(v, "it is not known") for v in results if v not in found.dims]
    return reasons[0] if reasons else ""


def _merge(view: NodeView, index: int, sources: list[Snapshot], why: str) -> None:
    """Record for output ``index`` what holds for all ``sources``.

    Args:
        view: The node.
        index: Number of the output.
        sources: What it may be.
        why: Why one of them has no dims, if so.
    """
    first = sources[0]
    if any(s.element is not None for s in sources):
        element = first.element
        for source in sources[1:]:
            element = join_elements(element, source.element)
        if element is None:
            view.unknown(index, "it may be of different types")
        else:
            view.holds(index, element)
        return
    if first.dtype is not None and all(s.dtype is first.dtype for s in sources):
        view.facts.set_dtype(view.outputs[index], first.dtype)
    shapes = [s.dims for s in sources if s.dims is not None]
    if len(shapes) < len(sources):
        view.unknown(index, f"its body gives it no known shape: {why}")
        return
    if any(len(shape) != len(shapes[0]) for shape in shapes):
        ranks = " and ".join(str(len(shape)) for shape in shapes)
        view.unknown(index, f"the branches give it ranks {ranks}{_deciders(view)}")
        return
    dims = list(shapes[0])
    for shape in shapes[1:]:
        for axis, dim in enumerate(shape):
            if dim != dims[axis]:
                upper = larger(dims[axis], dim, view.bounds)
                dims[axis] = view.fresh(index, axis, "the branches differ", upper)
    view.out(index, tuple(dims))
    entries = _common_entries([s.contents for s in sources])
    if entries is not None:
        view.know(entries, index)


def _deciders(view: NodeView) -> str:
    """Return which sizes the condition compares, as far as they are easily found."""
    value = view.inputs[0] if view.inputs else None
    for _ in range(8):
        producer = None if value is None else value.producer()
        if producer is None:
            break
        sizes: list[str] = []
        for source in producer.inputs:
            contents = None if source is None else view.facts.contents.get(source)
            entries = contents.entries if contents is not None else ()
            sizes += [str(entry) for entry in entries if isinstance(entry, Expr)]
        if sizes:
            return f"; which one runs is decided by {', '.join(sizes)}"
        value = producer.inputs[0] if producer.inputs else None
    return ""


def _common_entries(sources: list[Contents | None]) -> tuple[Entry, ...] | None:
    first = sources[0]
    if first is None:
        return None
    entries = first.entries
    for other in sources[1:]:
        if other is None or other.dims != first.dims:
            return None
        entries = tuple(a if a == b else None for a, b in zip(entries, other.entries, strict=True))
    return entries


def join_elements(left: Element | None, right: Element | None) -> Element | None:
    """Return what holds for both; None when they are of different kinds.

    A sequence and an optional of a sequence have in common to be an optional of one.
    """
    if left is None or right is None:
        return None
    if left.kind != right.kind:
        optional, plain = (left, right) if left.kind == "optional" else (right, left)
        inner = join_elements(optional.inner, plain)
        return None if inner is None else Element("optional", inner.dtype, None, inner)
    if left == right:
        return left
    inner = join_elements(left.inner, right.inner) if left.inner and right.inner else None
    return Element(
        left.kind,
        left.dtype if left.dtype is right.dtype else None,
        left.dims if left.dims == right.dims else None,
        inner,
        left.parts if left.parts == right.parts else None,
    )


class _Trips(NamedTuple):
    """How often a body runs.

    Attributes:
        limit: The most iterations, if that is a known dimension.
        exact: Whether there are exactly as many.
        batch: The axis that Scan of opset 8 puts before the states.
    """

    limit: Dim | None
    exact: bool
    batch: Shape = ()


def _widen(
    view: NodeView, index: int, old: Snapshot, new: Snapshot, *, everything: bool
) -> Snapshot:
    """Return what holds before every iteration for state ``index``.

    Args:
        view: The node.
        index: Number of the state.
        old: What was assumed.
        new: What the body makes of it.
        everything: Give up all dims at once, to end the rounds.
    """
    widened = view.facts.widened.setdefault(view.node, set())
    dims = old.dims
    if dims is not None and (new.dims is None or len(new.dims) != len(dims)):
        if new.element is None and old.element is None:
            widened.add((index, _RANK))
    elif dims is not None and new.dims is not None:
        for axis, (before, after) in enumerate(zip(dims, new.dims, strict=True)):
            if before != after or everything:
                widened.add((index, axis))
    if old.contents is not None and (everything or new.contents != old.contents):
        widened.add((index, _CONTENTS))
    element = old.element
    if element is not None:
        element = join_elements(element, new.element)
    return _apply_widening(view, index, old._replace(element=element))


def _apply_widening(view: NodeView, index: int, state: Snapshot) -> Snapshot:
    widened = view.facts.widened.get(view.node, set())
    if (index, _CONTENTS) in widened:
        state = state._replace(contents=None)
    if (index, _RANK) in widened:
        return state._replace(dims=None, contents=None)
    if state.dims is None:
        return state
    dims = tuple(
        _state_symbol(view, index, axis) if (index, axis) in widened else dim
        for axis, dim in enumerate(state.dims)
    )
    return state._replace(dims=dims)


def _state_symbol(view: NodeView, index: int, axis: int) -> Dim:
    reason = f"axis {axis} of state {index} changes in each iteration ({view.label})"
    stem = f"{view.name}_state{index}_dim{axis}"
    return view.facts.fresh(view.node, stem, reason, None, None, False)


def _iterate(
    view: NodeView, body: ir.Graph, inputs: list[ir.Value], states: list[Snapshot]
) -> tuple[list[Snapshot], list[Snapshot]]:
    """Run ``body`` until its states hold for every iteration.

    Args:
        view: The node.
        body: Its body, whose first outputs are the states.
        inputs: The inputs of the body that receive the states.
        states: What goes into the first iteration.

    Returns:
        What holds before every iteration, and what the body makes of it.
    """
    current = [_apply_widening(view, i, s) for i, s in enumerate(states)]
    for attempt in range(_MAX_ROUNDS + 3):
        widened = view.facts.widened.get(view.node, set())
        for i, (value, state) in enumerate(zip(inputs, current, strict=True)):
            changes = (i, _RANK) in widened
            reason = "the number of axes of the state changes" if changes else "it is not known"
            view.facts.assign(value, state, reason, believe=not changes)
        view.run_body(body)
        after = [view.facts.snapshot(v) for v in body.outputs[: len(current)]]
        wider = [
            _widen(view, i, old, new, everything=attempt >= _MAX_ROUNDS)
            for i, (old, new) in enumerate(zip(current, after, strict=True))
        ]
        if wider == current:
            break
        current = wider
    return current, after


def _final(
    view: NodeView,
    place: tuple[int, int],
    before: Snapshot,
    run: tuple[Snapshot, Snapshot],
    trips: _Trips,
) -> None:
    """Record an output that is the last value of a state.

    Args:
        view: The node.
        place: Numbers of the output and of the state.
        before: What goes into the first iteration.
        run: What holds before every iteration, and what the body makes of it.
        trips: How often the body runs.
    """
    index, state = place
    if trips.exact and trips.limit == 0:
        _merge(view, index, [before], "it goes in without one")
        return
    assumed, after = run
    if after.element is not None and assumed.element is not None:
        # The body may unwrap an optional; what it gives is the type of the output.
        same = assumed.element.kind == after.element.kind
        element = join_elements(assumed.element, after.element) if same else after.element
        view.holds(index, element or Element(after.element.kind, after.element.dtype))
        return
    if assumed.dims is None or after.dims is None or before.dims is None:
        _merge(view, index, [assumed, after], "the number of axes may change")
        return
    if assumed.dtype is not None:
        view.facts.set_dtype(view.outputs[index], assumed.dtype)
    dims: list[Dim] = []
    for axis, (start, symbol, end) in enumerate(
        zip(before.dims, assumed.dims, after.dims, strict=True)
    ):
        if symbol == end:
            dims.append(symbol)
        else:
            dims.append(_grown(view, (index, state, axis), (start, symbol, end), trips))
    view.out(index, (*trips.batch, *dims))
    entries = _common_entries([assumed.contents, after.contents])
    if entries is not None:
        view.know(entries, index)


def _grown(
    view: NodeView, place: tuple[int, int, int], sizes: tuple[Dim, Dim, Dim], trips: _Trips
) -> Dim:
    """Return the last size of an axis that changes; exact when it grows by the same each time."""
    index, state, axis = place
    start, symbol, end = sizes
    reason = f"axis {axis} of state {state} changes in each iteration"
    growth = sub(end, symbol)
    if not _depends_on_data(view, end):
        # The first iteration brings the final size.
        _limit(view, symbol, larger(start, end, view.bounds))
        if trips.exact and trips.limit is not None and at_least(trips.limit, 1, view.bounds):
            return end
        return view.fresh(index, axis, reason, larger(start, end, view.bounds))
    if trips.limit is None or _depends_on_data(view, growth):
        return view.fresh(index, axis, reason)
    last = add(start, times(trips.limit, growth))
    grows = at_least(growth, 0, view.bounds)
    if grows:
        _limit(view, symbol, last)
    if trips.exact:
        return last
    return view.fresh(index, axis, reason, last if grows else None)


def _depends_on_data(view: NodeView, dim: Dim) -> bool:
    return any(name in view.facts.data_dependent for name in symbols_of(dim))


def _limit(view: NodeView, symbol: Dim, upper: Dim) -> None:
    """Record that the symbol of a state never exceeds ``upper``."""
    for name in symbols_of(symbol):
        view.facts.limit(name, upper)


def _trip_dim(view: NodeView, trips: _Trips) -> Dim:
    if trips.exact and trips.limit is not None:
        return trips.limit
    reason = f"the number of iterations ({view.label})"
    return view.facts.fresh(view.node, f"{view.name}_trips", reason, trips.limit, None, False)


@rule("Loop")
def loop(view: NodeView) -> None:
    """States after the last iteration, then one row for each iteration."""
    body = view.graph("body")
    count = len(view.inputs) - 2
    scanned = len(body.outputs) - 1 - count
    if count < 0 or len(body.inputs) != count + 2 or scanned < 0:
        view.malformed(f"the body has {len(body.inputs)} inputs and {len(body.outputs)} outputs")
    facts = view.facts
    number = Snapshot(INT64, _scalar_dims(body.inputs[0]), None, None)
    facts.assign(body.inputs[0], number, "")
    states = [_condition(view, body.inputs[1])]
    states += [facts.snapshot(view.value(i)) for i in range(2, len(view.inputs))]
    before, after = _iterate(view, body, list(body.inputs[1:]), states)
    trips = _loop_trips(view, states[0], before[0], after[0])
    for i in range(1, count + 1):
        _final(view, (i - 1, i), states[i], (before[i], after[i]), trips)
    for i in range(scanned):
        result = body.outputs[1 + count + i]
        _stacked(view, count + i, result, lambda dims: (_trip_dim(view, trips), *dims))


def _scalar_dims(value: ir.Value) -> Shape:
    """Return how a runtime passes a number to the body: as a vector of one if it asks for that."""
    shape = value.shape
    return (1,) if shape is not None and len(shape) == 1 else ()


def _condition(view: NodeView, target: ir.Value) -> Snapshot:
    dims = _scalar_dims(target)
    known: Entry = view.scalar(1) if view.has(1) else 1
    contents = None if known is None else Contents((1,) * len(dims), (known,))
    return Snapshot(BOOL, dims, contents, None)


def _loop_trips(view: NodeView, first: Snapshot, before: Snapshot, after: Snapshot) -> _Trips:
    limit = view.scalar(0) if view.has(0) else None
    if first.contents is not None and first.contents.entries == (0,):
        return _Trips(0, exact=True)
    if not isinstance(limit, int | Expr) or (isinstance(limit, int) and limit >= _ENDLESS):
        return _Trips(None, exact=False)
    goes_on = all(s.contents is not None and s.contents.entries == (1,) for s in (before, after))
    return _Trips(larger(limit, 0, view.bounds), exact=goes_on or limit == 0)


def _stacked(
    view: NodeView, index: int, result: ir.Value, arrange: Callable[[Shape], Shape]
) -> None:
    """Record an output that stacks what each iteration gives."""
    source = view.facts.snapshot(result)
    if source.dtype is not None:
        view.facts.set_dtype(view.outputs[index], source.dtype)
    if source.dims is None:
        view.unknown(index, f"its body gives it no known shape: {_why(view, [result])}")
    else:
        view.out(index, arrange(source.dims))


@rule("Scan")
def scan(view: NodeView) -> None:
    """States after the last row, then one row for each row of the scanned inputs."""
    body = view.graph("body")
    scanned = view.int_("num_scan_inputs", 0)
    first = 1 if view.opset < 9 else 0
    count = len(view.inputs) - first - scanned
    rows = len(body.outputs) - count
    if scanned < 1 or count < 0 or len(body.inputs) != count + scanned or rows < 0:
        view.malformed(f"the body has {len(body.inputs)} inputs and {len(body.outputs)} outputs")
    facts = view.facts
    states = [facts.snapshot(view.value(first + i)) for i in range(count)]
    batch: Shape = ()
    if first:
        batch, states = _without_batch(view, states)
    axes = view.ints("scan_input_axes") or (0,) * scanned
    if len(axes) != scanned:
        view.malformed(f"attribute 'scan_input_axes' is {list(axes)}")
    length: Dim | None = None
    for i in range(scanned):
        dims = view.ranked(first + count + i, 1 + len(batch))[len(batch) :]
        axis = view.axis(axes[i], len(dims))
        length = dims[axis] if length is None else view.same(length, dims[axis], "lengths to scan")
        row = (*dims[:axis], *dims[axis + 1 :])
        dtype = facts.dtype_of(view.value(first + count + i))
        facts.assign(body.inputs[count + i], Snapshot(dtype, row, None, None), "")
    trips = _Trips(length, exact=True, batch=batch)
    before, after = _iterate(view, body, list(body.inputs[:count]), states)
    for i in range(count):
        _final(view, (i, i), states[i], (before[i], after[i]), trips)
    _scan_outputs(view, body, count, batch, _trip_dim(view, trips))


def _without_batch(view: NodeView, states: list[Snapshot]) -> tuple[Shape, list[Snapshot]]:
    """Return the batch axis that opset 8 puts before everything, and the states without it."""
    batch = view.ranked(len(view.inputs) - 1, 2)[:1]
    cut = [s._replace(dims=s.dims[1:] if s.dims else None, contents=None) for s in states]
    return batch, cut


def _scan_outputs(view: NodeView, body: ir.Graph, count: int, batch: Shape, length: Dim) -> None:
    rows = len(body.outputs) - count
    axes = view.ints("scan_output_axes") or (0,) * rows
    if len(axes) != rows:
        view.malformed(f"attribute 'scan_output_axes' is {list(axes)}")
    for i in range(rows):

        def arrange(dims: Shape, axis: int = axes[i]) -> Shape:
            place = view.axis(axis, len(dims) + 1)
            return (*batch, *dims[:place], length, *dims[place:])

        _stacked(view, count + i, body.outputs[count + i], arrange)
