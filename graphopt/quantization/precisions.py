"""Precisions that touch weights only: which passes make them for a target.

onnxruntime has operators that read 4-bit and 8-bit blocks. It computes a ``DequantizeLinear`` in
front of other weights in each run and frees the float copy again, so the integers are what stays in
memory. A compiler of a device gets the standard form, which it fuses for itself.
"""

from graphopt.errors import UnsupportedError
from graphopt.targets.schema import Target

# Precision -> bits of products and lookups.
WEIGHT_PRECISIONS = {"int8-weights": 8, "int4-weights": 4, "nf4-weights": 4, "kmeans-weights": 4}
# Those whose rounding can be fitted to samples.
CALIBRATED_WEIGHTS = ("int8-weights", "int4-weights")
# Signal to quantization noise, in decibels, that a result is accepted with when the user states
# none. Each weight of 4 bits alone is at 20 dB, one of 8 bits at 40.
WEIGHT_SQNR_DB = {
    "int8-weights": 28.0,
    "int4-weights": 12.0,
    "nf4-weights": 12.0,
    "kmeans-weights": 12.0,
}
# 8 bits lose so little that blocks may be large and zero points left out.
_EIGHT = "bits=8,block=128,symmetric=true,method=rtn"
_FOUR = "bits=4,block=32,method=mse"
_NF4 = "bits=4,block=64,form=nf4"
_STANDARD = "bits=8,block=0,symmetric=true,method=mse,form=standard"


def weight_precision_passes(
    precision: str, target: Target, *, calibrated: bool = False
) -> tuple[str, ...]:
    """Return the option strings of the passes that give ``precision`` on ``target``, in order.

    Args:
        precision: One of ``WEIGHT_PRECISIONS``. With ``int4-weights`` and ``nf4-weights``, what no
            such operator reads, a convolution for one, is stored in 8 bits; so are the weights of
            LSTM layers where the target has a kernel.
        target: Its runtime decides the operators.
        calibrated: Whether there are samples: products get weights that are rounded for them.

    Raises:
        UnsupportedError: the target cannot store such weights, or has no kernel that reads them.
    """
    bits = WEIGHT_PRECISIONS[precision]
    if precision in ("nf4-weights", "kmeans-weights"):
        _refuse_codebook(precision, target)
    else:
        _refuse(precision, bits, target)
    level = "" if target.kind == "cpu" else ",accuracy_level=0"
    eight, four = f"{_EIGHT}{level}", f"{_FOUR}{level}"
    if target.runtime.executes_with == "none":
        eight, four = _STANDARD, f"{_FOUR},form=standard"
    made = ",reconstruct=true" if calibrated else ""
    options = [f"{eight}{made}"] if bits == 8 else [f"{four}{made}", eight]
    if precision == "nf4-weights":
        options = [_NF4, eight]
    passes = ("raise-opset", *(f"quantize-weights{{{text}}}" for text in options))
    scheme = target.quantization
    if scheme is None or not scheme.dynamic_recurrent:
        return passes
    # Its kernel rounds what it multiplies with, as that of MatMulNBits may.
    return (*passes, f"quantize-recurrent{{reduce_range={str(scheme.reduce_range).lower()}}}")


def _refuse(precision: str, bits: int, target: Target) -> None:
    """Raise when ``target`` cannot store or run weights of ``bits`` bits."""
    stored = [d for d in target.compute.weight_dtypes if d in (f"int{bits}", f"uint{bits}")]
    reason = ""
    if not stored:
        reason = f"it stores {', '.join(target.compute.weight_dtypes)}"
    elif target.runtime.executes_with == "torch":
        reason = "torch has no kernel for them on every device"
    elif target.kind == "mcu":
        reason = "its float kernels read float weights, which each run would make in fast memory"
    elif target.quantization is not None and target.quantization.full_integer:
        reason = "its kernels take integer activations only"
    if reason:
        raise UnsupportedError(
            "precision-no-kernel",
            f"target '{target.name}' has no kernels for precision={precision!r}: {reason}",
            hint="precision='int8' quantizes activations, too; or choose another target",
        )


def _refuse_codebook(precision: str, target: Target) -> None:
    """Raise when ``target`` has no kernel that reads weights through a table.

    A table that is fitted to the weights, by k-means for one, is read by no operator: ``Gather``
    from it makes floats. onnxruntime does so when it loads the model, and then holds more than for
    float weights (161 MB against 119 MB for 67 MB of them, measured in 1.31.1), or, where the table
    is not constant, in each run, with indices of 32 bits beside the floats.
    """
    if precision == "nf4-weights":
        if "nf4" in target.compute.weight_dtypes and target.runtime.executes_with == "onnxruntime":
            return
        reason = f"it stores {', '.join(target.compute.weight_dtypes)}"
        hint = "precision='int4-weights' has evenly spaced values; or choose another target"
    else:
        reason = (
            "no operator reads weights through a table of their own; a Gather from the table makes "
            "float weights, at load or in each run, so only the file would be smaller"
        )
        hint = "precision='int4-weights', or 'nf4-weights' where the target has its fixed table"
    raise UnsupportedError(
        "codebook-no-kernel",
        f"target '{target.name}' has no kernels for precision={precision!r}: {reason}",
        hint=hint,
    )
