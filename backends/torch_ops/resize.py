"""Resize, Upsample and the operators that sample an image at computed places."""

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows it by
from torch import Tensor

from graphopt.backends.torch_ops.registry import op
from graphopt.backends.torch_ops.small import (
    Number,
    cut_index,
    is_known,
    numbers_of,
    plain_floats,
    plain_ints,
    shape_numbers,
    tensor_of,
    whole,
)
from graphopt.errors import UnsupportedError

_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}


def _scaled(size: Number, scale: float) -> Number:
    """Return the size times the scale, rounded down."""
    if scale == int(scale):
        return size * int(scale)
    if isinstance(size, int):
        return math.floor(size * scale)
    if isinstance(size, Tensor):
        return torch.floor(size * scale).to(torch.int64)
    return whole(size * scale)


def _is_same(a: Number, b: Number) -> bool:
    """Return whether two sizes agree, in a trace on the sample."""
    return bool(a == b)


class _Plan:
    """Which axes change, to which sizes, by which scales."""

    def __init__(
        self,
        x: Tensor,
        scales: list[float] | None,
        sizes: list[Number] | None,
        axes: list[int] | None,
        policy: str,
    ) -> None:
        where = list(range(x.dim())) if axes is None else [a % x.dim() for a in axes]
        self.axes: list[int] = []
        self.sizes: list[Number] = []
        self.scales: list[Number] = []
        self.exact = True
        if sizes is not None and policy != "stretch":
            sizes, scales = self._kept_ratio(x, where, plain_ints(sizes), policy)
        for i, axis in enumerate(where):
            size = x.shape[axis]
            if scales is not None:
                if scales[i] == 1.0:
                    continue
                wanted = sizes[i] if sizes is not None else _scaled(size, scales[i])
                scale: Number = scales[i]
                self.exact = self.exact and scales[i] == int(scales[i])
            else:
                assert sizes is not None
                wanted = sizes[i]
                if _is_same(wanted, size):
                    continue
                scale = wanted / size
            self.axes.append(axis)
            self.sizes.append(wanted)
            self.scales.append(scale)

    @staticmethod
    def _kept_ratio(
        x: Tensor, where: list[int], sizes: list[int], policy: str
    ) -> tuple[list[Number], list[float]]:
        ratios = [size / int(x.shape[axis]) for size, axis in zip(sizes, where, strict=True)]
        ratio = min(ratios) if policy == "not_larger" else max(ratios)
        kept = [math.floor(int(x.shape[axis]) * ratio + 0.5) for axis in where]
        return list(kept), [ratio] * len(where)


@op("Resize", small=True)
def _resize(
    x: Any,
    roi: Any = None,
    scales: Any = None,
    sizes: Any = None,
    *,
    antialias: int = 0,
    axes: list[int] | None = None,
    coordinate_transformation_mode: str | None = None,
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str | None = None,
    opset: int,
) -> Tensor:
    x = tensor_of(x)
    if opset == 10:
        scales, roi = roi, None
    coordinates = coordinate_transformation_mode or ("asymmetric" if opset == 10 else "half_pixel")
    rounding = nearest_mode or ("floor" if opset == 10 else "round_prefer_floor")
    factors = plain_floats(scales) if scales is not None else []
    wanted = numbers_of(sizes) if sizes is not None and not factors else None
    plan = _Plan(x, factors or None, wanted, axes, keep_aspect_ratio_policy)
    kernel = {"nearest": "nearest", "linear": "linear", "cubic": "cubic"}[mode]
    if not plan.axes:
        return x  # type: ignore[no-any-return]  # numbers are Any
    # Sizes that were computed: the scale follows from them, as in torch.
    exact = plan.exact or wanted is not None
    if exact and not antialias and not exclude_outside and cubic_coeff_a == -0.75:
        fast = _interpolated(x, plan, kernel, coordinates, rounding)
        if fast is not None:
            return fast
    bounds = plain_floats(roi) if roi is not None else []
    taps = _Taps(
        kernel,
        coordinates,
        rounding,
        cubic_coeff_a,
        bool(exclude_outside),
        bool(antialias),
        extrapolation_value,
    )
    count = len(bounds) // 2
    kind = x.dtype
    wide = x if kind.is_floating_point else x.to(torch.float32)
    order = list(range(x.dim())) if axes is None else [a % x.dim() for a in axes]
    for axis, size, scale in zip(plan.axes, plan.sizes, plan.scales, strict=True):
        place = order.index(axis)
        region = (bounds[place], bounds[place + count]) if bounds else (0.0, 1.0)
        wide = taps.resize(wide, axis, size, scale, region)
    return wide.to(kind)  # type: ignore[no-any-return]  # numbers are Any


@op("Upsample", small=True)
def _upsample(
    x: Any,
    scales: Any = None,
    *,
    mode: str = "nearest",
    attribute_scales: list[float] | None = None,
    height_scale: float = 1.0,
    width_scale: float = 1.0,
) -> Tensor:
    factors = attribute_scales if scales is None else plain_floats(scales)
    if factors is None:
        factors = [1.0, 1.0, height_scale, width_scale]
    kind = "linear" if mode in ("linear", "bilinear") else "nearest"
    return _resize(
        x,
        None,
        list(factors),
        mode=kind,
        nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
        opset=11,
    )


def _interpolated(
    x: Tensor, plan: _Plan, kernel: str, coordinates: str, rounding: str
) -> Tensor | None:
    """Return the result of torch's own kernel where it computes the same, else None."""
    if x.dim() not in _LINEAR or min(plan.axes) < 2 or not x.dtype.is_floating_point:
        return None
    sizes: list[Number] = shape_numbers(x)[2:]
    for axis, size in zip(plan.axes, plan.sizes, strict=True):
        sizes[axis - 2] = size
    centred = coordinates in ("half_pixel", "pytorch_half_pixel")
    if kernel == "nearest":
        whole = all(isinstance(s, float) and s == int(s) for s in plan.scales)
        floors = coordinates == "asymmetric" and rounding == "floor"
        rounds = centred and rounding.startswith("round")
        if whole and (floors or rounds):
            return F.interpolate(x, sizes, mode="nearest")
        return None
    corners = coordinates == "align_corners"
    if not corners and not centred:
        return None
    if coordinates == "pytorch_half_pixel" and any(is_known(size, 1) for size in plan.sizes):
        return None
    if kernel == "linear":
        return F.interpolate(x, sizes, mode=_LINEAR[x.dim()], align_corners=corners)
    if x.dim() == 4:
        return F.interpolate(x, sizes, mode="bicubic", align_corners=corners)
    return None


class _Taps:
    """Resizes one axis: every output is a weighted sum of elements around its place."""

    def __init__(
        self,
        kernel: str,
        coordinates: str,
        rounding: str,
        a: float,
        exclude: bool,
        antialias: bool,
        outside: float,
    ) -> None:
        self._kernel, self._coordinates, self._rounding = kernel, coordinates, rounding
        self._a, self._exclude, self._antialias, self._outside = a, exclude, antialias, outside

    def resize(
        self, x: Tensor, axis: int, size: Number, scale: Number, region: tuple[float, float]
    ) -> Tensor:
        """Return ``x`` with ``size`` elements along ``axis``."""
        have = x.shape[axis]
        places = self._places(have, size, scale, region)
        shape = [1] * axis + [-1] + [1] * (x.dim() - axis - 1)
        if self._kernel == "nearest":
            result = x.index_select(axis, cut_index(self._nearest(places), have))
        else:
            result = self._summed(x, axis, places, scale, shape)
        if self._coordinates == "tf_crop_and_resize":
            inside = (places >= 0) & (places <= have - 1)
            result = torch.where(inside.reshape(shape), result, self._outside)
        return result

    def _summed(
        self, x: Tensor, axis: int, places: Tensor, scale: Number, shape: list[int]
    ) -> Tensor:
        have = x.shape[axis]
        left = torch.floor(places)
        weights, offsets = self._weights(places - left, scale)
        total = torch.stack(weights).sum(0)
        index = [left.to(torch.int64) + offset for offset in offsets]
        if self._exclude:
            weights = [
                torch.where((i >= 0) & (i < have), w, torch.zeros_like(w))
                for i, w in zip(index, weights, strict=True)
            ]
            total = torch.stack(weights).sum(0)
        result: Any = 0
        for i, weight in zip(index, weights, strict=True):
            part = x.index_select(axis, cut_index(i, have))
            result = result + part * (weight / total).to(x.dtype).reshape(shape)
        return result  # type: ignore[no-any-return]  # a tensor after the first tap

    def _places(
        self, have: Number, size: Number, scale: Number, region: tuple[float, float]
    ) -> Tensor:
        out = torch.arange(size, dtype=torch.float32)
        match self._coordinates:
            case "asymmetric":
                return out / scale  # type: ignore[no-any-return]  # numbers are Any
            case "half_pixel":
                return (out + 0.5) / scale - 0.5  # type: ignore[no-any-return]  # numbers are Any
            case "pytorch_half_pixel":
                return out * 0 if is_known(size, 1) else (out + 0.5) / scale - 0.5
            case "align_corners":
                return out * 0 if is_known(size, 1) else out * ((have - 1) / (size - 1))
            case "half_pixel_symmetric":
                adjustment = size / (scale * have)
                return have / 2 * (1 - adjustment) + (out + 0.5) / scale - 0.5  # type: ignore[no-any-return]  # numbers are Any
            case "tf_crop_and_resize":
                start, end = region
                if is_known(size, 1):
                    return out * 0 + 0.5 * (start + end) * (have - 1)  # type: ignore[no-any-return]  # numbers are Any
                return start * (have - 1) + out * ((end - start) * (have - 1) / (size - 1))  # type: ignore[no-any-return]  # numbers are Any
        raise UnsupportedError("torch-operator-form", f"Resize with '{self._coordinates}'")

    def _nearest(self, places: Tensor) -> Tensor:
        match self._rounding:
            case "round_prefer_floor":
                rounded = torch.ceil(places - 0.5)
            case "round_prefer_ceil":
                rounded = torch.floor(places + 0.5)
            case "floor":
                rounded = torch.floor(places)
            case _:
                rounded = torch.ceil(places)
        return rounded.to(torch.int64)

    def _weights(self, fraction: Tensor, scale: Number) -> tuple[list[Tensor], list[int]]:
        reach = 1 if self._kernel == "linear" else 2
        narrow = min(float(scale), 1.0) if self._antialias else 1.0
        first = math.floor(-reach / narrow) + 1
        offsets = list(range(first, math.ceil(reach / narrow) + 1))
        function = self._linear if self._kernel == "linear" else self._cubic
        return [function(torch.abs(fraction - o) * narrow) for o in offsets], offsets

    def _linear(self, distance: Tensor) -> Tensor:
        return torch.clamp(1 - distance, min=0)

    def _cubic(self, d: Tensor) -> Tensor:
        a = self._a
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


@op("GridSample")
def _grid_sample(
    x: Tensor,
    grid: Tensor,
    *,
    align_corners: int = 0,
    mode: str = "linear",
    padding_mode: str = "zeros",
) -> Tensor:
    kind = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    return F.grid_sample(x, grid, kind, padding_mode, bool(align_corners))


@op("AffineGrid", small=True)
def _affine_grid(theta: Any, size: Any, *, align_corners: int = 0) -> Tensor:
    theta = tensor_of(theta)
    lengths = numbers_of(size)[2:]
    axes = []
    for length in lengths:
        steps = torch.arange(length, dtype=theta.dtype)
        if align_corners:
            axes.append(steps * (2 / (length - 1)) - 1)
        else:
            axes.append((2 * steps + 1) / length - 1)
    grid = torch.meshgrid(*axes, indexing="ij")
    points = torch.stack([*reversed(grid), torch.ones_like(grid[0])], -1)
    flat = points.reshape([1, -1, len(lengths) + 1])
    result = torch.matmul(flat, theta.transpose(1, 2))
    return result.reshape([-1, *lengths, len(lengths)])


@op("RoiAlign")
def _roi_align(
    x: Tensor,
    rois: Tensor,
    batch: Tensor,
    *,
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
    mode: str = "avg",
    coordinate_transformation_mode: str | None = None,
    opset: int,
) -> Tensor:
    shifted = (coordinate_transformation_mode or ("half_pixel" if opset >= 16 else "")) == (
        "half_pixel"
    )
    if sampling_ratio <= 0:
        raise UnsupportedError("torch-operator-form", "RoiAlign with an adaptive sampling ratio")
    corners = rois * spatial_scale - (0.5 if shifted else 0.0)
    x1, y1, x2, y2 = corners.unbind(1)
    width, height = x2 - x1, y2 - y1
    if not shifted:
        width, height = width.clamp(min=1.0), height.clamp(min=1.0)
    ys = _sample_points(y1, height, output_height, sampling_ratio)
    xs = _sample_points(x1, width, output_width, sampling_ratio)
    values = _bilinear(x, batch.to(torch.int64), ys, xs, mode == "max")
    sizes = [
        *shape_numbers(values)[:2],
        output_height,
        sampling_ratio,
        output_width,
        sampling_ratio,
    ]
    values = values.reshape(sizes)
    return values.amax([3, 5]) if mode == "max" else values.mean([3, 5])


def _sample_points(start: Tensor, length: Tensor, bins: int, ratio: int) -> Tensor:
    steps = (torch.arange(bins * ratio, dtype=start.dtype) + 0.5) / ratio
    return start.unsqueeze(1) + steps * (length / bins).unsqueeze(1)


def _bilinear(x: Tensor, batch: Tensor, ys: Tensor, xs: Tensor, largest: bool) -> Tensor:
    """Return (roi, channel, y, x) samples; outside the image they are zero."""
    result: Any = None
    (y0, y1, wy, iny), (x0, x1, wx, inx) = (_corners(ys, x.shape[2]), _corners(xs, x.shape[3]))
    inside = (iny.unsqueeze(2) & inx.unsqueeze(1)).unsqueeze(1)
    images = x.movedim(1, -1)
    for rows, row_weight in ((y0, 1 - wy), (y1, wy)):
        for columns, column_weight in ((x0, 1 - wx), (x1, wx)):
            picked = images[batch[:, None, None], rows[:, :, None], columns[:, None, :]]
            weight = (row_weight.unsqueeze(2) * column_weight.unsqueeze(1)).unsqueeze(1)
            part = picked.movedim(-1, 1) * weight
            if result is None:
                result = part
            else:
                result = torch.maximum(result, part) if largest else result + part
    return torch.where(inside, result, torch.zeros_like(result))


def _corners(places: Tensor, size: Number) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inside = (places >= -1) & (places <= size)
    cut = places.clamp(min=0)
    low = cut_index(cut.floor().to(torch.int64), size)
    high = cut_index(low + 1, size)
    weight = torch.where(low >= size - 1, torch.zeros_like(cut), cut - low)
    return low, high, weight, inside
