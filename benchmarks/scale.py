"""How long plan and compile take on long graphs, as whole commands, and that growth is linear.

A chain of Conv, Relu and residual Add with a weight per convolution, and a wide graph of many
parallel branches. Every figure is a fresh process: start-up, imports and writing the result are
in it.

    python benchmarks/scale.py [--nodes 5000 20000 100000] [--verify]
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def chain(count: int) -> onnx.ModelProto:
    """Return a chain of ``count`` nodes."""
    nodes, tensors, before = [], [], "x"
    for i in range(count):
        out = f"v{i}"
        if i % 3 == 0:
            nodes.append(helper.make_node("Conv", [before, f"w{i}"], [out], kernel_shape=[1, 1]))
            weight = np.eye(4, dtype=np.float32) * np.float32(1 + 1e-6 * i)
            tensors.append(numpy_helper.from_array(weight.reshape(4, 4, 1, 1), f"w{i}"))
        elif i % 3 == 1:
            nodes.append(helper.make_node("Relu", [before], [out]))
        else:
            nodes.append(helper.make_node("Add", [before, f"v{i - 2}"], [out]))
        before = out
    return _model(nodes, tensors, before)


def branches(count: int, width: int = 8) -> onnx.ModelProto:
    """Return blocks of branches, written breadth first, that are summed: order matters."""
    nodes, before, made = [], "x", 0
    while made < count:
        tails = []
        for b in range(width):
            alpha = (b + 1) / 100  # different, or they would be merged
            nodes.append(helper.make_node("Elu", [before], [f"e{made}_{b}"], alpha=alpha))
        for b in range(width):
            nodes.append(helper.make_node("Tanh", [f"e{made}_{b}"], [f"t{made}_{b}"]))
            tails.append(f"t{made}_{b}")
        nodes.append(helper.make_node("Mean", tails, [f"s{made}"]))
        before = f"s{made}"
        made += 2 * width + 1
    return _model(nodes, [], before)


def _model(
    nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto], last: str
) -> onnx.ModelProto:
    info = helper.make_tensor_value_info
    shape = [1, 4, 8, 8]
    graph = helper.make_graph(
        nodes,
        "scale",
        [info("x", TensorProto.FLOAT, shape)],
        [info(last, TensorProto.FLOAT, shape)],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def timed(*arguments: object) -> tuple[float, float]:
    """Return wall-clock seconds and processor seconds of a ``graphopt`` command."""
    command = [sys.executable, "-m", "graphopt", *map(str, arguments)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, nargs="*", default=[5000, 20000, 100000])
    parser.add_argument("--verify", action="store_true")
    options = parser.parse_args()
    verify = [] if options.verify else ["--no-verify"]
    print(f"{'graph':<10}{'nodes':>8}{'plan s':>9}{'cpu s':>8}{'compile s':>11}{'cpu s':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for name, make in (("chain", chain), ("branches", branches)):
            for count in options.nodes:
                path, out = Path(folder) / f"{name}.onnx", Path(folder) / "out.onnx"
                path.write_bytes(make(count).SerializeToString())
                plan, plan_cpu = timed("plan", path)
                took, cpu = timed("compile", path, "-o", out, *verify)
                print(
                    f"{name:<10}{count:>8}{plan:>9.1f}{plan_cpu:>8.1f}{took:>11.1f}{cpu:>8.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
