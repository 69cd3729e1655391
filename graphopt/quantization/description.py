"""What calibration found out, in the form that placement reads: one description, several targets.

The description belongs to values by name, so it holds for every copy of the model. It rides in
``model.meta`` to the pass that inserts the nodes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.quantization.device_rules import DEVICE_RULES
from graphopt.quantization.ranges import Scheme
from graphopt.quantization.rules import DEFAULT_OPERATORS, EVERYTHING
from graphopt.quantization.weights import WeightScheme

if TYPE_CHECKING:
    from graphopt.targets.schema import Quantization

META_KEY = "graphopt.calibration"


@dataclass(frozen=True)
class Description:
    """What calibration found out.

    Attributes:
        ranges: Smallest and largest number kept of each observed value.
        means: Mean of each channel of the values that linear nodes read.
        samples: Number of samples seen.
        method: How the ranges were chosen.
        maxima: Largest magnitude of each channel of these values and of what leads to them.
        unseen: Values that no sample gave an element, as those of a branch that none took.
    """

    ranges: Mapping[str, tuple[float, float]]
    means: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    samples: int = 0
    method: str = "min-max"
    maxima: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    unseen: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Plan:
    """What a target asks of quantization.

    Attributes:
        activation: How activations are stored.
        weight: How weights are stored.
        operators: Operators with integer kernels.
        quantize_results: Whether what an integer node makes is quantized at once; else only what an
            integer node reads, because the runtime fuses what follows a node into it.
        integer_bias: Whether biases are 32-bit integers; else they stay float.
        full_integer: Whether every node computes in integers; ``operators`` then holds
            ``rules.EVERYTHING``, so that all values are observed.
        per_tensor: Linear operators whose weights have one scale, whatever ``weight`` says.
    """

    activation: Scheme = field(default_factory=Scheme)
    weight: WeightScheme = field(default_factory=WeightScheme)
    operators: frozenset[str] = frozenset(DEFAULT_OPERATORS)
    quantize_results: bool = True
    integer_bias: bool = True
    full_integer: bool = False
    per_tensor: frozenset[str] = frozenset()


def operators_for(named: Iterable[str], *, full_integer: bool) -> frozenset[str]:
    """Return the operators of a target that names ``named``; none of them means all with a rule."""
    if full_integer:
        return frozenset((EVERYTHING, *(tuple(named) or DEVICE_RULES)))
    return frozenset(tuple(named) or DEFAULT_OPERATORS)


def plan_for(quantization: "Quantization") -> Plan:
    """Return what the scheme of a target asks, for the types that are served.

    ``numerics.quantize`` has refused the others.
    """
    return Plan(
        activation=Scheme(quantization.activation, quantization.symmetric_activation),
        weight=WeightScheme(quantization.per_channel, quantization.reduce_range),
        operators=operators_for(quantization.operators, full_integer=quantization.full_integer),
        quantize_results=quantization.quantize_results,
        integer_bias=quantization.integer_bias,
        full_integer=quantization.full_integer,
        per_tensor=frozenset(quantization.per_tensor_operators),
    )


def description_of(model: ir.Model) -> Description | None:
    """Return the description that rides in ``model``."""
    found = model.meta.get(META_KEY)
    return found if isinstance(found, Description) else None
