"""A program as text, for people and diffs: one line a node, weights elided, nothing native.

The form follows ONNX's textual syntax; tensors of more than eight elements are written as their
type and a digest of nothing: their bytes are never touched. Linear in nodes.
"""

from collections import Counter
from collections.abc import Iterator

import onnx_ir as ir

from graphopt.ir.program import Program, dims_of

_MOST_ELEMENTS = 8


def program_lines(program: Program) -> list[str]:
    """Return the text of ``program``, one entry a line."""
    model = program.model
    lines = [f"ir_version: {model.ir_version}"]
    imports = ", ".join(f'"{d}": {v}' for d, v in sorted(model.graph.opset_imports.items()))
    lines.append(f"opset_import: [{imports}]")
    lines += [f"bounds: {n} {b.lower}..{b.upper}" for n, b in sorted(program.bounds.items())]
    lines.extend(_graph_lines(model.graph, 0))
    return lines


def _graph_lines(graph: ir.Graph, depth: int) -> Iterator[str]:
    pad = "  " * depth
    inputs = ", ".join(_typed(v) for v in graph.inputs)
    outputs = ", ".join(_typed(v) for v in graph.outputs)
    yield f"{pad}{graph.name or 'graph'} ({inputs}) => ({outputs}) {{"
    for value in graph.initializers.values():
        yield f"{pad}  <{_typed(value)}{_small(value.const_value)}>"
    for node in graph:
        yield from _node_lines(node, depth + 1)
    yield f"{pad}}}"


def _node_lines(node: ir.Node, depth: int) -> Iterator[str]:
    outputs = ", ".join(_typed(v) for v in node.outputs)
    inputs = ", ".join("" if v is None else (v.name or "?") for v in node.inputs)
    op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    plain, bodies = [], []
    for name, attribute in sorted(node.attributes.items()):
        if attribute.type is ir.AttributeType.GRAPH:
            bodies.append((name, attribute.as_graph()))
        elif attribute.type is ir.AttributeType.GRAPHS:
            bodies.extend((name, body) for body in attribute.as_graphs())
        else:
            plain.append(f"{name}={_attribute(attribute)}")
    options = f" <{', '.join(plain)}>" if plain else ""
    yield f"{'  ' * depth}{outputs} = {op}{options} ({inputs})  # {node.name or ''}"
    for name, body in bodies:
        yield f"{'  ' * (depth + 1)}{name}:"
        yield from _graph_lines(body, depth + 1)


def _typed(value: ir.Value) -> str:
    dims = dims_of(value)
    shape = "[?]" if dims is None else "[" + ",".join(str(d) for d in dims) + "]"
    return f"{value.dtype.name.lower() if value.dtype else '?'}{shape} {value.name or '?'}"


def _small(tensor: ir.TensorProtocol | None) -> str:
    if tensor is None or tensor.size > _MOST_ELEMENTS or isinstance(tensor, ir.ExternalTensor):
        return ""
    if tensor.dtype is ir.DataType.STRING:
        return ""
    return f" = {tensor.numpy().ravel().tolist()}"


def _attribute(attribute: ir.Attr) -> str:
    if attribute.is_ref():
        return f"@{attribute.ref_attr_name}"
    if attribute.type is ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        shape = ",".join(str(d) for d in tensor.shape)
        return f"{tensor.dtype.name.lower()}[{shape}]{_small(tensor)}"
    text = repr(attribute.value)
    return text if len(text) <= 200 else text[:200] + "..."


def diff_lines(before: list[str], after: list[str]) -> list[str]:
    """Return ``- old`` and ``+ new`` lines, in their order; lines that only moved are not listed.

    Linear, unlike a longest common subsequence: graphs have tens of thousands of lines.
    """
    gone = Counter(before)
    gone.subtract(after)
    lines = []
    left = Counter({line: n for line, n in gone.items() if n > 0})
    for line in before:
        if left[line] > 0:
            left[line] -= 1
            lines.append(f"- {line}")
    new = Counter({line: -n for line, n in gone.items() if n < 0})
    for line in after:
        if new[line] > 0:
            new[line] -= 1
            lines.append(f"+ {line}")
    return lines
