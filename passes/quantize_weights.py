"""Weights are stored in 4 or 8 bits; activations stay as they are."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.errors import OptionError
from graphopt.passes._edit import Edit
from graphopt.pipeline.base import Pass, PassResult
from graphopt.quantization.block_weights import BlockScheme
from graphopt.quantization.reconstruction import Reconstruction, reconstruction_of
from graphopt.quantization.weight_emission import emit_weights
from graphopt.quantization.weight_only import WeightPlan, choose

_ACCURACY_LEVELS = range(5)


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Store constant weights as blocks of integers with a scale each, and read them as such.

    Fires when:
        1. ``MatMul`` and ``Gemm`` multiply by a constant matrix: they become
           ``com.microsoft::MatMulNBits``, which reads the integers; no float copy is made.
        2. ``Gather`` looks up rows of a constant matrix: ``com.microsoft::GatherBlockQuantized``.
           Where a product reads the same matrix, both read the same integers.
        3. With 8 bits, ``Conv`` and ``ConvTranspose`` get a ``DequantizeLinear`` in front of the
           weights, one scale for each output channel. With ``form=standard``, so do products.
        4. With ``form=nf4``, products become ``com.microsoft::MatMulBnb4``, which reads places in
           a fixed table of 16 values that are not evenly spaced.

    Leaves alone:
        1. ``kept``: ``keep`` names the node, its weight or its operator.
        2. ``weight-not-constant``: both factors are computed, or the constant holds no floats.
        3. ``small``: the weight has fewer than ``min_elements`` elements.
        4. ``type-without-kernel``: weights of 64-bit or brain floats.
        5. ``form-without-kernel``: weights of higher rank or as first factor, factors alpha or
           beta, lookups along another axis or of unknown rank.
        6. ``no-operator``: no operator reads this many bits, or blocks in the standard form.
        7. ``old-opset``: the opset has no such ``DequantizeLinear``.
        8. ``read-elsewhere``: somebody needs the floats, so integers would come on top.
        9. ``not-smaller``: scales and filled-up blocks outweigh what the integers save.
        10. ``widened-at-run``: the float copy that each run makes is larger than what all weights
            behind a ``DequantizeLinear``, or with ``form=nf4``, save. Not with ``form=standard``.

    Preserves:
        Names, types and shapes of all activations. Numbers change by the rounding of the weights,
        and of what ``accuracy_level`` lets a kernel round.

    Options:
        bits: 4 or 8.
        block: Largest number of weights that share a scale, a power of two from 16 to 256; a
            smaller one is used where it takes fewer bytes. 0, for ``form=standard``: one scale for
            each output channel.
        symmetric: No zero points.
        method: ``rtn``, ``mse`` or ``hqq``, see ``graphopt.quantization.block_weights``.
        min_elements: Weights with fewer elements stay.
        keep: Names of nodes or weights, globs, or operator types to leave alone.
        form: ``fused``: the operators of onnxruntime. ``standard``: ``DequantizeLinear`` only. It
            is computed in each run, so the float copy of one weight at a time is in memory, unless
            the runtime fuses it; onnxruntime does for ``MatMul`` and plain ``Gemm``. ``nf4``: the
            table; each run makes a float copy of one weight at a time, and ``symmetric`` and
            ``method`` say nothing.
        reconstruct: Products get the weights that were rounded for the inputs seen on samples, by
            the method with the smallest measured error, ``gptq``, ``hqq`` or ``mse``; ``method`` is
            for the weights that no product reads. Set by a precision with ``calibration_data``;
            not with ``form=nf4``.
        accuracy_level: What ``MatMulNBits`` may round its other factor to: 4 allows 8-bit integers
            in blocks, for which processors have fast kernels; 1 keeps 32-bit floats, and
            onnxruntime then makes a float copy of 8-bit weights in each run. 0 leaves the choice
            open.

    Example:
        ``y = MatMul (x, w)`` becomes ``y = com.microsoft.MatMulNBits <K = 64, N = 8, bits = 4,
        block_size = 32> (x, w_int4, w_scales, w_zero_points)``.
    """

    name: ClassVar[str] = "quantize-weights"
    runs_after: ClassVar[tuple[str, ...]] = (
        "fold-batch-norm",
        "fold-constants",
        "fuse-bias",
        "fuse-transpose",
        "lift-constants",
    )
    preserves_bits: ClassVar[bool] = False

    bits: int = 4
    block: int = 32
    symmetric: bool = False
    method: str = "mse"
    min_elements: int = 1024
    keep: tuple[str, ...] = ()
    form: str = "fused"
    accuracy_level: int = 4
    reconstruct: bool = False

    @property
    def plan(self) -> WeightPlan:
        """What is asked."""
        if self.reconstruct and self.form == "nf4":
            raise OptionError("weight-scheme", "reconstruct has no form for form=nf4")
        scheme = BlockScheme(self.bits, self.block, self.symmetric, self.method)
        return WeightPlan(scheme, self.form, self.min_elements, self.keep)

    def call(self, model: ir.Model) -> PassResult:
        """Store the weights of ``model`` in few bits."""
        if self.accuracy_level not in _ACCURACY_LEVELS:
            raise OptionError(
                "weight-scheme", f"accuracy_level is {self.accuracy_level}, expected 0 to 4"
            )
        choice = choose(model, self.plan)
        edit = Edit(self, model)
        for node, (reason, detail) in choice.reasons.items():
            edit.skip(reason, node, detail)
        emit_weights(edit, choice, self.accuracy_level, self._made(model))
        return edit.result()

    def _made(self, model: ir.Model) -> Reconstruction | None:
        """Return the weights that were rounded on samples."""
        if not self.reconstruct:
            return None
        made = reconstruction_of(model)
        if made is None:
            raise OptionError(
                "calibration-missing",
                "reconstruct needs samples, and the weights were not rounded on any",
                hint="compile with precision='int4-weights' and calibration_data",
            )
        return made
