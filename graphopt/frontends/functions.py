"""Functions of a model: inlined, so that nothing after the loader has to know them.

``onnx_ir`` has an inliner; it is not used because it looks for a free name by counting up from 2 at
every call, which is quadratic in the calls of one function, and because it gives the name of a
call's output to whatever the function returns, a graph input included.

Bodies are inlined callees first, so each is flat when it is copied, and the work is proportional to
the nodes that result.
"""

from collections import Counter
from collections.abc import Iterator

import onnx_ir as ir

from graphopt.errors import InvalidModelError, UnsupportedError
from graphopt.frontends.text import shown
from graphopt.ir.program import bodies_of, graphs_of

# A function of ten calls of a function of ten calls ... multiplies: eight lines make 10**8 nodes.
MAX_INLINED_NODES = 1_000_000

_GRAPH_TYPES = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def inline_functions(model: ir.Model) -> str | None:
    """Replace every call of a model-local function by its body; returns a note when there was one.

    The nodes of every body must be in an order that can be run. Names of values and nodes may
    repeat afterwards.

    Raises:
        InvalidModelError: functions call each other in a circle, or expand beyond all measure.
        UnsupportedError: a function cannot be inlined.
    """
    if not model.functions:
        return None
    names = [identity[1] for identity in model.functions]
    for identity in _callees_first(model):
        _inline_calls(model, model.functions[identity].graph)
    _inline_calls(model, model.graph)
    model.functions.clear()
    return f"{len(names)} functions were inlined: {', '.join(shown(n) for n in names[:5])}" + (
        ", ..." if len(names) > 5 else ""
    )


def _inline_calls(model: ir.Model, root: ir.Graph) -> None:
    pending = [root]
    while pending:
        graph = pending.pop()
        for node in tuple(graph):
            if node.op_identifier() in model.functions:
                _inline_call(model, graph, node)
            else:
                pending.extend(bodies_of(node))


def _inline_call(model: ir.Model, graph: ir.Graph, call: ir.Node) -> None:
    """Put a copy of the function's body in the place of ``call``."""
    function = model.functions[call.op_identifier()]
    _merge_imports(model, function)
    if len(call.inputs) > len(function.inputs) or len(call.outputs) > len(function.outputs):
        raise _cannot(function, f"it is called with {len(call.inputs)} inputs for "
                      f"{len(call.outputs)} outputs, and has {len(function.inputs)} and "
                      f"{len(function.outputs)}")  # fmt: skip
    body = function.graph.clone()
    given = {**function.attributes, **call.attributes}
    for inner in _nodes(body):
        _resolve_references(function, inner, given)
        for key, text in call.metadata_props.items():
            inner.metadata_props.setdefault(key, text)
    actual: dict[ir.Value, ir.Value | None] = dict.fromkeys(body.inputs)
    actual.update(zip(body.inputs, call.inputs, strict=False))
    results = list(body.outputs)
    nodes = list(body)
    body.outputs.clear()
    body.remove(nodes)
    for formal, value in actual.items():
        for user, index in tuple(formal.uses()):
            user.replace_input_with(index, value)
    nodes += _replace_outputs(function, call, results, actual)
    graph.insert_before(call, nodes)
    graph.remove(call, safe=True)


def _replace_outputs(
    function: ir.Function,
    call: ir.Node,
    results: list[ir.Value],
    actual: dict[ir.Value, ir.Value | None],
) -> list[ir.Node]:
    """Give the outputs of ``call`` over to ``results``; returns nodes needed to tell them apart."""
    copies: list[ir.Node] = []
    given_over: set[ir.Value] = set()
    for old, result in zip(call.outputs, results, strict=False):
        if not old.uses() and not old.is_graph_output():
            continue
        value = actual.get(result, result)
        if value is None:
            raise _cannot(function, f"it returns its input '{result.name}', which the call omits")
        if result in actual or value in given_over:
            # The value has a name of its own already: an input, or returned before.
            copy = ir.Node("", "Identity", [value], name=call.name)
            copies.append(copy)
            value = copy.outputs[0]
        given_over.add(value)
        value.type = old.type if old.type is not None else value.type
        value.shape = old.shape if old.shape is not None else value.shape
        value.name = old.name
        old.replace_all_uses_with(value, replace_graph_outputs=True)
    return copies


def _resolve_references(function: ir.Function, node: ir.Node, given: dict[str, ir.Attr]) -> None:
    """Put what the call gave in the place of references to parameters of the function."""
    for key, attribute in tuple(node.attributes.items()):
        if not attribute.is_ref():
            continue
        found = given.get(attribute.ref_attr_name or "")
        if found is None or (found.value is None and not found.is_ref()):
            # The attribute is optional, the call does not give it, and it has no default.
            del node.attributes[key]
        elif found.is_ref():
            node.attributes[key] = ir.RefAttr(key, found.ref_attr_name or "", found.type)
        elif found.type in _GRAPH_TYPES:
            raise _cannot(function, f"its parameter '{attribute.ref_attr_name}' is a graph")
        else:
            node.attributes[key] = ir.Attr(key, found.type, found.value)


def _merge_imports(model: ir.Model, function: ir.Function) -> None:
    for domain, version in function.opset_imports.items():
        known = model.opset_imports.setdefault(domain, version)
        if known != version:
            raise _cannot(
                function,
                f"it uses version {version} of the domain {shown(domain)}, the model {known}",
            )


def _cannot(function: ir.Function, why: str) -> UnsupportedError:
    return UnsupportedError(
        "function-not-inlinable",
        f"the function {shown(function.name)} cannot be inlined: {why}",
        hint="inline the functions where the model is made, with onnx.inliner",
    )


def _nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    for inner in graphs_of(graph):
        yield from inner


def _callees_first(model: ir.Model) -> list[ir.OperatorIdentifier]:
    """Return the functions that are called, each after those that it calls.

    Linear in nodes and calls.

    Raises:
        InvalidModelError: there is no such order, or inlining makes too many nodes.
    """
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
        size[identity] += sum(n * (size[callee] - 1) for callee, n in calls[identity].items())
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
    called_at_all: set[ir.OperatorIdentifier] = set()
    total = 0
    for node in _nodes(model.graph):
        called_at_all.add(node.op_identifier())
        total += size.get(node.op_identifier(), 1)
    if total > MAX_INLINED_NODES:
        raise InvalidModelError(
            "function-expansion",
            f"with its functions inlined the model has {total} nodes, at most {MAX_INLINED_NODES} "
            "are allowed",
        )
    for identity in reversed(done):
        if identity in called_at_all:
            called_at_all.update(calls[identity])
    return [identity for identity in done if identity in called_at_all]
