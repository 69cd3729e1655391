"""Calibration: streaming, in one run a sample or several, and what it refuses."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from graphopt.errors import OptionError, UnsupportedError
from graphopt.ir.program import Program
from graphopt.ir.shapes import infer_shapes
from graphopt.numerics import calibration
from graphopt.numerics.calibration import calibrate, samples_of
from graphopt.quantization.ranges import Scheme
from graphopt.quantization.rules import DEFAULT_OPERATORS
from tests.passes.graphs import graph

OPERATORS = frozenset(DEFAULT_OPERATORS)
TEXT = """
g (float[n,2,h,4] x) => (float[n,2,h,4] y)
  <float[2,2,1,1] w = {1.0, 0.0, 0.0, -2.0}, float[2] b = {1.0, 0.0}>
{ c = Conv (x, w, b) r = Relu (c) y = Neg (r) }
"""


def program(text: str = TEXT) -> Program:
    model = graph(text)
    found = Program(model)
    infer_shapes(found)
    return found


def batches() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = ((1, 2, 3, 4), (2, 2, 5, 4), (1, 2, 1, 4))
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def test_a_generator_of_different_shapes_in_one_pass() -> None:
    parts = batches()
    left = iter(parts)
    found = calibrate(program(), ({"x": part} for part in left), OPERATORS)
    assert next(left, None) is None
    assert found.samples == len(found.kept) == 3
    assert list(found.histograms) == ["x", "c", "r"]
    flat = np.concatenate([part.transpose(1, 0, 2, 3).reshape(2, -1) for part in parts], axis=1)
    conv = np.stack([flat[0] + 1, -2 * flat[1]])
    ranges = found.describe("min-max", Scheme()).ranges
    assert ranges["x"] == (float(flat.min()), float(flat.max()))
    assert ranges["c"] == pytest.approx((conv.min(), conv.max()), rel=1e-6)
    assert ranges["r"] == pytest.approx((0.0, conv.max()), rel=1e-6)
    means = found.describe("min-max", Scheme()).means
    np.testing.assert_allclose(means["x"], flat.mean(axis=1), rtol=1e-5)
    assert list(means) == ["x"]


def test_a_byte_cap_observes_the_same_in_several_runs() -> None:
    whole = calibrate(program(), [(part,) for part in batches()], OPERATORS)
    pieces = calibrate(program(), [(part,) for part in batches()], OPERATORS, observed_bytes=100)
    for name, histogram in whole.histograms.items():
        other = pieces.histograms[name]
        np.testing.assert_array_equal(histogram.counts, other.counts)
        assert (histogram.low, histogram.high) == (other.low, other.high)


@pytest.mark.parametrize(
    ("most_bytes", "kept"),
    [(0, [1, 9, 17, 25, 33]), (1 << 20, list(range(1, 41))), (3000, list(range(1, 41, 4)))],
)
def test_nothing_grows_with_the_number_of_samples(
    most_bytes: int, kept: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "KEPT_VALUE_BYTES", most_bytes)
    part = batches()[0]

    def many() -> Iterator[tuple[np.ndarray]]:
        for factor in range(1, 41):
            yield (part * factor,)

    found = calibrate(program(), many(), OPERATORS)
    assert found.samples == 40
    # Spread over all samples, not the first ones.
    assert [round(float(one["x"].flat[0] / part.flat[0])) for one in found.kept] == kept
    assert all(len(h.counts) <= 2048 for h in found.histograms.values())
    assert found.histograms["x"].elements == 40 * part.size


def test_a_value_that_was_infinite_has_no_range() -> None:
    part = batches()[0].copy()
    part[0, 0, 0, 0] = np.inf
    found = calibrate(program(), [(part,)], OPERATORS)
    assert "c" not in found.describe("mse", Scheme()).ranges


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ([], "calibration-empty"),
        (iter(()), "calibration-empty"),
        (7, "calibration-type"),
        ({"x": np.zeros((1, 2, 3, 4), np.float32)}, "calibration-type"),
        ("/nowhere/at/all", "calibration-unreadable"),
        ([{"z": np.zeros((1, 2, 3, 4), np.float32)}], "samples-mismatch"),
        ([(np.zeros((1, 2, 3, 4)),)], "samples-mismatch"),
    ],
)
def test_refusals(data: object, code: str) -> None:
    with pytest.raises(OptionError) as caught:
        calibrate(program(), data, OPERATORS)
    assert caught.value.code == code


def test_a_sample_that_does_not_run_is_refused() -> None:
    with pytest.raises(UnsupportedError) as caught:
        calibrate(program(), [(np.zeros((1, 3, 3, 4), np.float32),)], OPERATORS)
    assert caught.value.code == "runtime-failed"


def test_an_unknown_method() -> None:
    found = calibrate(program(), [(batches()[0],)], OPERATORS)
    with pytest.raises(OptionError) as caught:
        found.describe("median", Scheme())
    assert caught.value.code == "calibration-method"


def test_a_folder_of_npz_files_in_order(tmp_path: Path) -> None:
    for index in (2, 0, 1):
        np.savez(tmp_path / f"{index}.npz", x=np.full(1, index))
    assert [int(sample["x"][0]) for sample in samples_of(tmp_path)] == [0, 1, 2]
    (tmp_path / "3.npz").write_bytes(b"no archive")
    with pytest.raises(OptionError) as caught:
        list(samples_of(str(tmp_path)))
    assert caught.value.code == "calibration-unreadable"
