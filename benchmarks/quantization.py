"""Int8 on the trained networks: graphopt beside onnxruntime's own quantizer, same samples.

For each network this calibrates graphopt and ``onnxruntime.quantization.quantize_static`` (QDQ, per
channel, uint8 activations and int8 weights, after its own ``quant_pre_process``) on the same
calibration split of the assets, evaluates the original and both results with the assets'
``evaluate.py``, and prints the metric, the file, the integer kernels and the latency (one thread,
median of the ratios of interleaved runs). No sample that is evaluated is calibrated on.

    python benchmarks/quantization.py [--only NAME ...] [--target cpu] [--out DIR]

``--built`` measures two untrained networks of ``models/`` instead, a MobileNetV2 and an encoder of
six layers: decibels against float, integer kernels among the nodes with constant weights, file and
latency, beside the rival with each of its calibration methods, on the same file and samples; and
whether our file passes the checker, holds no dead weight and loads at every optimization level.

    python benchmarks/quantization.py --built
"""

import argparse
import collections
import csv
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RUNS = 15


def assets() -> Path:
    """Return the folder that holds ``models/`` and ``data/``."""
    folder = Path(os.environ.get("GRAPHOPT_ASSETS", ROOT.parent / "shared"))
    if not (folder / "models").is_dir():
        raise SystemExit("no trained networks: set GRAPHOPT_ASSETS to a folder that holds models/")
    return folder


def evaluator() -> ModuleType:
    """Return the assets' ``evaluate.py`` as a module."""
    spec = importlib.util.spec_from_file_location("evaluate", assets() / "models" / "evaluate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["evaluate"] = module
    spec.loader.exec_module(module)
    return module


def squeezenet() -> Iterator[np.ndarray]:
    from PIL import Image

    for file in sorted((assets() / "data" / "imagenet_calib32").glob("*.jpg")):
        image = Image.open(file).convert("RGB")
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32)
        yield (pixels[..., ::-1] - (104.007, 116.669, 122.679)).transpose(2, 0, 1)[None]


def cifar() -> Iterator[np.ndarray]:
    images = np.load(assets() / "data" / "cifar10.npz")["calib"].astype(np.float32) / 255
    for image in (images - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225):
        yield image.transpose(2, 0, 1)[None]


def cifar_nhwc() -> Iterator[np.ndarray]:
    for image in np.load(assets() / "data" / "cifar10.npz")["calib"]:
        yield image[None]


def mnist() -> Iterator[np.ndarray]:
    data = np.load(assets() / "data" / "mnist.npz")
    for image in data["calib"]:
        yield image[None, None]


def keywords() -> Iterator[np.ndarray]:
    data = np.load(assets() / "data" / "kws_mfcc.npz")
    name = next(n for n in data.files if n.startswith("calib"))
    for clip in data[name]:
        yield ((clip.astype(np.float32) - data["zero_point"]) * data["scale"])[None]


def plates() -> Iterator[np.ndarray]:
    from PIL import Image

    folder = assets() / "data" / "plates"
    for row in csv.DictReader((folder / "labels.csv").open(encoding="utf-8")):
        if row["use"] != "eval":
            image = Image.open(folder / row["file"]).convert("RGB")
            pixels = np.asarray(image.resize((94, 24), Image.Resampling.BILINEAR), np.float32)
            yield ((pixels[..., ::-1] - 127.5) / 128).transpose(2, 0, 1)[None]


def coco_letterboxed() -> Iterator[np.ndarray]:
    from PIL import Image

    for file in sorted((assets() / "data" / "coco_calib").glob("*.jpg")):
        image = Image.open(file).convert("RGB")
        ratio = min(416 / image.width, 416 / image.height)
        size = (int(image.width * ratio), int(image.height * ratio))
        small = np.asarray(image.resize(size, Image.Resampling.BILINEAR))[..., ::-1]
        canvas = np.full((416, 416, 3), 114, np.float32)
        canvas[: small.shape[0], : small.shape[1]] = small
        yield canvas.transpose(2, 0, 1)[None]


def photos(width: int, height: int, shift: float, scale: float) -> Iterator[np.ndarray]:
    """Yield photos that no metric is computed on: the COCO and ImageNet calibration splits."""
    from PIL import Image

    folders = [assets() / "data" / name for name in ("coco_calib", "imagenet_calib32")]
    files = [file for folder in folders for file in sorted(folder.glob("*.jpg"))]
    for file in files[:24]:
        image = Image.open(file).convert("RGB")
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32)
        yield (pixels * scale + shift).transpose(2, 0, 1)[None]


def sinet() -> Iterator[np.ndarray]:
    mean = np.array([102.890434, 111.25247, 126.91212])[None, :, None, None]
    deviation = np.array([62.93292, 62.82138, 66.355705])[None, :, None, None]
    for image in photos(320, 320, 0.0, 1.0):
        yield (image[:, ::-1] - mean) / deviation / 255


def luma() -> Iterator[np.ndarray]:
    from PIL import Image

    for file in sorted((assets() / "data" / "imagenet_calib32").glob("*.jpg"))[:16]:
        image = Image.open(file).convert("YCbCr").split()[0]
        side = min(image.size)
        small = image.crop((0, 0, side, side)).resize((80, 80), Image.Resampling.BICUBIC)
        yield np.asarray(small, np.float32)[None, None] / 255


NETWORKS: dict[str, Callable[[], Iterator[np.ndarray]]] = {
    "mnist_cntk": mnist,
    "resnet8_cifar10_nhwc": cifar_nhwc,
    "resnet20_cifar10": cifar,
    "dscnn_kws": keywords,
    "squeezenet1_1_imagenet": squeezenet,
    "lprnet_plate": plates,
    "ultraface_rfb320": lambda: photos(320, 240, -127 / 128, 1 / 128),
    "yolox_nano_416": coco_letterboxed,
    "espcn_x3": luma,
    "sinet_portrait": sinet,
    "deeplabv3_mnv2_portrait": lambda: photos(513, 513, -1.0, 1 / 127.5),
}


def samples(path: Path, make: Callable[[], Iterator[np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """Return the calibration split as feeds."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    weights = {tensor.name for tensor in model.graph.initializer}
    name = next(value.name for value in model.graph.input if value.name not in weights)
    return [{name: np.ascontiguousarray(array, np.float32)} for array in make()]


def ort_quantized(
    path: Path, out: Path, feeds: list[dict[str, np.ndarray]], method: str = "MinMax"
) -> float:
    """Quantize with onnxruntime's quantizer at its best settings; return the seconds."""
    import onnx
    from onnx import version_converter
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(feeds)

        def get_next(self) -> Any:
            return next(self.left, None)

    started = time.perf_counter()
    ready = out.with_suffix(".ready.onnx")
    model = onnx.load(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 8)
    if model.opset_import[0].version < 13:
        model = version_converter.convert_version(model, 13)
    onnx.save(model, ready)
    quant_pre_process(os.fspath(ready), os.fspath(ready), skip_symbolic_shape=True)
    q.quantize_static(
        os.fspath(ready),
        os.fspath(out),
        Reader(),
        quant_format=q.QuantFormat.QDQ,
        per_channel=True,
        calibrate_method=q.CalibrationMethod[method],
        activation_type=q.QuantType.QUInt8,
        weight_type=q.QuantType.QInt8,
    )
    ready.unlink()
    return time.perf_counter() - started


def evaluate(module: ModuleType, folder: Path, name: str) -> dict[str, float]:
    """Return the metrics of the network in ``folder``."""
    module.ARGS = argparse.Namespace(  # type: ignore[attr-defined]
        models=os.fspath(folder), data=os.fspath(assets() / "data"), threads=1
    )
    found: dict[str, float] = module.MODELS[name][1]()
    return found


def session(path: Path, optimized: Path | None = None, level: str = "ENABLE_ALL") -> Any:
    import onnxruntime as ort

    ort.set_default_logger_severity(3)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}")
    if optimized is not None:
        options.optimized_model_filepath = os.fspath(optimized)
    return ort.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])


def ratios(base: Path, others: list[Path], feed: dict[str, np.ndarray]) -> list[float]:
    """Return the latency of each of ``others`` relative to ``base``: median over pairs."""
    sessions = [session(path) for path in (base, *others)]
    times: list[list[float]] = [[] for _ in sessions]
    for run in range(RUNS + 2):
        for index, one in enumerate(sessions):
            started = time.perf_counter()
            one.run(None, feed)
            if run >= 2:
                times[index].append(time.perf_counter() - started)
    return [
        statistics.median(b / a for a, b in zip(times[0], other, strict=True))
        for other in times[1:]
    ]


def integer_kernels(path: Path, scratch: Path) -> str:
    """Return how many Conv, Gemm and MatMul run in integers, of how many."""
    import onnx

    kept = scratch / "optimized.onnx"
    session(path, kept)
    counts = collections.Counter(node.op_type for node in onnx.load(kept).graph.node)
    integer = sum(
        counts[name] for name in ("QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat")
    )
    plain = sum(counts[name] for name in ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul"))
    return f"{integer}/{integer + plain}"


def metric(values: dict[str, float]) -> tuple[str, float]:
    """Return the first fraction or score among ``values``."""
    return next((name, float(value)) for name, value in values.items() if isinstance(value, float))


def one(
    name: str, out: Path, target: str, module: ModuleType, goal: float | None
) -> dict[str, Any]:
    """Quantize and measure one network; returns the row."""
    import graphopt

    path = assets() / "models" / f"{name}.onnx"
    feeds = samples(path, NETWORKS[name])
    row: dict[str, Any] = {"network": name, "samples": len(feeds)}
    files = {"fp32": path}
    started = time.perf_counter()
    result = graphopt.compile(
        path,
        target=target,
        precision="int8",
        calibration_data=feeds,
        verify=graphopt.Tolerance(sqnr_db=goal),
    )
    files["ours"] = out / "ours" / path.name
    result.save(files["ours"])
    row["seconds"] = time.perf_counter() - started
    assert result.quantization is not None
    row["sqnr"] = result.quantization.worst_db
    row["method"] = result.quantization.method
    row["returned"] = len(result.quantization.returned)
    row["arena"] = (result.baseline.arena_bytes, result.plan.arena_bytes)
    files["ort"] = out / "ort" / path.name
    try:
        row["ort_seconds"] = ort_quantized(path, files["ort"], feeds)
    except Exception as error:  # the row says what the rival could not do
        row["ort_failed"] = f"{type(error).__name__}: {error}"[:120]
        del files["ort"]
    row["metric"] = {
        kind: metric(evaluate(module, file.parent, name)) for kind, file in files.items()
    }
    row["bytes"] = {kind: file.stat().st_size for kind, file in files.items()}
    quantized = [kind for kind in files if kind != "fp32"]
    found = ratios(path, [files[kind] for kind in quantized], feeds[0])
    row["latency"] = dict(zip(quantized, found, strict=True))
    row["integer"] = {kind: integer_kernels(files[kind], out) for kind in quantized}
    return row


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    cells = [f"{row['network']:<25}{row['metric']['fp32'][0][:12]:<13}"]
    cells.append(f"{row['metric']['fp32'][1]:>8.4f}")
    for kind in ("ort", "ours"):
        if kind not in row["metric"]:
            cells.append(f"{'failed':>34}")
            continue
        size = row["bytes"][kind] / row["bytes"]["fp32"]
        cells.append(
            f"{row['metric'][kind][1]:>10.4f}{size:>7.2f}{row['latency'][kind]:>7.2f}"
            f"{row['integer'][kind]:>10}"
        )
    before, after = row["arena"]
    cells.append(
        f"{row['sqnr']:>7.1f} {row['method']:<10}{row['returned']:>4}{row['seconds']:>7.1f}"
        f"{after / before if before else 1:>7.2f}"
    )
    return "".join(cells)


LEVELS = ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL")
ENCODER = {"layers": 6, "hidden": 256, "heads": 4, "intermediate": 1024, "vocabulary": 8192}
# Network -> decibels that are asked for; None for graphopt's own goal.
BUILT: dict[str, float | None] = {"mobilenet_v2": None, "bert": 30.0}


def built(name: str, path: Path) -> list[dict[str, np.ndarray]]:
    """Write a network of ``models/`` and return 16 samples of one image or of 128 tokens."""
    import torch

    sys.path.insert(0, os.fspath(ROOT))
    from models import build

    sample = build(name, **({**ENCODER, "sequence": 128} if name == "bert" else {}))
    torch.onnx.export(
        sample.module,
        sample.example_inputs,
        os.fspath(path),
        dynamo=True,
        verbose=False,
        external_data=False,
        dynamic_shapes=sample.dynamic_shapes,
        input_names=list(sample.input_names),
        output_names=list(sample.output_names),
    )
    rng = np.random.default_rng(0)
    if name != "bert":
        images = rng.standard_normal((16, 1, 3, 224, 224), np.float32)
        return [{"images": image} for image in images]
    tokens = rng.integers(0, ENCODER["vocabulary"], (16, 1, 128))
    ones = np.ones((1, 128), np.int64)
    return [{"input_ids": ids, "attention_mask": ones} for ids in tokens]


def eligible(path: Path) -> int:
    """Return the number of Conv, Gemm and MatMul with constant weights."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    constant = {tensor.name for tensor in graph.initializer}
    return sum(
        node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in constant
        for node in graph.node
    )


def decibels(base: Path, other: Path, feeds: list[dict[str, np.ndarray]]) -> float:
    """Return the worst output of ``other`` against ``base``."""
    from graphopt.numerics.sqnr import sqnr_db, worst

    results = []
    for path in (base, other):
        one = session(path)
        names = [output.name for output in one.get_outputs()]
        results.append([dict(zip(names, one.run(None, feed), strict=True)) for feed in feeds])
    return worst(sqnr_db(*results))


def defects(path: Path) -> list[str]:
    """Return what is wrong with a file: the checker, dead weights, levels that do not load."""
    import onnx

    found = []
    try:
        onnx.checker.check_model(os.fspath(path), full_check=True)
    except onnx.checker.ValidationError as error:
        found.append(f"checker: {error}"[:100])
    graph = onnx.load(path).graph
    read = {value for node in graph.node for value in node.input}
    read |= {value.name for value in graph.output}
    found += [f"dead: {t.name}" for t in graph.initializer if t.name not in read]
    for level in LEVELS:
        try:
            session(path, level=level)
        except Exception as error:  # the row says which level refuses the file
            found.append(f"{level}: {error}"[:100])
    return found


def built_row(name: str, out: Path, target: str) -> None:
    """Quantize one network of ``models/`` by both and print what came out."""
    import graphopt

    path = out / f"{name}.onnx"
    feeds = built(name, path)
    started = time.perf_counter()
    result = graphopt.compile(
        path,
        target=target,
        precision="int8",
        calibration_data=feeds,
        verify=graphopt.Tolerance(sqnr_db=BUILT[name]),
    )
    ours = out / "ours" / path.name
    result.save(ours)
    assert result.quantization is not None
    files, notes = {"ours": ours}, {"ours": f"{time.perf_counter() - started:.1f} s"}
    for method in ("MinMax", "Entropy", "Percentile"):
        file = out / "ort" / f"{name}_{method}.onnx"
        try:
            notes[method] = f"{ort_quantized(path, file, feeds, method):.1f} s"
            files[method] = file
        except Exception as error:  # the row says what the rival could not do
            print(f"    {method}: {type(error).__name__}: {error}"[:120])
    found = ratios(path, list(files.values()), feeds[0])
    size = path.stat().st_size
    print(f"{name}: {size / 1e6:.1f} MB, {eligible(path)} nodes with constant weights")
    for (kind, file), ratio in zip(files.items(), found, strict=True):
        print(
            f"    {kind:<11}{decibels(path, file, feeds):6.1f} dB, time {ratio:.2f} of fp32, file "
            f"{file.stat().st_size / 1e6:.1f} MB, integer {integer_kernels(file, out)}, "
            f"{notes[kind]}",
            flush=True,
        )
    kernels = result.quantization.kernels
    left = {} if kernels is None else kernels.float_nodes
    print(f"    ours: ranges by {result.quantization.method}, returned to float for accuracy: ")
    print(f"        {len(result.quantization.returned)}; placed but left float: {len(left)}")
    print(f"        defects of the file: {defects(ours) or 'none'}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--built", action="store_true", help="networks of models/ instead")
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--goal", type=float, help="decibels; by default graphopt's own")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    scratch = tempfile.TemporaryDirectory()
    out = options.out or Path(scratch.name)
    for kind in ("ours", "ort"):
        (out / kind).mkdir(parents=True, exist_ok=True)
    if options.built:
        for name in BUILT:
            if not options.only or name in options.only:
                built_row(name, out, options.target)
        return
    module = evaluator()
    rows = []
    print(
        f"{'network':<25}{'metric':<13}{'fp32':>8}{'ORT':>10}{'size':>7}{'time':>7}{'integer':>10}"
        f"{'ours':>10}{'size':>7}{'time':>7}{'integer':>10}{'dB':>7} {'ranges':<10}{'back':>4}"
        f"{'s':>7}{'arena':>7}"
    )
    for name in NETWORKS:
        if options.only and name not in options.only:
            continue
        rows.append(one(name, out, options.target, module, options.goal))
        print(line(rows[-1]), flush=True)
        if "ort_failed" in rows[-1]:
            print(f"    onnxruntime's quantizer: {rows[-1]['ort_failed']}")
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
