"""Integers of weights that candidates share: made once, in files that go away."""

import gc
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.errors import OutputError
from graphopt.quantization import weight_files as module
from graphopt.quantization.threads import each
from graphopt.quantization.weight_files import META_KEY, WeightFiles, weight_files_of
from graphopt.quantization.weights import (
    WeightScheme,
    integers_of,
    lost_by_rounding,
    weight_scales,
)

RNG = np.random.default_rng(0)
SCHEME = WeightScheme(pairs_in_16_bits=True)


def weight(rows: int = 200, columns: int = 100) -> ir.TensorProtocol:
    return ir.Tensor(RNG.standard_normal((rows, columns)).astype(np.float32), name="w")


def count(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    calls: list[int] = []
    real = getattr(module, name)

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return real(*arguments)

    monkeypatch.setattr(module, name, counted)
    return calls


def test_what_is_known_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor, means = weight(), RNG.random(200)
    files = WeightFiles()
    files.know([tensor])
    names = ("weight_scales", "integers_of", "lost_by_rounding")
    calls = [count(monkeypatch, name) for name in names]
    for _ in range(3):
        scales = files.scales(tensor, 1, SCHEME)
        integers = files.integers(tensor, scales, 1)
        lost = files.lost(tensor, scales, 1, means, 0, 1)
    assert [len(one) for one in calls] == [1, 1, 1]
    array = tensor.numpy()
    assert np.array_equal(scales, weight_scales(array, 1, SCHEME))
    assert np.array_equal(integers.numpy(), integers_of(array, scales, 1))
    assert np.array_equal(lost, lost_by_rounding(array, scales, 1, means, 0, 1))
    # Other scales, other integers.
    wider = files.integers(tensor, scales * 2, 1)
    assert np.array_equal(wider.numpy(), integers_of(array, scales * 2, 1))
    assert np.array_equal(integers.numpy(), integers_of(array, scales, 1))


def test_of_others_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count(monkeypatch, "weight_scales")
    small, other = weight(3, 4), weight()
    files = WeightFiles()
    files.know([small])
    for tensor in (small, other):
        for _ in range(2):
            scales = files.scales(tensor, 0, SCHEME)
            made = files.integers(tensor, scales, 0)
            assert not isinstance(made, ir.ExternalTensor)
            assert np.array_equal(made.numpy(), integers_of(tensor.numpy(), scales, 0))
    assert len(calls) == 4


def test_files_live_as_long_as_a_tensor_that_names_them() -> None:
    tensor = weight()
    files = WeightFiles()
    files.know([tensor])
    made = files.integers(tensor, files.scales(tensor, 1, SCHEME), 1)
    assert isinstance(made, ir.ExternalTensor)
    path = Path(made.path)
    del files
    gc.collect()
    assert path.stat().st_size == tensor.size
    assert made.numpy().shape == (200, 100)
    made.release()
    del made
    gc.collect()
    assert not path.parent.exists()


def test_each_model_gets_a_tensor_of_its_own() -> None:
    tensor = weight()
    files = WeightFiles()
    files.know([tensor])
    scales = files.scales(tensor, 1, SCHEME)
    one, other = (files.integers(tensor, scales, 1) for _ in range(2))
    one.name = "renamed"
    assert other.name == "w"


def test_the_collection_rides_in_the_model() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21})
    model = ir.Model(graph, ir_version=10)
    assert weight_files_of(model) is not weight_files_of(model)
    model.meta[META_KEY] = WeightFiles()
    assert weight_files_of(model) is model.meta[META_KEY]


def test_a_full_folder_is_an_error_of_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> str:
        raise OSError(28, "No space left on device")

    tensor = weight()
    files = WeightFiles()
    files.know([tensor])
    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(OutputError) as caught:
        files.integers(tensor, files.scales(tensor, 1, SCHEME), 1)
    assert caught.value.code == "temporary-files"


def test_parts_come_back_in_order_and_errors_are_raised() -> None:
    assert each(lambda number: number * number, range(100)) == [n * n for n in range(100)]
    assert each(abs, []) == []

    def fail(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return number

    with pytest.raises(ValueError, match="three"):
        each(fail, range(5))
