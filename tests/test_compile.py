"""The whole compile through the API, on small models made here."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt.memory.plan import MemoryPlan


def conv_model(*, batch: int | str = 1, channels: int = 8) -> onnx.ModelProto:
    """Conv, BatchNormalization, Relu, Identity, Add: something for the clean-up to do."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((channels, 3, 3, 3)).astype(np.float32) / 5
    tensors: dict[str, Any] = {
        "w": weight,
        "scale": rng.uniform(0.5, 1.5, channels).astype(np.float32),
        "bias": rng.standard_normal(channels).astype(np.float32),
        "mean": rng.standard_normal(channels).astype(np.float32),
        "var": rng.uniform(0.5, 1.5, channels).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node(
            "BatchNormalization", ["c", "scale", "bias", "mean", "var"], ["b"], name="bn"
        ),
        helper.make_node("Relu", ["b"], ["r"], name="relu"),
        helper.make_node("Identity", ["r"], ["i"], name="same"),
        helper.make_node("Add", ["i", "r"], ["y"], name="add"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, channels, 16, 16])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    path = tmp_path / "small.onnx"
    onnx.save(conv_model(), str(path))
    return path


def test_compile_optimizes_plans_and_verifies(model_path: Path, tmp_path: Path) -> None:
    before = model_path.read_bytes()
    result = graphopt.compile(model_path, memory_limit="1MiB")
    assert [node.op_type for node in result.program.graph] == ["Conv", "Relu", "Add"]
    assert result.verification is not None
    assert result.verification.passed
    assert result.verification.samples == 2
    assert 0 < result.verification.max_rel_error < 1e-5
    # Conv -> Relu in place -> Add over it: everything lives in the output's buffer.
    assert result.plan.arena_bytes == 0
    assert result.plan.arena_pool.io_bytes == 4 * (3 + 8) * 256
    assert result.baseline.model.nodes == 5
    files = result.save(tmp_path / "out.onnx")
    assert files == [tmp_path / "out.onnx"]
    onnx.checker.check_model(str(files[0]), full_check=True)
    assert model_path.read_bytes() == before


@pytest.mark.parametrize("form", ["path", "text", "proto", "ir"])
def test_every_form_of_onnx_model_is_accepted(model_path: Path, form: str) -> None:
    model: Any = {
        "path": model_path,
        "text": str(model_path),
        "proto": conv_model(),
        "ir": ir.serde.deserialize_model(conv_model()),
    }[form]
    result = graphopt.compile(model)
    assert len(result.program.graph) == 3


def test_outputs_are_those_of_the_original(model_path: Path) -> None:
    result = graphopt.compile(model_path)
    feed = {"x": np.random.default_rng(1).standard_normal((1, 3, 16, 16)).astype(np.float32)}
    reference: Any = onnx.reference.ReferenceEvaluator(conv_model()).run(None, feed)
    found: Any = result.run(feed)["y"]
    np.testing.assert_allclose(found, reference[0], rtol=1e-4, atol=1e-5)


def test_limit_too_small_says_by_how_much_and_who(model_path: Path) -> None:
    with pytest.raises(graphopt.DoesNotFitError) as caught:
        graphopt.compile(model_path, memory_limit=8192)
    error = caught.value
    assert error.available_bytes == 8192
    assert error.excess_bytes == error.required_bytes - 8192 > 0
    assert error.owners[0].name in ("c", "y", "i", "r", "b")
    assert isinstance(error.report, graphopt.CompileResult)
    assert error.exit_code == 6


def test_exact_limit_fits(model_path: Path) -> None:
    needed = graphopt.compile(model_path, verify=False).plan.arena_pool.total_bytes
    graphopt.compile(model_path, memory_limit=needed, verify=False)
    with pytest.raises(graphopt.DoesNotFitError) as caught:
        graphopt.compile(model_path, memory_limit=needed - 1, verify=False)
    assert caught.value.excess_bytes == 1


def test_limit_is_not_promised_for_unknown_sizes() -> None:
    model = conv_model()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_param = "height"
    with pytest.raises(graphopt.OptionError) as caught:
        graphopt.compile(model, memory_limit="1GiB", verify=False)
    assert caught.value.code == "limit-not-provable"
    fits = graphopt.compile(model, memory_limit="1GiB", bindings={"height": 32}, verify=False)
    assert fits.plan.is_complete


def test_symbolic_batch_stays_symbolic_and_is_planned_as_bound(tmp_path: Path) -> None:
    result = graphopt.compile(conv_model(batch="batch"), bindings={"batch": 4})
    assert result.plan.model.bindings == {"batch": 4}
    (path,) = result.save(tmp_path / "out.onnx")
    saved = onnx.load(str(path))
    assert saved.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert saved.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_unbound_batch_is_planned_at_one_and_said() -> None:
    plan = graphopt.plan(conv_model(batch="batch"))
    assert plan.model.bindings == {"batch": 1}
    assert any("'batch'" in text and "--dim" in text for text in plan.assumptions)


def test_upper_bound_is_what_is_planned() -> None:
    bounded = graphopt.plan(conv_model(batch="batch"), dynamic_shapes={"x": {0: ("batch", 1, 3)}})
    exact = graphopt.plan(conv_model(batch="batch"), bindings={"batch": 3})
    assert bounded.arena_bytes == exact.arena_bytes
    assert bounded.model.bounds == {"batch": (1, 3)}


def test_misspelled_keyword_names_the_right_one() -> None:
    with pytest.raises(graphopt.OptionError) as caught:
        graphopt.compile(conv_model(), memry_limit="1MiB")
    assert "memory_limit" in str(caught.value)


@pytest.mark.parametrize(
    "keywords",
    [
        {"precision": "int3"},
        {"sparsity": 0.5},
        {"objective": "latency"},
        {"max_recompute": 0.1},
    ],
)
def test_unserved_options_are_refused(keywords: dict[str, Any]) -> None:
    with pytest.raises(graphopt.UnsupportedError) as caught:
        graphopt.compile(conv_model(), **keywords)
    assert caught.value.code == "option-not-served"


def test_a_broken_rewrite_is_caught() -> None:
    """Verification is seen to reject: a pass that changes a weight."""
    from dataclasses import dataclass
    from typing import ClassVar

    from graphopt.pipeline.base import Pass, PassResult

    @dataclass(frozen=True)
    class Break(Pass):
        name: ClassVar[str] = "break"

        def call(self, model: ir.Model) -> PassResult:
            value = model.graph.initializers["w"]
            assert value.const_value is not None
            value.const_value = ir.Tensor(value.const_value.numpy() * 1.01, name="w")
            return PassResult(model, True, rewrites=1)

    with pytest.raises(graphopt.VerificationError) as caught:
        graphopt.compile(conv_model(), passes=[Break()])
    assert "'y'" in str(caught.value)
    graphopt.compile(conv_model(), passes=[Break()], verify=graphopt.Tolerance(rtol=0.1))


def test_user_samples_are_used_and_checked(model_path: Path) -> None:
    sample = {"x": np.zeros((1, 3, 16, 16), np.float32)}
    result = graphopt.compile(model_path, sample)
    assert result.verification is not None
    assert result.verification.inputs == "user"
    assert result.verification.samples == 1
    with pytest.raises(graphopt.OptionError, match="unknown"):
        graphopt.compile(model_path, {"z": sample["x"]})
    with pytest.raises(graphopt.OptionError, match="float64"):
        graphopt.compile(model_path, (sample["x"].astype(np.float64),))


def test_external_data_on_request(model_path: Path, tmp_path: Path) -> None:
    wide = graphopt.compile(conv_model(channels=64), verify=False)
    model, data = wide.save(tmp_path / "wide.onnx", external_data=True)
    assert data.name.startswith("wide-")
    assert data.suffix == ".data"
    loaded = onnx.load(str(model))
    inside = graphopt.compile(conv_model(channels=64), verify=False)
    (single,) = inside.save(tmp_path / "single.onnx", external_data=False)
    expected = {t.name: numpy_helper.to_array(t) for t in onnx.load(str(single)).graph.initializer}
    found = {t.name: numpy_helper.to_array(t) for t in loaded.graph.initializer}
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(array, found[name])
    again = graphopt.compile(model)
    assert again.verification is not None


def test_saved_plan_facts_are_in_the_metadata(model_path: Path, tmp_path: Path) -> None:
    result = graphopt.compile(model_path)
    (path,) = result.save(tmp_path / "out.onnx")
    saved = onnx.load(str(path))
    props = {p.key: p.value for p in saved.metadata_props}
    assert f'"arena_bytes":{result.plan.arena_bytes}' in props["graphopt.plan"]
    places = {p.value for info in saved.graph.value_info for p in info.metadata_props}
    assert any(place.startswith("dram/io+") for place in places)


def test_dump_folder_tells_the_story(model_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "dump"
    graphopt.compile(model_path, dump_dir=folder, verify_each=True)
    names = sorted(path.name for path in folder.iterdir())
    assert names[0] == "000_input.onnxtxt"
    assert {"report.json", "index.html"} <= set(names)
    (fold,) = [n for n in names if n.endswith("fold-batch-norm.diff")]
    diff = (folder / fold).read_text()
    assert "BatchNormalization" in diff
    assert all(line[:2] in ("- ", "+ ") for line in diff.splitlines())
    graphopt.compile(model_path, dump_dir=folder)  # its own folder may be used again
    (folder / "mine.txt").write_text("keep")
    with pytest.raises(graphopt.OutputError):
        graphopt.compile(model_path, dump_dir=folder)
    assert (folder / "mine.txt").read_text() == "keep"


def test_explain_a_tensor_and_a_node(model_path: Path) -> None:
    result = graphopt.compile(model_path)
    assert "in-place" not in result.explain("x")
    assert "dram/io" in result.explain("y")
    assert "step" in result.explain("add")
    with pytest.raises(graphopt.OptionError, match="nothing is called"):
        result.explain("nonsense")


def test_text_and_html_show_the_figures(model_path: Path, tmp_path: Path) -> None:
    result = graphopt.compile(model_path)
    text = str(result)
    assert "small.onnx" in text
    page = result.to_html(tmp_path / "report.html").read_text()
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert result._repr_html_()


def test_skip_and_custom_passes(model_path: Path) -> None:
    kept = graphopt.compile(model_path, skip_passes=["fold-batch-norm"])
    assert any(n.op_type == "BatchNormalization" for n in kept.program.graph)
    only = graphopt.compile(model_path, passes=["eliminate-identity"])
    assert [r.name for r in only.report] == ["eliminate-identity"]
    with pytest.raises(graphopt.OptionError, match="did you mean"):
        graphopt.compile(model_path, passes=["eliminate-identiti"])
    with pytest.raises(graphopt.OptionError, match="cannot skip"):
        graphopt.compile(model_path, skip_passes=["nonsense"])


def test_plan_json_round_trip(model_path: Path) -> None:
    plan = graphopt.plan(model_path)
    assert MemoryPlan.from_json(plan.to_json()) == plan
