"""Which weights are stored in few bits, and what each of their readers becomes.

In: a model, a ``WeightPlan``. Out: ``Choice``: weights with their readers, all of which can read
integers, and reasons for the nodes left alone. Nothing is rewritten and no weight is read.

A weight is stored as integers only when every reader can take them: one that needs the floats
would keep them in the file. Readers need blocks along the axis that they add up: rows for a
``Gather`` and a transposed ``Gemm``, columns for ``MatMul``. Readers of one axis share the
integers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Literal

import onnx_ir as ir

from graphopt.errors import OptionError
from graphopt.ir.constants import constant_of
from graphopt.ir.program import dims_of, is_onnx, opset_of
from graphopt.ir.rewrite import nodes_of
from graphopt.quantization.block_weights import BlockScheme, fitting_block, stored_bytes
from graphopt.quantization.codebooks import codebook_bytes

FORMS = ("fused", "standard", "nf4")
Kind = Literal["product", "gather", "widened", "codebook"]
Refusal = tuple[str, str]

_WEIGHT_INDEX = {"Conv": 1, "ConvTranspose": 1, "Gather": 0, "Gemm": 1, "MatMul": 1}
_PRODUCTS: dict[str, Kind] = {"fused": "product", "standard": "widened", "nf4": "codebook"}
_FLOATS = (
    ir.DataType.FLOAT,
    ir.DataType.FLOAT16,
    ir.DataType.DOUBLE,
    ir.DataType.BFLOAT16,
)
_KERNEL_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
_OPSET_OF_AXIS, _OPSET_OF_HALF_SCALES, _OPSET_OF_BLOCKS = 13, 19, 21


@dataclass(frozen=True)
class WeightPlan:
    """What is asked.

    Attributes:
        scheme: How numbers become integers; its block is the largest allowed.
        form: ``fused``, ``standard`` or ``nf4``.
        min_elements: Weights with fewer stay.
        keep: Names of nodes or weights, globs, or operator types.
    """

    scheme: BlockScheme
    form: str = "fused"
    min_elements: int = 1024
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise OptionError(
                "weight-scheme", f"form is {self.form!r}, expected one of {', '.join(FORMS)}"
            )
        if self.form == "nf4" and (self.scheme.bits != 4 or not self.scheme.block):
            raise OptionError(
                "weight-scheme",
                f"form is 'nf4' with bits={self.scheme.bits} and block={self.scheme.block}, "
                "expected bits=4 and a block from 16 to 256",
            )
        if self.form == "fused" and not self.scheme.block:
            raise OptionError(
                "weight-scheme",
                "block is 0, and the fused operators need a power of two from 16 to 256",
                hint="one scale for a whole channel is for form=standard",
            )

    @property
    def widened_scheme(self) -> BlockScheme:
        """The scheme of weights behind a ``DequantizeLinear``."""
        return replace(self.scheme, narrow=self.scheme.symmetric)

    @property
    def kernel_scheme(self) -> BlockScheme:
        """The scheme of convolutions: a scale for each output channel, no zero points."""
        return replace(self.scheme, block=0, symmetric=True, narrow=True)


@dataclass(frozen=True)
class Reader:
    """A node that can read a weight as integers.

    Attributes:
        node: The node.
        kind: ``product``: becomes ``MatMulNBits``. ``gather``: becomes ``GatherBlockQuantized``.
            ``widened``: gets a ``DequantizeLinear`` in front. ``codebook``: becomes ``MatMulBnb4``.
        axis: Axis of the weight that is added up, along which the blocks lie; for convolutions the
            axis of the output channels.
    """

    node: ir.Node
    kind: Kind
    axis: int


@dataclass(eq=False)
class StoredWeight:
    """A weight and the readers that share one set of integers of it.

    Attributes:
        weight: The float weight.
        tensor: What it holds.
        readers: In graph order.
        scheme: The scheme, its block fitted to the size.
        stored_bytes: What the integers, scales and zero points take.
    """

    weight: ir.Value
    tensor: ir.TensorProtocol
    readers: list[Reader]
    scheme: BlockScheme
    stored_bytes: int

    @property
    def is_kernel(self) -> bool:
        """Whether it is the weight of a convolution."""
        return is_convolution(self.readers[0].node)

    @property
    def by_column(self) -> bool:
        """Whether blocks lie along axis 0 of a matrix."""
        return not self.is_kernel and self.readers[0].axis == 0

    @property
    def is_tied(self) -> bool:
        """Whether products and lookups share the integers."""
        return len({reader.kind for reader in self.readers}) > 1


@dataclass
class Choice:
    """What is stored as integers, and why other candidates are not: node -> (reason, detail)."""

    stored: list[StoredWeight] = field(default_factory=list)
    reasons: dict[ir.Node, Refusal] = field(default_factory=dict)


def is_convolution(node: ir.Node) -> bool:
    """Return whether ``node`` is a ``Conv`` or a ``ConvTranspose``."""
    return is_onnx(node, "Conv", "ConvTranspose")


def choose(model: ir.Model, plan: WeightPlan) -> Choice:
    """Return what of ``model`` is stored as integers by ``plan``; linear in the graph."""
    choice = Choice()
    nodes_by_weight: dict[ir.Value, list[ir.Node]] = {}
    for node, weight in _candidates(model):
        tensor = constant_of(weight)
        if tensor is None or tensor.dtype not in _FLOATS:
            if not is_onnx(node, "Gather"):
                choice.reasons[node] = ("weight-not-constant", "")
            continue
        nodes_by_weight.setdefault(weight, []).append(node)
    opset = opset_of(model)
    for weight, nodes in nodes_by_weight.items():
        _choose_one(weight, nodes, plan, opset, choice)
    if plan.form != "standard":
        _leave_wide_ones(choice)
    return choice


def _candidates(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Value]]:
    for node in nodes_of(model):
        index = _WEIGHT_INDEX.get(node.op_type)
        if index is None or node.domain not in ("", "ai.onnx") or len(node.inputs) <= index:
            continue
        weight = node.inputs[index]
        if is_onnx(node, "MatMul") and constant_of(weight) is None:
            left = node.inputs[0]
            weight = left if constant_of(left) is not None else weight
        if weight is not None:
            yield node, weight


def _choose_one(
    weight: ir.Value, nodes: list[ir.Node], plan: WeightPlan, opset: int, choice: Choice
) -> None:
    """Store ``weight`` as integers in ``choice``, or say there why not."""
    tensor = constant_of(weight)
    assert tensor is not None, "the caller looked"
    readers: list[Reader] = []
    refused = False
    for node in nodes:
        found = _reader(node, weight, tensor, plan, opset)
        if isinstance(found, Reader):
            readers.append(found)
        else:
            refused = True
            choice.reasons[node] = found
    others = refused or weight.is_graph_output() or len(weight.uses()) != len(nodes)
    if others or not readers:
        for reader in readers:
            choice.reasons[reader.node] = ("read-elsewhere", weight.name or "")
        return
    stored = _groups(weight, tensor, readers, plan)
    total = sum(group.stored_bytes for group in stored)
    if total >= tensor.nbytes:
        for reader in readers:
            choice.reasons[reader.node] = ("not-smaller", f"{tensor.nbytes} to {total} bytes")
        return
    choice.stored += stored


def _reader(
    node: ir.Node, weight: ir.Value, tensor: ir.TensorProtocol, plan: WeightPlan, opset: int
) -> Reader | Refusal:
    """Return how ``node`` can read ``weight`` as integers, or why it cannot."""
    if any(_is_kept(node, weight, word) for word in plan.keep):
        return "kept", ""
    shape = tuple(tensor.shape.numpy())
    if tensor.size < max(plan.min_elements, 1):
        return "small", f"{tensor.size} elements"
    if tensor.dtype not in _KERNEL_TYPES:
        return "type-without-kernel", tensor.dtype.name
    if plan.form == "nf4" and tensor.dtype is not ir.DataType.FLOAT:
        return "type-without-kernel", tensor.dtype.name
    if is_convolution(node):
        if plan.scheme.bits != 8:
            return "no-operator", f"{node.op_type} of {plan.scheme.bits} bits"
        found: Reader | Refusal = Reader(node, "widened", int(is_onnx(node, "ConvTranspose")))
    elif len(shape) != 2:
        return "form-without-kernel", f"weight of rank {len(shape)}"
    elif is_onnx(node, "Gather"):
        found = _gather(node, shape, plan)
    else:
        found = _product(node, weight, plan)
    if not isinstance(found, Reader) or found.kind != "widened":
        return found
    blocked = plan.scheme.block and found.node.op_type in ("MatMul", "Gemm")
    half = tensor.dtype is ir.DataType.FLOAT16
    needed = _OPSET_OF_HALF_SCALES if half else _OPSET_OF_AXIS
    if blocked or plan.scheme.bits == 4:
        needed = _OPSET_OF_BLOCKS
    if opset < needed:
        return "old-opset", f"DequantizeLinear of this form needs opset {needed}"
    return found


def _is_kept(node: ir.Node, weight: ir.Value, word: str) -> bool:
    return node.op_type == word or any(
        fnmatchcase(name or "", word) for name in (node.name, weight.name)
    )


def _gather(node: ir.Node, shape: tuple[int, ...], plan: WeightPlan) -> Reader | Refusal:
    axis = node.attributes.get("axis")
    if plan.form == "standard":
        return "no-operator", "Gather of blocks"
    if plan.form == "nf4":
        return "no-operator", "Gather of a codebook"
    if axis is not None and axis.as_int() not in (0, -2):
        return "form-without-kernel", "axis"
    indices = node.inputs[1]
    if indices is None or dims_of(indices) is None or indices.dtype is None:
        return "form-without-kernel", "the rank of the indices is not known"
    if shape[1] * plan.scheme.bits % 8:
        return "form-without-kernel", f"rows of {shape[1]}"
    return Reader(node, "gather", 1)


def _product(node: ir.Node, weight: ir.Value, plan: WeightPlan) -> Reader | Refusal:
    if node.inputs[1] is not weight or node.inputs[0] is weight:
        return "form-without-kernel", "the weight is the first factor"
    turned = False
    if is_onnx(node, "Gemm"):
        attributes = {name: a.value for name, a in node.attributes.items()}
        for name, plain in (("transA", 0), ("alpha", 1.0), ("beta", 1.0)):
            if attributes.get(name, plain) != plain:
                return "form-without-kernel", name
        if len(node.inputs) > 2 and node.inputs[2] is weight:
            return "form-without-kernel", "the weight is the bias, too"
        turned = bool(attributes.get("transB", 0))
    left = node.inputs[0]
    dims = None if left is None else dims_of(left)
    if dims is None or len(dims) < 2:
        return "form-without-kernel", "the first factor is no known matrix"
    return Reader(node, _PRODUCTS[plan.form], int(turned))


def _groups(
    weight: ir.Value, tensor: ir.TensorProtocol, readers: list[Reader], plan: WeightPlan
) -> list[StoredWeight]:
    """Return the sets of integers that ``readers`` need; what can be shared is one set."""
    if any(is_convolution(reader.node) for reader in readers):
        axis = readers[0].axis
        if any(reader.axis != axis for reader in readers):
            return [_stored(weight, tensor, [r], plan.kernel_scheme) for r in readers]
        return [_stored(weight, tensor, readers, plan.kernel_scheme)]
    rows = [reader for reader in readers if reader.axis == 1]
    columns = [reader for reader in readers if reader.axis == 0]
    groups = [columns] if columns else []
    scale_bytes = tensor.dtype.bitwidth // 8
    inner = int(tensor.shape.numpy()[1])
    tied = len({reader.kind for reader in rows}) > 1
    if tied and not fitting_block(inner, plan.scheme, scale_bytes, dividing=True):
        groups += [[r for r in rows if r.kind == kind] for kind in ("product", "gather")]
    elif rows:
        groups.append(rows)
    scheme = plan.widened_scheme if plan.form == "standard" else plan.scheme
    return [_stored(weight, tensor, group, scheme) for group in groups]


def _stored(
    weight: ir.Value, tensor: ir.TensorProtocol, readers: list[Reader], scheme: BlockScheme
) -> StoredWeight:
    shape = tuple(int(size) for size in tensor.shape.numpy())
    scale_bytes = tensor.dtype.bitwidth // 8
    axis, kinds = readers[0].axis, {reader.kind for reader in readers}
    if is_convolution(readers[0].node):
        rows, inner = shape[axis], int(tensor.size) // shape[axis]
    else:
        rows, inner = shape[1 - axis], shape[axis]
    tied = len(kinds) > 1
    if "codebook" in kinds:
        total = codebook_bytes(rows, inner, scheme.block)
        return StoredWeight(weight, tensor, readers, scheme, total)
    if scheme.block:
        scheme = replace(scheme, block=fitting_block(inner, scheme, scale_bytes, dividing=tied))
    total = stored_bytes(rows, inner, scheme, scale_bytes)
    if tied and not scheme.symmetric:
        # A lookup reads zero points in a byte each.
        total += rows * (inner // scheme.block)
    return StoredWeight(weight, tensor, readers, scheme, total)


def _leave_wide_ones(choice: Choice) -> None:
    """Leave out weights whose float copy takes more at run time than integers save.

    ``MatMulBnb4`` makes one as ``DequantizeLinear`` does. Each run widens one weight at a time, so
    the largest of them counts once, against what all of them save. The largest set that pays is
    what remains when weights are taken by size.
    """
    widened = [s for s in choice.stored if s.readers[0].kind in ("widened", "codebook")]
    by_size = sorted(widened, key=lambda stored: stored.tensor.nbytes)
    saved, kept = 0, 0
    for count, stored in enumerate(by_size, 1):
        saved += stored.tensor.nbytes - stored.stored_bytes
        if saved >= stored.tensor.nbytes:
            kept = count
    left = set(by_size[kept:])
    choice.stored = [stored for stored in choice.stored if stored not in left]
    for stored in by_size[kept:]:
        for reader in stored.readers:
            choice.reasons[reader.node] = (
                "widened-at-run",
                f"{stored.tensor.nbytes} bytes for each run",
            )
