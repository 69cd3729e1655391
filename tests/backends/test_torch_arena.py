"""TorchScript with an arena: what is written where, by whom, and what the file says of it."""

import copy
import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import graphopt
import graphopt.errors

torch = pytest.importorskip("torch")

from graphopt.backends import torch_out_forms  # noqa: E402 - torch may be missing
from graphopt.backends.torch_arena import plan_arena  # noqa: E402
from graphopt.backends.torch_arena_code import script_of  # noqa: E402
from graphopt.backends.torch_counts import SMALL_BYTES, requested_bytes  # noqa: E402
from graphopt.backends.torch_out_probe import probe_form  # noqa: E402
from graphopt.backends.torch_tape import Call, Place, Storage, Tape  # noqa: E402
from graphopt.backends.torch_trace import tensors_of  # noqa: E402
from graphopt.numerics.feeds import make_feed  # noqa: E402
from models import SMALL, build  # noqa: E402

pytestmark = pytest.mark.torch
ATEN: Any = torch.ops.aten
# Sizes at which most tensors have 4096 bytes or more.
BINDINGS = {
    "bert": {"batch": 2, "sequence": 64},
    "llama_decode": {"batch": 4, "past": 31},
    "mlp": {"batch": 64},
    "mobilenet_v2": {"batch": 2},
    "resnet18": {"batch": 2},
}

FRESH = """
import sys, warnings
warnings.simplefilter("ignore")
import numpy as np, torch
path, feeds, out = sys.argv[1:]
module = torch.jit.load(path)
data = np.load(feeds)
with torch.no_grad():
    found = module(*(torch.from_numpy(data[k]) for k in sorted(data.files)))
np.savez(out, *[v.numpy() for v in found])
assert "graphopt" not in sys.modules
"""


def compiled(name: str) -> graphopt.CompileResult:
    sample = build(name, **SMALL[name])
    return graphopt.compile(
        sample.module,
        sample.example_inputs,
        dynamic_shapes=sample.dynamic_shapes,
        bindings=BINDINGS[name],
        verify=False,
    )


def feed_of(name: str, result: graphopt.CompileResult, seed: int) -> dict[str, Any]:
    feed = dict(make_feed(result.program, BINDINGS[name], seed))
    if "attention_mask" in feed:
        # Any other mask makes infinite scores.
        feed["attention_mask"] = np.ones_like(feed["attention_mask"])
        feed["attention_mask"][0, -5:] = 0
    return feed


class Saved:
    """An arena module as read back, beside the ordinary one, and what its file says."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.result = compiled(name)
        self.path = folder / "arena.ts"
        self.ordinary_path = folder / "ordinary.ts"
        assert self.result.save(self.path, arena=True) == [self.path]
        self.result.save(self.ordinary_path)
        files = {"graphopt_arena.json": "", "graphopt_plan.json": "", "graphopt_signature.json": ""}
        self.module: Any = torch.jit.load(str(self.path), _extra_files=files)
        self.ordinary: Any = torch.jit.load(str(self.ordinary_path))
        self.report = json.loads(files["graphopt_arena.json"])
        self.files = files

    def inputs(self, seed: int) -> tuple[Any, ...]:
        names = [v.name or "" for v in self.result.program.graph.inputs]
        return tensors_of(feed_of(self.name, self.result, seed), names)

    def requests(self, run: Any) -> list[int]:
        with torch.no_grad():
            run()  # the executor of TorchScript looks at the first calls
            run()
            return requested_bytes(run)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    known: dict[str, Saved] = {}

    def get(name: str) -> Saved:
        if name not in known:
            known[name] = Saved(name, tmp_path_factory.mktemp(name))
        return known[name]

    return get


def outputs_like(found: Any) -> list[Any]:
    return [torch.full_like(t, 7, memory_format=torch.contiguous_format) for t in found]


@pytest.mark.parametrize("name", sorted(BINDINGS))
def test_results_are_those_of_the_ordinary_module(name: str, saved: Any) -> None:
    case = saved(name)
    with torch.no_grad():
        for seed in (0, 1, 2):
            inputs = case.inputs(seed)
            expected = case.ordinary(*inputs)
            found = case.module(*inputs)
            assert len(found) == len(expected)
            for one, other in zip(expected, found, strict=True):
                assert one.shape == other.shape
                assert one.dtype == other.dtype
                assert float((one - other).abs().max()) <= 1e-6 * float(one.abs().max())


@pytest.mark.parametrize("name", ["bert", "llama_decode", "mlp"])
def test_a_call_asks_for_nothing(name: str, saved: Any) -> None:
    case = saved(name)
    inputs = case.inputs(3)
    with torch.no_grad():
        outputs = outputs_like(case.module(*inputs))
    assert case.requests(lambda: case.module.run_into(*inputs, outputs)) == []
    results = [n for n in case.report["outputs"].values() if n >= SMALL_BYTES]
    assert sorted(case.requests(lambda: case.module(*inputs))) == sorted(results)
    assert case.report["not_enforced"] == []
    assert len(case.requests(lambda: case.ordinary(*inputs))) > len(results)


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18"])
def test_a_convolution_asks_for_its_scratch_only(name: str, saved: Any) -> None:
    case = saved(name)
    inputs = case.inputs(3)
    with torch.no_grad():
        outputs = outputs_like(case.module(*inputs))
    requests = case.requests(lambda: case.module.run_into(*inputs, outputs))
    listed = case.report["not_enforced"]
    assert sum(requests) == sum(entry["bytes"] for entry in listed)
    for entry in listed:
        # Both write into the tensor that they are given, whatever they take besides.
        assert entry["operator"] in (
            "mkldnn._convolution_pointwise_.binary",
            "aten._slow_conv2d_forward.output",
        )
        assert not entry["holds_result"]
    assert case.report["small"] == []


@pytest.mark.parametrize("name", sorted(BINDINGS))
def test_the_arena_has_the_planned_bytes(name: str, saved: Any) -> None:
    case = saved(name)
    arenas = {
        key.removeprefix("arenas.arena_"): tensor
        for key, tensor in case.module.named_buffers()
        if key.startswith("arenas.arena_")
    }
    assert {key: t.nbytes for key, t in arenas.items()} == case.report["arenas"]
    assert sum(case.report["arenas"].values()) == case.report["arena_bytes"]
    assert case.report["lower_bound_bytes"] <= case.report["arena_bytes"]
    for dtype, size in case.report["arenas"].items():
        tops = [b["offset"] + b["bytes"] for b in case.report["buffers"] if b["dtype"] == dtype]
        assert max(tops) == size
    if case.report["arena_bytes"] > 100_000:
        # Arenas are made when a file is loaded; they are no part of it.
        more = case.path.stat().st_size - case.ordinary_path.stat().st_size
        assert more < 50_000


def test_buffers_in_use_together_share_no_byte(saved: Any) -> None:
    for name in ("bert", "resnet18"):
        buffers = saved(name).report["buffers"]
        for i, one in enumerate(buffers):
            for other in buffers[:i]:
                together = one["start"] < other["end"] and other["start"] < one["end"]
                if together and one["dtype"] == other["dtype"]:
                    first, second = sorted((one, other), key=lambda b: b["offset"])
                    assert first["offset"] + first["bytes"] <= second["offset"]


def test_the_file_runs_without_graphopt(saved: Any, tmp_path: Path) -> None:
    case = saved("bert")
    feed = feed_of("bert", case.result, 4)
    np.savez(tmp_path / "feeds.npz", **{f"{i:03}": a for i, a in enumerate(feed.values())})
    command = [sys.executable, "-I", "-c", FRESH, str(case.path)]
    command += [str(tmp_path / "feeds.npz"), str(tmp_path / "out.npz")]
    subprocess.run(command, check=True, cwd=tmp_path)
    found = np.load(tmp_path / "out.npz")["arr_0"]
    expected = next(iter(case.result.run(feed).values()))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_result_survives_the_next_call(saved: Any) -> None:
    case = saved("llama_decode")
    with torch.no_grad():
        first = case.module(*case.inputs(0))
        kept = [t.clone() for t in first]
        case.module(*case.inputs(1))
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))


def test_run_into_writes_what_forward_returns(saved: Any) -> None:
    case = saved("llama_decode")
    inputs = case.inputs(5)
    with torch.no_grad():
        expected = case.module(*inputs)
        outputs = outputs_like(expected)
        assert case.module.run_into(*inputs, outputs) is None
    assert all(torch.equal(a, b) for a, b in zip(expected, outputs, strict=True))


def test_copies_have_arenas_of_their_own(saved: Any) -> None:
    case = saved("bert")
    modules = [case.module, copy.deepcopy(case.module), torch.jit.load(str(case.path))]
    places = {m.arenas.arena_float32.data_ptr() for m in modules}
    assert len(places) == 3
    inputs = [case.inputs(seed) for seed in range(3)]
    with torch.no_grad():
        expected = [case.ordinary(*i)[0] for i in inputs]
    wrong: list[float] = []

    def work(module: Any, given: Any, wanted: Any) -> None:
        with torch.no_grad():
            differences = [module(*given)[0] - wanted for _ in range(30)]
        wrong.extend(float(d.abs().max()) for d in differences)

    threads = [
        threading.Thread(target=work, args=args)
        for args in zip(modules, inputs, expected, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 90
    assert max(wrong) < 1e-5


@pytest.mark.parametrize("most", [0, 1 << 30])
def test_views_are_made_again_where_the_arena_is(
    most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graphopt.backends import torch_arena_code

    monkeypatch.setattr(torch_arena_code, "MOST_KEPT_BYTES", most)
    path = tmp_path / "m.ts"
    result = compiled("mlp")
    result.save(path, arena=True)
    (x,) = tensors_of(feed_of("mlp", result, 0), ["x"])
    module: Any = torch.jit.load(str(path))
    with torch.no_grad():
        expected = module(x)[0]
        other = copy.deepcopy(module)
        other.arenas.arena_float32.fill_(float("nan"))
        assert torch.equal(other(x)[0], expected)
        kept = other.arenas.views
        assert bool(kept) == bool(most)
        base = other.arenas.arena_float32
        end = base.data_ptr() + base.nbytes
        views = [v for v in kept if base.data_ptr() <= v.data_ptr() < end]
        assert len(views) >= 3 * bool(most)
        # What the copy computed lies in its own arena.
        assert not bool(base.isnan().all())
        assert not any(len(m.arenas.views) for m in [torch.jit.load(str(path))])


def test_other_sizes_and_types_are_refused(saved: Any) -> None:
    module = saved("mlp").module
    (x,) = saved("mlp").inputs(0)
    refusal: Any = torch.jit.Error
    said = r"input 'x': expected sizes \[64, 16\] of type float32, got \[3, 16\]"
    with pytest.raises(refusal, match=said):
        module(x[:3])
    with pytest.raises(refusal, match=r"got \[64, 16\] of another type"):
        module(x.double())
    with pytest.raises(refusal, match="output 0: expected sizes"):
        module.run_into(x, [torch.empty(2, 2)])
    with pytest.raises(refusal, match="expected 1 tensors, got 0"):
        module.run_into(x, [])
    with pytest.raises(refusal, match="output 0 is not contiguous"):
        module.run_into(x, [torch.empty(4, 64).t()])


def test_an_input_may_lie_in_any_way(saved: Any) -> None:
    module = saved("mlp").module
    (x,) = saved("mlp").inputs(0)
    wide = torch.zeros(64, 40)
    wide[:, 7:23] = x
    assert torch.equal(module(wide[:, 7:23])[0], module(x)[0])


def test_the_same_model_has_the_same_plan(tmp_path: Path) -> None:
    texts = []
    for name in ("a.ts", "b.ts"):
        compiled("resnet18").save(tmp_path / name, arena=True)
        files = {"graphopt_arena.json": ""}
        torch.jit.load(str(tmp_path / name), _extra_files=files)
        texts.append(files["graphopt_arena.json"])
    assert texts[0] == texts[1]


def test_a_verified_compile_verifies_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = build("mlp", **SMALL["mlp"])
    result = graphopt.compile(sample.module, sample.example_inputs)
    result.save(tmp_path / "good.ts", arena=True)

    def wrong(outs: Any, args: Any, kwargs: Any) -> None:
        # What a probe of one sample cannot see, the comparison with the program does.
        torch.add(args[0], 1e-2, out=outs[0])

    from graphopt.backends import torch_tape

    monkeypatch.setattr(torch_tape, "_CHOICES", {})
    monkeypatch.setattr(torch_tape, "difference", lambda a, b: 0.0)
    monkeypatch.setitem(torch_out_forms._EQUIVALENT, "relu", (wrong,))
    monkeypatch.setattr("graphopt.backends.torch_out_probe.difference", lambda a, b: 0.0)
    with pytest.raises(graphopt.VerificationError) as caught:
        result.save(tmp_path / "bad.ts", arena=True)
    assert caught.value.code == "torch-file-differs"
    assert [p.name for p in tmp_path.iterdir()] == ["good.ts"]


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_only_torchscript_holds_an_arena(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(graphopt.OptionError) as caught:
        compiled("mlp").save(tmp_path / f"m.{suffix}", arena=True)
    assert caught.value.code == "arena-format"
    assert list(tmp_path.iterdir()) == []


def small_model(op: str, shape: list[Any], outputs: int = 1, **attributes: Any) -> onnx.ModelProto:
    names = [f"y{i}" for i in range(outputs)]
    kind = TensorProto.INT64 if op == "NonZero" else TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], names, **attributes)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, kind, None) for name in names],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_an_open_dimension_is_refused(tmp_path: Path) -> None:
    result = graphopt.compile(small_model("Relu", ["n", 4]))
    with pytest.raises(graphopt.OptionError) as caught:
        result.save(tmp_path / "m.ts", arena=True)
    assert caught.value.code == "arena-sizes-open"
    assert "--dim n=N" in str(caught.value)
    bound = graphopt.compile(small_model("Relu", ["n", 4]), bindings={"n": 3})
    bound.save(tmp_path / "m.ts", arena=True)
    module = torch.jit.load(str(tmp_path / "m.ts"))
    assert module(torch.tensor([[-1.0, 0, 1, 2]] * 3))[0].tolist() == [[0, 0, 1, 2]] * 3


def test_sizes_that_depend_on_values_are_refused(tmp_path: Path) -> None:
    result = graphopt.compile(small_model("NonZero", [3, 4]))
    with pytest.raises(graphopt.UnsupportedError) as caught:
        result.save(tmp_path / "m.ts", arena=True)
    assert caught.value.code == "arena-values-decide"
    assert list(tmp_path.iterdir()) == []


def test_what_torch_cannot_direct_is_listed_and_said(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("TopK", ["x", "k"], ["v", "i"]),
            helper.make_node("CumSum", ["v", "a"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [64, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [64, 32])],
        [
            helper.make_tensor("k", TensorProto.INT64, [1], [32]),
            helper.make_tensor("a", TensorProto.INT64, [], [1]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    result = graphopt.compile(model)
    result.save(tmp_path / "m.ts", arena=True)
    files = {"graphopt_arena.json": ""}
    module: Any = torch.jit.load(str(tmp_path / "m.ts"), _extra_files=files)
    report = json.loads(files["graphopt_arena.json"])
    x = torch.rand(64, 64)
    outputs = outputs_like(module(x))
    with torch.no_grad():
        module.run_into(x, outputs)
        requests = requested_bytes(lambda: module.run_into(x, outputs))
    assert bool(requests) == bool(report["not_enforced"])
    assert sum(requests) == sum(entry["bytes"] for entry in report["not_enforced"])
    said = [w for w in result.warnings if w.startswith("arena:")]
    assert bool(said) == bool(report["not_enforced"])


def test_outputs_that_are_inputs_and_views_are_copied(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0]),
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Reshape", ["r", "s"], ["flat"]),
        helper.make_node("Identity", ["x"], ["same"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
            for name in ("t", "r", "flat", "same")
        ],
        [helper.make_tensor("s", TensorProto.INT64, [1], [6])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    graphopt.compile(model).save(tmp_path / "m.ts", arena=True)
    module: Any = torch.jit.load(str(tmp_path / "m.ts"))
    x = torch.tensor([[-1.0, 2, -3], [4, -5, 6]])
    found = module(x)
    assert torch.equal(found[0], x.t())
    assert torch.equal(found[1], x.relu())
    assert torch.equal(found[2], x.relu().reshape(6))
    assert torch.equal(found[3], x)
    assert len({t.data_ptr() for t in (*found, x)}) == 5


def test_the_command_line_writes_an_arena(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from graphopt.cli.entry import run

    source, out, config = (tmp_path / name for name in ("m.onnx", "m.ts", "c.toml"))
    onnx.save(small_model("Relu", ["n", 4]), str(source))
    arguments = ["compile", str(source), "--arena", "--dim", "n=3", "--save-config", str(config)]
    assert run(arguments) == 0
    assert "arena = true" in config.read_text()
    assert run(["compile", str(source), "-o", str(out), "--config", str(config)]) == 0
    files = {"graphopt_arena.json": ""}
    torch.jit.load(str(out), _extra_files=files)
    assert json.loads(files["graphopt_arena.json"])["outputs"] == {"y0": 48}
    assert run(["compile", str(source), "-o", str(tmp_path / "n.ts"), "--arena"]) == 2
    assert "arena-sizes-open" in capsys.readouterr().err
    assert not (tmp_path / "n.ts").exists()


def test_another_overload_than_the_probed_one_is_noticed() -> None:
    tape = tape_of([([0], 1, False), ([1], 2, True)], 3, 2)
    for index, call in enumerate(tape.calls):
        tape.calls[index] = replace(call, args=call.reads, kwargs={"out": call.writes[0]})
    script_of(plan_arena(tape), ["x"])
    tape.calls[0] = replace(tape.calls[0], op=ATEN.clamp_min.out, args=(tape.inputs[0], 1.0))
    script_of(plan_arena(tape), ["x"])
    other = ATEN.clamp_min.Tensor_out
    tape.calls[0] = replace(tape.calls[0], op=other)
    with pytest.raises(graphopt.errors.InvariantError) as caught:
        script_of(plan_arena(tape), ["x"])
    assert caught.value.code == "arena-overload"


# The probe.


def test_the_probe_tells_true_from_false() -> None:
    x = torch.randn(64, 64)
    expected = [torch.relu(x)]

    def true(outs: Any, args: Any, kwargs: Any) -> None:
        torch.clamp_min(args[0], 0, out=outs[0])

    def copying(outs: Any, args: Any, kwargs: Any) -> None:
        outs[0].copy_(torch.relu(args[0]))

    def other(outs: Any, args: Any, kwargs: Any) -> None:
        torch.mul(args[0], 2, out=outs[0])

    def idle(outs: Any, args: Any, kwargs: Any) -> None:
        pass

    def resizing(outs: Any, args: Any, kwargs: Any) -> None:
        outs[0].resize_(128, 128).fill_(0)

    probe = probe_form(true, expected, (x,), {})
    assert probe is not None
    assert (probe.bytes, probe.error) == (0, 0.0)
    probe = probe_form(copying, expected, (x,), {})
    assert probe is not None
    assert (probe.bytes, probe.agrees) == (64 * 64 * 4, True)
    for wrong in (other, idle):
        probe = probe_form(wrong, expected, (x,), {})
        assert probe is not None
        assert not probe.agrees
    assert probe_form(resizing, expected, (x,), {}) is None


@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float32])
def test_an_untouched_place_never_agrees(kind: Any) -> None:
    expected = torch.ones(8, 8, dtype=kind)
    probe = probe_form(lambda outs, args, kwargs: None, [expected], (), {})
    assert probe is not None
    assert not probe.agrees


@pytest.mark.parametrize(
    ("op", "args"),
    [
        (ATEN.native_layer_norm.default, ((3, 5, 64), [64], (64,), (64,), 1e-5)),
        (ATEN.native_layer_norm.default, ((3, 5, 64), [5, 64], None, None, 1e-3)),
        (ATEN.native_group_norm.default, ((3, 8, 64), (8,), (8,), 3, 8, 64, 4, 1e-5)),
        (ATEN.constant_pad_nd.default, ((3, 5, 7), [1, 2, -1, 3], 0.5)),
        (ATEN.repeat.default, ((3, 5), [2, 1, 4])),
        (ATEN.pixel_shuffle.default, ((2, 8, 3, 5), 2)),
        (ATEN.convolution.default, ((1, 4, 9), (6, 4, 3), (6,), [1], [1], [1], False, [0], 1)),
        (
            ATEN.convolution.default,
            ((2, 4, 9, 9), (4, 6, 3, 3), None, [2, 2], [1, 1], [1, 1], True, [1, 1], 1),
        ),
    ],
)
def test_every_form_that_torch_takes_computes_its_operator(op: Any, args: Any) -> None:
    torch.manual_seed(0)
    tensors = tuple(torch.randn(a) if isinstance(a, tuple) else a for a in args)
    result = op(*tensors)
    expected = list(result) if isinstance(result, tuple) else [result]
    named = torch_out_forms._EQUIVALENT[torch_out_forms._name(op)]
    probes = [probe_form(form, expected, tensors, {}) for form in named]
    taken = [probe for probe in probes if probe is not None]
    assert taken
    assert all(probe.agrees for probe in taken)


# The plan of a tape by hand.


def tape_of(calls: list[tuple[list[int], int, bool]], count: int, output: int) -> Tape:
    """Return a tape of elementwise calls on 1 KiB storages: reads, write, may write over."""
    places = [Place(n, torch.float32, (256,), (1,), 0) for n in range(count)]
    storages = [Storage("arena", 1024, place, varies=True) for place in places]
    storages[0].kind = "input"
    made = [
        Call(
            ATEN.relu.out,
            (),
            {},
            tuple(places[n] for n in reads),
            (places[write],),
            (),
            0,
            "node",
            tuple(places[n] for n in reads) if over else (),
        )
        for reads, write, over in calls
    ]
    return Tape(storages, made, [places[0]], [places[output]])


def test_a_chain_written_over_itself_takes_one_place() -> None:
    calls = [([0], 1, False), ([1], 2, True), ([2], 3, True), ([3], 4, True)]
    plan = plan_arena(tape_of(calls, 5, 4))
    assert plan.offsets == {1: 0, 2: 0, 3: 0}
    assert plan.outputs == {4: 0}
    assert plan.arena_bytes == 1024


def test_an_argument_that_is_read_again_is_not_written_over() -> None:
    calls = [([0], 1, False), ([1], 2, True), ([1, 2], 3, True)]
    plan = plan_arena(tape_of(calls, 4, 3))
    assert plan.offsets[1] != plan.offsets[2]
    assert plan.arena_bytes == 2048


def test_a_call_that_nothing_reads_is_dropped() -> None:
    calls = [([0], 1, False), ([0], 2, False), ([1], 3, False)]
    plan = plan_arena(tape_of(calls, 4, 3))
    assert len(plan.tape.calls) == 2
    assert plan.offsets == {1: 0}
