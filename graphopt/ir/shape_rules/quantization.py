"""Rules for quantization."""

import onnx_ir as ir

from graphopt.ir.shape_rules.registry import rule
from graphopt.ir.shape_rules.view import NodeView

FLOAT = ir.DataType.FLOAT
UINT8 = ir.DataType.UINT8


@rule("QuantizeLinear")
@rule("QuantizeLinear", domain="com.microsoft")
def quantize(view: NodeView) -> None:
    """The type of the zero point, else of the attribute, else uint8."""
    if view.has(2):
        view.types(view.dtype(2))
    else:
        dtype = view.data_type("output_dtype", ir.DataType.UNDEFINED)
        view.types(UINT8 if dtype == ir.DataType.UNDEFINED else dtype)
    view.out(0, view.dims(0))


@rule("DequantizeLinear")
@rule("DequantizeLinear", domain="com.microsoft")
def dequantize(view: NodeView) -> None:
    """The type of the scale, unless an attribute names one."""
    dtype = view.data_type("output_dtype", ir.DataType.UNDEFINED)
    view.types(view.dtype(1) if dtype == ir.DataType.UNDEFINED else dtype)
    view.out(0, view.dims(0))


@rule("DynamicQuantizeLinear")
def dynamic_quantize(view: NodeView) -> None:
    """The quantized input, its scale and its zero point."""
    view.types(UINT8, FLOAT, UINT8)
    view.out(0, view.dims(0))
    view.out(1, ())
    view.out(2, ())
