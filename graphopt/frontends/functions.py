"""Functions of a model: inlined, so that nothing after the loader has to know them."""

from collections import Counter
from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from graphopt.errors import InvalidModelError, UnsupportedError
from graphopt.frontends.text import shown
from graphopt.ir.program import graphs_of

# A function of ten calls of a function of ten calls ... multiplies: eight lines make 10**8 nodes.
MAX_INLINED_NODES = 1_000_000
# The inliner tries name_2, name_3, ... for every clash, so the calls of one function count squared.
MAX_CALLS_OF_ONE = 20_000


def inline_functions(model: ir.Model) -> str | None:
    """Replace every call of a model-local function by its body; returns a note when there was one.

    Raises:
        InvalidModelError: functions call each other in a circle, or expand beyond all measure.
        UnsupportedError: a function cannot be inlined.
    """
    if not model.functions:
        return None
    names = [identity[1] for identity in model.functions]
    _check_expansion(model)
    try:
        InlinePass()(model)
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise UnsupportedError(
            "function-not-inlinable",
            f"a function of the model cannot be inlined: {str(cause).splitlines()[0][:200]}",
            hint="inline the functions where the model is made, with onnx.inliner",
        ) from error
    model.functions.clear()
    return f"{len(names)} functions were inlined: {', '.join(shown(n) for n in names[:5])}" + (
        ", ..." if len(names) > 5 else ""
    )


def _nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    for inner in graphs_of(graph):
        yield from inner


def _check_expansion(model: ir.Model) -> None:
    """Refuse recursion and explosion, by sizes alone; linear in nodes and calls."""
    functions = model.functions
    calls: dict[ir.OperatorIdentifier, Counter[ir.OperatorIdentifier]] = {}
    size: dict[ir.OperatorIdentifier, int] = {}
    for identity, function in functions.items():
        nodes = list(_nodes(function.graph))
        calls[identity] = Counter(
            n.op_identifier() for n in nodes if n.op_identifier() in functions
        )
        size[identity] = len(nodes)
    callers: dict[ir.OperatorIdentifier, list[ir.OperatorIdentifier]] = {i: [] for i in functions}
    waiting = {identity: len(called) for identity, called in calls.items()}
    for identity, called in calls.items():
        for callee in called:
            callers[callee].append(identity)
    ready = [identity for identity, count in waiting.items() if not count]
    done: list[ir.OperatorIdentifier] = []
    while ready:
        identity = ready.pop()
        done.append(identity)
        size[identity] += sum(count * size[callee] for callee, count in calls[identity].items())
        for caller in callers[identity]:
            waiting[caller] -= 1
            if not waiting[caller]:
                ready.append(caller)
    if len(done) < len(functions):
        stuck = sorted(i[1] for i, count in waiting.items() if count)
        raise InvalidModelError(
            "function-recursive",
            f"functions call themselves: {', '.join(shown(name) for name in stuck[:5])}",
        )
    _check_totals(model, calls, size, done)


def _check_totals(
    model: ir.Model,
    calls: dict[ir.OperatorIdentifier, Counter[ir.OperatorIdentifier]],
    size: dict[ir.OperatorIdentifier, int],
    callees_first: list[ir.OperatorIdentifier],
) -> None:
    """Refuse more calls or nodes after inlining than the limits."""
    total: Counter[ir.OperatorIdentifier] = Counter()
    nodes = 0
    for node in _nodes(model.graph):
        identity = node.op_identifier()
        if identity in size:
            total[identity] += 1
            nodes += size[identity]
        else:
            nodes += 1
    for identity in reversed(callees_first):
        for callee, count in calls[identity].items():
            total[callee] += count * total[identity]
    most = max(total.values(), default=0)
    if nodes > MAX_INLINED_NODES or most > MAX_CALLS_OF_ONE:
        raise InvalidModelError(
            "function-expansion",
            f"with its functions inlined the model has {nodes} nodes and {most} calls of one "
            f"function; at most {MAX_INLINED_NODES} and {MAX_CALLS_OF_ONE} are allowed",
        )
