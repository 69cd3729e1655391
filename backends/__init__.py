"""The backends by file suffix; importing this file imports no backend."""

BACKENDS: dict[str, str] = {".onnx": "graphopt.backends.emit_onnx:emit_onnx"}
