"""What the ONNX front end makes of models that are fit to be read."""

import copy
import hashlib
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import InvalidModelError, OptionError, UnsupportedError
from graphopt.frontends.onnx_loader import load_onnx
from graphopt.ir.graph_checks import check_structure
from graphopt.ir.program import Program, dims_of
from tests.frontends.hostile_base import (
    branches,
    length_delimited,
    make_external,
    parse,
    plain,
    weighted,
)
from tests.frontends.mutate import mutants, seeds

WEIGHT = np.arange(4, dtype=np.float32)


def save(folder: Path, model: onnx.ModelProto, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def with_weight(array: npt.NDArray[np.generic], name: str = "w") -> onnx.ModelProto:
    model = plain()
    model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def weight(program: Program, name: str = "w") -> ir.TensorProtocol:
    tensor = program.graph.initializers[name].const_value
    assert tensor is not None
    return tensor


def anonymous_bytes() -> int:
    if not os.path.exists("/proc/self/status"):
        pytest.skip("needs /proc")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


# --- Sources ------------------------------------------------------------------------------------


def test_a_file_and_where_it_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, plain())
    monkeypatch.chdir(tmp_path)
    for source in (path, str(path), "model.onnx", Path("model.onnx"), "./model.onnx"):
        program = load_onnx(source)
        assert [node.op_type for node in program.graph] == ["Abs", "Neg"]
        assert program.source.path == path.resolve()
        assert program.source.kind == "onnx"
        assert program.source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert program.source.external_files == ()
        assert program.opset == 21
        assert program.notes == [] or "t" not in program.notes[0]


def test_a_linked_file_keeps_its_name_and_its_folder(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "models").mkdir()
    save(tmp_path / "store", plain(), "blob")
    (tmp_path / "models" / "m.onnx").symlink_to(tmp_path / "store" / "blob")
    (tmp_path / "alias").symlink_to(tmp_path / "models")
    program = load_onnx(tmp_path / "alias" / "m.onnx")
    assert program.source.path == (tmp_path / "models" / "m.onnx")


def test_other_objects_are_refused() -> None:
    with pytest.raises(OptionError, match="bytes") as caught:
        load_onnx(b"model")  # type: ignore[arg-type]  # that is the point
    assert caught.value.code == "source-type"


def test_a_message_is_never_changed() -> None:
    model = branches("t = Add (x, w)", "t")
    model.graph.initializer.append(numpy_helper.from_array(WEIGHT, "w"))
    model.graph.node.add(op_type="Abs", input=["x"], output=["z"])
    before = model.SerializeToString()
    program = load_onnx(model)
    program.graph.initializers["w"].name = "renamed"
    program.graph[0].name = "other"
    program.graph.inputs[0].name = "input"
    assert model.SerializeToString() == before
    assert weight(program, "renamed").numpy().tolist() == WEIGHT.tolist()


def test_an_onnx_ir_model_is_never_changed(tmp_path: Path) -> None:
    source = ir.from_proto(weighted())
    before = ir.to_proto(source).SerializeToString()
    program = load_onnx(source)
    assert program.model is not source
    program.graph.initializers["w"].name = "renamed"
    program.graph[0].op_type = "Sub"
    program.graph.inputs[0].shape = ir.Shape([7])
    assert ir.to_proto(source).SerializeToString() == before
    assert [node.name for node in source.graph] == [""], "names are given to the copy"


def test_digest_of_a_model_in_memory_goes_by_its_graph() -> None:
    digests = {
        "same": load_onnx(weighted()).source.sha256,
        "as onnx_ir": load_onnx(ir.from_proto(weighted())).source.sha256,
    }
    assert len(set(digests.values())) == 1
    other = weighted()
    other.graph.node[0].op_type = "Sub"
    assert load_onnx(other).source.sha256 not in digests.values()
    assert load_onnx(weighted()).source.path is None


def test_loading_imports_neither_torch_nor_onnxruntime(tmp_path: Path) -> None:
    script = (
        "import sys; from graphopt.frontends.onnx_loader import load_onnx; load_onnx(sys.argv[1]);"
        "print([m for m in ('torch', 'onnxruntime', 'pydantic') if m in sys.modules])"
    )
    command = [sys.executable, "-c", script, str(save(tmp_path, plain()))]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# --- Weights ------------------------------------------------------------------------------------


def test_small_weights_are_read_and_large_ones_stay_in_the_file(tmp_path: Path) -> None:
    large = np.random.default_rng(0).standard_normal((64, 65)).astype(np.float32)
    model = with_weight(large, "large")
    model.graph.initializer.insert(0, numpy_helper.from_array(WEIGHT, "small"))
    model.graph.initializer.append(numpy_helper.from_array(large[:32] * 2, "second"))
    path = save(tmp_path, model)
    program = load_onnx(path)
    assert isinstance(weight(program, "small"), ir.TensorProtoTensor)
    for name, expected in (("small", WEIGHT), ("large", large), ("second", large[:32] * 2)):
        tensor = weight(program, name)
        np.testing.assert_array_equal(tensor.numpy(), expected)
        assert tensor.numpy().flags.aligned
        assert tensor.tobytes() == expected.tobytes()
        assert tensor.nbytes == expected.nbytes
        assert tensor.dtype is ir.DataType.FLOAT
        assert program.graph.initializers[name].shape == ir.Shape(expected.shape)
    assert isinstance(weight(program, "large"), ir.LazyTensor)
    reread = onnx.load_from_string(ir.to_proto(program.model).SerializeToString())
    assert numpy_helper.to_array(reread.graph.initializer[1]).tobytes() == large.tobytes()


def test_a_weight_in_the_file_survives_the_file(tmp_path: Path) -> None:
    large = np.arange(5000, dtype=np.float32)
    path = save(tmp_path, with_weight(large))
    program = load_onnx(path)
    path.write_bytes(b"")  # truncates the very file that was opened
    with pytest.raises(InvalidModelError) as caught:
        weight(program).numpy()
    assert caught.value.code == "file-changed"
    path = save(tmp_path, with_weight(large), "other.onnx")
    program = load_onnx(path)
    path.unlink()
    save(tmp_path, plain(), "other.onnx")
    assert weight(program).numpy()[-1] == 4999


def test_data_that_is_given_twice_is_the_last_one(tmp_path: Path) -> None:
    first, last = bytes(8000), np.ones(2000, np.float32)
    header = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2000])
    twice = b"".join(
        TensorProto(raw_data=data).SerializeToString() for data in (first, last.tobytes())
    )
    initializer = length_delimited(5, header.SerializeToString() + twice)
    graph = plain().graph.SerializeToString() + initializer
    model = plain()
    model.ClearField("graph")
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString() + length_delimited(7, graph))
    assert weight(load_onnx(path)).numpy().tolist() == last.tolist()


def test_training_information_is_left_out(tmp_path: Path) -> None:
    model = plain()
    model.training_info.add()
    assert load_onnx(model).notes == ["the training information of the model was left out"]


def test_an_initializer_of_a_fed_input_of_a_body_goes() -> None:
    model = parse(
        "g (int64 n, bool c, float x) => (float y) { y = Loop (n, c, x) <body = b"
        "(int64 i, bool ci, float v) => (bool co, float w) { co = Identity (ci)  w = Neg (v) }> }"
    )
    body = model.graph.node[0].attribute[0].g
    body.initializer.append(numpy_helper.from_array(np.array(1, np.float32), "v"))
    loaded = load_onnx(model).graph[0].attributes["body"].as_graph()
    assert [value.name for value in loaded.inputs] == ["i", "ci", "v"]
    assert not loaded.initializers
    assert loaded.inputs[2].const_value is None


@pytest.mark.parametrize(
    "dtype", [np.int8, np.bool_, np.float16, np.complex64, ml_dtypes.bfloat16, ml_dtypes.int4]
)
def test_every_width_of_weights_in_the_file(tmp_path: Path, dtype: type[np.generic]) -> None:
    values = (np.arange(20_001) % 7).astype(dtype)
    tensor = onnx.TensorProto.FromString(
        ir.to_proto(ir.tensor(values, name="w")).SerializeToString()
    )
    model = plain()
    model.graph.initializer.append(tensor)
    found = weight(load_onnx(save(tmp_path, model)))
    assert isinstance(found, ir.LazyTensor)
    assert found.numpy().dtype == values.dtype
    assert found.numpy().tolist() == values.tolist()


def test_a_large_file_costs_no_memory(tmp_path: Path) -> None:
    path = save(tmp_path, with_weight(np.ones(48 << 20, np.uint8)))
    before = anonymous_bytes()
    program = load_onnx(path)
    assert anonymous_bytes() - before < 8 << 20
    assert int(weight(program).numpy().sum()) == 48 << 20
    assert anonymous_bytes() - before < 8 << 20, "what was read is let go"


def test_external_data_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.data").write_bytes(bytes(8) + WEIGHT.tobytes())
    model = weighted()
    make_external(
        model.graph.initializer[0],
        [("location", "./sub/w.data"), ("offset", "8"), ("length", "16")],
    )
    path = save(tmp_path, model)
    monkeypatch.chdir(tmp_path)
    for source in (path, Path("model.onnx")):
        program = load_onnx(source)
        tensor = weight(program)
        assert isinstance(tensor, ir.ExternalTensor)
        assert os.path.isabs(tensor.path)
        assert tensor.numpy().tolist() == WEIGHT.tolist()
        assert program.source.external_files == (tmp_path / "sub" / "w.data",)


def test_external_tensors_may_share_all_their_bytes(tmp_path: Path) -> None:
    (tmp_path / "w.data").write_bytes(WEIGHT.tobytes())
    model = weighted()
    make_external(model.graph.initializer[0], [("location", "w.data"), ("checksum", "0" * 40)])
    tied = copy.deepcopy(model.graph.initializer[0])
    tied.name = "tied"
    tied.data_type = TensorProto.INT32
    model.graph.initializer.append(tied)
    nothing = TensorProto(name="nothing", data_type=TensorProto.FLOAT, dims=[0])
    make_external(nothing, [("location", "w.data"), ("offset", "16"), ("length", "0")])
    model.graph.initializer.append(nothing)
    program = load_onnx(save(tmp_path, model))
    assert weight(program).numpy().tolist() == WEIGHT.tolist()
    assert weight(program, "tied").tobytes() == WEIGHT.tobytes()
    assert weight(program, "nothing").numpy().shape == (0,)


def test_two_gibibytes_of_external_data_load_at_once(tmp_path: Path) -> None:
    count, size = 32, 64 << 20
    with open(tmp_path / "w.data", "wb") as file:
        file.truncate(count * size)
    model = plain()
    for index in range(count):
        tensor = TensorProto(name=f"w{index}", data_type=TensorProto.FLOAT, dims=[size // 4])
        offset = str(index * size)
        make_external(tensor, [("location", "w.data"), ("offset", offset), ("length", str(size))])
        model.graph.initializer.append(tensor)
    path = save(tmp_path, model)
    load_onnx(path)
    before, started = anonymous_bytes(), time.process_time()
    program = load_onnx(path)
    assert time.process_time() - started < 3, "the weights are not read"
    assert anonymous_bytes() - before < 4 << 20
    assert sum(v.const_value.nbytes for v in program.graph.initializers.values() if v.const_value)


def test_external_data_without_a_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "w.data").write_bytes(WEIGHT.tobytes())
    model = weighted()
    make_external(model.graph.initializer[0], [("location", "w.data")])
    path = save(tmp_path, model)
    monkeypatch.chdir(tmp_path)
    # onnx_ir leaves the folder empty for a bare name, and then checks no path.
    for source in (model, ir.from_proto(model), ir.load("model.onnx")):
        with pytest.raises(InvalidModelError) as caught:
            load_onnx(source)
        assert caught.value.code == "external-data-no-folder"
    program = load_onnx(ir.load(path))
    assert weight(program).numpy().tolist() == WEIGHT.tolist()
    assert program.source.external_files == (tmp_path / "w.data",)


def test_external_data_of_an_onnx_ir_model_is_checked_too(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(WEIGHT.tobytes())
    (tmp_path / "models").mkdir()
    model = weighted()
    make_external(model.graph.initializer[0], [("location", "../secret")])
    source = ir.load(save(tmp_path / "models", model))
    with pytest.raises(InvalidModelError) as caught:
        load_onnx(source)
    assert caught.value.code == "external-data-path"
    os.link(tmp_path / "secret", tmp_path / "models" / "w.data")
    make = ir.ExternalTensor(
        "w.data", 0, 16, ir.DataType.FLOAT, shape=ir.Shape([4]), name="w",
        base_dir=str(tmp_path / "models"),
    )  # fmt: skip
    source.graph.initializers["w"].const_value = make
    with pytest.raises(InvalidModelError) as caught:
        load_onnx(source)
    assert caught.value.code == "external-data-link"


# --- Inputs, order, names -----------------------------------------------------------------------


@pytest.mark.parametrize("ir_version", [3, 8])
def test_inputs_with_an_initializer_become_constants(tmp_path: Path, ir_version: int) -> None:
    model = weighted()
    model.ir_version = ir_version
    model.graph.input.insert(0, helper.make_tensor_value_info("w", TensorProto.FLOAT, ["n"]))
    program = load_onnx(save(tmp_path, model))
    assert [value.name for value in program.graph.inputs] == ["x"]
    assert dims_of(program.graph.initializers["w"]) == (4,)
    assert weight(program).numpy().tolist() == [1, 1, 1, 1]
    assert program.bounds == {}
    assert program.notes[0].startswith("1 inputs with an initializer became constants")
    assert ("can no longer be fed" in program.notes[0]) == (ir_version == 8)


def test_an_unsorted_graph_is_sorted() -> None:
    model = parse(
        "g (bool c, float x) => (float y) { y = Add (b, x)  b = If (c) <"
        "then_branch = p () => (float t) { t = Abs (s)  s = Neg (a) },"
        "else_branch = q () => (float u) { u = Neg (x) }>  a = Abs (x) }"
    )
    program = load_onnx(model)
    assert [node.op_type for node in program.graph] == ["Abs", "If", "Add"]
    body = program.graph[1].attributes["then_branch"].as_graph()
    assert [node.op_type for node in body] == ["Neg", "Abs"]
    assert program.notes == ["the nodes were not in an order that can be run, and were sorted"]


def test_an_inner_name_that_an_outer_node_takes_later_is_renamed() -> None:
    model = branches("t = Abs (x)", "t")
    model.graph.node.add(op_type="Neg", input=["y"], output=["t"])
    program = load_onnx(model)
    body = program.graph[0].attributes["then_branch"].as_graph()
    assert body.outputs[0].name == "t_1"
    assert program.graph[1].outputs[0].name == "t"


def test_nodes_get_names_that_are_unique_and_always_the_same() -> None:
    model = parse(
        "g (bool c, float x) => (float y) { [a] p = Abs (x)  [a] q = Abs (p)  r = Neg (q)"
        "  [Neg_1] s = Neg (r)  y = If (c) <"
        "then_branch = t () => (float t1) { [a] t1 = Abs (s) },"
        "else_branch = e () => (float e1) { e1 = Neg (s) }> }"
    )
    programs = [load_onnx(model) for _ in range(2)]
    names = [[node.name for node in program.graph.all_nodes()] for program in programs]
    assert names[0] == names[1] == ["a", "a_1", "Neg_2", "Neg_1", "If_1", "a_2", "Neg_3"]
    assert programs[0].notes == ["2 nodes with the name of another node were renamed"]


def test_operators_of_other_domains_are_kept() -> None:
    model = parse(
        "g (float[2] x) => (float[2] y) { t = com.example.Thing <a = 1> (x)  y = Abs (t) }",
        '<ir_version: 10, opset_import: ["": 21, "com.example": 3]>\n',
    )
    program = load_onnx(model)
    assert (program.graph[0].domain, program.graph[0].op_type) == ("com.example", "Thing")
    assert program.model.opset_imports["com.example"] == 3


def test_a_model_of_other_domains_only() -> None:
    model = parse(
        "g (float[2] x) => (float[2] y) { y = ai.onnx.ml.Normalizer (x) }",
        '<ir_version: 10, opset_import: ["ai.onnx.ml": 3]>\n',
    )
    program = load_onnx(model)
    assert program.opset == 13
    assert program.notes == ["the model uses no ONNX operators; opset 13 was added"]


def test_text_that_is_no_text_does_no_harm(tmp_path: Path) -> None:
    model = plain()
    model.producer_name = "pppp"
    model.doc_string = "dddd"
    model.graph.node[0].doc_string = "dddd"
    model.graph.node[0].metadata_props.add(key="kkkk", value="dddd")
    model.graph.input[0].doc_string = "dddd"
    model.metadata_props.add(key="kkkk", value="dddd")
    content = model.SerializeToString()
    for text in (b"pppp", b"dddd", b"kkkk"):
        content = content.replace(text, b"\xff\xfe\xff\xfe")
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    program = load_onnx(path)
    replaced = "\ufffd" * 4
    assert program.model.producer_name == replaced
    assert program.model.metadata_props == {replaced: replaced}
    assert program.graph[0].metadata_props == {replaced: replaced}
    assert program.graph[0].doc_string == program.graph.inputs[0].doc_string == replaced
    ir.to_proto(program.model).SerializeToString()


# --- Many models --------------------------------------------------------------------------------


def test_trained_networks(assets: Path) -> None:
    paths = sorted((assets / "models").glob("*.onnx"))
    assert len(paths) >= 20
    for path in paths:
        program = load_onnx(path)
        check_structure(program.model, level=2)
        original = onnx.load(path)
        for tensor in original.graph.initializer:
            found = weight(program, tensor.name)
            assert found.numpy().tobytes() == numpy_helper.to_array(tensor).tobytes(), path.name
        assert len(program.graph) == len(original.graph.node)
        assert [v.name for v in program.graph.outputs] == [v.name for v in original.graph.output]


def test_mutants_become_a_program_or_a_typed_error(tmp_path: Path) -> None:
    models = seeds()
    assert len(models) >= 38
    outcomes: Counter[str] = Counter()
    path = tmp_path / "mutant.onnx"
    for mutant in mutants(models, 300, seed=20):
        path.write_bytes(mutant.SerializeToString())
        for source in (path, mutant):
            try:
                program = load_onnx(source)
            except (InvalidModelError, UnsupportedError) as error:
                outcomes[error.code] += 1
            else:
                outcomes["loaded"] += 1
                ir.to_proto(program.model)
    assert sum(outcomes.values()) == 600
    assert outcomes["loaded"] >= 100
    assert len(outcomes) >= 12, outcomes


def test_flipped_bytes_become_a_program_or_a_typed_error(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    contents = [model.SerializeToString() for model in seeds()]
    path = tmp_path / "flipped.onnx"
    for _ in range(300):
        content = bytearray(contents[generator.integers(len(contents))])
        for _ in range(generator.integers(1, 6)):
            content[generator.integers(len(content))] = generator.integers(256)
        path.write_bytes(content)
        try:
            load_onnx(path)
        except (InvalidModelError, UnsupportedError):
            continue
