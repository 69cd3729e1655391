"""Rules for matrix products, Einsum and linear algebra."""

import onnx_ir as ir

from graphopt.ir.dims import Dim
from graphopt.ir.shape_rules.algebra import UnequalError, broadcast_dim
from graphopt.ir.shape_rules.registry import rule
from graphopt.ir.shape_rules.view import NodeView, Shape


def product_shape(view: NodeView, left: Shape, right: Shape) -> Shape:
    """Return the shape of a matrix product as numpy defines it for any ranks."""
    if not left or not right:
        view.impossible("a scalar has no matrix product")
    inner = right[-2] if len(right) > 1 else right[0]
    view.same(left[-1], inner, "inner sizes")
    rows = left[-2:-1]
    columns = right[-1:] if len(right) > 1 else ()
    return (*view.broadcast(left[:-2], right[:-2]), *rows, *columns)


@rule("MatMul")
def matmul(view: NodeView) -> None:
    """Rows of the first, columns of the second, leading axes broadcast."""
    view.types(view.dtype(0))
    view.out(0, product_shape(view, view.dims(0), view.dims(1)))


@rule("MatMulInteger")
def matmul_integer(view: NodeView) -> None:
    """As `matmul`, accumulated in int32."""
    view.types(ir.DataType.INT32)
    view.out(0, product_shape(view, view.dims(0), view.dims(1)))


@rule("QLinearMatMul")
def qlinear_matmul(view: NodeView) -> None:
    """As `matmul`, in the type of the output's zero point."""
    view.types(view.dtype(7))
    view.out(0, product_shape(view, view.dims(0), view.dims(3)))


@rule("Gemm")
@rule("FusedGemm", domain="com.microsoft")
def gemm(view: NodeView) -> None:
    """Rows of the first, columns of the second, each possibly transposed."""
    view.types(view.dtype(0))
    left, right = view.ranked(0, 2, 2), view.ranked(1, 2, 2)
    rows, inner = reversed(left) if view.int_("transA", 0) else left
    height, columns = reversed(right) if view.int_("transB", 0) else right
    view.same(inner, height, "inner sizes")
    bias = view.dims_or_none(2)
    if bias is not None and view.opset >= 7:
        if len(bias) > 2:
            view.impossible(f"the bias has rank {len(bias)}")
        for size, whole in zip(reversed(bias), (columns, rows), strict=False):
            _fits(view, size, whole)
    view.out(0, (rows, columns))


def _fits(view: NodeView, size: Dim, whole: Dim) -> None:
    if isinstance(size, int) and isinstance(whole, int) and size not in (1, whole):
        view.impossible(f"a bias of size {size} cannot be broadcast to {whole}")


@rule("Det")
@rule("Inverse", domain="com.microsoft")
def square(view: NodeView) -> None:
    """Square matrices in the last two axes; a determinant drops them."""
    view.types(view.dtype(0))
    dims = view.ranked(0, 2)
    view.same(dims[-2], dims[-1], "rows and columns")
    view.out(0, dims[:-2] if view.node.op_type == "Det" else dims)


@rule("Einsum")
def einsum(view: NodeView) -> None:
    """The sizes of the output's letters; an ellipsis stands for broadcast axes."""
    view.types(view.dtype(0))
    equation = view.string("equation", "").replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if not view.has_attribute("equation") or len(terms) != len(view.inputs):
        view.malformed(f"the equation '{equation}' does not name {len(view.inputs)} inputs")
    sizes: dict[str, Dim] = {}
    extra: Shape = ()
    for index, term in enumerate(terms):
        extra = view.broadcast(extra, _read_term(view, index, term, sizes))
    if not arrow:
        letters = sorted(letter for letter in sizes if left.count(letter) == 1)
        right = ("..." if "..." in left else "") + "".join(letters)
    before, dots, after = right.partition("...")
    unknown = [letter for letter in before + after if letter not in sizes]
    if unknown or len(set(before + after)) != len(before + after):
        view.malformed(f"the output of the equation '{equation}' names {unknown or 'twice'}")
    middle = extra if dots else ()
    view.out(0, (*(sizes[x] for x in before), *middle, *(sizes[x] for x in after)))


def _read_term(view: NodeView, index: int, term: str, sizes: dict[str, Dim]) -> Shape:
    """Record the sizes of the letters of one input; return the axes of its ellipsis."""
    dims = view.dims(index)
    before, dots, after = term.partition("...")
    letters = before + after
    if not all(letter.isalpha() for letter in letters):
        view.malformed(f"term '{term}' of the equation is no list of letters")
    hidden = len(dims) - len(letters)
    if hidden < 0 or (hidden and not dots):
        view.impossible(f"term '{term}' does not fit input {index} of rank {len(dims)}")
    front, back = dims[: len(before)], dims[len(before) + hidden :]
    for letter, dim in zip(letters, (*front, *back), strict=True):
        try:
            known = sizes.get(letter)
            sizes[letter] = dim if known is None else broadcast_dim(known, dim, view.bounds)
        except UnequalError:
            view.impossible(f"letter '{letter}' stands for {sizes[letter]} and {dim}")
    return dims[len(before) : len(before) + hidden]
