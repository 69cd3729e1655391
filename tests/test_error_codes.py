"""Every error code in the source is explained, and every explained code is in the source."""

import ast
from pathlib import Path

from graphopt.error_codes import CODES

ROOT = Path(__file__).resolve().parent.parent
CLASSES = {
    "GraphoptError",
    "OptionError",
    "InvalidModelError",
    "UnsupportedError",
    "VerificationError",
    "OutputError",
    "PassFailed",
    "InvariantError",
}


def raised_codes() -> dict[str, str]:
    """Return code -> file for every literal first argument of one of our errors."""
    found = {}
    for folder in ("graphopt", "passes", "backends"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Call) or not node.args:
                    continue
                name = node.func.id if isinstance(node.func, ast.Name) else ""
                first = node.args[0]
                if name in CLASSES and isinstance(first, ast.Constant):
                    found[str(first.value)] = str(path.relative_to(ROOT))
    return found


def test_every_raised_code_is_explained() -> None:
    missing = {code: file for code, file in raised_codes().items() if code not in CODES}
    assert not missing


def test_every_explained_code_is_in_the_source() -> None:
    text = "\n".join(
        path.read_text(encoding="utf-8")
        for folder in ("graphopt", "passes", "backends")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if not path.name.startswith("error_codes")
    )
    assert [code for code in CODES if f'"{code}"' not in text] == []


def test_explanations_say_what_it_means_and_what_to_do() -> None:
    for code, text in CODES.items():
        assert code == code.lower(), code
        assert text.count(". ") >= 1, f"{code}: two sentences: what it means, what to do"
        assert text.endswith("."), code
