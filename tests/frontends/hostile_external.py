"""Hostile models that name files beside them."""

import os
from pathlib import Path

from onnx import TensorProto, helper

from graphopt.errors import InvalidModelError
from tests.frontends.hostile_base import (
    CASES,
    GOOD,
    Entries,
    branches,
    functions,
    hostile,
    make_external,
    parse,
    plain,
    weighted,
    written,
)


def external(folder: Path, entries: Entries, data: bytes | None = bytes(16)) -> Path:
    model = weighted()
    make_external(model.graph.initializer[0], entries)
    if data is not None:
        (folder / "w.data").write_bytes(data)
    return written(folder, model)


def _external_case(name: str, code: str, *changes: tuple[str, str]) -> None:
    entries = dict(GOOD) | dict(changes)
    CASES.append(
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

    CASES.append((f"external: {name}", make, InvalidModelError, "external-data-path"))


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


@hostile("external: much data in the model as well", "initializer-size")
def _(folder: Path) -> Path:
    model = plain()
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], raw_data=bytes(8192))
    model.graph.initializer.append(tensor)
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in GOOD:
        tensor.external_data.add(key=key, value=value)
    (folder / "w.data").write_bytes(bytes(16))
    return written(folder, model)


@hostile("external: entries of a tensor that is not", "external-data-key")
def _(folder: Path) -> Path:
    model = weighted()
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")
    return written(folder, model)
