"""Models that come as ``onnx_ir.Model``: checked, and copied, because passes rewrite in place."""

from functools import partial
from pathlib import Path

import onnx_ir as ir

from graphopt.errors import InvalidModelError, InvariantError
from graphopt.frontends.external_data import ExternalFiles
from graphopt.frontends.structure import MAX_DEPTH
from graphopt.frontends.tensors import check_tensor, count_elements
from graphopt.frontends.text import check_name, shown
from graphopt.ir.graph_checks import check_links
from graphopt.ir.program import bodies_of, graphs_of


def own_copy(model: ir.Model) -> tuple[ir.Model, tuple[Path, ...]]:
    """Return a copy of ``model`` that shares only the bytes of its tensors, and its data files.

    Raises:
        InvalidModelError: the model is not well-formed, or names data files that it may not.
    """
    files = _Files()
    roots = [model.graph, *(function.graph for function in model.functions.values())]
    for root in roots:
        _check_depth(root)
        for graph in graphs_of(root):
            _check_graph(graph, files)
    try:
        check_links(model)
    except InvariantError as error:
        raise InvalidModelError("graph-invalid", error.message, node=error.node) from error
    try:
        copied = model.clone()
    except Exception as error:
        raise InvalidModelError(
            "graph-invalid", f"the model cannot be copied: {str(_first_cause(error))[:200]}"
        ) from error
    for graph in graphs_of(copied.graph):
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = _own_tensor(value.const_value)
    return copied, files.finish()


def _first_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


class _Files:
    """The data files of a model whose tensors may lie in several folders."""

    def __init__(self) -> None:
        self._by_folder: dict[str, ExternalFiles] = {}

    def of(self, folder: str) -> ExternalFiles:
        if folder not in self._by_folder:
            self._by_folder[folder] = ExternalFiles(Path(folder) if folder else None)
        return self._by_folder[folder]

    def finish(self) -> tuple[Path, ...]:
        return tuple(sorted(path for files in self._by_folder.values() for path in files.finish()))


def _check_depth(root: ir.Graph) -> None:
    pending = [(root, 0)]
    while pending:
        graph, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise InvalidModelError(
                "nesting-too-deep", f"graphs are nested more than {MAX_DEPTH} deep"
            )
        pending += [(body, depth + 1) for node in graph for body in bodies_of(node)]


def _check_graph(graph: ir.Graph, files: _Files) -> None:
    for value in (*graph.inputs, *graph.initializers.values()):
        check_name(value.name or "", "value")
        if value.const_value is not None:
            _check_data(value.const_value, f"initializer {shown(value.name or '')}", files)
    for node in graph:
        check_name(node.name or "", "node", may_be_empty=True)
        check_name(node.op_type, "operator")
        check_name(node.domain, "domain", may_be_empty=True)
        for output in node.outputs:
            check_name(output.name or "", "value", may_be_empty=True)
        for attribute in node.attributes.values():
            where = f"attribute {shown(attribute.name)} of node {shown(node.name or node.op_type)}"
            if attribute.is_ref():
                continue
            if attribute.type is ir.AttributeType.TENSOR:
                _check_data(attribute.as_tensor(), where, files)
            elif attribute.type is ir.AttributeType.TENSORS:
                for tensor in attribute.as_tensors():
                    _check_data(tensor, where, files)


def _check_data(tensor: ir.TensorProtocol, what: str, files: _Files) -> None:
    if isinstance(tensor, ir.ExternalTensor):
        count_elements(tensor.shape.numpy(), what)
        files.of(str(tensor.base_dir)).check_range(
            tensor.name or what,
            str(tensor.location),
            tensor.offset or 0,
            tensor.length,
            tensor.nbytes,
        )
    elif isinstance(tensor, ir.TensorProtoTensor):
        check_tensor(tensor.raw, files.of(""), None, what)


def _own_tensor(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Return the tensor under a name of its own: renaming a value renames its tensor."""
    name = tensor.name or ""
    if isinstance(tensor, ir.ExternalTensor):
        return ir.ExternalTensor(
            tensor.location,
            tensor.offset,
            tensor.length,
            tensor.dtype,
            shape=tensor.shape,
            name=name,
            doc_string=tensor.doc_string,
            base_dir=tensor.base_dir,
        )
    return shared_tensor(tensor)


def shared_tensor(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    """Return a tensor with the data of ``tensor`` whose name can be changed without touching it."""
    shape = ir.Shape(tensor.shape.numpy(), frozen=True)
    return ir.LazyTensor(partial(_same, tensor), tensor.dtype, shape, name=tensor.name)


def _same(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return tensor
