"""``compile(precision="int8")`` from end to end, on the network that the tests train."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import graphopt
from graphopt.errors import OptionError, UnsupportedError, VerificationError
from graphopt.isolation import Worker
from graphopt.quantization.description import META_KEY

RNG = np.random.default_rng(0)


def tensor(name: str, array: np.ndarray) -> Any:
    return onnx.numpy_helper.from_array(array.astype(np.float32), name)


def network(opset: int = 13) -> onnx.ModelProto:
    """Return a residual network: two convolutions, a sum, a pool and a linear layer."""
    node = onnx.helper.make_node
    rng = np.random.default_rng(0)
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], ["r1"], name="relu1"),
        node("Conv", ["r1", "w2"], ["c2"], name="conv2", pads=[1, 1, 1, 1]),
        node("Add", ["c2", "r1"], ["s"], name="add"),
        node("Relu", ["s"], ["r2"], name="relu2"),
        node("GlobalAveragePool", ["r2"], ["p"], name="pool"),
        node("Flatten", ["p"], ["f"], name="flatten"),
        node("Gemm", ["f", "w3", "b3"], ["y"], name="linear"),
    ]
    shape = ["batch", 3, 8, 8]
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [info("x", 1, shape)],  # type: ignore[arg-type]  # the stub is narrower than onnx
        [info("y", 1, ["batch", 5])],
        [
            tensor("w1", rng.standard_normal((16, 3, 3, 3)) / 5),
            tensor("b1", rng.standard_normal(16) / 5),
            tensor("w2", rng.standard_normal((16, 16, 3, 3)) / 12),
            tensor("w3", rng.standard_normal((16, 5)) / 4),
            tensor("b3", rng.standard_normal(5)),
        ],
    )
    opsets = [onnx.helper.make_opsetid("", opset)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)


def samples(count: int = 12) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [
        {"x": rng.standard_normal((1 + i % 2, 3, 8, 8)).astype(np.float32)} for i in range(count)
    ]


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def kernels(path: Path, folder: Path) -> list[str]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]


@pytest.mark.parametrize("opset", [9, 13, 18, 21])
def test_x86_everything_eligible_is_integer(opset: int, tmp_path: Path) -> None:
    path = saved(network(opset), tmp_path)
    result = graphopt.compile(path, precision="int8", calibration_data=iter(samples()))
    out = tmp_path / "q.onnx"
    result.save(out)
    model = onnx.load(out)
    onnx.checker.check_model(model, full_check=True)
    assert [o.version for o in model.opset_import if o.domain == ""] == [max(13, opset)]
    found = kernels(out, tmp_path)
    assert [name for name in found if "Linear" in name or "Gemm" in name] == [
        "QuantizeLinear",
        "QLinearConv",
        "QLinearConv",
        "QLinearAdd",
        "QLinearGlobalAveragePool",
        "QGemm",
    ]
    assert "Relu" not in found
    # The interface stays float, dynamic and named as it was.
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [v.name for v in (*model.graph.input, *model.graph.output)] == ["x", "y"]
    # No float weight is left.
    floats = [t for t in model.graph.initializer if t.data_type == 1 and len(t.dims) > 1]
    assert floats == []
    assert result.program.model.meta.get(META_KEY) is None


def test_every_optimization_level_loads_and_agrees(tmp_path: Path) -> None:
    path = saved(network(), tmp_path)
    result = graphopt.compile(path, precision="int8", calibration_data=samples())
    result.save(tmp_path / "q.onnx")
    feed = {"x": RNG.standard_normal((3, 3, 8, 8)).astype(np.float32)}
    wanted = ort.InferenceSession(str(path)).run(None, feed)[0]
    level = ort.GraphOptimizationLevel
    for chosen in (
        level.ORT_DISABLE_ALL,
        level.ORT_ENABLE_BASIC,
        level.ORT_ENABLE_EXTENDED,
        level.ORT_ENABLE_ALL,
    ):
        options = ort.SessionOptions()
        options.graph_optimization_level = chosen
        options.log_severity_level = 3
        session = ort.InferenceSession(str(tmp_path / "q.onnx"), options)
        got = session.run(None, feed)[0]
        assert 10 * np.log10(np.square(wanted).sum() / np.square(wanted - got).sum()) > 25


def test_the_result_says_what_it_measured(tmp_path: Path) -> None:
    path = saved(network(), tmp_path)
    result = graphopt.compile(path, precision="int8", calibration_data=samples())
    report = result.quantization
    assert report is not None
    assert (report.samples, report.activation, report.weight) == (12, "uint8", "int8")
    assert report.worst_db > report.wanted_db
    assert report.returned == ()
    assert report.kernels is not None
    assert report.kernels.float_nodes == {}
    assert report.kernels.kernels["conv1"] == "QLinearConv"
    assert report.kernels.kernels["add"] == "QLinearAdd"
    assert set(report.layers) == {"conv1", "conv2", "add", "pool", "flatten", "linear"}
    assert result.verification is not None
    plain = result.verification.to_dict()
    assert plain["tolerance"] == {"sqnr_db": report.wanted_db}
    assert plain["inputs"] == "calibration"
    assert plain["outputs"][0]["sqnr_db"] > report.wanted_db
    assert "accepted 28 dB" in str(result)
    # The plan is of what the runtime executes: the floats between Q and DQ are never in memory.
    assert result.plan.arena_bytes < 0.5 * result.baseline.arena_bytes
    assert "int8" in result.explain("conv1")
    assert "QLinearConv" in result.explain("conv1")


def test_back_off_returns_nodes_until_the_goal_is_met(tmp_path: Path) -> None:
    path = saved(network(), tmp_path)
    data = samples()
    free = graphopt.compile(path, precision="int8", calibration_data=data).quantization
    assert free is not None
    goal = free.worst_db + 4
    result = graphopt.compile(
        path,
        precision="int8",
        calibration_data=data,
        verify=graphopt.Tolerance(sqnr_db=goal),
    )
    report = result.quantization
    assert report is not None
    assert report.worst_db >= goal
    assert 0 < len(report.returned) < 5
    assert all(report.reasons[name] == ("kept-float", "") for name in report.returned)
    assert "costs too much accuracy" in result.explain(report.returned[0])
    # One node less in float would not have met the goal.
    assert any(what.startswith("int8 alone: ") for what, _ in report.tried)


def test_arm_and_gpu_schemes(tmp_path: Path) -> None:
    path = saved(network(), tmp_path)
    types = {}
    for target in ("arm64-cpu", "raspberry-pi-5", "nvidia-l4"):
        result = graphopt.compile(path, target=target, precision="int8", calibration_data=samples())
        result.save(tmp_path / "q.onnx")
        model = onnx.load(tmp_path / "q.onnx")
        onnx.checker.check_model(model, full_check=True)
        ops = [node.op_type for node in model.graph.node]
        zeros = [t for t in model.graph.initializer if t.data_type in (2, 3) and not t.dims]
        types[target] = {t.data_type for t in zeros}
        if target == "nvidia-l4":
            # The compiler fuses Relu and the sum itself; biases stay float; zero points are 0.
            assert ops.count("Relu") == 2
            assert all(onnx.numpy_helper.to_array(t) == 0 for t in zeros)
            assert not any(t.data_type == 6 for t in model.graph.initializer)
        else:
            assert "Relu" not in ops
            assert any(t.data_type == 6 for t in model.graph.initializer)
    assert types == {target: {3} for target in types}


@pytest.mark.parametrize(
    ("keywords", "error", "code"),
    [
        ({"precision": "int8"}, OptionError, "calibration-missing"),
        ({"calibration_data": []}, OptionError, "calibration-unused"),
        ({"precision": "int8", "calibration_data": []}, OptionError, "calibration-empty"),
        (
            {"precision": "int8", "calibration_data": [1], "target": "apple-m4"},
            UnsupportedError,
            "quantization-target",
        ),
    ],
)
def test_refusals(
    keywords: dict[str, Any], error: type[Exception], code: str, tmp_path: Path
) -> None:
    with pytest.raises(error) as caught:
        graphopt.compile(saved(network(), tmp_path), **keywords)
    assert getattr(caught.value, "code", None) == code


def test_same_input_same_bytes(tmp_path: Path) -> None:
    path, data = saved(network(), tmp_path), samples()
    contents = []
    for name in ("a.onnx", "b.onnx"):
        result = graphopt.compile(path, precision="int8", calibration_data=list(data))
        result.save(tmp_path / name)
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]


def test_verification_rejects_a_result_that_is_too_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graphopt.numerics import integer_costs, quantize

    monkeypatch.setattr(quantize.Quantizer, "_back_off", lambda self, description: None)
    (tmp_path / "cpuinfo").write_text("flags : avx512_vnni")
    monkeypatch.setattr(integer_costs, "_CPU_INFO", tmp_path / "cpuinfo")
    with pytest.raises(VerificationError) as caught:
        graphopt.compile(
            saved(network(), tmp_path),
            precision="int8",
            calibration_data=samples(),
            verify=graphopt.Tolerance(sqnr_db=90),
        )
    assert caught.value.code == "quantization-error"
    assert "target 'cpu-vnni'" in (caught.value.hint or "")


def test_the_bounds_of_an_absorbed_clip_leave_the_file(tmp_path: Path) -> None:
    model = network()
    clip = model.graph.node[1]
    clip.op_type = "Clip"
    clip.input.extend(["low", "high"])
    model.graph.initializer.extend([tensor("low", np.array(0)), tensor("high", np.array(6))])
    result = graphopt.compile(
        saved(model, tmp_path), target="cpu", precision="int8", calibration_data=samples()
    )
    result.save(tmp_path / "out.onnx")
    graph = onnx.load(tmp_path / "out.onnx").graph
    assert "Clip" not in {node.op_type for node in graph.node}
    read = {value for node in graph.node for value in node.input}
    assert [t.name for t in graph.initializer if t.name not in read] == []


def test_the_child_never_gets_a_model_with_its_weights_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those in the file are read whole, and copied when outputs are added; others are mapped."""
    model, seen = network(), []
    real = Worker.call

    def call(self: Worker, task: str, arguments: dict[str, Any], **rest: Any) -> Any:
        path = arguments["model"] if "model" in arguments else arguments["models"][0]
        if task in ("run", "observe", "kernels") and path.parent != tmp_path:
            held = onnx.load(path, load_external_data=False).graph.initializer
            seen.append((path.name, max(len(t.raw_data) for t in held)))
            assert arguments["data_files"], f"{path.name} has no data beside it"
        return real(self, task, arguments, **rest)

    monkeypatch.setattr(Worker, "call", call)
    graphopt.compile(
        saved(model, tmp_path), target="cpu", precision="int8", calibration_data=samples()
    )
    assert {name for name, _ in seen} >= {"model.onnx", "float.onnx", "candidate.onnx"}
    assert max(size for _, size in seen) <= 1024


@pytest.mark.parametrize("method", ["min-max", "percentile", "entropy", "mse"])
def test_a_calibration_method_that_is_stated_is_the_one(method: str, tmp_path: Path) -> None:
    given = samples()
    result = graphopt.compile(
        saved(network(), tmp_path),
        precision="int8",
        calibration_data=given,
        calibration_method=method,
    )
    assert result.quantization is not None
    assert result.quantization.method == method
    tried = [what for what, _ in result.quantization.tried if "ranges by" in what]
    assert tried[0] == f"everything, ranges by {method}"
    assert all(f"ranges by {method}" in what for what in tried)


def test_the_automatic_method_tries_several(tmp_path: Path) -> None:
    result = graphopt.compile(
        saved(network(), tmp_path), precision="int8", calibration_data=samples()
    )
    assert result.quantization is not None
    assert [what for what, _ in result.quantization.tried][:3] == [
        f"everything, ranges by {method}" for method in ("mse", "min-max", "percentile")
    ]


def test_calibration_methods_that_make_no_sense(tmp_path: Path) -> None:
    path = saved(network(), tmp_path)
    with pytest.raises(OptionError) as caught:
        graphopt.compile(
            path, precision="int8", calibration_data=samples(), calibration_method="entrpy"
        )
    assert caught.value.code == "calibration-method"
    assert "auto, min-max, percentile, entropy, mse" in str(caught.value)
    assert "entropy" in (caught.value.hint or "")
    for precision in (None, "fp16", "int8-weights"):
        with pytest.raises(OptionError) as caught:
            graphopt.compile(path, precision=precision, calibration_method="mse")
        assert caught.value.code == "calibration-unused"


def test_progress_is_told_while_candidates_are_measured(tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    result = graphopt.compile(
        saved(network(), tmp_path),
        precision="int8",
        calibration_data=samples(),
        progress=lambda index, count, name: told.append((index, count, name)),
    )
    assert result.quantization is not None
    assert [one for one in told if one[2] == "calibrate"] == [
        (n, n + 1, "calibrate") for n in range(1, 13)
    ]
    measured = [one for one in told if one[2] == "measure"]
    assert measured == [(n, n + 1, "measure") for n in range(1, len(result.quantization.tried) + 1)]


def test_recurrent_layers_multiply_in_integers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    units, width = 32, 24
    shapes = {"w": (1, 4 * units, width), "r": (1, 4 * units, units), "p": (units, 16)}
    weights = {name: rng.standard_normal(s).astype(np.float32) / 5 for name, s in shapes.items()}
    make, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    nodes = [
        make("LSTM", ["x", "w", "r"], ["", "h"], name="layer", hidden_size=units),
        make("Squeeze", ["h", "first"], ["last"], name="squeeze"),
        make("MatMul", ["last", "p"], ["y"], name="head"),
    ]
    constants = [onnx.numpy_helper.from_array(a, name) for name, a in weights.items()]
    constants.append(onnx.numpy_helper.from_array(np.array([0]), "first"))
    graph = onnx.helper.make_graph(
        nodes, "g", [info("x", 1, [6, 2, width])], [info("y", 1, [2, 16])], constants
    )
    opsets = [onnx.helper.make_opsetid("", 18)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    data = [{"x": rng.standard_normal((6, 2, width)).astype(np.float32)} for _ in range(4)]
    result = graphopt.compile(model, target="cpu", precision="int8", calibration_data=data)
    out = tmp_path / "out.onnx"
    result.save(out)
    operators = [node.op_type for node in onnx.load(out).graph.node]
    assert "DynamicQuantizeLSTM" in operators
    assert "LSTM" not in operators
    assert result.quantization is not None
    assert result.quantization.worst_db >= 28
    exact = graphopt.compile(
        model,
        target="cpu",
        precision="int8",
        calibration_data=data,
        verify=graphopt.Tolerance(sqnr_db=80),
    )
    assert exact.quantization is not None
    assert "layer" in exact.quantization.returned
    assert "LSTM" in [node.op_type for node in exact.program.graph]
