"""Rules of ai.onnx.ml (classical models) and of the training preview."""

import onnx_ir as ir

from graphopt.ir.dims import Dim
from graphopt.ir.shape_rules.facts import UnresolvedError
from graphopt.ir.shape_rules.registry import rule
from graphopt.ir.shape_rules.view import NodeView

FLOAT = ir.DataType.FLOAT
INT64 = ir.DataType.INT64
STRING = ir.DataType.STRING
ML = "ai.onnx.ml"
TRAINING = "ai.onnx.preview.training"


@rule("Binarizer", "Imputer", domain=ML)
def unchanged(view: NodeView) -> None:
    """The output looks like the input."""
    view.types(view.dtype(0))
    view.out(0, view.dims(0))


@rule("Normalizer", "Scaler", domain=ML)
def as_float(view: NodeView) -> None:
    """The shape of the input as float."""
    view.types(FLOAT)
    view.out(0, view.dims(0))


@rule("CategoryMapper", domain=ML)
def category_mapper(view: NodeView) -> None:
    """Texts become numbers and numbers texts."""
    view.types(INT64 if view.dtype(0) == STRING else STRING)
    view.out(0, view.dims(0))


@rule("LabelEncoder", domain=ML)
def label_encoder(view: NodeView) -> None:
    """The type of the values that the labels become."""
    for name, dtype in (("strings", STRING), ("int64s", INT64), ("floats", FLOAT)):
        if view.has_attribute(f"values_{name}"):
            view.types(dtype)
    table = view.tensor("values_tensor")
    if table is not None:
        view.types(table.dtype)
    if view.opset < 2:
        view.types(INT64 if view.dtype(0) == STRING else STRING)
    view.out(0, view.dims(0))


def _rows(view: NodeView) -> Dim:
    dims = view.ranked(0, 1, 2)
    return dims[0] if len(dims) == 2 else 1


def _classes(view: NodeView, *names: str) -> tuple[ir.DataType, int]:
    """Return the type and the number of the class labels, in whichever attribute they are."""
    for name in names:
        labels = view.strings(name) if view.has_attribute(name) else None
        if labels:
            return (STRING if name.endswith("strings") else INT64), len(labels)
    raise UnresolvedError("no attribute lists the classes")


@rule("LinearRegressor", domain=ML)
def linear_regressor(view: NodeView) -> None:
    """A row of targets for each row."""
    view.types(FLOAT)
    view.out(0, (_rows(view), view.int_("targets", 1)))


@rule("SVMRegressor", domain=ML)
def svm_regressor(view: NodeView) -> None:
    """A number for each row."""
    view.types(FLOAT)
    view.out(0, (_rows(view), 1))


@rule("TreeEnsembleRegressor", domain=ML)
def tree_regressor(view: NodeView) -> None:
    """A row of targets for each row."""
    view.types(FLOAT)
    view.out(0, (_rows(view), view.int_("n_targets", 1)))


@rule("TreeEnsemble", domain=ML)
def tree_ensemble(view: NodeView) -> None:
    """A row of targets for each row, in the type of the input."""
    view.types(view.dtype(0))
    targets = view.int_or_none("n_targets")
    if targets is None:
        raise UnresolvedError("the number of targets is not given")
    view.out(0, (_rows(view), targets))


@rule("LinearClassifier", "TreeEnsembleClassifier", domain=ML)
def classifier(view: NodeView) -> None:
    """A label for each row, and a score for each class."""
    dtype, count = _classes(view, "classlabels_strings", "classlabels_int64s", "classlabels_ints")
    view.types(dtype, FLOAT)
    rows = _rows(view)
    view.out(0, (rows,))
    view.out(1, (rows, count))


@rule("SVMClassifier", domain=ML)
def svm_classifier(view: NodeView) -> None:
    """A label for each row; how many scores there are is up to the runtime."""
    dtype, _ = _classes(view, "classlabels_strings", "classlabels_ints")
    view.types(dtype, FLOAT)
    view.out(0, (_rows(view),))
    if view.wants(1):
        view.unknown(1, "the number of scores is up to the runtime")


@rule("OneHotEncoder", domain=ML)
def one_hot_encoder(view: NodeView) -> None:
    """A further axis for the categories."""
    view.types(FLOAT)
    _, count = _classes(view, "cats_strings", "cats_int64s")
    view.out(0, (*view.dims(0), count))


@rule("FeatureVectorizer", domain=ML)
def feature_vectorizer(view: NodeView) -> None:
    """The features of all inputs side by side."""
    view.types(FLOAT)
    view.out(0, (_rows(view), sum(view.required_ints("inputdimensions"))))


@rule("Adagrad", "Adam", "Momentum", domain=TRAINING)
def optimizer(view: NodeView) -> None:
    """The new tensors and the new states, after rate and count in the order of the inputs."""
    states = {"Adagrad": 1, "Momentum": 1, "Adam": 2}[view.node.op_type]
    tensors, rest = divmod(len(view.inputs) - 2, 2 + states)
    if rest or tensors < 1 or len(view.outputs) != tensors * (1 + states):
        view.malformed(f"there are {len(view.inputs)} inputs and {len(view.outputs)} outputs")
    # Inputs: rate, count, tensors, gradients, states; the gradients have no output.
    sources = [*range(2, 2 + tensors), *range(2 + 2 * tensors, len(view.inputs))]
    view.types(*(view.dtype(i) for i in sources))
    for index, source in enumerate(sources):
        view.out(index, view.dims(source))
