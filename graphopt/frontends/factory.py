"""A function of the user that builds the model: ``package.module:name`` or ``file.py:name``.

Running it runs the user's own code, and nothing else does: arguments in the text,
``file.py:name(width=0.5)``, are Python literals that are read, never evaluated.
"""

import ast
import contextlib
import difflib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

from graphopt.errors import GraphoptError, OptionError
from graphopt.frontends.user_code import SourceLine, line_raising

_SPEC = re.compile(
    r"(?P<place>[^:]+\.py|[^\W\d]\w*(?:\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*)\s*(?P<arguments>\(.*\))?",
    re.DOTALL,
)
Result = TypeVar("Result")
_MODELS = (("torch", "Module"), ("torch", "ExportedProgram"), ("onnx", "ModelProto"))
_FORM = "package.module:function or file.py:function, optionally with (name=value, ...)"


@dataclass(frozen=True, eq=False)
class FactoryModel:
    """What a factory returned.

    Attributes:
        module: A torch module or exported program, an ``onnx.ModelProto`` or an ``onnx_ir.Model``.
        example_inputs: Its example inputs; None when the factory gave none.
        dynamic_shapes: In the syntax of ``torch.export``; None when the factory gave none.
    """

    module: Any
    example_inputs: Any = None
    dynamic_shapes: Any = None


def is_factory(text: str) -> bool:
    """Return whether ``text`` names a factory rather than a model file; looks at no file."""
    return text.endswith(".py") or _SPEC.fullmatch(text) is not None


def load_function(spec: str) -> Callable[..., Any]:
    """Import the module that ``spec`` names, return the function in it, its keywords bound.

    Raises:
        OptionError: the text names no function, or importing its module fails.
    """
    found = _parsed(spec)
    keywords = _literals(spec, found["arguments"])
    with contextlib.redirect_stdout(sys.stderr), _kept_path():
        function = _imported(found["place"], found["name"])
    return partial(function, **keywords) if keywords else function


def load_factory(spec: str) -> FactoryModel:
    """Import the module that ``spec`` names, call the function in it, return what it built.

    A dotted module is looked for in the working directory first. A file is imported with its folder
    on the path, and as part of its package when there is an ``__init__.py`` beside it. The path is
    put back afterwards; what the user's code prints goes to stderr.

    The function returns a model, ``(model, example_inputs)``, ``(model, example_inputs,
    dynamic_shapes)``, or an object with these three as attributes ``module``, ``example_inputs``
    and ``dynamic_shapes``.

    Raises:
        OptionError: the text names no function, or the function fails or returns something else.
    """
    found = _parsed(spec)
    place, name = found["place"], found["name"]
    keywords = _literals(spec, found["arguments"])
    with contextlib.redirect_stdout(sys.stderr), _kept_path():
        factory = _imported(place, name)
        _check_keywords(factory, keywords, name)
        result = _run(f"'{name}' of {place}", lambda: factory(**keywords))
    return _as_model(result, spec)


def _imported(place: str, name: str) -> Callable[..., Any]:
    module = _file_module(place) if place.endswith(".py") else _dotted_module(place)
    return _function(module, name, place)


def _parsed(spec: str) -> re.Match[str]:
    found = _SPEC.fullmatch(spec)
    if found is None:
        missing = spec.endswith(".py")
        raise OptionError(
            "factory-unreadable",
            f"'{spec}' names a file, but no function in it" if missing else f"no factory: '{spec}'",
            hint=f"write {spec}:function" if missing else f"write {_FORM}",
        )
    return found


def _literals(spec: str, arguments: str | None) -> dict[str, Any]:
    """Return the keyword arguments in ``(width=0.5, depths=(1, 2))``."""
    if not arguments:
        return {}
    try:
        call = ast.parse(f"f{arguments}", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError("only name=value is allowed")
        if any(keyword.arg is None for keyword in call.keywords):
            raise ValueError("only name=value is allowed")
        return {str(one.arg): _literal(one.value) for one in call.keywords}
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        raise OptionError(
            "factory-unreadable",
            f"cannot read the arguments in '{spec}': {str(error).splitlines()[0]}",
            hint="write (name=value, ...) with numbers, texts, True, None, tuples or lists",
        ) from error


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(f"'{ast.unparse(node)}' is no literal") from None


@contextlib.contextmanager
def _kept_path() -> Iterator[None]:
    """Put ``sys.path`` back as it was, also when the user's code replaced the list."""
    paths, before = sys.path, list(sys.path)
    try:
        yield
    finally:
        paths[:] = before
        sys.path = paths


def _file_module(place: str) -> ModuleType:
    """Import a file, as part of the package that it lies in if there is one."""
    path = Path(os.path.realpath(place))
    if not path.is_file():
        raise OptionError("factory-file-missing", f"no such file: '{place}'", hint=_near(path))
    parts = [path.stem]
    folder = path.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    sys.path[:0] = [str(folder)] if folder == path.parent else [str(folder), str(path.parent)]
    importlib.invalidate_caches()
    if len(parts) > 1:
        if parts[-1] == "__init__":
            parts.pop()
        name = ".".join(parts)
        module = _run(f"'{place}'", lambda: importlib.import_module(name))
        if Path(os.path.realpath(module.__file__ or "")) != path:
            raise OptionError(
                "factory-module-missing",
                f"'{place}' is module '{name}' of its package, but that name belongs to "
                f"'{module.__file__}'",
                hint="rename the folder, or copy the file out of it",
            )
        return module
    return _run(f"'{place}'", lambda: _execute(path))


def _near(path: Path) -> str | None:
    names = [one.name for one in path.parent.glob("*.py")] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, sorted(names), n=1)
    return f"did you mean '{near[0]}'?" if near else None


def _execute(path: Path) -> ModuleType:
    """Import a file that is in no package under its own name, or the next free one."""
    name, count = path.stem, 1
    while name in sys.stdlib_module_names or not _is_free(name, path):
        count += 1
        name = f"{path.stem}_{count}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles look their module up while it is being executed.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _is_free(name: str, path: Path) -> bool:
    known = sys.modules.get(name)
    return known is None or getattr(known, "__file__", None) == str(path)


def _dotted_module(name: str) -> ModuleType:
    sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()

    def load() -> ModuleType:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            # Only when the module itself is missing, not one that it imports.
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            raise OptionError(
                "factory-module-missing",
                f"no module '{error.name}'",
                hint="run it from the folder that holds the package, or write path/to/file.py:name",
            ) from error

    return _run(f"module '{name}'", load)


def _run(what: str, action: Callable[[], Result]) -> Result:
    """Run the user's code; whatever it raises is reported with its line.

    Raises:
        OptionError: it raised, or ended the program.
    """
    try:
        return action()
    except (GraphoptError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, SyntaxError) and error.filename is not None:
            line: SourceLine | None = SourceLine(
                error.filename, error.lineno or 0, (error.text or "").strip()
            )
        else:
            line = line_raising(error)
        lines = str(error).strip().splitlines() or [""]
        raise OptionError(
            "factory-failed",
            f"{what} raised {type(error).__name__}: {lines[0][:300]}"
            + (f"\n  {line}" if line else ""),
            hint="this is an error of the model's own code",
        ) from error


def _function(module: ModuleType, name: str, place: str) -> Callable[..., Any]:
    factory: Any = getattr(module, name, None)
    if factory is None:
        own = [
            key
            for key, value in vars(module).items()
            if callable(value)
            and not key.startswith("_")
            and getattr(value, "__module__", None) == module.__name__
        ]
        near = difflib.get_close_matches(name, own, n=1)
        raise OptionError(
            "factory-not-found",
            f"{place} has no function '{name}'",
            hint=f"did you mean '{near[0]}'?"
            if near
            else f"it has: {', '.join(sorted(own)[:10]) or 'none'}",
        )
    if not callable(factory):
        raise OptionError(
            "factory-not-callable",
            f"'{name}' of {place} is {type(factory).__name__}, not a function",
            hint="name a function that returns the module and its example inputs",
        )
    return cast(Callable[..., Any], factory)


def _check_keywords(factory: Callable[..., Any], keywords: dict[str, Any], name: str) -> None:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        return  # Builtins without a signature check their arguments themselves.
    try:
        signature.bind(**keywords)
    except TypeError as error:
        unknown = [key for key in keywords if key not in signature.parameters]
        near = difflib.get_close_matches(unknown[0], signature.parameters, n=1) if unknown else []
        raise OptionError(
            "factory-arguments",
            f"cannot call {name}{signature} like this: {error}",
            hint=f"did you mean '{near[0]}'?" if near else "give arguments as name(key=value, ...)",
        ) from error


def _is_model(value: Any) -> bool:
    """Return whether ``value`` is a model, without importing what it would be an instance of."""
    bases = [(base.__module__.partition(".")[0], base.__name__) for base in type(value).__mro__]
    return any(base in _MODELS or base == ("onnx_ir", "Model") for base in bases)


def _as_model(result: Any, spec: str) -> FactoryModel:
    if _is_model(result):
        return FactoryModel(result)
    if isinstance(result, tuple) and len(result) in (2, 3) and _is_model(result[0]):
        return FactoryModel(*result)
    module = getattr(result, "module", None)
    if _is_model(module):
        return FactoryModel(
            module,
            getattr(result, "example_inputs", None),
            getattr(result, "dynamic_shapes", None),
        )
    raise OptionError(
        "factory-result",
        f"'{spec}' returned {_described(result)}, which is no model",
        hint="return a module, (module, example_inputs), or these and dynamic_shapes as a third",
    )


def _described(result: Any) -> str:
    if isinstance(result, tuple):
        return f"({', '.join(type(one).__name__ for one in result)})"
    return type(result).__name__
