"""Trained networks: every inferred shape against what onnxruntime computes."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.ir.dims import Bounds, evaluate, symbols_of
from graphopt.ir.program import Program, dims_of, graphs_of, set_dims
from graphopt.ir.shapes import infer_shapes
from tests.ir.shape_models import Array, bound, run_all_values, values_of

# Network -> sizes of its symbols; every value of the main graph is compared.
SIZES = {
    "silero_vad": {"input_dim0": 1, "input_dim1": 576, "state_dim1": 1},
    "ultraface_rfb320": {},
    "ppocr_det_v1_1": {"image_dim0": 1, "image_dim2": 96, "image_dim3": 160},
    "sinet_portrait": {},
    "stories260k_decode": {"past": 3},
    "stories260k_prefill": {"seq": 5},
    "magika_v3_3": {"unk__214": 2},
    "dtln_2": {},
    "lprnet_plate": {},
    "nnsplit_en": {"batch": 2, "length": 12},
    "espcn_x3": {"batch": 2, "height": 5, "width": 7},
}

# silero_vad decides by its length which branches run, so its shapes need the length.
NEEDS_SIZES = {"silero_vad"}

pytestmark = pytest.mark.assets


def load(path: Path) -> Program:
    program = Program(ir.load(path))
    for value in list(program.graph.inputs):
        if value.const_value is not None:
            program.graph.inputs.remove(value)
    return program


def feeds(program: Program, sizes: dict[str, int]) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    result: dict[str, Array] = {}
    for value in program.graph.inputs:
        dims, dtype = dims_of(value), value.dtype
        assert dims is not None
        assert dtype is not None
        if dtype.is_floating_point():
            result[value.name or ""] = rng.standard_normal(bound(dims, sizes)).astype(dtype.numpy())
        else:
            result[value.name or ""] = rng.integers(0, 100, bound(dims, sizes), dtype.numpy())
    if "sr" in result:
        result["sr"] = np.array(16000)
    return result


@pytest.mark.parametrize("fixed", [False, True], ids=["symbolic", "fixed"])
@pytest.mark.parametrize("name", SIZES)
def test_every_value_has_the_shape_that_onnxruntime_computes(
    assets: Path, name: str, fixed: bool
) -> None:
    path, sizes = assets / "models" / f"{name}.onnx", SIZES[name]
    program = load(path)
    report = infer_shapes(program)
    symbols = {s for v in program.graph.inputs for d in dims_of(v) or () for s in symbols_of(d)}
    assert symbols == set(sizes)
    given = feeds(program, sizes)
    if fixed:
        program = load(path)
        for value in program.graph.inputs:
            set_dims(value, given[value.name or ""].shape)
        report = infer_shapes(program)
    elif name in NEEDS_SIZES:
        program.bounds.update({s: Bounds(n, n) for s, n in sizes.items()})
        report = infer_shapes(program)
    assert report.data_dependent == {}
    if not report.impossible:
        assert report.unresolved == {}
    values = values_of(program)
    for real_name, real in run_all_values(path, given).items():
        value = values[real_name]
        dims = dims_of(value)
        assert dims is not None, real_name
        assert bound(dims, sizes) == real.shape, real_name
        assert value.dtype == ir.DataType.from_numpy(real.dtype), real_name
        known = report.known.get(value)
        if known is not None:
            assert [evaluate(e, sizes) for e in known.entries] == real.reshape(-1).tolist()


def test_shape_arithmetic_of_ultraface_is_followed(assets: Path) -> None:
    program = load(assets / "models" / "ultraface_rfb320.onnx")
    report = infer_shapes(program)
    followed = {v.producer().op_type for v in report.known if v.producer() is not None}  # type: ignore[union-attr]
    assert {"Shape", "Gather", "Unsqueeze", "Concat"} <= followed


def test_the_wrong_output_of_ppocr_is_reported(assets: Path) -> None:
    program = load(assets / "models" / "ppocr_det_v1_1.onnx")
    report = infer_shapes(program)
    (line,) = report.contradictions
    assert line.startswith("'save_infer_model/scale_0.tmp_0': declared [?, 1, 640, 640], inferred")


def test_silero_names_what_decides_and_the_branch_that_cannot_run(assets: Path) -> None:
    path = assets / "models" / "silero_vad.onnx"
    program = load(path)
    report = infer_shapes(program)
    decided = [r for r in report.unresolved.values() if r.startswith("the branches give it ranks")]
    assert any("is decided by" in reason and "input_dim1" in reason for reason in decided)
    assert report.impossible == {}

    # 576 samples are no chunk of 8 kHz audio: onnxruntime refuses that branch too.
    program = load(path)
    for value, dims in zip(program.graph.inputs, [(1, 576), (2, 1, 128), ()], strict=True):
        set_dims(value, dims)
    report = infer_shapes(program)
    assert any("input 0 has rank 5, expected 3" in reason for reason in report.impossible.values())
    inside = {
        value.name
        for body in report.impossible
        for graph in graphs_of(body)
        for node in graph
        for value in node.outputs
    }
    assert set(report.unresolved) <= inside
    assert all("cannot run" in reason for reason in report.unresolved.values())
