"""Bisect finds the pass and, inside it, the rewrite."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from graphopt.errors import OptionError
from graphopt.frontends.onnx_loader import load_onnx
from graphopt.ir.program import Program, is_onnx
from graphopt.pipeline.base import Pass, PassResult
from graphopt.pipeline.bisect import Verdict, bisect_passes


def load() -> Program:
    """Twenty Relu nodes in a row."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Relu", [f"v{i}" if i else "x"], [f"v{i + 1}"], name=f"relu{i}")
        for i in range(20)
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [value("x", TensorProto.FLOAT, [4])],
        [value("v20", TensorProto.FLOAT, [4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return load_onnx(model)


@dataclass(frozen=True)
class Swap(Pass):
    """Turns every ``old`` into ``new``."""

    name: ClassVar[str] = "swap"
    old: str = ""
    new: str = ""

    def call(self, model: ir.Model) -> PassResult:
        count = 0
        for node in model.graph:
            if is_onnx(node, self.old):
                node.op_type = self.new
                count += 1
        return PassResult(model, count > 0, rewrites=count)


def relu7_is_sigmoid(program: Program) -> Verdict:
    (node,) = [n for n in program.graph if n.name == "relu7"]
    bad = node.op_type == "Sigmoid"
    return Verdict(bad, float(bad), node.op_type)


def test_the_pass_and_the_one_rewrite_are_found() -> None:
    passes = [Swap("Tanh", "Abs"), Swap("Relu", "Sigmoid"), Swap("Cos", "Sin")]
    culprit = bisect_passes(load, passes, relu7_is_sigmoid)
    assert culprit is not None
    assert culprit.index == 2
    assert culprit.options == "swap{old=Relu,new=Sigmoid}"
    assert culprit.nodes == ("relu7",)
    assert len(culprit.changed) == 2
    assert (culprit.before.text, culprit.after.text) == ("Relu", "Sigmoid")


def test_a_rewrite_that_needs_two_nodes_is_kept_together() -> None:
    def judge(program: Program) -> Verdict:
        kinds = {n.name: n.op_type for n in program.graph}
        bad = kinds["relu3"] == kinds["relu4"] == "Sigmoid"
        return Verdict(bad, float(bad), "")

    culprit = bisect_passes(load, [Swap("Relu", "Sigmoid")], judge)
    assert culprit is not None
    assert {"relu3", "relu4"} <= set(culprit.nodes)
    assert len(culprit.nodes) <= 5


def test_good_pipelines_and_bad_inputs() -> None:
    assert bisect_passes(load, [Swap("Tanh", "Abs")], relu7_is_sigmoid) is None
    with pytest.raises(OptionError, match="before any pass"):
        bisect_passes(load, [Swap("Tanh", "Abs")], lambda _: Verdict(True, 1.0, "always"))
