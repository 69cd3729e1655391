"""All trained networks through the command line: verified, accuracy kept, arena beside onnxsim's.

For every ``.onnx`` of the assets (``GRAPHOPT_ASSETS``, else ``../shared``) this runs ``graphopt
compile IN -o OUT -t cpu`` as a user would. Beside that it compiles for a target whose rules are
those that onnxsim plans by (alignment 1, inputs and outputs inside the arena), and prints the arena
before and after next to the arena that onnxsim 0.8.1 plans for its own simplified form of the same
file. ``--evaluate`` then runs the assets' ``evaluate.py`` on the originals and on the results.

    python benchmarks/trained_networks.py [--evaluate] [--out DIR] [--only NAME ...]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

# Sizes at which networks with free dimensions are planned: what evaluate.py feeds, or a usual size.
SIZES: dict[str, dict[str, int]] = {
    "espcn_x3": {"batch": 1, "height": 224, "width": 224},
    "nnsplit_en": {"batch": 1, "length": 256},
    "stories260k_prefill": {"seq": 256},
    "stories260k_decode": {"past": 255},
    "ppocr_det_v1_1": {"image_0": 1, "image_2": 640, "image_3": 640},
    "silero_vad": {"input_0": 1, "input_1": 576, "state_1": 1},
}


def assets() -> Path:
    """Return the folder that holds ``models/`` and ``data/``."""
    folder = Path(os.environ.get("GRAPHOPT_ASSETS", ROOT.parent / "shared"))
    if not (folder / "models").is_dir():
        raise SystemExit("no trained networks: set GRAPHOPT_ASSETS to a folder that holds models/")
    return folder


def same_rules(folder: Path) -> Path:
    """Write a descriptor with onnxsim's rules: one arena for everything, no alignment."""
    path = folder / "same-rules.toml"
    path.write_text(
        'schema_version = 1\nname = "same-rules"\nextends = "cpu"\n'
        'description = "cpu with inputs and outputs in the arena and no alignment"\n'
        'source = ["the rules of onnxsim 0.8.1"]\n'
        # onnxsim is given fixed sizes, so graphopt may use them as well.
        "[runtime]\nio_in_arena = true\nstatic_shapes_only = true\n"
        '[[pools]]\nname = "dram"\nalignment = 1\nsource = ["the rules of onnxsim 0.8.1"]\n'
    )
    return path


def dims_for(path: Path) -> dict[str, int]:
    """Return the sizes to bind, checked against the names the model has."""
    from graphopt.frontends.onnx_loader import load_onnx
    from graphopt.memory.sizes import input_symbols

    names = input_symbols(load_onnx(path).graph.inputs)
    wanted = SIZES.get(path.stem, {})
    unknown = set(wanted) - set(names)
    if unknown:
        raise SystemExit(f"{path.name}: no dimension {sorted(unknown)}, it has {names}")
    return {name: wanted.get(name, 1) for name in names}


def compile_one(path: Path, out: Path, dims: dict[str, int]) -> tuple[dict[str, Any], float]:
    """Run the command line; return its JSON and the seconds it took."""
    command = [sys.executable, "-m", "graphopt", "compile", str(path), "-o", str(out), "--json"]
    for name, size in dims.items():
        command += ["--dim", f"{name}={size}"]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        return {"failed": done.returncode, "stderr": done.stderr.strip()}, seconds
    return json.loads(done.stdout), seconds


def arena(
    path: Path, target: Path, dims: dict[str, int], *, optimize: bool
) -> tuple[int, int, int]:
    """Return (arena, lower bound, number of values not planned) of a file under ``target``."""
    import graphopt

    passes = None if optimize else ()
    result = graphopt.compile(path, target=target, bindings=dims, passes=passes, verify=False)
    plan = result.plan
    return plan.arena_bytes, plan.lower_bound_bytes, len(plan.not_planned)


def onnxsim_arena(path: Path, dims: dict[str, int]) -> tuple[int | None, int]:
    """Return onnxsim's arena for its simplified model, and how many values it does not plan."""
    code = (
        "import sys, json, onnx, onnxsim\n"
        "model = onnx.load(sys.argv[1]); shapes = json.loads(sys.argv[2])\n"
        "simplified, _ = onnxsim.simplify(model, overwrite_input_shapes=shapes or None)\n"
        "plan = onnxsim.plan_activation_memory(simplified)\n"
        "print(json.dumps([plan.arena_bytes, len(plan.unplanned), len(simplified.graph.node)]))\n"
    )
    from graphopt.frontends.onnx_loader import load_onnx
    from graphopt.ir.dims import evaluate
    from graphopt.ir.program import dims_of

    shapes = {
        value.name: [evaluate(dim, dims) for dim in dims_of(value) or ()]
        for value in load_onnx(path).graph.inputs
        if dims_of(value)
    }
    argument = json.dumps(shapes) if dims else "{}"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), argument],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return None, 0
    arena_bytes, unplanned, _ = json.loads(done.stdout.strip().splitlines()[-1])
    return arena_bytes, unplanned


def main() -> None:
    """Print the table; exit 1 when a network fails or our arena is above onnxsim's."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--evaluate", action="store_true")
    options = parser.parse_args()
    scratch = tempfile.TemporaryDirectory()
    out = options.out or Path(scratch.name) / "models"
    out.mkdir(parents=True, exist_ok=True)
    rules = same_rules(Path(scratch.name))
    rows, bad = [], 0
    print(
        f"{'network':<26}{'nodes':>12}{'max error':>11}{'s':>6}{'before':>12}{'after':>12}"
        f"{'bound':>12}{'onnxsim':>12}  ours/onnxsim"
    )
    for path in sorted((assets() / "models").glob("*.onnx")):
        if options.only and path.stem not in options.only:
            continue
        dims = dims_for(path)
        data, seconds = compile_one(path, out / path.name, dims)
        if "failed" in data:
            bad += 1
            print(f"{path.stem:<26}FAILED {data['failed']}: {data['stderr'][:300]}")
            continue
        before, _, _ = arena(path, rules, dims, optimize=False)
        after, bound, missing = arena(path, rules, dims, optimize=True)
        rival, rival_missing = onnxsim_arena(path, dims)
        error = data["verification"]["max_rel_error"]
        nodes = f"{data['baseline']['model']['nodes']}>{data['plan']['model']['nodes']}"
        ratio = "failed" if rival is None else f"{after / rival:.3f}" if rival else "-"
        note = f" ({missing} not planned)" if missing else ""
        note += f" (onnxsim leaves {rival_missing} out)" if rival_missing else ""
        worse = rival is not None and not rival_missing and after > rival
        bad += worse
        rows.append((before, after, rival))
        print(
            f"{path.stem:<26}{nodes:>12}{error:>11.1e}{seconds:>6.1f}{before:>12,}{after:>12,}"
            f"{bound:>12,}{rival if rival is not None else 0:>12,}  {ratio}{note}"
            f"{'  WORSE' if worse else ''}",
            flush=True,
        )
    if options.evaluate:
        evaluate_accuracy(out)
    if bad:
        raise SystemExit(f"{bad} networks failed or are above onnxsim")


def evaluate_accuracy(out: Path) -> None:
    """Run the assets' evaluation on the originals and on the results, and print both."""
    script = assets() / "models" / "evaluate.py"
    for title, extra in (("originals", []), ("results", ["--models", str(out)])):
        print(f"\n{title}:", flush=True)
        subprocess.run([sys.executable, str(script), *extra], check=True)


if __name__ == "__main__":
    main()
