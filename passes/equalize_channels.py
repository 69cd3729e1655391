"""Channels of different sizes are evened out, so that one scale suits them all."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.errors import OptionError
from graphopt.ir.constants import Array
from graphopt.ir.program import FROM_PASS_KEY, is_onnx
from graphopt.passes._channels import divide, insert_product, is_rounded, largest_weights
from graphopt.passes._edit import Edit
from graphopt.pipeline.base import Pass, PassResult
from graphopt.quantization.description import description_of
from graphopt.quantization.equalization import (
    FACTS_KEY,
    LINEAR,
    Divided,
    Region,
    factors_from,
    has_float_weight,
    output_maxima,
    owns_weight,
    reads_channels,
    regions,
)
from graphopt.quantization.rules import channel_axis

# Factors this near to each other would change nothing that rounding does not.
_BALANCED = 1.01


@dataclass(frozen=True)
class EqualizeChannels(Pass):
    """Divide the channels of a value by factors, and multiply the weights that read them.

    Fires when:
        1. A linear node, a normalization, or a product with a constant per channel makes a value
           that only linear nodes with constant weights read, perhaps through ``Relu``, pools,
           moves and other nodes that commute with a factor per channel.
        2. With ``insert``: linear nodes read a value that something else reads, too, and its
           largest channel exceeds the middle one that many times. They get a ``Mul`` in front,
           unless an integer kernel makes the value: then it is rounded before the ``Mul``.

    Leaves alone:
        1. ``graph-output``: the value leaves the model.
        2. ``not-homogeneous``: an operator on the way bends its input, as ``Clip`` does.
        3. ``read-elsewhere``: another node reads the value.
        4. ``weight-form``: weights that are no float32 filter or matrix.
        5. ``weight-shared``: another node reads the weight of a reader.
        6. ``not-linear``: factors from weights need weights on both sides.
        7. ``not-observed``: factors from activations need the largest magnitudes of the channels.
        8. ``balanced``: the factors are all the same.
        9. ``already-equalized``: an earlier run did it.

    Preserves:
        Outputs within rounding. Weights of more than 64 KiB are scaled when they are read.

    Options:
        alpha: Between 0 and 1: how much of the difference between the channels of activations goes
            into the weights; 0 to choose factors from the weights of both sides alone.
        insert: Least ratio of the largest channel to the middle one for a ``Mul``; 0 for none.
        maxima: Largest magnitudes as ``value=1:4:2``; empty for those that calibration left in the
            model.

    Example:
        ``y = LayerNormalization (x, gain, bias)``, ``z = MatMul (y, w)`` becomes the same with
        ``gain`` and ``bias`` divided by one factor for each channel, and the rows of ``w``
        multiplied by it.
    """

    name: ClassVar[str] = "equalize-channels"
    runs_after: ClassVar[tuple[str, ...]] = ("fold-batch-norm", "fuse-bias", "fuse-pad")
    preserves_bits: ClassVar[bool] = False

    alpha: float = 0.0
    insert: float = 0.0
    maxima: tuple[str, ...] = ()

    def call(self, model: ir.Model) -> PassResult:
        """Equalize the channels of ``model``."""
        if not 0 <= self.alpha <= 1 or self.insert < 0:
            raise OptionError(
                "equalize-options",
                f"alpha={self.alpha} is not between 0 and 1, or insert={self.insert} is below 0",
            )
        edit = Edit(self, model)
        known = self._maxima(model)
        divided: dict[str, Divided] = {}
        done: set[ir.Node] = set()
        for region in regions(model):
            reason, detail = region.reason, region.detail
            if region.source.metadata_props.get(FROM_PASS_KEY) == self.name:
                reason, detail = "already-equalized", ""
            factors = None if reason else self._factors(region, known)
            if isinstance(factors, str):
                reason = factors
            if factors is None or isinstance(factors, str):
                edit.skip(reason, region.source, detail)
                continue
            divide(edit, region, factors)
            done.update(region.readers)
            for value in region.values:
                divided[value.name or ""] = Divided(value.name or "", factors)
        if self.insert:
            self._insert(edit, known, done, divided)
        model.meta[FACTS_KEY] = divided
        return edit.result()

    def _factors(self, region: Region, known: dict[str, Array]) -> Array | str:
        """Return what each channel is divided by, or why nothing is."""
        weights = largest_weights(region.readers, region.channels)
        if self.alpha:
            inputs = [node.inputs[0] for node in region.readers]
            found = [None if value is None else known.get(value.name or "") for value in inputs]
            values = [one for one in found if one is not None and len(one) == region.channels]
            if len(values) < len(found):
                return "not-observed"
            factors = factors_from(np.max(values, axis=0), weights, self.alpha)
        elif is_onnx(region.source, *LINEAR):
            factors = factors_from(output_maxima(region.source), weights, 0.5)
        else:
            return "not-linear"
        return "balanced" if _is_balanced(factors) else factors

    def _insert(
        self,
        edit: Edit,
        known: dict[str, Array],
        done: set[ir.Node],
        divided: dict[str, Divided],
    ) -> None:
        """Put a product in front of linear nodes whose input has outliers and other readers."""
        inputs = {
            node.inputs[0]: None
            for node in edit.model.graph
            if is_onnx(node, *LINEAR) and node not in done and node.inputs[0] is not None
        }
        for value in inputs:
            maxima = known.get(value.name or "")
            rank = len(value.shape or ())
            if maxima is None or not rank or is_rounded(value):
                continue
            readers = [
                use.node
                for use in value.uses()
                if use.node not in done
                and use.node.graph is edit.model.graph
                and reads_channels(use.node, use.idx, channel_axis(use.node) % rank)
                and has_float_weight(use.node)
                and owns_weight(use.node)
            ]
            axes = [channel_axis(node) % rank for node in readers]
            if not readers or axes.count(axes[0]) != len(axes):
                continue
            if maxima.max() <= self.insert * max(float(np.median(maxima)), 1e-12):
                continue
            factors = factors_from(maxima, largest_weights(readers, len(maxima)), self.alpha)
            result = insert_product(edit, value, readers, factors, axes[0])
            divided[result.name or ""] = Divided(value.name or "", factors)

    def _maxima(self, model: ir.Model) -> dict[str, Array]:
        if not self.alpha:
            return {}
        if self.maxima:
            return dict(_maxima_from(text) for text in self.maxima)
        description = description_of(model)
        if description is None:
            raise OptionError(
                "calibration-missing",
                "equalize-channels needs the magnitudes of activations, and nothing was calibrated",
                hint="compile with precision='int8' and calibration_data, or leave alpha at 0",
            )
        return dict(description.maxima)


def _maxima_from(text: str) -> tuple[str, Array]:
    name, _, numbers = text.rpartition("=")
    try:
        return name, np.array([float(number) for number in numbers.split(":")])
    except ValueError:
        raise OptionError(
            "quantization-range", f"not magnitudes: {text!r}", hint="write value=1:4:2"
        ) from None


def _is_balanced(factors: Array) -> bool:
    return bool(factors.max() <= _BALANCED * factors.min())
