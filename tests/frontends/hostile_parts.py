"""Hostile models with bad names, attributes, functions or versions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from graphopt.errors import GraphoptError, InvalidModelError, UnsupportedError
from tests.frontends.hostile_base import (
    CASES,
    Maker,
    functions,
    hostile,
    length_delimited,
    model_case,
    parse,
    plain,
    written,
)


def _name_case(name: str, code: str, bad: str) -> None:
    def node_name(model: onnx.ModelProto) -> None:
        model.graph.node[0].name = bad

    def value_name(model: onnx.ModelProto) -> None:
        model.graph.node[0].output[0] = bad
        model.graph.node[1].input[0] = bad

    def operator(model: onnx.ModelProto) -> None:
        model.graph.node[0].op_type = bad

    for what, change in (("node", node_name), ("value", value_name), ("operator", operator)):
        model_case(f"{name} in the name of a {what}", code, change)


_name_case("zero byte", "name-control-character", "a\0b")
_name_case("line break", "name-control-character", "a\nERROR: all is well")
_name_case("terminal escape", "name-control-character", "\x1b[2J\x1b]0;owned\x07")
_name_case("reversed text", "name-control-character", "a\u202egpj.exe")
_name_case("ten million characters", "name-too-long", "n" * 10_000_000)
model_case("no operator", "name-missing", lambda m: m.graph.node[0].ClearField("op_type"))


def _raw_replace(old: bytes, new: bytes) -> Maker:
    def maker(folder: Path) -> Path:
        model = parse("g (float[2] x) => (float[2] y) { tttt = Abs (x)  y = Neg (tttt) }")
        model.graph.node[0].name = "nnnn"
        model.graph.node.append(helper.make_node("Foo", ["x"], ["z"], aaaa=["ssss"]))
        content = model.SerializeToString()
        assert old in content
        return written(folder, content.replace(old, new))

    return maker


for _what, _old in (("value", b"tttt"), ("node", b"nnnn"), ("attribute", b"aaaa")):
    CASES.append(
        (
            f"name of a {_what} that is no UTF-8",
            _raw_replace(_old, b"\xff\xfe\xff\xfe"),
            InvalidModelError,
            "not-utf8",
        )
    )
CASES.append(
    (
        "text of an attribute that is no UTF-8",
        _raw_replace(b"ssss", b"\xff\xfe\xff\xfe"),
        InvalidModelError,
        "not-utf8",
    )
)


def _attribute_case(
    name: str,
    code: str,
    change: Callable[[onnx.NodeProto], Any],
    error: type[GraphoptError] = InvalidModelError,
) -> None:
    model_case(name, code, lambda m: change(m.graph.node[0]), error=error)


_attribute_case(
    "attribute twice",
    "duplicate-attribute",
    lambda n: n.attribute.extend([helper.make_attribute("a", 1), helper.make_attribute("a", 2)]),
)
_attribute_case(
    "attribute of type 99",
    "attribute-type",
    lambda n: n.attribute.add(name="a").MergeFromString(b"\xa0\x01\x63"),
)
_attribute_case("attribute without a type", "attribute-type", lambda n: n.attribute.add(name="a"))
_attribute_case(
    "parameter outside of a function",
    "attribute-reference",
    lambda n: n.attribute.add(name="a", ref_attr_name="b", type=onnx.AttributeProto.FLOAT),
)
_attribute_case(
    "eleven thousand attributes",
    "too-many-attributes",
    lambda n: n.attribute.extend(helper.make_attribute(f"a{i}", i) for i in range(11_000)),
)
_attribute_case(
    "a million empty attributes",
    "too-many-attributes",
    lambda n: n.MergeFromString(b"\x2a\x00" * 1_000_000),
)
_attribute_case(
    "sparse attribute",
    "sparse-tensor",
    lambda n: n.attribute.add(name="a", type=onnx.AttributeProto.SPARSE_TENSOR),
    UnsupportedError,
)
_attribute_case(
    "attribute with an empty type",
    "type-missing",
    lambda n: n.attribute.add(name="a", type=onnx.AttributeProto.TYPE_PROTO),
)
_attribute_case(
    "attribute with an empty tensor",
    "element-type-unknown",
    lambda n: n.attribute.add(name="a", type=onnx.AttributeProto.TENSOR),
)
_attribute_case(
    "attribute with an empty graph",
    "value-undefined",
    lambda n: n.attribute.add(
        name="a",
        type=onnx.AttributeProto.GRAPH,
        g=onnx.GraphProto(output=[onnx.ValueInfoProto(name="o")]),
    ),
)


@hostile("hundred nested graphs", "nesting-too-deep")
def _(folder: Path) -> Path:
    # graph 7 of the model, node 1 of a graph, attribute 5 of a node, graph 6 of an attribute.
    graph = plain().graph.SerializeToString()
    for _level in range(100):
        attribute = b"\x0a\x01g" + length_delimited(6, graph) + b"\xa0\x01\x05"
        node = length_delimited(5, attribute) + b"\x22\x02If"
        graph = length_delimited(1, node)
    model = plain()
    model.ClearField("graph")
    return written(folder, model.SerializeToString() + length_delimited(7, graph))


_FUNCTION = "f (a) => (b) { b = Abs (a) }"
model_case(
    "function that calls itself",
    "function-recursive",
    lambda m: None,
    lambda: functions("f (a) => (b) { b = d.f (a) }", "y = d.f (x)"),
)
model_case(
    "functions that call each other",
    "function-recursive",
    lambda m: None,
    lambda: functions("f (a) => (b) { b = d.h (a) };h (a) => (b) { b = d.f (a) }", "y = d.f (x)"),
)
model_case(
    "function that nobody calls, but itself",
    "function-recursive",
    lambda m: None,
    lambda: functions("f (a) => (b) { b = d.f (a) }", "y = Abs (x)"),
)
model_case(
    "functions that multiply",
    "function-expansion",
    lambda m: None,
    lambda: functions(
        ";".join(
            f"f{i} (a) => (k) {{ "
            + "  ".join(f"{'bcdefghijk'[j]} = d.f{i + 1} ({'abcdefghijk'[j]})" for j in range(10))
            + " }"
            for i in range(12)
        )
        + ";f12 (a) => (b) { b = Abs (a) }",
        "y = d.f0 (x)",
    ),
)
model_case(
    "function twice",
    "duplicate-function",
    lambda m: m.functions.append(m.functions[0]),
    lambda: functions(_FUNCTION, "y = d.f (x)"),
)
model_case(
    "function with another opset",
    "function-not-inlinable",
    lambda m: setattr(m.functions[0].opset_import[0], "version", 20),
    lambda: functions(_FUNCTION, "y = d.f (x)"),
    UnsupportedError,
)
model_case(
    "function called with too much",
    "function-not-inlinable",
    lambda m: m.graph.node[0].input.append("x"),
    lambda: functions(_FUNCTION, "y = d.f (x)"),
    UnsupportedError,
)
model_case(
    "function that reads the graph",
    "value-undefined",
    lambda m: None,
    lambda: functions("f (a) => (b) { b = Add (a, x) }", "y = d.f (x)"),
)
model_case(
    "function that returns nothing it has",
    "value-undefined",
    lambda m: m.functions[0].output.append("ghost"),
    lambda: functions(_FUNCTION, "y = d.f (x)"),
)


def _opset(*versions: tuple[str, int]) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        model.ClearField("opset_import")
        for domain, version in versions:
            model.opset_import.add(domain=domain, version=version)

    return change


model_case("opset 99", "opset-too-new", _opset(("", 99)), error=UnsupportedError)
model_case("opset 29", "opset-too-new", _opset(("", 29)), error=UnsupportedError)
model_case("opset 2**62", "opset-too-new", _opset(("", 2**62)), error=UnsupportedError)
model_case("opset 0", "opset-too-old", _opset(("", 0)), error=UnsupportedError)
model_case("opset -1", "opset-too-old", _opset(("", -1)), error=UnsupportedError)
model_case("no opset", "opset-import-missing", _opset())
model_case("no default opset", "opset-import-missing", _opset(("com.microsoft", 1)))
model_case("two opsets", "opset-import-duplicate", _opset(("", 20), ("ai.onnx", 21)))
model_case(
    "domain without an import",
    "opset-import-missing",
    lambda m: setattr(m.graph.node[0], "domain", "com.example"),
)


def _ir_version(version: int) -> Callable[[onnx.ModelProto], None]:
    return lambda model: setattr(model, "ir_version", version)


for _version in (0, 2, 15, 99, 2**62, -1):
    model_case(
        f"ir version {_version}", "ir-version", _ir_version(_version), error=UnsupportedError
    )
