"""``graphopt inspect`` and ``graphopt diff``."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from graphopt.cli.common import Loaded, parse_dims, unknown_shapes
from graphopt.cli.outcome import print_json
from graphopt.compiler import load_program
from graphopt.ir.program import Program, dims_of, graphs_of
from graphopt.ir.shapes import infer_shapes
from graphopt.ir.text import diff_lines, program_lines
from graphopt.memory.planning import peak_of
from graphopt.options import CompileOptions
from graphopt.pipeline.pipeline import model_size
from graphopt.targets.loader import resolve_target
from graphopt.units import format_bytes, format_change


def open_program(text: str, *, trust: bool) -> Program:
    """Return the program that the command line names by ``text``, shapes inferred."""
    loaded = Loaded(text)
    options = CompileOptions(dynamic_shapes=loaded.dynamic_shapes, trust=trust)
    return load_program(loaded.model, loaded.example_inputs, options)


def run_inspect(model: str, *, layers: bool, trust: bool, as_json: bool) -> None:
    """Print what is in a model."""
    program = open_program(model, trust=trust)
    report = infer_shapes(program)
    facts = _facts(program)
    facts["unknown_shapes"] = report.unresolved
    facts["data_dependent"] = report.data_dependent
    if as_json:
        if layers:
            facts["layers"] = program_lines(program)
        print_json(facts)
        return
    print(f"{model}: opset {facts['opset']}, IR {facts['ir_version']}")
    for kind in ("inputs", "outputs"):
        for name, text in facts[kind].items():
            print(f"  {kind[:-1]:<7}{name}: {text}")
    for name, limits in facts["bounds"].items():
        print(f"  dimension {name}: {limits[0]}..{'' if limits[1] is None else limits[1]}")
    weights = format_bytes(facts["weight_bytes"])
    print(f"  nodes {facts['nodes']}, initializers {facts['initializers']} ({weights})")
    if facts["domains"]:
        print(f"  operator sets: {facts['domains']}")
    for file in facts["external_files"]:
        print(f"  external data: {file}")
    for op, count in facts["operators"].items():
        print(f"  {count:>7}  {op}")
    for note in program.notes:
        print(f"  note: {note}")
    for line in unknown_shapes(report.unresolved):
        print(f"  {line}")
    if layers:
        print("\n".join(program_lines(program)))


def _facts(program: Program) -> dict[str, Any]:
    operators: Counter[str] = Counter()
    initializers = 0
    for graph in graphs_of(program.graph):
        initializers += len(graph.initializers)
        for node in graph:
            operators[f"{node.domain}.{node.op_type}" if node.domain else node.op_type] += 1
    nodes, weight_bytes = model_size(program.model)
    return {
        "name": program.graph.name,
        "sha256": program.source.sha256,
        "opset": program.opset,
        "ir_version": program.model.ir_version,
        "domains": {d: v for d, v in sorted(program.graph.opset_imports.items()) if d},
        "inputs": {v.name: _typed(v) for v in program.graph.inputs},
        "outputs": {v.name: _typed(v) for v in program.graph.outputs},
        "bounds": {n: [b.lower, b.upper] for n, b in sorted(program.bounds.items())},
        "nodes": nodes,
        "initializers": initializers,
        "weight_bytes": weight_bytes,
        "external_files": [str(path) for path in program.source.external_files],
        "operators": dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
        "notes": list(program.notes),
    }


def _typed(value: Any) -> str:
    dims = dims_of(value)
    dtype = value.dtype.name.lower() if value.dtype else "unknown"
    return f"{dtype}[{'?' if dims is None else ','.join(str(d) for d in dims)}]"


def run_diff(
    before: str,
    after: str,
    target: str,
    dims: Sequence[str],
    *,
    lines: bool,
    trust: bool,
    as_json: bool,
) -> None:
    """Print what differs between two models."""
    resolved = resolve_target(target)
    sides = []
    for text in (before, after):
        program = open_program(text, trust=trust)
        upper_bounds = infer_shapes(program).upper_bounds
        sizes = {n: s for n, s in parse_dims(dims).items() if n in program.bounds}
        peak = peak_of(program, resolved, sizes, upper_bounds=upper_bounds)
        sides.append((program, _facts(program), peak))
    (old, a, peak_a), (new, b, peak_b) = sides
    changed = diff_lines(program_lines(old), program_lines(new))
    names = sorted(set(a["operators"]) | set(b["operators"]))
    data: dict[str, Any] = {
        "nodes": [a["nodes"], b["nodes"]],
        "weight_bytes": [a["weight_bytes"], b["weight_bytes"]],
        "peak_bytes": [peak_a, peak_b],
        "operators": {
            n: [a["operators"].get(n, 0), b["operators"].get(n, 0)]
            for n in names
            if a["operators"].get(n, 0) != b["operators"].get(n, 0)
        },
        "inputs_equal": a["inputs"] == b["inputs"],
        "outputs_equal": a["outputs"] == b["outputs"],
        "lines": changed,
    }
    if as_json:
        print_json(data)
        return
    for label, (left, right) in (
        ("nodes", data["nodes"]),
        *((f"  {name}", pair) for name, pair in data["operators"].items()),
    ):
        print(f"{label:<28}{left:>14}{right:>14}  {format_change(left, right)}")
    for label, (left, right) in (
        ("weights", data["weight_bytes"]),
        ("peak activations", data["peak_bytes"]),
    ):
        if left is None or right is None:
            print(f"{label:<28}not planned: sizes are unknown (--dim NAME=SIZE)")
        else:
            change = format_change(left, right)
            print(f"{label:<28}{format_bytes(left):>14}{format_bytes(right):>14}  {change}")
    for side, equal in (("inputs", data["inputs_equal"]), ("outputs", data["outputs_equal"])):
        print(f"{side:<28}{'equal' if equal else 'DIFFERENT'}")
    print("\n".join(changed) if lines else f"{len(changed)} lines differ (--lines shows them)")
