"""Hostile files that are no .onnx files."""

import gzip
import io
import os
import pickle
import socket
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import InvalidModelError, UnsupportedError
from tests.frontends.hostile_base import (
    CASES,
    hostile,
    plain,
    weighted,
    written,
)


def _bytes_case(name: str, content: bytes, code: str, file_name: str = "model.onnx") -> None:
    error = UnsupportedError if code == "text-form" else InvalidModelError
    CASES.append((name, lambda folder: written(folder, content, file_name), error, code))


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
