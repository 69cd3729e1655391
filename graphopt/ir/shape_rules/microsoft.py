"""Rules of com.microsoft, the operators that ONNX Runtime adds when it fuses."""

import onnx_ir as ir

from graphopt.ir.dims import add, mul
from graphopt.ir.shape_rules.elementwise import unchanged
from graphopt.ir.shape_rules.matrix import product_shape
from graphopt.ir.shape_rules.registry import rule
from graphopt.ir.shape_rules.view import NodeView, Shape
from graphopt.ir.shape_rules.windows import pooled

MS = "com.microsoft"


@rule(
    "BiasGelu", "FastGelu", "Gelu", "QuickGelu", "QLinearLeakyRelu", "QLinearSigmoid",
    "QLinearSoftmax", "RotaryEmbedding", "BiasSoftmax",
    domain=MS,
)  # fmt: skip
def same_as_input(view: NodeView) -> None:
    """The output looks like the first input."""
    unchanged(view)


@rule("QLinearAdd", "QLinearMul", domain=MS)
def qlinear_binary(view: NodeView) -> None:
    """The broadcast of both tensors; each is followed by scale and zero point."""
    view.types(view.dtype(0))
    view.out(0, view.broadcast(view.dims(0), view.dims(3)))


@rule("QLinearConcat", domain=MS)
def qlinear_concat(view: NodeView) -> None:
    """The sum along the axis; inputs are scale and zero point, then triples."""
    view.types(view.dtype(1))
    shapes = [view.dims(i) for i in range(2, len(view.inputs), 3)]
    if not shapes or any(len(s) != len(shapes[0]) for s in shapes):
        view.impossible("there is no input, or the ranks differ")
    axis = view.axis(view.int_("axis", 0), len(shapes[0]))
    result = list(shapes[0])
    for shape in shapes[1:]:
        for i, size in enumerate(shape):
            if i == axis:
                result[i] = add(result[i], size)
            else:
                result[i] = view.same(result[i], size, f"sizes of axis {i}")
    view.out(0, tuple(result))


@rule("QLinearAveragePool", domain=MS)
def qlinear_pool(view: NodeView) -> None:
    """As AveragePool, possibly with the channels last."""
    view.types(view.dtype(0))
    last = bool(view.int_("channels_last", 0))
    view.out(0, pooled(view, view.ranked(0, 3), channels_last=last))


@rule("QLinearGlobalAveragePool", domain=MS)
def qlinear_global_pool(view: NodeView) -> None:
    """Every spatial axis becomes 1."""
    view.types(view.dtype(0))
    dims = view.ranked(0, 3)
    ones = (1,) * (len(dims) - 2)
    if view.int_("channels_last", 0):
        view.out(0, (dims[0], *ones, dims[-1]))
    else:
        view.out(0, (*dims[:2], *ones))


def _swapped(view: NodeView, index: int, suffix: str) -> Shape:
    """Return the shape of a factor of a FusedMatMul after its transpositions."""
    dims = view.ranked(index, 1)
    if view.int_(f"transBatch{suffix}", 0) and len(dims) > 2:
        dims = (*dims[1:-1], dims[0], dims[-1])
    if view.int_(f"trans{suffix}", 0) and len(dims) > 1:
        dims = (*dims[:-2], dims[-1], dims[-2])
    return dims


@rule("FusedMatMul", domain=MS)
def fused_matmul(view: NodeView) -> None:
    """A matrix product of factors that may be transposed."""
    view.types(view.dtype(0))
    view.out(0, product_shape(view, _swapped(view, 0, "A"), _swapped(view, 1, "B")))


@rule("MatMulIntegerToFloat", domain=MS)
def matmul_integer_to_float(view: NodeView) -> None:
    """A matrix product in the type of the scales."""
    view.types(view.dtype(2))
    view.out(0, product_shape(view, view.dims(0), view.dims(1)))


@rule("DynamicQuantizeMatMul", domain=MS)
def dynamic_quantize_matmul(view: NodeView) -> None:
    """A matrix product in the type of the first factor."""
    view.types(view.dtype(0))
    view.out(0, product_shape(view, view.dims(0), view.dims(1)))


@rule("MatMulBnb4", "MatMulNBits", domain=MS)
def matmul_n_bits(view: NodeView) -> None:
    """Rows of the first, N columns; the packed factor has K rows."""
    view.types(view.dtype(0))
    dims = view.ranked(0, 1)
    rows, columns = view.int_("K", 0), view.int_("N", 0)
    if rows < 1 or columns < 1:
        view.malformed(f"attributes K and N are {rows} and {columns}")
    view.same(dims[-1], rows, "inner sizes")
    view.out(0, (*dims[:-1], columns))


@rule("GatherBlockQuantized", domain=MS)
def gather_block_quantized(view: NodeView) -> None:
    """The indices in the place of the gathered axis; bytes hold several numbers of the last one."""
    view.types(view.dtype(2))
    data = list(view.ranked(0, 1))
    bits = view.int_("bits", 4)
    if view.dtype(0) == ir.DataType.UINT8:
        if bits not in (2, 4, 8):
            view.malformed(f"attribute bits is {bits}")
        data[-1] = mul(data[-1], 8 // bits)
    axis = view.axis(view.int_("gather_axis", 0), len(data))
    view.out(0, (*data[:axis], *view.dims(1), *data[axis + 1 :]))


@rule("MultiHeadAttention", domain=MS)
def multi_head_attention(view: NodeView) -> None:
    """The attended values with the heads packed into the last axis.

    Only separate query, key and value without caches are covered; other outputs stay unknown.
    """
    view.types(view.dtype(0))
    query = view.ranked(0, 3, 5)
    if len(query) == 3 and view.has(2):
        value = view.dims(2)
        if len(value) == 3:
            view.out(0, (*query[:2], value[2]))
