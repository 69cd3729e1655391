"""Plans executed byte by byte: what must run, what must be refused, and what is said about it."""

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from graphopt.cli.entry import run as command_line
from graphopt.errors import UnsupportedError, VerificationError
from graphopt.ir.dims import Bounds
from graphopt.ir.program import Program
from graphopt.isolation import Worker
from graphopt.memory.plan import Alias, MemoryPlan
from graphopt.numerics.arena_runner import ArenaRun, run_in_arena
from graphopt.numerics.feeds import Feed
from tests.numerics.arena import (
    accepted_by_verifier,
    aliases,
    buffer_of,
    cpu,
    index_of,
    planned,
    with_arena,
    with_buffer,
)
from tests.numerics.random_models import random_model

FLOAT = onnx.TensorProto.FLOAT
CHAIN = """
<ir_version: 9, opset_import: ["": 18]>
chain (float[4,16] x) => (float[8,8] y, float[4,16] z)
<float[16,16] w = {0}>
{
    a = MatMul(x, w)
    b = Relu(a)
    shape = Constant<value_ints = [8, 8]>()
    c = Reshape(b, shape)
    d = Tanh(c)
    y = Transpose<perm = [1, 0]>(d)
    e = Add(x, x)
    z = Exp(e)
}
"""


def chain() -> onnx.ModelProto:
    model = onnx.parser.parse_model(CHAIN.replace("{0}", "{" + ", ".join(["0.0"] * 256) + "}"))
    values = np.random.default_rng(7).standard_normal((16, 16)).astype(np.float32)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w"))
    return model


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as made:
        yield made


def refused(program: Program, plan: MemoryPlan, worker: Worker) -> VerificationError:
    with pytest.raises(VerificationError) as caught:
        run_in_arena(program, plan, worker=worker)
    assert caught.value.code == "plan-run-failed"
    return caught.value


def test_views_and_in_place_writes_run_inside_the_arena(worker: Worker) -> None:
    program, plan = planned(chain())
    relations = aliases(plan)
    assert (relations["b"], relations["c"], relations["d"]) == ("in-place", "view", "in-place")
    run = run_in_arena(program, plan, worker=worker)
    assert run == ArenaRun(
        steps=8,
        arena_bytes=320,
        # The top buffer holds two int64 and is padded to 64 bytes.
        written_high_water=256 + 16,
        outside=(),
        comparison=run.comparison,
        kernels={"onnxruntime": 8, "reference": 0},
    )
    assert [o.name for o in run.comparison.outputs] == ["y", "z"]
    assert run.comparison.passed
    assert run.comparison.max_rel_error < 1e-6
    assert run.to_dict()["kernels"] == {"onnxruntime": 8, "reference": 0}


@pytest.mark.parametrize("io_in_arena", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_every_rule_of_the_runtime(worker: Worker, io_in_arena: bool, in_place: bool) -> None:
    target = cpu(io_in_arena=io_in_arena, in_place=in_place)
    program, plan = planned(chain(), target=target)
    assert (buffer_of(plan, "x").segment == "arena") == io_in_arena
    run = run_in_arena(program, plan, worker=worker)
    assert run.written_high_water <= plan.arena_bytes < run.written_high_water + 64


def test_pieces_lie_where_the_whole_wants_them(worker: Worker) -> None:
    program, plan = planned("""
        <ir_version: 9, opset_import: ["": 18]>
        g (float[2,32] x, float[2,32] k) => (float[2,32] y, float[8,1] z)
        <int64[1] axes = {1}>
        {
            a = Softmax(x)
            b = Tanh(x)
            c = Softmax<axis = 0>(x)
            whole = Concat<axis = 0>(a, b, c, k)
            y = Max(a, x)
            z = ReduceMax(whole, axes)
        }
        """)
    assert list(aliases(plan).values()).count("part") == 2  # b and c; y is written over a
    assert run_in_arena(program, plan, worker=worker).comparison.max_rel_error == 0


def test_a_plan_for_large_sizes_serves_small_ones(worker: Worker) -> None:
    program, plan = planned(
        """
        <ir_version: 9, opset_import: ["": 18]>
        g (float[batch,8] x) => (float[batch,8] y)
        {
            a = Softmax(x)
            b = Relu(a)
            c = Concat<axis = 1>(b, x)
            d = Sigmoid(c)
            e, f = Split<axis = 1, num_outputs = 2>(d)
            y = Sub(e, f)
        }
        """,
        bounds={"batch": Bounds(0, 6)},
    )
    full = run_in_arena(program, plan, worker=worker)
    assert full.comparison.sizes == [{"batch": 6}]
    small: list[Feed] = [{"x": np.ones((n, 8), np.float32)} for n in (1, 5, 6, 0)]
    run = run_in_arena(program, plan, small, worker=worker)
    assert (run.comparison.samples, run.comparison.inputs) == (4, "user")
    large: list[Feed] = [{"x": np.ones((7, 8), np.float32)}]
    with pytest.raises(VerificationError) as caught:
        run_in_arena(program, plan, large, worker=worker)
    assert caught.value.details == {"rule": "size", "step": 0, "value": "x"}
    assert "'x' takes 224 bytes, buffer 'x' has 192" in caught.value.message
    assert "batch=6" in str(caught.value)


IF = """
<ir_version: 9, opset_import: ["": 18]>
g (bool flag, float[4,8] x) => (float[4,8] y)
{
    a = Softmax(x)
    b = Tanh(a)
    c = If (flag) <
        then_branch = t () => (float[4,8] p) {
            p0 = Softmax(b)
            p1 = Softmax<axis = 0>(p0)
            p = Add(p0, p1)
        },
        else_branch = e () => (float[4,8] q) { q0 = Neg(b)  q = Mul(q0, b) }
    >
    d = Softmax(c)
    y = Sub(d, b)
}
"""


def test_a_body_runs_as_one_node_and_its_scratch_must_be_free(worker: Worker) -> None:
    program, plan = planned(IF)
    scratch = next(at for at, b in enumerate(plan.buffers) if b.kind == "scratch")
    for flag in (False, True):
        feed = {"flag": np.array(flag), "x": np.ones((4, 8), np.float32)}
        assert run_in_arena(program, plan, [feed], worker=worker).kernels["onnxruntime"] == 5
    for victim, text in (("b", "lies over 'b'"), ("c", "writes an output into its own scratch")):
        wider = with_arena(plan, plan.arena_bytes + 512)
        offset = buffer_of(plan, victim).offset
        error = refused(program, with_buffer(wider, scratch, offset=offset), worker)
        assert error.details["rule"] == "scratch"
        assert text in error.message
    without = plan.model_copy(
        update={"buffers": tuple(b for b in plan.buffers if b.kind != "scratch")}
    )
    assert "has no scratch of" in refused(program, without, worker).message


def test_what_has_no_size_stays_outside_and_is_listed(worker: Worker) -> None:
    program, plan = planned("""
        <ir_version: 9, opset_import: ["": 18]>
        g (float[8] x) => (float[8] y, int64[1,n] found)
        {
            s = SequenceConstruct(x, x)
            zero = Constant<value_int = 0>()
            a = SequenceAt(s, zero)
            y = Relu(a)
            found = NonZero(x)
        }
        """)
    names = {value.name for value in plan.not_planned}
    assert "s" in names
    run = run_in_arena(program, plan, worker=worker)
    assert set(run.outside) <= names
    assert "s" in run.outside
    assert run.comparison.max_rel_error == 0


def test_text_stays_outside(worker: Worker) -> None:
    program, plan = planned("""
        <ir_version: 9, opset_import: ["": 20]>
        g (string[3] x) => (int64[3] y)
        { a = Cast<to = 7>(x) y = Add(a, a) }
        """)
    feed = {"x": np.array(["1", "20", "3"], dtype=object)}
    run = run_in_arena(program, plan, [feed], worker=worker)
    assert run.outside == ("x",)


def test_types_that_numpy_has_not(worker: Worker) -> None:
    program, plan = planned("""
        <ir_version: 10, opset_import: ["": 21]>
        g (float[4,8] x) => (float[4,8] y)
        {
            a = Cast<to = 16>(x)
            b = Cast<to = 1>(a)
            y = Relu(b)
        }
        """)
    run = run_in_arena(program, plan, worker=worker)
    assert run.kernels == {"onnxruntime": 2, "reference": 1}


def test_packed_weights(worker: Worker) -> None:
    node = helper.make_node("DequantizeLinear", ["w", "s"], ["v"])
    graph = helper.make_graph(
        [node, helper.make_node("Add", ["x", "v"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, [3])],
        [helper.make_tensor_value_info("y", FLOAT, [3])],
        [
            helper.make_tensor("w", onnx.TensorProto.INT4, [3], [-8, 7, 3]),
            helper.make_tensor("s", FLOAT, [], [0.5]),
        ],
    )
    imports = [helper.make_opsetid("", 21)]
    program, plan = planned(helper.make_model(graph, opset_imports=imports, ir_version=10))
    assert buffer_of(plan, "w").bytes == 2
    feed: Feed = {"x": np.zeros(3, np.float32)}
    run = run_in_arena(program, plan, [feed], worker=worker)
    assert run.comparison.max_rel_error == 0


@pytest.mark.parametrize("body", [False, True])
def test_random_numbers_cannot_be_compared(worker: Worker, body: bool) -> None:
    draw = "r = RandomNormalLike(x)"
    inside = f"""flag = Constant<value_int = 1>() f = Cast<to = 9>(flag)
        q = If (f) <then_branch = t () => (float[4] p) {{ {draw} p = Neg(r) }},
                    else_branch = e () => (float[4] p2) {{ p2 = Neg(x) }}>"""
    program, plan = planned(f"""
        <ir_version: 9, opset_import: ["": 18]>
        g (float[4] x) => (float[4] y)
        {{ {inside if body else draw + " q = Neg(r)"} y = Relu(q) }}
        """)
    with pytest.raises(UnsupportedError) as caught:
        run_in_arena(program, plan, worker=worker)
    assert caught.value.code == "plan-run-random"
    assert "RandomNormalLike" in caught.value.message


def test_a_plan_larger_than_the_machine_is_not_tried(worker: Worker) -> None:
    program, plan = planned(chain())
    with pytest.raises(UnsupportedError) as caught:
        run_in_arena(program, with_arena(plan, 1 << 60), worker=worker)
    assert caught.value.code == "plan-run-too-large"


def test_a_model_that_onnxruntime_refuses(worker: Worker) -> None:
    program, plan = planned("""
        <ir_version: 9, opset_import: ["": 18, "some.where": 1]>
        g (float[4] x) => (float[4] y) { y = some.where.Unheard(x) }
        """)
    with pytest.raises(UnsupportedError) as caught:
        run_in_arena(program, plan, worker=worker)
    assert caught.value.code == "plan-run-impossible"


# Random graphs.


@pytest.mark.parametrize("start", range(0, 150, 30))
def test_random_graphs_run_in_their_plans(worker: Worker, start: int) -> None:
    targets = ("cpu", "stm32h743", "ethos-u55", cpu(io_in_arena=True), cpu(in_place=False))
    relations: Counter[str] = Counter()
    for seed in range(start, start + 30):
        program, plan = planned(random_model(seed, 8 + seed % 25), target=targets[seed % 5])
        run = run_in_arena(program, plan, worker=worker, seed=seed)
        assert run.comparison.max_rel_error <= 1e-6
        assert run.written_high_water <= plan.arena_bytes < run.written_high_water + 64
        assert run.kernels["onnxruntime"] == len(plan.steps)
        relations.update(aliases(plan).values())
    assert min(relations[kind] for kind in ("view", "in-place", "part")) > 0


# Broken plans, without the verifier.


def corrupted(plan: MemoryPlan) -> dict[str, tuple[MemoryPlan, str]]:
    """Ways to break the plan of ``chain`` without any sharing, and the rule that must object."""
    at = {name: index_of(plan, name) for name in ("a", "b", "c", "d", "e", "x", "y", "w")}
    a, b, d = (plan.buffers[at[name]] for name in ("a", "b", "d"))
    steps = list(plan.steps)
    steps[0], steps[1] = steps[1], steps[0]
    both = (*b.values, Alias(value="d", relation="view", of="c"))
    moved = with_buffer(with_buffer(plan, at["d"], values=()), at["b"], values=both, end=d.end)
    twice = with_buffer(plan, at["y"], values=(*plan.buffers[at["y"]].values, a.values[0]))
    above = with_arena(plan, plan.arena_bytes + 256)
    weight = {"segment": "weights", "offset": 0}
    return {
        "over a value that the step reads": (
            with_buffer(plan, at["y"], segment="arena", offset=plan.buffers[at["d"]].offset),
            "in-place",
        ),
        "over an input of the caller": (with_buffer(plan, at["y"], offset=0), "overwritten"),
        "into weights": (with_buffer(plan, at["e"], **weight), "owner"),
        "freed too early": (with_buffer(plan, at["b"], end=b.start + 1), "freed"),
        "written before it lives": (with_buffer(plan, at["a"], start=1), "lifetime"),
        "written after it lived": (
            with_buffer(above, at["e"], offset=plan.arena_bytes, start=0, end=2),
            "lifetime",
        ),
        "alive at no step": (with_buffer(plan, at["e"], start=3, end=3), "lifetime"),
        "a reader before its writer": (plan.model_copy(update={"steps": tuple(steps)}), "order"),
        "arena too small": (with_arena(plan, plan.arena_bytes - 64), "bounds"),
        "before the arena": (with_buffer(plan, at["a"], offset=-64), "bounds"),
        "misaligned": (with_buffer(plan, at["a"], offset=4), "alignment"),
        "buffer too small": (with_buffer(plan, at["c"], bytes=b.bytes - 4), "size"),
        "a view that is none": (moved, "view"),
        "in two buffers": (twice, "places"),
        "nowhere": (with_buffer(plan, at["a"], values=()), "places"),
        "in a pool that is not there": (with_buffer(plan, at["a"], pool="attic"), "places"),
        "a value of another model": (
            with_buffer(plan, at["a"], values=(*a.values, Alias(value="q", relation="", of="q"))),
            "places",
        ),
        "no pools": (plan.model_copy(update={"pools": ()}), "places"),
        "no alignment": (
            plan.model_copy(
                update={"pools": tuple(p.model_copy(update={"alignment": 0}) for p in plan.pools)}
            ),
            "places",
        ),
        "a step is missing": (plan.model_copy(update={"steps": plan.steps[:-1]}), "places"),
    }


def separate() -> tuple[Program, MemoryPlan]:
    return planned(chain(), target=cpu(in_place=False))


@pytest.mark.parametrize("kind", list(corrupted(separate()[1])))
def test_each_kind_of_corruption_is_refused(worker: Worker, kind: str) -> None:
    program, plan = separate()
    broken, rule = corrupted(plan)[kind]
    error = refused(program, broken, worker)
    assert error.details["rule"] == rule
    assert error.exit_code == 5


def test_the_first_fault_is_named_with_step_and_value(worker: Worker) -> None:
    program, plan = planned("""
        <ir_version: 9, opset_import: ["": 18]>
        g (float[4,16] x) => (float[4,16] y)
        {
            a = Softmax(x)
            b = Softmax<axis = 0>(a)
            c = Softmax<axis = 0>(b)
            d = Sub(a, b)
            y = Mul(c, d)
        }
        """)
    broken = with_buffer(plan, index_of(plan, "b"), offset=buffer_of(plan, "a").offset)
    error = refused(program, broken, worker)
    assert error.details == {"rule": "overwritten", "step": 1, "value": "b"}
    assert error.node == "b"
    assert "writes 'b' over 'a', which step 3 reads" in error.message


def test_weights_over_one_another_are_refused(worker: Worker) -> None:
    program, plan = planned(random_model(3, 12))
    weights = [at for at, b in enumerate(plan.buffers) if b.segment == "weights" and b.bytes]
    first, second = weights[:2]
    broken = with_buffer(plan, second, offset=plan.buffers[first].offset)
    assert refused(program, broken, worker).details["rule"] == "overwritten"


@pytest.mark.parametrize(
    "pattern", ["MatMul(x2, w)", "Transpose<perm = [1, 0]>(x2)", "CumSum(x2, z)"]
)
def test_in_place_is_proven_by_running_not_by_the_plan(worker: Worker, pattern: str) -> None:
    """A plan that lets an operator write in place which cannot, whatever the plan says about it."""
    weights = ", ".join(str(0.25 + n % 7) for n in range(64))
    program, plan = planned(f"""
        <ir_version: 9, opset_import: ["": 18]>
        g (float[8,8] x) => (float[8,8] y)
        <float[8,8] w = {{{weights}}}, int64 z = {{0}}>
        {{ x2 = Softmax(x)  v = {pattern}  y = Softmax(v) }}
        """)
    at, source = index_of(plan, "v"), index_of(plan, "x2")
    assert at != source
    alias = Alias(value="v", relation="in-place", of="x2")
    merged = (*plan.buffers[source].values, alias)
    broken = with_buffer(
        with_buffer(plan, at, values=()), source, values=merged, end=plan.buffers[at].end
    )
    error = refused(program, broken, worker)
    assert error.details == {"rule": "in-place", "step": 1, "value": "v"}


def rule_broken(program: Program, plan: MemoryPlan, worker: Worker) -> str:
    try:
        run_in_arena(program, plan, worker=worker)
    except VerificationError as error:
        return str(error.details["rule"])
    return ""


def test_random_offsets_are_refused_or_harmless(worker: Worker) -> None:
    """What the verifier refuses fails in the run, too, unless no byte that matters changes.

    Harmless are writes of equal bytes, and in-place writes of operators that the table of facts
    does not call elementwise but that are for these shapes (a Softmax over one element). In the
    other direction the run is stricter in one thing: when a buffer ends, all of it is poisoned,
    also where the verifier permits that a value of another buffer is a piece of it.
    """
    seen: Counter[tuple[bool, str]] = Counter()
    for seed in range(50):
        program, plan = planned(random_model(seed, 10 + seed % 20))
        rng = random.Random(seed)
        places = [at for at, b in enumerate(plan.buffers) if b.segment == "arena" and b.bytes]
        for _ in range(4):
            at = rng.choice(places)
            room = (plan.arena_bytes - plan.buffers[at].padded_bytes) // 64
            broken = with_buffer(plan, at, offset=64 * rng.randrange(room + 1))
            accepted = accepted_by_verifier(program, broken)
            seen[accepted, rule_broken(program, broken, worker)] += 1
    assert sum(seen.values()) == 200
    assert {rule for accepted, rule in seen if accepted} <= {"", "freed"}
    refused_rules = {rule: n for (accepted, rule), n in seen.items() if not accepted}
    harmless = refused_rules.pop("", 0)
    assert set(refused_rules) == {"overwritten", "in-place", "freed"}
    assert sum(refused_rules.values()) >= 100
    assert harmless <= 0.05 * sum(refused_rules.values())


# Trained networks and the builders.

SIZES = {
    "espcn_x3": {"batch": 1, "height": 224, "width": 224},
    "nnsplit_en": {"batch": 1, "length": 256},
    "stories260k_prefill": {"seq": 256},
    "stories260k_decode": {"past": 255},
    "ppocr_det_v1_1": {"image_0": 1, "image_2": 640, "image_3": 640},
    "silero_vad": {"input_0": 1, "input_1": 576, "state_1": 1},
}
SLOW = ("deeplabv3_mnv2_portrait", "dnsmos_sig_bak_ovr", "ppocr_det_v1_1")
QUICK = (
    *("dscnn_kws", "dscnn_kws_dqweights", "dtln_1", "dtln_2", "espcn_x3", "lprnet_plate"),
    *("magika_v3_3", "mnist_cntk", "nnsplit_en", "resnet20_cifar10", "resnet56_cifar10"),
    *("resnet8_cifar10_nhwc", "silero_vad", "sinet_portrait", "squeezenet1_1_fp16"),
    *("squeezenet1_1_imagenet", "stories260k_decode", "stories260k_prefill"),
    *("ultraface_rfb320", "yolox_nano_416"),
)


@pytest.mark.assets
@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_trained_networks_run_in_their_plans(assets: Path, worker: Worker, name: str) -> None:
    program, plan = planned(assets / "models" / f"{name}.onnx", SIZES.get(name))
    run = run_in_arena(program, plan, worker=worker)
    assert run.steps == len(plan.steps) == run.kernels["onnxruntime"]
    assert run.written_high_water <= plan.arena_bytes < run.written_high_water + 64
    # The kernels are those of the ordinary run, which rounds less often between two halves.
    half = name.endswith("fp16")
    assert run.comparison.max_rel_error <= (5e-3 if half else 1e-6)


@pytest.mark.torch
@pytest.mark.parametrize(
    "name",
    [
        "lstm_tagger",
        pytest.param("llama_decode", marks=pytest.mark.slow),
        pytest.param("shufflenet_v2", marks=pytest.mark.slow),
        pytest.param("unet", marks=pytest.mark.slow),
    ],
)
def test_models_from_torch_run_in_their_plans(worker: Worker, name: str) -> None:
    pytest.importorskip("torch")
    import models
    from graphopt.frontends.torch_capture import capture_torch
    from graphopt.ir.shapes import infer_shapes
    from graphopt.memory.planning import make_plan
    from graphopt.targets.loader import resolve_target

    sample = models.build(name, **models.SMALL[name])
    program = capture_torch(
        sample.module, sample.example_inputs, dynamic_shapes=sample.dynamic_shapes
    )
    bounds = infer_shapes(program).upper_bounds
    plan = make_plan(program, resolve_target("cpu"), upper_bounds=bounds)
    run = run_in_arena(program, plan, worker=worker)
    assert run.comparison.max_rel_error <= 1e-5
    small = [np.asarray(array) for array in sample.example_inputs]
    feed = dict(zip((v.name or "" for v in program.graph.inputs), small, strict=True))
    assert run_in_arena(program, plan, [feed], worker=worker).comparison.passed


# The command line.


def test_check_executes_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, file = tmp_path / "m.onnx", tmp_path / "p.json"
    onnx.save(chain(), str(model))
    plan = planned(model)[1]
    file.write_text(plan.to_json())
    assert command_line(["check", str(model), "--plan", str(file)]) == 0
    out = capsys.readouterr().out
    assert f"plan proven: 8 steps inside {plan.arena_bytes} bytes" in out
    assert "executed: 8 steps (8 by onnxruntime) wrote up to byte" in out
    assert command_line(["check", str(model), "--plan", str(file), "--json"]) == 0
    assert '"written_high_water"' in capsys.readouterr().out


def test_check_says_what_it_did_not_execute(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, file = tmp_path / "m.onnx", tmp_path / "p.json"
    text = '<ir_version: 9, opset_import: ["": 18]> g (float[4] x) => (float[4] y) '
    onnx.save(onnx.parser.parse_model(text + "{ y = RandomNormalLike(x) }"), str(model))
    file.write_text(planned(model)[1].to_json())
    assert command_line(["check", str(model), "--plan", str(file)]) == 0
    assert "not executed: node" in capsys.readouterr().out
