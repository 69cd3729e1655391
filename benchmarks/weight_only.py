"""Weights in 4 and 8 bits: graphopt beside onnxruntime's own quantizer, same bits, same blocks.

For two trained language models (perplexity by the assets' ``evaluate.py``) and a BERT-like encoder
with seeded weights: file size, signal to quantization noise of the outputs against the float model,
perplexity, latency relative to float (one thread, median of the ratios of interleaved runs).
``products`` rows quantize what onnxruntime's quantizer does by default, the MatMul; the others all
that the pass finds, the embedding included. All rows of a network start from the same float file.

    python benchmarks/weight_only.py [--only NAME ...] [--out DIR]
    python benchmarks/weight_only.py --gib 1      # memory and time of a large compile instead
    python benchmarks/weight_only.py --runtime    # what each form costs onnxruntime in memory
"""

import argparse
import contextlib
import importlib
import io
import json
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
RUNS = 15
PRODUCTS = "keep=[Gather;Gemm]"
Feed = dict[str, np.ndarray]

# (row, options of quantize-weights) and (row, arguments for onnxruntime's quantizer).
OURS = (
    ("rtn, products", f"bits=4,method=rtn,{PRODUCTS}"),
    ("mse, products", f"bits=4,method=mse,{PRODUCTS}"),
    ("hqq, products", f"bits=4,method=hqq,{PRODUCTS}"),
    ("rtn symmetric, products", f"bits=4,method=rtn,symmetric=true,{PRODUCTS}"),
    ("mse symmetric, products", f"bits=4,method=mse,symmetric=true,{PRODUCTS}"),
    ("8 bits, products", f"bits=8,method=rtn,symmetric=true,{PRODUCTS}"),
    ("mse, block 16, products", f"bits=4,block=16,method=mse,{PRODUCTS}"),
    ("mse", "bits=4,method=mse"),
    ("mse symmetric", "bits=4,method=mse,symmetric=true"),
    ("8 bits", "bits=8,method=rtn,symmetric=true"),
    ("8 bits, mse", "bits=8,method=mse,symmetric=true"),
    ("8 bits, block 128", "bits=8,method=rtn,symmetric=true,block=128"),
    ("8 bits, standard", "bits=8,method=mse,symmetric=true,form=standard,block=0"),
)
THEIRS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("onnxruntime default", {"algorithm": "default", "bits": 4}),
    ("onnxruntime k_quant", {"algorithm": "k_quant", "bits": 4}),
    ("onnxruntime hqq (float zero points)", {"algorithm": "hqq", "bits": 4}),
    ("onnxruntime default symmetric", {"algorithm": "default", "bits": 4, "symmetric": True}),
    ("onnxruntime 8 bits", {"algorithm": "default", "bits": 8, "symmetric": True}),
)
BLOCK = 32


def assets() -> Path:
    """Return the folder that holds ``models/`` and ``data/``."""
    folder = Path(os.environ.get("GRAPHOPT_ASSETS", ROOT.parent / "shared"))
    if not (folder / "models").is_dir():
        raise SystemExit("no trained networks: set GRAPHOPT_ASSETS to a folder that holds models/")
    return folder


def evaluator() -> ModuleType:
    """Return the assets' ``evaluate.py`` as a module."""
    found: ModuleType = importlib.import_module("quantization").evaluator()
    return found


def tokens(module: ModuleType) -> Iterator[np.ndarray]:
    """Yield the stories of the assets as token ids."""
    module.ARGS = argparse.Namespace(  # type: ignore[attr-defined]
        models=os.fspath(assets() / "models"), data=os.fspath(assets() / "data"), threads=1
    )
    tokenizer = module.Tokens()
    for story in module.stories():
        yield np.array(tokenizer.encode(story)[:256])


def prefill_feeds(module: ModuleType) -> list[Feed]:
    return [{"tokens": ids[None]} for ids in tokens(module)]


def decode_feeds(module: ModuleType) -> list[Feed]:
    """Return steps with a cache of real keys and values, made by the float model."""
    net = session(assets() / "models" / "stories260k_decode.onnx")
    feeds = []
    for ids in tokens(module):
        k = v = np.zeros((5, 1, 4, 0, 8), np.float32)
        for token in ids[:160]:
            feed = {"token": np.array([[token]]), "past_k": k, "past_v": v}
            _, k, v = net.run(None, feed)
            feeds.append(feed)
    return feeds


def bert_feeds(_: ModuleType) -> list[Feed]:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 2000, (4, 1, 64))
    return [{"input_ids": i, "attention_mask": np.ones((1, 64), np.int64)} for i in ids]


def float_file(name: str, folder: Path) -> Path:
    """Write the float model, compiled without quantization; all rows start from it."""
    import graphopt

    path = folder / f"{name}.onnx"
    if name != "bert":
        graphopt.compile(assets() / "models" / f"{name}.onnx").save(path)
        return path
    from models.bert import bert

    sample = bert(layers=4, hidden=256, heads=4, intermediate=1024, vocabulary=2000)
    result = graphopt.compile(
        sample.module, sample.example_inputs, dynamic_shapes=sample.dynamic_shapes
    )
    result.save(path)
    return path


NETWORKS = {
    "stories260k_prefill": prefill_feeds,
    "stories260k_decode": decode_feeds,
    "bert": bert_feeds,
}


def session(path: Path) -> Any:
    import onnxruntime as ort

    ort.set_default_logger_severity(3)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])


def quantize_ours(source: Path, out: Path, options: str) -> None:
    import graphopt

    block = "" if "block=" in options else f"block={BLOCK},"
    text = f"quantize-weights{{{block}{options}}}"
    graphopt.compile(source, passes=["infer-shapes", text], verify=False).save(out)


def quantize_theirs(source: Path, out: Path, arguments: dict[str, Any]) -> None:
    """Quantize the MatMul with onnxruntime's quantizer."""
    from onnxruntime.quantization import matmul_nbits_quantizer as theirs

    algorithm, bits = arguments["algorithm"], arguments["bits"]
    symmetric = arguments.get("symmetric", False)
    kinds = ("MatMul",)
    if algorithm == "default":
        config: Any = theirs.DefaultWeightOnlyQuantConfig(
            block_size=BLOCK, is_symmetric=symmetric, accuracy_level=4, bits=bits
        )
    elif algorithm == "k_quant":
        config = theirs.KQuantWeightOnlyQuantConfig(op_types_to_quantize=kinds)
    else:
        config = theirs.HQQWeightOnlyQuantConfig(block_size=BLOCK, bits=bits)
    # It prints its progress.
    with contextlib.redirect_stdout(io.StringIO()):
        _run_theirs(theirs, source, out, config, symmetric)


def _run_theirs(theirs: Any, source: Path, out: Path, config: Any, symmetric: bool) -> None:
    import onnx

    quantizer = theirs.MatMulNBitsQuantizer(
        onnx.load(source),
        block_size=BLOCK,
        is_symmetric=symmetric,
        accuracy_level=4,
        algo_config=config,
    )
    quantizer.process()
    quantizer.model.save_model_to_file(os.fspath(out), False)


def noise(base: Path, other: Path, feeds: list[Feed]) -> float:
    """Return the decibels of the worst output."""
    from graphopt.numerics.sqnr import sqnr_db, worst

    outputs = []
    for path in (base, other):
        net = session(path)
        names = [output.name for output in net.get_outputs()]
        outputs.append([dict(zip(names, net.run(None, feed), strict=True)) for feed in feeds])
    return worst(sqnr_db(outputs[0], outputs[1]))


def ratio(base: Path, other: Path, feed: Feed) -> float:
    """Return the latency of ``other`` relative to ``base``."""
    sessions = [session(path) for path in (base, other)]
    found = []
    for run in range(RUNS + 2):
        times = []
        for one in sessions:
            started = time.perf_counter()
            one.run(None, feed)
            times.append(time.perf_counter() - started)
        if run >= 2:
            found.append(times[1] / times[0])
    return statistics.median(found)


def perplexity(module: ModuleType, path: Path, name: str, folder: Path) -> float | None:
    if name == "bert":
        return None
    place = folder / "evaluated"
    place.mkdir(exist_ok=True)
    (place / f"{name}.onnx").write_bytes(path.read_bytes())
    module.ARGS = argparse.Namespace(  # type: ignore[attr-defined]
        models=os.fspath(place), data=os.fspath(assets() / "data"), threads=1
    )
    key = next(key for key in module.MODELS if key.startswith(name))
    return float(module.MODELS[key][1]()["perplexity_per_token"])


def measure(name: str, folder: Path, module: ModuleType) -> list[dict[str, Any]]:
    """Return the rows of one network."""
    base = float_file(name, folder)
    feeds = NETWORKS[name](module)
    rows: list[dict[str, Any]] = []
    jobs: list[tuple[str, Any]] = [("float", None), *OURS, *THEIRS]
    for index, (label, how) in enumerate(jobs):
        path = folder / f"{name}-{index}.onnx"
        started = time.perf_counter()
        if how is None:
            path = base
        elif isinstance(how, str):
            quantize_ours(base, path, how)
        else:
            quantize_theirs(base, path, how)
        seconds = time.perf_counter() - started
        rows.append(
            {
                "network": name,
                "row": label,
                "bytes": path.stat().st_size,
                "sqnr_db": noise(base, path, feeds) if how is not None else None,
                "perplexity": perplexity(module, path, name, folder),
                "latency": ratio(base, path, feeds[-1]) if how is not None else 1.0,
                "seconds": seconds,
            }
        )
        print(line(rows[-1]), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    sqnr = "" if row["sqnr_db"] is None else f"{row['sqnr_db']:.2f}"
    perplexed = "" if row["perplexity"] is None else f"{row['perplexity']:.4f}"
    return (
        f"| {row['network']} | {row['row']} | {row['bytes']:,} | {sqnr} | {perplexed} "
        f"| {row['latency']:.2f} | {row['seconds']:.1f} |"
    )


def large(gib: float) -> None:
    """Compile a generated model with external weights; print memory, time and file sizes."""
    models = importlib.import_module("own_memory")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = models.make_model(folder, int(gib * (1 << 30)) // models._LAYER_BYTES)
        idle, _, _ = models.watch(
            [sys.executable, "-c", "import graphopt.compiler, onnx, time; time.sleep(1)"]
        )
        for options in ("bits=4", "bits=4,method=rtn", "bits=4,method=hqq", "bits=8,method=rtn"):
            out = folder / "out.onnx"
            command = [sys.executable, "-m", "graphopt", "compile", str(path), "-o", str(out)]
            command += ["--passes", f"infer-shapes quantize-weights{{{options}}}", "--no-verify"]
            peaks, seconds, status = models.watch(command)
            written = sum(file.stat().st_size for file in folder.glob("out*"))
            print(
                f"{options}: status {status}, {seconds:.1f} s, {written / 1e6:.0f} MB, "
                f"{peaks['compiler'] / 1e6:.0f} MB of anonymous memory, of which the imports "
                f"take {idle['compiler'] / 1e6:.0f}",
                flush=True,
            )
            for file in folder.glob("out*"):
                file.unlink()


FORMS = (
    ("products", ""),
    ("products", "bits=4"),
    ("products", "bits=4,accuracy_level=1"),
    ("products", "bits=8,symmetric=true"),
    ("products", "bits=8,symmetric=true,accuracy_level=1"),
    ("products", "bits=8,symmetric=true,form=standard,block=0"),
    ("products", "bits=4,form=standard"),
    ("transposed", "bits=8,symmetric=true,form=standard,block=0"),
    ("convolutions", ""),
    ("convolutions", "bits=8"),
)


def layers(kind: str) -> tuple[Any, Feed]:
    """Return four layers of 4 million weights, and an input."""
    import onnx

    rng = np.random.default_rng(0)
    shape = (640, 640, 3, 3) if kind == "convolutions" else (2048, 2048)
    feed = {"x": np.ones((1, 640, 8, 8) if kind == "convolutions" else (1, 2048), np.float32)}
    nodes, tensors, source = [], [], "x"
    for index in range(4):
        weight = (rng.standard_normal(shape) / 50).astype(np.float32)
        tensors.append(onnx.numpy_helper.from_array(weight, f"w{index}"))
        operators: dict[str, tuple[str, dict[str, Any]]] = {
            "convolutions": ("Conv", {"pads": [1, 1, 1, 1]}),
            "transposed": ("Gemm", {"transB": 1}),
        }
        operator, more = operators.get(kind, ("MatMul", {}))
        inputs = [source, f"w{index}"]
        node = onnx.helper.make_node(operator, inputs, [f"p{index}"], name=f"n{index}", **more)
        source = f"h{index}"
        nodes += [node, onnx.helper.make_node("Tanh", [f"p{index}"], [source])]
    info = onnx.helper.make_tensor_value_info
    ends = [info(name, 1, feed["x"].shape) for name in ("x", source)]
    graph = onnx.helper.make_graph(nodes, kind, ends[:1], ends[1:], tensors)
    opsets = [onnx.helper.make_opsetid("", 21)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), feed


def runtime() -> None:
    """Print what onnxruntime holds for each form, in a fresh process each."""
    import subprocess

    import graphopt

    print("| layers | options | file MB | held MB after load | after runs | ms | operators |")
    print("|---|---|---:|---:|---:|---:|---|")
    for kind, options in FORMS:
        with tempfile.TemporaryDirectory() as name:
            path, feed_path = Path(name) / "model.onnx", Path(name) / "feed.npz"
            model, feed = layers(kind)
            np.savez(feed_path, x=feed["x"])
            passes = ["infer-shapes"]
            if options:
                passes.append(f"quantize-weights{{method=rtn,{options}}}")
            graphopt.compile(model, passes=passes, verify=False).save(path)
            command = [sys.executable, __file__, "--held", str(path), str(feed_path)]
            answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            size = path.stat().st_size / 1e6
            print(
                f"| {kind} | {options or 'float'} | {size:.1f} | {answer.strip()} "
                f"| {kernels(path)} |",
                flush=True,
            )


def kernels(path: Path) -> str:
    """Return the operators that onnxruntime makes of a model, with their numbers."""
    import collections

    import onnx
    import onnxruntime as ort

    optimized = path.with_name("optimized.onnx")
    options = ort.SessionOptions()
    options.optimized_model_filepath = os.fspath(optimized)
    ort.set_default_logger_severity(3)
    ort.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    counts = collections.Counter(node.op_type for node in onnx.load(optimized).graph.node)
    return ", ".join(f"{name} {n}" for name, n in sorted(counts.items()) if name != "Tanh")


def held(path: Path, feed_path: Path) -> None:
    """Load and run one model; print what this process holds more than before."""
    import onnxruntime  # noqa: F401 - imported before the first look

    watch = importlib.import_module("own_memory")
    with np.load(feed_path) as arrays:
        feed = dict(arrays)
    before = watch._anonymous(os.getpid())
    net = session(path)
    loaded = watch._anonymous(os.getpid()) - before
    times = []
    for _ in range(RUNS):
        started = time.process_time()
        net.run(None, feed)
        times.append(time.process_time() - started)
    after = watch._anonymous(os.getpid()) - before
    print(f"{loaded / 1e6:.0f} | {after / 1e6:.0f} | {statistics.median(times) * 1e3:.1f}")


def main() -> None:
    """Print the table of every network."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", default=list(NETWORKS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--gib", type=float)
    parser.add_argument("--runtime", action="store_true")
    parser.add_argument("--held", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.held:
        held(*options.held)
        return
    logging.disable(logging.CRITICAL)
    warnings.filterwarnings("ignore")
    if options.gib:
        large(options.gib)
        return
    if options.runtime:
        runtime()
        return
    module = evaluator()
    print("| network | row | bytes | SQNR dB | perplexity | latency | seconds |")
    print("|---|---|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as name:
        rows = [row for one in options.only for row in measure(one, Path(name), module)]
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "weight_only.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
