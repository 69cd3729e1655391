"""Rules for strings."""

import onnx_ir as ir

from graphopt.ir.shape_rules.algebra import larger
from graphopt.ir.shape_rules.registry import rule
from graphopt.ir.shape_rules.view import NodeView

STRING = ir.DataType.STRING


@rule("StringConcat")
def string_concat(view: NodeView) -> None:
    """The broadcast of both inputs."""
    view.types(STRING)
    view.out(0, view.broadcast(view.dims(0), view.dims(1)))


@rule("StringSplit")
def string_split(view: NodeView) -> None:
    """A further axis for the parts, and how many each text has."""
    view.types(STRING, ir.DataType.INT64)
    dims = view.dims(0)
    limit = view.int_or_none("maxsplit")
    upper = limit + 1 if limit is not None and limit >= 0 else None
    parts = view.fresh(0, len(dims), "the largest number of parts of a text", upper)
    view.out(0, (*dims, parts))
    view.out(1, dims)


@rule("RegexFullMatch")
def regex_full_match(view: NodeView) -> None:
    """A bool for each text."""
    view.types(ir.DataType.BOOL)
    view.out(0, view.dims(0))


@rule("StringNormalizer")
def string_normalizer(view: NodeView) -> None:
    """The texts without stop words; one empty text when none is left."""
    view.types(STRING)
    dims = view.ranked(0, 1, 2)
    if not view.strings("stopwords"):
        view.out(0, dims)
        return
    upper = larger(dims[-1], 1, view.bounds)
    count = view.fresh(0, len(dims) - 1, "number of words that are no stop words", upper)
    view.out(0, (*dims[:-1], count))


@rule("TfIdfVectorizer")
def tf_idf_vectorizer(view: NodeView) -> None:
    """A number for each n-gram."""
    view.types(ir.DataType.FLOAT)
    dims = view.ranked(0, 1, 2)
    width = max(view.required_ints("ngram_indexes"), default=-1) + 1
    view.out(0, (*dims[:-1], width))
