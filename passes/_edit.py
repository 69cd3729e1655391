"""What passes share: a ``Rewriter`` that knows the result type of a pass."""

import onnx_ir as ir

from graphopt.ir.rewrite import Rewriter
from graphopt.pipeline.base import Pass, PassResult, Skip


class Edit(Rewriter):
    """The edits of one run of ``pass_``."""

    def __init__(self, pass_: Pass, model: ir.Model) -> None:
        super().__init__(model, pass_.name)

    def result(self) -> PassResult:
        """Return what was done, in the form that a pass returns."""
        return PassResult(
            self.model,
            modified=self.rewrites > 0,
            rewrites=self.rewrites,
            skipped=tuple(Skip(*skip) for skip in self.skips),
        )
