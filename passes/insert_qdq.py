"""Nodes that have integer kernels get their values quantized, from what calibration found out."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.errors import OptionError, UnsupportedError
from graphopt.ir.program import opset_of
from graphopt.passes._edit import Edit
from graphopt.pipeline.base import Pass, PassResult
from graphopt.quantization.description import Description, Plan, description_of, operators_for
from graphopt.quantization.emission import emit
from graphopt.quantization.placement import place
from graphopt.quantization.ranges import LIMITS, Scheme
from graphopt.quantization.weights import WeightScheme

LEAST_OPSET = 13


@dataclass(frozen=True)
class InsertQdq(Pass):
    """Quantize activations with ``QuantizeLinear`` and ``DequantizeLinear``, weights in storage.

    Fires when:
        1. ``Conv``, ``Gemm`` or ``MatMul`` multiplies by constant weights: they are stored as int8,
           a bias as int32, and the input and the result get a Q/DQ pair.
        2. An operator with an integer kernel, or one that only moves elements, stands between
           integer nodes. What moves shares one scale.
        3. A ``Relu``, or a ``Clip`` around zero, follows an integer node: saturation replaces it.
        4. ``Gather`` picks rows of a constant table: the table is stored as int8, and the rows are
           widened behind the ``Gather``. A table that is also the weight of an integer node is
           stored once.
        5. ``operators`` names ``MatMulIntegerToFloat``: a ``MatMul`` that gives its result as float
           is written as this operator, which takes the bias of the ``Add`` behind it, too.
        6. ``operators`` names ``Sum``: a float ``Add`` in front of a ``LayerNormalization`` is
           written as ``Sum``, which onnxruntime does not fuse into a slower kernel.
        7. One of these stands in a branch of an ``If``, also in one of another branch. It reads the
           integers of what is around the branch, and widens them itself.
        8. ``full_integer``: every node that reads or makes floats, instead of the above. All floats
           between nodes get Q/DQ, those of inputs and outputs too; what copies or joins elements
           shares one scale, and what cannot is brought to it by Q/DQ of its own. A node without
           such a form is an error.

    Leaves alone:
        1. ``kept-float``: ``keep_float`` names the node.
        2. ``weight-not-constant``: computed weights or bias, or of another type.
        3. ``type-not-float32``: only 32-bit floats are quantized.
        4. ``form-without-kernel``: attributes or ranks that no integer kernel takes.
        5. ``not-observed``: calibration gave no range for a value.
        6. ``never-calibrated``: no sample gave a value elements: none took the branch.
        7. ``body-of-loop``: it is inside a ``Loop`` or ``Scan``, where a run shows no values.
        8. ``float-neighbours``: nothing around the node is integer, so conversions would cost more.
        9. ``no-integer-reader``: only float nodes or graph outputs use the result.
        10. ``already-quantized``: it reads a ``DequantizeLinear``.
        11. ``shared-with-float``: the table of a ``Gather`` is also read as floats.

    Preserves:
        Names, types and shapes of graph inputs and outputs, which stay float. Numbers change by the
        rounding of the scheme.

    Options:
        activation: uint8 or int8.
        symmetric: Zero points of activations are 0.
        per_channel: Weights have a scale for each output channel.
        reduce_range: Leave room for kernels that add two products in 16 bits.
        quantize_results: Also quantize results that no integer node reads.
        integer_bias: Store biases as int32.
        operators: Operators with integer kernels, and forms to write out; empty for all known
            operators and no forms.
        keep_float: Names of nodes to leave alone; with ``full_integer`` to measure the others only.
        store_kept: Store the weights of nodes that ``keep_float`` names as int8 all the same: the
            file stays small, and each run widens them.
        keep_wide: Names of such nodes whose weights stay floats.
        full_integer: The device computes nothing but integers.
        per_tensor: Operators whose weights have one scale although ``per_channel``.
        ranges: Ranges as ``value=low:high``, ``value=inf:-inf`` for what no sample computed; empty
            for those that calibration left in the model.

    Example:
        ``y = Conv (x, w)`` becomes Q and DQ around ``x``, ``w_dequantized = DequantizeLinear
        (w_quantized, w_scale, w_zero_point)``, the ``Conv``, and Q and DQ that give ``y``.
    """

    name: ClassVar[str] = "insert-qdq"
    runs_after: ClassVar[tuple[str, ...]] = ("fold-batch-norm", "fuse-bias", "fuse-pad")
    preserves_bits: ClassVar[bool] = False

    activation: str = "uint8"
    symmetric: bool = False
    per_channel: bool = True
    reduce_range: bool = False
    quantize_results: bool = True
    integer_bias: bool = True
    operators: tuple[str, ...] = ()
    keep_float: tuple[str, ...] = ()
    store_kept: bool = True
    keep_wide: tuple[str, ...] = ()
    full_integer: bool = False
    per_tensor: tuple[str, ...] = ()
    ranges: tuple[str, ...] = ()

    def call(self, model: ir.Model) -> PassResult:
        """Quantize ``model``."""
        if opset_of(model) < LEAST_OPSET:
            raise UnsupportedError(
                "quantization-opset",
                f"the model uses opset {opset_of(model)}; scales per channel need {LEAST_OPSET}",
                hint="run raise-opset before; what it leaves alone says why it could not",
            )
        edit = Edit(self, model)
        description = self._description(model)
        plan = self._plan()
        placement = place(model, description, plan, frozenset(self.keep_float))
        wide = frozenset(self.keep_wide)
        placement.stored = [node for node in placement.stored if node.name not in wide]
        for node, (reason, detail) in placement.reasons.items():
            edit.skip(reason, node, detail)
        chosen = any(
            self.full_integer or rule.kind == "linear" or rule.table
            for rule in placement.integer.values()
        )
        if chosen or (self.store_kept and placement.stored):
            emit(edit, placement, description, plan, store_kept=self.store_kept)
        return edit.result()

    def _plan(self) -> Plan:
        if self.activation not in LIMITS:
            raise OptionError(
                "quantization-type",
                f"activation is {self.activation!r}, expected one of {', '.join(LIMITS)}",
            )
        return Plan(
            activation=Scheme(self.activation, self.symmetric),
            weight=WeightScheme(self.per_channel, self.reduce_range),
            operators=operators_for(self.operators, full_integer=self.full_integer),
            quantize_results=self.quantize_results or self.full_integer,
            integer_bias=self.integer_bias or self.full_integer,
            full_integer=self.full_integer,
            per_tensor=frozenset(self.per_tensor),
        )

    def _description(self, model: ir.Model) -> Description:
        if not self.ranges:
            found = description_of(model)
            if found is None:
                raise OptionError(
                    "calibration-missing",
                    "insert-qdq needs the ranges of activations, and nothing was calibrated",
                    hint="compile with precision='int8' and calibration_data, or give ranges",
                )
            return found
        ranges = dict(_range_from(text) for text in self.ranges)
        unseen = frozenset(name for name, (low, high) in ranges.items() if low > high)
        seen = {name: known for name, known in ranges.items() if name not in unseen}
        return Description(seen, unseen=unseen)


def _range_from(text: str) -> tuple[str, tuple[float, float]]:
    name, _, numbers = text.rpartition("=")
    low, _, high = numbers.partition(":")
    try:
        return name, (float(low), float(high))
    except ValueError:
        raise OptionError(
            "quantization-range", f"not a range: {text!r}", hint="write value=low:high"
        ) from None
