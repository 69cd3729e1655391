"""All node cases of the onnx package: what is inferred against the outputs that belong to them."""

from collections import Counter
from typing import Any

import ml_dtypes  # noqa: F401 - makes numpy know the small floating-point types
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import defs, numpy_helper

from graphopt.ir.dims import Dim, evaluate, substitute, symbols_of
from graphopt.ir.program import Program, dims_of
from graphopt.ir.shape_rules.registry import covered
from graphopt.ir.shapes import ShapeReport, infer_shapes
from tests.ir.onnx_cases import Case, cases
from tests.ir.shape_models import make_symbolic

KINDS = ("runtime", "frozen", "symbolic")

# Operators of onnx without a rule. Gradient differentiates a graph; the others take or give maps.
WITHOUT_RULE = {
    "": set(),
    "ai.onnx.ml": {"CastMap", "DictVectorizer", "ZipMap"},
    "ai.onnx.preview": set(),
    "ai.onnx.preview.training": {"Gradient"},
}


def prepare(case: Case, kind: str) -> tuple[onnx.ModelProto, dict[str, int]]:
    """Return the model without declared shapes, and the sizes of the symbols it has.

    Args:
        case: The case.
        kind: "runtime" leaves the inputs alone; "frozen" makes small inputs constant; "symbolic"
            makes small vectors constant and gives every other axis a symbol.
    """
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.ClearField("type")
    if kind == "runtime":
        return model, {}
    kept = []
    for value, array in zip(list(model.graph.input), case.inputs, strict=False):
        if value.type.HasField("tensor_type") and becomes_constant(array, kind):
            model.graph.initializer.append(numpy_helper.from_array(array, value.name))
        else:
            kept.append(value)
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return model, make_symbolic(model) if kind == "symbolic" else {}


def becomes_constant(array: Any, kind: str) -> bool:
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        return False
    if kind == "frozen":
        return array.size <= 1024
    limit = 8 if array.dtype.kind == "f" else 64
    return array.ndim <= 1 and array.size <= limit


def infer(case: Case, kind: str) -> tuple[Program, ShapeReport, dict[str, int]]:
    model, bindings = prepare(case, kind)
    program = Program(ir.from_proto(model))
    return program, infer_shapes(program), bindings


def differences(case: Case, kind: str) -> list[str]:
    """Return where the inference contradicts the outputs of the case."""
    program, report, bindings = infer(case, kind)
    found = []
    for value, real in zip(program.graph.outputs, case.outputs, strict=True):
        if value.name in report.unresolved:
            continue
        real = np.asarray(real) if np.isscalar(real) else real
        shape, dtype = real_type(real)
        dims = dims_of(value)
        assert dims is not None
        if len(dims) != len(shape):
            found.append(f"{case.name}: {value.name} has rank {len(dims)}, not {len(shape)}")
            continue
        bind_data(dims, shape, report, bindings)
        for dim, size in zip(dims, shape, strict=True):
            expected = substitute(dim, {**bindings})
            if expected != size and not set(symbols_of(expected)) & set(report.data_dependent):
                found.append(f"{case.name}: {value.name} has {dims} at {bindings}, not {shape}")
        if dtype is not None and value.dtype is not dtype:
            found.append(f"{case.name}: {value.name} is {value.dtype}, not {dtype}")
        found += wrong_contents(case, value, real, report, bindings)
    for name, upper in report.upper_bounds.items():
        if name in bindings and not symbols_of(upper) - set(bindings):
            limit = evaluate(upper, bindings)
            if bindings[name] > limit:
                found.append(f"{case.name}: {name} is {bindings[name]}, its limit {limit}")
    return found


def bind_data(
    dims: tuple[Dim, ...], shape: tuple[int, ...], report: ShapeReport, bindings: dict[str, int]
) -> None:
    """Bind a data-dependent symbol that is a whole dimension to the real size."""
    for dim, size in zip(dims, shape, strict=True):
        if str(dim) in report.data_dependent:
            bindings.setdefault(str(dim), size)


def real_type(real: Any) -> tuple[tuple[int, ...], ir.DataType | None]:
    if isinstance(real, onnx.TensorProto):
        return tuple(real.dims), ir.DataType(real.data_type)
    if real.dtype.kind in "OSU":
        return real.shape, ir.DataType.STRING
    return real.shape, ir.DataType.from_numpy(real.dtype)


def wrong_contents(
    case: Case, value: ir.Value, real: Any, report: ShapeReport, bindings: dict[str, int]
) -> list[str]:
    known = report.known.get(value)
    if known is None or not isinstance(real, np.ndarray):
        return []
    entries = [substitute(e, {**bindings}) for e in known.entries]
    numbers = [int(x) for x in real.reshape(-1)]
    wrong = [(e, n) for e, n in zip(entries, numbers, strict=True) if isinstance(e, int) and e != n]
    return [f"{case.name}: {value.name} holds {wrong}"] if wrong else []


@pytest.mark.parametrize("kind", KINDS)
def test_inference_agrees_with_real_outputs(kind: str) -> None:
    found = [line for case in cases() for line in differences(case, kind)]
    assert found == []


def test_there_are_enough_cases() -> None:
    assert len(cases()) >= 1800


@pytest.mark.parametrize("kind", KINDS)
def test_at_least_as_much_is_resolved_as_by_onnx(kind: str) -> None:
    less = []
    for case in cases():
        program, report, _ = infer(case, kind)
        theirs = onnx_resolves(prepare(case, kind)[0])
        for value in program.graph.outputs:
            name = value.name or ""
            if theirs.get(name) and name in report.unresolved and not is_container(value):
                less.append(f"{case.name}: {name}: {report.unresolved[name]}")
            if theirs.get(name) and value.type is None:
                less.append(f"{case.name}: {name} has no type")
    assert less == []


def is_container(value: ir.Value) -> bool:
    return isinstance(value.type, ir.SequenceType | ir.OptionalType)


def onnx_resolves(model: onnx.ModelProto) -> dict[str, bool]:
    """Return for each output whether onnx gives it a type with a known number of axes."""
    try:
        inferred = onnx.shape_inference.infer_shapes(
            model, check_type=True, strict_mode=True, data_prop=True
        )
    except onnx.shape_inference.InferenceError:
        return {}
    found = {}
    for output in inferred.graph.output:
        tensor = output.type.tensor_type
        if output.type.HasField("tensor_type"):
            dims = tensor.shape.dim
            complete = all(d.HasField("dim_value") or d.dim_param for d in dims)
            found[output.name] = tensor.elem_type != 0 and tensor.HasField("shape") and complete
        else:
            found[output.name] = output.type.WhichOneof("value") is not None
    return found


def test_with_known_inputs_only_sequences_stay_unresolved() -> None:
    reasons: Counter[str] = Counter()
    for case in cases():
        _, report, _ = infer(case, "frozen")
        outputs = {o.name for o in case.model.graph.output}
        reasons.update(reason for name, reason in report.unresolved.items() if name in outputs)
    assert set(reasons) == {
        "a value of type sequence has no single shape",
        "a value of type optional has no single shape",
    }
    assert sum(reasons.values()) <= 29


def test_operators_without_a_rule() -> None:
    current: dict[str, set[str]] = {}
    for schema in defs.get_all_schemas_with_history():
        missing = current.setdefault(schema.domain, set())
        if not schema.deprecated and schema.name not in covered(schema.domain):
            missing.add(schema.name)
    assert current == WITHOUT_RULE


def test_a_wrong_rule_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt.ir.shape_rules import registry, view

    def wrong(node: view.NodeView) -> None:
        node.types(node.dtype(0))
        node.out(0, tuple(reversed(node.dims(0))))

    monkeypatch.setitem(registry._RULES, ("", "Relu"), wrong)
    case = next(c for c in cases() if c.name == "test_relu")
    for kind in ("runtime", "symbolic"):
        assert len(differences(case, kind)) >= 1
