"""Put weights of few bits into a model, in the operators that read them.

In: edits of a model, a ``Choice``. The integers, scales and zero points are tensors that are
computed when they are written; the parts of one weight are kept until another one is asked for,
so a weight is quantized once for all of them and memory does not grow with the model.

A product and a lookup that share a weight share the integers: the lookup reads them as
[rows, blocks, bytes of a block], as the product does, and a ``Reshape``, which is a view, joins the
blocks of a row again.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.ir.constants import constant_of, read_array
from graphopt.ir.program import dims_of, set_dims, tag
from graphopt.ir.rewrite import Rewriter
from graphopt.quantization.block_weights import Parts, num_blocks, pack, quantize_matrix, unpack
from graphopt.quantization.codebooks import quantize_by_codebook
from graphopt.quantization.reconstruction import Reconstruction
from graphopt.quantization.weight_only import Choice, Reader, StoredWeight

DOMAIN = "com.microsoft"
_LAZY_BYTES = 1 << 16

Array = npt.NDArray[Any]
Take = Callable[[Parts], Array]


class _LastParts:
    """The parts of the weight that was asked for last; those of large ones go to files.

    A model is written more than once: to be verified, and where the user wants it.

    Args:
        made: Parts that were made before, on samples; others are made here.
    """

    def __init__(self, made: Reconstruction | None) -> None:
        self._made = made
        self._kept: Reconstruction | None = None
        self._stored: StoredWeight | None = None
        self._parts: Parts | None = None

    def of(self, stored: StoredWeight) -> Parts:
        """Return the parts of ``stored``."""
        if self._parts is None or self._stored is not stored:
            self._parts = None
            for made in (self._made, self._kept):
                if self._parts is None and made is not None:
                    self._parts = made.parts_of(stored)
            if self._parts is None:
                self._parts = read_array(stored.tensor, lambda array: _quantized(array, stored))
                self._keep(stored, self._parts)
            self._stored = stored
        return self._parts

    def _keep(self, stored: StoredWeight, parts: Parts) -> None:
        if stored.tensor.nbytes > _LAZY_BYTES:
            self._kept = self._kept or Reconstruction()
            self._kept.add(stored, parts)


def _quantized(array: Array, stored: StoredWeight) -> Parts:
    if stored.is_kernel:
        moved = np.moveaxis(array, stored.readers[0].axis, 0)
        return quantize_matrix(moved.reshape(len(moved), -1), stored.scheme)
    if stored.readers[0].kind == "codebook":
        return quantize_by_codebook(array, stored.scheme.block, by_column=stored.by_column)
    return quantize_matrix(array, stored.scheme, by_column=stored.by_column)


def emit_weights(
    edit: Rewriter,
    choice: Choice,
    accuracy_level: int,
    made: Reconstruction | None = None,
) -> None:
    """Rewrite the readers of every chosen weight; counts one rewrite a reader.

    Args:
        edit: Edits of the model.
        choice: What is stored in few bits.
        accuracy_level: Attribute of ``MatMulNBits``; 0 leaves it out.
        made: Weights that were rounded before, on samples.
    """
    last = _LastParts(made)
    fused = False
    for stored in choice.stored:
        emission = _Emission(edit, stored, last, accuracy_level)
        for reader in stored.readers:
            fused |= reader.kind != "widened"
            emission.rewrite(reader)
            edit.rewrites += 1
    for weight in dict.fromkeys(stored.weight for stored in choice.stored):
        drop_unread(edit, weight)
    if fused:
        edit.model.graph.opset_imports.setdefault(DOMAIN, 1)


def drop_unread(edit: Rewriter, weight: ir.Value) -> None:
    """Remove a constant that nobody reads any more."""
    producer = weight.producer()
    if producer is not None:
        edit.drop(producer)
    elif weight.name and weight.graph is not None:
        weight.graph.initializers.pop(weight.name)
        edit.names.release_value(weight.name)


class _Emission:
    """The constants of one weight, each made when the first reader asks for it."""

    def __init__(
        self, edit: Rewriter, stored: StoredWeight, last: _LastParts, accuracy_level: int
    ) -> None:
        self.edit = edit
        self.stored = stored
        self.last = last
        self.accuracy_level = accuracy_level
        self.scheme = stored.scheme
        shape = [int(size) for size in stored.tensor.shape.numpy()]
        self.shape = shape
        axis = stored.readers[0].axis
        self.rows = shape[axis] if stored.is_kernel else shape[1 - axis]
        self.inner = int(stored.tensor.size) // self.rows
        self.blocks = num_blocks(self.inner, self.scheme.block)
        self.width = self.scheme.block or self.inner
        self._constants: dict[str, ir.Value] = {}

    def rewrite(self, reader: Reader) -> None:
        """Let the node of ``reader`` read integers."""
        if reader.kind == "product":
            self._product(reader.node)
        elif reader.kind == "gather":
            self._gather(reader.node)
        elif reader.kind == "codebook":
            self._codebook_product(reader.node)
        else:
            self._widen(reader)

    def _constant(
        self, stem: str, dtype: ir.DataType, shape: Sequence[int], take: Take
    ) -> ir.Value:
        """Return the initializer that holds what ``take`` makes of the parts."""
        if stem not in self._constants:
            name = f"{self.stored.weight.name or 'weight'}_{stem}"
            last, stored, dims = self.last, self.stored, tuple(shape)

            def compute() -> ir.TensorProtocol:
                array = np.ascontiguousarray(take(last.of(stored)))
                if dtype.bitwidth < 8:
                    return ir.PackedTensor(array, dtype, shape=ir.Shape(dims))
                return ir.Tensor(array.reshape(dims), dtype=dtype)

            tensor: ir.TensorProtocol = ir.LazyTensor(compute, dtype, ir.Shape(dims))
            if self.stored.tensor.nbytes <= _LAZY_BYTES:
                tensor = compute()
            self._constants[stem] = self.edit.constant(name, tensor)
        return self._constants[stem]

    def _packed(self) -> ir.Value:
        """Return the integers as ``MatMulNBits`` reads them."""
        shape = [self.rows, self.blocks, self.width * self.scheme.bits // 8]
        return self._constant(
            f"int{self.scheme.bits}", ir.DataType.UINT8, shape, lambda parts: parts.data
        )

    def _packed_rows(self) -> ir.Value:
        """Return the integers of whole rows, without what fills up the last block."""
        size = self.inner * self.scheme.bits // 8
        return self._constant(
            f"int{self.scheme.bits}",
            ir.DataType.UINT8,
            [self.rows, size],
            lambda parts: parts.data.reshape(len(parts.data), -1)[:, :size],
        )

    def _scales(self) -> ir.Value:
        shape = [self.rows, self.blocks]
        return self._constant("scales", self.stored.tensor.dtype, shape, lambda parts: parts.scales)

    def _zero_points(self) -> ir.Value | None:
        """Return the zero points, packed as the integers are; None when symmetric."""
        if self.scheme.symmetric:
            return None
        bits = self.scheme.bits
        shape = [self.rows, -(-self.blocks * bits // 8)]
        return self._constant(
            "zero_points", ir.DataType.UINT8, shape, lambda parts: pack(parts.zero_points, bits)
        )

    def _product(self, node: ir.Node) -> None:
        """Put ``MatMulNBits`` in the place of a ``MatMul`` or ``Gemm``."""
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        inputs = [node.inputs[0], self._packed(), self._scales(), self._zero_points()]
        fits = bias is not None and constant_of(bias) is not None and dims_of(bias) == (self.rows,)
        if fits:
            inputs += [None, bias]
        while inputs[-1] is None:
            inputs.pop()
        numbers = {"K": self.inner, "N": self.rows, "bits": self.scheme.bits}
        numbers["block_size"] = self.scheme.block
        if self.accuracy_level:
            numbers["accuracy_level"] = self.accuracy_level
        attributes = [ir.AttrInt64(name, number) for name, number in numbers.items()]
        result = node.outputs[0]
        if bias is None or fits:
            self._replace(node, "MatMulNBits", inputs, attributes, DOMAIN)
            return
        product = self._make(node, "MatMulNBits", inputs, attributes, DOMAIN)
        product.type, product.shape = result.type, result.shape
        self._replace(node, "Add", [product, bias])

    def _codebook_product(self, node: ir.Node) -> None:
        """Put ``MatMulBnb4`` in the place of a ``MatMul`` or ``Gemm``; it has no bias."""
        count, block = self.rows * self.inner, self.scheme.block
        places = self._constant(
            "nf4", ir.DataType.UINT8, [-(-count // 2)], lambda parts: parts.data
        )
        scales = self._constant(
            "scales", ir.DataType.FLOAT, [-(-count // block)], lambda parts: parts.scales
        )
        numbers = {"K": self.inner, "N": self.rows, "block_size": block, "quant_type": 1}
        attributes = [ir.AttrInt64(name, number) for name, number in numbers.items()]
        inputs = [node.inputs[0], places, scales]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is None:
            self._replace(node, "MatMulBnb4", inputs, attributes, DOMAIN)
            return
        product = self._make(node, "MatMulBnb4", inputs, attributes, DOMAIN)
        product.type, product.shape = node.outputs[0].type, node.outputs[0].shape
        self._replace(node, "Add", [product, bias])

    def _gather(self, node: ir.Node) -> None:
        """Put ``GatherBlockQuantized`` in the place of a ``Gather``."""
        numbers = {"bits": self.scheme.bits, "block_size": self.scheme.block, "gather_axis": 0}
        numbers["quantize_axis"] = 2 if self.stored.is_tied else 1
        attributes = [ir.AttrInt64(name, number) for name, number in numbers.items()]
        indices = node.inputs[1]
        assert indices is not None, "a Gather has indices"
        if not self.stored.is_tied:
            inputs = [self._packed_rows(), indices, self._scales(), self._zero_points()]
            inputs = [value for value in inputs if value is not None]
            self._replace(node, "GatherBlockQuantized", inputs, attributes, DOMAIN)
            return
        shape = [self.rows, self.blocks, 1]
        scales = self._make(node, "Reshape", [self._scales(), self._shape("scales_shape", shape)])
        scales.type = ir.TensorType(self.stored.tensor.dtype)
        set_dims(scales, shape)
        inputs = [self._packed(), indices, scales]
        if not self.scheme.symmetric:
            inputs.append(
                self._constant(
                    "zero_points_rows",
                    ir.DataType.UINT8,
                    shape,
                    lambda parts: parts.zero_points,
                )
            )
        lead = dims_of(indices)
        assert lead is not None, "the rank was asked for"
        rows = self._make(node, "GatherBlockQuantized", inputs, attributes, DOMAIN)
        rows.type = node.outputs[0].type
        set_dims(rows, [*lead, self.blocks, self.width])
        # A zero in the target keeps the size of the input there.
        target = self._shape("rows_shape", [*(0 for _ in lead), self.inner])
        self._replace(node, "Reshape", [rows, target])

    def _shape(self, stem: str, sizes: Sequence[int]) -> ir.Value:
        """Return a constant shape; those of one weight and purpose are one."""
        key = f"{stem}_{len(sizes)}"
        if key not in self._constants:
            name = f"{self.stored.weight.name or 'weight'}_{stem}"
            tensor = ir.Tensor(np.array(sizes, np.int64))
            self._constants[key] = self.edit.constant(name, tensor)
        return self._constants[key]

    def _widen(self, reader: Reader) -> None:
        """Put a ``DequantizeLinear`` in front of a node."""
        weight, node = self.stored.weight, reader.node
        scheme = self.scheme
        blocked = scheme.block != 0
        channels = reader.axis if self.stored.is_kernel else 1 - reader.axis
        inputs: list[ir.Value | None] = [self._wide_integers(channels)]
        inputs.append(self._wide_parameters("scales", self.stored.tensor.dtype))
        if not scheme.symmetric:
            inputs.append(self._wide_parameters("zero_points", self._integer_type()))
        attributes = [ir.AttrInt64("axis", reader.axis if blocked else channels)]
        if blocked:
            attributes.append(ir.AttrInt64("block_size", scheme.block))
        wide = self._make(node, "DequantizeLinear", inputs, attributes)
        wide.type, wide.shape = ir.TensorType(self.stored.tensor.dtype), weight.shape
        for index, value in enumerate(node.inputs):
            if value is weight:
                node.replace_input_with(index, wide)
        tag(node, self.edit.pass_name, [node])

    def _integer_type(self) -> ir.DataType:
        signed, bits = self.scheme.symmetric, self.scheme.bits
        return ir.DataType[f"{'' if signed else 'U'}INT{bits}"]

    def _wide_integers(self, channels: int) -> ir.Value:
        """Return the integers in the shape of the weight, which the standard operator reads."""
        scheme, inner, shape = self.scheme, self.inner, tuple(self.shape)
        width = self.width
        moved = (shape[channels], *shape[:channels], *shape[channels + 1 :])

        def take(parts: Parts) -> Array:
            integers = unpack(parts.data, scheme.bits, width).reshape(len(parts.data), -1)
            array = np.moveaxis(integers[:, :inner].reshape(moved), 0, channels)
            if scheme.symmetric:
                array = array - np.uint8(scheme.middle)
            if scheme.bits == 4:
                return pack((array & np.uint8(15)).reshape(-1), 4)
            return np.ascontiguousarray(array).view(np.int8 if scheme.symmetric else np.uint8)

        return self._constant(f"int{scheme.bits}", self._integer_type(), shape, take)

    def _wide_parameters(self, stem: str, dtype: ir.DataType) -> ir.Value:
        """Return scales or zero points: one a channel, or in the axes of the weight."""
        blocked, by_column, bits = self.scheme.block != 0, self.stored.by_column, self.scheme.bits
        shape = [self.rows]
        if blocked:
            shape = [self.blocks, self.rows] if by_column else [self.rows, self.blocks]

        def take(parts: Parts) -> Array:
            array: Array = parts.scales if stem == "scales" else parts.zero_points
            array = array.T if by_column else array
            if dtype.bitwidth == 4:
                return pack(np.ascontiguousarray(array).reshape(-1), bits)
            return array.reshape(shape)

        return self._constant(stem, dtype, shape, take)

    def _make(
        self,
        node: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Sequence[ir.Attr] = (),
        domain: str = "",
    ) -> ir.Value:
        """Insert a node in front of ``node``; return its result, which has no type yet."""
        assert node.graph is not None, "the node is in a graph"
        name = self.edit.names.fresh_node(f"{node.name or node.op_type}_{op_type}")
        new = ir.Node(domain, op_type, inputs, attributes, num_outputs=1, name=name)
        stem = "weight" if op_type == "DequantizeLinear" else op_type.lower()
        new.outputs[0].name = self.edit.names.fresh_value(f"{node.outputs[0].name}_{stem}")
        node.graph.insert_before(node, tag(new, self.edit.pass_name, [node]))
        return new.outputs[0]

    def _replace(
        self,
        node: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Sequence[ir.Attr] = (),
        domain: str = "",
    ) -> None:
        """Let a new node make what ``node`` made."""
        self.edit.insert(
            node, node.outputs[0], op_type, inputs, attributes, replaced=[node], domain=domain
        )
        self.edit.drop(node)
