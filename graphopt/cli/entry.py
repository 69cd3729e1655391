"""The command line: declarations of the verbs; their bodies are imported when they run.

Results go to stdout, one JSON object with ``--json``; logs and progress to stderr. Every outcome
has its exit code: 0 ok, 1 internal error, 2 usage, 3 bad input, 4 unsupported, 5 verification
failed, 6 does not fit, 7 output not written, 130 interrupted, 143 ended by SIGTERM.
"""

import gc
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from graphopt._version import __version__

app = typer.Typer(
    name="graphopt",
    help="A model compiler for memory: a byte limit in, a model, a proven plan and evidence out.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
targets_app = typer.Typer(help="The devices graphopt knows.", no_args_is_help=True)
passes_app = typer.Typer(help="The passes graphopt has.", no_args_is_help=True)
app.add_typer(targets_app, name="targets")
app.add_typer(passes_app, name="passes")

Model = Annotated[
    str,
    typer.Argument(
        metavar="IN", help="An .onnx or .pt2 file, or package.module:factory / file.py:factory."
    ),
]
TargetOption = Annotated[
    str, typer.Option("-t", "--target", help="A target's name or a .toml descriptor.")
]
DimOption = Annotated[
    list[str] | None,
    typer.Option("--dim", metavar="NAME=SIZE", help="Size of a named dimension; repeatable."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
TrustOption = Annotated[
    bool, typer.Option("--trust", help="Load a .pt2 file: that can run code from the file.")
]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"graphopt {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool | None,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = None,
) -> None:
    pass


@app.command("compile")
def compile_(
    model: Model,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where the result goes (.onnx).")
    ] = None,
    target: TargetOption = "cpu",
    precision: Annotated[
        str | None,
        typer.Option(
            "-p", "--precision", help="int8, int8-weights, int4-weights, nf4-weights, fp16 or bf16."
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option("--calib", help="Folder of .npz files, one real sample each."),
    ] = None,
    calibration_method: Annotated[
        str,
        typer.Option(
            "--calibration-method",
            help="Ranges of int8: auto, min-max, percentile, entropy or mse.",
        ),
    ] = "auto",
    memory_limit: Annotated[
        list[str] | None,
        typer.Option(
            "--memory-limit",
            metavar="[POOL=]SIZE",
            help="Bytes the model may take, such as 320KiB or sram=320KiB; repeatable.",
        ),
    ] = None,
    dim: DimOption = None,
    passes: Annotated[
        str | None,
        typer.Option("--passes", help="Passes in place of the default ones, separated by spaces."),
    ] = None,
    skip_pass: Annotated[
        list[str] | None, typer.Option("--skip-pass", help="Leave a pass out; repeatable.")
    ] = None,
    dump: Annotated[
        Path | None, typer.Option("--dump", help="Folder for the graph after every pass.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Write an HTML report here.")
    ] = None,
    plan_file: Annotated[
        Path | None, typer.Option("--plan", help="Write the memory plan (JSON) here.")
    ] = None,
    external_data: Annotated[
        bool | None,
        typer.Option(
            "--external-data/--no-external-data",
            help="Weights beside the model or inside it; by default beside it above 1 GiB.",
        ),
    ] = None,
    arena: Annotated[
        bool,
        typer.Option("--arena", help="For .ts: intermediates in one buffer, at planned offsets."),
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare with the original.")
    ] = True,
    verify_each: Annotated[
        bool, typer.Option("--verify-each", help="Compare after every pass; slow.")
    ] = False,
    rtol: Annotated[
        float | None,
        typer.Option("--rtol", help="Accepted error, as a part of an output's scale."),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            metavar="FILE.py:FUNCTION",
            help="Judge a quantized result by function(run), higher is better: runs your code.",
        ),
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option("--max-drop", help="How far the metric may fall.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the samples.")] = 0,
    trust: TrustOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Do everything, write no model.")
    ] = False,
    config: Annotated[
        Path | None, typer.Option("--config", help="A .toml file with options.")
    ] = None,
    save_config: Annotated[
        Path | None, typer.Option("--save-config", help="Write the options as .toml here.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Compile a model: optimize it, plan its memory, verify both, write it."""
    from graphopt.cli.verb_compile import run_compile

    run_compile(
        {
            "model": model,
            "output": output,
            "target": target,
            "precision": precision,
            "calibration": calibration,
            "calibration_method": calibration_method,
            "memory_limit": memory_limit or [],
            "dim": dim or [],
            "passes": passes,
            "skip_pass": skip_pass or [],
            "dump": dump,
            "report": report,
            "plan": plan_file,
            "external_data": external_data,
            "arena": arena,
            "verify": verify,
            "verify_each": verify_each,
            "rtol": rtol,
            "metric": metric,
            "max_drop": max_drop,
            "seed": seed,
            "trust": trust,
            "dry_run": dry_run,
        },
        config=config,
        save_config=save_config,
        as_json=json_,
    )


@app.command()
def plan(
    model: Model,
    target: TargetOption = "cpu",
    dim: DimOption = None,
    format_: Annotated[
        str, typer.Option("--format", help="table, json, csv, html or trace.")
    ] = "table",
    top: Annotated[int, typer.Option("--top", help="Owners of the peak to list.")] = 10,
    steps: Annotated[bool, typer.Option("--steps", help="List every step.")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write here, not to stdout.")
    ] = None,
    memory_limit: Annotated[
        list[str] | None, typer.Option("--memory-limit", metavar="[POOL=]SIZE", help="A limit.")
    ] = None,
    trust: TrustOption = False,
    json_: JsonOption = False,
) -> None:
    """Plan the memory of a model as it is; nothing is rewritten."""
    from graphopt.cli.verb_plan import run_plan

    run_plan(
        model,
        target,
        dim or [],
        "json" if json_ else format_,
        top=top,
        steps=steps,
        output=output,
        limits=memory_limit or [],
        trust=trust,
    )


@app.command()
def fit(
    model: Model,
    target: TargetOption,
    dim: Annotated[
        list[str],
        typer.Option("--dim", metavar="NAME[=SIZE]", help="The dimension; others with a size."),
    ],
    memory_limit: Annotated[
        list[str] | None, typer.Option("--memory-limit", metavar="[POOL=]SIZE", help="A limit.")
    ] = None,
    trust: TrustOption = False,
    json_: JsonOption = False,
) -> None:
    """Find the largest batch, sequence or resolution that fits a target."""
    from graphopt.cli.verb_fit import run_fit

    run_fit(model, target, dim, memory_limit or [], trust=trust, as_json=json_)


@app.command()
def pack(
    problem: Annotated[
        Path, typer.Argument(metavar="PROBLEM.csv", help="Columns id,lower,upper,size[,offset].")
    ],
    capacity: Annotated[
        str | None, typer.Option("--capacity", help="Bytes the arena may have; none minimizes.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the placement here.")
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", help="Time limit.")] = 20.0,
    solver: Annotated[
        str, typer.Option("--solver", help="'own', or 'cp-sat' for a second opinion by OR-Tools.")
    ] = "own",
    json_: JsonOption = False,
) -> None:
    """Solve a placement problem: the planner alone, on the CSV of the minimalloc benchmark."""
    from graphopt.cli.verb_fit import run_pack

    run_pack(problem, capacity, output, seconds=seconds, solver=solver, as_json=json_)


@app.command()
def inspect(
    model: Model,
    layers: Annotated[bool, typer.Option("--layers", help="List every node.")] = False,
    trust: TrustOption = False,
    json_: JsonOption = False,
) -> None:
    """Show what is in a model: inputs, outputs, operators, sizes, files."""
    from graphopt.cli.verb_inspect import run_inspect

    run_inspect(model, layers=layers, trust=trust, as_json=json_)


@app.command()
def check(
    model: Model,
    other: Annotated[
        str | None, typer.Argument(metavar="[OTHER]", help="A model to compare with.")
    ] = None,
    plan_file: Annotated[
        Path | None, typer.Option("--plan", help="A memory plan (JSON) to verify for the model.")
    ] = None,
    rtol: Annotated[float, typer.Option("--rtol")] = 1e-4,
    samples: Annotated[int, typer.Option("--samples")] = 2,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    dim: DimOption = None,
    trust: TrustOption = False,
    json_: JsonOption = False,
) -> None:
    """Validate a model; with two, compare their numbers; with --plan, verify the plan."""
    from graphopt.cli.verb_check import run_check

    run_check(
        model,
        other,
        plan_file,
        rtol=rtol,
        samples=samples,
        seed=seed,
        dim=dim or [],
        trust=trust,
        as_json=json_,
    )


@app.command()
def diff(
    before: Annotated[str, typer.Argument(metavar="A")],
    after: Annotated[str, typer.Argument(metavar="B")],
    target: TargetOption = "cpu",
    dim: DimOption = None,
    lines: Annotated[bool, typer.Option("--lines", help="List every changed node.")] = False,
    trust: TrustOption = False,
    json_: JsonOption = False,
) -> None:
    """Compare two models: operators, weights, peak."""
    from graphopt.cli.verb_inspect import run_diff

    run_diff(before, after, target, dim or [], lines=lines, trust=trust, as_json=json_)


@app.command()
def bisect(
    model: Model,
    metric: Annotated[str, typer.Option("--metric", help="error or peak.")] = "error",
    target: TargetOption = "cpu",
    passes: Annotated[str | None, typer.Option("--passes")] = None,
    rtol: Annotated[float, typer.Option("--rtol")] = 1e-4,
    dim: DimOption = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    trust: TrustOption = False,
    json_: JsonOption = False,
) -> None:
    """Find the pass, then the rewrite, that breaks the numbers or raises the peak."""
    from graphopt.cli.verb_bisect import run_bisect

    run_bisect(
        model,
        metric,
        target,
        passes,
        rtol=rtol,
        dim=dim or [],
        seed=seed,
        trust=trust,
        as_json=json_,
    )


@app.command()
def explain(
    code: Annotated[
        str | None, typer.Argument(metavar="[CODE]", help="The code of an error; none lists all.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Explain an error code."""
    from graphopt.cli.verb_describe import run_explain

    run_explain(code, as_json=json_)


@targets_app.command("list")
def targets_list(json_: JsonOption = False) -> None:
    """List the targets."""
    from graphopt.cli.verb_describe import run_targets_list

    run_targets_list(as_json=json_)


@targets_app.command("show")
def targets_show(name: str, json_: JsonOption = False) -> None:
    """Show a target, everything resolved, as the .toml it could be written as."""
    from graphopt.cli.verb_describe import run_targets_show

    run_targets_show(name, as_json=json_)


@targets_app.command("validate")
def targets_validate(path: Path, json_: JsonOption = False) -> None:
    """Check a descriptor and list everything that is wrong with it."""
    from graphopt.cli.verb_describe import run_targets_validate

    run_targets_validate(path, as_json=json_)


@passes_app.command("list")
def passes_list(
    target: TargetOption = "cpu",
    json_: JsonOption = False,
) -> None:
    """List the passes and the pipeline of a target."""
    from graphopt.cli.verb_describe import run_passes_list

    run_passes_list(target, as_json=json_)


@passes_app.command("show")
def passes_show(name: str, json_: JsonOption = False) -> None:
    """Show what a pass does, its options and what it leaves alone."""
    from graphopt.cli.verb_describe import run_passes_show

    run_passes_show(name, as_json=json_)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with the code of the outcome."""
    # A graph is hundreds of thousands of small objects that live to the end: looking for garbage
    # among them after every 700 new ones takes a third of the time of a large model.
    gc.set_threshold(200_000, 20, 20)
    ended: list[int] = []

    def end(number: int, _: object) -> None:
        ended.append(number)
        raise KeyboardInterrupt  # what cleans up after Ctrl-C does so after this

    before = signal.signal(signal.SIGTERM, end)
    try:
        code = run(sys.argv[1:] if arguments is None else arguments)
    finally:
        signal.signal(signal.SIGTERM, before)
    raise SystemExit(128 + ended[0] if ended else code)


def run(arguments: list[str]) -> int:
    """Run one command; return its exit code. Errors are printed, never raised."""
    from graphopt.cli.outcome import INTERRUPTED, report_error

    try:
        returned: Any = app(arguments, standalone_mode=False, prog_name="graphopt")
        if returned == INTERRUPTED:  # typer turns an interrupt into an exit of its own
            raise KeyboardInterrupt
        return returned if isinstance(returned, int) else 0
    except BaseException as error:
        return report_error(error, as_json="--json" in arguments)
