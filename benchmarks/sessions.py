"""Sessions of onnxruntime as the benchmarks make them: one thread; times side by side; kernels."""

import collections
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_INTEGER = (
    "QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul",
    "DynamicQuantizeLSTM",
)  # fmt: skip
_PLAIN = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "LSTM")
_WARM_UP = 2


def session(path: Path, *, level: str = "ENABLE_ALL", optimized: Path | None = None) -> Any:
    """Return a session of one thread; ``optimized`` is where it writes the graph that it runs."""
    import onnxruntime as ort

    ort.set_default_logger_severity(3)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}")
    if optimized is not None:
        options.optimized_model_filepath = os.fspath(optimized)
    return ort.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])


def time_ratios(
    base: Path,
    others: Sequence[Path],
    feed: Mapping[str, np.ndarray],
    *,
    runs: int,
    clock: Callable[[], float],
) -> list[float]:
    """Return the time of each of ``others`` relative to ``base``: median over pairs.

    Args:
        base: A model.
        others: Models with the same inputs in the same order, maybe under other names.
        feed: The inputs of ``base`` in order.
        runs: Runs that count; the sessions take turns.
        clock: ``time.perf_counter``, or ``time.process_time``.
    """
    sessions = [session(path) for path in (base, *others)]
    names = [[value.name for value in one.get_inputs()] for one in sessions]
    times: list[list[float]] = [[] for _ in sessions]
    for run in range(_WARM_UP + runs):
        for one, inputs, found in zip(sessions, names, times, strict=True):
            given = dict(zip(inputs, feed.values(), strict=True))
            started = clock()
            one.run(None, given)
            if run >= _WARM_UP:
                found.append(clock() - started)
    return [
        statistics.median(b / a for a, b in zip(times[0], other, strict=True))
        for other in times[1:]
    ]


def integer_kernels(path: Path, scratch: Path) -> str:
    """Return how many Conv, Gemm, MatMul and LSTM run in integers, of how many."""
    import onnx

    kept = scratch / "optimized.onnx"
    session(path, optimized=kept)
    counts: collections.Counter[str] = collections.Counter()
    graphs = [onnx.load(kept).graph]
    while graphs:
        graph = graphs.pop()
        for node in graph.node:
            counts[node.op_type] += 1
            graphs += [a.g for a in node.attribute if a.HasField("g")]
    integer = sum(counts[name] for name in _INTEGER)
    return f"{integer}/{integer + sum(counts[name] for name in _PLAIN)}"
