"""Front ends: ONNX and torch in, Program out."""
