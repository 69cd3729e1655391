"""An ``If`` whose condition is constant is replaced by the nodes of its live branch."""

import onnx_ir as ir

from graphopt.ir.constants import ints_of
from graphopt.ir.program import is_onnx
from graphopt.ir.rewrite import Rewriter


def live_branch(node: ir.Node) -> ir.Graph | None:
    """Return the branch of an ``If`` that a constant condition selects, None when it is open."""
    if not is_onnx(node, "If") or not node.inputs:
        return None
    condition = ints_of(node.inputs[0])
    if condition is None or len(condition) != 1:
        return None
    return node.attributes["then_branch" if condition[0] else "else_branch"].as_graph()


def inline_if(edit: Rewriter, node: ir.Node, branch: ir.Graph) -> list[ir.Node]:
    """Put the nodes of ``branch`` in the place of ``node``; return them in order."""
    results = list(branch.outputs)
    branch.outputs.clear()
    for value in tuple(branch.initializers.values()):
        del branch.initializers[value.name or ""]
        if value.const_value is not None:
            moved = edit.become_constant(value, value.const_value)
            results = [moved if result is value else result for result in results]
    nodes = list(branch)
    branch.remove(nodes)
    for inner in nodes:
        for value in inner.outputs:
            # In the branch the name was hidden from graphs that it is not hidden from out here.
            if value.name and edit.names.is_shared(value.name):
                value.name = edit.names.renamed_value(value.name)
    assert node.graph is not None, "the node is in a graph"
    node.graph.insert_before(node, nodes)
    for old, new in zip(node.outputs, results, strict=True):
        if not edit.redirect(old, new):
            copy = edit.insert(node, old, "Identity", [new], replaced=[node])
            copy.name = edit.names.fresh_node(f"{node.name}_copy")
            nodes.append(copy)
    edit.drop(node)
    return nodes
