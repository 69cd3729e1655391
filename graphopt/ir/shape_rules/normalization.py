"""Rules for normalizations."""

import onnx_ir as ir

from graphopt.ir.shape_rules.registry import rule
from graphopt.ir.shape_rules.view import NodeView, Shape

FLOAT = ir.DataType.FLOAT


@rule(
    "GroupNormalization", "InstanceNormalization", "LpNormalization", "LRN",
    "MeanVarianceNormalization", "RMSNormalization",
)  # fmt: skip
@rule("GroupNorm", domain="com.microsoft")
def normalized(view: NodeView) -> None:
    """The output looks like the input."""
    view.types(view.dtype(0))
    view.out(0, view.ranked(0, 1))


@rule("BatchNormalization")
def batch_normalization(view: NodeView) -> None:
    """The output looks like the input; the statistics are vectors of channels."""
    dtype = view.dtype(0)
    statistics = view.dtype(3) if view.opset >= 14 else dtype
    view.types(dtype, statistics, statistics, statistics, statistics)
    dims = view.ranked(0, 1)
    channels = dims[1] if len(dims) > 1 else 1
    for index in range(1, 5):
        vector = view.dims_or_none(index)
        if vector is not None and len(vector) == 1:
            channels = view.same(channels, vector[0], "numbers of channels")
    view.out(0, dims)
    for index in range(1, len(view.outputs)):
        view.out(index, (channels,))


def _statistics(view: NodeView, dims: Shape) -> Shape:
    axis = view.axis(view.int_("axis", -1), len(dims))
    return (*dims[:axis], *(1,) * (len(dims) - axis))


@rule("LayerNormalization", "SimplifiedLayerNormalization")
@rule("LayerNormalization", "SimplifiedLayerNormalization", domain="com.microsoft")
def layer_normalization(view: NodeView) -> None:
    """The output looks like the input; mean and deviation have 1 from the axis on."""
    statistics = view.data_type("stash_type", FLOAT)
    view.types(view.dtype(0), statistics, statistics)
    dims = view.ranked(0, 1)
    view.out(0, dims)
    for index in range(1, len(view.outputs)):
        view.out(index, _statistics(view, dims))


@rule("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain="com.microsoft")
def skip_layer_normalization(view: NodeView) -> None:
    """The output looks like the input, and so does the sum, the fourth output."""
    dtype = view.dtype(0)
    view.types(dtype, FLOAT, FLOAT, dtype)
    dims = view.ranked(0, 2, 3)
    view.out(0, dims)
    view.out(1, (*dims[:-1], 1))
    view.out(2, (*dims[:-1], 1))
    view.out(3, dims)
