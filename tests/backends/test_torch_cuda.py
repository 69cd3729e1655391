"""Targets that are a GPU: what is refused without one, and what holds on one.

Tests that need a GPU skip elsewhere, with a reason.
"""

import json
from pathlib import Path
from typing import Any

import pytest

import graphopt
from graphopt.errors import OptionError, UnsupportedError
from graphopt.memory.call_peak import CallStep, CallStorage, call_peak

pytest.importorskip("torch")

import torch

from graphopt.backends.torch_arena import CUDA_ALIGNMENT, plan_arena
from graphopt.backends.torch_counts import CUDA_BLOCK_BYTES, block_bytes
from graphopt.backends.torch_cuda_graph import CudaGraph, StaticCall, cuda_graph
from graphopt.backends.torch_device import (
    CPU,
    device_of_target,
    exact_float32,
    identity_of,
    name_of,
    require_device,
)
from graphopt.backends.torch_scratch import Storages, run_operator
from graphopt.backends.torch_tape import Call, Place, Storage, Tape
from graphopt.targets import resolve_target
from models import SMALL, build

pytestmark = pytest.mark.torch
ATEN: Any = torch.ops.aten
JIT: Any = torch.jit
HAS_CUDA = torch.cuda.is_available()
needs_cuda = pytest.mark.skipif(not HAS_CUDA, reason="no GPU")
without_cuda = pytest.mark.skipif(HAS_CUDA, reason="there is a GPU")


def compiled(name: str, target: str, **arguments: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return the result for the sizes of the sample, and the sample."""
    sample = build(name, **(arguments or SMALL[name]))
    result = graphopt.compile(sample.module, sample.example_inputs, target=target, verify=False)
    return result, sample.example_inputs


def test_the_target_says_the_device() -> None:
    kinds = {
        name: device_of_target(resolve_target(name).model_dump(mode="json")).type
        for name in ("cpu", "gpu", "nvidia-h200", "jetson-orin-nano", "stm32h743")
    }
    assert kinds == {
        "cpu": "cpu",
        "gpu": "cuda",
        "nvidia-h200": "cuda",
        "jetson-orin-nano": "cuda",
        "stm32h743": "cpu",
    }


@without_cuda
def test_an_arena_for_a_gpu_is_planned_on_one(tmp_path: Path) -> None:
    result, _ = compiled("mlp", "gpu")
    with pytest.raises(UnsupportedError) as caught:
        result.save(tmp_path / "m.ts", arena=True)
    assert caught.value.code == "cuda-missing"
    assert "target 'nvidia-l4'" in caught.value.message
    assert list(tmp_path.iterdir()) == []


@without_cuda
def test_without_a_gpu_the_prediction_says_why(tmp_path: Path) -> None:
    result, _ = compiled("mlp", "gpu")
    files = {"graphopt_plan.json": ""}
    (path,) = result.save(tmp_path / "m.ts")
    JIT.load(str(path), _extra_files=files)
    said = json.loads(files["graphopt_plan.json"])["predictions"]
    assert sorted(said) == ["torch-cuda", "torchscript"]
    assert said["torch-cuda"]["peak_bytes"] is None
    assert "sees none" in said["torch-cuda"]["reason"]
    assert said["torch-cuda"]["options"] == {"block": 512}
    assert said["torchscript"]["peak_bytes"] > 0
    assert result.plan.predictions["torch-cuda"].reason == said["torch-cuda"]["reason"]


def test_a_file_for_the_cpu_predicts_the_cpu_only(tmp_path: Path) -> None:
    result, _ = compiled("mlp", "cpu")
    result.save(tmp_path / "m.ts")
    assert sorted(result.plan.predictions) == ["torchscript"]


def test_findings_are_kept_by_device() -> None:
    assert identity_of(CPU) == (torch.__version__, "cpu", torch.get_num_threads())
    assert name_of(CPU) == "cpu"
    require_device(CPU, "anything")
    assert (block_bytes(CPU), block_bytes(torch.device("cuda"))) == (1, CUDA_BLOCK_BYTES)


def test_convolutions_are_exact_for_a_while() -> None:
    backend: Any = torch.backends.cudnn
    before = backend.allow_tf32, backend.conv.fp32_precision, backend.rnn.fp32_precision
    with exact_float32():
        assert not backend.allow_tf32
        assert "tf32" not in (backend.conv.fp32_precision, backend.rnn.fp32_precision)
    assert before == (backend.allow_tf32, backend.conv.fp32_precision, backend.rnn.fp32_precision)
    # Who used the newer of torch's settings has them back, too.
    backend.conv.fp32_precision = backend.rnn.fp32_precision = "ieee"
    try:
        with exact_float32():
            pass
        assert (backend.conv.fp32_precision, backend.rnn.fp32_precision) == ("ieee", "ieee")
    finally:
        backend.allow_tf32 = before[0]


def test_blocks_are_rounded_up() -> None:
    steps = [
        CallStep("a", "op", (), (0,), 100),
        CallStep("b", "op", (0,), (1,), 513 + 1),
        CallStep("c", "op", (1,), (2,), 0),
    ]
    storages = [
        CallStorage("a", "op", 100),
        CallStorage("b", "op", 513),
        CallStorage("nothing", "op", 0),
    ]
    exact = call_peak(steps, storages, {2})
    assert (exact.peak_bytes, exact.scratch_bytes, exact.step) == (614, 1, 1)
    blocks = call_peak(steps, storages, {2}, block_bytes=512)
    assert (blocks.peak_bytes, blocks.live_bytes, blocks.scratch_bytes) == (2048, 1536, 512)
    assert sum(owner.bytes for owner in blocks.owners) == 2048
    assert blocks.liveness_bytes == 1536


def test_an_arena_of_a_gpu_is_aligned_for_it() -> None:
    def tape_on(device: Any) -> Tape:
        f32 = torch.float32
        places = [Place(n, f32, (3,), (1,), 0) for n in range(4)]
        kinds = ("input", "arena", "arena", "arena")
        storages = [
            Storage(kind, 12, p, varies=True) for kind, p in zip(kinds, places, strict=True)
        ]

        def call(reads: list[int], write: int) -> Call:
            read = tuple(places[n] for n in reads)
            return Call(ATEN.add.out, read, {}, read, (places[write],), (), 0, "n")

        calls = [call([0, 0], 1), call([0, 0], 2), call([1, 2], 3)]
        return Tape(storages, calls, [places[0]], [places[3]], device)

    cuda = plan_arena(tape_on(torch.device("cuda")))
    assert sorted(cuda.offsets[n] for n in (1, 2)) == [0, CUDA_ALIGNMENT]
    assert sorted(plan_arena(tape_on(CPU)).offsets[n] for n in (1, 2)) == [0, 64]


def test_what_lies_on_the_host_is_in_no_figure_of_a_gpu() -> None:
    # "meta" is a device that every torch has and whose allocator counts nothing.
    storages = Storages(torch.device("meta"))
    weight = storages.held(torch.ones(5))
    assert storages.data[weight.storage].device.type == "meta"  # type: ignore[union-attr]  # it is a weight
    assert storages.held(torch.ones(5)).storage != weight.storage
    number = storages.open(8, torch.tensor(3), on_host=True)
    place = Place(number, torch.int64, (), (), 0)
    assert storages.on_host == [False, False, True]
    assert storages.data[number].device == CPU  # type: ignore[union-attr]  # it is known
    assert place.storage == number


def test_numbers_of_the_host_stay_there() -> None:
    storages = Storages(CPU)
    outcome = run_operator(ATEN.scalar_tensor.default, (3, torch.int64, None, CPU, None), storages)
    assert storages.on_host == [False]  # the host is the device
    assert outcome.result.size == ()


class Doubles(torch.nn.Module):
    """Stands for an arena module: as many calls as it has had are in its result."""

    def forward(self, x: Any) -> Any:
        if x.shape != (2, 3):
            raise RuntimeError(f"input 'x': expected sizes [2, 3], got {list(x.shape)}")
        return (x * 2,)

    def run_into(self, x: Any, outputs: Any) -> None:
        torch.mul(x, 2, out=outputs[0])


def test_a_static_call_reads_and_writes_in_its_own_places() -> None:
    x = torch.arange(6.0).reshape(3, 2).t()
    call = StaticCall(Doubles(), [x])
    assert call.inputs[0].is_contiguous()
    assert torch.equal(call.outputs[0], x * 2)
    graph = CudaGraph(call, call.run, 7)
    places = call.inputs[0].data_ptr(), graph.outputs[0].data_ptr()
    (y,) = graph(x + 1)
    assert torch.equal(y, x * 2 + 2)
    assert (call.inputs[0].data_ptr(), y.data_ptr()) == places
    call.inputs[0].zero_()
    graph.replay()
    assert not graph.outputs[0].any()
    assert graph.extra_bytes == 7


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ((), "expected 1 tensors, got 0"),
        (
            (torch.zeros(3, 2),),
            "input 0: expected [2, 3] of type float32, got [3, 2] of type float32",
        ),
        ((torch.zeros(2, 3, dtype=torch.int64),), "got [2, 3] of type int64"),
    ],
)
def test_a_static_call_refuses_other_inputs(given: Any, text: str) -> None:
    call = StaticCall(Doubles(), [torch.zeros(2, 3)])
    with pytest.raises(OptionError) as caught:
        call.load(given)
    assert caught.value.code == "cuda-graph-inputs"
    assert text in caught.value.message


def test_a_static_call_says_what_the_module_refuses() -> None:
    with pytest.raises(OptionError, match=r"input 'x': expected sizes \[2, 3\], got \[5\]"):
        StaticCall(Doubles(), [torch.zeros(5)])

    class Fails(Doubles):
        def forward(self, x: Any) -> Any:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        StaticCall(Fails(), [torch.zeros(5)])


def test_a_graph_needs_an_arena() -> None:
    with pytest.raises(UnsupportedError) as caught:
        cuda_graph(torch.nn.Linear(2, 2), [torch.zeros(1, 2)])
    assert caught.value.code == "cuda-graph-module"


@without_cuda
def test_a_graph_needs_a_gpu(tmp_path: Path) -> None:
    result, inputs = compiled("mlp", "cpu")
    (path,) = result.save(tmp_path / "m.ts", arena=True)
    with pytest.raises(UnsupportedError) as caught:
        cuda_graph(JIT.load(str(path)), inputs)
    assert caught.value.code == "cuda-missing"


class OnGpu:
    """A network saved for a GPU, both ways, and read back."""

    def __init__(self, name: str, folder: Path) -> None:
        self.result, sample = compiled(name, "gpu")
        self.expected = tuple(
            y.clone() for y in as_tuple(build(name, **SMALL[name]).module(*sample))
        )
        self.inputs = tuple(x.cuda() for x in sample)
        (path,) = self.result.save(folder / "ordinary.ts")
        self.ordinary = JIT.load(str(path), map_location="cuda")
        files = {"graphopt_arena.json": ""}
        (path,) = self.result.save(folder / "arena.ts", arena=True)
        self.arena = JIT.load(str(path), _extra_files=files)
        self.report = json.loads(files["graphopt_arena.json"])


def as_tuple(found: Any) -> tuple[Any, ...]:
    return found if isinstance(found, tuple) else (found,)


@needs_cuda
@pytest.mark.parametrize("name", ["bert", "fpn_detector", "llama_decode", "mlp", "resnet18"])
def test_files_for_a_gpu_compute_there(name: str, tmp_path: Path) -> None:
    with torch.no_grad(), exact_float32():
        case = OnGpu(name, tmp_path)
        assert case.report["device"] == "cuda"
        assert case.report["device_name"] == torch.cuda.get_device_name()
        for module in (case.ordinary, case.arena):
            found = as_tuple(module(*case.inputs))
            for y, expected in zip(found, case.expected, strict=True):
                assert y.is_cuda
                torch.testing.assert_close(y.cpu(), expected, rtol=1e-3, atol=1e-4)
        graph = cuda_graph(case.arena, case.inputs, most_bytes=1 << 40)
        for y, expected in zip(graph(*case.inputs), case.expected, strict=True):
            torch.testing.assert_close(y.cpu(), expected, rtol=1e-3, atol=1e-4)


@needs_cuda
def test_a_graph_takes_what_was_allowed(tmp_path: Path) -> None:
    with torch.no_grad():
        case = OnGpu("mlp", tmp_path)
        assert cuda_graph(case.arena, case.inputs).extra_bytes <= 4096
        with pytest.raises(UnsupportedError) as caught:
            cuda_graph(case.arena, case.inputs, most_bytes=-1)
        assert caught.value.code == "cuda-graph-memory"
        with pytest.raises(OptionError) as refused:
            cuda_graph(case.arena, [x.cpu() for x in case.inputs])
        assert refused.value.code == "cuda-graph-inputs"


@needs_cuda
def test_the_prediction_for_a_gpu_is_what_its_allocator_counts(tmp_path: Path) -> None:
    with torch.no_grad():
        case = OnGpu("mlp", tmp_path)
        for _ in range(3):
            case.ordinary(*case.inputs)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = case.ordinary(*case.inputs)
        held = torch.cuda.max_memory_allocated() - before
        del kept
    said = case.result.plan.predictions["torch-cuda"]
    assert said.peak_bytes is not None
    assert 0 < held <= said.peak_bytes
