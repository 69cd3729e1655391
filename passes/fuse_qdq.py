"""Q/DQ around a node becomes the integer operator that onnxruntime computes in its place."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.ir.program import graphs_of, is_onnx
from graphopt.ir.rewrite import nodes_of, sole_user
from graphopt.passes._edit import Edit
from graphopt.pipeline.base import Pass, PassResult
from graphopt.quantization.rules import RULES

_DOMAIN = "com.microsoft"
_SAME_TYPE = ("AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid", "Softmax")
Triple = tuple[ir.Value, ir.Value, ir.Value]


@dataclass(frozen=True)
class FuseQdq(Pass):
    """Replace a node between ``DequantizeLinear`` and ``QuantizeLinear`` by its integer operator.

    What onnxruntime does when it loads a quantized model, written out: the plan of a quantized
    result is made of this form, and a file in this form needs no fusion by the runtime.

    Fires when:
        1. Every quantized input of a node comes from a ``DequantizeLinear`` and its result goes
           into one ``QuantizeLinear`` only; ``Gemm`` and ``MatMul`` may give a float result.
        2. A node that moves elements stands between integers of one scale: Q and DQ vanish.

    Leaves alone:
        1. ``float-input``: an input that must be quantized is not.
        2. ``float-result``: the result is read as float, or is a graph output.

    Preserves:
        Outputs within one step of the scheme: runtimes round products and sums once or twice.

    Options:
        None.

    Example:
        ``q = QuantizeLinear (Conv (DequantizeLinear (x), DequantizeLinear (w)))`` becomes
        ``q = QLinearConv (x, w)``, each with scale and zero point.
    """

    name: ClassVar[str] = "fuse-qdq"
    runs_after: ClassVar[tuple[str, ...]] = ("insert-qdq",)
    preserves_bits: ClassVar[bool] = False

    def call(self, model: ir.Model) -> PassResult:
        """Fuse the integer nodes of ``model``."""
        edit = Edit(self, model)
        for node in nodes_of(model):
            rule = RULES.get(node.op_type)
            if node.domain not in ("", "ai.onnx") or rule is None or rule.kind == "clamp":
                continue
            places = range(len(node.inputs)) if rule.inputs is None else rule.inputs
            inputs = [_dequantized(node, i) for i in places]
            if not any(inputs):
                continue
            if not all(inputs):
                edit.skip("float-input", node)
                continue
            quantizers = [_quantizer(value) for value in node.outputs]
            if not all(quantizers) and not rule.float_output:
                edit.skip("float-result", node)
                continue
            known = [triple for triple in inputs if triple is not None]
            results = [q for q in quantizers if q is not None]
            fused = (
                _move(edit, node, known[0], results)
                if rule.kind == "move"
                else _fuse(edit, node, known, results[0] if results else None)
            )
            if not fused:
                edit.skip("float-input", node)
        if edit.rewrites:
            for graph in graphs_of(model.graph):
                _drop_unread(edit, graph)
            model.graph.opset_imports.setdefault(_DOMAIN, 1)
        return edit.result()


def _dequantized(reader: ir.Node, index: int) -> Triple | None:
    """Return integers, scale and zero point behind an input of ``reader``, in the same graph."""
    value = reader.inputs[index]
    node = None if value is None else value.producer()
    if node is None or not is_onnx(node, "DequantizeLinear") or len(node.inputs) < 3:
        return None
    if node.graph is not reader.graph:
        return None
    integers, scale, zero = node.inputs[:3]
    return None if integers is None or scale is None or zero is None else (integers, scale, zero)


def _quantizer(value: ir.Value) -> ir.Node | None:
    """Return the ``QuantizeLinear`` that is the only reader of ``value``, in the same graph."""
    user = sole_user(value)
    if user is None or not is_onnx(user, "QuantizeLinear") or len(user.inputs) < 3:
        return None
    return user if user.graph is value.graph else None


def _fuse(edit: Edit, node: ir.Node, inputs: list[Triple], quantizer: ir.Node | None) -> bool:
    """Put the integer operator in the place of ``node`` and ``quantizer``."""
    arguments = _arguments(node, inputs, quantizer)
    if arguments is None:
        return False
    op_type, domain, values = arguments
    last = node if quantizer is None else quantizer
    attributes = [a for a in node.attributes.values() if a.name != "beta"]
    replaced = [node] if quantizer is None else [node, quantizer]
    edit.insert(
        last, last.outputs[0], op_type, values, attributes, replaced=replaced, domain=domain
    )
    for gone in reversed(replaced):
        edit.drop(gone)
    edit.rewrites += 1
    return True


def _arguments(
    node: ir.Node, inputs: list[Triple], quantizer: ir.Node | None
) -> tuple[str, str, list[ir.Value | None]] | None:
    """Return operator, domain and inputs of the integer form of ``node``."""
    output: list[ir.Value | None] = [] if quantizer is None else list(quantizer.inputs[1:3])
    first = inputs[0]
    if is_onnx(node, "Conv", "Gemm", "MatMul"):
        return _linear(node, first, output)
    if is_onnx(node, "Add", "Mul"):
        return f"QLinear{node.op_type}", _DOMAIN, [*first, *inputs[1], *output]
    if is_onnx(node, "Concat"):
        return "QLinearConcat", _DOMAIN, [*output, *(v for triple in inputs for v in triple)]
    if is_onnx(node, *_SAME_TYPE):
        return f"QLinear{node.op_type}", _DOMAIN, [*first, *output]
    return None


def _linear(
    node: ir.Node, first: Triple, output: list[ir.Value | None]
) -> tuple[str, str, list[ir.Value | None]] | None:
    weight = _dequantized(node, 1)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    integer_bias = None if bias is None else _dequantized(node, 2)
    if weight is None or (bias is not None and integer_bias is None):
        return None
    third = None if integer_bias is None else integer_bias[0]
    if is_onnx(node, "Conv"):
        tail = [] if third is None else [third]
        return "QLinearConv", "", [*first, *weight, *output, *tail]
    if is_onnx(node, "Gemm"):
        return "QGemm", _DOMAIN, [*first, *weight, third, *output]
    if output:
        return "QLinearMatMul", "", [*first, *weight, *output]
    (a, a_scale, a_zero), (b, b_scale, b_zero) = first, weight
    return "MatMulIntegerToFloat", _DOMAIN, [a, b, a_scale, b_scale, a_zero, b_zero]


def _move(edit: Edit, node: ir.Node, source: Triple, quantizers: list[ir.Node]) -> bool:
    """Let ``node`` move the integers themselves."""
    if any(q.inputs[1] is not source[1] or q.inputs[2] is not source[2] for q in quantizers):
        return False
    attributes = list(node.attributes.values())
    inputs = [source[0], *node.inputs[1:]]
    if len(quantizers) == 1:
        edit.insert(
            quantizers[0],
            quantizers[0].outputs[0],
            node.op_type,
            inputs,
            attributes,
            replaced=[node, quantizers[0]],
        )
        edit.drop(quantizers[0])
        edit.drop(node)
        edit.rewrites += 1
        return True
    return False


def _drop_unread(edit: Edit, graph: ir.Graph) -> None:
    """Remove conversions that nobody reads any more, and the constants only they read."""
    constants: dict[ir.Value, None] = {}
    for node in reversed(graph):
        if not is_onnx(node, "DequantizeLinear"):
            continue
        if any(value.uses() or value.is_graph_output() for value in node.outputs):
            continue
        constants.update((v, None) for v in node.inputs if v is not None and v.is_initializer())
        edit.drop(node)
    for value in constants:
        if not value.uses() and not value.is_graph_output() and value.name:
            assert value.graph is not None, "an initializer is in a graph"
            value.graph.initializers.pop(value.name, None)
            edit.names.release_value(value.name)
