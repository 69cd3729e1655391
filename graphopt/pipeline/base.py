"""What a pass is: a frozen dataclass whose fields are its options.

A pass rewrites ``onnx_ir.Model`` in place and says exactly what it did. It stays a valid
``onnx_ir`` pass, so it also runs in a stock ``onnx_ir.passes.Sequential``. Everything that happens
between passes is an instrument of the pipeline, never code inside a pass.
"""

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import onnx_ir as ir


class Skip(NamedTuple):
    """A site that a pass looked at and left alone.

    Attributes:
        reason: Kebab-case code, documented in the pass docstring under "Leaves alone".
        node: Name of the node.
        detail: Optional facts, for people.
    """

    reason: str
    node: str
    detail: str = ""


@dataclass
class PassResult(ir.passes.PassResult):
    """What a pass did.

    Attributes:
        model: The model that was handed in.
        modified: Exactly whether the model differs from before.
        rewrites: Number of sites rewritten; 0 exactly when not modified.
        skipped: Sites that matched in part and were left alone, each with a reason.
    """

    rewrites: int = 0
    skipped: tuple[Skip, ...] = field(default=())


@dataclass(frozen=True)
class Pass(ir.passes.InPlacePass):
    """Base of all passes; subclasses are frozen dataclasses whose fields are the options.

    Class attributes:
        name: Kebab-case name; the file is the same in snake_case.
        runs_after: Names of passes that must not come later in a pipeline.
        changes_signature: True when shapes or types of inputs and outputs may change.
        preserves_bits: True when outputs stay equal bit by bit; False when only within tolerance.
    """

    name: ClassVar[str] = ""
    runs_after: ClassVar[tuple[str, ...]] = ()
    preserves_bits: ClassVar[bool] = True
    changes_signature: ClassVar[bool] = False

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite ``model`` in place, its sub-graphs included, and say what was done."""
        raise NotImplementedError
