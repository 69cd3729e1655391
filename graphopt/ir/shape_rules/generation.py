"""Rules for operators that make a tensor out of attributes or a shape."""

from math import prod

import onnx_ir as ir

from graphopt.ir.dims import Dim, add, floordiv
from graphopt.ir.shape_rules.contents import Entry, read_tensor
from graphopt.ir.shape_rules.facts import UnresolvedError
from graphopt.ir.shape_rules.layout import as_vector
from graphopt.ir.shape_rules.registry import rule
from graphopt.ir.shape_rules.view import NodeView, Shape

FLOAT = ir.DataType.FLOAT
INT64 = ir.DataType.INT64


@rule("Constant")
def constant(view: NodeView) -> None:
    """The tensor, number or list in whichever attribute is there."""
    tensor = view.tensor("value")
    if tensor is not None:
        view.types(tensor.dtype)
        view.out(0, tuple(tensor.shape.numpy()))
        contents = read_tensor(tensor)
        if contents is not None:
            view.know(contents.entries)
        return
    entries: tuple[Entry, ...] = ()
    for name, dtype in (("value_int", INT64), ("value_float", FLOAT)):
        if view.has_attribute(name):
            number = view.int_(name, 0) if dtype == INT64 else view.float_(name, 0.0)
            view.types(dtype)
            view.out(0, ())
            view.know([number])
            return
    if view.has_attribute("value_ints"):
        dtype, entries = INT64, view.required_ints("value_ints")
    elif view.has_attribute("value_floats"):
        dtype, entries = FLOAT, view.floats("value_floats") or ()
    elif view.has_attribute("value_string"):
        view.types(ir.DataType.STRING)
        view.out(0, ())
        return
    elif view.has_attribute("value_strings"):
        view.types(ir.DataType.STRING)
        view.out(0, (len(view.strings("value_strings") or ()),))
        return
    else:
        if view.has_attribute("sparse_value"):
            raise UnresolvedError("sparse constants are not supported")
        view.malformed("no attribute holds a value")
    view.types(dtype)
    view.out(0, (len(entries),))
    view.know(entries)


def _sizes(view: NodeView, index: int) -> Shape:
    entries = as_vector(view, index, "shape")
    return tuple(view.size_entry(index, i, e, "a size") for i, e in enumerate(entries))


@rule("ConstantOfShape")
def constant_of_shape(view: NodeView) -> None:
    """The shape given, filled with one number."""
    tensor = view.tensor("value")
    view.types(FLOAT if tensor is None else tensor.dtype)
    view.out(0, _sizes(view, 0))
    dims = view.followed()
    if dims is None:
        return
    contents = None if tensor is None else read_tensor(tensor)
    if tensor is not None and (contents is None or len(contents.entries) != 1):
        return
    filler: Entry = 0.0 if contents is None else contents.entries[0]
    view.know([filler] * prod(dims))


@rule("RandomNormal", "RandomUniform")
def random(view: NodeView) -> None:
    """The shape and type of the attributes."""
    view.types(view.data_type("dtype", FLOAT))
    view.out(0, view.required_ints("shape"))


@rule("RandomNormalLike", "RandomUniformLike", "Bernoulli")
def random_like(view: NodeView) -> None:
    """The shape of the input, and its type unless an attribute names one."""
    known = None if view.has_attribute("dtype") else view.dtype(0)
    view.types(view.data_type("dtype", known))
    view.out(0, view.dims(0))


@rule("EyeLike")
def eye_like(view: NodeView) -> None:
    """The shape of the input, which has two axes."""
    known = None if view.has_attribute("dtype") else view.dtype(0)
    view.types(view.data_type("dtype", known))
    view.out(0, view.ranked(0, 2, 2))


@rule("Multinomial")
def multinomial(view: NodeView) -> None:
    """As many samples for each row as the attribute says."""
    view.types(view.data_type("dtype", ir.DataType.INT32))
    dims = view.ranked(0, 2, 2)
    view.out(0, (dims[0], view.int_("sample_size", 1)))


def _scalar_size(view: NodeView, index: int, what: str) -> Dim:
    return view.size_entry(index, 0, view.scalar(index), what)


@rule("BlackmanWindow", "HammingWindow", "HannWindow")
def window(view: NodeView) -> None:
    """A vector of the size given."""
    view.types(view.data_type("output_datatype", FLOAT))
    view.out(0, (_scalar_size(view, 0, "the size"),))


@rule("MelWeightMatrix")
def mel_weight_matrix(view: NodeView) -> None:
    """One row for each bin of the spectrum, one column for each mel bin."""
    view.types(view.data_type("output_datatype", FLOAT))
    length = _scalar_size(view, 1, "the length of the transform")
    bins = add(floordiv(length, 2), 1)
    view.out(0, (bins, _scalar_size(view, 0, "the number of mel bins")))
