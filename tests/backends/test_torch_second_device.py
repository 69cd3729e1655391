"""Torch files on a second device: planned, predicted, written, loaded and run there.

No GPU is needed: ``second_device.cpp`` is a device of torch with memory of its own whose operators
compute on the CPU, and which refuses tensors of the host as CUDA does. It takes the place of CUDA
in a process of its own, where ``torch.cuda``'s counters are those of this device.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from graphopt.backends.torch_counts import CUDA_BLOCK_BYTES

pytest.importorskip("torch")

pytestmark = [pytest.mark.torch, pytest.mark.slow]
ROOT = Path(__file__).resolve().parent.parent.parent
NAMES = ("bert", "fpn_detector", "llama_decode", "lstm_tagger", "mlp", "mobilenet_v2")
CHILD = """
import json, sys, types, warnings
from pathlib import Path
warnings.simplefilter("ignore")
root, source, folder, *names = sys.argv[1:]
sys.path.insert(0, root)
import torch
from torch.utils.cpp_extension import load

torch.utils.rename_privateuse1_backend("second")
device = load("second_device", [source], build_directory=folder, extra_cflags=["-O0", "-w"])
module = types.ModuleType("torch.second")
module.is_available = lambda: True
module.device_count = lambda: 1
module.current_device = lambda: 0
torch._register_device_module("second", module)
torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
torch.cuda.memory_stats = lambda _: {
    "requested_bytes.all.allocated": device.requested(),
    "requested_bytes.all.current": device.live(),
    "requested_bytes.all.peak": device.peak(),
}
torch.cuda.reset_peak_memory_stats = lambda _: device.reset_peak()
torch.cuda.get_device_name = lambda _: "second"
from graphopt.backends import emit_torchscript, torch_arena_emit, torch_peak

SECOND = torch.device("second:0")
for part in (emit_torchscript, torch_arena_emit):
    part.device_of_target = lambda target: SECOND
for part in (torch_arena_emit, torch_peak):
    part.require_device = lambda *_: None
torch.set_grad_enabled(False)

import graphopt
from graphopt.backends.torch_counts import most_held, requested_bytes
from graphopt.backends.torch_cuda_graph import StaticCall
from models import SMALL, build


def off(found, expected):
    pairs = zip(found, expected, strict=True)
    return max(float((a.cpu() - b).abs().max() / b.abs().max()) for a, b in pairs)


rows = {}
for name in names:
    sample = build(name, **SMALL[name])
    inputs = sample.example_inputs
    result = graphopt.compile(sample.module, inputs, target="gpu")
    expected = sample.module(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    given = [x.to(SECOND) for x in inputs]
    row = rows[name] = {}
    (path,) = result.save(Path(folder) / f"{name}.ts")
    ordinary = torch.jit.load(str(path), map_location=SECOND)
    call = lambda: [ordinary(*given)]
    (found,) = call()
    found = found if isinstance(found, tuple) else (found,)
    row["devices"] = sorted({str(y.device) for y in found})
    row["ordinary"] = off(found, expected)
    del found
    call(), call()
    row["measured"] = most_held(call, SECOND)
    said = result.plan.predictions["torch-cuda"]
    row["predicted"], row["owners"], row["reason"] = said.peak_bytes, len(said.owners), said.reason
    (path,) = result.save(Path(folder) / f"{name}.arena.ts", arena=True)
    files = {"graphopt_arena.json": ""}
    arena = torch.jit.load(str(path), _extra_files=files)
    report = json.loads(files["graphopt_arena.json"])
    row["device"] = [report["device"], report["device_name"], str(arena.arenas.device_mark.device)]
    static = StaticCall(arena, given)
    static.run()
    row["arena"] = off(static.outputs, expected)
    row["listed"] = len(report["not_enforced"])
    row["requests"] = requested_bytes(static.run, SECOND)
    row["bytes"] = [report["arena_bytes"], report["lower_bound_bytes"]]
print(json.dumps(rows))
"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Any:
    if shutil.which("c++") is None or shutil.which("ninja") is None:
        pytest.skip("a C++ compiler and ninja build the device")
    source = Path(__file__).with_name("second_device.cpp")
    folder = tmp_path_factory.mktemp("device")
    command = [sys.executable, "-c", CHILD, str(ROOT), str(source), str(folder), *NAMES]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", NAMES)
def test_an_ordinary_file_runs_where_it_is_loaded(name: str, rows: Any) -> None:
    assert rows[name]["devices"] == ["second:0"]
    assert rows[name]["ordinary"] < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_the_prediction_is_what_the_device_gives_out_in_blocks(name: str, rows: Any) -> None:
    row = rows[name]
    assert row["reason"] == ""
    assert row["predicted"] % CUDA_BLOCK_BYTES == 0
    assert 0 <= row["predicted"] - row["measured"] < row["owners"] * CUDA_BLOCK_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_an_arena_is_planned_on_the_device(name: str, rows: Any) -> None:
    row = rows[name]
    assert row["device"] == ["second", "second", "second:0"]
    assert row["arena"] < 1e-5
    assert row["bytes"][0] >= row["bytes"][1] > 0
    assert row["listed"] == 0
    # Steps of recurrent layers ask this device for a few bytes each, which add up.
    assert row["requests"] == [] or name == "lstm_tagger"
