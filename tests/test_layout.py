"""The package map, the import arrows and the house rules, read from the files themselves."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"graphopt": ROOT / "graphopt", "passes": ROOT / "passes", "backends": ROOT / "backends"}

# Each layer may import the layers before it; within a layer, freely.
LAYERS = (
    ("errors", "units", "temporary", "_version"),
    ("targets",),
    ("ir",),
    ("memory",),
    ("quantization",),
    (
        "safe_files",
        "isolation",
        "isolated_blocks",
        "isolated_bodies",
        "isolated_child",
        "isolated_pieces",
        "arena_memory",
        "arena_kernels",
        "arena_in_place",
        "arena_tasks",
    ),
    ("pipeline",),
    ("passes", "backends", "frontends", "report"),
    ("numerics",),
    (
        "limits",
        "options",
        "explain",
        "fitting",
        "result",
        "error_codes",
        "error_codes_parts",
        "compiler",
        "api",
    ),
    ("cli", "__main__"),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# (importer, imported): arrows that would point up, and why they may.
EXCEPTIONS = {
    ("pipeline", "passes"): "an option string names a pass; only the registry is imported, lazily",
}
MAY_IMPORT_TORCH = (
    "frontends/torch_capture.py",
    "frontends/torch_eager.py",
    "frontends/pt2.py",
    "backends/torch_",
    "backends/emit_torchscript.py",
    "backends/emit_pt2.py",
)
MAY_IMPORT_ONNX = (
    "frontends/",
    "numerics/",
    "backends/",
    "isolated_blocks.py",
    "isolated_bodies.py",
    "isolated_child.py",
    "isolated_pieces.py",
    "arena_kernels.py",
    "arena_tasks.py",
)


def sources() -> Iterator[tuple[str, Path]]:
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            relative = path.relative_to(folder).as_posix()
            if package == "graphopt" and relative.split("/")[0] in ("passes", "backends"):
                continue
            yield (relative if package == "graphopt" else f"{package}/{relative}"), path


def imports(path: Path) -> Iterator[str]:
    """Yield every imported module of a file, but not those under TYPE_CHECKING."""
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
        pending.extend(ast.iter_child_nodes(node))


def room(relative: str) -> str:
    return relative.split("/")[0].removesuffix(".py")


def test_package_list_matches_folders() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = set(config["tool"]["setuptools"]["packages"])
    found = set()
    for package, folder in PACKAGES.items():
        base = "graphopt" if package == "graphopt" else f"graphopt.{package}"
        for init in folder.rglob("__init__.py"):
            parts = init.relative_to(folder).parts[:-1]
            if package == "graphopt" and parts and parts[0] in ("passes", "backends"):
                continue
            found.add(".".join((base, *parts)))
    assert listed == found


def test_links_point_at_the_folders() -> None:
    for name in ("passes", "backends"):
        link = ROOT / "graphopt" / name
        assert link.is_symlink()
        assert link.readlink() == Path("..") / name


def test_only_the_package_is_installed() -> None:
    code = (
        "import importlib.util as u; "
        "print([n for n in ('passes', 'backends', 'tests', 'models') if u.find_spec(n)])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=True
    )
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize(("relative", "path"), list(sources()), ids=lambda v: str(v))
def test_import_arrows(relative: str, path: Path) -> None:
    importer = room(relative)
    if importer == "__init__":
        return
    for module in imports(path):
        parts = module.split(".")
        if parts[0] == "torch":
            assert relative.startswith(MAY_IMPORT_TORCH), f"{relative} imports torch"
        if parts[0] in ("onnx", "onnxruntime"):
            assert relative.startswith(MAY_IMPORT_ONNX), f"{relative} imports {module}"
        if parts[0] != "graphopt" or len(parts) < 2:
            continue
        imported = parts[1]
        if (importer, imported) in EXCEPTIONS or importer == imported:
            continue
        assert RANK[imported] <= RANK[importer], f"{relative} imports {module}: arrow points up"
        forbidden = {"passes": "backends", "backends": "passes"}
        assert forbidden.get(importer) != imported, f"{relative} imports {module}"


@pytest.mark.parametrize(("relative", "path"), list(sources()), ids=lambda v: str(v))
def test_file_budgets(relative: str, path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= (250 if relative.startswith("passes/") else 600), f"{relative}: {lines} lines"


def test_importing_graphopt_is_light() -> None:
    code = (
        "import sys, graphopt; heavy = {'torch', 'onnxruntime', 'onnx', 'onnx_ir', 'pydantic', "
        "'numpy', 'rich', 'jinja2'}; print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
