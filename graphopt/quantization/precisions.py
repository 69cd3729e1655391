"""Precisions that touch weights only: which passes make them for a target.

onnxruntime has operators that read 4-bit and 8-bit blocks. It computes a ``DequantizeLinear`` in
front of other weights in each run and frees the float copy again, so the integers are what stays in
memory. A compiler of a device gets the standard form, which it fuses for itself.
"""

from graphopt.errors import UnsupportedError
from graphopt.targets.schema import Target

# Precision -> bits of products and lookups.
WEIGHT_PRECISIONS = {"int8-weights": 8, "int4-weights": 4}
# Signal to quantization noise, in decibels, that a result is accepted with when the user states
# none. Each weight of 4 bits alone is at 20 dB, one of 8 bits at 40.
WEIGHT_SQNR_DB = {"int8-weights": 28.0, "int4-weights": 12.0}
# 8 bits lose so little that blocks may be large and zero points left out.
_EIGHT = "bits=8,block=128,symmetric=true,method=rtn"
_FOUR = "bits=4,block=32,method=mse"
_STANDARD = "quantize-weights{bits=8,block=0,symmetric=true,method=mse,form=standard}"


def weight_precision_passes(precision: str, target: Target) -> tuple[str, ...]:
    """Return the option strings of the passes that give ``precision`` on ``target``, in order.

    Args:
        precision: One of ``WEIGHT_PRECISIONS``. With ``int4-weights``, what no 4-bit operator
            reads, a convolution for one, is stored in 8 bits.
        target: Its runtime decides the operators.

    Raises:
        UnsupportedError: the target cannot store such weights, or has no kernel that reads them.
    """
    bits = WEIGHT_PRECISIONS[precision]
    _refuse(precision, bits, target)
    if target.runtime.executes_with == "none":
        if bits == 8:
            return ("raise-opset", _STANDARD)
        return ("raise-opset", f"quantize-weights{{{_FOUR},form=standard}}", _STANDARD)
    level = "" if target.kind == "cpu" else ",accuracy_level=0"
    eight = f"quantize-weights{{{_EIGHT}{level}}}"
    if bits == 8:
        return ("raise-opset", eight)
    return ("raise-opset", f"quantize-weights{{{_FOUR}{level}}}", eight)


def _refuse(precision: str, bits: int, target: Target) -> None:
    """Raise when ``target`` cannot store or run weights of ``bits`` bits."""
    stored = [d for d in target.compute.weight_dtypes if d in (f"int{bits}", f"uint{bits}")]
    reason = ""
    if not stored:
        reason = f"it stores {', '.join(target.compute.weight_dtypes)}"
    elif target.runtime.executes_with == "torch":
        reason = "torch has no kernel for them on every device"
    elif target.quantization is not None and target.quantization.full_integer:
        reason = "its kernels take integer activations only"
    elif target.kind == "mcu":
        reason = "its float kernels read float weights, which each run would make in fast memory"
    if reason:
        raise UnsupportedError(
            "precision-no-kernel",
            f"target '{target.name}' has no kernels for precision={precision!r}: {reason}",
            hint="precision='int8' quantizes activations, too; or choose another target",
        )
