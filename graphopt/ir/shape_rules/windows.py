"""Rules for operators that slide a window over spatial axes: convolutions and pools."""

import onnx_ir as ir

from graphopt.ir.dims import Dim, add, ceildiv, floordiv, mul
from graphopt.ir.shape_rules.algebra import at_least, smaller, sub
from graphopt.ir.shape_rules.layout import as_vector
from graphopt.ir.shape_rules.registry import rule
from graphopt.ir.shape_rules.view import NodeView, Shape

INT64 = ir.DataType.INT64


def _numbers(view: NodeView, name: str, count: int, default: int) -> tuple[int, ...]:
    found = view.ints(name)
    if not found:
        return (default,) * count
    if len(found) != count:
        view.impossible(f"attribute '{name}' has {len(found)} numbers, expected {count}")
    if default and min(found) < 1:
        view.malformed(f"attribute '{name}' is {list(found)}, expected positive numbers")
    return found


def _auto_pad(view: NodeView) -> str:
    mode = view.string("auto_pad", "NOTSET") or "NOTSET"
    if mode not in ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"):
        view.malformed(f"attribute 'auto_pad' is '{mode}'")
    return mode


def slide(view: NodeView, spatial: Shape, kernel: Shape, *, ceil: bool = False) -> Shape:
    """Return the sizes of the output of a window that slides over ``spatial``.

    Reads ``strides``, ``dilations``, ``pads`` and ``auto_pad``. With ``ceil`` a window that
    overlaps the end counts, unless it starts in the padding there. For ``VALID`` the text of the
    specification rounds down even then; its reference inference and ONNX Runtime round up, as
    done here.

    Args:
        view: The node.
        spatial: Sizes of the spatial axes of the input.
        kernel: Sizes of the window before dilation.
        ceil: Round up instead of down.
    """
    count = len(spatial)
    strides = _numbers(view, "strides", count, 1)
    dilations = _numbers(view, "dilations", count, 1)
    mode = _auto_pad(view)
    if mode.startswith("SAME"):
        return tuple(ceildiv(d, s) for d, s in zip(spatial, strides, strict=True))
    pads = (0,) * (2 * count) if mode == "VALID" else _numbers(view, "pads", 2 * count, 0)
    result: list[Dim] = []
    for i, size in enumerate(spatial):
        extent = add(mul(sub(kernel[i], 1), dilations[i]), 1)
        span = sub(add(size, pads[i] + pads[count + i]), extent)
        windows = add((ceildiv if ceil else floordiv)(span, strides[i]), 1)
        if ceil:
            windows = smaller(windows, ceildiv(add(size, pads[i]), strides[i]), view.bounds)
        if isinstance(windows, int) and windows < 1:
            view.impossible(f"a window of {extent} does not fit into spatial axis {i}")
        result.append(windows)
    return tuple(result)


def _kernel(view: NodeView, weight: Shape) -> Shape:
    """Return the window of a convolution: the attribute, or the axes of the weight."""
    named = view.ints("kernel_shape")
    if not named:
        return weight[2:]
    if len(named) != len(weight) - 2:
        view.impossible(f"kernel_shape {list(named)} does not fit the weight")
    return tuple(
        view.same(a, b, "kernel_shape and weight") for a, b in zip(named, weight[2:], strict=True)
    )


def convolve(view: NodeView, weight_index: int) -> Shape:
    """Return the shape of a convolution of input 0 with input ``weight_index``."""
    dims = view.ranked(0, 3)
    weight = view.ranked(weight_index, len(dims), len(dims))
    group = view.int_("group", 1)
    view.same(dims[1], mul(weight[1], group), "channels of the input and of the weight")
    if group < 1 or (isinstance(weight[0], int) and weight[0] % group):
        view.impossible(f"{weight[0]} output channels cannot form {group} groups")
    return (dims[0], weight[0], *slide(view, dims[2:], _kernel(view, weight)))


@rule("Conv", "DeformConv")
@rule("FusedConv", domain="com.microsoft")
def conv(view: NodeView) -> None:
    """Batch, output channels of the weight, and the windows along each spatial axis."""
    view.types(view.dtype(0))
    view.out(0, convolve(view, 1))


@rule("ConvInteger")
def conv_integer(view: NodeView) -> None:
    """As `conv`, accumulated in int32."""
    view.types(ir.DataType.INT32)
    view.out(0, convolve(view, 1))


@rule("QLinearConv")
def qlinear_conv(view: NodeView) -> None:
    """As `conv`, in the type of the output's zero point."""
    view.types(view.dtype(7))
    view.out(0, convolve(view, 3))


@rule("ConvTranspose")
def conv_transpose(view: NodeView) -> None:
    """Batch, output channels of all groups, and the sizes that a convolution would undo."""
    view.types(view.dtype(0))
    dims = view.ranked(0, 3)
    weight = view.ranked(1, len(dims), len(dims))
    view.same(dims[1], weight[0], "channels of the input and of the weight")
    channels = mul(weight[1], view.int_("group", 1))
    view.out(0, (dims[0], channels, *_unslide(view, dims[2:], _kernel(view, weight))))


def _unslide(view: NodeView, spatial: Shape, kernel: Shape) -> Shape:
    count = len(spatial)
    strides = _numbers(view, "strides", count, 1)
    wanted = view.ints("output_shape")
    if wanted:
        if len(wanted) not in (count, count + 2):
            view.impossible(f"output_shape {list(wanted)} does not fit {count} spatial axes")
        return wanted[-count:]
    mode = _auto_pad(view)
    dilations = _numbers(view, "dilations", count, 1)
    if mode.startswith("SAME"):
        result = [mul(d, s) for d, s in zip(spatial, strides, strict=True)]
        for i, size in enumerate(result):
            reach = add(mul(sub(kernel[i], 1), dilations[i]), 1)
            if not at_least(reach, strides[i], view.bounds):
                # The padding would be negative; ONNX Runtime pads nothing instead.
                reason = "runtimes disagree about negative automatic padding"
                result[i] = view.fresh(0, i + 2, reason, size, weak=True)
        return tuple(result)
    extra = _numbers(view, "output_padding", count, 0)
    pads = (0,) * (2 * count) if mode == "VALID" else _numbers(view, "pads", 2 * count, 0)
    result = []
    for i, size in enumerate(spatial):
        extent = add(mul(sub(kernel[i], 1), dilations[i]), 1)
        reach = add(mul(sub(size, 1), strides[i]), extent)
        result.append(add(reach, extra[i] - pads[i] - pads[count + i]))
    return tuple(result)


def pooled(view: NodeView, dims: Shape, *, channels_last: bool = False) -> Shape:
    """Return the shape of a pool over the spatial axes of ``dims``."""
    spatial = dims[1:-1] if channels_last else dims[2:]
    kernel = view.required_ints("kernel_shape")
    if len(kernel) != len(spatial):
        view.impossible(f"kernel_shape {list(kernel)} does not fit {len(spatial)} spatial axes")
    if min(kernel) < 1:
        view.malformed(f"attribute 'kernel_shape' is {list(kernel)}")
    sizes = slide(view, spatial, kernel, ceil=bool(view.int_("ceil_mode", 0)))
    dilations = view.ints("dilations") or ()
    if _auto_pad(view).startswith("SAME") and any(d > 1 for d in dilations):
        # ONNX Runtime pads less than the specification asks for.
        first = 1 if channels_last else 2
        reason = "runtimes disagree about the automatic padding of a dilated pool"
        sizes = tuple(view.fresh(0, first + i, reason, d, weak=True) for i, d in enumerate(sizes))
    return (dims[0], *sizes, dims[-1]) if channels_last else (*dims[:2], *sizes)


@rule("MaxPool", "AveragePool", "LpPool")
def pool(view: NodeView) -> None:
    """Batch, channels, and the windows along each spatial axis; indices for the maximum."""
    view.types(view.dtype(0), INT64)
    dims = pooled(view, view.ranked(0, 3))
    view.out(0, dims)
    view.out(1, dims)


@rule("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def global_pool(view: NodeView) -> None:
    """Every spatial axis becomes 1."""
    view.types(view.dtype(0))
    dims = view.ranked(0, 2)
    view.out(0, (*dims[:2], *(1,) * (len(dims) - 2)))


@rule("MaxUnpool")
def max_unpool(view: NodeView) -> None:
    """The shape given, or the sizes that the pool came from at the least."""
    view.types(view.dtype(0))
    dims = view.ranked(0, 3)
    if view.has(2):
        entries = as_vector(view, 2, "output shape")
        if len(entries) != len(dims):
            view.impossible(f"the output shape has {len(entries)} axes")
        view.out(0, tuple(view.size_entry(2, i, e, "a size") for i, e in enumerate(entries)))
        return
    kernel = view.required_ints("kernel_shape")
    if len(kernel) != len(dims) - 2:
        view.impossible(f"kernel_shape {list(kernel)} does not fit {len(dims) - 2} spatial axes")
    view.out(0, (*dims[:2], *_unslide(view, dims[2:], kernel)))


@rule("MaxRoiPool")
def max_roi_pool(view: NodeView) -> None:
    """One pooled map for each region."""
    view.types(view.dtype(0))
    size = view.required_ints("pooled_shape")
    if len(size) != 2:
        view.malformed(f"attribute 'pooled_shape' is {list(size)}")
    view.out(0, (view.ranked(1, 2, 2)[0], view.ranked(0, 4, 4)[1], *size))


@rule("RoiAlign")
def roi_align(view: NodeView) -> None:
    """One pooled map for each region."""
    view.types(view.dtype(0))
    size = (view.int_("output_height", 1), view.int_("output_width", 1))
    regions = view.ranked(1, 2, 2)[0]
    indices = view.dims_or_none(2)
    if indices is not None and len(indices) == 1:
        regions = view.same(regions, indices[0], "numbers of regions")
    view.out(0, (regions, view.ranked(0, 4, 4)[1], *size))


@rule("Col2Im")
def col2im(view: NodeView) -> None:
    """Batch, channels without the elements of a block, and the image."""
    view.types(view.dtype(0))
    dims = view.ranked(0, 3, 3)
    image, block = as_vector(view, 1, "image shape"), as_vector(view, 2, "block shape")
    area: Dim = 1
    for i, entry in enumerate(block):
        area = mul(area, view.size_entry(2, i, entry, "a size of the block"))
    if isinstance(area, int) and (area < 1 or (isinstance(dims[1], int) and dims[1] % area)):
        view.impossible(f"{dims[1]} is no multiple of the block's {area} elements")
    sizes = tuple(view.size_entry(1, i, e, "a size of the image") for i, e in enumerate(image))
    view.out(0, (dims[0], floordiv(dims[1], area), *sizes))


@rule("CausalConvWithState")
def causal_conv(view: NodeView) -> None:
    """The output looks like the input; the state holds one element less than the window."""
    view.types(view.dtype(0), view.dtype(0))
    dims, weight = view.ranked(0, 3, 3), view.ranked(1, 3, 3)
    view.out(0, dims)
    view.out(1, (dims[0], dims[1], sub(weight[2], 1)))
