"""The backends by file suffix; importing this file imports no backend."""

BACKENDS: dict[str, str] = {
    ".onnx": "graphopt.backends.emit_onnx:emit_onnx",
    ".pt2": "graphopt.backends.emit_pt2:emit_pt2",
    ".ts": "graphopt.backends.emit_torchscript:emit_torchscript",
}
