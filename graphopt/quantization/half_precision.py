"""Half precision: which targets compute in it, and what a weight becomes when it is stored so.

Float16 has 11 bits and ends at 65504; numbers below 2**-24 are zero. Bfloat16 has 8 bits and the
range of float32. A weight outside the range is never replaced by an infinity: the node that reads
it stays float32. Weights are read once for their range; the halves are computed when the file is
written, one tensor at a time.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.ir.constants import read_array

if TYPE_CHECKING:
    from graphopt.targets.schema import Target

# In the meta of a model: a ``HalfFacts`` that convert-to-half fills.
FACTS_KEY = "graphopt.half"
# Float32 numbers from here on round to infinity in float16: half way between 65504 and 65536.
OVERFLOW = 65520.0
LARGEST = 65504.0
# What a mask constant below the range becomes: the sum of two of them is still a number.
MASK = -32752.0
# Numbers up to here round to zero in float16: half of the smallest one, 2**-24.
_VANISHES = 2.0**-25
_LARGEST_BFLOAT16 = float(np.uint32(0x7F7F0000).view(np.float32))
_LAZY_BYTES = 1 << 16
_CHUNK = 1 << 20

# What onnxruntime's CUDA provider computes in float16 or float32, and not in this type. A float16
# node without a kernel runs on the processor; a bfloat16 one makes the whole file fail to load.
# From the list of kernels in onnxruntime's documentation (OperatorKernels.md).
_NO_CUDA_KERNEL = {
    "float16": "RoiAlign",
    "bfloat16": "Acos Acosh ArgMax ArgMin Asin Asinh Atan Atanh BatchNormalization Ceil "
    "Celu CenterCropPad Clip ConvTranspose Cos Cosh CumSum DepthToSpace Einsum Elu Equal Floor GRU "
    "GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GroupNormalization Hardmax "
    "InstanceNormalization LRN LSTM LeakyRelu Less LessOrEqual Log LogSoftmax MaxPool Mean "
    "MeanVarianceNormalization Mish NonZero OneHot PRelu Pad RNN Reciprocal ReduceL1 ReduceL2 "
    "ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSumSquare Resize "
    "RoiAlign Round Selu Shrink Sin Sinh Softplus Softsign SpaceToDepth SwiGLU Swish Tan "
    "ThresholdedRelu TopK",
}

Floats = npt.NDArray[Any]


@dataclass(frozen=True)
class Scan:
    """What a constant holds.

    Attributes:
        low: Smallest finite number, 0 for none.
        high: Largest finite number, 0 for none.
        vanishing: Number of elements other than zero that float16 rounds to zero.
    """

    low: float = 0.0
    high: float = 0.0
    vanishing: int = 0

    def fits(self, dtype: ir.DataType, *, mask: bool = False) -> bool:
        """Return whether no finite number becomes infinite; in a mask only large ones count."""
        if dtype is not ir.DataType.FLOAT16:
            return True
        return self.high < OVERFLOW and (mask or self.low > -OVERFLOW)


@dataclass
class HalfFacts:
    """What convert-to-half did, and what it read on the way.

    Attributes:
        nodes: Names of the nodes that compute in half precision.
        casts: ``Cast`` nodes at the borders.
        vanished: Elements of weights, other than zero, that became zero.
        masks: Mask constants that were moved into the range.
        scans: By identity of a tensor: the tensor, and what it holds.
    """

    nodes: list[str] = field(default_factory=list)
    casts: int = 0
    vanished: int = 0
    masks: int = 0
    scans: dict[int, tuple[ir.TensorProtocol, Scan]] = field(default_factory=dict)

    def scan(self, tensor: ir.TensorProtocol) -> Scan:
        """Return what ``tensor`` holds; it is read the first time only."""
        if id(tensor) not in self.scans:
            self.scans[id(tensor)] = tensor, read_array(tensor, scan_of)
        return self.scans[id(tensor)][1]


def facts_of(model: ir.Model) -> HalfFacts:
    """Return the facts that ride in ``model``, new ones where there are none."""
    found = model.meta.get(FACTS_KEY)
    return found if isinstance(found, HalfFacts) else HalfFacts()


def half_refusal(target: "Target", type_: str) -> str | None:
    """Return why ``target`` does not compute in ``type_``, None when it does.

    Args:
        target: The device; its descriptor lists the types with native kernels.
        type_: ``float16`` or ``bfloat16``.
    """
    native = target.compute.activation_dtypes
    if type_ in native:
        return None
    text = f"target '{target.name}' computes in {', '.join(native)}, not in {type_}"
    if type_ in target.compute.weight_dtypes:
        text += "; its runtime stores weights so, and widens them again before it computes"
    return text


def operators_without_kernels(target: "Target", type_: str) -> tuple[str, ...]:
    """Return the operators that the runtime of ``target`` does not compute in ``type_``."""
    if target.runtime.executes_with != "onnxruntime" or target.kind != "gpu":
        return ()
    return tuple(_NO_CUDA_KERNEL[type_].split())


def scan_of(array: Floats) -> Scan:
    """Return what ``array`` holds, in pieces, so that it is not held twice."""
    flat = array.reshape(-1)
    low = high = 0.0
    vanishing = 0
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        part = part[np.isfinite(part)]
        if not part.size:
            continue
        low, high = min(low, float(part.min())), max(high, float(part.max()))
        vanishing += int(np.count_nonzero((np.abs(part) <= _VANISHES) & (part != 0)))
    return Scan(low, high, vanishing)


def half_array(array: Floats, dtype: ir.DataType, *, mask: bool = False) -> Floats:
    """Return ``array`` in half precision; finite numbers stay finite where the type has the range.

    Args:
        array: Numbers that fit, see ``Scan.fits``.
        dtype: Float16 or bfloat16.
        mask: Numbers below the range of float16 become ``MASK``.
    """
    if dtype is ir.DataType.FLOAT16:
        if mask:
            beyond = np.isfinite(array) & (array <= -OVERFLOW)
            array = np.where(beyond, np.float32(MASK), array)
        with np.errstate(over="ignore"):
            return array.astype(np.float16)
    # The largest float32 would round up to infinity, which costs more than the last place.
    inside = np.clip(array, -_LARGEST_BFLOAT16, _LARGEST_BFLOAT16)
    return np.where(np.isfinite(array), inside, array).astype(dtype.numpy())


def half_tensor(
    tensor: ir.TensorProtocol, dtype: ir.DataType, *, mask: bool = False
) -> ir.TensorProtocol:
    """Return ``tensor`` in ``dtype``; one of more than 64 KiB is computed whenever it is read."""

    def compute() -> ir.TensorProtocol:
        halves = read_array(tensor, lambda array: half_array(array, dtype, mask=mask))
        return ir.Tensor(halves, dtype=dtype, name=tensor.name)

    if tensor.nbytes <= _LAZY_BYTES:
        return compute()
    return ir.LazyTensor(compute, dtype, ir.Shape(tensor.shape.numpy()), name=tensor.name)
