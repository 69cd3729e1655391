"""The pages about passes say what the code does."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from graphopt.passes import REGISTRY
from graphopt.pipeline.base import PassResult
from tests.passes.golden import FOLDER
from tests.passes.graphs import graph, ops_of

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"


def load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_of_passes_is_up_to_date() -> None:
    generator = load(DOCS / "generate.py", "docs_generate")
    page = (DOCS / "passes.md").read_text(encoding="utf-8")
    assert page == generator.passes_page(), "run: python docs/generate.py"


@pytest.mark.parametrize("name", REGISTRY)
def test_every_docstring_has_the_same_parts(name: str) -> None:
    page = (DOCS / "passes.md").read_text(encoding="utf-8")
    section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    titles = [line.strip("*") for line in section.splitlines() if line.startswith("**")]
    assert titles == ["Fires when", "Leaves alone", "Preserves", "Options", "Example"]


def test_golden_folders_are_the_registry() -> None:
    assert sorted(folder.name for folder in FOLDER.iterdir()) == sorted(REGISTRY)


def test_the_pass_in_the_guide_works(tmp_path: Path) -> None:
    guide = (DOCS / "writing_a_pass.md").read_text(encoding="utf-8")
    path = tmp_path / "eliminate_double_negation.py"
    path.write_text(guide.partition("```python\n")[2].partition("```")[0], encoding="utf-8")
    module = load(path, "eliminate_double_negation")
    text = guide.partition("## A golden text")[2].partition("```\n")[2].partition("---")[0]
    model = graph("\n".join(line for line in text.splitlines() if not line.startswith("#")))
    result = module.EliminateDoubleNegation()(model)
    assert isinstance(result, PassResult)
    assert result.rewrites == 1
    assert ops_of(model) == ["Neg", "Relu"]
    kept = module.EliminateDoubleNegation()(
        graph("g (float[2] x) => (float[2] y) { a = Neg (x) y = Neg (a) }")
    )
    assert [skip.reason for skip in kept.skipped] == ["graph-output"]
