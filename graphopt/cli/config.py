"""Options of ``graphopt compile`` as TOML: written by ``--save-config``, read by ``--config``.

What stands on the command line wins over the file. An unknown key is an error with the closest
known one. The file holds every option, so a run can be repeated from it alone.
"""

import json
import tomllib
from pathlib import Path
from typing import Any

from graphopt.errors import OptionError
from graphopt.pipeline.options import near_miss

_PATHS = ("output", "dump", "report", "plan")
_DEFAULTS: dict[str, Any] = {
    "output": None,
    "target": "cpu",
    "precision": None,
    "calibration": None,
    "calibration_method": "auto",
    "memory_limit": [],
    "dim": [],
    "passes": None,
    "skip_pass": [],
    "dump": None,
    "report": None,
    "plan": None,
    "external_data": None,
    "arena": False,
    "verify": True,
    "verify_each": False,
    "rtol": None,
    "metric": None,
    "max_drop": None,
    "seed": 0,
    "trust": False,
    "dry_run": False,
}


def merge_config(options: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return ``options`` with those at their defaults taken from the file ``path``.

    Raises:
        OptionError: the file is unreadable, no TOML, or holds an unknown key or a wrong type.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError("config-unreadable", f"cannot read '{path}': {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionError("config-unreadable", f"'{path}' is no TOML: {error}") from error
    merged = dict(options)
    for key, value in data.items():
        if key not in _DEFAULTS:
            raise OptionError(
                "config-key-unknown",
                f"'{path}' has the unknown key '{key}'",
                hint=near_miss(key, list(_DEFAULTS), "graphopt compile --help"),
            )
        expected = _expected_type(key)
        if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
            raise OptionError(
                "config-type", f"'{path}': {key} is {value!r}, expected {expected.__name__}"
            )
        if merged[key] == _DEFAULTS[key]:
            merged[key] = Path(str(value)) if key in _PATHS else value
    return merged


def _expected_type(key: str) -> type:
    default = _DEFAULTS[key]
    if key in ("rtol", "max_drop"):
        return float
    if key == "external_data":
        return bool
    return str if default is None else type(default)


def config_to_toml(options: dict[str, Any]) -> str:
    """Return the options that are set, as TOML; ``merge_config`` reads it back."""
    lines = []
    for key in _DEFAULTS:
        value = options[key]
        if value is None:
            continue
        # JSON strings, numbers, booleans and flat lists are valid TOML.
        plain = str(value) if isinstance(value, Path) else value
        lines.append(f"{key} = {json.dumps(plain)}")
    return "\n".join(lines) + "\n"
