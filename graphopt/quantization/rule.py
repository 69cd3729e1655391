"""One row of a rule table."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["linear", "compute", "move", "join", "clamp"]


@dataclass(frozen=True)
class Rule:
    """How one operator is quantized.

    Attributes:
        kind: ``linear``: multiplies by constant weights, always worth it. ``compute``: has an
            integer kernel that pays between other integer kernels only. ``move``: copies elements,
            so both sides share scale and zero point. ``join``: as ``move``, from several inputs.
            ``clamp``: what saturation does anyway, absorbed into the range of its result.
        inputs: Which inputs are quantized; None for all.
        float_output: Whether a kernel exists that gives its result as float.
        fixed: Range of the result whatever the input, None when it is observed.
        table: Whether input 0 is a constant table of which the node gathers integer rows, which
            are widened behind it: the result is float.
    """

    kind: Kind
    inputs: tuple[int, ...] | None = (0,)
    float_output: bool = False
    fixed: tuple[float, float] | None = None
    table: bool = False
