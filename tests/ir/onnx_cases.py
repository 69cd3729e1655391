"""The node cases of the onnx package: models of one operator with inputs and outputs."""

import warnings
from functools import cache
from typing import Any, NamedTuple

import onnx
from onnx.backend.test.loader import load_model_tests


class Case(NamedTuple):
    name: str
    model: onnx.ModelProto
    inputs: list[Any]
    outputs: list[Any]


@cache
def cases() -> list[Case]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = load_model_tests(kind="node")
    return [
        Case(c.name, c.model, *map(list, c.data_sets[0]))
        for c in loaded
        if c.data_sets and c.model is not None
    ]
