"""strip-metadata: what has no place in ONNX text, so no golden shows it."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt.passes.strip_metadata import SOURCE_KEY, StripMetadata
from tests.passes.graphs import graph

TRACE = (
    'File "/home/someone/train.py", line 3, in <module>\nFile "/home/someone/net/model.py", line 12'
)


def exported() -> ir.Model:
    """Return a model as an exporter on somebody's machine writes it."""
    model = graph("""g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> {
        a = Mul (x, w)
        y = LeakyRelu <alpha = 0.5> (a)
    }""")
    node = model.graph.node(0)
    node.doc_string = "multiply"
    node.metadata_props["pkg.torch.onnx.stack_trace"] = TRACE
    node.metadata_props["pkg.graphopt.pass"] = "fuse-bias"
    node.outputs[0].metadata_props["pkg.torch.onnx.original_node_name"] = "mul"
    model.graph.node(1).attributes["alpha"].doc_string = "slope"
    weight = model.graph.initializers["w"]
    weight.doc_string = "weights"
    weight.metadata_props["note"] = "n"
    proto = onnx.numpy_helper.from_array(np.array([1, 2], np.float32), "w")
    proto.doc_string = "trained at /home/someone"
    weight.const_value = ir.serde.deserialize_tensor(proto)
    model.doc_string = "made by hand"
    model.graph.doc_string = "a graph"
    model.producer_name = "exporter"
    model.producer_version = "/home/someone/exporter"
    model.metadata_props.update({"author": "A. Person", "log": "see /home/someone/log.txt"})
    model.graph.metadata_props["pkg.torch.export.range_constraints"] = "s0: [1, 8]"
    return model


def test_everything_goes_but_what_the_user_said() -> None:
    model = exported()
    result = StripMetadata()(model)
    assert result.modified
    node = model.graph.node(0)
    assert node.doc_string is None
    assert node.metadata_props == {"pkg.graphopt.pass": "fuse-bias"}
    assert node.outputs[0].metadata_props == {}
    assert model.graph.node(1).attributes["alpha"].doc_string is None
    weight = model.graph.initializers["w"]
    assert weight.doc_string is None
    assert weight.const_value is not None
    assert weight.const_value.doc_string is None
    assert weight.const_value.numpy().tolist() == [1, 2]
    assert weight.metadata_props == {}
    assert model.doc_string is None
    assert model.graph.doc_string is None
    assert model.graph.metadata_props == {}
    assert model.metadata_props == {"author": "A. Person"}
    assert (model.producer_name, model.producer_version) == ("exporter", None)
    assert "/home" not in str(ir.to_proto(model))
    again = StripMetadata()(model)
    assert not again.modified


def test_keys_may_be_kept() -> None:
    model = exported()
    StripMetadata(keep=("pkg.torch.export.*", "log"))(model)
    assert model.graph.metadata_props == {"pkg.torch.export.range_constraints": "s0: [1, 8]"}
    assert model.metadata_props["log"] == "see /home/someone/log.txt"
    assert model.graph.node(0).metadata_props == {"pkg.graphopt.pass": "fuse-bias"}


def test_a_source_line_keeps_no_folder() -> None:
    model = exported()
    StripMetadata(keep_source=True)(model)
    assert model.graph.node(0).metadata_props[SOURCE_KEY] == "model.py:12"
    assert "/home" not in str(ir.to_proto(model))
    assert not StripMetadata(keep_source=True)(model).modified


@pytest.mark.parametrize(
    ("text", "is_path"),
    [
        ("/home/someone/log.txt", True),
        ("saved as /data/x", True),
        ('{"file": "/data/x"}', True),
        ("C:\\models\\a.onnx", True),
        ("D:/models/a.onnx", True),
        ("\\\\server\\share", True),
        ("input/output ratio", False),
        ("https://example.org/licence", False),
        ("1/2", False),
        ("a relative/path.py", False),
        ("Apache-2.0", False),
    ],
)
def test_what_counts_as_an_absolute_path(text: str, is_path: bool) -> None:
    model = graph("g (float[2] x) => (float[2] y) { y = Neg (x) }")
    model.metadata_props["note"] = text
    StripMetadata()(model)
    assert ("note" not in model.metadata_props) == is_path


def test_bodies_are_stripped() -> None:
    model = graph("""g (float[2] x, bool p) => (float[2] y) {
        y = If (p) <then_branch = a () => (float[2] t) { t = Neg (x) },
                    else_branch = b () => (float[2] e) { e = Abs (x) }>
    }""")
    body = model.graph.node(0).attributes["then_branch"].as_graph()
    body.doc_string = "then"
    body.metadata_props["k"] = "v"
    body.node(0).doc_string = "negate"
    assert StripMetadata()(model).modified
    assert body.doc_string is None
    assert body.metadata_props == {}
    assert body.node(0).doc_string is None
