"""Rules for recurrent layers."""

from graphopt.ir.dims import Dim
from graphopt.ir.shape_rules.registry import rule
from graphopt.ir.shape_rules.view import NodeView


@rule("RNN", "GRU", "LSTM")
def recurrent(view: NodeView) -> None:
    """All hidden states, the last one, and for LSTM the last cell state."""
    dtype = view.dtype(0)
    view.types(dtype, dtype, dtype)
    batch_first = bool(view.int_("layout", 0)) and view.opset >= 14
    first, second, size = view.ranked(0, 3, 3)
    length, batch = (second, first) if batch_first else (first, second)
    weight, recurrence = view.ranked(1, 3, 3), view.ranked(2, 3, 3)
    view.same(size, weight[2], "input sizes of data and weight")
    hidden: Dim = view.same(recurrence[2], _hidden(view, recurrence[2]), "hidden sizes")
    directions: Dim = 2 if view.string("direction", "forward") == "bidirectional" else 1
    view.same(directions, weight[0], "directions of attribute and weight")
    if batch_first:
        view.out(0, (batch, length, directions, hidden))
        state = (batch, directions, hidden)
    else:
        view.out(0, (length, directions, batch, hidden))
        state = (directions, batch, hidden)
    view.out(1, state)
    view.out(2, state)


@rule("DynamicQuantizeLSTM", domain="com.microsoft")
def dynamic_quantize_lstm(view: NodeView) -> None:
    """As ``LSTM``; the weights are [directions, inputs, gates * units]."""
    dtype = view.dtype(0)
    view.types(dtype, dtype, dtype)
    length, batch, size = view.ranked(0, 3, 3)
    weight, recurrence = view.ranked(1, 3, 3), view.ranked(2, 3, 3)
    view.same(size, weight[1], "input sizes of data and weight")
    hidden: Dim = view.same(recurrence[1], _hidden(view, recurrence[1]), "hidden sizes")
    directions: Dim = 2 if view.string("direction", "forward") == "bidirectional" else 1
    view.same(directions, weight[0], "directions of attribute and weight")
    view.out(0, (length, directions, batch, hidden))
    view.out(1, (directions, batch, hidden))
    view.out(2, (directions, batch, hidden))


def _hidden(view: NodeView, default: Dim) -> Dim:
    named = view.int_or_none("hidden_size")
    return default if named is None else named
