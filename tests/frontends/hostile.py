"""Makers of hostile model files: what a stranger may send, and the error that each must become.

``HOSTILE`` lists ``(name, maker, error, code)``; ``maker(folder)`` writes what it needs into a
fresh folder and returns the path to load. The files are small: what would be large is declared,
not written.
"""

import gzip
import io
import os
import pickle
import socket
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import GraphoptError, InvalidModelError, UnsupportedError

Maker = Callable[[Path], Path]
Case = tuple[str, Maker, type[GraphoptError], str]
HEADER = '<ir_version: 10, opset_import: ["": 21]>\n'

HOSTILE: list[Case] = []


def hostile(
    name: str, code: str, error: type[GraphoptError] = InvalidModelError
) -> Callable[[Maker], Maker]:
    def register(maker: Maker) -> Maker:
        HOSTILE.append((name, maker, error, code))
        return maker

    return register


def parse(text: str, header: str = HEADER) -> onnx.ModelProto:
    return onnx.parser.parse_model(header + text)


def plain() -> onnx.ModelProto:
    return parse("g (float[2] x) => (float[2] y) { t = Abs (x)  y = Neg (t) }")


def weighted() -> onnx.ModelProto:
    model = parse("g (float[4] x) => (float[4] y) { y = Add (x, w) }")
    model.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "w"))
    return model


def written(folder: Path, model: onnx.ModelProto | bytes, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


# --- What is no .onnx file ----------------------------------------------------------------------


def _bytes_case(name: str, content: bytes, code: str, file_name: str = "model.onnx") -> None:
    error = UnsupportedError if code == "text-form" else InvalidModelError
    HOSTILE.append((name, lambda folder: written(folder, content, file_name), error, code))


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 1_000_000)
    return buffer.getvalue()


class _RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("pickle-was-opened",)


_bytes_case("empty", b"", "file-empty")
_bytes_case("spaces", b" \n" * 100, "not-onnx")
_bytes_case("zeros", bytes(1000), "not-onnx")
_bytes_case("random", np.random.default_rng(0).bytes(1000), "not-onnx")
_bytes_case("zip archive", _zip(), "not-onnx")
_bytes_case("zip archive called .pt", _zip(), "not-onnx", "model.pt")
_bytes_case("pickle", pickle.dumps(_RunsCode()), "not-onnx")
_bytes_case("pickle of protocol 2", pickle.dumps(_RunsCode(), 2), "not-onnx")
_bytes_case("json", b'{"graph": {"node": []}}', "not-onnx")
_bytes_case("html", b"\n<!DOCTYPE html><html><title>404</title></html>", "not-onnx")
_bytes_case("html in lower case", b"<html><body>sign in</body></html>", "not-onnx")
_bytes_case(
    "git-lfs pointer",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12\n",
    "not-onnx",
)
_bytes_case("gzip", gzip.compress(plain().SerializeToString()), "not-onnx")
_bytes_case("hdf5", b"\x89HDF\r\n\x1a\n" + bytes(100), "not-onnx")
_bytes_case("tflite", b"\x1c\0\0\0TFL3" + bytes(100), "not-onnx")
_bytes_case("safetensors", b"\x08\0\0\0\0\0\0\0" + b'{"a":{}}' + bytes(32), "not-onnx")
_bytes_case("gguf", b"GGUF\x03\0\0\0" + bytes(100), "not-onnx")
_bytes_case("ort format", b"\x20\0\0\0ORTM" + bytes(100), "not-onnx")
_bytes_case("program", b"\x7fELF\x02\x01\x01" + bytes(100), "not-onnx")
_bytes_case("onnx text", b'<ir_version: 8, opset_import: ["": 17]>\ng () => () {}', "text-form")
_bytes_case("protobuf text", b"ir_version: 8\ngraph {}\n", "text-form")
_bytes_case("protobuf text by name", b"graph {}\n", "text-form", "model.onnxtxt")
_bytes_case("group start", b"\x08\x0a\x0b\x0c", "not-onnx")
_bytes_case("number of eleven bytes", b"\x08" + b"\xff" * 10 + b"\x01", "not-onnx")
_bytes_case("field number 0", b"\x02\x01x", "not-onnx")
_bytes_case("length of 2**63", b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "file-truncated")
_bytes_case("no graph", b"\x08\x0a\x42\x02\x10\x15", "not-onnx")
_bytes_case("graph that is a number", b"\x08\x0a\x38\x05\x42\x02\x10\x15", "not-onnx")
_bytes_case("half a file", plain().SerializeToString()[:60], "file-truncated")
_bytes_case("all but one byte", weighted().SerializeToString()[:-1], "file-truncated")


@hostile("missing file", "file-not-found")
def _(folder: Path) -> Path:
    return folder / "nothing.onnx"


@hostile("missing folder", "file-not-found")
def _(folder: Path) -> Path:
    (folder / "sub").mkdir()
    (folder / "sub" / "model.onnx").symlink_to(folder / "gone" / "model.onnx")
    return folder / "sub" / "model.onnx"


@hostile("folder", "not-a-file")
def _(folder: Path) -> Path:
    (folder / "model.onnx").mkdir()
    return folder / "model.onnx"


@hostile("pipe", "not-a-file")
def _(folder: Path) -> Path:
    os.mkfifo(folder / "model.onnx")
    return folder / "model.onnx"


@hostile("endless device", "not-a-file")
def _(folder: Path) -> Path:
    (folder / "model.onnx").symlink_to("/dev/zero")
    return folder / "model.onnx"


@hostile("socket", "file-unreadable")
def _(folder: Path) -> Path:
    here = os.getcwd()
    os.chdir(folder)  # a socket's path may not be long
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("model.onnx")
    finally:
        os.chdir(here)
    return folder / "model.onnx"


@hostile("link to itself", "file-unreadable")
def _(folder: Path) -> Path:
    (folder / "model.onnx").symlink_to("model.onnx")
    return folder / "model.onnx"


@hostile("larger than protobuf", "file-too-large")
def _(folder: Path) -> Path:
    with open(folder / "model.onnx", "wb") as file:
        file.truncate(3 << 30)
    return folder / "model.onnx"


# --- External data ------------------------------------------------------------------------------

Entries = Sequence[tuple[str, str]]
GOOD: Entries = (("location", "w.data"), ("offset", "0"), ("length", "16"))


def make_external(tensor: TensorProto, entries: Entries) -> None:
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries:
        tensor.external_data.add(key=key, value=value)


def external(folder: Path, entries: Entries, data: bytes | None = bytes(16)) -> Path:
    model = weighted()
    make_external(model.graph.initializer[0], entries)
    if data is not None:
        (folder / "w.data").write_bytes(data)
    return written(folder, model)


def _external_case(name: str, code: str, *changes: tuple[str, str]) -> None:
    entries = dict(GOOD) | dict(changes)
    HOSTILE.append(
        (
            f"external: {name}",
            lambda folder: external(folder, [*entries.items()]),
            InvalidModelError,
            code,
        )
    )


def _secret(folder: Path) -> tuple[Path, Path]:
    """Return a secret file, and a folder beside it for the model."""
    (folder / "secret").write_bytes(bytes(range(16)))
    (folder / "models").mkdir()
    return folder / "secret", folder / "models"


def _location_case(name: str, location: str) -> None:
    def make(folder: Path) -> Path:
        secret, inner = _secret(folder)
        (inner / "sub").mkdir()
        where = location.replace("SECRET", str(secret))
        return external(inner, [("location", where), ("length", "16")])

    HOSTILE.append((f"external: {name}", make, InvalidModelError, "external-data-path"))


_location_case("traversal", "../secret")
_location_case("nested traversal", "sub/../../secret")
_location_case("traversal that comes back", "../models/w.data")
_location_case("traversal in the middle", "sub/../w.data")
_location_case("absolute", "SECRET")
_location_case("absolute with two slashes", "/SECRET")
_location_case("system file", "/etc/passwd")
_location_case("backslashes", "..\\secret")
_location_case("drive", "C:secret")
_location_case("empty", "")
_location_case("the folder itself", ".")
_location_case("the folder above", "..")
_location_case("zero byte", "w.data\0.png")


@hostile("external: no location at all", "external-data-path")
def _(folder: Path) -> Path:
    return external(folder, [("offset", "0")])


@hostile("external: symbolic link", "external-data-link")
def _(folder: Path) -> Path:
    secret, inner = _secret(folder)
    (inner / "w.data").symlink_to(secret)
    return external(inner, GOOD, None)


@hostile("external: symbolic link inside the folder", "external-data-link")
def _(folder: Path) -> Path:
    (folder / "real.data").write_bytes(bytes(16))
    (folder / "w.data").symlink_to("real.data")
    return external(folder, GOOD, None)


@hostile("external: symbolic link on the way", "external-data-link")
def _(folder: Path) -> Path:
    _, inner = _secret(folder)
    (inner / "sub").symlink_to(folder)
    return external(inner, [("location", "sub/secret"), ("length", "16")], None)


@hostile("external: symbolic link that leaves and re-enters", "external-data-link")
def _(folder: Path) -> Path:
    _, inner = _secret(folder)
    (inner / "w.data").write_bytes(bytes(16))
    (inner / "sub").symlink_to(inner)
    return external(inner, [("location", "sub/w.data"), ("length", "16")], None)


@hostile("external: hard link", "external-data-link")
def _(folder: Path) -> Path:
    secret, inner = _secret(folder)
    os.link(secret, inner / "w.data")
    return external(inner, GOOD, None)


@hostile("external: pipe", "external-data-not-a-file")
def _(folder: Path) -> Path:
    os.mkfifo(folder / "w.data")
    return external(folder, GOOD, None)


@hostile("external: folder", "external-data-not-a-file")
def _(folder: Path) -> Path:
    (folder / "w.data").mkdir()
    return external(folder, GOOD, None)


@hostile("external: device", "external-data-link")
def _(folder: Path) -> Path:
    (folder / "w.data").symlink_to("/dev/zero")
    return external(folder, GOOD, None)


@hostile("external: missing", "external-data-missing")
def _(folder: Path) -> Path:
    return external(folder, GOOD, None)


@hostile("external: below a file", "external-data-missing")
def _(folder: Path) -> Path:
    return external(folder, [("location", "w.data/x"), ("length", "16")])


@hostile("external: name too long", "external-data-missing")
def _(folder: Path) -> Path:
    return external(folder, [("location", "x" * 5000), ("length", "16")])


_external_case("length -1", "external-data-range", ("length", "-1"))
_external_case("length 2**63", "external-data-length", ("length", str(2**63)))
_external_case("length 2**64 + 16", "external-data-length", ("length", str(2**64 + 16)))
_external_case("length of a million digits", "external-data-range", ("length", "9" * 1_000_000))
_external_case("length too small", "external-data-length", ("length", "8"))
_external_case("length too large", "external-data-length", ("length", "17"))
_external_case("length is no number", "external-data-range", ("length", "0x10"))
_external_case("length with spaces", "external-data-range", ("length", " 16"))
_external_case("length in other digits", "external-data-range", ("length", "١٦"))
_external_case("offset -1", "external-data-range", ("offset", "-1"))
_external_case("offset 2**63", "external-data-range", ("offset", str(2**63)))
_external_case("offset wraps around", "external-data-range", ("offset", str(2**64 - 16)))
_external_case("offset beyond the end", "external-data-range", ("offset", "1"))
_external_case("unknown key", "external-data-key", ("__class__", "x"))
_external_case("key of an attribute", "external-data-key", ("basepath", "/"))


@hostile("external: key given twice", "external-data-key")
def _(folder: Path) -> Path:
    return external(folder, [*GOOD, ("location", "/etc/passwd")])


@hostile("external: file cut short", "external-data-range")
def _(folder: Path) -> Path:
    return external(folder, GOOD, bytes(15))


@hostile("external: no length and file cut short", "external-data-range")
def _(folder: Path) -> Path:
    return external(folder, [("location", "w.data")], bytes(15))


@hostile("external: tensors that overlap", "external-data-overlap")
def _(folder: Path) -> Path:
    model = parse("g (float[4] x) => (float[4] y) { t = Add (x, w)  y = Add (t, v) }")
    for name, offset in (("w", 0), ("v", 4)):
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4])
        make_external(tensor, [("location", "w.data"), ("offset", str(offset)), ("length", "16")])
        model.graph.initializer.append(tensor)
    (folder / "w.data").write_bytes(bytes(64))
    return written(folder, model)


@hostile("external: traversal in an attribute", "external-data-path")
def _(folder: Path) -> Path:
    _, inner = _secret(folder)
    model = plain()
    tensor = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[4])
    make_external(tensor, [("location", "../secret")])
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))
    return written(inner, model)


@hostile("external: traversal in a nested graph", "external-data-path")
def _(folder: Path) -> Path:
    _, inner = _secret(folder)
    model = branches("t = Abs (x)", "t")
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    make_external(tensor, [("location", "../secret")])
    model.graph.node[0].attribute[0].g.initializer.append(tensor)
    return written(inner, model)


@hostile("external: traversal in a function", "external-data-path")
def _(folder: Path) -> Path:
    _, inner = _secret(folder)
    model = functions("f (a) => (b) { b = Abs (a) }", "y = d.f (x)")
    tensor = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[4])
    make_external(tensor, [("location", "../secret")])
    model.functions[0].node.append(helper.make_node("Constant", [], ["c"], value=tensor))
    return written(inner, model)


@hostile("external: texts", "element-type-unknown")
def _(folder: Path) -> Path:
    model = weighted()
    model.graph.initializer[0].data_type = TensorProto.STRING
    make_external(model.graph.initializer[0], GOOD)
    return written(folder, model)


@hostile("external: data in the model as well", "initializer-size")
def _(folder: Path) -> Path:
    model = weighted()
    raw = model.graph.initializer[0].raw_data
    make_external(model.graph.initializer[0], GOOD)
    model.graph.initializer[0].raw_data = raw
    (folder / "w.data").write_bytes(bytes(16))
    return written(folder, model)


@hostile("external: entries of a tensor that is not", "external-data-key")
def _(folder: Path) -> Path:
    model = weighted()
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")
    return written(folder, model)


# --- Structure ----------------------------------------------------------------------------------


def _model_case(
    name: str,
    code: str,
    change: Callable[[onnx.ModelProto], Any],
    make: Callable[[], onnx.ModelProto] = plain,
    error: type[GraphoptError] = InvalidModelError,
) -> None:
    def maker(folder: Path) -> Path:
        model = make()
        change(model)
        return written(folder, model)

    HOSTILE.append((name, maker, error, code))


def _text_case(name: str, code: str, text: str, header: str = HEADER) -> None:
    HOSTILE.append(
        (name, lambda folder: written(folder, parse(text, header)), InvalidModelError, code)
    )


def branches(then: str, then_output: str) -> onnx.ModelProto:
    return parse(
        "g (bool c, float[4] x) => (float[4] y) { y = If (c) <"
        f"then_branch = a () => (float[4] {then_output}) {{ {then} }},"
        "else_branch = b () => (float[4] u) { u = Neg (x) }> }"
    )


def functions(definitions: str, body: str) -> onnx.ModelProto:
    return parse(
        f"g (float[2] x) => (float[2] y) {{ {body} }}\n"
        + "".join(
            f'<domain: "d", opset_import: ["": 21, "d": 1]>\n{text}\n'
            for text in definitions.split(";")
        ),
        '<ir_version: 10, opset_import: ["": 21, "d": 1]>\n',
    )


_text_case("cycle", "graph-cyclic", "g (float x) => (float y) { y = Add (x, t)  t = Abs (y) }")
_text_case("cycle of one", "graph-cyclic", "g (float x) => (float y) { y = Add (x, y) }")
_text_case(
    "cycle far from the output",
    "graph-cyclic",
    "g (float x) => (float y) { y = Abs (x)  a = Add (x, b)  b = Neg (a)  c = Abs (b) }",
)
_text_case(
    "cycle through a nested graph",
    "graph-cyclic",
    "g (bool c, float x) => (float y) { y = If (c) <"
    "then_branch = a () => (float t) { t = Abs (z) },"
    "else_branch = b () => (float u) { u = Neg (x) }>  z = Neg (y) }",
)
_text_case(
    "nested graph that reads its own node",
    "graph-cyclic",
    "g (bool c, float x) => (float y) { y = If (c) <"
    "then_branch = a () => (float t) { t = Abs (y) },"
    "else_branch = b () => (float u) { u = Neg (x) }> }",
)
_model_case(
    "value defined twice", "duplicate-value-name", lambda m: m.graph.node.append(m.graph.node[0])
)
_model_case(
    "output of a node that is an input",
    "duplicate-value-name",
    lambda m: m.graph.node.add(op_type="Abs", input=["t"], output=["x"]),
)
_model_case(
    "one node, one name twice",
    "duplicate-value-name",
    lambda m: m.graph.node.add(op_type="Split", input=["t"], output=["a", "a"]),
)
_model_case("input twice", "duplicate-value-name", lambda m: m.graph.input.append(m.graph.input[0]))
_model_case(
    "returned twice", "duplicate-value-name", lambda m: m.graph.output.append(m.graph.output[0])
)
_model_case(
    "initializer twice",
    "duplicate-value-name",
    lambda m: m.graph.initializer.append(m.graph.initializer[0]),
    weighted,
)
_model_case(
    "initializer that a node writes",
    "duplicate-value-name",
    lambda m: m.graph.node.add(op_type="Abs", input=["x"], output=["w"]),
    weighted,
)
_model_case(
    "inner name that hides an outer one",
    "duplicate-value-name",
    lambda m: None,
    lambda: branches("x = Neg (c)", "x"),
)
_model_case(
    "undefined read",
    "value-undefined",
    lambda m: m.graph.node.add(op_type="Abs", input=["ghost"], output=["z"]),
)
_model_case("undefined output", "value-undefined", lambda m: m.graph.output.add(name="ghost"))
_model_case(
    "read from a nested graph",
    "value-undefined",
    lambda m: m.graph.node.add(op_type="Abs", input=["t"], output=["z"]),
    lambda: branches("t = Abs (x)", "t"),
)
_model_case(
    "nested graph that returns an outer value",
    "value-undefined",
    lambda m: None,
    lambda: branches("t = Abs (x)", "x"),
)
_model_case("no outputs", "no-outputs", lambda m: m.graph.ClearField("output"))
_model_case("no nodes", "value-undefined", lambda m: m.graph.ClearField("node"))


# --- Tensors and types --------------------------------------------------------------------------


def _set(field: str, value: Any) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField(field)
        if isinstance(value, list):
            getattr(tensor, field).extend(value)
        elif value is not None:
            setattr(tensor, field, value)

    return change


def _tensor_case(name: str, code: str, *changes: tuple[str, Any]) -> None:
    def change(model: onnx.ModelProto) -> None:
        for field, value in changes:
            _set(field, value)(model)

    error = UnsupportedError if code == "rank-too-large" else InvalidModelError
    _model_case(name, code, change, weighted, error)


_tensor_case("initializer with a negative size", "dimension-negative", ("dims", [-4]))
_tensor_case("initializer of -2 x -2", "dimension-negative", ("dims", [-2, -2]))
_tensor_case("initializer of 2**62 x 4", "shape-too-large", ("dims", [2**62, 4]))
_tensor_case("initializer of 2**32 x 2**32", "shape-too-large", ("dims", [2**32, 2**32]))
_tensor_case("overflow behind a zero", "shape-too-large", ("dims", [0, 2**62, 2**62]))
_tensor_case("initializer of more than its data", "initializer-size", ("dims", [1_000_000]))
_tensor_case("initializer of less than its data", "initializer-size", ("dims", [3]))
_tensor_case("initializer without data", "initializer-size", ("raw_data", None))
_tensor_case("initializer with an odd byte", "initializer-size", ("raw_data", b"x" * 17))
_tensor_case("initializer with two kinds of data", "initializer-size", ("float_data", [1.0] * 4))
_tensor_case(
    "initializer with typed data too short",
    "initializer-size",
    ("raw_data", None),
    ("float_data", [1.0]),
)
_tensor_case(
    "initializer with data of another type",
    "initializer-size",
    ("raw_data", None),
    ("int64_data", [1] * 4),
)
_tensor_case("texts as raw data", "initializer-size", ("data_type", TensorProto.STRING))
_tensor_case("element type 99", "element-type-unknown", ("data_type", 99))
_tensor_case("element type 0", "element-type-unknown", ("data_type", 0))
_tensor_case("element type -1", "element-type-unknown", ("data_type", -1))
_tensor_case("hundred dimensions", "rank-too-large", ("dims", [1] * 100))
_tensor_case("initializer without a name", "name-missing", ("name", ""))


@hostile("segment of a tensor", "tensor-segment", UnsupportedError)
def _(folder: Path) -> Path:
    model = weighted()
    model.graph.initializer[0].segment.begin = 0
    return written(folder, model)


@hostile("constant with the wrong size", "initializer-size")
def _(folder: Path) -> Path:
    model = plain()
    tensor = TensorProto(data_type=TensorProto.INT64, dims=[1 << 40], raw_data=bytes(8))
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))
    return written(folder, model)


@hostile("large initializer left in the file, wrong size", "initializer-size")
def _(folder: Path) -> Path:
    model = parse("g (float[9] x) => (float[9] y) { y = Add (x, w) }")
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[9], raw_data=bytes(100_000))
    model.graph.initializer.append(tensor)
    return written(folder, model)


def _input_case(name: str, code: str, change: Callable[[onnx.ValueInfoProto], Any]) -> None:
    unsupported = ("value-type", "rank-too-large")
    error = UnsupportedError if code in unsupported else InvalidModelError
    _model_case(name, code, lambda m: change(m.graph.input[0]), error=error)


def _dims(*dims: int) -> Callable[[onnx.ValueInfoProto], None]:
    def change(info: onnx.ValueInfoProto) -> None:
        info.CopyFrom(helper.make_tensor_value_info(info.name, TensorProto.FLOAT, dims))

    return change


_input_case("input of 2**40 x 2**40", "shape-too-large", _dims(2**40, 2**40))
_input_case("input of hundred dimensions", "rank-too-large", _dims(*[1] * 100))
_input_case("input without a type", "type-missing", lambda i: i.ClearField("type"))
_input_case(
    "input of element type 99",
    "element-type-unknown",
    lambda i: setattr(i.type.tensor_type, "elem_type", 99),
)
_input_case(
    "input of element type 0",
    "element-type-unknown",
    lambda i: setattr(i.type.tensor_type, "elem_type", 0),
)
_input_case(
    "input that is a map",
    "value-type",
    lambda i: i.type.CopyFrom(
        helper.make_map_type_proto(
            TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
        )
    ),
)
_input_case(
    "input that is sparse",
    "value-type",
    lambda i: i.type.CopyFrom(helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, [2])),
)
_input_case(
    "sequence of nothing",
    "type-missing",
    lambda i: i.type.CopyFrom(onnx.TypeProto(sequence_type=onnx.TypeProto.Sequence())),
)
_input_case(
    "dimension with a control character",
    "name-control-character",
    lambda i: setattr(i.type.tensor_type.shape.dim[0], "dim_param", "n\x1b[2J"),
)
_model_case(
    "value of 2**62 x 2**62",
    "shape-too-large",
    lambda m: m.graph.value_info.append(
        helper.make_tensor_value_info("t", TensorProto.FLOAT, [2**62, 2**62])
    ),
)
_model_case(
    "initializer that contradicts its input",
    "initializer-contradicts-input",
    lambda m: m.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [5])),
    weighted,
)
_model_case(
    "sparse initializer",
    "sparse-tensor",
    lambda m: m.graph.sparse_initializer.append(
        helper.make_sparse_tensor(
            numpy_helper.from_array(np.ones(1, np.float32), "w"),
            numpy_helper.from_array(np.zeros(1, np.int64), "i"),
            [4],
        )
    ),
    error=UnsupportedError,
)


# --- Names, attributes, counts ------------------------------------------------------------------


def _name_case(name: str, code: str, bad: str) -> None:
    def node_name(model: onnx.ModelProto) -> None:
        model.graph.node[0].name = bad

    def value_name(model: onnx.ModelProto) -> None:
        model.graph.node[0].output[0] = bad
        model.graph.node[1].input[0] = bad

    def operator(model: onnx.ModelProto) -> None:
        model.graph.node[0].op_type = bad

    for what, change in (("node", node_name), ("value", value_name), ("operator", operator)):
        _model_case(f"{name} in the name of a {what}", code, change)


_name_case("zero byte", "name-control-character", "a\0b")
_name_case("line break", "name-control-character", "a\nERROR: all is well")
_name_case("terminal escape", "name-control-character", "\x1b[2J\x1b]0;owned\x07")
_name_case("reversed text", "name-control-character", "a\u202egpj.exe")
_name_case("ten million characters", "name-too-long", "n" * 10_000_000)
_model_case("no operator", "name-missing", lambda m: m.graph.node[0].ClearField("op_type"))


def _raw_replace(old: bytes, new: bytes) -> Maker:
    def maker(folder: Path) -> Path:
        model = parse("g (float[2] x) => (float[2] y) { tttt = Abs (x)  y = Neg (tttt) }")
        model.graph.node[0].name = "nnnn"
        model.graph.node.append(helper.make_node("Foo", ["x"], ["z"], aaaa=["ssss"]))
        content = model.SerializeToString()
        assert old in content
        return written(folder, content.replace(old, new))

    return maker


for _what, _old in (("value", b"tttt"), ("node", b"nnnn"), ("attribute", b"aaaa")):
    HOSTILE.append(
        (
            f"name of a {_what} that is no UTF-8",
            _raw_replace(_old, b"\xff\xfe\xff\xfe"),
            InvalidModelError,
            "not-utf8",
        )
    )
HOSTILE.append(
    (
        "text of an attribute that is no UTF-8",
        _raw_replace(b"ssss", b"\xff\xfe\xff\xfe"),
        InvalidModelError,
        "not-utf8",
    )
)


def _attribute_case(
    name: str,
    code: str,
    change: Callable[[onnx.NodeProto], Any],
    error: type[GraphoptError] = InvalidModelError,
) -> None:
    _model_case(name, code, lambda m: change(m.graph.node[0]), error=error)


_attribute_case(
    "attribute twice",
    "duplicate-attribute",
    lambda n: n.attribute.extend([helper.make_attribute("a", 1), helper.make_attribute("a", 2)]),
)
_attribute_case(
    "attribute of type 99",
    "attribute-type",
    lambda n: n.attribute.add(name="a").MergeFromString(b"\xa0\x01\x63"),
)
_attribute_case("attribute without a type", "attribute-type", lambda n: n.attribute.add(name="a"))
_attribute_case(
    "parameter outside of a function",
    "attribute-reference",
    lambda n: n.attribute.add(name="a", ref_attr_name="b", type=onnx.AttributeProto.FLOAT),
)
_attribute_case(
    "eleven thousand attributes",
    "too-many-attributes",
    lambda n: n.attribute.extend(helper.make_attribute(f"a{i}", i) for i in range(11_000)),
)
_attribute_case(
    "a million empty attributes",
    "too-many-attributes",
    lambda n: n.MergeFromString(b"\x2a\x00" * 1_000_000),
)
_attribute_case(
    "sparse attribute",
    "sparse-tensor",
    lambda n: n.attribute.add(name="a", type=onnx.AttributeProto.SPARSE_TENSOR),
    UnsupportedError,
)
_attribute_case(
    "attribute with an empty type",
    "type-missing",
    lambda n: n.attribute.add(name="a", type=onnx.AttributeProto.TYPE_PROTO),
)
_attribute_case(
    "attribute with an empty tensor",
    "element-type-unknown",
    lambda n: n.attribute.add(name="a", type=onnx.AttributeProto.TENSOR),
)
_attribute_case(
    "attribute with an empty graph",
    "value-undefined",
    lambda n: n.attribute.add(
        name="a",
        type=onnx.AttributeProto.GRAPH,
        g=onnx.GraphProto(output=[onnx.ValueInfoProto(name="o")]),
    ),
)


def _length_delimited(number: int, body: bytes) -> bytes:
    size = len(body)
    out = bytearray([number << 3 | 2])
    while size > 0x7F:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes(out) + bytes([size]) + body


@hostile("hundred nested graphs", "nesting-too-deep")
def _(folder: Path) -> Path:
    # graph 7 of the model, node 1 of a graph, attribute 5 of a node, graph 6 of an attribute.
    graph = plain().graph.SerializeToString()
    for _level in range(100):
        attribute = b"\x0a\x01g" + _length_delimited(6, graph) + b"\xa0\x01\x05"
        node = _length_delimited(5, attribute) + b"\x22\x02If"
        graph = _length_delimited(1, node)
    model = plain()
    model.ClearField("graph")
    return written(folder, model.SerializeToString() + _length_delimited(7, graph))


# --- Functions and versions ---------------------------------------------------------------------

_FUNCTION = "f (a) => (b) { b = Abs (a) }"
_model_case(
    "function that calls itself",
    "function-recursive",
    lambda m: None,
    lambda: functions("f (a) => (b) { b = d.f (a) }", "y = d.f (x)"),
)
_model_case(
    "functions that call each other",
    "function-recursive",
    lambda m: None,
    lambda: functions("f (a) => (b) { b = d.h (a) };h (a) => (b) { b = d.f (a) }", "y = d.f (x)"),
)
_model_case(
    "function that nobody calls, but itself",
    "function-recursive",
    lambda m: None,
    lambda: functions("f (a) => (b) { b = d.f (a) }", "y = Abs (x)"),
)
_model_case(
    "functions that multiply",
    "function-expansion",
    lambda m: None,
    lambda: functions(
        ";".join(
            f"f{i} (a) => (k) {{ "
            + "  ".join(f"{'bcdefghijk'[j]} = d.f{i + 1} ({'abcdefghijk'[j]})" for j in range(10))
            + " }"
            for i in range(12)
        )
        + ";f12 (a) => (b) { b = Abs (a) }",
        "y = d.f0 (x)",
    ),
)
_model_case(
    "function twice",
    "duplicate-function",
    lambda m: m.functions.append(m.functions[0]),
    lambda: functions(_FUNCTION, "y = d.f (x)"),
)
_model_case(
    "function with another opset",
    "function-not-inlinable",
    lambda m: setattr(m.functions[0].opset_import[0], "version", 20),
    lambda: functions(_FUNCTION, "y = d.f (x)"),
    UnsupportedError,
)
_model_case(
    "function called with too much",
    "function-not-inlinable",
    lambda m: m.graph.node[0].input.append("x"),
    lambda: functions(_FUNCTION, "y = d.f (x)"),
    UnsupportedError,
)
_model_case(
    "function that reads the graph",
    "value-undefined",
    lambda m: None,
    lambda: functions("f (a) => (b) { b = Add (a, x) }", "y = d.f (x)"),
)
_model_case(
    "function that returns nothing it has",
    "value-undefined",
    lambda m: m.functions[0].output.append("ghost"),
    lambda: functions(_FUNCTION, "y = d.f (x)"),
)


def _opset(*versions: tuple[str, int]) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        model.ClearField("opset_import")
        for domain, version in versions:
            model.opset_import.add(domain=domain, version=version)

    return change


_model_case("opset 99", "opset-too-new", _opset(("", 99)), error=UnsupportedError)
_model_case("opset 27", "opset-too-new", _opset(("", 27)), error=UnsupportedError)
_model_case("opset 2**62", "opset-too-new", _opset(("", 2**62)), error=UnsupportedError)
_model_case("opset 6", "opset-too-old", _opset(("", 6)), error=UnsupportedError)
_model_case("opset -1", "opset-too-old", _opset(("", -1)), error=UnsupportedError)
_model_case("no opset", "opset-import-missing", _opset())
_model_case("no default opset", "opset-import-missing", _opset(("com.microsoft", 1)))
_model_case("two opsets", "opset-import-duplicate", _opset(("", 20), ("ai.onnx", 21)))
_model_case(
    "domain without an import",
    "opset-import-missing",
    lambda m: setattr(m.graph.node[0], "domain", "com.example"),
)


def _ir_version(version: int) -> Callable[[onnx.ModelProto], None]:
    return lambda model: setattr(model, "ir_version", version)


for _version in (0, 2, 14, 99, 2**62, -1):
    _model_case(
        f"ir version {_version}", "ir-version", _ir_version(_version), error=UnsupportedError
    )
