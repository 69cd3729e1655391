"""What a file states about integer inputs and outputs is not trusted; check compares both ways."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import graphopt
from graphopt.cli.entry import run
from graphopt.errors import InvalidModelError
from graphopt.numerics.compare import Tolerance
from graphopt.quantization.interface import INTERFACE_KEY, interface_of

RNG = np.random.default_rng(0)


def convolution() -> onnx.ModelProto:
    weight = RNG.standard_normal((4, 3, 3, 3)).astype(np.float32)
    make, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    nodes = [make("Conv", ["x", "w"], ["c"], name="conv"), make("Relu", ["c"], ["y"], name="relu")]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [info("x", 1, [1, 3, 8, 8])],
        [info("y", 1, [1, 4, 6, 6])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    opsets = [onnx.helper.make_opsetid("", 18)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)


def device_model(folder: Path) -> tuple[Path, Path]:
    """Return a float file and its int8 file for a device with integer inputs."""
    samples = [{"x": RNG.standard_normal((1, 3, 8, 8)).astype(np.float32)} for _ in range(4)]
    original, result = folder / "float.onnx", folder / "int8.onnx"
    onnx.save(convolution(), original)
    graphopt.compile(
        original,
        target="ethos-u55",
        precision="int8",
        calibration_data=samples,
        verify=Tolerance(sqnr_db=20.0),
    ).save(result)
    return original, result


@pytest.mark.parametrize("turned", [False, True])
def test_check_compares_floats_with_integers_either_way(
    turned: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(path) for path in device_model(tmp_path)]
    if turned:
        files.reverse()
    assert run(["check", *files, "--rtol", "0.1"]) == 0
    assert "1 outputs on 2 samples, largest error 0.0" in capsys.readouterr().out


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[str], str]:
    def apply(text: str) -> str:
        plain = json.loads(text)
        change(plain)
        return json.dumps(plain)

    return apply


BROKEN: dict[str, Callable[[str], str]] = {
    "no JSON": lambda text: text[:-1],
    "a list": lambda text: "[]",
    "nested": lambda text: "[" * 100_000,
    "no outputs": changed(lambda plain: plain.pop("outputs")),
    "another name": changed(lambda plain: plain["inputs"][0].update(name="z")),
    "another type": changed(lambda plain: plain["inputs"][0].update(dtype="uint8")),
    "a strange type": changed(lambda plain: plain["inputs"][0].update(dtype="object")),
    "a zero point outside": changed(lambda plain: plain["inputs"][0].update(zero_point=400)),
    "no zero point": changed(lambda plain: plain["inputs"][0].pop("zero_point")),
    "a scale of zero": changed(lambda plain: plain["inputs"][0].update(scale=0.0)),
    "a scale in words": changed(lambda plain: plain["inputs"][0].update(scale="1")),
    "an endless scale": lambda text: text.replace('"scale":', '"scale":Infinity,"s":', 1),
    "twice": changed(lambda plain: plain["inputs"].append(plain["inputs"][0])),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_metadata_are_an_error_of_the_file(name: str, tmp_path: Path) -> None:
    model = ir.load(device_model(tmp_path)[1])
    assert len(interface_of(model).inputs) == 1
    model.metadata_props[INTERFACE_KEY] = BROKEN[name](model.metadata_props[INTERFACE_KEY])
    with pytest.raises(InvalidModelError) as caught:
        interface_of(model)
    assert caught.value.code == "integer-interface"
