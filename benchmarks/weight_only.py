"""Weights in 4 and 8 bits: graphopt beside onnxruntime's own quantizer, same bits, same blocks.

For two trained language models (perplexity by the assets' ``evaluate.py``) and a BERT-like encoder
with seeded weights: file size, signal to quantization noise of the outputs against the float model,
perplexity, latency relative to float (one thread, median of the ratios of interleaved runs).
``products`` rows quantize what onnxruntime's quantizer does by default, the MatMul; the others all
that the pass finds, the embedding included. All rows of a network start from the same float file.

``gptq`` rows are rounded on 16 samples that nothing is evaluated on: text that the float language
model writes itself, from a seed (``own text``), or the first lines of scenes of Shakespeare, which
it was not trained on (``other text``); seeded tokens for the encoder. A sample of the model that
decodes is every step of a text.

    python benchmarks/weight_only.py [--only NAME ...] [--out DIR]
    python benchmarks/weight_only.py --gib 1      # memory and time of a large compile instead
    python benchmarks/weight_only.py --runtime    # what each form costs onnxruntime in memory
"""

import argparse
import contextlib
import functools
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
from collections.abc import Callable, Iterator
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
# Rounded on samples: (row, options of quantize-weights, samples).
ON_SAMPLES = (
    ("gptq, products, own text", f"bits=4,method=mse,{PRODUCTS}", "own"),
    ("gptq, products, other text", f"bits=4,method=mse,{PRODUCTS}", "other"),
    ("gptq symmetric, products, own text", f"bits=4,method=mse,symmetric=true,{PRODUCTS}", "own"),
    ("gptq, own text", "bits=4,method=mse", "own"),
    ("gptq, other text", "bits=4,method=mse", "other"),
    ("8 bits gptq, own text", "bits=8,method=rtn,symmetric=true", "own"),
)
THEIRS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("onnxruntime default", {"algorithm": "default", "bits": 4}),
    ("onnxruntime k_quant", {"algorithm": "k_quant", "bits": 4}),
    ("onnxruntime hqq (float zero points)", {"algorithm": "hqq", "bits": 4}),
    ("onnxruntime default symmetric", {"algorithm": "default", "bits": 4, "symmetric": True}),
    ("onnxruntime gptq, own text", {"algorithm": "gptq", "bits": 4, "samples": "own"}),
    (
        "onnxruntime gptq ordered, own text",
        {"algorithm": "gptq", "bits": 4, "samples": "own", "actorder": True},
    ),
    ("onnxruntime 8 bits", {"algorithm": "default", "bits": 8, "symmetric": True}),
)
TEXTS, LENGTH, TEMPERATURE = 16, 200, 0.8
BLOCK = 32


def assets() -> Path:
    """Return the folder that holds ``models/`` and ``data/``."""
    folder = Path(os.environ.get("GRAPHOPT_ASSETS", ROOT.parent / "shared"))
    if not (folder / "models").is_dir():
        raise SystemExit("no trained networks: set GRAPHOPT_ASSETS to a folder that holds models/")
    return folder


def evaluator() -> ModuleType:
    """Return the assets' ``evaluate.py`` as a module."""
    found: ModuleType = importlib.import_module("int8_trained").evaluator()
    return found


def tokenizer(module: ModuleType) -> Any:
    """Return the tokenizer of the language models."""
    module.ARGS = argparse.Namespace(  # type: ignore[attr-defined]
        models=os.fspath(assets() / "models"), data=os.fspath(assets() / "data"), threads=1
    )
    return module.Tokens()


def tokens(module: ModuleType) -> Iterator[np.ndarray]:
    """Yield the stories of the assets as token ids."""
    encode = tokenizer(module).encode
    for story in module.stories():
        yield np.array(encode(story)[:256])


@functools.cache
def own_texts() -> list[np.ndarray]:
    """Return texts that the float language model writes, drawn from a seed."""
    net = session(assets() / "models" / "stories260k_prefill.onnx")
    rng = np.random.default_rng(0)
    texts = []
    for _ in range(TEXTS):
        ids = [1]
        while len(ids) < LENGTH:
            logits = net.run(None, {"tokens": np.array([ids])})[0][0, -1].astype(np.float64)
            odds = np.exp((logits - logits.max()) / TEMPERATURE)
            ids.append(int(rng.choice(len(odds), p=odds / odds.sum())))
        texts.append(np.array(ids))
    return texts


def other_texts(module: ModuleType) -> list[np.ndarray]:
    """Return pieces of a text that the language model was not trained on."""
    text = (assets() / "data" / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    encode = tokenizer(module).encode
    pieces = [text[start : start + 3 * LENGTH] for start in range(0, TEXTS * 3000, 3000)]
    return [np.array(encode(piece)[:LENGTH]) for piece in pieces]


def samples_for(name: str, kind: str, module: ModuleType) -> list[Feed]:
    """Return the samples that weights of a network are rounded on."""
    if name == "bert":
        return bert_feeds(module, seed=1 if kind == "own" else 2, count=TEXTS)
    texts = own_texts() if kind == "own" else other_texts(module)
    if name == "stories260k_prefill":
        return [{"tokens": ids[None]} for ids in texts]
    return decode_steps([ids[:LENGTH] for ids in texts])


def prefill_feeds(module: ModuleType) -> list[Feed]:
    return [{"tokens": ids[None]} for ids in tokens(module)]


def decode_feeds(module: ModuleType) -> list[Feed]:
    """Return steps through the stories."""
    return decode_steps([ids[:160] for ids in tokens(module)])


def decode_steps(texts: list[np.ndarray]) -> list[Feed]:
    """Return steps with a cache of real keys and values, made by the float model."""
    net = session(assets() / "models" / "stories260k_decode.onnx")
    feeds = []
    for ids in texts:
        k = v = np.zeros((5, 1, 4, 0, 8), np.float32)
        for token in ids:
            feed = {"token": np.array([[token]]), "past_k": k, "past_v": v}
            _, k, v = net.run(None, feed)
            feeds.append(feed)
    return feeds


def bert_feeds(_: ModuleType, *, seed: int = 0, count: int = 4) -> list[Feed]:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 2000, (count, 1, 64))
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


NETWORKS: dict[str, Callable[[ModuleType], list[Feed]]] = {
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


def quantize_on_samples(source: Path, out: Path, options: str, samples: list[Feed]) -> None:
    """Quantize with weights that are rounded on samples."""
    from graphopt.backends.emit_onnx import emit_onnx
    from graphopt.frontends.onnx_loader import load_onnx
    from graphopt.numerics.hessians import WeightRounder
    from graphopt.pipeline.pipeline import PassPipeline, build_passes

    program = load_onnx(source)
    text = f"quantize-weights{{block={BLOCK},{options},reconstruct=true}}"
    with WeightRounder(program, samples) as rounder:
        PassPipeline(rounder.passes(build_passes(["infer-shapes", text], (), ()))).run(program)
        emit_onnx(program, out)


def quantize_theirs(
    source: Path, out: Path, arguments: dict[str, Any], samples: list[Feed]
) -> None:
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
    elif algorithm == "gptq":
        config = theirs.GPTQWeightOnlyQuantConfig(
            _reader(samples), actorder=arguments.get("actorder", False), op_types_to_quantize=kinds
        )
    else:
        config = theirs.HQQWeightOnlyQuantConfig(block_size=BLOCK, bits=bits)
    # It prints its progress.
    with contextlib.redirect_stdout(io.StringIO()):
        _run_theirs(theirs, source, out, config, symmetric)


def _reader(samples: list[Feed]) -> Any:
    """Return the samples in the form that onnxruntime's quantizer reads."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = iter(samples)

        def get_next(self) -> Feed | None:
            return next(self.rest, None)

    return Reader()


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
    jobs: list[tuple[Any, ...]] = [("float", None), *OURS, *ON_SAMPLES, *THEIRS]
    for index, (label, how, *kind) in enumerate(jobs):
        path = folder / f"{name}-{index}.onnx"
        if isinstance(how, dict) and "samples" in how:
            kind = [how["samples"]]
        samples = samples_for(name, kind[0], module) if kind else []
        started = time.perf_counter()
        if how is None:
            path = base
        elif isinstance(how, dict):
            quantize_theirs(base, path, how, samples)
        elif samples:
            quantize_on_samples(base, path, how, samples)
        else:
            quantize_ours(base, path, how)
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
        jobs = ["bits=4", "bits=4,method=rtn", "bits=4,method=hqq", "bits=8,method=rtn"]
        for options in [*jobs, "4 samples", "64 samples"]:
            out = folder / "out.onnx"
            command = [sys.executable, "-m", "graphopt", "compile", str(path), "-o", str(out)]
            command += ["--no-verify", "--passes"]
            if options.endswith("samples"):
                samples = large_samples(folder / options, int(options.split()[0]))
                command += ["infer-shapes", "-p", "int4-weights", "--calib", str(samples)]
            else:
                command += [f"infer-shapes quantize-weights{{{options}}}"]
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


def large_samples(folder: Path, count: int) -> Path:
    """Write samples of the generated model to a new folder."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    side = importlib.import_module("own_memory")._SIDE
    for number in range(count):
        x = rng.standard_normal((1, side)).astype(np.float32)
        np.savez(folder / f"{number}.npz", x=x)
    return folder


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
