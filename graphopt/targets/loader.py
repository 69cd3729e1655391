"""From a name or a path to a valid `Target`, with every problem of a descriptor found in one go.

A descriptor may build on another one (``extends``) or stand for another one (``alias_of``); both
name a preset or a path relative to the file. Merging: tables are merged key by key, pools by their
name (those of the extended descriptor keep their order, further ones follow), every other value
replaces.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from graphopt.errors import OptionError
from graphopt.targets.schema import (
    PHYSICS_ERROR,
    SCHEMA_VERSION,
    Compute,
    Kind,
    Overhead,
    Pool,
    Quantization,
    Runtime,
    Sparsity,
    Target,
    pool_violations,
)
from graphopt.units import format_bytes

_PRESETS = Path(__file__).with_name("presets")

# Keys of the file that say how to read it; all others are fields of `Target`.
_HEADER = ("schema_version", "extends", "alias_of")
_ALIAS_KEYS = ("schema_version", "alias_of", "name", "description")

# A descriptor has a few KiB. The bound keeps a model or /dev/zero from being read whole.
_MAX_FILE_BYTES = 1 << 20
_MAX_SHOWN = 60

_MODEL_BY_TABLE: dict[str, type[BaseModel]] = {
    "": Target,
    "pools": Pool,
    "runtime": Runtime,
    "compute": Compute,
    "quantization": Quantization,
    "sparsity": Sparsity,
    "overhead": Overhead,
}
# pydantic names Python types; the file's author thinks in TOML.
_EXPECTED_BY_TYPE = {
    "tuple_type": "a list",
    "frozen_set_type": "a list",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "string_type": "text in quotes",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "string_too_short": "text that is not empty",
    "string_pattern_mismatch": "letters, digits, '.', '_' and '-'",
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a descriptor.

    Attributes:
        file: File whose author must act; in a chain of ``extends`` the one that set the value.
        field: Path of the field, pools by name (``pools[sram].alignment``); empty for the file.
        message: What is wrong.
        got: The value found, as text; None when there is none.
        expected: What would be accepted; None when the message says it.
        hint: What to do.
    """

    file: str
    field: str
    message: str
    got: str | None = None
    expected: str | None = None
    hint: str | None = None

    def __str__(self) -> str:
        text = f"{self.field}: {self.message}" if self.field else self.message
        if self.expected is not None:
            text += f", expected {self.expected}"
        if self.got is not None:
            text += f", got {self.got}"
        return text


@dataclass(frozen=True)
class TargetSummary:
    """One line of ``graphopt targets list``.

    Attributes:
        name: Name that `resolve_target` takes.
        kind: Class of device.
        description: One line for people.
        pools: Every pool with its limit, as text.
        alias_of: Name of the target it stands for; None for a descriptor of its own.
    """

    name: str
    kind: Kind
    description: str
    pools: str
    alias_of: str | None


@dataclass(frozen=True)
class _Document:
    path: Path
    table: dict[str, Any]

    @property
    def is_alias(self) -> bool:
        return "alias_of" in self.table

    @property
    def link(self) -> str:
        return "alias_of" if self.is_alias else "extends"


@dataclass(frozen=True)
class _Chain:
    """Descriptors from the one asked for to its last base.

    Attributes:
        documents: At least the one asked for, unless it is no TOML document.
        problems: What is wrong with headers and links.
        complete: Whether every link led somewhere; fields may be missing otherwise.
    """

    documents: list[_Document]
    problems: list[Problem]
    complete: bool

    @property
    def first(self) -> Path:
        """The first file that has fields, for problems that no file in particular causes."""
        return next((d for d in self.documents if not d.is_alias), self.documents[0]).path


class _UnparsableError(Exception):
    """The file is there but is no TOML document; the text says why."""


def resolve_target(target: str | os.PathLike[str] | Target) -> Target:
    """Return the target that a preset name, an alias, or a path to a ``.toml`` descriptor names.

    A preset name wins over a file of that name in the working directory. A `Target` is returned as
    it is.

    Raises:
        OptionError: ``target-unknown`` for a name that is no preset, ``target-unreadable`` for a
            file that cannot be read, ``target-invalid`` for a descriptor with problems (all of
            them, in ``details["problems"]``).
    """
    if isinstance(target, Target):
        return target
    path = _locate(target)
    found, problems = _load(path)
    if found is None:
        raise _invalid(path, problems)
    return found


def validate_target(path: str | os.PathLike[str]) -> list[Problem]:
    """Return every problem of the descriptor at ``path``; none when it is valid.

    Raises:
        OptionError: ``target-unreadable`` when the file cannot be read.
    """
    return _load(Path(path))[1]


def list_targets() -> tuple[TargetSummary, ...]:
    """Return one summary for each preset and alias, sorted by name."""
    summaries = []
    for name, path in sorted(_presets().items()):
        target = resolve_target(name)
        table = _read(path)
        is_alias = "alias_of" in table
        summaries.append(
            TargetSummary(
                name=name,
                kind=target.kind,
                description=table.get("description", target.description),
                pools=", ".join(_pool_text(pool) for pool in target.pools),
                alias_of=target.name if is_alias else None,
            )
        )
    return tuple(summaries)


def _pool_text(pool: Pool) -> str:
    limit = "not bounded" if pool.limit_bytes is None else format_bytes(pool.limit_bytes)
    return f"{pool.name} {limit}" + (" read-only" if pool.access == "ro" else "")


def _presets() -> dict[str, Path]:
    return {path.stem: path for path in _PRESETS.glob("*.toml")}


def _locate(target: str | os.PathLike[str]) -> Path:
    presets = _presets()
    if isinstance(target, str):
        if target in presets:
            return presets[target]
        if not target.endswith(".toml") and not _has_folder(target):
            raise OptionError(
                "target-unknown",
                f"unknown target {_shown(target)}",
                hint=f"{_near_miss(target, presets, 'targets')}; or give the path of a .toml file",
                details={"target": target, "targets": sorted(presets)},
            )
        return Path(target)
    if isinstance(target, os.PathLike):
        return Path(target)
    raise OptionError(
        "target-unknown",
        f"not a target: {_shown(target)}",
        hint="give the name of a target, the path of a .toml file, or a graphopt.Target",
    )


def _has_folder(text: str) -> bool:
    return os.sep in text or (os.altsep is not None and os.altsep in text)


def _load(path: Path) -> tuple[Target | None, list[Problem]]:
    """Return the target at ``path`` and its problems; the target is None when there are any."""
    chain = _follow(path)
    problems = list(chain.problems)
    merged: dict[str, Any] = {}
    for document in reversed(chain.documents):
        if not document.is_alias:
            merged = _merge(merged, document.table)
    if not chain.complete and not merged:
        return None, problems
    target: Target | None = None
    try:
        target = Target.model_validate(merged)
    except ValidationError as error:
        problems += _field_problems(error, merged, chain)
    return (None if problems else target), problems


def _follow(start: Path) -> _Chain:
    documents: list[_Document] = []
    problems: list[Problem] = []
    seen: list[Path] = []
    path: Path | None = start
    while path is not None:
        try:
            table = _read(path)
        except _UnparsableError as error:
            problems.append(Problem(str(path), "", str(error)))
            return _Chain(documents, problems, complete=False)
        except OptionError as error:
            if not documents:
                raise
            last = documents[-1]
            problems.append(Problem(str(last.path), last.link, error.message))
            return _Chain(documents, problems, complete=False)
        if path.resolve() in seen:
            circle = " -> ".join(d.path.name for d in documents) + f" -> {path.name}"
            last = documents[-1]
            problems.append(
                Problem(str(last.path), last.link, f"descriptors form a circle: {circle}")
            )
            return _Chain(documents, problems, complete=False)
        seen.append(path.resolve())
        documents.append(_Document(path, table))
        problems += _header_problems(documents[-1])
        path, link_problem = _next_path(documents[-1])
        if link_problem is not None:
            problems.append(link_problem)
            return _Chain(documents, problems, complete=False)
    return _Chain(documents, problems, complete=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise OptionError(
            "target-unreadable",
            f"cannot read target file {str(path)!r}: {reason}",
            hint="give the path of a .toml descriptor, or the name of a target",
            details={"path": str(path)},
        ) from error
    if len(data) > _MAX_FILE_BYTES:
        raise _UnparsableError(
            f"larger than {format_bytes(_MAX_FILE_BYTES)}: not a target descriptor"
        )
    try:
        return tomllib.loads(data.decode("utf-8-sig"))  # editors on Windows write the mark
    except (ValueError, RecursionError) as error:
        # ValueError also covers text that is not UTF-8 and integers of thousands of digits.
        raise _UnparsableError(f"not a TOML document: {error}") from error


def _header_problems(document: _Document) -> list[Problem]:
    table, file = document.table, str(document.path)
    problems = []
    version = table.get("schema_version")
    if version is None:
        problems.append(
            Problem(
                file, "schema_version", "is missing", hint=f"add schema_version = {SCHEMA_VERSION}"
            )
        )
    elif version != SCHEMA_VERSION or type(version) is not int:
        problems.append(
            Problem(
                file,
                "schema_version",
                "is not served",
                got=_shown(version),
                expected=str(SCHEMA_VERSION),
                hint="write the file for this version, or use the graphopt it was written for",
            )
        )
    if document.is_alias:
        problems += [
            Problem(
                file,
                _part(key),
                "an alias has no fields of its own",
                hint="use extends instead of alias_of to change a target",
            )
            for key in table
            if key not in _ALIAS_KEYS
        ]
    return problems


def _next_path(document: _Document) -> tuple[Path | None, Problem | None]:
    """Return the file that ``document`` builds on or stands for, or what is wrong with its link."""
    file, key = str(document.path), document.link
    link = document.table.get(key)
    if link is None:
        return None, None
    if not isinstance(link, str):
        expected = "the name of a target or a path relative to the file"
        return None, Problem(file, key, "wrong value", got=_shown(link), expected=expected)
    presets = _presets()
    if link in presets:
        return presets[link], None
    if link.endswith(".toml") or _has_folder(link):
        return document.path.parent / link, None
    hint = f"{_near_miss(link, presets, 'targets')}; or give a path relative to the file"
    return None, Problem(file, key, "names no target", got=_shown(link), hint=hint)


def _merge(base: Mapping[str, Any], child: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in child.items():
        if key in _HEADER:
            continue
        old = merged.get(key)
        if key == "pools":
            merged[key] = _merge_pools(old, value)
        elif isinstance(old, dict) and isinstance(value, dict):
            merged[key] = {**old, **value}
        else:
            merged[key] = value
    return merged


def _merge_pools(base: object, child: object) -> object:
    if not isinstance(base, list) or not isinstance(child, list):
        return child
    merged = list(base)
    index_by_name = {_pool_name(pool): index for index, pool in enumerate(base)}
    index_by_name.pop(None, None)
    for pool in child:
        # Each base pool takes one override: a name written twice must stay visible as a duplicate.
        index = index_by_name.pop(_pool_name(pool), None)
        if index is None:
            merged.append(pool)
        else:
            merged[index] = {**merged[index], **pool}
    return merged


def _pool_name(pool: object) -> str | None:
    name = pool.get("name") if isinstance(pool, dict) else None
    return name if isinstance(name, str) else None


def _field_problems(error: ValidationError, merged: dict[str, Any], chain: _Chain) -> list[Problem]:
    problems: list[Problem] = []
    violations: list[tuple[str, str]] = []
    for detail in error.errors(include_url=False):
        if detail["type"] == PHYSICS_ERROR:
            violations += detail["ctx"]["violations"]
        elif detail["type"] != "missing" or chain.complete:
            problems.append(_field_problem(detail, merged, chain))
    if not violations:
        # Fields are wrong, so the target's own check did not run: check the pools that parse.
        violations = pool_violations(_readable_pools(merged))
    return problems + [Problem(str(chain.first), field, text) for field, text in violations]


def _field_problem(detail: ErrorDetails, merged: dict[str, Any], chain: _Chain) -> Problem:
    kind, value = detail["type"], detail["input"]
    location = _location(detail["loc"])
    field, file = _field_text(location, merged), str(_owner(location, merged, chain))
    if kind == "extra_forbidden":
        table = next((part for part in location[:-1] if isinstance(part, str)), "")
        known = [*_MODEL_BY_TABLE[table].model_fields, *(() if table else _HEADER)]
        return Problem(
            file, field, "unknown key", hint=_near_miss(str(location[-1]), known, "keys")
        )
    if kind == "missing":
        return Problem(file, field, "is missing", hint=f"add {location[-1]} = ...")
    expected = _EXPECTED_BY_TYPE.get(kind, detail["msg"].removeprefix("Input should be "))
    hint = None
    if kind == "literal_error" and isinstance(value, str):
        hint = _near_miss(value, re.findall(r"'([^']*)'", detail["ctx"]["expected"]), "values")
    return Problem(file, field, "wrong value", got=_shown(value), expected=expected, hint=hint)


def _location(loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Return ``loc`` up to the field: items of a list have no name, and ``io`` shifts indices."""
    while loc and isinstance(loc[-1], int) and loc != ("pools", loc[-1]):
        loc = loc[:-1]
    return loc


def _field_text(location: tuple[int | str, ...], merged: Mapping[str, Any]) -> str:
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{_pool_name(merged['pools'][part]) or part}]"
        else:
            text += f".{_part(part)}" if text else _part(part)
    return text


def _part(key: str) -> str:
    return key if key.isprintable() else repr(key)


def _owner(location: tuple[int | str, ...], merged: Mapping[str, Any], chain: _Chain) -> Path:
    """Return the file that set the value at ``location``; the first file when none did."""
    for document in chain.documents:
        value: object = document.table
        for part in location:
            if isinstance(part, int):
                value = _same_pool(value, merged["pools"][part])
            else:
                value = value.get(part) if isinstance(value, dict) else None
        if value is not None and not document.is_alias:
            return document.path
    return chain.first


def _same_pool(pools: object, wanted: object) -> object:
    if not isinstance(pools, list):
        return None
    name = _pool_name(wanted)
    return next((p for p in pools if p == wanted or (name and _pool_name(p) == name)), None)


def _readable_pools(merged: Mapping[str, Any]) -> list[Pool]:
    tables = merged.get("pools")
    pools = []
    for table in tables if isinstance(tables, list) else ():
        try:
            pools.append(Pool.model_validate(table))
        except ValidationError:
            continue  # reported with the target's own fields
    return pools


def _near_miss(word: str, known: Iterable[str], what: str) -> str:
    """Return a hint: the known name that was probably meant, else all of them."""
    name_by_lower = {name.lower(): name for name in sorted(known)}
    word = word.lower()
    close = difflib.get_close_matches(word, name_by_lower, n=1)
    # "size" is too short a part of "size_bytes" for the ratio that difflib takes.
    close = close or [lower for lower in name_by_lower if word and lower.startswith(word)]
    if close:
        return f"did you mean {name_by_lower[close[0]]!r}?"
    return f"known {what}: {', '.join(name_by_lower.values())}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def _invalid(path: Path, problems: Sequence[Problem]) -> OptionError:
    # repr: a file name may hold control characters.
    shown = repr(str(path))
    lines = []
    for problem in problems:
        where = "" if problem.file == str(path) else f" (in {problem.file!r})"
        lines.append(f"{problem}{where}")
    if len(problems) == 1:
        message, hint = f"target file {shown} is invalid: {lines[0]}", problems[0].hint
    else:
        lines = [
            f"  {line}" + (f"; {problem.hint}" if problem.hint else "")
            for line, problem in zip(lines, problems, strict=True)
        ]
        message = "\n".join([f"target file {shown} is invalid, {len(problems)} problems:", *lines])
        hint = "correct the file; `graphopt targets validate` checks it without compiling"
    return OptionError(
        "target-invalid",
        message,
        hint=hint,
        details={"path": str(path), "problems": [asdict(problem) for problem in problems]},
    )
