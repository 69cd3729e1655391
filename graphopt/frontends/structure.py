"""The structural check of a model as it stands in a file, before an IR is built from it.

In: a ``ModelProto``. Out: nothing, or facts that the loader acts on; whatever is wrong is an
``InvalidModelError`` that names the thing, whatever graphopt cannot hold an ``UnsupportedError``.
What passes can be handed to ``onnx_ir``, which looks up names without checking them, calls itself
for every nested graph, and drops what it does not know.

Two walks over the graphs, both with an explicit stack and linear in what the model holds:

1. *declare and look*: every name, type, attribute and tensor; each graph becomes a ``Scope``;
2. *resolve*: every read finds its definition, innermost scope first. A read of a later definition
   makes its scope unsorted; Kahn's algorithm then tells an unsorted graph from a cyclic one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx

from graphopt.errors import InvalidModelError, UnsupportedError
from graphopt.frontends.external_data import ExternalFiles
from graphopt.frontends.tensors import check_tensor, check_type
from graphopt.frontends.text import check_name, shown
from graphopt.frontends.wire import Span

MAX_NODES = 5_000_000
MAX_ATTRIBUTES = 10_000
MAX_DEPTH = 64

_Attribute = onnx.AttributeProto
_KNOWN_ATTRIBUTES = frozenset(_Attribute.AttributeType.values()) - {_Attribute.UNDEFINED}
_SPARSE = (_Attribute.SPARSE_TENSOR, _Attribute.SPARSE_TENSORS)
_BEFORE_NODES = -1
_MODEL_TEXTS = ("producer_name", "producer_version", "domain")


@dataclass
class Scope:
    """The names that one graph defines.

    Attributes:
        owner: The graph or function, for messages.
        nodes: Its nodes.
        parent: The scope of the node that holds the graph; None for the main graph and functions.
        position: Index of that node in the parent.
        defined: Name -> index of the node that defines it, -1 for inputs and initializers.
        depth: Number of graphs around this one.
        unsorted: Whether a node reads what a later node defines.
        domains: Operator domains that nodes may be of.
        parameters: Attributes that nodes may refer to.
    """

    owner: onnx.GraphProto | onnx.FunctionProto
    parent: "Scope | None" = None
    position: int = 0
    depth: int = 0
    defined: dict[str, int] = field(default_factory=dict)
    unsorted: bool = False
    domains: frozenset[str] = frozenset()
    parameters: frozenset[str] = frozenset()

    def find(self, name: str) -> "tuple[Scope, int, int] | None":
        """Return where ``name`` is defined, the index there, and the index it is seen from.

        The last number is len(nodes) when the name belongs to this very scope.
        """
        scope: Scope | None = self
        seen_from = len(self.owner.node)
        while scope is not None:
            index = scope.defined.get(name)
            if index is not None:
                return scope, index, seen_from
            seen_from = scope.position
            scope = scope.parent
        return None


@dataclass
class Findings:
    """What the loader has to act on.

    Attributes:
        unsorted: Whether some graph needs a topological sort.
        training: Whether the model holds training information, which nothing here reads.
        odd_text: Whether some documentation or metadata is no UTF-8 text.
        nodes: Number of nodes, nested ones and those of functions included.
    """

    unsorted: bool = False
    odd_text: bool = False
    training: bool = False
    nodes: int = 0


class StructureCheck:
    """One check of one model.

    Args:
        model: The model.
        spans: Initializers of the main graph whose raw data was left in the file.
        external: Receives every tensor with external data.
    """

    def __init__(
        self, model: onnx.ModelProto, spans: Mapping[int, Span], external: ExternalFiles
    ) -> None:
        self._model = model
        self._spans = spans
        self._external = external
        self._scopes: list[Scope] = []
        self._pending: list[Scope] = []
        self._functions: set[tuple[str, str, str]] = set()
        self._function_names = frozenset((f.domain, f.name) for f in model.functions)
        self.findings = Findings(training=bool(model.training_info))

    def run(self) -> Findings:
        """Check the model and return what the loader has to act on.

        Raises:
            InvalidModelError: something is wrong with the model.
            UnsupportedError: it holds something that graphopt has no form for.
        """
        self._read_text(self._model)
        if not all(isinstance(getattr(self._model, key), str) for key in _MODEL_TEXTS):
            self.findings.odd_text = True
        imports = _domains(self._model.opset_import)
        self._pending.append(Scope(self._model.graph, domains=imports))
        self._pending += [
            Scope(
                function,
                domains=_domains(function.opset_import),
                parameters=frozenset(
                    (*function.attribute, *(a.name for a in function.attribute_proto))
                ),
            )
            for function in self._model.functions
        ]
        while self._pending:
            scope = self._pending.pop()
            if scope.depth > MAX_DEPTH:
                raise InvalidModelError(
                    "nesting-too-deep", f"graphs are nested more than {MAX_DEPTH} deep"
                )
            self._scopes.append(scope)
            self._declare(scope)
            self._look_at_nodes(scope)
        for scope in self._scopes:
            self._resolve(scope)
        unsorted = [scope for scope in self._scopes if scope.unsorted]
        if unsorted:
            self.findings.unsorted = True
            dependencies = self._dependencies()
            for scope in unsorted:
                _check_acyclic(scope, dependencies[id(scope)])
        return self.findings

    def _read_text(self, message: Any) -> None:
        """Note text that is no text; protobuf hands it out as bytes."""
        if not isinstance(message.doc_string, str):
            self.findings.odd_text = True
        for entry in message.metadata_props:
            if not (isinstance(entry.key, str) and isinstance(entry.value, str)):
                self.findings.odd_text = True

    def _declare(self, scope: Scope) -> None:
        """Enter the names that the scope defines, each once."""
        owner = scope.owner
        self._read_text(owner)
        if isinstance(owner, onnx.FunctionProto):
            self._declare_function(scope, owner)
        else:
            self._declare_graph(scope, owner)
        for index, node in enumerate(owner.node):
            for name in node.output:
                if name:
                    what = f"output of node {shown(node.name or node.op_type)}"
                    _define(scope, check_name(name, what), index, what)

    def _declare_function(self, scope: Scope, function: onnx.FunctionProto) -> None:
        identity = (function.domain, function.name, function.overload)
        if identity in self._functions:
            raise InvalidModelError(
                "duplicate-function", f"the function {shown(function.name)} is defined twice"
            )
        self._functions.add(identity)
        check_name(function.name, "function")
        for name in function.input:
            _define(scope, check_name(name, "function input"), _BEFORE_NODES, "function input")
        for info in function.value_info:
            check_type(info.type, f"value {shown(str(info.name))}", required=False)
        for attribute in function.attribute_proto:
            where = f"attribute {shown(str(attribute.name))} of function {shown(function.name)}"
            self._look_at_value(scope, 0, attribute, where)

    def _declare_graph(self, scope: Scope, graph: onnx.GraphProto) -> None:
        if graph.sparse_initializer:
            raise UnsupportedError(
                "sparse-tensor",
                f"graph {shown(graph.name)} has sparse initializers",
                hint="store them as dense tensors; zeros cost file size, not correctness",
            )
        inputs: dict[str, onnx.ValueInfoProto] = {}
        for info in graph.input:
            name = check_name(info.name, "graph input")
            check_type(info.type, f"input {shown(name)}", required=scope.parent is None)
            _define(scope, name, _BEFORE_NODES, "graph input")
            inputs[name] = info
        main = scope.parent is None
        for index, tensor in enumerate(graph.initializer):
            name = check_name(tensor.name, "initializer")
            span = self._spans.get(index) if main else None
            check_tensor(tensor, self._external, None if span is None else span.length)
            if name in inputs:
                _check_agreement(inputs.pop(name), tensor)
            else:
                _define(scope, name, _BEFORE_NODES, "initializer")
        for info in (*graph.input, *graph.value_info, *graph.output):
            self._read_text(info)
            check_name(info.name, "value")
            check_type(info.type, f"value {shown(info.name)}", required=False)

    def _look_at_nodes(self, scope: Scope) -> None:
        nodes = scope.owner.node
        self.findings.nodes += len(nodes)
        if self.findings.nodes > MAX_NODES:
            raise InvalidModelError("too-many-nodes", f"the model has more than {MAX_NODES} nodes")
        for index, node in enumerate(nodes):
            self._read_text(node)
            check_name(node.name, "node", may_be_empty=True)
            operator = check_name(node.op_type, "operator")
            domain = check_name(node.domain, "domain", may_be_empty=True)
            if domain not in scope.domains and (domain, operator) not in self._function_names:
                raise InvalidModelError(
                    "opset-import-missing",
                    f"node {shown(node.name)} is of type {shown(node.op_type)} of the domain "
                    f"{shown(domain)}, which the model does not import",
                    node=node.name,
                )
            if node.attribute:
                self._look_at_attributes(scope, index, node)

    def _look_at_attributes(self, scope: Scope, index: int, node: onnx.NodeProto) -> None:
        if len(node.attribute) > MAX_ATTRIBUTES:
            raise InvalidModelError(
                "too-many-attributes",
                f"node {shown(node.name)} has {len(node.attribute)} attributes, "
                f"at most {MAX_ATTRIBUTES} are allowed",
                node=node.name,
            )
        seen: set[str] = set()
        for attribute in node.attribute:
            name = check_name(attribute.name, "attribute")
            where = f"attribute {shown(name)} of node {shown(node.name or node.op_type)}"
            if not isinstance(attribute.doc_string, str):
                self.findings.odd_text = True
            if name in seen:
                raise InvalidModelError("duplicate-attribute", f"{where} is given twice")
            seen.add(name)
            if attribute.ref_attr_name and attribute.ref_attr_name not in scope.parameters:
                raise InvalidModelError(
                    "attribute-reference",
                    f"{where} refers to the function parameter "
                    f"{shown(attribute.ref_attr_name)}, which does not exist here",
                )
            self._look_at_value(scope, index, attribute, where)

    def _look_at_value(
        self, scope: Scope, index: int, attribute: onnx.AttributeProto, where: str
    ) -> None:
        kind = attribute.type
        if kind in _SPARSE:
            raise UnsupportedError("sparse-tensor", f"{where} is a sparse tensor")
        if kind not in _KNOWN_ATTRIBUTES:
            raise InvalidModelError("attribute-type", f"{where} has the unknown type {kind}")
        if attribute.ref_attr_name:
            return
        if kind == _Attribute.TENSOR:
            check_tensor(attribute.t, self._external, None, where)
        elif kind == _Attribute.TENSORS:
            for tensor in attribute.tensors:
                check_tensor(tensor, self._external, None, where)
        elif kind == _Attribute.TYPE_PROTO:
            check_type(attribute.tp, where, required=True)
        elif kind == _Attribute.TYPE_PROTOS:
            for type_proto in attribute.type_protos:
                check_type(type_proto, where, required=True)
        elif kind == _Attribute.STRINGS:
            for text in attribute.strings:
                _check_utf8(text, where)
        elif kind in (_Attribute.GRAPH, _Attribute.GRAPHS):
            bodies = [attribute.g] if kind == _Attribute.GRAPH else attribute.graphs
            self._pending += [
                Scope(
                    body,
                    parent=scope,
                    position=index,
                    depth=scope.depth + 1,
                    domains=scope.domains,
                    parameters=scope.parameters,
                )
                for body in bodies
            ]

    def _resolve(self, scope: Scope) -> None:
        """Find the definition of everything that the scope reads and returns."""
        for name in scope.defined if scope.parent is not None else ():
            _check_not_shadowing(scope, name)
        for index, node in enumerate(scope.owner.node):
            for name in node.input:
                if not name:
                    continue
                found = scope.find(name)
                if found is None:
                    raise InvalidModelError(
                        "value-undefined",
                        f"node {shown(node.name or node.op_type)} reads {shown(str(name))}, "
                        "which nothing defines",
                        node=node.name,
                    )
                home, defined, seen_from = found
                if defined >= (index if home is scope else seen_from):
                    home.unsorted = True
        self._check_outputs(scope)

    def _check_outputs(self, scope: Scope) -> None:
        owner = scope.owner
        names = (
            owner.output
            if isinstance(owner, onnx.FunctionProto)
            else [info.name for info in owner.output]
        )
        if not names and scope.parent is None:
            raise InvalidModelError(
                "no-outputs",
                f"graph {shown(owner.name)} returns nothing",
                hint="the file may be cut short: copy or download it again",
            )
        seen: set[str] = set()
        for name in names:
            if name not in scope.defined:
                outer = scope.find(name) is not None
                raise InvalidModelError(
                    "value-undefined",
                    f"graph {shown(owner.name)} returns {shown(str(name))}, which "
                    + ("belongs to the graph around it" if outer else "nothing defines"),
                    hint="add an Identity node in the inner graph" if outer else None,
                )
            if name in seen:
                raise InvalidModelError(
                    "duplicate-value-name",
                    f"graph {shown(owner.name)} returns {shown(name)} twice",
                    hint="add an Identity node for the second output",
                )
            seen.add(name)

    def _dependencies(self) -> dict[int, list[tuple[int, int]]]:
        """Return pairs (reader, writer) of nodes for each unsorted scope, keyed by its id.

        What a nested graph reads counts as a read of the node that holds it.
        """
        pairs: dict[int, list[tuple[int, int]]] = {id(s): [] for s in self._scopes if s.unsorted}
        for scope in self._scopes:
            for index, node in enumerate(scope.owner.node):
                for name in node.input:
                    found = scope.find(name) if name else None
                    if found is not None and found[0].unsorted and found[1] >= 0:
                        reader = index if found[0] is scope else found[2]
                        pairs[id(found[0])].append((reader, found[1]))
        return pairs


def _check_acyclic(scope: Scope, dependencies: list[tuple[int, int]]) -> None:
    """Raise when no order of the nodes of ``scope`` runs every writer before its readers."""
    count = len(scope.owner.node)
    readers: list[list[int]] = [[] for _ in range(count)]
    missing = [0] * count
    for reader, writer in dependencies:
        readers[writer].append(reader)
        missing[reader] += 1
    ready = [index for index in range(count) if not missing[index]]
    while ready:
        for reader in readers[ready.pop()]:
            missing[reader] -= 1
            if not missing[reader]:
                ready.append(reader)
    stuck = [index for index in range(count) if missing[index]]
    if not stuck:
        return
    cycle = _cycle_among(stuck, readers, missing)
    nodes = scope.owner.node
    names = [shown(nodes[i].name or nodes[i].output[0]) for i in cycle[:8]]
    more = f" (and {len(cycle) - 8} more)" if len(cycle) > 8 else ""
    raise InvalidModelError(
        "graph-cyclic",
        f"nodes wait for each other: {' -> '.join([*names, names[0]])}{more}",
        node=nodes[cycle[0]].name,
    )


def _define(scope: Scope, name: str, index: int, what: str) -> None:
    if name in scope.defined:
        raise InvalidModelError(
            "duplicate-value-name",
            f"graph {shown(scope.owner.name)} defines {shown(name)} twice, "
            f"the second time as {what}",
            hint="every value of a graph needs a name of its own",
        )
    scope.defined[name] = index


def _check_not_shadowing(scope: Scope, name: str) -> None:
    """Refuse an inner definition of a name that is already defined around it."""
    assert scope.parent is not None
    outer = scope.parent.find(name)
    if outer is None:
        return
    home, defined, seen_from = outer
    if defined < (scope.position if home is scope.parent else seen_from):
        raise InvalidModelError(
            "duplicate-value-name",
            f"graph {shown(scope.owner.name)} defines {shown(name)}, which the graph around it "
            "defines too",
            hint="every value that a nested graph can see needs a name of its own",
        )


def _check_agreement(info: onnx.ValueInfoProto, tensor: onnx.TensorProto) -> None:
    """Refuse an initializer that contradicts the graph input of the same name."""
    declared = info.type.tensor_type
    dims = [d.dim_value if d.HasField("dim_value") else -1 for d in declared.shape.dim]
    actual = list(tensor.dims)
    agrees = not declared.HasField("shape") or (
        len(dims) == len(actual) and all(d in (-1, a) for d, a in zip(dims, actual, strict=True))
    )
    if declared.elem_type != tensor.data_type or not agrees:
        raise InvalidModelError(
            "initializer-contradicts-input",
            f"initializer {shown(tensor.name)} has shape {actual}, the input of that name {dims}, "
            f"element types {tensor.data_type} and {declared.elem_type}",
        )


def _check_utf8(text: bytes, where: str) -> None:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidModelError("not-utf8", f"{where} is no UTF-8 text: {error}") from error


def _domains(imports: Iterable[onnx.OperatorSetIdProto]) -> frozenset[str]:
    domains = frozenset(check_name(i.domain, "domain", may_be_empty=True) for i in imports)
    return domains | {"", "ai.onnx"} if domains & {"", "ai.onnx"} else domains


def _cycle_among(stuck: list[int], readers: list[list[int]], missing: list[int]) -> list[int]:
    """Return one cycle among nodes that each wait for another one of them."""
    waits_for: dict[int, int] = {}
    for writer in stuck:
        for reader in readers[writer]:
            if missing[reader]:
                waits_for.setdefault(reader, writer)
    path: dict[int, int] = {}
    node = stuck[0]
    while node not in path:
        path[node] = len(path)
        node = waits_for[node]
    start = path[node]
    cycle = [n for n, place in path.items() if place >= start]
    return cycle[::-1]
