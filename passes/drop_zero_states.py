"""Initial states of zeros are left out: recurrent operators start from zero by themselves."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.ir.constants import array_of
from graphopt.ir.program import is_onnx, tag
from graphopt.ir.rewrite import nodes_of
from graphopt.passes._edit import Edit
from graphopt.pipeline.base import Pass, PassResult

# Where the initial states stand among the inputs.
_STATES = {"GRU": (5,), "LSTM": (5, 6), "RNN": (5,)}


@dataclass(frozen=True)
class DropZeroStates(Pass):
    """Leave out the initial state of ``LSTM``, ``GRU`` and ``RNN`` where it holds zeros.

    Fires when:
        1. The initial state is a constant of zeros, or ``ConstantOfShape`` makes it of zeros.

    Leaves alone:
        1. ``not-zero``: the state is such a constant, but not of zeros.

    Preserves:
        Every bit of every output; the buffer of the state is not needed any more.

    Options:
        None.

    Example:
        ``h = ConstantOfShape (s)``, ``y = GRU (x, w, r, b, , h)`` becomes
        ``y = GRU (x, w, r, b)``.
    """

    name: ClassVar[str] = "drop-zero-states"
    runs_after: ClassVar[tuple[str, ...]] = ("lift-constants",)

    def call(self, model: ir.Model) -> PassResult:
        """Drop the zero states of ``model``."""
        edit = Edit(self, model)
        for node in nodes_of(model):
            if not is_onnx(node, *_STATES):
                continue
            for index in _STATES[node.op_type]:
                value = node.inputs[index] if index < len(node.inputs) else None
                verdict = None if value is None else _is_zero(value)
                if verdict:
                    node.replace_input_with(index, None)
                    tag(node, self.name, [node])
                    edit.rewrites += 1
                elif verdict is False:
                    edit.skip("not-zero", node)
            count = len(node.inputs)
            while node.inputs[count - 1] is None:
                count -= 1
            node.resize_inputs(count)
        return edit.result()


def _is_zero(value: ir.Value) -> bool | None:
    """Return whether ``value`` holds only zeros; None when that cannot be told."""
    node = value.producer()
    if node is not None and is_onnx(node, "ConstantOfShape"):
        fill = node.attributes.get("value")
        return fill is None or not any(fill.as_tensor().tobytes())
    array = array_of(value)
    # -0.0 is another number to start from.
    return None if array is None else not any(array.tobytes())
