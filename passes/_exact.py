"""Which operands and which casts change no bit."""

import numpy as np
import onnx_ir as ir

from graphopt.ir.constants import array_of
from graphopt.ir.program import dims_of


def neutral_operand(op_type: str, operand: ir.Value | None) -> str:
    """Return "neutral" when ``x op operand`` is x, else the reason why it is nearly so, or "".

    The operator is ``Mul``, ``Div``, ``Add`` or ``Sub``.
    """
    array = array_of(operand)
    if array is None or not array.size or array.dtype.kind not in "fiu":
        return ""
    if op_type in ("Mul", "Div"):
        return "neutral" if bool((array == array.dtype.type(1)).all()) else ""
    if (array != array.dtype.type(0)).any():
        return ""
    if array.dtype.kind != "f":
        return "neutral"
    # x + (-0.0) and x - (+0.0) are x for every x; the other two change the sign of -0.0.
    negative = np.signbit(array)
    exact = negative.all() if op_type == "Add" else not negative.any()
    return "neutral" if exact else "signed-zero"


def holds_all(wide: ir.DataType, narrow: ir.DataType) -> bool:
    """Return whether ``wide`` represents every number of ``narrow``."""
    if narrow in (ir.DataType.BFLOAT16, ir.DataType.FLOAT16):
        return wide in (ir.DataType.FLOAT, ir.DataType.DOUBLE)
    if narrow is ir.DataType.FLOAT:
        return wide is ir.DataType.DOUBLE
    if not narrow.is_integer() or narrow.bitwidth < 8 or wide is ir.DataType.BFLOAT16:
        return False
    plain = wide.is_integer() or wide in (ir.DataType.FLOAT, ir.DataType.DOUBLE)
    return plain and wide.bitwidth >= 8 and np.can_cast(narrow.numpy(), wide.numpy(), "safe")


def same_type_and_dims(left: ir.Value, right: ir.Value) -> bool:
    """Return whether both have the same known type and dimensions."""
    dims = dims_of(left)
    known = dims is not None and left.dtype is not None
    return known and dims == dims_of(right) and left.dtype == right.dtype
