"""The command line as a user meets it: exit codes, what goes where, files written whole."""

import json
import os
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import onnx
import pytest

from graphopt.cli.entry import run
from tests.frontends.hostile import HOSTILE
from tests.test_compile import conv_model
from tests.test_compile_precision import language_head


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "small.onnx"
    onnx.save(conv_model(batch="batch"), str(path))
    return path


def graphopt(*arguments: object) -> int:
    return run([str(a) for a in arguments])


def test_compile_writes_the_model_and_prints_the_table(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report, plan = (tmp_path / name for name in ("o.onnx", "r.html", "p.json"))
    code = graphopt(
        "compile", model, "-o", out, "--report", report, "--plan", plan, "--dim", "batch=2"
    )
    captured = capsys.readouterr()
    assert code == 0
    assert "small.onnx" in captured.out
    assert "passed" in captured.out
    assert f"wrote {out}" in captured.err
    assert [n.op_type for n in onnx.load(str(out)).graph.node] == ["Conv", "Relu", "Add"]
    assert report.read_text().startswith("<!doctype html>")
    assert json.loads(plan.read_text())["model"]["bindings"] == {"batch": 2}
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "o.onnx",
        "p.json",
        "r.html",
        "small.onnx",
    ]


def test_json_is_one_object_on_stdout(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert graphopt("compile", model, "-o", tmp_path / "o.onnx", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["verification"]["passed"] is True
    assert data["files"] == [str(tmp_path / "o.onnx")]


def test_dry_run_writes_nothing(model: Path, tmp_path: Path) -> None:
    assert graphopt("compile", model, "--dry-run") == 0
    assert [p.name for p in tmp_path.iterdir()] == ["small.onnx"]


def test_config_round_trip(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "c.toml"
    code = graphopt(
        "compile", model, "--dim", "batch=3", "--skip-pass", "fuse-bias", "--save-config", config
    )
    assert code == 0
    assert 'dim = ["batch=3"]' in config.read_text()
    capsys.readouterr()
    out = tmp_path / "o.onnx"
    assert graphopt("compile", model, "-o", out, "--config", config, "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["plan"]["model"]["bindings"] == {"batch": 3}
    assert "fuse-bias" not in [p["name"] for p in data["passes"]]
    config.write_text("tagret = 'cpu'\n")
    assert graphopt("compile", model, "-o", out, "--config", config) == 2
    assert "did you mean 'target'" in capsys.readouterr().err


EXIT_CODES: list[tuple[tuple[str, ...], int, str]] = [
    (("compile", "{model}"), 2, "output-missing"),
    (("compile", "{model}", "-o", "{dir}/o.onnx", "-t", "cpuu"), 2, "target-unknown"),
    (("compile", "{model}", "-o", "{dir}/o.onnx", "--dim", "batch"), 2, "dim-unreadable"),
    (("compile", "{model}", "-o", "{dir}/o.onnx", "--dim", "bath=1"), 2, "dimension-unknown"),
    (("compile", "{model}", "-o", "{dir}/o.xyz"), 2, "format-unknown"),
    (("compile", "{dir}/none.onnx", "-o", "{dir}/o.onnx"), 3, "file-not-found"),
    (("compile", "{model}", "-o", "{dir}/o.pt"), 2, "format-unknown"),
    (("compile", "{model}", "-o", "{dir}/o.onnx", "-p", "fp4"), 4, "option-not-served"),
    (("compile", "{model}", "-o", "{dir}/o.onnx", "-p", "int8"), 2, "calibration-missing"),
    (
        ("compile", "{model}", "-o", "{dir}/o.onnx", "-p", "int8", "--calib", "{dir}/none"),
        2,
        "calibration-unreadable",
    ),
    (("compile", "{model}", "-o", "{dir}/o.onnx", "--calib", "{dir}"), 2, "calibration-unused"),
    (
        ("compile", "{model}", "--dry-run", "--calibration-method", "mse"),
        2,
        "calibration-unused",
    ),
    (
        ("compile", "{model}", "--dry-run", "--calibration-method", "median"),
        2,
        "calibration-method",
    ),
    (("compile", "{model}", "-o", "{dir}/o.onnx", "--memory-limit", "1KiB"), 6, "does-not-fit"),
    (("compile", "{model}", "-o", "{dir}/none/o.onnx"), 7, "output-folder-missing"),
    (("compile", "{model}", "-o", "{model}"), 7, "output-is-input"),
    (("plan", "{model}", "--memory-limit", "dram=1KiB"), 6, "does-not-fit"),
    (("plan", "{model}", "--memory-limit", "sram=1KiB"), 2, "pool-unknown"),
    (("plan", "{model}", "--format", "xml"), 2, "format-unknown"),
    (("explain", "nonsense"), 2, "code-unknown"),
    (("passes", "show", "fold-constant"), 2, "pass-unknown"),
]


@pytest.mark.parametrize(("arguments", "code", "name"), EXIT_CODES, ids=lambda v: str(v)[:60])
def test_exit_codes(
    arguments: tuple[str, ...],
    code: int,
    name: str,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = model.read_bytes()
    filled = [a.format(model=model, dir=tmp_path) for a in arguments]
    assert graphopt(*filled) == code
    error = capsys.readouterr().err
    assert f"[{name}]" in error
    assert "Traceback" not in error
    assert model.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["small.onnx"]


def test_usage_errors_exit_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert graphopt("compile", "x.onnx", "--taget", "cpu") == 2
    assert "--target" in capsys.readouterr().err
    assert graphopt("compil") == 2


def test_json_errors_are_json(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = graphopt("compile", model, "-o", tmp_path / "o.onnx", "--memory-limit", "1KiB", "--json")
    assert code == 6
    data = json.loads(capsys.readouterr().out)
    assert data["code"] == "does-not-fit"
    assert data["excess_bytes"] == data["required_bytes"] - 1024
    assert data["owners"]


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
@pytest.mark.parametrize(
    ("maker", "error", "code"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE]
)
def test_hostile_files_exit_with_their_code(
    maker: Any,
    error: Any,
    code: str,
    relative: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path: Path = maker(tmp_path)
    if relative:
        monkeypatch.chdir(path.parent)
        path = Path(path.name)
    out = tmp_path / "out.onnx"
    assert graphopt("compile", path, "-o", out, "--no-verify") == error.exit_code
    text = capsys.readouterr().err
    assert f"[{code}]" in text
    assert "Traceback" not in text
    assert not out.exists()


def test_plan_formats(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert graphopt("plan", model, "--dim", "batch=2") == 0
    assert "peak" in capsys.readouterr().out
    assert graphopt("plan", model, "--format", "csv") == 0
    assert capsys.readouterr().out.startswith("id,lower,upper,size,offset")
    assert graphopt("plan", model, "--format", "trace") == 0
    assert "traceEvents" in json.loads(capsys.readouterr().out)
    assert graphopt("plan", model, "--format", "html") == 0
    assert "<svg" in capsys.readouterr().out
    assert graphopt("plan", model, "--json") == 0
    assert json.loads(capsys.readouterr().out)["schema_version"] == 1


def test_check_accepts_and_rejects(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plan = tmp_path / "o.onnx", tmp_path / "p.json"
    assert graphopt("compile", model, "-o", out, "--plan", plan) == 0
    assert graphopt("check", model) == 0
    assert "accepted by the ONNX checker" in capsys.readouterr().out
    assert graphopt("check", model, out) == 0
    assert graphopt("check", out, "--plan", plan) == 0
    assert "plan proven" in capsys.readouterr().out
    assert graphopt("check", model, "--plan", plan) == 5, "a plan belongs to its own model"
    changed = onnx.load(str(out))
    changed.graph.node[0].attribute[0].CopyFrom(changed.graph.node[0].attribute[0])
    other = conv_model(batch="batch")
    other.graph.initializer[0].raw_data = bytes(len(other.graph.initializer[0].raw_data))
    wrong = tmp_path / "wrong.onnx"
    onnx.save(other, str(wrong))
    assert graphopt("check", model, wrong) == 5
    assert "verification-failed" in capsys.readouterr().err


def test_inspect_and_diff(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert graphopt("inspect", model) == 0
    text = capsys.readouterr().out
    assert "x: float[batch,3,16,16]" in text
    assert "BatchNormalization" in text
    assert graphopt("inspect", model, "--json", "--layers") == 0
    assert json.loads(capsys.readouterr().out)["nodes"] == 5
    out = tmp_path / "o.onnx"
    graphopt("compile", model, "-o", out)
    capsys.readouterr()
    assert graphopt("diff", model, out, "--lines") == 0
    text = capsys.readouterr().out
    assert "BatchNormalization" in text
    assert "-40.0 %" in text


def test_describing_verbs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert graphopt("targets", "list") == 0
    assert "stm32h743" in capsys.readouterr().out
    assert graphopt("targets", "show", "gpu") == 0
    own = tmp_path / "own.toml"
    own.write_text(capsys.readouterr().out)
    assert graphopt("targets", "validate", own) == 0
    own.write_text(own.read_text().replace("alignment", "aligment"))
    capsys.readouterr()
    assert graphopt("targets", "validate", own) == 2
    assert "alignment" in capsys.readouterr().out
    assert graphopt("passes", "list") == 0
    assert "fold-batch-norm" in capsys.readouterr().out
    assert graphopt("passes", "show", "fold-constants") == 0
    assert "max_output_bytes" in capsys.readouterr().out
    assert graphopt("explain", "does-not-fit") == 0
    assert "pool" in capsys.readouterr().out
    assert graphopt("explain") == 0


def test_bisect_finds_nothing_in_a_good_pipeline(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert graphopt("bisect", model, "--metric", "peak") == 0
    assert "no pass is guilty" in capsys.readouterr().out


def test_bisect_finds_the_pass_that_rounds(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folding a batch normalization moves the last bits: at almost no tolerance it is guilty."""
    from graphopt.numerics import compare

    monkeypatch.setattr(compare.Tolerance, "for_dtype", lambda self, dtype: (self.rtol, 0.0))
    assert graphopt("bisect", model, "--rtol", "1e-12", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["found"] is True
    assert data["options"] == "fold-batch-norm"
    assert any("BatchNormalization" in line for line in data["changed"])


def test_factory_runs_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import onnx\nfrom onnx import helper as h, TensorProto\n"
        "def make(size=4):\n"
        "    v = lambda n: h.make_tensor_value_info(n, TensorProto.FLOAT, [size])\n"
        "    relu = h.make_node('Relu', ['x'], ['y'])\n"
        "    g = h.make_graph([relu], 'g', [v('x')], [v('y')])\n"
        "    return h.make_model(g, opset_imports=[h.make_opsetid('', 18)], ir_version=10)\n"
    )
    (tmp_path / "build.py").write_text(code)
    spec = f"{tmp_path / 'build.py'}:make(size=8)"
    assert graphopt("plan", spec, "--json") == 0
    captured = capsys.readouterr()
    assert "running the code" in captured.err
    assert json.loads(captured.out)["model"]["inputs"] == {"x": "float[8]"}


@pytest.mark.parametrize("seed", ["1", "4711"])
def test_two_runs_are_byte_identical(model: Path, tmp_path: Path, seed: str) -> None:
    outputs = []
    for number, hash_seed in enumerate(("0", seed)):
        out, plan = tmp_path / f"o{number}.onnx", tmp_path / f"p{number}.json"
        command = [sys.executable, "-m", "graphopt", "compile", str(model), "-o", str(out)]
        command += ["--plan", str(plan), "--report", str(tmp_path / "r.html"), "--no-verify"]
        subprocess.run(
            command,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
        )
        outputs.append((out.read_bytes(), plan.read_bytes(), (tmp_path / "r.html").read_bytes()))
    assert outputs[0][:2] == outputs[1][:2]


def test_help_needs_nothing_heavy() -> None:
    code = (
        "import sys; from graphopt.cli.entry import run; run(['--help']); "
        "heavy = {'torch', 'onnxruntime', 'onnx', 'onnx_ir', 'pydantic', 'numpy', 'jinja2'}; "
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "compile" in done.stdout


def test_interrupt_exits_with_130(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("graphopt.cli.verb_plan.run_plan", interrupt)
    assert graphopt("plan", model) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("columns", [0, 24, 200])
def test_progress_says_what_is_tried_in_half_precision(tmp_path: Path, columns: int) -> None:
    path = tmp_path / "head.onnx"
    onnx.save(language_head(), str(path))
    terminal, other = os.openpty()
    termios.tcsetwinsize(other, (24, columns))
    environment = {name: text for name, text in os.environ.items() if name != "CI"}
    arguments = ["compile", str(path), "--precision", "fp16", "-t", "nvidia-l4", "--dry-run"]
    with subprocess.Popen(
        [sys.executable, "-m", "graphopt", *arguments],
        stdout=subprocess.DEVNULL, stderr=other, env=environment,
    ) as process:  # fmt: skip
        os.close(other)
        said = b""
        while True:
            try:
                part = os.read(terminal, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            said += part
        assert process.wait() == 0
    os.close(terminal)
    lines = said.decode().split("\r\x1b[K")
    wanted = [
        "[0/1] run the samples in float32",
        "[0/1] measure float16: everything",
        "[1/2] compare the peak with that of float32",
        "[1/2] convert to float16",
    ]
    wanted = [line[: (columns or 80) - 1] for line in wanted]
    assert [line for line in lines if line in wanted] == wanted
    assert lines[-1] == ""


# Compiles, and waits in the middle of a task of the isolated child, whose number it prints.
# What is started in the background ignores Ctrl-C, unless it says otherwise.
WAITING = """
import signal, sys, time
from graphopt import isolation
from graphopt.cli.entry import main
signal.signal(signal.SIGINT, signal.default_int_handler)
def wait(self, request, deadline):
    print(self.process.pid, flush=True)
    time.sleep(600)
isolation._Child.ask = wait
main(sys.argv[1:])
"""


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_a_compile_that_is_ended_leaves_nothing(
    model: Path, tmp_path: Path, number: int, code: int
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch)}
    arguments = ["compile", str(model), "-o", str(tmp_path / "o.onnx"), "--dim", "batch=2"]
    with subprocess.Popen(
        [sys.executable, "-c", WAITING, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert is_alive(child)
        during = sorted(path.name for path in scratch.iterdir())
        assert [name.rsplit("-", 1)[0] for name in during] == [
            "graphopt-isolated",
            "graphopt-verify",
        ]
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == code
    if code > 0:
        assert "graphopt: interrupted" in said
        assert not is_alive(child)
    else:
        # Nobody cleaned up but the child, which sees that it is alone: the next compile does.
        for _ in range(600):
            if not list(scratch.glob("graphopt-isolated-*")):
                break
            time.sleep(0.1)
        assert [path.name for path in scratch.glob("graphopt-*")] == during[1:]
        done = subprocess.run(
            [sys.executable, "-m", "graphopt", *arguments],
            env=environment, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0
    assert list(scratch.glob("graphopt-*")) == []
    assert (tmp_path / "o.onnx").exists() == (code < 0)


def test_internal_errors_exit_with_one_and_say_so(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr("graphopt.cli.verb_plan.run_plan", fail)
    assert graphopt("plan", model) == 1
    assert "internal error: boom" in capsys.readouterr().err
