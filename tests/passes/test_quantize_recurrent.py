"""Recurrent layers in integers from end to end: what is stored, and what it computes."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import graphopt
from graphopt.numerics.compare import Tolerance
from graphopt.passes import DEFAULT_PIPELINE
from graphopt.passes.quantize_recurrent import QuantizeRecurrent
from graphopt.quantization.recurrent import gate_scales, transposed_integers
from graphopt.quantization.weights import WeightScheme

RNG = np.random.default_rng(0)
PASSES = [*DEFAULT_PIPELINE, "quantize-recurrent"]


def two_directions(units: int = 24, width: int = 16) -> onnx.ModelProto:
    """Return a bidirectional layer with bias, lengths and initial states as inputs."""
    weights = {
        "w": RNG.standard_normal((2, 4 * units, width)).astype(np.float32) / 4,
        "r": RNG.standard_normal((2, 4 * units, units)).astype(np.float32) / 5,
        "b": RNG.standard_normal((2, 8 * units)).astype(np.float32) / 8,
    }
    node = onnx.helper.make_node(
        "LSTM",
        ["x", "w", "r", "b", "lengths", "h", "c"],
        ["y", "last", "cell"],
        name="layer",
        hidden_size=units,
        direction="bidirectional",
    )
    info = onnx.helper.make_tensor_value_info
    shapes = {"x": [7, 2, width], "h": [2, 2, units], "c": [2, 2, units]}
    inputs = [info(name, 1, shape) for name, shape in shapes.items()]
    inputs.append(info("lengths", 6, [2]))
    outputs = [info("y", 1, [7, 2, 2, units])]
    outputs += [info(name, 1, [2, 2, units]) for name in ("last", "cell")]
    constants = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = onnx.helper.make_graph([node], "g", inputs, outputs, constants)
    opsets = [onnx.helper.make_opsetid("", 18)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)


def feed(length: int) -> dict[str, np.ndarray]:
    floats = {"x": (length, 2, 16), "h": (2, 2, 24), "c": (2, 2, 24)}
    made = {k: RNG.standard_normal(shape).astype(np.float32) for k, shape in floats.items()}
    return {**made, "lengths": np.array([length, length - 2], np.int32)}


def initializer_bytes(graph: ir.Graph) -> dict[str, int]:
    found = {name: value.const_value for name, value in graph.initializers.items()}
    return {name: tensor.nbytes for name, tensor in found.items() if tensor is not None}


@pytest.mark.parametrize("reduce_range", [False, True])
def test_a_layer_computes_the_same_but_for_rounding(reduce_range: bool, tmp_path: Path) -> None:
    passes = [f"{p}{{reduce_range={str(reduce_range).lower()}}}" if p == PASSES[-1] else p
              for p in PASSES]  # fmt: skip
    model = two_directions()
    original = graphopt.compile(model, passes=[], verify=False)
    result = graphopt.compile(
        model,
        passes=passes,
        verify=Tolerance(sqnr_db=24.0 if reduce_range else 30.0),
        example_inputs=feed(7),
    )
    path = tmp_path / "out.onnx"
    result.save(path)
    saved = onnx.load(path)
    onnx.checker.check_model(saved)
    assert [node.op_type for node in saved.graph.node] == ["DynamicQuantizeLSTM"]
    assert not [t.name for t in saved.graph.initializer if t.name in ("w", "r")]
    sample = feed(7)
    wanted, got = original.run(sample), result.run(sample)
    for name in ("y", "last", "cell"):
        array = np.asarray(wanted[name], np.float32)
        found = np.asarray(got[name], np.float32)
        assert found.shape == array.shape
        assert not np.array_equal(found, array), "the weights were rounded"
        assert np.abs(found - array).max() < 0.1


def test_weights_take_a_quarter() -> None:
    model = two_directions(64, 64)
    result = graphopt.compile(model, passes=PASSES, verify=False)
    before = sum(tensor.ByteSize() for tensor in model.graph.initializer)
    after = sum(initializer_bytes(result.program.graph).values())
    assert 0.25 < after / before < 0.29


def test_integers_are_what_the_kernel_reads() -> None:
    array = RNG.standard_normal((2, 8, 3)).astype(np.float32)
    tensor = ir.Tensor(array)
    scales = gate_scales(tensor, WeightScheme(per_channel=True))
    integers = transposed_integers(tensor, scales).numpy()
    assert scales.shape == (2, 8)
    assert integers.shape == (2, 3, 8)
    back = integers.astype(np.float32) * scales[:, None]
    errors = np.abs(back.transpose(0, 2, 1) - array)
    inside = np.abs(integers).transpose(0, 2, 1) < 127
    assert (errors <= scales[..., None] / 2 + 1e-6)[inside].all()


def test_pairs_of_products_fit_16_bits() -> None:
    tensor = ir.Tensor(RNG.standard_normal((1, 8, 30)).astype(np.float32))
    scales = gate_scales(tensor, WeightScheme(per_channel=True, pairs_in_16_bits=True))
    integers = np.abs(transposed_integers(tensor, scales).numpy().astype(np.int64))[0]
    pairs = np.sort(integers, axis=0)[-2:].sum(axis=0)
    assert (255 * pairs < 2**15).all()


def test_large_weights_are_made_when_they_are_read() -> None:
    model = two_directions(128, 128)
    program = ir.from_proto(model)
    QuantizeRecurrent()(program)
    values = program.graph.initializers.items()
    stored = [value.const_value for name, value in values if "int8" in name]
    assert len(stored) == 2
    assert all(isinstance(tensor, ir.LazyTensor) for tensor in stored)


@pytest.mark.assets
@pytest.mark.parametrize(("name", "most"), [("nnsplit_en", 0.29), ("dtln_1", 0.36)])
def test_trained_networks(name: str, most: float, assets: Path, tmp_path: Path) -> None:
    path = assets / "models" / f"{name}.onnx"
    result = graphopt.compile(path, passes=PASSES, verify=Tolerance(sqnr_db=25.0))
    out = tmp_path / path.name
    result.save(out)
    assert out.stat().st_size < most * path.stat().st_size


@pytest.mark.parametrize("precision", ["int8-weights", "int4-weights"])
def test_precisions_of_weights_include_it(precision: str) -> None:
    result = graphopt.compile(
        two_directions(64, 64), precision=precision, target="cpu", verify=False
    )
    assert [node.op_type for node in result.program.graph] == ["DynamicQuantizeLSTM"]
