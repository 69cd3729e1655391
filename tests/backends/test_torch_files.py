"""TorchScript and .pt2 files: run without graphopt, keep open sizes, are checked first."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphopt

torch = pytest.importorskip("torch")

from graphopt.backends.torch_ops import elementwise  # noqa: E402 - torch may be missing
from graphopt.backends.torch_ops.registry import REGISTRY, Operator  # noqa: E402
from graphopt.numerics.compare import Tolerance, compare_arrays  # noqa: E402
from models import SMALL, build  # noqa: E402

pytestmark = pytest.mark.torch
LOAD = {"ts": "torch.jit.load(p)", "pt2": "torch.export.load(p).module()"}
FRESH = """
import sys, warnings, json
warnings.simplefilter("ignore")
import numpy as np, torch
p, feeds, out = sys.argv[1:]
module = {load}
data = np.load(feeds)
with torch.no_grad():
    found = module(*(torch.from_numpy(data[k]) for k in sorted(data.files)))
found = found if isinstance(found, (tuple, list)) else (found,)
np.savez(out, *[v.numpy() for v in found])
assert "graphopt" not in sys.modules
"""


def run_fresh(path: Path, feed: dict[str, Any], folder: Path) -> list[Any]:
    """Run a file in a process that cannot see graphopt's modules."""
    np.savez(folder / "feeds.npz", **{f"{i:03}": a for i, a in enumerate(feed.values())})
    code = FRESH.format(load=LOAD[path.suffix[1:]])
    command = [sys.executable, "-I", "-c", code, str(path)]
    command += [str(folder / "feeds.npz"), str(folder / "out.npz")]
    subprocess.run(command, check=True, cwd=folder)
    data = np.load(folder / "out.npz")
    return [data[name] for name in data.files]


def compiled(name: str) -> graphopt.CompileResult:
    sample = build(name, **SMALL[name])
    return graphopt.compile(
        sample.module, sample.example_inputs, dynamic_shapes=sample.dynamic_shapes
    )


def sizes_of(result: graphopt.CompileResult, extra: int) -> dict[str, Any]:
    from graphopt.numerics.feeds import make_feed, size_choices

    sizes = next(iter(size_choices(result.program, {})))
    return dict(make_feed(result.program, {k: v + extra for k, v in sizes.items()}, 7))


@pytest.mark.parametrize("suffix", ["ts", "pt2"])
@pytest.mark.parametrize("name", ["mlp", "digits_cnn", "bert", "lstm_tagger"])
def test_a_file_runs_without_graphopt_at_other_sizes(
    name: str, suffix: str, tmp_path: Path
) -> None:
    result = compiled(name)
    path = tmp_path / f"m.{suffix}"
    assert result.save(path) == [path]
    feed = sizes_of(result, 1)
    expected = result.run(feed)
    found = run_fresh(path, feed, tmp_path)
    assert len(found) == len(expected)
    for (output, array), other in zip(expected.items(), found, strict=True):
        error = compare_arrays(output, array, other, Tolerance())
        assert error.accepted, error.reason


@pytest.mark.parametrize("suffix", ["ts", "pt2"])
def test_the_plan_and_the_names_lie_in_the_archive(suffix: str, tmp_path: Path) -> None:
    result = compiled("mlp")
    path = tmp_path / f"m.{suffix}"
    result.save(path)
    files: dict[str, Any] = {"graphopt_plan.json": "", "graphopt_signature.json": ""}
    if suffix == "ts":
        torch.jit.load(str(path), _extra_files=files)
    else:
        torch.export.load(str(path), extra_files=files)
    assert json.loads(files["graphopt_plan.json"]) == result.plan.model_dump(mode="json")
    names = json.loads(files["graphopt_signature.json"])
    assert names["inputs"] == [v.name for v in result.program.graph.inputs]
    assert names["outputs"] == [v.name for v in result.program.graph.outputs]


@pytest.mark.parametrize("suffix", ["ts", "pt2"])
def test_a_file_that_differs_is_not_written(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = compiled("mlp")

    def wrong(x: Any) -> Any:
        return torch.relu(x) + 1e-2

    monkeypatch.setitem(REGISTRY, ("", "Relu"), Operator(wrong, frozenset(), False, 1))
    path = tmp_path / f"m.{suffix}"
    path.write_text("before")
    with pytest.raises(graphopt.VerificationError) as caught:
        result.save(path)
    assert caught.value.code == "torch-file-differs"
    assert path.read_text() == "before"
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name]


@pytest.mark.parametrize("suffix", ["ts", "pt2"])
def test_a_size_that_became_a_constant_shows(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = compiled("mlp")

    def frozen(x: Any) -> Any:
        return elementwise._relu(x) + torch.zeros([int(x.shape[0]), 1])

    monkeypatch.setitem(REGISTRY, ("", "Relu"), Operator(frozen, frozenset(), False, 1))
    with pytest.raises((graphopt.VerificationError, graphopt.UnsupportedError)) as caught:
        result.save(tmp_path / f"m.{suffix}")
    assert caught.value.code in ("torch-file-refuses", "torch-capture-failed")
    assert list(tmp_path.iterdir()) == []


WRITE = """
import sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[1])
import graphopt
from models import build
sample = build("digits_cnn")
graphopt.compile(sample.module, sample.example_inputs, verify=False).save(sys.argv[2])
"""


@pytest.mark.slow
def test_fresh_processes_write_the_same_torchscript(tmp_path: Path) -> None:
    root = str(Path(__file__).resolve().parent.parent.parent)
    contents = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "m.ts"
        subprocess.run([sys.executable, "-c", WRITE, root, str(path)], check=True)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]


def test_saving_raises_no_deprecation_warning(tmp_path: Path, recwarn: Any) -> None:
    result = compiled("mlp")
    recwarn.clear()
    result.save(tmp_path / "m.ts")
    assert [str(w.message) for w in recwarn] == []


def test_external_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(graphopt.OptionError) as caught:
        compiled("mlp").save(tmp_path / "m.ts", external_data=True)
    assert caught.value.code == "external-data-format"
