"""Every golden text: what the pass makes of it, and the promises that all passes share."""

import inspect
import re

import onnx_ir as ir
import pytest

from graphopt.ir.graph_checks import check_structure
from graphopt.ir.program import FROM_NODES_KEY, FROM_PASS_KEY, dims_of, graphs_of
from graphopt.passes import REGISTRY, load_pass
from graphopt.pipeline.base import PassResult
from tests.passes.golden import FOLDER, Case, cases
from tests.passes.graphs import assert_equal, random_inputs, run, text_of

CASES = cases()
every_case = pytest.mark.parametrize(
    "case", CASES, ids=[f"{c.path.parent.name}/{c.path.stem}" for c in CASES]
)


def apply(case: Case, model: ir.Model) -> PassResult:
    result = case.pass_(model)
    assert isinstance(result, PassResult)
    return result


def outcome(result: PassResult) -> str:
    lines = [f"# rewrites: {result.rewrites}"]
    lines += [f"# skipped: {s.reason} {s.node} {s.detail}".rstrip() for s in result.skipped]
    return "\n".join([*lines, text_of(result.model)])


@every_case
def test_golden_text(case: Case, request: pytest.FixtureRequest) -> None:
    result = apply(case, case.model())
    got = outcome(result)
    if request.config.getoption("--bless"):
        case.path.write_text(f"{case.source}---\n{got}", encoding="utf-8")
        return
    assert got == case.expected
    if case.path.stem.startswith("keeps_"):
        reason = case.path.stem.removeprefix("keeps_").split(".")[0].replace("_", "-")
        assert result.rewrites == 0
        assert reason in [skip.reason for skip in result.skipped]


@every_case
def test_modified_is_exact_and_a_second_run_does_nothing(case: Case) -> None:
    model = case.model()
    before = text_of(model)
    result = apply(case, model)
    assert result.model is model
    assert result.modified == (result.rewrites > 0)
    after = text_of(model)
    if not result.modified:
        assert after == before
    again = apply(case, model)
    assert not again.modified
    assert text_of(model) == after


def signature(case: Case, model: ir.Model) -> list[object]:
    values = [*model.graph.inputs, *model.graph.outputs]
    # These two write what they infer.
    infers = case.path.parent.name in ("infer-shapes", "fold-shape-arithmetic")
    changes = load_pass(case.path.parent.name).changes_signature
    infers |= changes
    return [(v.name, None if changes else v.type, None if infers else str(v.shape)) for v in values]


@every_case
def test_graph_stays_valid_and_keeps_its_signature(case: Case) -> None:
    model = case.model()
    if case.path.parent.name != "sort-nodes":
        check_structure(model, 2)
    before = signature(case, model)
    apply(case, model)
    check_structure(model, 2)
    assert signature(case, model) == before


@every_case
def test_new_nodes_say_where_they_come_from(case: Case) -> None:
    model = case.model()
    before = {
        node: (node.op_type, node.domain) for inner in graphs_of(model.graph) for node in inner
    }
    typed = [node for node in before if all(dims_of(v) is not None for v in node.outputs)]
    apply(case, model)
    for inner in graphs_of(model.graph):
        for node in inner:
            if node in before:
                continue
            assert node.metadata_props[FROM_PASS_KEY] == case.path.parent.name
            assert node.metadata_props[FROM_NODES_KEY]
            if len(typed) == len(before):
                assert all(v.dtype is not None and v.shape is not None for v in node.outputs)


@every_case
def test_same_numbers(case: Case) -> None:
    if "not run" in case.directives:
        pytest.skip(case.directives["not run"])
    model = case.model()
    feeds = random_inputs(model, case.sizes)
    wanted = run(model, feeds) if case.path.parent.name != "sort-nodes" else None
    apply(case, model)
    got = run(model, feeds)
    if wanted is not None:
        assert_equal(got, wanted, exact=case.pass_.preserves_bits)


# ONNX text has no place for the metadata that strip-metadata takes away.
@pytest.mark.parametrize("name", [name for name in REGISTRY if name != "strip-metadata"])
def test_every_pass_has_a_case_that_fires(name: str) -> None:
    results = [apply(c, c.model()) for c in CASES if c.path.parent.name == name]
    assert any(result.modified for result in results), f"add a case to {FOLDER / name}"


@pytest.mark.parametrize("name", REGISTRY)
def test_every_documented_reason_has_a_case(name: str) -> None:
    text = inspect.getdoc(load_pass(name)) or ""
    section = text.partition("Leaves alone:")[2].partition("Preserves:")[0]
    heads = re.findall(r"^\s*\d+\. ((?:``[\w-]+``,? ?(?:and )?)+):", section, re.MULTILINE)
    documented = {reason for head in heads for reason in re.findall(r"``([\w-]+)``", head)}
    recorded = {
        skip.reason
        for case in CASES
        if case.path.parent.name == name
        for skip in apply(case, case.model()).skipped
    }
    assert documented == recorded
