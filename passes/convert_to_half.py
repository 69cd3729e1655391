"""Nodes that have a half form compute in half precision, and their weights are stored so."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.errors import OptionError
from graphopt.ir.half_facts import HALF_TYPES
from graphopt.passes._edit import Edit
from graphopt.passes._half import decide
from graphopt.passes._half_casts import Writer
from graphopt.pipeline.base import Pass, PassResult
from graphopt.quantization.half_precision import FACTS_KEY, facts_of


@dataclass(frozen=True)
class ConvertToHalf(Pass):
    """Compute in 16-bit floats what has a form in them; ``Cast`` nodes stand at the borders only.

    Fires when:
        1. A node reads or makes 32-bit floats, and its operator takes 16-bit ones in this opset.
           What else it needs as float32 by its schema (the scales of ``Resize``) stays so.
        2. A constant is read by such a node: it is stored as 16 bits, computed when the file is
           written. Who still needs 32 bits reads a copy; no constant is cast at run time.
        3. The values at the border of the bodies of such an ``If``, ``Loop`` or ``Scan``, all of
           them; the nodes inside are converted one by one.
        4. A mask constant below the range of float16 that only ``Softmax`` sees: -32752 says the
           same.

    Leaves alone:
        1. ``kept``: ``keep`` names the node, its operator, or a node that it was made from.
        2. ``no-half-form``: the operator, or this version of it, takes no such type, or no runtime
           has a kernel.
        3. ``out-of-range``: a constant would become infinite.
        4. ``counts``: a step from integers to integers; halves have no integers above 2048.
        5. ``float-neighbours``: it only moves or selects elements, between float32 nodes.
        6. ``float-body``: inside a node that stays float32.
        7. ``type-unknown``: a type around it was not inferred.

    Preserves:
        Names, types and shapes of graph inputs and outputs with ``keep_io``. Numbers change by the
        rounding of the type.

    Options:
        type: float16 or bfloat16.
        keep: Names of nodes, globs and operators that stay float32.
        keep_io: Inputs and outputs of the graph stay float32; false makes them 16 bits, too, and
            changes what callers must pass.

    Example:
        ``y = MatMul (x, w)`` becomes ``x_half = Cast <to = 10> (x)``, ``y_half = MatMul (x_half,
        w)``, ``y = Cast <to = 1> (y_half)`` with 16-bit ``w``.
    """

    name: ClassVar[str] = "convert-to-half"
    runs_after: ClassVar[tuple[str, ...]] = ("lift-constants", "fold-constants", "infer-shapes")
    preserves_bits: ClassVar[bool] = False

    type: str = "float16"
    keep: tuple[str, ...] = ()
    keep_io: bool = True

    def call(self, model: ir.Model) -> PassResult:
        """Convert ``model``.

        Raises:
            OptionError: the type is unknown.
        """
        if self.type not in HALF_TYPES:
            raise OptionError(
                "half-type",
                f"type is {self.type!r}, expected one of {', '.join(HALF_TYPES)}",
            )
        edit = Edit(self, model)
        facts = facts_of(model)
        decision = decide(model, HALF_TYPES[self.type], self.keep, facts, keep_io=self.keep_io)
        for node, (reason, detail) in decision.reasons.items():
            edit.skip(reason, node, detail)
        Writer(edit, decision, facts, keep_io=self.keep_io).run()
        if edit.rewrites:
            model.meta[FACTS_KEY] = facts
        return edit.result()
