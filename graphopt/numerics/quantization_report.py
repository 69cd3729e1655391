"""What quantization found out and did, as the result and the report tell it."""

from dataclasses import dataclass, field
from typing import Any

from graphopt.numerics.compare import MetricChange
from graphopt.numerics.sqnr import DEFAULT_SQNR_DB, worst
from graphopt.quantization.kernels import KernelReport


@dataclass
class Quantization:
    """What quantization did, as plain data.

    Attributes:
        activation: Type of quantized activations.
        weight: Type of quantized weights.
        method: Calibration method whose ranges were kept.
        samples: Calibration samples seen.
        sqnr_db: Decibels of each output, quantized against float, on kept calibration samples.
        wanted_db: Decibels that were asked for.
        tried: What was tried: (what, worst decibels).
        returned: Nodes taken back to float for accuracy.
        reasons: Why each other node that has a rule is float: name -> (code, detail).
        kernels: What the runtime made of each node that was placed as integer.
        layers: Decibels of the value that each integer node makes.
        equalized: Option string of the pass that evened out channels, "" for none.
        metric: What the user's metric is for the original and for the result; None without one.
        costs: Decibels of the outputs with only these nodes in integers, the costliest first; where
            the goal is not met and no node may return to float.
    """

    activation: str
    weight: str
    method: str = ""
    samples: int = 0
    sqnr_db: dict[str, float] = field(default_factory=dict)
    wanted_db: float = DEFAULT_SQNR_DB
    tried: list[tuple[str, float]] = field(default_factory=list)
    returned: tuple[str, ...] = ()
    reasons: dict[str, tuple[str, str]] = field(default_factory=dict)
    kernels: KernelReport | None = None
    layers: dict[str, float] = field(default_factory=dict)
    equalized: str = ""
    metric: MetricChange | None = None
    costs: tuple[tuple[str, float], ...] = ()

    @property
    def worst_db(self) -> float:
        """Decibels of the worst output."""
        return worst(self.sqnr_db)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data, for JSON and the report."""
        plain = dict(vars(self))
        plain["tried"] = [{"what": what, "sqnr_db": value} for what, value in self.tried]
        plain["returned"] = list(self.returned)
        plain["costs"] = [{"nodes": names, "sqnr_db": value} for names, value in self.costs]
        plain["reasons"] = {k: {"reason": r, "detail": d} for k, (r, d) in self.reasons.items()}
        plain["kernels"] = None if self.kernels is None else self.kernels.to_dict()
        plain["metric"] = None if self.metric is None else self.metric.to_dict()
        return plain
