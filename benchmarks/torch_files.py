"""Files for torch, each read and run in a fresh process that cannot import graphopt.

    python benchmarks/torch_files.py [--only NAME ...] [--int8]

Every builder of ``models/`` in its small size and every trained network of the assets is saved as
``.ts`` and ``.pt2``. A process with torch alone runs each file on inputs from an ``.npz``; its
outputs are compared with those of the original in onnxruntime, within 1e-4 of their scale; for a
network in half precision within four units of float16, because onnxruntime computes it in float32.
A cell is the largest error, the code of a typed refusal, or FAILED. What is further from
onnxruntime is held to the original computed in float64, within 1e-4 as well: both round, each in
its own order.

``--int8``: the networks with calibration data, a MobileNetV2 and an encoder, quantized. Beside them
onnxruntime computes the same quantized ONNX with its optimizations off, which is the same
arithmetic: float32 between rounding to 8 bits. A sum that lies on the boundary of two integers may
round either way, and what follows multiplies that. So what is not within 1e-4 is held to this: the
operators from one rounding to the next, fed the integers that onnxruntime has there, give its
integers again, but for 1 in 10,000 by one step. The cell says for how many, and by how much. A
product with weights in blocks (``MatMulNBits`` that rounds its other factor inside the kernel, as
torch does not) starts from onnxruntime's values, too, and is itself held to 28 dB of them. The
third column is the error of onnxruntime with its optimizations on, for comparison.
"""

import argparse
import importlib.util
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

LIMIT = 1e-4
HALF_LIMIT = 4 * 2.0**-10
DIFFERING = 1e-4
SECONDS = 300
CALIBRATED = ("mobilenet_v2", "bert")
CALIBRATED_TRAINED = (
    "mnist_cntk", "resnet8_cifar10_nhwc", "resnet20_cifar10", "dscnn_kws",
    "squeezenet1_1_imagenet", "lprnet_plate", "ultraface_rfb320", "yolox_nano_416", "espcn_x3",
    "sinet_portrait", "deeplabv3_mnv2_portrait",
)  # fmt: skip
# Its branches take different lengths, which torch.export wants to be one; so once at one length.
FIXED = "silero_vad@16000"
# The child gets: file, inputs, where outputs go.
CHILD = """
import sys, warnings
sys.modules["graphopt"] = None
warnings.simplefilter("ignore")
import numpy as np, torch
path, given, out = sys.argv[1:]
torch.set_num_threads(1)
torch.set_grad_enabled(False)
arrays = np.load(given)
inputs = [torch.from_numpy(arrays[str(i)]) for i in range(len(arrays.files))]
pt2 = path.endswith(".pt2")
module = torch.export.load(path).module() if pt2 else torch.jit.load(path)
found = module(*inputs)
found = found if isinstance(found, (tuple, list)) else (found,)
np.savez(out, **{str(i): t.contiguous().numpy() for i, t in enumerate(found)})
"""


Feed = dict[str, Any]


@dataclass
class Case:
    """A result with samples of its inputs and the outputs it should give.

    Attributes:
        result: What is saved.
        feeds: Samples.
        expected: Outputs of onnxruntime by sample.
        limit: Accepted error as a part of the scale of an output.
        beside: What else a row says.
        judge: Takes the outputs of the first sample that are further away than the limit; says
            how far they are from something exact, and whether that is accepted.
    """

    result: Any
    feeds: list[Feed]
    expected: list[list[Any]]
    limit: float = LIMIT
    beside: str = ""
    judge: Callable[[list[Any]], tuple[str, bool]] | None = None


def script(name: str) -> ModuleType:
    """Return the benchmark ``name``, which lies beside this file."""
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def session(path: Path, *, optimize: bool = True) -> Any:
    """Return a quiet session of onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def from_builder(name: str) -> Case:
    """Return the case of a builder; the original is the module as exported."""
    import graphopt
    from graphopt.numerics.verify import user_feeds
    from models import SMALL, build

    sample = build(name, **SMALL[name])
    options: dict[str, Any] = {"dynamic_shapes": sample.dynamic_shapes, "verify": False}
    original = graphopt.compile(sample.module, sample.example_inputs, passes=(), **options)
    result = graphopt.compile(sample.module, sample.example_inputs, **options)
    (feed, *_) = user_feeds(result.program, sample.example_inputs)
    found = original.run(feed)
    return Case(result, [dict(feed)], [[found[v.name or ""] for v in result.program.graph.outputs]])


def speech(rate: int) -> Feed:
    """Return a sample of a rate with the length that the network wants for it."""
    rng = np.random.default_rng(rate)
    return {
        "input": rng.standard_normal((1, rate * 36 // 1000), np.float32) * 0.1,
        "state": rng.standard_normal((2, 1, 128), np.float32) * 0.1,
        "sr": np.array(rate, np.int64),
    }


def from_file(path: Path, dims: dict[str, int], *, fixed: bool = False) -> Case:
    """Return the case of a file, on a calibration sample where there is one.

    Args:
        path: The file.
        dims: Sizes of its dimensions.
        fixed: Whether the result takes these sizes only.
    """
    import graphopt
    from graphopt.frontends.onnx_loader import load_onnx
    from graphopt.numerics.feeds import make_feed
    from graphopt.passes import DEFAULT_PIPELINE

    splits = script("int8_splits")
    given = None
    if path.stem == "silero_vad":
        # A branch for each rate, which takes another length.
        given = [speech(16000)] if fixed else [speech(16000), speech(8000)]
        feeds = given
    elif path.stem in CALIBRATED_TRAINED:
        feeds = [next(splits.SPLITS[path.stem]())]
    elif path.stem == "ppocr_det_v1_1":
        # On noise all its outputs are zero.
        photo = next(splits.photos(dims["image_3"], dims["image_2"], -2.0, 1 / 57))
        feeds = [{"image": photo.astype(np.float32)}]
    else:
        # The original says what its inputs index; some readers are gone from the result.
        feeds = [dict(make_feed(load_onnx(path), dims, 0))]
    options: dict[str, Any] = {"bindings": dims}
    if fixed:
        sizes = ";".join(f"{name}={size}" for name, size in dims.items())
        options = {"passes": [f"fix-dimensions{{sizes=[{sizes}]}}", *DEFAULT_PIPELINE]}
    result = graphopt.compile(path, given, verify=False, **options)
    names = [v.name for v in result.program.graph.outputs]
    original = session(path)
    expected = [original.run(names, feed) for feed in feeds]
    half = any(array.dtype == np.float16 for array in expected[0])
    judge = None if half else lambda found: in_double(path, feeds[0], found)
    return Case(result, feeds, expected, HALF_LIMIT if half else LIMIT, judge=judge)


def in_double(path: Path, feed: Feed, found: list[Any]) -> tuple[str, bool]:
    """Compare outputs with the original computed in float64."""
    import torch

    from graphopt.backends.torch_lowering import NamingInterpreter, lower_to_torch
    from graphopt.backends.torch_trace import tensors_of
    from graphopt.frontends.onnx_loader import load_onnx

    module = lower_to_torch(load_onnx(path)).double()
    with torch.no_grad():
        inputs = [x.double() if x.is_floating_point() else x for x in tensors_of(feed, list(feed))]
        exact = [x.numpy() for x in NamingInterpreter(module).run(*inputs)]
    error = error_of(exact, found)
    return f"{error:.1e} of float64", error <= LIMIT


def quantized(name: str, folder: Path) -> Case:
    """Return the case of a network in 8 bits."""
    import graphopt

    splits = script("int8_splits")
    path = splits.assets() / "models" / f"{name}.onnx"
    if name in CALIBRATED:
        path = folder / f"{name}.onnx"
        feeds = script("int8_built").built(name, path)
    else:
        feeds = list(splits.SPLITS[name]())
    result = graphopt.compile(path, precision="int8", calibration_data=feeds, verify=False)
    file = folder / f"{name}.int8.onnx"
    result.save(file)
    names = [v.name for v in result.program.graph.outputs]
    expected = session(file, optimize=False).run(names, feeds[0])
    beside = f"{error_of(expected, session(file).run(names, feeds[0])):.1e}"
    return Case(
        result,
        feeds[:1],
        [expected],
        beside=beside,
        judge=lambda _: steps(result, file, feeds[0]),
    )


def steps(result: Any, file: Path, feed: Feed) -> tuple[str, bool]:
    """Compare the integers that every part makes of those of onnxruntime with its own."""
    import onnx
    import torch

    from graphopt.backends.torch_lowering import NamingInterpreter, lower_to_torch
    from graphopt.backends.torch_trace import tensors_of

    model = onnx.load(file)
    # Products in blocks round inside their kernel.
    rounded = [n.output[0] for n in model.graph.node if n.op_type == "MatMulNBits"]
    names = [n.output[0] for n in model.graph.node if n.op_type == "QuantizeLinear"] + rounded
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    watched = file.with_suffix(".watched.onnx")
    onnx.save(model, watched)
    expected = dict(zip(names, session(watched, optimize=False).run(names, feed), strict=True))
    found: dict[str, Any] = {}

    class Watching(NamingInterpreter):
        def run_node(self, n: Any) -> Any:
            made = super().run_node(n)
            if n.meta.get("onnx_value") in expected:
                found[n.meta["onnx_value"]] = made.numpy()
                # What follows starts from the integers of onnxruntime.
                return torch.from_numpy(expected[n.meta["onnx_value"]])
            return made

    with torch.no_grad():
        inputs = [v.name or "" for v in result.program.graph.inputs]
        Watching(lower_to_torch(result.program)).run(*tensors_of(feed, inputs))
    integers = [n for n in sorted(found) if n not in rounded]
    apart = [np.abs(expected[n].astype(int) - found[n].astype(int)) for n in integers]
    differing, number = sum(int((d > 0).sum()) for d in apart), sum(d.size for d in apart)
    most = max((int(d.max()) for d in apart if d.size), default=0)
    text = f"{differing} in {number / 1e6:.1f}M by {most}"
    accepted = most <= 1 and differing <= DIFFERING * number and found.keys() == expected.keys()
    if rounded and accepted:
        from graphopt.numerics.sqnr import DEFAULT_SQNR_DB, sqnr_db, worst

        wanted, got = ([{n: side[n] for n in rounded}] for side in (expected, found))
        decibels = worst(sqnr_db(wanted, got))
        text += f", products {decibels:.0f} dB"
        accepted = decibels >= DEFAULT_SQNR_DB
    return text, accepted


def child(file: Path, result: Any, feed: dict[str, Any]) -> list[Any]:
    """Run a file in a process of its own; return the outputs."""
    given, out = file.with_suffix(".in.npz"), file.with_suffix(".out.npz")
    names = [v.name or "" for v in result.program.graph.inputs]
    np.savez(given, **{str(i): feed[name] for i, name in enumerate(names)})
    command = [sys.executable, "-I", "-c", CHILD, str(file), str(given), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["died"])[-1])
    with np.load(out) as arrays:
        return [arrays[str(i)] for i in range(len(arrays.files))]


def error_of(expected: list[Any], found: list[Any]) -> float:
    """Return the largest difference as a part of the largest value of its output."""
    worst = 0.0
    for a, b in zip(expected, found, strict=True):
        if a.shape != b.shape:
            return float("inf")
        wanted, got = a.astype(np.float64), b.astype(np.float64)
        if wanted.size:
            scale = float(np.abs(wanted).max())
            error = float(np.abs(wanted - got).max()) / (scale or 1.0)
            worst = max(worst, error) if error == error else float("inf")
    return worst


def cell(case: Case, file: Path) -> tuple[str, bool]:
    """Save, run and compare one file; return the text of its cell and whether it is a failure."""
    from graphopt.errors import GraphoptError

    try:
        case.result.save(file)
    except GraphoptError as refusal:
        return refusal.code, False
    try:
        found = [child(file, case.result, feed) for feed in case.feeds]
        error = max(map(error_of, case.expected, found))
    except (RuntimeError, ValueError, subprocess.TimeoutExpired) as problem:
        return f"FAILED: {str(problem)[:90]}", True
    if error <= case.limit:
        return f"{error:.1e}", False
    if case.judge is not None:
        text, accepted = case.judge(found[0])
        return f"{'' if accepted else 'FAILED: '}{error:.1e} ({text})", not accepted
    return f"FAILED: error {error:.1e}", True


def case_of(name: str, folder: Path, *, int8: bool) -> Case:
    """Return the case of a name."""
    from models import REGISTRY

    if int8:
        return quantized(name, folder)
    if name in REGISTRY:
        return from_builder(name)
    trained = script("trained_networks")
    stem, _, fixed = name.partition("@")
    path = trained.assets() / "models" / f"{stem}.onnx"
    return from_file(path, trained.dims_for(path), fixed=bool(fixed))


def all_names(*, int8: bool) -> list[str]:
    """Return the names of all cases."""
    from models import REGISTRY

    if int8:
        return [*CALIBRATED_TRAINED, *CALIBRATED]
    folder = script("trained_networks").assets() / "models"
    return [*REGISTRY, *sorted(path.stem for path in folder.glob("*.onnx")), FIXED]


def main() -> None:
    """Print the table; exit 1 when a file fails (a typed refusal is none)."""
    parser = argparse.ArgumentParser(description="Files for torch without graphopt")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--int8", action="store_true", help="the same in 8 bits")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    width = 36 if options.int8 else 30
    heads = ("ts", "pt2", "onnxruntime" if options.int8 else "")
    print(f"{'network':26}" + "".join(f"{head:>{width}}" for head in heads), flush=True)
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only or all_names(int8=options.int8):
            cells = []
            try:
                case = case_of(name, Path(folder), int8=options.int8)
                for suffix in ("ts", "pt2"):
                    path = Path(folder) / f"{name}.{suffix}"
                    text, failed = cell(case, path)
                    failures += failed
                    cells.append(text)
                    path.unlink(missing_ok=True)
                cells.append(case.beside)
            except Exception as problem:
                failures += 1
                cells.append(f"FAILED: {type(problem).__name__}: {str(problem)[:150]}")
            print(f"{name:26}" + "".join(f"{text:>{width}}" for text in cells), flush=True)
    if failures:
        raise SystemExit(f"{failures} failures")


if __name__ == "__main__":
    main()
