"""Targets of ``Reshape``: a constant that gives the wanted dimensions, where there is one."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from graphopt.ir.dims import Bounds, Dim, bounds_of


def reshape_target(
    source: tuple[Dim, ...], wanted: tuple[Dim, ...], bounds: Mapping[str, Bounds]
) -> list[int] | None:
    """Return the constant target that reshapes ``source`` to ``wanted``, None when there is none.

    A symbolic axis is copied from the same axis of the input (0), and one further axis may be the
    rest (-1). The rest is not defined when a copied axis may be empty, so ``bounds`` must exclude
    that; a size of zero cannot be written next to a copied axis.
    """
    target: list[int] = []
    copied: list[Dim] = []
    rests = 0
    for axis, dim in enumerate(wanted):
        if isinstance(dim, int):
            if dim == 0:
                return None
            target.append(dim)
        elif axis < len(source) and source[axis] == dim:
            target.append(0)
            copied.append(dim)
        else:
            target.append(-1)
            rests += 1
    if rests > 1:
        return None
    if rests and any(bounds_of(dim, bounds).lower < 1 for dim in copied):
        return None
    return target


def target_tensor(target: list[int]) -> ir.TensorProtocol:
    """Return the target as a tensor."""
    return ir.Tensor(np.array(target, dtype=np.int64), dtype=ir.DataType.INT64)
