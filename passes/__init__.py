"""The passes by name; importing this file imports no pass.

A pass is one file, one line here, one folder of golden texts. Files whose name starts with ``_``
are shared by passes.
"""

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphopt.pipeline.base import Pass
    from graphopt.targets.schema import Target

REGISTRY: dict[str, str] = {
    "convert-to-half": "graphopt.passes.convert_to_half:ConvertToHalf",
    "deduplicate-initializers": "graphopt.passes.deduplicate_initializers:DeduplicateInitializers",
    "dissolve-sequences": "graphopt.passes.dissolve_sequences:DissolveSequences",
    "drop-zero-states": "graphopt.passes.drop_zero_states:DropZeroStates",
    "eliminate-common-subexpressions": (
        "graphopt.passes.eliminate_common_subexpressions:EliminateCommonSubexpressions"
    ),
    "eliminate-dead-nodes": "graphopt.passes.eliminate_dead_nodes:EliminateDeadNodes",
    "eliminate-identity": "graphopt.passes.eliminate_identity:EliminateIdentity",
    "equalize-channels": "graphopt.passes.equalize_channels:EqualizeChannels",
    "fix-dimensions": "graphopt.passes.fix_dimensions:FixDimensions",
    "fold-batch-norm": "graphopt.passes.fold_batch_norm:FoldBatchNorm",
    "fold-constants": "graphopt.passes.fold_constants:FoldConstants",
    "fold-shape-arithmetic": "graphopt.passes.fold_shape_arithmetic:FoldShapeArithmetic",
    "fuse-activation": "graphopt.passes.fuse_activation:FuseActivation",
    "fuse-bias": "graphopt.passes.fuse_bias:FuseBias",
    "fuse-pad": "graphopt.passes.fuse_pad:FusePad",
    "fuse-qdq": "graphopt.passes.fuse_qdq:FuseQdq",
    "fuse-transpose": "graphopt.passes.fuse_transpose:FuseTranspose",
    "infer-shapes": "graphopt.passes.infer_shapes:InferShapes",
    "insert-qdq": "graphopt.passes.insert_qdq:InsertQdq",
    "integer-interface": "graphopt.passes.integer_interface:IntegerInterface",
    "lift-constants": "graphopt.passes.lift_constants:LiftConstants",
    "lower-for-integers": "graphopt.passes.lower_for_integers:LowerForIntegers",
    "merge-slices": "graphopt.passes.merge_slices:MergeSlices",
    "quantize-recurrent": "graphopt.passes.quantize_recurrent:QuantizeRecurrent",
    "quantize-weights": "graphopt.passes.quantize_weights:QuantizeWeights",
    "raise-opset": "graphopt.passes.raise_opset:RaiseOpset",
    "reorder-for-peak": "graphopt.passes.reorder_for_peak:ReorderForPeak",
    "sort-nodes": "graphopt.passes.sort_nodes:SortNodes",
    "split-products": "graphopt.passes.split_products:SplitProducts",
    "strip-metadata": "graphopt.passes.strip_metadata:StripMetadata",
}

# Shapes first, since most rules ask for them. Normalizations come before biases, which they would
# otherwise hide, and equal initializers are merged between the rounds: before them a shared weight
# would keep its normalization, after them nodes that become equal would stay.
_ROUND = (
    "fold-shape-arithmetic",
    "fold-constants",
    "eliminate-identity",
    "merge-slices",
    "drop-zero-states",
    "eliminate-common-subexpressions",
    "eliminate-dead-nodes",
)
DEFAULT_PIPELINE: tuple[str, ...] = (
    "sort-nodes",
    "lift-constants",
    "infer-shapes",
    "dissolve-sequences",
    *_ROUND,
    "fuse-transpose",
    "fold-batch-norm",
    "fuse-bias",
    "fuse-pad",
    "deduplicate-initializers",
    *_ROUND,
    "fold-batch-norm",
    "fuse-bias",
    "eliminate-dead-nodes",
    "infer-shapes",
    "strip-metadata",
)


def default_pipeline(
    target: "Target", bindings: Mapping[str, int] | None = None
) -> tuple[str, ...]:
    """Return the option strings of the passes that prepare any model for ``target``.

    Args:
        target: Its runtime decides what the order of nodes is judged by.
        bindings: Sizes of named dimensions at which orders are compared.
    """
    pool = target.pool_for("activation")
    runtime, in_place_ops = target.runtime, target.compute.in_place_ops
    in_place = runtime.in_place and (in_place_ops is None or bool(in_place_ops))
    options = [
        f"alignment={pool.alignment}",
        f"writes_in_place={str(in_place).lower()}",
        f"io_in_arena={str(runtime.io_in_arena).lower()}",
    ]
    if in_place_ops:
        options.append(f"in_place_ops=[{';'.join(sorted(in_place_ops))}]")
    if runtime.stream_weights:
        options.append("streams_weights=true")
    first: tuple[str, ...] = ()
    if bindings:
        sizes = f"sizes=[{';'.join(f'{n}={s}' for n, s in sorted(bindings.items()))}]"
        options.append(sizes)
        if runtime.static_shapes_only:
            first = (f"fix-dimensions{{{sizes}}}",)
    return (*first, *DEFAULT_PIPELINE, f"reorder-for-peak{{{','.join(options)}}}")


def load_pass(name: str) -> "type[Pass]":
    """Return the pass class called ``name``.

    Raises:
        KeyError: no pass has that name.
    """
    module, _, attribute = REGISTRY[name].partition(":")
    found: type[Pass] = getattr(importlib.import_module(module), attribute)
    return found
