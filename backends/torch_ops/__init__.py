"""ONNX operators as torch calls, by family; importing this package fills the registry.

A function takes the inputs of its node in order, then its attributes by their ONNX names, and
returns what the node returns. It calls torch only with sizes that torch can trace: a size read from
a tensor stays a number of the graph (``small``), never a number of the sample.
"""

from graphopt.backends.torch_ops import (
    attention,
    control,
    convolution,
    elementwise,
    indexing,
    losses,
    movement,
    normalization,
    quantized,
    recurrent,
    reduction,
    resize,
    sequences,
    shapes,
)

__all__ = [
    "attention",
    "control",
    "convolution",
    "elementwise",
    "indexing",
    "losses",
    "movement",
    "normalization",
    "quantized",
    "recurrent",
    "reduction",
    "resize",
    "sequences",
    "shapes",
]
