"""The child process: what it computes, and what becomes of it when it misbehaves."""

import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest

from graphopt.errors import InvalidModelError, InvariantError, UnsupportedError
from graphopt.isolation import (
    ArrayWriter,
    Worker,
    default_memory_bytes,
    read_arrays,
    run_isolated,
)
from tests.frontends.mutate import mutants, seeds

TASKS = Path(__file__).with_name("isolated_tasks.py")
HEADER = '<ir_version: 10, opset_import: ["": 21]>\n'
ON_LINUX = sys.platform == "linux"


def write_model(path: Path, text: str) -> Path:
    onnx.save(onnx.parser.parse_model(HEADER + text), path)
    return path


@pytest.fixture
def relu(tmp_path: Path) -> Path:
    return write_model(
        tmp_path / "m.onnx",
        "g (float[n] x) => (float[n] y) { z = Relu(x)  y = Neg(z) }",
    )


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(seconds=120, _extra_tasks=TASKS) as shared:
        yield shared


def test_run_returns_outputs_per_model_and_sample(worker: Worker, relu: Path) -> None:
    feeds = [{"x": np.array(v, np.float32)} for v in ([1, -1], [2, -2, 3])]
    found = worker.call("run", {"models": [relu, relu], "feeds": feeds})["outputs"]
    assert [[s["y"].tolist() for s in model] for model in found] == [[[-1, 0], [-2, 0, -3]]] * 2
    assert found[0][0]["y"].dtype == np.float32


def test_run_adds_values_as_outputs(worker: Worker, relu: Path) -> None:
    found = worker.run_model(
        relu, {"x": np.array([1, -1], np.float32)}, optimize=False, extra_outputs=["z"]
    )
    assert {k: v.tolist() for k, v in found.items()} == {"y": [-1, 0], "z": [1, 0]}


def test_run_with_external_data_and_extra_outputs(worker: Worker, tmp_path: Path) -> None:
    path = write_model(
        tmp_path / "e.onnx", "g (float[2] x) => (float[2] y) { z = Add(x, w)  y = Neg(z) }"
    )
    model = onnx.load(path)
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(np.array([10, 20], np.float32), "w")
    )
    onnx.save(model, path, save_as_external_data=True, location="e.data", size_threshold=0)
    feed = {"x": np.ones(2, np.float32)}
    assert worker.run_model(path, feed, optimize=False, extra_outputs=["z"])["z"].tolist() == [
        11,
        21,
    ]


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn"])
def test_types_that_numpy_lacks_go_in_and_out(worker: Worker, tmp_path: Path, name: str) -> None:
    onnx_name = name.replace("_", "")
    path = write_model(
        tmp_path / "n.onnx", f"g ({onnx_name}[2] x) => ({onnx_name}[2] y) {{ y = Identity(x) }}"
    )
    x = np.array([1.5, -2], getattr(ml_dtypes, name))
    found = worker.run_model(path, {"x": x}, optimize=True)["y"]
    assert found.dtype == x.dtype
    assert found.tolist() == [1.5, -2]


def test_sequences_and_texts_go_in_and_out(worker: Worker, tmp_path: Path) -> None:
    sequence = write_model(
        tmp_path / "s.onnx", "g (seq(float[n]) x) => (seq(float[n]) y) { y = Identity(x) }"
    )
    parts = [np.zeros(2, np.float32), np.ones(1, np.float32)]
    found = worker.call("run", {"models": [sequence], "feeds": [{"x": parts}]})["outputs"][0][0]
    assert [part.tolist() for part in found["y"]] == [[0, 0], [1]]
    text = write_model(tmp_path / "t.onnx", "g (string[2] x) => (string[2] y) { y = Identity(x) }")
    assert worker.run_model(text, {"x": np.array(["ä", ""], object)}, optimize=True)[
        "y"
    ].tolist() == ["ä", ""]


def test_load_tells_the_signature(worker: Worker, relu: Path) -> None:
    found = worker.call("load", {"model": relu, "optimization": "disabled"})
    assert found["inputs"] == [{"name": "x", "type": "tensor(float)", "shape": ["n"]}]
    assert found["outputs"][0]["name"] == "y"


def test_a_changed_file_is_loaded_again(worker: Worker, relu: Path) -> None:
    feed = {"x": np.array([3], np.float32)}
    assert worker.run_model(relu, feed, optimize=True)["y"].tolist() == [-3]
    write_model(relu, "g (float[n] x) => (float[n] y) { y = Add(x, x) }")
    assert worker.run_model(relu, feed, optimize=True)["y"].tolist() == [6]


def test_a_relative_path_is_that_of_the_parent(
    worker: Worker, relu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(relu.parent)
    assert worker.call("check", {"model": relu.name}) == {}


def test_checker_refuses(worker: Worker, tmp_path: Path) -> None:
    path = write_model(tmp_path / "bad.onnx", "g (float[2] x) => (float[3] y) { y = Relu(x) }")
    with pytest.raises(InvalidModelError, match=r"bad\.onnx.*dimension 0") as caught:
        worker.call("check", {"model": path})
    assert caught.value.code == "checker-refused"
    path.write_bytes(b"no model at all")
    with pytest.raises(InvalidModelError) as caught:
        worker.call("check", {"model": path})
    assert caught.value.code == "checker-refused"


def test_shapes_are_inferred_without_weights(worker: Worker, tmp_path: Path) -> None:
    path = write_model(tmp_path / "w.onnx", "g (float[n, 64] x) => (y) { y = MatMul(x, w) }")
    model = onnx.load(path)
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(np.ones((64, 128), np.float32), "w")
    )
    onnx.save(model, path)
    found = worker.call("infer-shapes", {"model": path, "strict": True})["model"]
    assert len(found) < 1000 < path.stat().st_size
    shape = onnx.load_from_string(found).graph.output[0].type.tensor_type.shape
    assert [d.dim_value or d.dim_param for d in shape.dim] == ["n", 128]


def test_inference_refuses(worker: Worker, tmp_path: Path) -> None:
    path = write_model(tmp_path / "bad.onnx", "g (float[2] x, float[3] z) => (y) { y = Add(x, z) }")
    with pytest.raises(InvalidModelError) as caught:
        worker.call("infer-shapes", {"model": path, "strict": True})
    assert caught.value.code == "inference-refused"
    path.write_bytes(b"no model at all")
    with pytest.raises(InvalidModelError) as caught:
        worker.call("infer-shapes", {"model": path})
    assert caught.value.code == "inference-refused"


def test_runtime_refuses_with_its_own_words(worker: Worker, tmp_path: Path) -> None:
    path = write_model(tmp_path / "k.onnx", "g (float[2] x) => (float[2] y) { y = com.my.Foo(x) }")
    with pytest.raises(UnsupportedError, match="Foo") as caught:
        worker.call("load", {"model": path})
    assert caught.value.code == "runtime-refused"
    assert "\n" not in caught.value.message


def test_runtime_fails_on_wrong_inputs(worker: Worker, relu: Path) -> None:
    before = worker.pid
    with pytest.raises(UnsupportedError, match="INVALID_ARGUMENT") as caught:
        worker.run_model(relu, {"x": np.zeros((2, 2), np.float32)}, optimize=False)
    assert caught.value.code == "runtime-failed"
    assert worker.pid == before, "a refusal costs no new child"


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGFPE", "SIGABRT", "SIGBUS", "SIGILL"])
def test_death_by_signal_is_the_fault_of_the_model(worker: Worker, name: str) -> None:
    with pytest.raises(InvalidModelError, match=name) as caught:
        worker.call("stop-with", {"signal": int(signal.Signals[name])})
    assert caught.value.code == "native-crash"


def test_segfault_is_survived_and_the_worker_goes_on(worker: Worker, relu: Path) -> None:
    first = worker.pid
    with pytest.raises(InvalidModelError, match="SIGSEGV") as caught:
        worker.call("segfault", {})
    assert caught.value.code == "native-crash"
    assert worker.pid is None
    assert worker.call("check", {"model": relu}) == {}
    assert worker.pid not in (None, first)


@pytest.mark.parametrize(
    ("name", "says"), [("SIGKILL", ""), ("SIGXCPU", ""), ("SIGABRT", "what(): std::bad_alloc")]
)
def test_death_by_a_limit_is_no_fault_of_the_model(worker: Worker, name: str, says: str) -> None:
    number = signal.Signals[name]
    task = {"signal": int(number), "says": says}
    if name == "SIGKILL":
        with Worker(seconds=60, _extra_tasks=TASKS) as own:
            own.call("echo", {})
            assert own.pid is not None
            os.kill(own.pid, number)
            with pytest.raises(UnsupportedError) as caught:
                own.call("echo", {})
    else:
        with pytest.raises(UnsupportedError) as caught:
            worker.call("stop-with", task)
    assert caught.value.code == "native-limit"


@pytest.mark.skipif(not ON_LINUX, reason="only Linux enforces RLIMIT_DATA on maps")
def test_memory_is_limited_and_the_parent_does_not_grow(worker: Worker) -> None:
    def anonymous_kib() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    before = anonymous_kib()
    with pytest.raises(UnsupportedError, match="1073741824") as caught:
        worker.call("allocate", {"mebibytes": 4096}, memory_bytes=1 << 30)
    assert caught.value.code == "native-limit"
    assert anonymous_kib() - before < 8 << 10
    assert worker.call("allocate", {"mebibytes": 100}) == {"held": 100}


@pytest.mark.skipif(not ON_LINUX, reason="only Linux enforces RLIMIT_DATA on maps")
def test_a_fold_bomb_in_native_code_hits_the_limit(worker: Worker, tmp_path: Path) -> None:
    path = write_model(
        tmp_path / "bomb.onnx",
        "g (float[1] x) => (float[20000, 20000] y)"
        "<int64[2] s = {20000, 20000}> { z = ConstantOfShape(s)  y = Add(z, x) }",
    )
    feed = {"x": np.ones(1, np.float32)}
    arguments = {"models": [path], "feeds": [feed], "optimization": "disabled"}
    with pytest.raises(UnsupportedError) as caught:
        worker.call("run", arguments, memory_bytes=1 << 30)
    assert caught.value.code == "native-limit"


def test_time_is_limited(worker: Worker) -> None:
    started = time.monotonic()
    with pytest.raises(UnsupportedError, match="more than 1 seconds") as caught:
        worker.call("hang", {"seconds": 30}, seconds=1)
    assert caught.value.code == "native-limit"
    assert time.monotonic() - started < 10
    assert worker.pid is None


def test_processor_time_is_limited_even_without_the_parent() -> None:
    with Worker(seconds=60, _extra_tasks=TASKS) as own:
        own.call("echo", {})
        child = own._child
        assert child is not None
        request = {"task": "burn", "arguments": {}, "memory_bytes": 1 << 33, "seconds": 0}
        assert child.ask(request, time.monotonic() + 30) is None
        assert not child.timed_out
        assert child.process.returncode == -signal.SIGXCPU


def test_a_python_error_in_the_child_is_our_bug(worker: Worker) -> None:
    with pytest.raises(InvariantError, match="LookupError: nothing here") as caught:
        worker.call("raise-error", {})
    assert caught.value.code == "isolated-task-failed"
    assert "raise_error" in caught.value.details["traceback"]
    with pytest.raises(InvariantError, match="KeyError"):
        worker.call("no-such-task", {})


def test_an_unexpected_end_is_our_bug(worker: Worker) -> None:
    with pytest.raises(InvariantError, match="status 3") as caught:
        worker.call("leave", {"status": 3})
    assert caught.value.code == "isolated-start-failed"


def test_what_a_broken_child_answers_is_not_trusted() -> None:
    answers = {
        "not json": UnsupportedError,
        "[1, 2]": UnsupportedError,
        "{}": InvariantError,
        '{"ok": true}': InvariantError,
        '{"ok": true, "result": {"plain": 1}}': InvariantError,
        '{"ok": true, "result": {"map": {"a": {"array": 0, "dtype": "float64", "shape": [9]}}}}': (
            InvariantError
        ),
        '{"ok": true, "result": {"map": {"a": {"array": 0, "dtype": "object", "shape": [1]}}}}': (
            InvariantError
        ),
        '{"ok": true, "result": {"map": {"a": {"array": 0, "dtype": "int8", "shape": [-1]}}}}': (
            InvariantError
        ),
    }
    with Worker(seconds=60, _extra_tasks=TASKS) as own:
        for answer, error in answers.items():
            with pytest.raises(error):
                own.call("lie", {"answer": answer})
            own.close()


def test_files_of_the_child_are_limited(worker: Worker) -> None:
    with pytest.raises(UnsupportedError) as caught:
        worker.call("fill-disk", {"bytes": 3 << 29}, memory_bytes=5 << 28)
    assert caught.value.code == "native-limit"


def test_much_standard_error_does_no_harm(worker: Worker) -> None:
    assert worker.call("chatter", {}) == {}


def test_arguments_arrive_as_they_were_sent(worker: Worker) -> None:
    odd = {"text": "ä\n\0", "list": [1, None, True, 2.5], "map": {"": {}}}
    assert worker.call("echo", {"odd": odd})["arguments"]["odd"] == odd


def test_the_child_sees_little(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "onnx.py").write_text("raise SystemExit('imported from the working directory')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRAPHOPT_SECRET", "1")
    with Worker(seconds=60, _extra_tasks=TASKS, memory_bytes=3 << 30) as own:
        seen = own.call("look-around", {})
        folder = Path(seen["cwd"])
        assert folder.stat().st_mode & 0o777 == 0o700
        model = write_model(tmp_path / "m.onnx", "g (float[1] x) => (float[1] y) { y = Abs(x) }")
        assert own.call("check", {"model": model}) == {}
    assert not folder.exists()
    assert "GRAPHOPT_SECRET" not in seen["environment"]
    assert seen["group"] == seen["pid"] != os.getpgrp()
    assert seen["core"] == [0, 0]
    assert seen["data"] == 3 << 30
    assert seen["stdin"] == "/dev/null"
    assert seen["modules"] == []
    assert str(tmp_path) not in seen["path"]
    assert "" not in seen["path"]


def test_nothing_is_left_behind(
    relu: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    open_files = len(os.listdir("/proc/self/fd")) if ON_LINUX else 0
    with Worker(seconds=60, _extra_tasks=TASKS) as own:
        with pytest.raises(InvalidModelError):
            own.call("segfault", {})
        own.call("check", {"model": relu})
        pid = own.pid
    assert os.listdir(tmp_path / "tmp") == []
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    if ON_LINUX:
        assert len(os.listdir("/proc/self/fd")) == open_files


def test_run_isolated_is_a_worker_for_one_task(relu: Path) -> None:
    assert run_isolated("check", {"model": relu}, memory_bytes=4 << 30, seconds=60) == {}
    with pytest.raises(UnsupportedError):
        run_isolated("check", {"model": relu}, memory_bytes=4 << 30, seconds=0.01)


def test_an_orphan_ends_by_itself(tmp_path: Path) -> None:
    child = Worker(seconds=60, _extra_tasks=TASKS)
    folder = Path(child.call("look-around", {})["cwd"])
    inner = child._child
    assert inner is not None
    os.close(inner._request)
    assert inner.process.wait(timeout=30) == 0
    assert not folder.exists()
    os.close(inner._answer)


def test_memory_default_grows_with_the_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100)
    assert default_memory_bytes([tmp_path / "a", tmp_path / "none"]) == (4 << 30) + 300


def test_arrays_survive_the_file(tmp_path: Path) -> None:
    tree = {
        "a": np.arange(6, dtype=np.int16).reshape(2, 3)[:, ::2],
        "b": [np.array(2.5), np.zeros((0, 3), bool), None],
        "c": np.array([1, 2], ml_dtypes.bfloat16),
        "d": b"raw",
    }
    with ArrayWriter(tmp_path / "x") as writer:
        described = json.loads(json.dumps(writer.describe(tree)))
    found = read_arrays(tmp_path / "x", described)
    assert found["a"].tolist() == [[0, 2], [3, 5]]
    assert found["a"].dtype == np.int16
    assert found["b"][0].shape == ()
    assert found["b"][1].shape == (0, 3)
    assert found["b"][2] is None
    assert found["c"].dtype == ml_dtypes.bfloat16
    assert found["d"] == b"raw"
    with pytest.raises(UnsupportedError), ArrayWriter(tmp_path / "y") as writer:
        writer.describe({"a": object()})


def test_limits_of_the_parent_are_untouched(worker: Worker) -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    worker.call("echo", {})
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_mutants_in_native_code_leave_the_parent_alone(tmp_path: Path) -> None:
    path = tmp_path / "mutant.onnx"
    codes: set[str] = set()
    with Worker(memory_bytes=2 << 30, seconds=60) as own:
        for mutant in mutants(seeds(), 60, seed=5):
            path.write_bytes(mutant.SerializeToString())
            for task in ("check", "load", "infer-shapes"):
                try:
                    own.call(task, {"model": path, "data_prop": True})
                except (InvalidModelError, UnsupportedError) as error:
                    codes.add(error.code)
    assert codes >= {"checker-refused", "runtime-refused", "inference-refused"}
