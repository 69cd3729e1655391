"""Every row of the table of integer devices: emitted, checked from the file, run."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt.errors import UnsupportedError
from graphopt.ir.program import Program
from graphopt.ir.shapes import infer_shapes
from graphopt.passes.insert_qdq import InsertQdq
from graphopt.quantization.device_rules import DEVICE_RULES, fixed_params
from graphopt.quantization.ranges import Params, Scheme
from tests.passes.graphs import graph, run
from tests.quantization.integer_check import float_faults, scale_faults

RNG = np.random.default_rng(0)
_W = RNG.standard_normal((2, 3, 3, 3)) / 5
# Operators of one input and no parameters.
_UNARY = [
    name for name, rule in DEVICE_RULES.items() if rule.kind == "compute" and rule.inputs == (0,)
] + ["GlobalMaxPool"]
# What stands between ``x`` of 1x3x4x4 and ``y``; constants are named below.
TEXTS = {
    "Add": "y = Add (x, v)",
    "ArgMax": "y = ArgMax <axis = 1> (x)",
    "ArgMin": "y = ArgMin <axis = 1> (x)",
    "AveragePool": "y = AveragePool <kernel_shape = [2, 2]> (x)",
    "Clip": "y = Clip (x, k, l)",
    "Concat": "a = Neg (x) y = Concat <axis = 1> (x, a, v)",
    "Conv": "y = Conv (x, w, b)",
    "ConvTranspose": "y = ConvTranspose (x, t, b)",
    "DepthToSpace": "a = Concat <axis = 1> (x, v) c = Concat <axis = 1> (a, v, v)"
    " y = DepthToSpace <blocksize = 2> (c)",
    "Div": "y = Div (x, p)",
    "Expand": "y = Expand (x, e)",
    "Gather": "y = Gather <axis = 1> (x, i)",
    "Gemm": "a = Flatten (x) y = Gemm (a, g, b)",
    "MatMul": "y = MatMul (x, m)",
    "Max": "y = Max (x, v)",
    "MaxPool": "y = MaxPool <kernel_shape = [2, 2]> (x)",
    "Mean": "y = Mean (x, v, p)",
    "Min": "y = Min (x, v)",
    "Mul": "y = Mul (x, v)",
    "PRelu": "y = PRelu (x, v)",
    "Pad": "y = Pad (x, d)",
    "Pow": "a = Abs (x) y = Pow (a, p)",
    "ReduceMax": "y = ReduceMax (x, i)",
    "ReduceMean": "y = ReduceMean (x, i)",
    "ReduceMin": "y = ReduceMin (x, i)",
    "ReduceSum": "y = ReduceSum (x, i)",
    "Resize": 'y = Resize <mode = "linear"> (x, , r)',
    "Slice": "y = Slice (x, i, e1, i)",
    "SpaceToDepth": "y = SpaceToDepth <blocksize = 2> (x)",
    "Split": "y, a = Split <axis = 3, num_outputs = 2> (x)",
    "Sub": "y = Sub (x, v)",
    "Sum": "y = Sum (x, v, p)",
    "Tile": "y = Tile (x, e)",
    "Transpose": "y = Transpose <perm = [0, 2, 3, 1]> (x)",
    "Where": "y = Where (q, x, v)",
}
TEXTS = {name: f"y = {name} (x)" for name in _UNARY} | TEXTS
CONSTANTS: dict[str, np.ndarray] = {
    "w": _W,
    "t": RNG.standard_normal((3, 2, 2, 2)) / 3,
    "b": RNG.standard_normal(2),
    "g": RNG.standard_normal((48, 2)) / 5,
    "m": RNG.standard_normal((4, 5)) / 2,
    "v": RNG.standard_normal((1, 3, 4, 4)),
    "p": np.linspace(1, 2, 3).reshape(1, 3, 1, 1),
    "k": np.array(-0.5),
    "l": np.array(0.75),
    "r": np.array([1, 1, 2, 2]),
    "i": np.array([1]),
    "e": np.array([2, 1, 1, 1]),
    "e1": np.array([3]),
    "d": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "q": np.array([[[[True]], [[False]], [[True]]]]),
}
_TYPES = {"i": "int64", "e": "int64", "e1": "int64", "d": "int64", "q": "bool"}


def model_of(name: str) -> ir.Model:
    text = TEXTS[name]
    words = text.replace("(", " ").replace(")", " ").replace(",", " ").split()
    used = {key: value for key, value in CONSTANTS.items() if key in words}
    inputs = "".join(
        f", {_TYPES.get(key, 'float')}[{','.join(map(str, value.shape))}] {key}"
        for key, value in used.items()
    ).replace("[] ", " ")
    kind = "int64" if name.startswith("Arg") else "float"
    whole = f"g (float[1,3,4,4] x{inputs}) => ({kind}[] y) {{ {text} }}"
    head = '<ir_version: 10, opset_import: ["" : 20]>\n'
    typed = {k: v.astype(_TYPES.get(k, "float32")) for k, v in used.items()}
    model = graph(head + whole, **typed)
    for output in model.graph.outputs:
        output.shape = None
    infer_shapes(Program(model))
    return model


def observed(model: ir.Model, feed: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Return the range of every float that ``model`` makes of ``feed``."""
    proto = ir.to_proto(model)
    made = [v for node in model.graph for v in node.outputs if v.dtype is ir.DataType.FLOAT]
    del proto.graph.output[:]
    proto.graph.output.extend(
        onnx.helper.make_tensor_value_info(v.name or "", 1, None) for v in made
    )
    arrays = run(ir.from_proto(proto), feed) if made else []
    values = dict(zip([v.name or "" for v in made], arrays, strict=True)) | feed
    return {name: (float(a.min()), float(a.max())) for name, a in values.items()}


def test_every_row_has_a_case() -> None:
    assert set(TEXTS) == set(DEVICE_RULES)


@pytest.mark.parametrize("activation", ["int8", "uint8"])
@pytest.mark.parametrize("name", sorted(TEXTS))
def test_a_row_is_emitted_checked_and_run(name: str, activation: str) -> None:
    model = model_of(name)
    # Log, Sqrt, Reciprocal and Pow want numbers above zero.
    positive = name in ("Log", "Pow", "Reciprocal", "Sqrt")
    x = RNG.uniform(0.5 if positive else -1.0, 2.0, (1, 3, 4, 4)).astype(np.float32)
    expected = run(model, {"x": x})[0]
    ranges = observed(model, {"x": x})
    texts = tuple(f"{key}={low}:{high}" for key, (low, high) in ranges.items())
    result = InsertQdq(activation=activation, full_integer=True, ranges=texts)(model)
    assert result.modified
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    assert float_faults(proto) == []
    assert scale_faults(proto) == []
    kinds = {onnx.TensorProto.INT8: "int8", onnx.TensorProto.UINT8: "uint8"}
    zeros = [t for t in proto.graph.initializer if t.name.endswith("zero_point") and not t.dims]
    assert {kinds[t.data_type] for t in zeros} >= {activation}
    found = run(model, {"x": x})[0]
    assert found.shape == expected.shape
    if name in ("ArgMax", "ArgMin", "Ceil", "Floor", "Round"):
        # Within a step of where they jump these may do so, or not.
        assert np.mean(found != expected) < 1
        return
    # Steps of what is read and what is made; products add up several.
    width = max(high - min(low, 0.0) for low, high in ranges.values())
    assert np.abs(found - expected).max() <= 0.05 * width


def test_scales_that_do_not_depend_on_the_input() -> None:
    def node(name: str) -> ir.Node:
        return ir.Node("", name, [])

    int8, uint8 = Scheme("int8"), Scheme("uint8")
    assert fixed_params(node("Softmax"), int8) == Params(1 / 256, -128)
    assert fixed_params(node("Sigmoid"), uint8) == Params(1 / 256, 0)
    assert fixed_params(node("Tanh"), int8) == Params(1 / 128, 0)
    assert fixed_params(node("Tanh"), uint8) == Params(1 / 128, 128)
    assert fixed_params(node("LogSoftmax"), int8) == Params(1 / 16, 127)
    symmetric = fixed_params(node("Softmax"), Scheme("int8", symmetric=True))
    assert symmetric is not None
    assert symmetric.zero_point == 0
    assert fixed_params(node("Add"), int8) is None


def test_groups_of_a_transposed_convolution_are_refused() -> None:
    text = (
        "g (float[1,2,2,2] x, float[2,1,2,2] w) => (float[1,2,3,3] y)"
        "{ y = ConvTranspose <group = 2> (x, w) }"
    )
    model = graph(text, w=np.ones((2, 1, 2, 2), np.float32))
    infer_shapes(Program(model))
    with pytest.raises(UnsupportedError) as caught:
        InsertQdq(full_integer=True, ranges=("x=0:1", "y=0:1"))(model)
    assert caught.value.code == "full-integer-operator"
    assert "in groups" in caught.value.message
