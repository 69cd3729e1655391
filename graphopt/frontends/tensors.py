"""Tensors and types from a model file: whether their sizes, types and data agree."""

from typing import Any

import onnx
import onnx_ir as ir

from graphopt.errors import InvalidModelError, UnsupportedError
from graphopt.frontends.external_data import ExternalFiles
from graphopt.frontends.text import check_name, shown

MAX_RANK = 64  # numpy arrays have no more dimensions
MAX_ELEMENTS = 1 << 62
MAX_TYPE_DEPTH = 64

_Tensor = onnx.TensorProto
_KNOWN_TYPES = frozenset(_Tensor.DataType.values()) & {int(t) for t in ir.DataType}

# Field of TensorProto for values that are not raw -> the types it holds (onnx.proto).
_TYPED_FIELDS: dict[str, frozenset[int]] = {
    "float_data": frozenset({_Tensor.FLOAT, _Tensor.COMPLEX64}),
    "double_data": frozenset({_Tensor.DOUBLE, _Tensor.COMPLEX128}),
    "int64_data": frozenset({_Tensor.INT64}),
    "uint64_data": frozenset({_Tensor.UINT32, _Tensor.UINT64}),
    "string_data": frozenset({_Tensor.STRING}),
}
_COMPLEX = (_Tensor.COMPLEX64, _Tensor.COMPLEX128)


def count_elements(dims: Any, what: str) -> int:
    """Return the product of static dimensions.

    Raises:
        InvalidModelError: a dimension is negative, or the product is beyond 2**62.
        UnsupportedError: there are more dimensions than an array can have.
    """
    if len(dims) > MAX_RANK:
        raise UnsupportedError(
            "rank-too-large", f"{what} has {len(dims)} dimensions, at most {MAX_RANK} are supported"
        )
    product = 1
    zero = False
    for dim in dims:
        if dim < 0:
            raise InvalidModelError("dimension-negative", f"{what} has the dimension {dim}")
        zero = zero or dim == 0
        product *= dim or 1
    if product > MAX_ELEMENTS:
        raise InvalidModelError(
            "shape-too-large", f"{what} of shape {list(dims)} has more than 2**62 elements"
        )
    return 0 if zero else product


def check_tensor(
    tensor: onnx.TensorProto,
    external: ExternalFiles,
    raw_in_file: int | None,
    where: str | None = None,
) -> None:
    """Check that type, shape and data of a tensor agree.

    Args:
        tensor: The message.
        external: Receives the tensor when its data is in another file.
        raw_in_file: Bytes of its raw data that were left in the model file, None for none.
        where: What the tensor is, for the message; None: the initializer of its name.

    Raises:
        InvalidModelError: they do not agree, or the data may not be read.
        UnsupportedError: the tensor has a form that graphopt does not know.
    """
    what = where or f"initializer {shown(str(tensor.name))}"
    check_name(tensor.name, "tensor", may_be_empty=True)
    if not isinstance(tensor.doc_string, str):
        raise InvalidModelError("not-utf8", f"the documentation of {what} is no UTF-8 text")
    if tensor.data_type not in _KNOWN_TYPES or tensor.data_type == _Tensor.UNDEFINED:
        raise InvalidModelError(
            "element-type-unknown", f"{what} has the unknown element type {tensor.data_type}"
        )
    if tensor.HasField("segment"):
        raise UnsupportedError("tensor-segment", f"{what} is one segment of a larger tensor")
    elements = count_elements(tensor.dims, what)
    if tensor.data_location == _Tensor.EXTERNAL:
        if raw_in_file is not None or tensor.HasField("raw_data") or _typed_counts(tensor):
            raise InvalidModelError(
                "initializer-size", f"{what} has data in the model and outside it"
            )
        _check_external(tensor, external, what, elements)
        return
    if tensor.external_data:
        raise InvalidModelError(
            "external-data-key", f"{what} names a data file, but its data is not external"
        )
    if tensor.HasField("raw_data") or raw_in_file is not None:
        _check_raw(tensor, raw_in_file, what, elements)
        return
    _check_typed(tensor, what, elements)


def _needed_bytes(data_type: int, elements: int) -> int:
    return (elements * ir.DataType(data_type).bitwidth + 7) // 8


def _check_external(
    tensor: onnx.TensorProto, external: ExternalFiles, what: str, elements: int
) -> None:
    if tensor.data_type == _Tensor.STRING:
        raise InvalidModelError("element-type-unknown", f"{what}: strings cannot be external")
    entries = [(str(e.key), str(e.value)) for e in tensor.external_data]
    external.check_entries(tensor.name or what, entries, _needed_bytes(tensor.data_type, elements))


def _check_raw(tensor: onnx.TensorProto, raw_in_file: int | None, what: str, elements: int) -> None:
    if tensor.data_type == _Tensor.STRING:
        raise InvalidModelError("initializer-size", f"{what}: strings cannot be raw data")
    needed = _needed_bytes(tensor.data_type, elements)
    actual = len(tensor.raw_data) if raw_in_file is None else raw_in_file
    if actual != needed or _typed_counts(tensor):
        raise InvalidModelError(
            "initializer-size",
            f"{what} of shape {list(tensor.dims)} needs {needed} bytes, its data has {actual}"
            + (" and more in another field" if _typed_counts(tensor) else ""),
        )


def _typed_counts(tensor: onnx.TensorProto) -> dict[str, int]:
    """Return the number of entries in each typed data field that is not empty."""
    names = ("int32_data", *_TYPED_FIELDS)
    return {name: count for name in names if (count := len(getattr(tensor, name)))}


def _check_typed(tensor: onnx.TensorProto, what: str, elements: int) -> None:
    data_type = tensor.data_type
    name = next((n for n, types in _TYPED_FIELDS.items() if data_type in types), "int32_data")
    needed = elements
    if data_type in _COMPLEX:
        needed = 2 * elements
    elif name == "int32_data" and ir.DataType(data_type).bitwidth in (2, 4):
        per_entry = 8 // ir.DataType(data_type).bitwidth
        needed = -(-elements // per_entry)
    counts = _typed_counts(tensor)
    if counts != ({name: needed} if needed else {}):
        found = ", ".join(f"{count} in {field}" for field, count in counts.items()) or "none"
        raise InvalidModelError(
            "initializer-size",
            f"{what} of shape {list(tensor.dims)} needs {needed} entries in {name}, found {found}",
        )


def check_type(type_proto: onnx.TypeProto, what: str, *, required: bool) -> None:
    """Check the type of a value.

    Args:
        type_proto: The message.
        what: What the type belongs to, for the message.
        required: Whether an unknown type is an error.

    Raises:
        InvalidModelError: it is missing, unknown, or its sizes make no sense.
        UnsupportedError: it is a map, an opaque type, or a sparse tensor.
    """
    for _ in range(MAX_TYPE_DEPTH):
        kind = type_proto.WhichOneof("value")
        if kind in ("map_type", "opaque_type", "sparse_tensor_type"):
            raise UnsupportedError(
                "value-type",
                f"{what} is a {kind.removesuffix('_type').replace('_', ' ')}",
                hint="graphopt plans dense tensors, sequences and optional values",
            )
        if kind in ("sequence_type", "optional_type"):
            type_proto = getattr(type_proto, kind).elem_type
            required = True
            continue
        if kind is None:
            if required:
                raise InvalidModelError("type-missing", f"{what} has no type")
            return
        _check_tensor_type(type_proto.tensor_type, what, required)
        return
    raise InvalidModelError("nesting-too-deep", f"the type of {what} is nested too deep")


def _check_tensor_type(tensor_type: Any, what: str, required: bool) -> None:
    element = tensor_type.elem_type
    if element not in _KNOWN_TYPES or (required and element == _Tensor.UNDEFINED):
        raise InvalidModelError(
            "element-type-unknown", f"{what} has the unknown element type {element}"
        )
    static: list[int] = []
    for dim in tensor_type.shape.dim:
        if dim.HasField("dim_param"):
            check_name(dim.dim_param, "dimension", may_be_empty=True)
            static.append(1)
        else:
            # A negative size of a value, unlike one of a tensor with data, means "not known".
            static.append(max(dim.dim_value, 0) if dim.HasField("dim_value") else 1)
    count_elements(static, what)
