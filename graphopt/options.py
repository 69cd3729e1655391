"""The options of a compile: checked once, at the door."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graphopt.errors import OptionError, UnsupportedError
from graphopt.limits import MemoryLimit
from graphopt.numerics.compare import Tolerance
from graphopt.pipeline.base import Pass
from graphopt.pipeline.options import near_miss
from graphopt.quantization.precisions import (
    CALIBRATED_WEIGHTS,
    WEIGHT_PRECISIONS,
    WEIGHT_SQNR_DB,
)
from graphopt.quantization.ranges import METHODS
from graphopt.targets.schema import Target

Progress = Callable[[int, int, str], None]

# Precisions that are chosen on samples; int8 needs them, the others lose less with them.
HALF_PRECISIONS = ("fp16", "bf16")
AUTOMATIC = "auto"
_CALIBRATED = ("int8", *HALF_PRECISIONS, *CALIBRATED_WEIGHTS)


@dataclass(frozen=True)
class CompileOptions:
    """Everything ``graphopt.compile`` can be told, besides the model and its inputs.

    Attributes are documented in ``graphopt.compile``. Options that are not served yet raise
    ``UnsupportedError`` when they ask for anything; none is accepted and ignored.
    """

    target: str | os.PathLike[str] | Target = "cpu"
    dynamic_shapes: Any = None
    bindings: Mapping[str, int] | None = None
    precision: Any = None
    sparsity: Any = None
    calibration_data: Iterable[Any] | str | os.PathLike[str] | None = None
    calibration_method: str = AUTOMATIC
    memory_limit: MemoryLimit = None
    objective: str = "memory"
    max_recompute: float = 0.0
    passes: Sequence[str | Pass] | None = None
    skip_passes: Sequence[str] = ()
    verify: bool | Tolerance = True
    dump_dir: str | os.PathLike[str] | None = None
    seed: int = 0
    progress: Progress | None = None
    trust: bool = False
    verify_each: bool = False
    keep_metadata: bool = False

    def __post_init__(self) -> None:
        _refuse_unserved(self)
        for name, size in (self.bindings or {}).items():
            if isinstance(size, bool) or not isinstance(size, int):
                raise OptionError(
                    "option-type", f"binding of '{name}' is {size!r}, expected a size"
                )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise OptionError("option-type", f"seed is {self.seed!r}, expected a whole number")
        if not isinstance(self.verify, (bool, Tolerance)):
            raise OptionError(
                "option-type", f"verify is {self.verify!r}, expected True, False or a Tolerance"
            )
        if isinstance(self.verify, Tolerance):
            _refuse_metric(self.verify, self.precision)
        if self.calibration_data is not None and self.precision not in _CALIBRATED:
            raise OptionError(
                "calibration-unused",
                "calibration_data is given, and precision asks for nothing that needs it",
                hint="say precision='int8', 'int4-weights' or 'fp16', or leave it out",
            )
        if self.precision == "int8" and self.calibration_data is None:
            raise OptionError(
                "calibration-missing",
                "precision='int8' needs calibration_data: real inputs that show the ranges",
                hint="give 32 or more samples: calibration_data=[...], or --calib FOLDER",
            )
        _refuse_method(self.calibration_method, self.precision)
        if isinstance(self.skip_passes, str) or isinstance(self.passes, str):
            raise OptionError("option-type", "passes and skip_passes are sequences of names")

    @property
    def tolerance(self) -> Tolerance | None:
        """The tolerance to verify with, None for no verification.

        Weights of few bits change the outputs: those are compared by decibels.
        """
        if not self.verify:
            return None
        stated = self.verify if isinstance(self.verify, Tolerance) else Tolerance()
        if stated.metric is not None:
            return stated
        if stated.sqnr_db is None and self.precision in WEIGHT_PRECISIONS:
            return replace(stated, sqnr_db=WEIGHT_SQNR_DB[self.precision])
        return stated

    @property
    def dump_path(self) -> Path | None:
        """The folder for dumps."""
        return None if self.dump_dir is None else Path(self.dump_dir)


def options_from(keywords: Mapping[str, Any]) -> CompileOptions:
    """Return the options that ``keywords`` spell.

    Raises:
        OptionError: a keyword is unknown (with the closest known one), or a value is of a wrong
            type.
        UnsupportedError: an option asks for something that is not served yet.
    """
    known = [name for name in CompileOptions.__dataclass_fields__ if not name.startswith("_")]
    for name in keywords:
        if name not in known:
            raise OptionError(
                "keyword-unknown",
                f"compile() has no keyword '{name}'",
                hint=near_miss(name, known, "help(graphopt.compile)"),
            )
    return CompileOptions(**keywords)


def _refuse_method(method: str, precision: Any) -> None:
    """Refuse a calibration method that is unknown, or that nothing would use."""
    known = (AUTOMATIC, *METHODS)
    if method not in known:
        raise OptionError(
            "calibration-method",
            f"no calibration method is called {method!r}, expected one of {', '.join(known)}",
            hint=near_miss(str(method), known, "graphopt explain calibration-method"),
        )
    if method != AUTOMATIC and precision != "int8":
        raise OptionError(
            "calibration-unused",
            f"calibration_method='{method}' chooses the ranges of int8, and precision is "
            f"{precision!r}",
            hint="say precision='int8', or leave it out",
        )


def _refuse_metric(tolerance: Tolerance, precision: Any) -> None:
    """Refuse a metric where nothing is chosen or judged by it."""
    if tolerance.metric is not None and precision not in ("int8", *WEIGHT_PRECISIONS):
        raise UnsupportedError(
            "metric-precision",
            f"precision={precision!r} is not judged by a metric, but by rtol or decibels",
            hint="metric serves 'int8', 'int8-weights' and 'int4-weights'; use sqnr_db or rtol",
        )


def _refuse_unserved(options: CompileOptions) -> None:
    unserved = {
        "precision": options.precision not in (None, *_CALIBRATED, *WEIGHT_PRECISIONS),
        "sparsity": options.sparsity is not None,
        "objective": options.objective != "memory",
        "max_recompute": options.max_recompute != 0,
    }
    for name, asked in unserved.items():
        if asked:
            raise UnsupportedError(
                "option-not-served",
                f"{name}={getattr(options, name)!r} is not served by this version",
                hint=f"leave {name} at its default",
            )
