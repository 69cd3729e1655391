import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest

from graphopt.errors import OptionError
from graphopt.frontends.factory import FactoryModel, is_factory, load_factory

MODEL = """
import onnx
import onnx.parser

TEXT = '<ir_version: 8, opset_import: ["" : 18]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
number = 3


def plain():
    return onnx.parser.parse_model(TEXT)


def sized(width=1, *, depths=(1,)):
    model = plain()
    model.doc_string = f"{width} {depths}"
    return model


def pair():
    return plain(), ({"x": [width()]},)


def triple():
    return plain(), (1,), {"x": {0: "batch"}}


class Sample:
    def __init__(self):
        self.module = plain()
        self.example_inputs = (2,)
        self.dynamic_shapes = None


def width():
    from sibling import WIDTH

    return WIDTH


def prints():
    print("hello")
    return plain()


def fails():
    values = {}
    return values["missing"]


def leaves():
    raise SystemExit(3)


def wrong():
    return plain(), 1, 2, 3


def nothing():
    return None
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "my_model.py").write_text(MODEL)
    (tmp_path / "sibling.py").write_text("WIDTH = 7\n")
    before, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    assert sys.path == before
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def refusal(spec: str) -> OptionError:
    with pytest.raises(OptionError) as caught:
        load_factory(spec)
    return caught.value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.py:build", True),
        ("folder/model.py:build(width=2)", True),
        ("package.module:build", True),
        ("module:build", True),
        ("model.py", True),
        ("model.onnx", False),
        ("folder/model.pt2", False),
        ("C:\\models\\model.onnx", False),
        ("a:b.onnx", False),
        ("https://example.org/model", False),
    ],
)
def test_is_factory(text: str, expected: bool) -> None:
    assert is_factory(text) is expected


def test_every_kind_of_result(folder: Path) -> None:
    place = f"{folder}/my_model.py"
    plain = load_factory(f"{place}:plain")
    assert isinstance(plain, FactoryModel)
    assert isinstance(plain.module, onnx.ModelProto)
    assert (plain.example_inputs, plain.dynamic_shapes) == (None, None)
    assert load_factory(f"{place}:pair").example_inputs == ({"x": [7]},)
    assert load_factory(f"{place}:triple").dynamic_shapes == {"x": {0: "batch"}}
    sample = load_factory(f"{place}:Sample")
    assert (sample.example_inputs, sample.dynamic_shapes) == ((2,), None)


def test_arguments_are_literals(folder: Path) -> None:
    spec = f"{folder}/my_model.py:sized(width=-2.5, depths=(1, 'two', None))"
    assert load_factory(spec).module.doc_string == "-2.5 (1, 'two', None)"
    assert load_factory(f"{folder}/my_model.py:sized()").module.doc_string == "1 (1,)"


def test_prints_go_to_stderr(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_factory(f"{folder}/my_model.py:prints")
    assert capsys.readouterr() == ("", "hello\n")


def test_changed_file_is_read_again(folder: Path) -> None:
    load_factory(f"{folder}/my_model.py:plain")
    (folder / "my_model.py").write_text(MODEL.replace("number", "def other(): return plain()\n#"))
    assert isinstance(load_factory(f"{folder}/my_model.py:other").module, onnx.ModelProto)


def test_file_with_the_name_of_a_standard_module(folder: Path) -> None:
    (folder / "json.py").write_text(MODEL)
    standard = sys.modules["json"]
    assert isinstance(load_factory(f"{folder}/json.py:plain").module, onnx.ModelProto)
    assert sys.modules["json"] is standard


def test_file_in_a_package_and_dotted_module(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = folder / "zoo_of_test"
    (package / "inner").mkdir(parents=True)
    for init in (package, package / "inner"):
        (init / "__init__.py").write_text("")
    (package / "parts.py").write_text(MODEL)
    (package / "inner" / "net.py").write_text(
        "from zoo_of_test.parts import plain\n\ndef build():\n    return plain()\n"
    )
    from_file = load_factory(f"{package}/inner/net.py:build")
    assert "zoo_of_test.inner.net" in sys.modules
    monkeypatch.chdir(folder)
    dotted = load_factory("zoo_of_test.inner.net:build")
    assert from_file.module == dotted.module


def test_ir_model_is_a_model(folder: Path) -> None:
    (folder / "made.py").write_text(
        "import onnx_ir as ir\nfrom my_model import plain\n\n"
        "def build():\n    return ir.from_proto(plain())\n"
    )
    assert isinstance(load_factory(f"{folder}/made.py:build").module, ir.Model)
    sys.modules.pop("my_model", None)


LINE = MODEL[: MODEL.index('return values["missing"]')].count("\n") + 1
FAILS = "raised KeyError: 'missing'\n  {}/my_model.py:" + f'{LINE}: return values["missing"]'
CASES: list[tuple[str, str, str]] = [
    ("{}/my_model.py", "factory-unreadable", "names a file, but no function in it"),
    ("what is this", "factory-unreadable", "no factory: 'what is this'"),
    ("{}/my_model.py:sized(2)", "factory-unreadable", "only name=value is allowed"),
    ("{}/my_model.py:sized(**{{}})", "factory-unreadable", "only name=value is allowed"),
    ("{}/my_model.py:sized(width=open('x'))", "factory-unreadable", "'open('x')' is no literal"),
    ("{}/my_model.py:sized(width=)", "factory-unreadable", "cannot read the arguments"),
    ("{}/my_modle.py:plain", "factory-file-missing", "did you mean 'my_model.py'?"),
    ("no_such_package.thing:f", "factory-module-missing", "no module 'no_such_package'"),
    ("{}/my_model.py:plian", "factory-not-found", "did you mean 'plain'?"),
    ("{}/my_model.py:zzz", "factory-not-found", "it has: Sample, fails, leaves, nothing"),
    ("{}/my_model.py:number", "factory-not-callable", "'number' of {}/my_model.py is int"),
    ("{}/my_model.py:sized(widht=2)", "factory-arguments", "did you mean 'width'?"),
    (
        "{}/my_model.py:fails",
        "factory-failed",
        FAILS,
    ),
    ("{}/my_model.py:leaves", "factory-failed", "raised SystemExit: 3"),
    ("{}/my_model.py:wrong", "factory-result", "returned (ModelProto, int, int, int)"),
    ("{}/my_model.py:nothing", "factory-result", "returned NoneType"),
]


@pytest.mark.parametrize(("spec", "code", "text"), CASES, ids=[case[0] for case in CASES])
def test_refusals(folder: Path, spec: str, code: str, text: str) -> None:
    error = refusal(spec.format(folder))
    assert error.code == code
    assert text.format(folder) in str(error)


def test_files_that_do_not_import(folder: Path) -> None:
    (folder / "bad_syntax.py").write_text("def build(:\n    pass\n")
    syntax = refusal(f"{folder}/bad_syntax.py:build")
    assert syntax.code == "factory-failed"
    assert f"{folder}/bad_syntax.py:1: def build(:" in syntax.message
    (folder / "bad_import.py").write_text("import no_such_module_at_all\n")
    missing = refusal(f"{folder}/bad_import.py:build")
    assert missing.code == "factory-failed"
    assert "raised ModuleNotFoundError: No module named 'no_such_module_at_all'" in missing.message
    assert f"{folder}/bad_import.py:1: import no_such_module_at_all" in missing.message
    assert "bad_import" not in sys.modules


def test_path_is_put_back_when_the_code_replaces_it(folder: Path) -> None:
    (folder / "replaces.py").write_text(
        "import sys\nsys.path = ['nowhere']\n\ndef build():\n    return None\n"
    )
    before = sys.path
    refusal(f"{folder}/replaces.py:build")
    assert sys.path is before


def test_torch_modules_are_models(folder: Path) -> None:
    pytest.importorskip("torch")
    (folder / "net.py").write_text(
        "from torch import nn, ones\n\n"
        "def build():\n    return nn.DataParallel(nn.Linear(2, 2)).module.eval(), (ones(1, 2),)\n"
    )
    made: Any = load_factory(f"{folder}/net.py:build")
    assert type(made.module).__name__ == "Linear"
    assert tuple(made.example_inputs[0].shape) == (1, 2)


def test_graph_alone_is_no_model(folder: Path) -> None:
    (folder / "graph.py").write_text(
        "from onnx import helper\n\n\ndef build():\n    return helper.make_graph([], 'g', [], [])\n"
    )
    assert refusal(f"{folder}/graph.py:build").code == "factory-result"
