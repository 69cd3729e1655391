"""Random valid graphs out of what the clean-up passes rewrite."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.frontends.onnx_loader import load_onnx
from graphopt.ir.program import Program

Move = Callable[["Builder"], None]


class Builder:
    """Grows a graph; ``values`` are the tensors to read from, with their concrete shapes."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.count = 0
        x = ir.Value(
            name="x",
            type=ir.TensorType(ir.DataType.FLOAT),
            shape=ir.Shape(["n", 2, 4]),
        )
        image = ir.Value(
            name="image", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, 2, 6, 6])
        )
        self.graph = ir.Graph([x, image], [], nodes=[], opset_imports={"": 18}, name="g")
        self.main = self.graph
        self.values: list[tuple[ir.Value, tuple[int, ...]]] = [
            (x, (3, 2, 4)),
            (image, (1, 2, 6, 6)),
        ]

    def number(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high))

    def pick(self, rank: int | None = None) -> tuple[ir.Value, tuple[int, ...]]:
        chosen = [v for v in self.values if rank is None or len(v[1]) == rank]
        # Recent ones more often, so that chains grow.
        return chosen[max(self.number(0, len(chosen)), self.number(0, len(chosen)))]

    def constant(self, array: object, dtype: type = np.float32) -> ir.Value:
        self.count += 1
        data: npt.NDArray[Any] = np.asarray(array, dtype=dtype)
        name = f"c{self.count}"
        if self.number(0, 3) == 0:
            node = ir.node("Constant", [], {"value": ir.tensor(data)})
            node.outputs[0].name = name
            self.graph.append(node)
            return node.outputs[0]
        value = ir.Value(
            name=name,
            const_value=ir.Tensor(data, name=name),
            type=ir.TensorType(ir.DataType.from_numpy(data.dtype)),
            shape=ir.Shape(data.shape),
        )
        self.graph.register_initializer(value)
        return value

    def ints(self, *numbers: int) -> ir.Value:
        return self.constant(numbers, np.int64)

    def node(
        self, op: str, inputs: list[ir.Value], count: int = 1, **attributes: Any
    ) -> list[ir.Value]:
        self.count += 1
        node = ir.node(op, inputs, attributes, num_outputs=count)
        for index, value in enumerate(node.outputs):
            value.name = f"v{self.count}_{index}"
        self.graph.append(node)
        return list(node.outputs)

    def add(
        self, op: str, inputs: list[ir.Value], shape: tuple[int, ...], **attributes: Any
    ) -> None:
        self.values.append((self.node(op, inputs, **attributes)[0], shape))


def unary(b: Builder) -> None:
    value, shape = b.pick()
    b.add(("Identity", "Relu", "Neg", "Abs", "Identity", "Dropout")[b.number(0, 6)], [value], shape)


def neutral(b: Builder) -> None:
    value, shape = b.pick()
    op, number = (("Mul", 1), ("Add", 0), ("Sub", 0), ("Div", 1), ("Add", -0.0))[b.number(0, 5)]
    b.add(op, [value, b.constant([number])], shape)


def transpose(b: Builder) -> None:
    value, shape = b.pick()
    order = [int(i) for i in b.rng.permutation(len(shape))]
    b.add("Transpose", [value], tuple(shape[i] for i in order), perm=order)


def reshape(b: Builder) -> None:
    value, shape = b.pick()
    if b.number(0, 2):
        axis = b.number(0, len(shape) + 1)
        if len(shape) < 5:
            full = (*shape[:axis], 1, *shape[axis:])
            b.add("Unsqueeze", [value, b.ints(axis)], full)
        return
    ones = [i for i, size in enumerate(shape) if size == 1]
    if ones and len(shape) > 1:
        b.add("Squeeze", [value, b.ints(ones[0])], shape[: ones[0]] + shape[ones[0] + 1 :])
    elif len(shape) > 1:
        last = int(np.prod(shape[1:]))
        b.add("Reshape", [value, b.ints(0, -1)], (shape[0], last))


def computed_reshape(b: Builder) -> None:
    value, shape = b.pick()
    (size,) = b.node("Shape", [value])
    (part,) = b.node("Gather", [size, b.constant(0, np.int64)])
    (first,) = b.node("Unsqueeze", [part, b.ints(0)])
    (target,) = b.node("Concat", [first, b.ints(-1)], axis=0)
    b.add("Reshape", [value, target], (shape[0], int(np.prod(shape[1:]))))


def cut(b: Builder) -> None:
    value, shape = b.pick()
    axis = b.number(0, len(shape))
    start, step = b.number(0, shape[axis]), b.number(1, 3)
    if axis == 0 and shape[0] == 3:
        start = 0
    inputs = [value, b.ints(start), b.ints(2**62), b.ints(axis), b.ints(step)]
    size = len(range(start, shape[axis], step))
    b.add("Slice", inputs, (*shape[:axis], size, *shape[axis + 1 :]))


def pad(b: Builder) -> None:
    value, shape = b.pick(4)
    widths = [0, 0, 0, 0, 0, 0, 0, 0]
    for place in (2, 3, 6, 7):
        widths[place] = b.number(0, 2)
    new = tuple(s + widths[i] + widths[i + 4] for i, s in enumerate(shape))
    b.add("Pad", [value, b.ints(*widths)], new)


def convolve(b: Builder) -> None:
    value, shape = b.pick(4)
    if min(shape) < 1 or shape[1] > 8:
        return
    weight = b.constant(b.rng.standard_normal((2, shape[1], 1, 1)))
    b.add("Conv", [value, weight], (shape[0], 2, *shape[2:]))
    if b.number(0, 2):
        value, shape = b.values[-1]
        scale, shift, mean = (b.constant(b.rng.standard_normal(2)) for _ in range(3))
        variance = b.constant(b.rng.random(2) + 0.5)
        b.add("BatchNormalization", [value, scale, shift, mean, variance], shape)
    if b.number(0, 2):
        value, shape = b.values[-1]
        b.add("Add", [b.constant(b.rng.standard_normal((2, 1, 1))), value], shape)


def project(b: Builder) -> None:
    value, shape = b.pick()
    weight = b.constant(b.rng.standard_normal((shape[-1], 3)))
    b.add("MatMul", [value, weight], (*shape[:-1], 3))
    if b.number(0, 2):
        value, shape = b.values[-1]
        b.add("Add", [value, b.constant(b.rng.standard_normal(3))], shape)


def widen(b: Builder) -> None:
    value, shape = b.pick()
    (wide,) = b.node("Cast", [value], to=11)
    b.add("Cast", [wide], shape, to=1)


def combine(b: Builder) -> None:
    value, shape = b.pick()
    same = [v for v, s in b.values if s == shape]
    b.add(("Add", "Sub", "Max")[b.number(0, 3)], [value, same[b.number(0, len(same))]], shape)


def fold(b: Builder) -> None:
    value, shape = b.pick()
    (first,) = b.node("Neg", [b.constant(b.rng.standard_normal((shape[-1], 1)))])
    (turned,) = b.node("Transpose", [first], perm=[1, 0])
    b.add("Mul", [value, turned], (shape if len(shape) > 1 else (1, *shape)))


def branch(b: Builder) -> None:
    value, shape = b.pick()
    outer, kept = b.graph, b.values
    bodies = []
    condition = b.constant(b.number(0, 2), np.bool_)
    if b.number(0, 2):
        (least,) = b.node("ReduceMin", [value], keepdims=0)
        (condition,) = b.node("Less", [least, b.constant(0)])
    for side in ("then", "else"):
        b.graph = ir.Graph([], [], nodes=[], name=f"{side}{b.count}")
        b.values = [(value, shape)]
        unary(b)
        for _ in range(b.number(0, 3)):
            (unary, neutral, widen)[b.number(0, 3)](b)
        result = b.values[-1][0]
        if result.producer() is None or result.graph is not b.graph:
            (result,) = b.node("Identity", [value])
        result.type = ir.TensorType(ir.DataType.FLOAT)
        b.graph.outputs.append(result)
        bodies.append(b.graph)
    b.graph, b.values = outer, kept
    b.add("If", [condition], shape, then_branch=bodies[0], else_branch=bodies[1])


MOVES: tuple[Move, ...] = (
    *(unary, neutral, transpose, reshape, computed_reshape, cut, pad, convolve, project),
    *(widen, combine, fold, branch, transpose, reshape),
)


def random_program(seed: int, moves: int = 25) -> Program:
    """Return a program with up to ``moves`` random steps and a few outputs."""
    b = Builder(seed)
    for _ in range(moves):
        MOVES[b.number(0, len(MOVES))](b)
    made = [(v, s) for v, s in b.values if v.producer() is not None]
    for value, shape in dict.fromkeys(
        [made[-1], *(made[b.number(0, len(made))] for _ in range(3))]
    ):
        value.type = ir.TensorType(ir.DataType.FLOAT)
        value.shape = ir.Shape([None] * len(shape))
        b.graph.outputs.append(value)
    return load_onnx(ir.Model(b.graph, ir_version=10))
