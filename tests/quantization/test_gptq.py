"""Error-compensated rounding: against a slow form of it, and what it wins."""

import numpy as np
import pytest

from graphopt.quantization.block_weights import BlockScheme, dequantize, quantize_matrix
from graphopt.quantization.gptq import (
    DAMPING,
    compensation_of,
    order_of,
    product_errors,
    round_rows,
)
from graphopt.quantization.reconstruction import reconstruct

FOUR = BlockScheme(4, 16)
SCHEMES = [
    FOUR,
    BlockScheme(4, 16, symmetric=True, method="rtn"),
    BlockScheme(8, 32, symmetric=True),
    BlockScheme(4, 16, symmetric=True, narrow=True),
    BlockScheme(8, 0, symmetric=True, narrow=True),
]


def correlated(samples: int, inner: int, seed: int = 0) -> np.ndarray:
    """Return inputs of a few common causes, of very different sizes."""
    rng = np.random.default_rng(seed)
    causes = rng.standard_normal((samples, max(2, inner // 4)))
    mixed = causes @ rng.standard_normal((causes.shape[1], inner))
    sizes = np.exp(rng.standard_normal(inner))
    found: np.ndarray = (mixed + 0.1 * rng.standard_normal((samples, inner))) * sizes
    return found


def weights(rows: int, inner: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((rows, inner)).astype(np.float32)


def slow(
    rows: np.ndarray, hessian: np.ndarray, scheme: BlockScheme, *, by_activation: bool
) -> np.ndarray:
    """Return the rounded weights; the inverse of what is left of the Hessian is made each time."""
    damped = hessian + DAMPING[0] * np.trace(hessian) / len(hessian) * np.eye(len(hessian))
    order = order_of(np.diagonal(hessian), scheme.block, by_activation=by_activation)
    columns = order.columns.tolist()
    left = rows.astype(np.float64)
    rounded = np.zeros_like(left)
    width = scheme.block or rows.shape[1]
    entered: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for place, column in enumerate(columns):
        block = column // width
        if block not in entered:
            here = left[:, sorted(c for c in columns if c // width == block)].astype(np.float32)
            # The scale of a block must not depend on the order of its numbers.
            parts = quantize_matrix(here, BlockScheme(**{**vars(scheme), "block": 0}))
            entered[block] = parts.scales[:, 0].astype(float), parts.zero_points[:, 0].astype(float)
        scale, zero = entered[block]
        steps = np.clip(np.rint(left[:, column] / scale) + zero, scheme.smallest, scheme.largest)
        rounded[:, column] = (steps - zero) * scale
        rest = columns[place:]
        inverse = np.linalg.inv(damped[np.ix_(rest, rest)])
        error = (left[:, column] - rounded[:, column]) / inverse[0, 0]
        left[:, rest] -= error[:, None] * inverse[0]
    return rounded


def fast(
    rows: np.ndarray, hessian: np.ndarray, scheme: BlockScheme, *, by_activation: bool = True
) -> np.ndarray:
    compensation = compensation_of(hessian, scheme.block, by_activation=by_activation)
    assert compensation is not None
    return widened(round_rows(rows, compensation, scheme), scheme)


def widened(found: tuple[np.ndarray, np.ndarray, np.ndarray], scheme: BlockScheme) -> np.ndarray:
    integers, scales, zeros = found
    block = np.arange(integers.shape[1]) // (scheme.block or integers.shape[1])
    wide: np.ndarray = (integers.astype(float) - zeros[:, block]) * scales[:, block].astype(float)
    return wide


@pytest.mark.parametrize("by_activation", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_it_rounds_as_the_slow_form_does(scheme: BlockScheme, by_activation: bool) -> None:
    inputs = correlated(200, 40)
    rows = weights(7, 40)
    hessian = inputs.T @ inputs
    wanted = slow(rows, hessian, scheme, by_activation=by_activation)
    assert np.array_equal(fast(rows, hessian, scheme, by_activation=by_activation), wanted)


@pytest.mark.parametrize("batch", [1, 4, 16, 48, 100, 1000])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_batches_change_nothing(scheme: BlockScheme, batch: int) -> None:
    inputs = correlated(300, 100)
    compensation = compensation_of(inputs.T @ inputs, scheme.block)
    assert compensation is not None
    rows = weights(9, 100)
    wanted = round_rows(rows, compensation, scheme)
    found = round_rows(rows, compensation, scheme, batch=batch)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)


def test_rows_do_not_touch_each_other() -> None:
    inputs = correlated(300, 64)
    compensation = compensation_of(inputs.T @ inputs, FOUR.block)
    assert compensation is not None
    rows = weights(8, 64)
    whole = widened(round_rows(rows, compensation, FOUR), FOUR)
    halves = [widened(round_rows(part, compensation, FOUR), FOUR) for part in (rows[:3], rows[3:])]
    assert np.array_equal(np.concatenate(halves), whole)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_products_of_correlated_inputs_lose_less(scheme: BlockScheme) -> None:
    inputs = correlated(500, 96)
    hessian = inputs.T @ inputs
    rows = weights(32, 96)
    compensated = product_errors(rows - fast(rows, hessian, scheme), hessian)
    for method in ("rtn", "mse", "hqq"):
        plain = BlockScheme(**{**vars(scheme), "method": method})
        rounded = dequantize(quantize_matrix(rows, plain), plain, 96)
        assert compensated < 0.5 * product_errors(rows - rounded, hessian)


def test_the_measured_error_is_that_of_the_outputs() -> None:
    inputs, difference = correlated(50, 24), weights(6, 24)
    wanted = np.square(difference.astype(np.float64) @ inputs.T).sum()
    assert product_errors(difference, inputs.T @ inputs) == pytest.approx(wanted, rel=1e-12)


def test_independent_inputs_leave_nothing_to_hand_on() -> None:
    rows = weights(5, 64)
    plain = dequantize(quantize_matrix(rows, FOUR), FOUR, 64)
    assert np.array_equal(fast(rows, 3.0 * np.eye(64), FOUR).astype(np.float32), plain)


def test_an_input_that_is_always_zero_is_rounded_on_its_own() -> None:
    inputs = correlated(100, 32)
    inputs[:, 5] = 0
    rows = weights(6, 32)
    found = fast(rows, inputs.T @ inputs, BlockScheme(4, 16, method="rtn"))
    step = (rows[:, :16].max(1) - rows[:, :16].min(1)) / 15
    assert (np.abs(found[:, 5] - rows[:, 5]) < 1.5 * step).all()


def test_too_few_samples_are_damped() -> None:
    inputs = correlated(3, 300)
    compensation = compensation_of(inputs.T @ inputs, 32)
    assert compensation is not None
    assert compensation.damping == DAMPING[0]
    factor = compensation.factor
    assert np.array_equal(factor, np.triu(factor))
    columns = compensation.order.columns
    damped = (inputs.T @ inputs)[np.ix_(columns, columns)]
    damped += DAMPING[0] * np.trace(damped) / 300 * np.eye(300)
    assert factor.T @ factor @ damped == pytest.approx(np.eye(300), abs=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_hessians_that_say_nothing(bad: float) -> None:
    assert compensation_of(np.full((4, 4), bad), 0) is None


def test_the_busiest_come_first_and_blocks_stay_together() -> None:
    diagonal = np.array([1.0, 2.0, 0.0, 9.0, 3.0, 3.0, 8.0])
    order = order_of(diagonal, 2)
    assert order.columns.tolist() == [3, 2, 6, 4, 5, 1, 0]
    assert order.blocks == (1, 3, 2, 0)
    assert order.starts == (0, 2, 3, 5, 7)
    plain = order_of(diagonal, 2, by_activation=False)
    assert plain.columns.tolist() == list(range(7))
    assert plain.starts == (0, 2, 4, 6, 7)


@pytest.mark.parametrize("by_column", [True, False])
@pytest.mark.parametrize("inner", [64, 40])
def test_the_best_method_of_a_matrix_is_kept(
    by_column: bool, inner: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graphopt.quantization import reconstruction

    # Several pieces.
    monkeypatch.setattr(reconstruction, "_PIECE_ELEMENTS", 3 * inner)
    inputs, rows = correlated(200, inner), weights(10, inner)
    hessian = inputs.T @ inputs
    compensation = compensation_of(hessian, FOUR.block)
    assert compensation is not None
    array = np.ascontiguousarray(rows.T) if by_column else rows
    parts, method, decibels = reconstruct(array, FOUR, hessian, compensation, by_column=by_column)
    assert method == "gptq"
    assert list(decibels) == ["gptq", "hqq", "mse"]
    assert max(decibels, key=lambda name: decibels[name]) == "gptq"
    rounded = dequantize(parts, FOUR, inner)
    assert np.array_equal(rounded, fast(rows, hessian, FOUR).astype(np.float32))
    lost = product_errors(rows - rounded, hessian)
    signal = product_errors(rows, hessian)
    assert decibels["gptq"] == pytest.approx(10 * np.log10(signal / lost))
    mse = dequantize(quantize_matrix(rows, FOUR), FOUR, inner)
    lost = product_errors(rows - mse, hessian)
    assert decibels["mse"] == pytest.approx(10 * np.log10(signal / lost))


def test_without_correlation_a_method_that_needs_no_data_is_kept() -> None:
    rows = weights(4, 64)
    compensation = compensation_of(np.eye(64), 16)
    assert compensation is not None
    scheme = BlockScheme(4, 16, method="rtn")
    parts, method, decibels = reconstruct(rows, scheme, np.eye(64), compensation, by_column=False)
    assert list(decibels) == ["gptq", "hqq", "mse", "rtn"]
    assert decibels[method] == max(decibels.values())
    assert decibels["rtn"] < decibels["mse"]
    assert decibels["gptq"] == pytest.approx(decibels["mse"])
    assert parts.data.shape == (4, 4, 8)
