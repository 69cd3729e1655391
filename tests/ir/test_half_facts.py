"""The table of half forms is what the schemas of onnx say, for every opset that facts hold for."""

import onnx
import onnx_ir as ir
import pytest

from graphopt.ir.half_facts import (
    HALF_TYPES,
    counting_nodes,
    half_since,
    has_half_form,
    keeps_input,
    keeps_output,
    mask_values,
)
from graphopt.ir.program import OLDEST_OPSET_OF_FACTS, Program
from graphopt.ir.shapes import infer_shapes
from tests.passes.graphs import graph

OPSETS = range(OLDEST_OPSET_OF_FACTS, onnx.defs.onnx_opset_version() + 1)
# Operators that take halves by their schema, and are float32 all the same.
# fmt: off
NO_KERNELS = (
    "AffineGrid", "Bernoulli", "BitCast", "BlackmanWindow", "CausalConvWithState", "Col2Im",
    "ConcatFromSequence", "CumProd", "DFT", "DeformConv", "DequantizeLinear", "Det", "EyeLike",
    "GlobalLpPool", "GridSample", "HammingWindow", "HannWindow", "LinearAttention",
    "LpNormalization", "LpPool", "MaxRoiPool", "MaxUnpool", "MelWeightMatrix", "Multinomial",
    "NegativeLogLikelihoodLoss", "Optional", "OptionalGetElement", "OptionalHasElement",
    "QLinearMatMul", "QuantizeLinear", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike", "Range", "STFT", "SequenceAt", "SequenceConstruct", "SequenceInsert",
    "SequenceMap", "SoftmaxCrossEntropyLoss", "SplitToSequence", "Unique",
)
# fmt: on
TYPELESS = ("Cast", "Constant", "Shape", "Size")
SCHEMAS = sorted({s.name for s in onnx.defs.get_all_schemas_with_history() if s.domain == ""})


def takes(op_type: str, opset: int, dtype: ir.DataType) -> bool | None:
    """Return whether everything that is converted takes ``dtype``; None without floats."""
    try:
        schema = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
    if schema.deprecated:
        return None
    node = ir.Node("", op_type, [])
    allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    found: bool | None = None
    for side, keeps in ((schema.inputs, keeps_input), (schema.outputs, keeps_output)):
        for index, parameter in enumerate(side):
            types = allowed.get(parameter.type_str, [parameter.type_str])
            if "tensor(float)" in types and not keeps(node, index):
                found = found is not False and f"tensor({dtype.name.lower()})" in types
    return found


@pytest.mark.parametrize("dtype", HALF_TYPES.values(), ids=HALF_TYPES)
@pytest.mark.parametrize("op_type", SCHEMAS)
def test_the_table_is_that_of_the_schemas(op_type: str, dtype: ir.DataType) -> None:
    node = ir.Node("", op_type, [])
    for opset in OPSETS:
        wanted = takes(op_type, opset, dtype)
        if wanted is not None:
            unused = op_type in NO_KERNELS or op_type in TYPELESS
            assert has_half_form(node, opset, dtype) == (wanted and not unused), opset


def test_inputs_that_stay_float32_may_be_float32() -> None:
    for op_type in ("Dropout", "OneHot", "Resize", "Upsample"):
        for opset in OPSETS:
            try:
                schema = onnx.defs.get_schema(op_type, opset, "")
            except onnx.defs.SchemaError:
                continue
            allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
            node = ir.Node("", op_type, [])
            for index, parameter in enumerate(schema.inputs):
                if keeps_input(node, index) and "int64" not in parameter.type_str:
                    types = allowed.get(parameter.type_str, [parameter.type_str])
                    assert "tensor(float)" in types


def test_operators_of_other_domains() -> None:
    gelu = ir.Node("com.microsoft", "Gelu", [])
    assert has_half_form(gelu, 13, ir.DataType.FLOAT16)
    assert not has_half_form(gelu, 13, ir.DataType.BFLOAT16)
    assert not has_half_form(ir.Node("com.example", "Add", []), 13, ir.DataType.FLOAT16)
    assert half_since("TreeEnsemble", ir.DataType.FLOAT16) is None


def inferred(text: str) -> ir.Model:
    model = graph(text)
    infer_shapes(Program(model))
    return model


def test_masks_are_what_only_softmax_sees() -> None:
    model = inferred(
        """
g (float[2,2] x, float[2,1] m, float[1] c, float[1] d) => (float[2,2] y, float[2,2] z)
{
  a = Mul (m, c)
  b = Expand (a, s)
  e = Add (x, b)
  y = Softmax (e)
  f = Add (x, d)
  h = Softmax (f)
  z = Add (h, d)
}""".replace("{\n", "<int64[2] s = {2, 2}>\n{\n", 1)
    )
    names = {value.name for value in mask_values(model.graph)}
    # d is added to something else, too, and x is no mask only because of f.
    assert names == {"m", "c", "a", "b", "e", "x", "f"}


def test_counting_goes_from_integers_to_integers() -> None:
    model = inferred("""
g (int64[2] i, float[2] x) => (int64[2] y, float[2] z, int64[2] w)
<float[1] c = {0.5}>
{
  a = Cast <to = 1> (i)
  b = Mul (a, c)
  y = Cast <to = 7> (b)
  z = Exp (a)
  d = Mul (x, c)
  w = Cast <to = 7> (d)
}""")
    assert [node.outputs[0].name for node in model.graph if node in counting_nodes(model)] == ["b"]
