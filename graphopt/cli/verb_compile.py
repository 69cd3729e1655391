"""``graphopt compile``."""

import contextlib
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.cli.common import (
    Loaded,
    note,
    parse_dims,
    parse_limits,
    progress_line,
    text_style,
    write_text,
)
from graphopt.cli.config import config_to_toml, merge_config
from graphopt.cli.outcome import print_json
from graphopt.errors import OptionError
from graphopt.result import CompileResult

if TYPE_CHECKING:
    from graphopt.numerics.compare import Tolerance


def run_compile(
    options: dict[str, Any], *, config: Path | None, save_config: Path | None, as_json: bool
) -> None:
    """Compile, print the table (or JSON), write what was asked for."""
    if config is not None:
        options = merge_config(options, config)
    output: Path | None = options["output"]
    if output is None and not options["dry_run"] and save_config is None:
        raise OptionError(
            "output-missing", "nowhere to write the result", hint="give -o OUT.onnx, or --dry-run"
        )
    if save_config is not None:
        write_text(save_config, config_to_toml(options))
        note(f"wrote {save_config}")
        if output is None and not options["dry_run"]:
            return
    result = _compile(options)
    written: list[Path] = []
    if output is not None and not options["dry_run"]:
        written = result.save(
            output, external_data=options["external_data"], arena=options["arena"]
        )
    if options["report"] is not None:
        written.append(result.to_html(options["report"]))
    if options["plan"] is not None:
        write_text(options["plan"], result.plan.to_json(), result.input_files)
        written.append(options["plan"])
    if as_json:
        print_json({**result.to_dict(), "files": [str(path) for path in written]})
        return
    print(result.summary(**text_style()))
    for path in written:
        note(f"wrote {path} ({path.stat().st_size:,} bytes)")


def _compile(options: Mapping[str, Any]) -> CompileResult:
    from graphopt.compiler import compile_model
    from graphopt.options import CompileOptions

    loaded = Loaded(options["model"])
    passes = options["passes"]
    progress = progress_line()
    stated = CompileOptions(
        target=options["target"],
        dynamic_shapes=loaded.dynamic_shapes,
        bindings=parse_dims(options["dim"]) or None,
        precision=options["precision"],
        calibration_data=options["calibration"],
        calibration_method=options["calibration_method"],
        memory_limit=parse_limits(options["memory_limit"]),
        passes=None if passes is None else passes.split(),
        skip_passes=tuple(options["skip_pass"]),
        verify=_tolerance(options),
        verify_each=options["verify_each"],
        dump_dir=options["dump"],
        seed=options["seed"],
        progress=progress,
        trust=options["trust"],
    )
    try:
        return compile_model(loaded.model, loaded.example_inputs, stated)
    finally:
        if progress is not None:
            progress(0, 0, "")


def _to_stderr(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function`` with what it prints kept out of the results."""

    def call(*arguments: Any) -> Any:
        with contextlib.redirect_stdout(sys.stderr):
            return function(*arguments)

    inner = function.func if isinstance(function, partial) else function
    call.__name__ = str(getattr(inner, "__name__", type(inner).__name__))
    return call


def _tolerance(options: Mapping[str, Any]) -> "bool | Tolerance":
    """Return what ``--no-verify``, ``--rtol``, ``--metric`` and ``--max-drop`` ask for."""
    from graphopt.numerics.compare import Tolerance

    stated = {name: options[name] for name in ("rtol", "max_drop") if options[name] is not None}
    if options["metric"] is not None:
        from graphopt.frontends.factory import load_function

        if not options["verify"]:
            raise OptionError(
                "metric-options",
                "--metric measures the result, and --no-verify asks for no measurement",
                hint="leave one of them out",
            )
        note(f"running the code of '{options['metric']}' to judge models by it")
        stated["metric"] = _to_stderr(load_function(options["metric"]))
    if not options["verify"]:
        return False
    return Tolerance(**stated) if stated else True
