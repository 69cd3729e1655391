"""Random valid ONNX models with static shapes, for whoever needs a thousand graphs.

``random_model(seed)`` is a pure function of its arguments. The graphs have chains that may work in
place, views, pieces and joins of contiguous wholes, values that live long, values that nobody
reads, several outputs, booleans and halves, convolutions, and ``If`` with captured values. Numbers
stay tame: what would grow goes through Tanh.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Shape = tuple[int, ...]
FLOAT, HALF, BOOL = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BOOL
_MOST_ELEMENTS = 6000
_UNARY = ("Relu", "Tanh", "Sigmoid", "Neg", "Abs", "Erf", "Softplus", "LeakyRelu", "Identity")
_BINARY = ("Add", "Sub", "Max", "Min")


def random_model(seed: int, steps: int = 16) -> onnx.ModelProto:
    """Return a model of about ``steps`` nodes."""
    return _Builder(seed).build(steps)


class _Builder:
    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        # Name -> type and shape of every value, in order.
        self.values: dict[str, tuple[int, Shape]] = {}
        self.inputs: list[str] = []
        for at in range(self.number(1, 3)):
            shape = tuple(self.number(1, 9) for _ in range(self.number(2, 5)))
            self.values[f"x{at}"] = (FLOAT, shape)
            self.inputs.append(f"x{at}")

    def build(self, steps: int) -> onnx.ModelProto:
        moves = (
            *(self.unary, self.unary, self.unary, self.binary, self.binary, self.binary),
            *(self.matmul, self.concat, self.concat, self.split, self.reshape, self.reshape),
            *(self.transpose, self.reduce, self.slice, self.gather, self.softmax, self.where),
            *(self.convolution, self.half, self.branch, self.expand, self.squeeze),
        )
        while len(self.nodes) < steps:
            move: Callable[[], None] = moves[self.number(0, len(moves))]
            move()
        made = [name for name in self.values if name not in self.inputs]
        picked = {made[-1], *(made[self.number(0, len(made))] for _ in range(self.number(0, 3)))}
        outputs = [name for name in made if name in picked]
        graph = helper.make_graph(
            self.nodes,
            "random",
            [self.info(name) for name in self.inputs],
            [self.info(name) for name in outputs],
            self.weights,
        )
        imports = [helper.make_opsetid("", 18)]
        return helper.make_model(graph, opset_imports=imports, ir_version=9)

    def info(self, name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, *self.values[name])

    def number(self, low: int, high: int) -> int:
        """A number in [low, high)."""
        return int(self.rng.integers(low, high))

    def pick(self, kind: int = FLOAT, rank: int | None = None) -> tuple[str, Shape] | None:
        """A value, recent ones more often, so that chains grow."""
        found = [
            (name, shape)
            for name, (dtype, shape) in self.values.items()
            if dtype == kind and (rank is None or len(shape) == rank)
        ]
        return found[max(self.number(0, len(found)), self.number(0, len(found)))] if found else None

    def some(self) -> tuple[str, Shape]:
        value = self.pick()
        assert value is not None
        return value

    def weight(self, array: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def normal(self, *shape: int) -> str:
        return self.weight(self.rng.standard_normal(shape) * 0.4)

    def add(
        self,
        op: str,
        inputs: list[str],
        shapes: list[Shape],
        *,
        kind: int = FLOAT,
        **attributes: Any,
    ) -> list[str]:
        """Append a node unless an output would be large; returns the names of its outputs."""
        if any(prod(shape) > _MOST_ELEMENTS for shape in shapes):
            return []
        number = len(self.nodes)
        names = [f"v{number}_{port}" for port in range(len(shapes))]
        self.nodes.append(helper.make_node(op, inputs, names, name=f"n{number}", **attributes))
        self.values.update({n: (kind, s) for n, s in zip(names, shapes, strict=True)})
        return names

    def unary(self) -> None:
        name, shape = self.some()
        self.add(_UNARY[self.number(0, len(_UNARY))], [name], [shape])

    def binary(self) -> None:
        name, shape = self.some()
        same = [n for n, v in self.values.items() if v == (FLOAT, shape)]
        other = same[self.number(0, len(same))]
        if self.number(0, 3) == 0:
            cut = self.number(0, len(shape) + 1)
            other = self.normal(*(d if self.number(0, 2) else 1 for d in shape[cut:]))
        inputs = [name, other] if self.number(0, 2) else [other, name]
        for made in self.add(_BINARY[self.number(0, len(_BINARY))], inputs, [shape]):
            if self.number(0, 2):
                self.add("Tanh", [made], [shape])

    def matmul(self) -> None:
        name, shape = self.some()
        if len(shape) < 2:
            return
        width = self.number(1, 9)
        for made in self.add(
            "MatMul", [name, self.normal(shape[-1], width)], [(*shape[:-1], width)]
        ):
            self.add("Tanh", [made], [(*shape[:-1], width)])

    def concat(self) -> None:
        name, shape = self.some()
        if not shape:
            return
        axis = self.number(0, len(shape)) if self.number(0, 2) else 0
        parts, total = [name], shape[axis]
        for other, (kind, sizes) in self.values.items():
            fits = kind == FLOAT and len(sizes) == len(shape)
            fits = fits and sizes[:axis] + sizes[axis + 1 :] == shape[:axis] + shape[axis + 1 :]
            if fits and self.number(0, 2) and len(parts) < 4:
                parts.append(other)
                total += sizes[axis]
        self.add("Concat", parts, [(*shape[:axis], total, *shape[axis + 1 :])], axis=axis)

    def split(self) -> None:
        name, shape = self.some()
        axis = next((i for i, dim in enumerate(shape) if dim > 1), None)
        if axis is None:
            return
        first = self.number(1, shape[axis])
        sizes = self.weight([first, shape[axis] - first], np.int64)
        halves = [(*shape[:axis], n, *shape[axis + 1 :]) for n in (first, shape[axis] - first)]
        self.add("Split", [name, sizes], halves, axis=axis)

    def reshape(self) -> None:
        name, shape = self.some()
        left = prod(shape)
        sizes: list[int] = []
        while left > 1 and len(sizes) < 3:
            divisors = [n for n in range(1, left + 1) if left % n == 0]
            sizes.append(divisors[self.number(0, len(divisors))])
            left //= sizes[-1]
        sizes.append(left)
        self.add("Reshape", [name, self.weight(sizes, np.int64)], [tuple(sizes)])

    def transpose(self) -> None:
        name, shape = self.some()
        if not shape:
            return
        order = [int(axis) for axis in self.rng.permutation(len(shape))]
        self.add("Transpose", [name], [tuple(shape[axis] for axis in order)], perm=order)

    def reduce(self) -> None:
        name, shape = self.some()
        if not shape:
            return
        axis, keep = self.number(0, len(shape)), self.number(0, 2)
        op = ("ReduceMean", "ReduceMax", "ReduceL2")[self.number(0, 3)]
        result = (*shape[:axis], *([1] if keep else []), *shape[axis + 1 :])
        self.add(op, [name, self.weight([axis], np.int64)], [result], keepdims=keep)

    def slice(self) -> None:
        name, shape = self.some()
        if not shape:
            return
        axis = self.number(0, len(shape)) if self.number(0, 2) else 0
        start = self.number(0, shape[axis])
        end = self.number(start + 1, shape[axis] + 1)
        bounds = [self.weight([n], np.int64) for n in (start, end, axis)]
        self.add("Slice", [name, *bounds], [(*shape[:axis], end - start, *shape[axis + 1 :])])

    def gather(self) -> None:
        name, shape = self.some()
        if not shape:
            return
        axis = self.number(0, len(shape)) if self.number(0, 2) else 0
        index = self.weight(self.number(0, shape[axis]), np.int64)
        self.add("Gather", [name, index], [shape[:axis] + shape[axis + 1 :]], axis=axis)

    def squeeze(self) -> None:
        name, shape = self.some()
        axis = self.number(0, len(shape) + 1)
        sizes = (*shape[:axis], 1, *shape[axis:])
        if len(sizes) <= 5:
            self.add("Unsqueeze", [name, self.weight([axis], np.int64)], [sizes])

    def expand(self) -> None:
        name, shape = self.some()
        sizes = (self.number(1, 4), *shape)
        self.add("Expand", [name, self.weight(sizes, np.int64)], [sizes])

    def softmax(self) -> None:
        name, shape = self.some()
        if shape:
            self.add("Softmax", [name], [shape], axis=self.number(0, len(shape)))

    def where(self) -> None:
        name, shape = self.some()
        for mask in self.add("Greater", [name, self.weight(0.1)], [shape], kind=BOOL):
            if self.number(0, 2):
                self.add("Not", [mask], [shape], kind=BOOL)
            self.add("Where", [mask, name, self.normal(*shape[-1:])], [shape])

    def convolution(self) -> None:
        value = self.pick(rank=4)
        if value is None:
            return
        name, (batch, channels, height, width) = value
        made = self.number(1, 7)
        size = (batch, made, height, width)
        kernel = self.number(0, 2)
        weight = self.normal(made, channels, 1 + 2 * kernel, 1 + 2 * kernel)
        for out in self.add("Conv", [name, weight], [size], pads=[kernel] * 4):
            self.add("Tanh", [out], [size])

    def half(self) -> None:
        name, shape = self.some()
        for made in self.add("Cast", [name], [shape], kind=HALF, to=HALF):
            for more in self.add("Relu", [made], [shape], kind=HALF):
                self.add("Cast", [more], [shape], to=FLOAT)

    def branch(self) -> None:
        """An If whose bodies read a value from outside and hold an initializer of their own."""
        name, shape = self.some()
        number = len(self.nodes)
        sums = self.add("ReduceMean", [name], [()], keepdims=0)
        conditions = self.add("Greater", [*sums, self.weight(0.0)], [()], kind=BOOL)
        bodies = []
        for body in ("then", "else"):
            prefix = f"{body}{number}"
            held = numpy_helper.from_array(
                self.rng.standard_normal(shape[-1:]).astype(np.float32), f"{prefix}_w"
            )
            op = "Add" if body == "then" else "Sub"
            nodes = [
                helper.make_node(op, [name, f"{prefix}_w"], [f"{prefix}_a"], name=f"{prefix}_1"),
                helper.make_node("Tanh", [f"{prefix}_a"], [f"{prefix}_b"], name=f"{prefix}_2"),
            ]
            out = helper.make_tensor_value_info(f"{prefix}_b", FLOAT, shape)
            bodies.append(helper.make_graph(nodes, prefix, [], [out], [held]))
        self.add("If", conditions, [shape], then_branch=bodies[0], else_branch=bodies[1])
