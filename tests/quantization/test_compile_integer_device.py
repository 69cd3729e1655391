"""``compile(precision="int8")`` for devices without float kernels, from end to end."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import graphopt
from graphopt.cli.entry import run as command
from graphopt.errors import OptionError, UnsupportedError, VerificationError
from graphopt.quantization.interface import (
    INTERFACE_KEY,
    integer_samples,
    interface_of,
    with_float_interface,
)
from tests.quantization.integer_check import float_faults, scale_faults
from tests.quantization.test_compile_int8 import network, samples, saved

RNG = np.random.default_rng(3)
LOOSE = graphopt.Tolerance(sqnr_db=15)
# Network -> its open dimension, the decibels that are accepted, and those of its accuracy.
TRAINED = {
    "mnist_cntk": ("", 35.0),
    "resnet8_cifar10_nhwc": ("unk__126", 22.0),
    "resnet20_cifar10": ("batch", 26.0),
    "dscnn_kws": ("unk__110", 28.0),
    "squeezenet1_1_imagenet": ("", 20.0),
}


def static(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``model`` with one sample a run, as devices want it."""
    for info in (*model.graph.input, *model.graph.output):
        info.type.tensor_type.shape.dim[0].dim_value = 1
    return model


def one_by_one(data: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    return [{"x": feed["x"][:1]} for feed in data]


def compiled(folder: Path, target: str = "ethos-u55", **options: Any) -> graphopt.CompileResult:
    path = saved(static(network()), folder)
    chosen: dict[str, Any] = {"precision": "int8", "verify": LOOSE} | options
    data = one_by_one(samples())
    return graphopt.compile(path, target=target, calibration_data=data, **chosen)


def file_of(result: graphopt.CompileResult, folder: Path) -> onnx.ModelProto:
    result.save(folder / "device.onnx")
    model = onnx.load(folder / "device.onnx")
    onnx.checker.check_model(model, full_check=True)
    return model


def types_of(model: onnx.ModelProto) -> list[int]:
    values = (*model.graph.input, *model.graph.output)
    return [value.type.tensor_type.elem_type for value in values]


@pytest.mark.parametrize("target", ["ethos-u55", "stm32h743", "stm32f446", "hexagon-v73"])
def test_every_node_of_the_file_is_integer(target: str, tmp_path: Path) -> None:
    result = compiled(tmp_path, target)
    model = file_of(result, tmp_path)
    assert float_faults(model) == []
    assert scale_faults(model) == []
    assert result.verification is not None
    assert result.verification.passed
    assert result.quantization is not None
    assert result.quantization.returned == ()
    assert result.quantization.reasons == {}
    integers = {"hexagon-v73": [onnx.TensorProto.FLOAT] * 2}
    assert types_of(model) == integers.get(target, [onnx.TensorProto.INT8] * 2)


def test_the_checker_finds_a_float_between_two_nodes(tmp_path: Path) -> None:
    model = static(network())
    assert "Conv 'conv1' reads the float 'x'" in float_faults(model)
    assert "Conv 'conv1' gives the float 'c1' to ['Relu']" in float_faults(model)
    assert "the float output 'y' is not dequantized" in float_faults(model)


def test_weights_of_a_product_have_one_scale_those_of_a_convolution_many(tmp_path: Path) -> None:
    model = file_of(compiled(tmp_path), tmp_path)
    sizes = {t.name: tuple(t.dims) for t in model.graph.initializer}
    assert sizes["w1_scale"] == (16,)
    assert sizes["w3_scale"] == ()


def test_the_file_states_what_firmware_needs_to_convert(tmp_path: Path) -> None:
    result = compiled(tmp_path)
    model = file_of(result, tmp_path)
    text = next(p.value for p in model.metadata_props if p.key == INTERFACE_KEY)
    stated = json.loads(text)
    (x,), (y,) = stated["inputs"], stated["outputs"]
    assert (x["name"], x["dtype"], y["name"], y["dtype"]) == ("x", "int8", "y", "int8")
    feed = one_by_one(samples(1))[0]
    # The formulas of the documentation, in numpy.
    wide = np.rint(feed["x"] / np.float32(x["scale"])) + x["zero_point"]
    integers = {"x": np.clip(wide, -128, 127).astype(np.int8)}
    session = ort.InferenceSession(
        model.SerializeToString(), _plain(), providers=["CPUExecutionProvider"]
    )
    raw = session.run(None, integers)[0]
    assert raw.dtype == np.int8
    numbers = (raw.astype(np.float32) - y["zero_point"]) * np.float32(y["scale"])
    plain = with_float_interface(result.program)
    assert [value.dtype.name for value in plain.graph.inputs if value.dtype] == ["FLOAT"]
    np.testing.assert_array_equal(_run(plain, feed), numbers)


def _plain() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return options


def _run(program: Any, feed: dict[str, np.ndarray]) -> np.ndarray:
    import onnx_ir as ir

    data = ir.to_proto(program.model).SerializeToString()
    session = ort.InferenceSession(data, _plain(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, feed)[0]
    return found


def test_run_takes_floats_and_integers(tmp_path: Path) -> None:
    result = compiled(tmp_path)
    feed = one_by_one(samples(1))[0]
    (x,), (y,) = (
        interface_of(result.program.model).inputs,
        interface_of(result.program.model).outputs,
    )
    floats: Any = result.run(feed)["y"]
    assert floats.dtype == np.float32
    integers = np.clip(np.rint(feed["x"] / np.float32(x.scale)) + x.zero_point, -128, 127)
    raw: Any = result.run({"x": integers.astype(np.int8)})["y"]
    assert raw.dtype == np.int8
    numbers = (raw.astype(np.float32) - y.zero_point) * np.float32(y.scale)
    np.testing.assert_allclose(numbers, floats, atol=1.01 * y.scale)


def test_the_plan_counts_a_byte_for_each_element(tmp_path: Path) -> None:
    result = compiled(tmp_path)
    floats = graphopt.compile(tmp_path / "model.onnx", target="ethos-u55", verify=False)
    # Tensors of 16x8x8: both that a sum reads, and the sum, which floats are written over one of.
    assert floats.plan.arena_bytes == 2 * 16 * 64 * 4
    assert result.plan.arena_bytes == 3 * 16 * 64
    buffers = {a.value: b for b in result.plan.buffers for a in b.values}
    assert buffers["x"].dtype == "int8"
    assert buffers["x"].bytes == 3 * 64
    assert all(b.dtype == "int8" for b in result.plan.buffers if b.segment == "arena")
    relations = {a.relation for b in result.plan.buffers for a in b.values}
    # Reshapes are views; nothing is known to be written in place.
    assert relations == {"", "view"}
    # The file alone leads to the same plan.
    result.save(tmp_path / "device.onnx")
    again = graphopt.plan(tmp_path / "device.onnx", target="ethos-u55")
    assert again.arena_bytes == result.plan.arena_bytes
    assert [step.node for step in again.steps] == [step.node for step in result.plan.steps]


def test_a_descriptor_names_the_kernels_that_write_over_an_input(tmp_path: Path) -> None:
    descriptor = tmp_path / "over.toml"
    descriptor.write_text(
        'schema_version = 1\nextends = "ethos-u55"\nname = "over"\n[compute]\n'
        'in_place_ops = ["Add"]\n'
    )
    result = compiled(tmp_path, str(descriptor))
    assert result.plan.arena_bytes == 2 * 16 * 64
    written = [a.value for b in result.plan.buffers for a in b.values if a.relation == "in-place"]
    assert written == ["r2_quantized"]


def test_a_missed_goal_names_the_costliest_nodes(tmp_path: Path) -> None:
    with pytest.raises(VerificationError) as caught:
        compiled(tmp_path, verify=graphopt.Tolerance(sqnr_db=90))
    error = caught.value
    assert error.code == "quantization-error"
    assert "accepted are 90 dB or more" in error.message
    assert error.hint is not None
    assert "no node may return to float on this target; alone in integers cost most: " in error.hint
    costs = error.details["costs"]
    assert {one["nodes"] for one in costs} == {"conv1", "conv2", "add", "pool", "linear"}
    decibels = [one["sqnr_db"] for one in costs]
    assert decibels == sorted(decibels)
    # All of them together are worse than the worst of them alone.
    (output,) = error.details["verification"]["outputs"]
    assert output["sqnr_db"] < decibels[0]


def test_a_metric_that_falls_too_far_names_them_too(tmp_path: Path) -> None:
    calls: list[float] = []

    def metric(run: Any) -> float:
        found = run(one_by_one(samples(1))[0])["y"]
        assert found.dtype == np.float32
        calls.append(1.0 - len(calls))
        return calls[-1]

    with pytest.raises(VerificationError) as caught:
        compiled(tmp_path, verify=graphopt.Tolerance(metric=metric, max_drop=0.1))
    assert caught.value.code == "metric-drop"
    assert caught.value.hint is not None
    assert "alone in integers cost most" in caught.value.hint


def test_a_node_without_integer_form_is_refused_before_anything_is_calibrated(
    tmp_path: Path,
) -> None:
    model = static(network())
    model.graph.node[1].op_type = "Cosh"

    def data() -> Any:
        raise AssertionError("nothing is calibrated")
        yield

    with pytest.raises(UnsupportedError) as caught:
        graphopt.compile(
            saved(model, tmp_path),
            target="stm32h743",
            precision="int8",
            calibration_data=data(),
            verify=False,
        )
    assert caught.value.code == "full-integer-operator"
    assert "'relu1' (Cosh): no integer kernel" in caught.value.message
    assert "target 'stm32h743'" in caught.value.message


def test_a_descriptor_may_let_nodes_return_to_float(tmp_path: Path) -> None:
    descriptor = tmp_path / "mixed.toml"
    descriptor.write_text(
        'schema_version = 1\nextends = "stm32h743"\nname = "mixed"\n[quantization]\n'
        "full_integer = false\ninteger_interface = false\n"
    )
    model = file_of(compiled(tmp_path, str(descriptor)), tmp_path)
    assert types_of(model) == [onnx.TensorProto.FLOAT] * 2


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("full_integer = false", "integer_interface needs full_integer"),
        ("integer_bias = false", "full_integer needs quantize_results"),
    ],
)
def test_descriptors_that_contradict_themselves(lines: str, said: str, tmp_path: Path) -> None:
    descriptor = tmp_path / "odd.toml"
    descriptor.write_text(
        f'schema_version = 1\nextends = "stm32h743"\nname = "odd"\n[quantization]\n{lines}\n'
    )
    with pytest.raises(OptionError) as caught:
        compiled(tmp_path, str(descriptor))
    assert said in str(caught.value)


def test_two_files_are_compared_in_floats(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = compiled(tmp_path)
    result.save(tmp_path / "device.onnx")
    files = [str(tmp_path / "model.onnx"), str(tmp_path / "device.onnx")]
    assert command(["check", *files, "--rtol", "0.5"]) == 0
    assert "1 outputs on" in capsys.readouterr().out


def test_same_input_same_bytes(tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        data = [{"x": np.full((1, 3, 8, 8), 0.1 * i, np.float32)} for i in range(1, 5)]
        path = tmp_path / "model.onnx"
        if not path.exists():
            saved(static(network()), tmp_path)
        result = graphopt.compile(
            path, target="ethos-u55", precision="int8", calibration_data=data, verify=False
        )
        result.save(folder / "device.onnx")
        contents.append((folder / "device.onnx").read_bytes())
    assert contents[0] == contents[1]


def test_what_a_device_lacks_is_written_in_operators_that_it_has(tmp_path: Path) -> None:
    model = static(network())
    # The norm stands behind a sum, where no convolution takes it.
    names = ["scale", "shift", "mean", "variance"]
    model.graph.node[4].CopyFrom(
        onnx.helper.make_node("BatchNormalization", ["s", *names], ["r2"], name="norm")
    )
    for name in names:
        array = RNG.uniform(0.5, 1.5, 16).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    result = graphopt.compile(
        saved(model, tmp_path),
        target="stm32f446",
        precision="int8",
        calibration_data=one_by_one(samples()),
        verify=LOOSE,
    )
    found = file_of(result, tmp_path)
    assert float_faults(found) == []
    operators = [node.op_type for node in found.graph.node]
    assert "BatchNormalization" not in operators
    assert operators.count("Mul") == 1
    assert operators.count("Add") == 2
    read = {value for node in found.graph.node for value in node.input}
    assert [t.name for t in found.graph.initializer if t.name not in read] == []


def test_samples_of_a_torch_file_are_converted(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    feed = one_by_one(samples(1))[0]
    saved(static(network()), tmp_path)
    for inputs in (feed, (feed["x"],), [feed]):
        result = graphopt.compile(
            tmp_path / "model.onnx",
            inputs,
            target="ethos-u55",
            precision="int8",
            calibration_data=one_by_one(samples()),
            verify=LOOSE,
        )
        assert integer_samples(result.program.model, None) is None
        converted = integer_samples(result.program.model, inputs)
        first = converted[0] if isinstance(converted, list) else converted
        array = first["x"] if isinstance(first, dict) else first[0]
        assert array.dtype == np.int8
    assert result.save(tmp_path / "device.ts") == [tmp_path / "device.ts"]


@pytest.mark.parametrize("target", ["ethos-u55", "hexagon-v73"])
@pytest.mark.parametrize("name", sorted(TRAINED))
def test_trained_networks(name: str, target: str, assets: Path, tmp_path: Path) -> None:
    dimension, least = TRAINED[name]
    path = assets / "models" / f"{name}.onnx"
    data = calibration(path, assets)
    result = graphopt.compile(
        path,
        target=target,
        precision="int8",
        calibration_data=data,
        bindings={dimension: 1} if dimension else None,
        verify=graphopt.Tolerance(sqnr_db=least),
    )
    assert result.quantization is not None
    model = file_of(result, tmp_path)
    assert float_faults(model) == []
    assert scale_faults(model) == []
    assert result.plan.arena_bytes <= 0.26 * result.baseline.arena_bytes


def calibration(path: Path, assets: Path) -> list[dict[str, np.ndarray]]:
    """Return eight samples of the calibration split of a network, as its README prepares them."""
    graph = onnx.load(path, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    value = next(info.name for info in graph.input if info.name not in weights)
    found = {
        "mnist_cntk": _mnist,
        "dscnn_kws": _keywords,
        "squeezenet1_1_imagenet": _photos,
    }.get(path.stem, _cifar)(assets, path.stem)
    return [{value: np.ascontiguousarray(array, np.float32)} for array in found]


def _mnist(assets: Path, name: str) -> list[np.ndarray]:
    return [image[None, None] for image in np.load(assets / "data" / "mnist.npz")["calib"][:8]]


def _cifar(assets: Path, name: str) -> list[np.ndarray]:
    images = np.load(assets / "data" / "cifar10.npz")["calib"][:8]
    if name.endswith("nhwc"):
        return [image[None] for image in images]
    scaled = (images.astype(np.float32) / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    return [image.transpose(2, 0, 1)[None] for image in scaled]


def _keywords(assets: Path, name: str) -> list[np.ndarray]:
    arrays = np.load(assets / "data" / "kws_mfcc.npz")
    clips = arrays[next(n for n in arrays.files if n.startswith("calib"))][:8]
    return [
        ((clip.astype(np.float32) - arrays["zero_point"]) * arrays["scale"])[None] for clip in clips
    ]


def _photos(assets: Path, name: str) -> list[np.ndarray]:
    image_module = pytest.importorskip("PIL.Image")
    found = []
    for file in sorted((assets / "data" / "imagenet_calib32").glob("*.jpg"))[:4]:
        image = image_module.open(file).convert("RGB").resize((256, 256)).crop((16, 16, 240, 240))
        pixels = np.asarray(image, np.float32)[..., ::-1] - (104.007, 116.669, 122.679)
        found.append(pixels.transpose(2, 0, 1)[None])
    return found
