"""Large models a piece at a time: what a whole session computes, from files that were named."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest

from graphopt import isolated_child, isolated_pieces
from graphopt.errors import UnsupportedError
from graphopt.isolated_pieces import Pieces, Weights, dequantize
from graphopt.isolation import FEEDS_FILE, ArrayWriter, Worker

RNG = np.random.default_rng(0)
HEADER = '<ir_version: 10, opset_import: ["": 21]>\n'
CHAIN = """g (float[n, 8] x, bool c) => (float[n, 8] y, float[n, 8] s) {
    q1f = DequantizeLinear <axis = 1> (q1, q1s, q1z)
    a = MatMul (x, q1f)
    r = Relu (a)
    b = MatMul (r, w1)
    s = Add (b, x)
    q2f = DequantizeLinear (q2, q2s)
    d = Gemm <transB = 1> (s, q2f, bias)
    e = If (c) <
        then_branch = yes () => (float[n, 8] t) { t = MatMul (d, w2) },
        else_branch = no () => (float[n, 8] f) { f = MatMul (d, q1f) }
    >
    h = MatMul (e, w1)
    y = Add (h, q2f)
}"""


def weights() -> dict[str, np.ndarray]:
    return {
        "q1": RNG.integers(-128, 128, (8, 8)).astype(np.int8),
        "q1s": RNG.random(8).astype(np.float32) + np.float32(0.1),
        "q1z": RNG.integers(-5, 5, 8).astype(np.int8),
        "q2": RNG.integers(0, 256, (8, 8)).astype(np.uint8),
        "q2s": np.array(0.037, np.float32),
        "w1": RNG.standard_normal((8, 8)).astype(np.float32),
        "w2": RNG.standard_normal((8, 8)).astype(np.float32),
        "bias": RNG.standard_normal(8).astype(np.float32),
    }


def write(
    folder: Path, text: str, tensors: dict[str, np.ndarray], data: Path | None = None
) -> list[Path]:
    """Write a model whose weights lie in ``data``, named by where it is; of 64 bytes and more."""
    folder.mkdir(exist_ok=True)
    data = folder / "w.data" if data is None else data
    location = data.name if data.parent == folder else str(data)
    model = onnx.parser.parse_model(HEADER + text)
    with data.open("wb") as file:
        for name, array in tensors.items():
            tensor = onnx.numpy_helper.from_array(array, name)
            if array.nbytes >= 64:
                file.seek(-(-file.tell() // 4096) * 4096 + 128)
                entries = (("offset", file.tell()), ("length", array.nbytes))
                file.write(array.tobytes())
                tensor.ClearField("raw_data")
                tensor.data_location = onnx.TensorProto.EXTERNAL
                for key, value in (("location", location), *entries):
                    tensor.external_data.add(key=key, value=str(value))
            model.graph.initializer.append(tensor)
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return [path, data]


def samples(sizes: tuple[int, ...] = (8, 1, 8)) -> list[dict[str, np.ndarray]]:
    return [
        {"x": RNG.standard_normal((n, 8)).astype(np.float32), "c": np.array(i % 2 == 0)}
        for i, n in enumerate(sizes)
    ]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Make every model large, and every node with weights a piece."""
    monkeypatch.setattr(isolated_pieces, "WHOLE_BYTES", 0)
    monkeypatch.setattr(isolated_pieces, "PIECE_BYTES", 1)
    monkeypatch.setattr(isolated_child, "_SESSIONS", type(isolated_child._SESSIONS)())
    return monkeypatch


def run(
    folder: Path,
    files: list[Path],
    feeds: list[dict[str, Any]],
    extra: tuple[str, ...] = (),
    *,
    named: bool = True,
) -> list[dict[str, Any]]:
    """Run the task of the child in this process."""
    with ArrayWriter(folder / FEEDS_FILE) as writer:
        described = writer.describe(feeds)
    arguments = {
        "models": [os.fspath(files[0])],
        "feeds": described,
        "optimization": "disabled",
        "extra_outputs": list(extra),
        "data_files": [os.fspath(file) for file in files[1:]] if named else [],
    }
    found: list[dict[str, Any]] = isolated_child.run(folder, arguments)["outputs"][0]
    return found


def assert_same(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        for name, array in other.items():
            assert np.asarray(one[name]).dtype == np.asarray(array).dtype
            assert np.array_equal(one[name], array), name


def count_pieces(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the number of pieces whenever pieces are made."""
    made: list[int] = []
    real = Pieces.__init__

    def init(self: Pieces, *arguments: Any) -> None:
        real(self, *arguments)
        made.append(len(self._pieces))

    monkeypatch.setattr(Pieces, "__init__", init)
    return made


@pytest.mark.parametrize("extra", [(), ("r", "d", "q2f", "e")])
def test_pieces_compute_the_same_bits(
    tmp_path: Path, small: pytest.MonkeyPatch, extra: tuple[str, ...]
) -> None:
    """Weights of bodies, of two pieces, dequantized by channel and as a whole, zero points."""
    files = write(tmp_path / "m", CHAIN, weights())
    feeds = samples()
    made = count_pieces(small)
    found = run(tmp_path, files, feeds, extra)
    assert made == [5 if extra else 6]
    wanted = run(tmp_path, files, feeds, extra, named=False)
    assert len(made) == 1, "without the name of the file it is onnxruntime's"
    assert_same(found, wanted)


def test_samples_that_hold_too_much_together_go_one_by_one(
    tmp_path: Path, small: pytest.MonkeyPatch
) -> None:
    files = write(tmp_path / "m", CHAIN, weights())
    feeds = samples()
    wanted = run(tmp_path, files, feeds, named=False)
    small.setattr(isolated_pieces, "_BETWEEN_BYTES", 300)
    runs: list[int] = []
    real = Pieces._run_together

    def together(self: Pieces, held: list[dict[str, Any]]) -> bool:
        runs.append(len(held))
        return real(self, held)

    small.setattr(Pieces, "_run_together", together)
    assert_same(run(tmp_path, files, feeds), wanted)
    assert runs == [3, 1, 1, 1]


def test_a_sequence_between_pieces_is_run_whole(tmp_path: Path, small: pytest.MonkeyPatch) -> None:
    text = """g (float[8, 8] x) => (float[m, 8] y) {
        a = MatMul (x, w1)
        s = SequenceConstruct (a, x)
        b = MatMul (a, w2)
        t = SequenceInsert (s, b)
        c = ConcatFromSequence <axis = 0> (t)
        y = MatMul (c, w1)
    }"""
    files = write(tmp_path / "m", text, {n: weights()[n] for n in ("w1", "w2")})
    feeds = [{"x": RNG.standard_normal((8, 8)).astype(np.float32)}]
    made = count_pieces(small)
    found = run(tmp_path, files, feeds)
    assert made[0] == 3
    assert_same(found, run(tmp_path, files, feeds, named=False))


@pytest.mark.parametrize("bits", [16, 4])
def test_types_that_numpy_lacks_are_read(
    tmp_path: Path, small: pytest.MonkeyPatch, bits: int
) -> None:
    kind = onnx.TensorProto.BFLOAT16 if bits == 16 else onnx.TensorProto.INT4
    widen = "f = Cast <to = 1> (w)" if bits == 16 else "f = DequantizeLinear (w, scale)"
    text = f"g (float[4, 16] x) => (float[4, 16] y) {{ {widen}  a = MatMul (x, f) y = Relu (a) }}"
    files = write(tmp_path / "m", text, {"scale": np.array(0.5, np.float32)})
    model = onnx.load(files[0])
    tensor = model.graph.initializer.add(name="w", data_type=kind, dims=[16, 16])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.data")
    bytes_ = (RNG.standard_normal(256).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    files[1].write_bytes(bytes_.tobytes()[: 256 * bits // 8])
    files[0].write_bytes(model.SerializeToString())
    feeds = [{"x": RNG.standard_normal((4, 16)).astype(np.float32)}]
    found = run(tmp_path, files, feeds)
    assert_same(found, run(tmp_path, files, feeds, named=False))


def test_dequantized_as_onnxruntime_does() -> None:
    integers = np.arange(-128, 128).astype(np.int8).reshape(1, 256)
    for zero in (None, np.array(-7, np.int8)):
        text = f"""g (int8[1, 256] x) => (float[1, 256] y)
            {{ y = DequantizeLinear (x, s{", z" if zero is not None else ""}) }}"""
        model = onnx.parser.parse_model(HEADER + text)
        scale = np.array(0.0123456, np.float32)
        constants = {"s": scale} | ({} if zero is None else {"z": zero})
        for name, array in constants.items():
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        session = ort.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        floats = np.empty((1, 256), np.float32)
        dequantize(integers, scale, zero, 1, floats)
        assert np.array_equal(floats, session.run(None, {"x": integers})[0])


def test_models_that_are_not_cut(tmp_path: Path, small: pytest.MonkeyPatch) -> None:
    tensors = {"w1": weights()["w1"]}
    texts = {
        "an initializer is an output": "g (float[8,8] x) => (float[8,8] y, float[8,8] w1) {"
        " y = MatMul (x, w1) }",
        "an input has a default": "g (float[8,8] x, float[8,8] w1) => (float[8,8] y) {"
        " y = MatMul (x, w1) }",
    }
    for number, text in enumerate(texts.values()):
        path, data = write(tmp_path / str(number), text, tensors)
        model = onnx.load(path, load_external_data=False)
        found = Weights(model, os.fspath(path.parent), [os.fspath(data)])
        assert not Pieces(model, found, lambda *_: None).fit
    path, data = write(tmp_path / "named", CHAIN, weights())
    model = onnx.load(path, load_external_data=False)
    assert Pieces(model, Weights(model, os.fspath(path.parent), [os.fspath(data)]), max).fit
    assert not Pieces(model, Weights(model, os.fspath(path.parent), []), max).fit


def test_only_files_that_were_named_are_read(tmp_path: Path) -> None:
    """A model that names a file elsewhere gets it from a caller who knows of it, or not at all."""
    outside = tmp_path / "elsewhere.data"
    path, _ = write(tmp_path / "m", CHAIN, weights(), data=outside)
    beside = write(tmp_path / "n", CHAIN, onnx_weights(path, outside))
    feed = samples((8,))[0]
    with Worker() as worker:
        for optimize in (False, True):
            for named in ([], [beside[1]]):
                with pytest.raises(UnsupportedError) as caught:
                    worker.run_model(path, feed, optimize=optimize, data_files=named)
                assert caught.value.code == "runtime-refused"
            found = worker.run_model(path, feed, optimize=optimize, data_files=[outside])
            wanted = worker.run_model(beside[0], feed, optimize=optimize, data_files=beside[1:])
            assert_same([found], [wanted])
        nodes = [
            worker.call("kernels", {"model": p, "data_files": [d]})["nodes"]
            for p, d in ((path, outside), beside)
        ]
        assert nodes[0] == nodes[1]


def onnx_weights(path: Path, data: Path) -> dict[str, np.ndarray]:
    """Return the weights of a model, those in ``data`` read by hand."""
    found = {}
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        if entries:
            array = np.fromfile(
                data, dtype, int(np.prod(tensor.dims)), offset=int(entries["offset"])
            )
            found[tensor.name] = array.reshape(tuple(tensor.dims))
        else:
            found[tensor.name] = onnx.numpy_helper.to_array(tensor)
    return found
