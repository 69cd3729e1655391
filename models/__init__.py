"""Small model builders for examples, tests and benchmarks.

Importing this package does not import torch. Every builder is a function that returns a
`models.sample.Sample`: a module in eval mode with seeded random weights, its example inputs, and
dynamic shapes in the syntax of `torch.export`.
"""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.sample import Sample

REGISTRY: dict[str, str] = {
    "bert": "models.bert:bert",
    "convnext_tiny": "models.convnext:convnext_tiny",
    "darts": "models.darts:darts",
    "deeplab_v3": "models.deeplab:deeplab_v3",
    "densenet121": "models.densenet:densenet121",
    "digits_cnn": "models.digits_cnn:digits_cnn",
    "ds_cnn": "models.ds_cnn:ds_cnn",
    "efficientnet_b0": "models.efficientnet:efficientnet_b0",
    "espcn": "models.espcn:espcn",
    "fpn_detector": "models.fpn_detector:fpn_detector",
    "inception_v3": "models.inception:inception_v3",
    "llama_decode": "models.llama:llama_decode",
    "llama_prefill": "models.llama:llama_prefill",
    "lstm_tagger": "models.lstm_tagger:lstm_tagger",
    "mlp": "models.mlp:mlp",
    "mobilenet_v2": "models.mobilenet_v2:mobilenet_v2",
    "nasnet_a": "models.nasnet:nasnet_a",
    "randwire": "models.randwire:randwire",
    "resnet18": "models.resnet:resnet18",
    "resnet50": "models.resnet:resnet50",
    "shufflenet_v2": "models.shufflenet_v2:shufflenet_v2",
    "squeezenet1_1": "models.squeezenet:squeezenet1_1",
    "swin_tiny": "models.swin:swin_tiny",
    "tcn": "models.tcn:tcn",
    "unet": "models.unet:unet",
    "vit_b_16": "models.vit:vit_b_16",
}
"""Name to `module:function`, alphabetical; no model is imported here."""

_SMALL_LLAMA: dict[str, Any] = {
    "layers": 2,
    "hidden": 32,
    "heads": 4,
    "kv_heads": 2,
    "intermediate": 64,
    "vocabulary": 100,
    "max_positions": 64,
}

SMALL: dict[str, dict[str, Any]] = {
    "bert": {"layers": 2, "hidden": 32, "heads": 2, "intermediate": 64, "vocabulary": 100},
    "convnext_tiny": {"resolution": 32, "channels": (8, 16), "depths": (1, 2), "num_classes": 10},
    "darts": {"resolution": 32, "cells": 3, "channels": 4, "num_classes": 10},
    "deeplab_v3": {"resolution": 33, "width": 8, "blocks": (1, 1, 1, 1), "head_channels": 16},
    "densenet121": {"resolution": 32, "growth": 8, "blocks": (2, 3), "num_classes": 10},
    "digits_cnn": {},
    "ds_cnn": {"channels": 16, "blocks": 2},
    "efficientnet_b0": {"resolution": 32, "width": 0.25, "depth": 0.2, "num_classes": 10},
    "espcn": {"channels": 8, "resolution": 12},
    "fpn_detector": {
        "resolution": 64,
        "width": 8,
        "blocks": (1, 1, 1, 1),
        "pyramid_channels": 8,
        "num_classes": 3,
    },
    "inception_v3": {"resolution": 75, "width": 0.125, "repeats": (1, 1, 1), "num_classes": 10},
    "llama_decode": _SMALL_LLAMA,
    "llama_prefill": _SMALL_LLAMA,
    "lstm_tagger": {"hidden": 16, "embedding": 16, "vocabulary": 100, "sequence": 8},
    "mlp": {"features": (16, 32, 32, 4)},
    "mobilenet_v2": {
        "resolution": 32,
        "width": 0.25,
        "stages": ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 2, 2)),
        "num_classes": 10,
    },
    "nasnet_a": {"resolution": 32, "repeats": 1, "channels": 4, "num_classes": 10},
    "randwire": {"resolution": 32, "nodes": 8, "channels": 8, "num_classes": 10},
    "resnet18": {"resolution": 32, "width": 8, "blocks": (1, 1, 1, 1), "num_classes": 10},
    "resnet50": {"resolution": 32, "width": 8, "blocks": (1, 2, 1, 1), "num_classes": 10},
    "shufflenet_v2": {
        "resolution": 32,
        "channels": (16, 32),
        "repeats": (2, 2),
        "last_channels": 64,
        "num_classes": 10,
    },
    "squeezenet1_1": {"resolution": 64, "width": 0.25, "num_classes": 10},
    "swin_tiny": {
        "resolution": 32,
        "embedding": 16,
        "depths": (2, 2),
        "heads": (2, 4),
        "window": 4,
        "num_classes": 10,
    },
    "tcn": {"channels": (8, 8, 8), "sequence": 24},
    "unet": {"resolution": 32, "width": 4, "levels": 3},
    "vit_b_16": {
        "resolution": 32,
        "layers": 2,
        "hidden": 32,
        "heads": 2,
        "intermediate": 64,
        "num_classes": 10,
    },
}
"""Arguments that shrink each model to something that exports in about a second."""


def build(name: str, **kwargs: Any) -> Sample:
    """Builds a model of the registry.

    Args:
        name: A key of `REGISTRY`.
        **kwargs: Passed to the builder, e.g. `**SMALL[name]`.

    Raises:
        ValueError: The name is unknown.
    """
    if name not in REGISTRY:
        near = difflib.get_close_matches(name, REGISTRY, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(REGISTRY)}"
        raise ValueError(f"unknown model: '{name}'; {hint}")
    module_name, function_name = REGISTRY[name].split(":")
    builder = getattr(importlib.import_module(module_name), function_name)
    sample: Sample = builder(**kwargs)
    return sample
