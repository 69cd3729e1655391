"""Imports every family of shape rules, which fills the table in ``registry``."""

from graphopt.ir.shape_rules import (  # noqa: F401
    attention,
    classical,
    control,
    elementwise,
    generation,
    layout,
    matrix,
    microsoft,
    normalization,
    quantization,
    recurrent,
    reduction,
    selection,
    sequences,
    signal,
    slicing,
    text,
    vision,
    windows,
)
