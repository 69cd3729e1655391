"""The pieces of the arena runner alone: memory, kernels, the in-place proof, the machine."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from graphopt import arena_tasks
from graphopt.arena_in_place import proves_in_place
from graphopt.arena_kernels import KernelMissingError, Kernels, array_of, bytes_of
from graphopt.arena_memory import POISON, Held, MappedWeights, Segment, digest_of
from graphopt.backends.emit_onnx import emit_onnx
from graphopt.isolation import FEEDS_FILE, ArrayWriter
from graphopt.memory.plan import Alias, MemoryPlan
from graphopt.numerics import arena_runner
from graphopt.numerics.feeds import make_feed
from tests.numerics.arena import index_of, planned, with_buffer
from tests.numerics.random_models import random_model

FLOAT32 = np.dtype(np.float32)


def held(name: str, segment: Segment, start: int, end: int, last_use: int = 9) -> Held:
    made = Held(
        name,
        start,
        end,
        digest_of(segment.bytes[start:end]),
        0,
        last_use,
        FLOAT32,
        ((end - start) // 4,),
    )
    segment.hold(made)
    return made


# Memory.


def test_a_segment_is_poison_aligned_and_of_the_size_asked_for() -> None:
    for size in (1, 63, 100_000):
        segment = Segment("arena", size)
        assert segment.bytes.size == size
        assert segment.bytes.ctypes.data % 64 == 0
        assert (segment.bytes == POISON).all()
        assert segment.first_stray([]) is None
    assert Segment("io", 0).first_stray([]) is None


@pytest.mark.parametrize("at", [-4096, -1, 0, 99, 256, 2_999_999, 3_000_000, 3_004_095])
def test_every_stray_byte_is_found_also_in_the_guards(at: int) -> None:
    segment = Segment("arena", 3_000_000)
    segment.bytes[100:200] = 0
    occupied = [(150, 200), (100, 160)]
    assert segment.first_stray(occupied) is None
    assert segment.first_stray([(100, 199)]) == 199
    raw = segment.bytes.base
    assert isinstance(raw, np.ndarray)
    raw[segment.bytes.ctypes.data - raw.ctypes.data + at] ^= 1
    assert segment.first_stray(occupied) == at


def test_digests_see_any_change() -> None:
    segment = Segment("arena", 256)
    segment.write(64, np.arange(64, dtype=np.uint8))
    value = held("v", segment, 64, 128)
    assert segment.is_intact(value)
    for at in (64, 127):
        segment.bytes[at] ^= 1
        assert not segment.is_intact(value)
        segment.bytes[at] ^= 1
    assert segment.is_intact(value)
    assert segment.high_water == 128


def test_values_over_a_range() -> None:
    segment = Segment("arena", 1024)
    whole = held("whole", segment, 0, 512)
    piece = held("piece", segment, 64, 128)
    late = held("late", segment, 512, 516)

    def over(start: int, end: int) -> set[str]:
        return {value.name for value in segment.held_over(start, end)}

    assert over(0, 64) == {"whole"}
    assert over(127, 513) == {"whole", "piece", "late"}
    assert over(512, 513) == {"late"}
    assert over(516, 1024) == set()
    assert over(100, 100) == set()
    segment.release(whole)
    assert over(0, 1024) == {"piece", "late"}
    segment.release(whole)
    segment.release(piece)
    assert over(0, 1024) == {late.name}


def test_mapped_weights_keep_places_apart_and_see_changes() -> None:
    weights, first = MappedWeights(), np.arange(64, dtype=np.uint8)
    assert weights.put("a", 0, first) is None
    assert weights.put("b", 128, np.zeros(64, np.uint8)) is None
    assert weights.put("c", 63, np.zeros(4, np.uint8)) == "a"
    assert weights.put("c", 100, np.zeros(29, np.uint8)) == "b"
    assert weights.put("c", 64, np.zeros(64, np.uint8)) is None
    part = weights.part(8, 16)
    assert part is not None
    assert part.tolist() == list(range(8, 16))
    assert weights.part(60, 68) is None
    assert weights.part(192, 196) is None
    assert weights.first_changed() is None
    first[5] = 0
    assert weights.first_changed() == "a"


# Bytes and kernels.


@pytest.mark.parametrize(
    ("array", "size"),
    [
        (np.arange(6, dtype=np.float32).reshape(2, 3).T, 24),
        (np.array(True), 1),
        (np.array([1.5, -2], ml_dtypes.bfloat16), 4),
        (np.array([-8, 7, 3], ml_dtypes.int4), 2),
        (np.array([[1, 15, 3]], ml_dtypes.uint4), 2),
        (np.empty((0, 3), np.int64), 0),
    ],
)
def test_arrays_and_bytes_round_trip(array: np.ndarray[Any, Any], size: int) -> None:
    data = bytes_of(array)
    assert data.size == size
    memory = np.zeros(size + 1, np.uint8)
    memory[1:] = data
    back = array_of(memory[1:], array.dtype, array.shape)
    assert back.dtype == array.dtype
    assert back.flags.aligned
    assert np.array_equal(back, array)


def kernels_of(text: str) -> tuple[Kernels, onnx.ModelProto]:
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]> g {text}'
    )
    return Kernels(model), model


def test_a_kernel_leaves_its_inputs_alone_and_shares_sessions() -> None:
    from graphopt import arena_kernels

    kernels, model = kernels_of("(float[4] x) => (float[4] y) { a = Identity(x) y = Identity(a) }")
    x = np.arange(4, dtype=np.float32)
    found, engine = kernels.run(model.graph.node[0], {"x": x}, [])
    assert engine == "onnxruntime"
    assert not np.shares_memory(found["a"], x)
    count = len(arena_kernels._SESSIONS)
    kernels.run(model.graph.node[1], {"a": x[:2].copy()}, [])
    assert len(arena_kernels._SESSIONS) == count


def test_what_no_array_holds_comes_from_the_reference_evaluator() -> None:
    kernels, model = kernels_of("(float[4] x) => (bfloat16[4] y) { y = Cast<to = 16>(x) }")
    x = np.array([1, 2, 3, 257], np.float32)
    found, engine = kernels.run(model.graph.node[0], {"x": x}, [])
    assert engine == "reference"
    assert found["y"].dtype == ml_dtypes.bfloat16
    assert found["y"].astype(np.float32).tolist() == [1, 2, 3, 256]
    kernels, model = kernels_of("(bfloat16[4] x) => (float[4] y) { y = Cast<to = 1>(x) }")
    again, engine = kernels.run(model.graph.node[0], {"x": found["y"]}, [])
    assert engine == "onnxruntime"
    assert again["y"].tolist() == [1, 2, 3, 256]


def test_an_operator_that_nobody_has_is_said_with_both_refusals() -> None:
    kernels, model = kernels_of("(float[4] x) => (float[4] y) { y = com.microsoft.Unheard(x) }")
    with pytest.raises(KernelMissingError, match=r"onnxruntime: .*reference evaluator: "):
        kernels.run(model.graph.node[0], {"x": np.zeros(4, np.float32)}, [])


# The in-place proof.


def prove(
    compute: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]], array: np.ndarray[Any, Any]
) -> bool:
    """Whether writing ``compute(array)`` over ``array`` is proven; memory is left as it was."""
    segment = Segment("arena", max(array.nbytes, compute(array).nbytes))
    segment.write(0, bytes_of(array))

    def run() -> Mapping[str, Any]:
        return {"w": compute(segment.bytes[: array.nbytes].view(array.dtype).reshape(array.shape))}

    values = {name: value.copy() for name, value in run().items()}
    size = values["w"].nbytes
    before = segment.bytes.copy()
    proven = proves_in_place(
        segment.bytes[:size],
        [(0, min(size, array.nbytes))],
        "w",
        values,
        run,
        np.random.default_rng(0),
    )
    assert np.array_equal(segment.bytes, before)
    return proven


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("compute", "array"),
    [
        (lambda r: np.maximum(r, 0), normal(50, 7)),
        (lambda r: r * normal(7), normal(50, 7)),
        (lambda r: r + 1, np.zeros(5000, np.float32)),
        (lambda r: 12 // r, np.ones((3, 3), np.int32)),
        (np.logical_not, np.ones(9, np.bool_)),
        (lambda r: r.astype(np.int32), normal(64)),
        (lambda r: r * 2, normal(1)),
        (lambda r: r * 1j, normal(40).astype(np.complex128)),
        (lambda r: r * r, normal(40).astype(np.float16)),
    ],
)
def test_element_by_element_is_proven(compute: Any, array: np.ndarray[Any, Any]) -> None:
    assert prove(compute, array)


@pytest.mark.parametrize(
    ("compute", "array"),
    [
        (lambda r: r.T.copy(), normal(8, 8)),
        (lambda r: r[::-1].copy(), normal(2)),
        (lambda r: r[::-1].copy(), np.ones(3, np.float32) * 4),
        (lambda r: r @ normal(7, 7), normal(50, 7)),
        (lambda r: np.cumsum(r, axis=0, dtype=np.float32), np.zeros((30, 4), np.float32)),
        (lambda r: r - r.max(), normal(300)),
        (lambda r: r.astype(np.float64), normal(64)),
        (lambda r: r.astype(np.float16), normal(64)),
        (lambda r: r + r[0], normal(2000)),
        (lambda r: np.roll(r, 1), np.arange(100, dtype=np.int64) % 3),
        (lambda r: np.logical_xor(r, r[0]), np.ones(40, np.bool_)),
    ],
)
def test_what_reads_other_elements_is_not_proven(compute: Any, array: np.ndarray[Any, Any]) -> None:
    assert not prove(compute, array)


def test_other_outputs_must_not_depend_on_what_is_destroyed() -> None:
    memory = bytes_of(normal(100)).copy()

    def run() -> Mapping[str, Any]:
        read = memory.view(np.float32)
        return {"w": read * 2, "sum": read.sum(keepdims=True)}

    values = {name: value.copy() for name, value in run().items()}
    random = np.random.default_rng(0)
    assert not proves_in_place(memory, [(0, 400)], "w", values, run, random)
    only = {"w": values["w"]}
    assert proves_in_place(memory, [(0, 400)], "w", only, run, random)
    assert not proves_in_place(memory, [(2, 400)], "w", only, run, random)


# The machine, in this process.


def run_here(program: Any, plan: MemoryPlan, folder: Path) -> dict[str, Any]:
    files = emit_onnx(program, folder / "model.onnx", external_data=True)
    sheet = json.loads(json.dumps(arena_runner._sheet(program, plan, 0)))
    with ArrayWriter(folder / FEEDS_FILE) as writer:
        feeds = writer.describe([make_feed(program, plan.model.bindings, 0)])
    arguments = {"model": str(files[0]), "sheet": sheet, "feeds": feeds}
    return arena_tasks.run_arena(folder, arguments)


def test_large_weights_stay_in_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena_tasks, "_COPIED_WEIGHT_BYTES", 0)
    made: list[Segment] = []

    def make(label: str, size: int) -> Segment:
        made.append(Segment(label, size))
        return made[-1]

    monkeypatch.setattr(arena_tasks, "Segment", make)
    for seed in range(6):
        program, plan = planned(random_model(seed, 14))
        (tmp_path / str(seed)).mkdir()
        answer = run_here(program, plan, tmp_path / str(seed))
        assert "fault" not in answer
    assert {s.size for s in made if s.label.startswith("weights")} == {0}
    weights = [at for at, b in enumerate(plan.buffers) if b.segment == "weights" and b.bytes]
    offset = plan.buffers[weights[0]].offset
    broken = with_buffer(plan, weights[1], offset=offset)
    fault = run_here(program, broken, tmp_path)["fault"]
    assert fault["rule"] == "overwritten"


def test_a_view_of_a_large_weight_is_those_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, plan = planned("""
        <ir_version: 9, opset_import: ["": 18]>
        g (float[4] x) => (float[4] y)
        <float[2,2] w = {1, 2, 3, 4}, int64[1] s = {4}>
        { v = Reshape(w, s) u = Add(x, v) y = Sub(u, v) }
        """)
    monkeypatch.setattr(arena_tasks, "_COPIED_WEIGHT_BYTES", 0)
    assert "fault" not in run_here(program, plan, tmp_path)
    at, weight = index_of(plan, "u"), index_of(plan, "w")
    values = (*plan.buffers[weight].values, Alias(value="u", relation="", of="u"))
    others = tuple(a for a in plan.buffers[at].values if a.value != "u")
    broken = with_buffer(with_buffer(plan, at, values=others), weight, values=values)
    assert run_here(program, broken, tmp_path)["fault"]["rule"] == "owner"


@pytest.mark.parametrize("where", ["input", "beside"])
def test_a_kernel_that_writes_where_it_must_not_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Native code may do anything; here a kernel damages a live value, or bytes of nobody."""
    program, plan = planned("""
        <ir_version: 9, opset_import: ["": 18]>
        g (float[4,4] x) => (float[4,4] y)
        { a = Softmax(x) b = Softmax(a) c = Softmax(b) d = Sub(c, a) y = Softmax(d) }
        """)
    honest = Kernels.run

    def rogue(self: Kernels, node: onnx.NodeProto, inputs: Any, weights: Any) -> Any:
        result = honest(self, node, inputs, weights)
        if list(node.output) == ["b"]:
            target = inputs["a"]
            raw = target
            while isinstance(raw.base, np.ndarray):
                raw = raw.base
            at = target.ctypes.data - raw.ctypes.data
            raw[at + (0 if where == "input" else -1)] ^= 1
        return result

    monkeypatch.setattr(Kernels, "run", rogue)
    fault = run_here(program, plan, tmp_path)["fault"]
    if where == "input":
        assert (fault["rule"], fault["step"], fault["value"]) == ("not-intact", 3, "a")
        assert "'a' is not what step 0 wrote when step 3" in fault["text"]
    else:
        assert (fault["rule"], fault["step"]) == ("stray-write", 1)
        assert "byte -1 of arena of pool 'dram'" in fault["text"]
