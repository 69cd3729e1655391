"""Rules for resizing and sampling images."""

from fractions import Fraction
from math import ceil, floor

import numpy as np
import onnx_ir as ir

from graphopt.ir.dims import Dim, floordiv, mul
from graphopt.ir.shape_rules.contents import Entry, as_ratio
from graphopt.ir.shape_rules.layout import as_vector
from graphopt.ir.shape_rules.registry import rule
from graphopt.ir.shape_rules.view import NodeView, Shape


def _scaled(view: NodeView, axis: int, size: Dim, scale: Entry) -> Dim:
    """Return ``size * scale`` rounded down, as runtimes compute it in float32.

    A symbolic size times a scale that is no small binary fraction may round either way, so it
    becomes a symbol.
    """
    if isinstance(scale, float):
        if not np.isfinite(scale) or scale <= 0:
            view.impossible(f"the scale of axis {axis} is {scale}")
        if scale == 1:
            return size
        if isinstance(size, int):
            return floor(np.float32(size) * np.float32(scale))
        exact = as_ratio(scale)
        if exact is not None and isinstance(exact[0], int):
            return floordiv(mul(size, exact[0]), exact[1])
        reason = f"{size} times the scale {scale} is rounded in float32"
        return view.fresh(0, axis, reason, mul(size, ceil(scale)), weak=True)
    return view.fresh(0, axis, "the scale is computed from data", weak=True)


@rule("Upsample")
def upsample(view: NodeView) -> None:
    """Each axis times its scale."""
    view.types(view.dtype(0))
    dims = view.dims(0)
    scales: tuple[Entry, ...]
    if view.opset >= 9:
        scales = as_vector(view, 1, "scales")
    elif view.opset >= 7:
        scales = view.floats("scales") or ()
    else:
        scales = (1.0, 1.0, view.float_("height_scale", 1.0), view.float_("width_scale", 1.0))
    if len(scales) != len(dims):
        view.impossible(f"there are {len(scales)} scales for {len(dims)} axes")
    view.out(
        0, tuple(_scaled(view, i, d, s) for i, (d, s) in enumerate(zip(dims, scales, strict=True)))
    )


@rule("Resize")
def resize(view: NodeView) -> None:
    """The sizes given, or each axis times its scale."""
    view.types(view.dtype(0))
    dims = view.dims(0)
    named = view.ints("axes") if view.opset >= 18 else None
    axes = tuple(range(len(dims))) if named is None else view.axes(named, len(dims))
    scales_index = 1 if view.opset < 11 else 2
    use_sizes = view.opset >= 11 and view.has(3)
    entries = as_vector(view, 3 if use_sizes else scales_index, "sizes or scales")
    if len(entries) != len(axes):
        view.impossible(f"there are {len(entries)} sizes or scales for {len(axes)} axes")
    result = list(dims)
    policy = view.string("keep_aspect_ratio_policy", "stretch")
    if use_sizes and policy != "stretch":
        for axis, size in zip(axes, _keep_aspect(view, dims, axes, entries), strict=True):
            result[axis] = size
        view.out(0, tuple(result))
        return
    crop = view.string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
    for i, axis in enumerate(axes):
        if use_sizes:
            result[axis] = view.size_entry(3, i, entries[i], "a size")
        elif crop:
            result[axis] = view.fresh(0, axis, "the region is computed from data", weak=True)
        else:
            result[axis] = _scaled(view, axis, dims[axis], entries[i])
    view.out(0, tuple(result))


def _keep_aspect(
    view: NodeView, dims: Shape, axes: tuple[int, ...], entries: tuple[Entry, ...]
) -> list[Dim]:
    """Return sizes with one scale for all axes, the smallest or the largest that is asked for."""
    sizes = [dims[axis] for axis in axes]
    numbers = [
        (s, e)
        for s, e in zip(sizes, entries, strict=True)
        if isinstance(s, int) and isinstance(e, int)
    ]
    if len(numbers) < len(sizes) or any(size < 1 for size, _ in numbers):
        reason = "one scale is chosen for all axes"
        return [view.fresh(0, axis, reason, weak=True) for axis in axes]
    scales = [Fraction(wanted, size) for size, wanted in numbers]
    larger = view.string("keep_aspect_ratio_policy", "stretch") == "not_larger"
    scale = min(scales) if larger else max(scales)
    return [floor(scale * size + Fraction(1, 2)) for size, _ in numbers]


@rule("GridSample")
@rule("GridSample", domain="com.microsoft")
def grid_sample(view: NodeView) -> None:
    """Batch and channels of the image, sizes of the grid."""
    view.types(view.dtype(0))
    dims = view.ranked(0, 3)
    grid = view.ranked(1, len(dims), len(dims))
    view.out(0, (view.same(dims[0], grid[0], "batch sizes"), dims[1], *grid[1:-1]))


@rule("AffineGrid")
def affine_grid(view: NodeView) -> None:
    """Batch and sizes of the image, then its coordinates."""
    view.types(view.dtype(0))
    entries = as_vector(view, 1, "size")
    if len(entries) not in (4, 5):
        view.impossible(f"the size has {len(entries)} entries")
    sizes = [view.size_entry(1, i, e, "a size") for i, e in enumerate(entries)]
    view.out(0, (sizes[0], *sizes[2:], len(entries) - 2))


@rule("ImageDecoder")
def image_decoder(view: NodeView) -> None:
    """Height, width and channels; the first two are in the file."""
    view.types(ir.DataType.UINT8)
    channels = 1 if view.string("pixel_format", "RGB") == "Grayscale" else 3
    reason = "the size is in the encoded image"
    view.out(0, (view.fresh(0, 0, reason), view.fresh(0, 1, reason), channels))
