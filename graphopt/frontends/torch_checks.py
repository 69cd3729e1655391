"""What an exported program may not hold, because ONNX would lose or garble it.

Imports nothing of torch; the kinds of inputs and outputs are told apart by the names of torch's
enumerations.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from graphopt.errors import InvalidModelError, OptionError, UnsupportedError
from graphopt.frontends.torch_errors import unregistered_state
from graphopt.frontends.user_code import source_of

_ASSIGNED = re.compile(r"The tensor attributes? (?P<names>.+) (?:was|were) assigned during export")


def check_weights(weights: Mapping[str, Any], owner: str) -> None:
    """Refuse tensors without data.

    Args:
        weights: Parameters, buffers and constants by name.
        owner: How to call their module in messages.

    Raises:
        InvalidModelError: one is on the meta device, or of a fake mode.
    """
    for name, tensor in weights.items():
        # Tensors of a fake mode have a device that they pretend to be on.
        if getattr(tensor, "is_meta", False) or hasattr(tensor, "fake_device"):
            raise InvalidModelError(
                "torch-weights-without-data",
                f"'{name}' of {owner} is on the meta device: it has a shape and no values",
                hint="load the weights first",
            )


def check_assignments(exported: Any, warnings: Sequence[str], owner: str) -> list[str]:
    """Refuse state that is kept in plain attributes; returns notes on attributes that are not kept.

    An attribute that ``forward`` assigns and reads is state, and torch makes its first value a
    constant. One that is only assigned (values computed once, values kept to look at) is left out.

    Args:
        exported: A ``torch.export.ExportedProgram``.
        warnings: What torch warned of while it exported the module.
        owner: How to call the module in messages.

    Raises:
        UnsupportedError: an attribute is state.
    """
    found = (_ASSIGNED.search(text) for text in warnings)
    assigned = [one for match in found if match for one in match["names"].split(", ")]
    # torch.nn's recurrent layers keep their own parameters in a list, and assign them again.
    assigned = sorted(one for one in assigned if "._flat_weights[" not in one)
    users = {n.name: len(n.users) for n in exported.graph.nodes if n.op == "placeholder"}
    read = {
        f"self.{spec.target}"
        for spec in exported.graph_signature.input_specs
        if spec.kind.name == "CONSTANT_TENSOR" and users[spec.arg.name]
    }
    for one in assigned:
        if one in read:
            raise unregistered_state(owner, one)
    return [f"forward assigns a tensor to '{one}', which is not kept" for one in assigned]


def check_exported(exported: Any, owner: str) -> list[str]:
    """Refuse what would be dropped or garbled on the way to ONNX; returns notes for the report.

    Args:
        exported: A ``torch.export.ExportedProgram``.
        owner: How to call it in messages.

    Raises:
        OptionError: the program was captured in training mode.
        UnsupportedError: an input or output is no real tensor, or the graph is no forward graph.
    """
    notes: list[str] = []
    for spec in exported.graph_signature.input_specs:
        if spec.kind.name in ("CUSTOM_OBJ", "TOKEN"):
            raise _no_onnx_form(owner, f"'{spec.target or spec.arg.name}' is a script object")
        constant = getattr(spec.arg, "value", None)
        if constant is not None:
            notes.append(f"argument '{spec.arg.name}' is fixed at {constant!r}")
    for index, output in enumerate(exported.graph_signature.output_specs):
        _check_output(output, index, owner, notes)
    for node in exported.graph.nodes:
        _check_node(node, owner)
    return notes


def _check_output(output: Any, index: int, owner: str, notes: list[str]) -> None:
    kind = output.kind.name
    if kind == "TOKEN" or kind.startswith(("GRADIENT", "LOSS")):
        raise _no_onnx_form(owner, "it is a training graph, or has side effects")
    if not hasattr(output.arg, "value"):
        return
    if output.arg.value is not None:
        raise _no_onnx_form(owner, f"output {index} is the constant {output.arg.value!r}")
    notes.append(f"output {index} is None and was left out")


def _check_node(node: Any, owner: str) -> None:
    value = node.meta.get("val")
    if node.op == "placeholder" and hasattr(value, "is_complex") and value.is_complex():
        raise _no_onnx_form(owner, f"'{node.name}' is complex")
    if node.op == "output":
        for one in node.all_input_nodes:
            result = one.meta.get("val")
            if hasattr(result, "is_complex") and result.is_complex():
                raise _no_onnx_form(owner, f"the output '{one.name}' is complex")
    if node.op == "call_function" and _acts_as_in_training(node):
        line = source_of(node.meta.get("stack_trace"))
        raise OptionError(
            "module-in-training-mode",
            f"{owner}: {node.target} runs as it does in training\n  {line or node.name}",
            hint="call .eval() before the export; functional.dropout needs training=self.training",
        )


def _no_onnx_form(owner: str, what: str) -> UnsupportedError:
    return UnsupportedError(
        "torch-no-onnx-form",
        f"{owner} cannot become an ONNX model: {what}",
        hint="inputs and outputs must be real tensors: torch.view_as_real makes one of a "
        "complex tensor, torch.tensor of a number",
    )


def _acts_as_in_training(node: Any) -> bool:
    """Return whether the node drops values at random or updates statistics."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return False
    names = [argument.name for argument in schema.arguments]
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    if "dropout" in schema.name:
        return bool(given.get("train")) and given.get("p") != 0
    # Without running statistics a batch norm uses those of the batch in eval mode too.
    return "batch_norm" in schema.name and bool(
        given.get("training") and given.get("running_mean") is not None
    )
