"""What the makers of hostile files share: the list they fill, and small sound models to spoil."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
from onnx import TensorProto, numpy_helper

from graphopt.errors import GraphoptError, InvalidModelError

Maker = Callable[[Path], Path]
Case = tuple[str, Maker, type[GraphoptError], str]
HEADER = '<ir_version: 10, opset_import: ["": 21]>\n'

CASES: list[Case] = []


def hostile(
    name: str, code: str, error: type[GraphoptError] = InvalidModelError
) -> Callable[[Maker], Maker]:
    def register(maker: Maker) -> Maker:
        CASES.append((name, maker, error, code))
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


def model_case(
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

    CASES.append((name, maker, error, code))


Entries = Sequence[tuple[str, str]]
GOOD: Entries = (("location", "w.data"), ("offset", "0"), ("length", "16"))


def make_external(tensor: TensorProto, entries: Entries) -> None:
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries:
        tensor.external_data.add(key=key, value=value)


def length_delimited(number: int, body: bytes) -> bytes:
    """Return a protobuf field that holds ``body``."""
    size = len(body)
    out = bytearray([number << 3 | 2])
    while size > 0x7F:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes(out) + bytes([size]) + body
