"""Opening a model file, and saying what it is when it is no .onnx file."""

import os
import stat
from pathlib import Path

from graphopt.errors import GraphoptError, InvalidModelError, UnsupportedError

# Protobuf cannot hold more; larger models keep their weights in a file of their own.
MAX_FILE_BYTES = (1 << 31) - 1
_TEXT_SUFFIXES = (".onnxtxt", ".onnxtext", ".textproto", ".prototxt", ".pbtxt", ".txtpb")

# First bytes -> what the file looks like, and what to do about it.
_PT2_HINT = "a .pt2 archive goes to the torch front end; a .pt or .pth file holds no graph"
_STARTS: tuple[tuple[bytes, str, str], ...] = (
    (b"PK\x03\x04", "a zip archive (.pt2, .pt, .zip)", _PT2_HINT),
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself", "run: git lfs pull"),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstandard archive", "unpack it first"),
    (b"\x89HDF", "an HDF5 file (Keras)", "export the model to ONNX first"),
    (b"GGUF", "a GGUF file", "export the model to ONNX first"),
    (b"<!DOCTYPE", "an HTML page, perhaps of a failed download", "download the file itself"),
    (b"<!doctype", "an HTML page, perhaps of a failed download", "download the file itself"),
    (b"<html", "an HTML page, perhaps of a failed download", "download the file itself"),
    (b"\x7fELF", "a program", "pass the .onnx file"),
)


def open_model(path: Path) -> tuple[int, int]:
    """Open a file for reading without following anything but the path itself.

    Returns:
        The descriptor, which the caller owns, and the size in bytes.

    Raises:
        InvalidModelError: there is no such regular file, it cannot be read, or it is too large.
    """
    try:
        # O_NONBLOCK: opening a pipe must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError as error:
        raise InvalidModelError("file-not-found", f"no such file: '{path}'") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidModelError("file-unreadable", f"cannot read '{path}': {reason}") from error
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise InvalidModelError(
                "not-a-file", f"'{path}' is a folder", hint="pass the .onnx file inside it"
            )
        if not stat.S_ISREG(status.st_mode):
            raise InvalidModelError("not-a-file", f"'{path}' is a pipe, socket or device")
        if status.st_size == 0:
            raise InvalidModelError("file-empty", f"'{path}' is empty")
        if status.st_size > MAX_FILE_BYTES:
            raise InvalidModelError(
                "file-too-large",
                f"'{path}' has {status.st_size} bytes, an .onnx file at most {MAX_FILE_BYTES}",
                hint="store the weights as external data",
            )
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, status.st_size


def other_kind(path: Path, start: bytes) -> GraphoptError | None:
    """Return the error for a file that is recognised as something else, None when it is not.

    Args:
        path: Its name.
        start: Its first 512 bytes or more.
    """
    text = start.lstrip(b" \t\r\n\xef\xbb\xbf")
    if text.startswith(b"<") and text[1:].lstrip().startswith(b"ir_version"):
        return _text_form(path)
    if text.startswith(b"ir_version:") or path.suffix.lower() in _TEXT_SUFFIXES:
        return _text_form(path)
    kind, hint = _kind_of(start, text)
    if kind is None:
        return None
    return InvalidModelError("not-onnx", f"'{path}' looks like {kind}", hint=hint)


def _kind_of(start: bytes, text: bytes) -> tuple[str | None, str]:
    for magic, kind, hint in _STARTS:
        if start.startswith(magic) or (magic.startswith(b"<") and text.startswith(magic)):
            return kind, hint
    if len(start) > 1 and start[0] == 0x80 and start[1] in (2, 3, 4, 5):
        return "a Python pickle (.pt, .pth, .pkl)", "graphopt never opens pickles: they run code"
    if start[4:8] == b"TFL3":
        return "a TFLite model", "convert it to ONNX first"
    if start[4:8] == b"ORTM":
        return "an ORT format model", "pass the .onnx file that it was made from"
    if start[8:10] == b'{"' and start[5:8] == b"\0\0\0":
        return "a safetensors file", "it holds weights and no graph: export the model to ONNX"
    if text.startswith((b"{", b"[")):
        return "a JSON file", "pass the binary .onnx file"
    return None, ""


def _text_form(path: Path) -> UnsupportedError:
    return UnsupportedError(
        "text-form",
        f"'{path}' is a model in text form",
        hint="convert it: onnx.save(onnx.parser.parse_model(text), 'model.onnx')",
    )
