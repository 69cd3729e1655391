"""What operators hold besides their results, and peaks of calls made of that, against torch."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import graphopt
from graphopt.errors import UnsupportedError
from graphopt.memory.plan import MemoryPlan

pytest.importorskip("torch")

import torch
import torch.nn.functional as F  # noqa: N812

from graphopt.backends import torch_scratch
from graphopt.backends.torch_counts import most_held
from graphopt.backends.torch_peak import predict_call_peak
from graphopt.backends.torch_scratch import (
    Outcome,
    Storages,
    run_operator,
)
from graphopt.backends.torch_tape import Place
from graphopt.backends.torch_trace import torch_quiet

pytestmark = pytest.mark.torch
aten = torch.ops.aten
JIT: Any = torch.jit  # without annotations


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def unknown(storages: Storages, *size: int, dtype: torch.dtype = torch.float32) -> Place:
    like = torch.empty(size, dtype=dtype, device="meta")
    number = storages.open(like.numel() * dtype.itemsize)
    return Place(number, dtype, size, like.stride(), 0)


def traced(function: Callable[..., Any], *samples: torch.Tensor) -> Any:
    class Module(torch.nn.Module):
        def forward(self, *inputs: torch.Tensor) -> Any:
            return function(*inputs)

    with torch.no_grad(), torch_quiet():
        return JIT.trace(Module().eval(), samples, check_trace=False)


def held_by(module: Any, *inputs: torch.Tensor) -> int:
    kept: list[Any] = []
    with torch.no_grad():
        module(*inputs)
        module(*inputs)
        return most_held(lambda: kept.append(module(*inputs)))


def predicted(module: Any, *inputs: torch.Tensor) -> int:
    with torch_quiet():
        return predict_call_peak(module, [(x.dtype, tuple(x.shape)) for x in inputs]).peak_bytes


def test_an_elementwise_operator_holds_its_result() -> None:
    storages = Storages()
    outcome = run_operator(aten.relu.default, (unknown(storages, 64, 100),), storages)
    assert outcome == Outcome(
        Place(1, torch.float32, (64, 100), (100, 1), 0), makes=(1,), most_bytes=25_600
    )
    assert storages.nbytes == [25_600, 25_600]


def test_max_pooling_holds_the_indices_it_throws_away() -> None:
    storages = Storages()
    args = (unknown(storages, 1, 4, 64, 64), [2, 2], [2, 2], [0, 0], [1, 1], False)
    outcome = run_operator(aten.max_pool2d.default, args, storages)
    result = 4 * 32 * 32
    assert [storages.nbytes[n] for n in outcome.makes] == [result * 4]
    assert outcome.most_bytes == result * 4 + result * 8


def test_a_view_makes_nothing_and_lies_where_its_argument_lies() -> None:
    storages = Storages()
    x = unknown(storages, 6, 10)
    part = run_operator(aten.slice.Tensor, (x, 0, 2, 5, 1), storages).result
    turned = run_operator(aten.transpose.int, (part, 0, 1), storages)
    assert turned == Outcome(Place(x.storage, torch.float32, (10, 3), (1, 10), 20), (), 0)
    # What lies transposed is copied where it cannot be a view, and only there.
    copied = run_operator(aten.reshape.default, (turned.result, [30]), storages)
    assert (copied.result.size, copied.most_bytes) == ((30,), 120)
    assert copied.makes == (1,)


def test_an_outcome_is_found_once_and_holds_for_other_storages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs: list[int] = []

    def counted(run: Callable[[], object], device: torch.device) -> int:
        runs.append(most_held(run, device))
        return runs[-1]

    monkeypatch.setattr(torch_scratch, "most_held", counted)
    monkeypatch.setattr(torch_scratch, "_FOUND", {})
    storages = Storages()
    x, y = unknown(storages, 128, 3), unknown(storages, 128, 3)
    for first, second in ((x, y), (y, x)):
        outcome = run_operator(aten.mul.Tensor, (first, second), storages)
        assert outcome.most_bytes == 128 * 3 * 4
    assert len(runs) == 1
    run_operator(aten.mul.Tensor, (x, x), storages)  # one storage twice is another call
    turned = replace(y, size=(3, 128), stride=(1, 3))
    run_operator(aten.relu.default, (turned,), storages)
    assert len(runs) == 3
    assert storages.nbytes == [1536] * 6


def test_values_that_depend_on_no_input_are_computed() -> None:
    storages = Storages()
    size = run_operator(torch.ops.prim.NumToTensor.Scalar, (12,), storages).result
    down = aten.floor_divide.default
    quotient = run_operator(down, (size, storages.held(torch.tensor(5))), storages).result
    assert run_operator(aten.Int.Tensor, (quotient,), storages).result == 2


@pytest.mark.parametrize(
    "op", [aten.Int.Tensor, aten.Bool.Tensor, aten.nonzero.default, aten.ScalarImplicit.default]
)
def test_what_values_decide_is_refused(op: Any) -> None:
    storages = Storages()
    with pytest.raises(UnsupportedError) as caught:
        run_operator(op, (unknown(storages, 1, dtype=torch.int64),), storages)
    assert caught.value.code == "torch-values-decide"


def test_a_mask_decides_and_indices_do_not() -> None:
    storages = Storages()
    x = unknown(storages, 9, 5)
    index = unknown(storages, 4, dtype=torch.int64)
    assert run_operator(aten.index.Tensor, (x, [index]), storages).result.size == (4, 5)
    with pytest.raises(UnsupportedError) as caught:
        run_operator(aten.index.Tensor, (x, [unknown(storages, 9, dtype=torch.bool)]), storages)
    assert caught.value.code == "torch-values-decide"


def test_an_operator_that_refuses_the_sizes_is_an_error() -> None:
    storages = Storages()
    with pytest.raises(UnsupportedError) as caught:
        run_operator(aten.mm.default, (unknown(storages, 3, 4), unknown(storages, 3, 4)), storages)
    assert caught.value.code == "torch-probe-refused"


def _convolutions(x: Any) -> Any:
    for count in (8, 16, 16):
        weight = torch.ones(count, x.shape[1], 3, 3)
        x = F.relu(F.conv2d(x, weight, padding=1))
    return x + F.conv2d(x, torch.ones(16, 1, 5, 5), padding=2, groups=16)


def _attention(x: Any) -> Any:
    y = F.layer_norm(x, [64])
    scores = torch.softmax(y @ y.transpose(1, 2) / 8.0, -1)
    return torch.cat([x + scores @ y, F.gelu(y).permute(0, 2, 1).reshape(y.shape)], -1)


def _pooled(x: Any) -> Any:
    y = F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2)
    return F.interpolate(y, scale_factor=2.0, mode="bilinear"), y.flatten(1).mean(1)


@pytest.mark.parametrize(
    ("function", "size"),
    [(_convolutions, (2, 4, 40, 40)), (_attention, (3, 50, 64)), (_pooled, (1, 8, 62, 62))],
)
def test_a_prediction_is_what_torch_holds(function: Any, size: tuple[int, ...]) -> None:
    x = torch.rand(size)
    module = traced(function, x)
    measured = held_by(module, x)
    assert abs(measured - predicted(module, x)) <= 64  # numbers as tensors of rank 0
    # Inputs of another batch: the graph is the same, the figures are not.
    larger = torch.rand(size[0] + 3, *size[1:])
    assert held_by(module, larger) > measured * 1.5
    assert abs(held_by(module, larger) - predicted(module, larger)) <= 64


def test_a_recurrent_layer_is_what_torch_holds() -> None:
    layer = torch.nn.LSTM(24, 32, num_layers=2, bidirectional=True).eval()
    x = torch.rand(20, 3, 24)
    with torch.no_grad(), torch_quiet():
        traced_layer = JIT.trace(layer, (x,), check_trace=False)
    assert abs(held_by(traced_layer, x) - predicted(traced_layer, x)) <= 1024


def test_equal_blocks_are_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []

    def counted(run: Callable[[], object], device: torch.device) -> int:
        runs.append(most_held(run, device))
        return runs[-1]

    monkeypatch.setattr(torch_scratch, "most_held", counted)
    monkeypatch.setattr(torch_scratch, "_FOUND", {})
    weights = [torch.rand(8, 8, 3, 3) for _ in range(12)]

    def deep(x: Any) -> Any:
        for weight in weights:
            x = F.relu(F.conv2d(x, weight, padding=1))
        return x

    x = torch.rand(1, 8, 33, 33)
    module = traced(deep, x)
    assert predicted(module, x) == held_by(module, x)
    # One convolution and one relu, each probed once for twelve blocks.
    assert len(runs) == 2


class _Chooses(torch.nn.Module):
    def forward(self, x: torch.Tensor, flag: torch.Tensor) -> torch.Tensor:
        if bool(flag):
            x = torch.cat([x, x, x], 0)
        return x.sum(0)


class _Raises(torch.nn.Module):
    def forward(self, x: torch.Tensor, flag: torch.Tensor) -> torch.Tensor:
        if bool(flag):
            raise RuntimeError("not here")
        return torch.relu(x)


def test_the_larger_of_two_blocks_counts() -> None:
    with torch_quiet():
        module = JIT.script(_Chooses().eval())
    x, yes, no = torch.rand(30, 400), torch.tensor(True), torch.tensor(False)
    both = held_by(module, x, yes), held_by(module, x, no)
    assert both[0] > 10 * both[1]
    assert predicted(module, x, yes) == both[0]


def test_a_block_that_raises_is_no_call() -> None:
    with torch_quiet():
        module = JIT.script(_Raises().eval())
    x, no = torch.rand(30, 400), torch.tensor(False)
    assert predicted(module, x, no) == held_by(module, x, no) == 48_000


FRESH = """
import sys, warnings
sys.modules["graphopt"] = None
warnings.simplefilter("ignore")
import numpy as np, torch
torch.set_num_threads(1)
module = torch.jit.load(sys.argv[1])
data = np.load(sys.argv[2])
inputs = [torch.from_numpy(data[k]) for k in sorted(data.files)]
p = torch._C._profiler
options = (False, True, False, False, False, p._ExperimentalConfig())
with torch.no_grad():
    module(*inputs), module(*inputs)
    torch.autograd._enable_profiler_legacy(p.ProfilerConfig(p.ProfilerState.CPU, *options))
    held = module(*inputs)
    events = [e for t in torch.autograd._disable_profiler_legacy() for e in t]
live = most = 0
for event in events:
    if event.kind() == "memory_alloc":
        live += event.cpu_memory_usage()
        most = max(most, live)
print(most)
"""


CONVOLUTION = """
<ir_version: 10, opset_import: ["": 20]>
agraph (float[N, 3, 24, 24] x, float[8, 3, 3, 3] w) => (float[N, 8, 12, 12] y) {
    c = Conv <pads = [1, 1, 1, 1]> (x, w)
    r = Relu (c)
    y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
}
"""
NONZERO = """
<ir_version: 10, opset_import: ["": 20]>
agraph (float[20] x) => (float[n] y) {
    i = NonZero(x)
    t = Transpose(i)
    y = GatherND(x, t)
}
"""


def compiled_text(text: str, folder: Path, **options: Any) -> graphopt.CompileResult:
    path = folder / "m.onnx"
    ir.save(ir.from_onnx_text(text), path)
    return graphopt.compile(path, verify=False, **options)


@pytest.mark.parametrize("batch", [2, 7])
def test_the_archive_says_what_a_fresh_process_measures(batch: int, tmp_path: Path) -> None:
    result = compiled_text(CONVOLUTION, tmp_path, bindings={"N": batch})
    path = tmp_path / "m.ts"
    result.save(path)
    files = {"graphopt_plan.json": ""}
    JIT.load(str(path), _extra_files=files)
    plan = MemoryPlan.from_json(files["graphopt_plan.json"])
    assert plan == result.plan
    said = plan.predictions["torchscript"]
    assert said.reason == ""
    assert said.options == {"threads": 1}
    assert said.version == torch.__version__
    assert said.peak_bytes is not None
    assert said.live_bytes is not None
    assert said.peak_bytes == said.live_bytes + (said.scratch_bytes or 0)
    assert said.peak_bytes == sum(owner.bytes for owner in said.owners)
    assert said.liveness_bytes is not None
    assert said.peak_bytes > 1.2 * said.liveness_bytes, "nothing but scratch is tested here"
    rng = np.random.default_rng(0)
    shapes = [(batch, 3, 24, 24), (8, 3, 3, 3)]
    np.savez(tmp_path / "feed.npz", *(rng.random(s, dtype=np.float32) for s in shapes))
    command = [sys.executable, "-I", "-c", FRESH, str(path), str(tmp_path / "feed.npz")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert abs(int(done.stdout) / said.peak_bytes - 1) <= 0.05


def test_a_model_whose_values_decide_is_saved_and_says_so(tmp_path: Path) -> None:
    result = compiled_text(NONZERO, tmp_path)
    result.save(tmp_path / "m.ts")
    said = result.plan.predictions["torchscript"]
    assert said.peak_bytes is None
    assert "depends on values of the inputs" in said.reason
    assert json.loads(result.plan.to_json())["predictions"]["torchscript"]["peak_bytes"] is None
    assert MemoryPlan.from_json(result.plan.to_json()) == result.plan
