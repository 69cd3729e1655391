"""Every value gets its type and its shape, as expressions over the named sizes of the inputs."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.passes._edit import Edit
from graphopt.passes._infer import infer_counted
from graphopt.pipeline.base import Pass, PassResult, Skip


@dataclass(frozen=True)
class InferShapes(Pass):
    """Write the type and shape of every value that shape inference can decide.

    Fires when:
        1. The type or the shape of a value is not what inference finds.

    Leaves alone:
        1. ``unresolved``: the value keeps what the file declares, because no rule decides it.

    Preserves:
        Nodes, values and names. Unnamed sizes of inputs get a name, and outputs of the graph the
        shape that follows, where it says more than the file does.

    Options:
        None.

    Example:
        ``y = Concat <axis = 0> (x, x)`` of ``float[n, 4] x`` gives ``float[2*n, 4] y``.
    """

    name: ClassVar[str] = "infer-shapes"

    def call(self, model: ir.Model) -> PassResult:
        """Infer the shapes of ``model``.

        Raises:
            InvalidModelError: the shapes at some node are impossible.
        """
        edit = Edit(self, model)
        report, edit.rewrites = infer_counted(model)
        result = edit.result()
        result.skipped = tuple(
            Skip("unresolved", name, reason) for name, reason in report.unresolved.items()
        )
        return result
