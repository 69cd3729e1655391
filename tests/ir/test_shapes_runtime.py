"""Random nodes: inferred shapes, with and without symbols, against onnxruntime."""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt.ir.program import Program, dims_of
from graphopt.ir.shapes import infer_shapes
from tests.ir.shape_models import Array, bound, ints, make_symbolic, node_model, run, zeros

FAR = (-(2**63), -(2**31), 2**31 - 1, 2**63 - 1)


class Node(NamedTuple):
    op_type: str
    opset: int
    shape: list[int]
    constants: list[Array | None]
    attributes: dict[str, Any]
    outputs: int = 1


def spatial(rng: random.Random, op_type: str, opset: int) -> Node:
    """Return a convolution or pool whose window fits."""
    count = rng.choice([1, 2])
    kernel = [rng.randint(1, 4) for _ in range(count)]
    attributes: dict[str, Any] = {"strides": [rng.randint(1, 3) for _ in range(count)]}
    dilated = op_type in ("Conv", "ConvTranspose") or rng.random() < 0.3
    if op_type == "AveragePool" and opset < 19:
        dilated = False
    dilations = [rng.randint(1, 2) if dilated else 1 for _ in range(count)]
    if dilated:
        attributes["dilations"] = dilations
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    # onnxruntime refuses the automatic padding of a window smaller than its stride.
    covers = all(e >= s for e, s in zip(extents, attributes["strides"], strict=True))
    choices = ["pads", "VALID"]
    choices += ["SAME_UPPER", "SAME_LOWER"] if covers and not dilated else []
    mode = rng.choice(choices)
    if mode == "pads":
        smallest = min(kernel) - 1 if "Pool" in op_type else 2
        attributes["pads"] = [rng.randint(0, min(2, smallest)) for _ in range(2 * count)]
    else:
        attributes["auto_pad"] = mode
    shape = [rng.randint(1, 2), rng.choice([2, 4]), *(e + rng.randint(0, 6) for e in extents)]
    if op_type.endswith("Pool"):
        attributes |= {"kernel_shape": kernel, "ceil_mode": rng.randint(0, 1)}
        return Node(op_type, opset, shape, [], attributes)
    group = attributes["group"] = rng.choice([1, 2])
    if op_type == "Conv":
        return Node(op_type, opset, shape, [zeros(4, shape[1] // group, *kernel)], attributes)
    if rng.random() < 0.4:
        attributes["output_padding"] = [rng.randint(0, s - 1) for s in attributes["strides"]]
    return Node(op_type, opset, shape, [zeros(shape[1], 3, *kernel)], attributes)


def slice_(rng: random.Random, opset: int) -> Node:
    shape = [rng.randint(1, 6) for _ in range(rng.randint(1, 3))]
    axes = rng.sample(range(len(shape)), rng.randint(1, len(shape)))
    near = range(-9, 9)
    starts = [rng.choice([*near, *FAR]) for _ in axes]
    steps = [rng.choice([1, 1, 2, 3, -1, -2]) for _ in axes]
    # For a backward slice, runtimes disagree about an end that is far behind the end.
    ends = [rng.choice([*near, *(FAR if s > 0 else FAR[:2])]) for s in steps]
    return Node("Slice", opset, shape, [ints(*starts), ints(*ends), ints(*axes), ints(*steps)], {})


def reshape(rng: random.Random, opset: int) -> Node:
    shape = [rng.randint(1, 6) for _ in range(rng.randint(1, 4))]
    rest, target = int(np.prod(shape)), []
    for _ in range(rng.randint(0, 3)):
        target.append(rng.choice([d for d in range(1, rest + 1) if rest % d == 0]))
        rest //= target[-1]
    target.append(rest)
    if rng.random() < 0.6:
        target[rng.randrange(len(target))] = -1
    for i, (entry, size) in enumerate(zip(target, shape, strict=False)):
        target[i] = 0 if entry == size and rng.random() < 0.5 else entry
    return Node("Reshape", opset, shape, [ints(*target)], {})


def resize(rng: random.Random, opset: int) -> Node:
    shape = [1, 2, *(rng.randint(1, 6) for _ in range(rng.randint(1, 2)))]
    attributes: dict[str, Any] = {
        "mode": "nearest",
        "coordinate_transformation_mode": "asymmetric",
    }
    count = len(shape) - 2
    if rng.random() < 0.6:
        scales = [rng.choice([0.5, 2.0, 1.5, 0.7, 1.1, 3.0, 0.33333334, 2.3]) for _ in range(count)]
        constants = [None, np.array([1.0, 1.0, *scales], np.float32)]
        return Node("Resize", opset, shape, constants, attributes)
    sizes = [rng.randint(1, 9) for _ in range(count)]
    attributes["axes"] = list(range(2, len(shape)))
    attributes["keep_aspect_ratio_policy"] = rng.choice(["stretch", "not_larger", "not_smaller"])
    return Node("Resize", 18, shape, [None, None, ints(*sizes)], attributes)


def split(rng: random.Random, opset: int) -> Node:
    shape = [rng.randint(1, 6) for _ in range(rng.randint(1, 3))]
    axis, count = rng.randrange(len(shape)), rng.randint(1, 4)
    if rng.random() < 0.5:
        parts = [rng.randint(0, 3) for _ in range(count - 1)] + [1]
        shape[axis] = sum(parts)
        return Node("Split", opset, shape, [ints(*parts)], {"axis": axis}, count)
    # onnxruntime refuses a last part of size 0.
    shape[axis] = rng.randint(1, 3) * count - (rng.randint(0, 1) if count > 1 else 0)
    whole = shape[axis]
    if whole - (-(-whole // count)) * (count - 1) < 1:
        shape[axis] = count
    return Node("Split", 18, shape, [], {"axis": axis, "num_outputs": count}, count)


def broadcastable(rng: random.Random, opset: int) -> Node:
    shape = [rng.choice([1, 2, 3]) for _ in range(rng.randint(1, 4))]
    if rng.random() < 0.5:
        target = [rng.choice([1, d, 1 if d > 1 else 3]) for d in shape]
        target = [2, *target] if rng.random() < 0.5 else target[1:]
        return Node("Expand", opset, shape, [ints(*target)], {})
    other = [rng.choice([1, d]) for d in shape]
    other = [4, *other] if rng.random() < 0.3 else other[rng.randint(0, 1) :]
    return Node("Add", opset, shape, [zeros(*other)], {})


def gathering(rng: random.Random, opset: int) -> Node:
    shape = [rng.randint(1, 4) for _ in range(rng.randint(1, 4))]
    rank = len(shape)
    if rng.random() < 0.5:
        indices = zeros(*(rng.randint(1, 3) for _ in range(rng.randint(0, 2))), dtype=np.int64)
        return Node("Gather", opset, shape, [indices], {"axis": rng.randrange(-rank, rank)})
    batch = rng.randint(0, rank - 1)
    depth = rng.randint(1, rank - batch)
    indices = zeros(*shape[:batch], rng.randint(1, 3), depth, dtype=np.int64)
    return Node("GatherND", opset, shape, [indices], {"batch_dims": batch})


def reducing(rng: random.Random, opset: int) -> Node:
    shape = [rng.randint(1, 4) for _ in range(rng.randint(1, 4))]
    axes = rng.sample(range(len(shape)), rng.randint(0, len(shape)))
    attributes = {"keepdims": rng.randint(0, 1), "noop_with_empty_axes": rng.randint(0, 1)}
    constants: list[Array | None] = [ints(*axes)] if rng.random() < 0.8 else []
    return Node("ReduceSum", opset, shape, constants, attributes)


def product(rng: random.Random, opset: int) -> Node:
    shape = [rng.randint(1, 3) for _ in range(rng.randint(1, 4))]
    other = [shape[-1]]
    if rng.random() < 0.7:
        batch = [rng.choice([1, d]) for d in shape[:-2]]
        other = [*batch[rng.randint(0, len(batch)) :], shape[-1], rng.randint(1, 3)]
    return Node("MatMul", opset, shape, [zeros(*other)], {})


def padding(rng: random.Random, opset: int) -> Node:
    shape = [rng.randint(2, 6) for _ in range(rng.randint(1, 3))]
    return Node("Pad", opset, shape, [ints(*(rng.randint(-1, 3) for _ in 2 * shape))], {})


def tiling(rng: random.Random, opset: int) -> Node:
    shape = [rng.randint(1, 4) for _ in range(rng.randint(1, 3))]
    return Node("Tile", opset, shape, [ints(*(rng.randint(0, 3) for _ in shape))], {})


def top_k(rng: random.Random, opset: int) -> Node:
    shape = [rng.randint(1, 6) for _ in range(rng.randint(1, 3))]
    axis = rng.randrange(len(shape))
    return Node("TopK", opset, shape, [ints(rng.randint(1, shape[axis]))], {"axis": axis}, 2)


Maker = Callable[[random.Random, int], Node]
MAKERS: dict[str, Maker] = {
    "AveragePool": lambda r, o: spatial(r, "AveragePool", o),
    "MaxPool": lambda r, o: spatial(r, "MaxPool", o),
    "LpPool": lambda r, o: spatial(r, "LpPool", 18),
    "Conv": lambda r, o: spatial(r, "Conv", o),
    "ConvTranspose": lambda r, o: spatial(r, "ConvTranspose", o),
    "Slice": slice_,
    "Reshape": reshape,
    "Resize": resize,
    "Split": split,
    "broadcast": broadcastable,
    "gather": gathering,
    "ReduceSum": reducing,
    "MatMul": product,
    "Pad": padding,
    "Tile": tiling,
    "TopK": top_k,
}


@pytest.mark.parametrize("name", MAKERS)
def test_random_nodes_agree_with_onnxruntime(name: str) -> None:
    rng = random.Random(f"shapes {name}")
    found, decided = [], 0
    for _ in range(60):
        node = MAKERS[name](rng, rng.choice([13, 18, 20]))
        inputs = [zeros(*node.shape), *node.constants]
        model = node_model(
            node.op_type, inputs, node.opset, outputs=node.outputs, **node.attributes
        )
        real = [a.shape for a in run(model, {"x0": zeros(*node.shape)}).values()]
        for symbolic in (False, True):
            mine = infer(model, symbolic=symbolic)
            decided += mine is not None
            if mine is not None and mine != real:
                found.append((node, symbolic, real, mine))
    assert found == []
    assert decided >= 80


def infer(model: onnx.ModelProto, *, symbolic: bool) -> list[tuple[int, ...]] | None:
    """Return the shapes of the outputs; None when they depend on data (say, on rounding)."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    bindings = make_symbolic(copy) if symbolic else {}
    program = Program(ir.from_proto(copy))
    report = infer_shapes(program)
    assert report.unresolved == {}
    if report.data_dependent:
        return None
    shapes = [dims_of(v) for v in program.graph.outputs]
    return [bound(dims, bindings) for dims in shapes if dims is not None]
