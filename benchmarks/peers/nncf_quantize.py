"""Quantize one ONNX file with NNCF; run by the interpreter of an environment that has it.

    PYTHON benchmarks/peers/nncf_quantize.py MODEL FEEDS.npz OUT

``FEEDS.npz`` holds arrays called ``INDEX/INPUT``. The defaults of NNCF, but for the bias
correction, which is the slower, better one where that works, and ``model_type`` for networks of
MatMul.
"""

import collections
import sys

import nncf
import numpy as np
import onnx
from onnx import version_converter


def main() -> None:
    """Quantize."""
    source, samples, out = sys.argv[1:]
    model = onnx.load(source)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 8)
    if model.opset_import[0].version < 13:
        model = version_converter.convert_version(model, 13)
    feeds: dict[int, dict[str, np.ndarray]] = collections.defaultdict(dict)
    with np.load(samples) as arrays:
        for key in arrays.files:
            index, _, name = key.partition("/")
            feeds[int(index)][name] = arrays[key]
    counts = collections.Counter(node.op_type for node in model.graph.node)
    products = counts["MatMul"] + counts["Gemm"] > 4 * counts["Conv"]
    options = {
        "calibration_dataset": nncf.Dataset([feeds[index] for index in sorted(feeds)]),
        "model_type": nncf.ModelType.TRANSFORMER if products else None,
        "subset_size": len(feeds),
    }
    try:
        quantized = nncf.quantize(model, fast_bias_correction=False, **options)
    except Exception as error:  # it cuts the model up, and onnxruntime refuses some pieces
        print(f"slow bias correction: {type(error).__name__}: {error}"[:200], file=sys.stderr)
        quantized = nncf.quantize(model, fast_bias_correction=True, **options)
    onnx.save(quantized, out)


if __name__ == "__main__":
    main()
