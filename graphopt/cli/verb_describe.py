"""``graphopt explain``, ``graphopt targets ...`` and ``graphopt passes ...``."""

import inspect
from dataclasses import asdict, fields
from pathlib import Path

from graphopt.cli.outcome import print_json
from graphopt.errors import OptionError
from graphopt.pipeline.options import near_miss


def run_explain(code: str | None, *, as_json: bool) -> None:
    """Print what an error code means and what to do, or the list of all codes."""
    from graphopt.error_codes import CODES

    if code is None:
        if as_json:
            print_json(CODES)
            return
        width = max(len(name) for name in CODES)
        for name, text in sorted(CODES.items()):
            print(f"{name:<{width}}  {text.split('. ')[0].rstrip('.')}")
        return
    if code not in CODES:
        raise OptionError(
            "code-unknown",
            f"no error has the code '{code}'",
            hint=near_miss(code, CODES, "graphopt explain"),
        )
    if as_json:
        print_json({"code": code, "text": CODES[code]})
    else:
        print(f"{code}\n{CODES[code]}")


def run_targets_list(*, as_json: bool) -> None:
    """Print the presets."""
    from graphopt.targets.loader import list_targets

    rows = list_targets()
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    width = max(len(row.name) for row in rows)
    for row in rows:
        alias = f" = {row.alias_of}" if row.alias_of else ""
        print(f"{row.name:<{width}}  {row.kind:<4} {row.pools}{alias}")
        print(f"{'':<{width}}  {row.description}")


def run_targets_show(name: str, *, as_json: bool) -> None:
    """Print a target, everything resolved."""
    from graphopt.targets.loader import resolve_target

    target = resolve_target(name)
    if as_json:
        print_json(target.model_dump(mode="json"))
    else:
        print(target.to_toml(), end="")


def run_targets_validate(path: Path, *, as_json: bool) -> None:
    """Print every problem of a descriptor; fail when there is one."""
    from graphopt.targets.loader import validate_target

    problems = validate_target(path)
    if as_json:
        print_json([asdict(problem) for problem in problems])
    else:
        for problem in problems:
            print(f"{problem.file}: {problem.field}: {problem.message}")
    if problems:
        raise OptionError("target-invalid", f"'{path}' has {len(problems)} problems")
    if not as_json:
        print(f"{path}: valid")


def run_passes_list(target: str, *, as_json: bool) -> None:
    """Print the passes and the pipeline of a target."""
    from graphopt.passes import REGISTRY, default_pipeline, load_pass
    from graphopt.targets.loader import resolve_target

    pipeline = list(default_pipeline(resolve_target(target)))
    summaries = {n: _first_line(load_pass(n).__doc__ or "") for n in sorted(REGISTRY)}
    if as_json:
        print_json({"passes": summaries, "pipeline": pipeline})
        return
    width = max(len(name) for name in summaries)
    for name, text in summaries.items():
        print(f"{name:<{width}}  {text}")
    print(f"\npipeline of '{target}':\n  " + "\n  ".join(pipeline))


def run_passes_show(name: str, *, as_json: bool) -> None:
    """Print the documentation and the options of one pass."""
    from graphopt.passes import REGISTRY, load_pass

    if name not in REGISTRY:
        raise OptionError(
            "pass-unknown",
            f"no pass is called '{name}'",
            hint=near_miss(name, REGISTRY, "graphopt passes list"),
        )
    kind = load_pass(name)
    options = {field.name: field.default for field in fields(kind)}
    text = inspect.cleandoc(kind.__doc__ or "")
    if as_json:
        print_json({"name": name, "options": options, "text": text, "exact": kind.preserves_bits})
        return
    print(f"{name}\n{text}\n")
    print(
        "outputs stay equal bit by bit" if kind.preserves_bits else "outputs stay within tolerance"
    )
    for option, default in options.items():
        print(f"  {option} = {default!r}")


def _first_line(text: str) -> str:
    return inspect.cleandoc(text).partition("\n")[0]
