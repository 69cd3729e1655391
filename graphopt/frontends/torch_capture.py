"""The torch front end: a module, a graph module or an exported program in, a ``Program`` out.

Stages: bind the example inputs to ``forward``; ``torch.export``; translate with torch's ONNX
exporter straight to ``onnx_ir``, which shares the memory of the weights with torch; make written
buffers explicit; give the dimensions the user's names; then the same checks as for an ONNX file.

What torch does here without a word is an error or undone: a module in training mode, a ``forward``
that writes into its inputs, and outputs that are no tensors are errors; one tensor given for two
arguments (torch makes them one input) is copied; an example size of 1 on a dimension that is to be
open (torch makes it a constant) is doubled.
"""

import contextlib
import difflib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, OutputSpec
from torch.utils import _pytree as pytree

from graphopt.errors import GraphoptError, OptionError, UnsupportedError
from graphopt.frontends.onnx_loader import load_onnx
from graphopt.frontends.torch_checks import check_assignments, check_exported, check_weights
from graphopt.frontends.torch_errors import capture_error, translation_error
from graphopt.frontends.torch_graph import (
    State,
    declare_states,
    separate_initializers,
    separate_outputs,
)
from graphopt.frontends.torch_symbols import AxisSpecs, Naming, name_symbols, rename_symbols
from graphopt.frontends.user_code import source_of
from graphopt.ir.dims import symbols_of
from graphopt.ir.program import Program, dims_of

logger = logging.getLogger(__name__)

# The newest opset at which the exporter leaves attention and RMS norm in pieces that passes can
# split (at 23 they are single operators, whose CPU kernel holds the whole score matrix), and the
# oldest with 4-bit, 16-bit and blocked quantization. onnxruntime 1.31 reads up to 26.
OPSET = 21

EXAMPLE_INPUTS_KEY = "graphopt.example_inputs"

_LOGGERS = ("torch", "onnxscript", "onnx_ir")
_STATES = (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION)


def capture_torch(
    model: nn.Module | fx.GraphModule | ExportedProgram,
    example_inputs: Any,
    *,
    dynamic_shapes: Any = None,
) -> Program:
    """Return the program that ``model`` computes; the model and the inputs are not changed.

    Inputs are named after the arguments of ``forward``; an argument that is a list, tuple or
    dictionary becomes one input per tensor, ``batch_a``, ``batch_b_0``. Outputs keep the names of
    the exporter. Weights share their memory with the module: training it further changes the
    program. A buffer that ``forward`` writes becomes an input and an output, paired in ``states``.

    The example inputs by name, with the first value of every state, are left in
    ``program.model.meta[EXAMPLE_INPUTS_KEY]``.

    Args:
        model: In eval mode.
        example_inputs: A tuple by position, a dictionary by name, or one tensor; a list is several
            samples, of which the first is used. None only for an exported program.
        dynamic_shapes: As ``torch.export.export`` takes it; arguments may be left out of a
            dictionary, and a dimension may also be ``"batch"`` or ``("batch", 1, 64)``. For an
            exported program: by input name, to name its open dimensions and narrow their bounds.

    Raises:
        OptionError: the example inputs or dynamic shapes do not fit, or the module is in training
            mode.
        UnsupportedError: the module cannot be captured, or has an operator without ONNX form.
        InvalidModelError: weights have no data.
    """
    with quiet():
        if isinstance(model, ExportedProgram):
            owner, exported, notes = "the exported program", model, list[str]()
            check_weights({**model.state_dict, **model.constants}, owner)
            specs = _specs_by_name(exported, dynamic_shapes)
            leaves = _leaves_for(exported, example_inputs)
        else:
            module = _plain_module(model)
            owner = f"'{type(module).__name__}'"
            check_weights(dict((*module.named_parameters(), *module.named_buffers())), owner)
            call = _bind(module, example_inputs, dynamic_shapes)
            exported, notes = _export(module, call, owner)
            specs, leaves = call.specs, call.leaves
        notes += check_exported(exported, owner)
        onnx_model, decomposed, states = _translate(exported, owner)
        naming = name_symbols(decomposed, _user_inputs(exported), specs)
    program = _finish(onnx_model, naming, states, notes)
    program.model.meta[EXAMPLE_INPUTS_KEY] = _feeds(exported, decomposed, states, leaves)
    return program


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings, log records and prints of torch and of a traced ``forward`` to itself.

    Prints arrive in this module's debug log. Warnings filters and standard streams belong to the
    process: other threads are quiet meanwhile too.
    """
    known = logging.root.manager.loggerDict
    names = [n for n in sorted(known) if n.partition(".")[0] in _LOGGERS]
    loggers = [logging.getLogger(name) for name in dict.fromkeys((*_LOGGERS, *names))]
    levels = [one.level for one in loggers]
    printed = io.StringIO()
    for one in loggers:
        one.setLevel(logging.CRITICAL + 1)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(printed),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
        if printed.getvalue().strip():
            logger.debug("printed while the module was captured:\n%s", printed.getvalue())


def _plain_module(model: Any) -> nn.Module:
    """Return the module to export.

    Raises:
        OptionError: it is no module, or in training mode.
        UnsupportedError: it is a TorchScript module.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedError(
            "torch-script-module",
            f"'{model.original_name}' is a TorchScript module, which torch.export does not take",
            hint="pass the nn.Module that it was made from",
        )
    # torch.compile wraps the module, and hides the names of its arguments.
    module = getattr(model, "_orig_mod", model)
    if not isinstance(module, nn.Module):
        raise OptionError(
            "torch-model-type",
            f"not a torch.nn.Module or torch.export.ExportedProgram: {type(model).__name__}",
        )
    if "train" in vars(module):
        # What ExportedProgram.module() returns: its mode was fixed at export, .eval() raises.
        return module
    for name, inner in module.named_modules():
        # fx copies the containers of a module as bare, always training nn.Modules.
        if inner.training and type(inner) is not nn.Module:
            which = f"its part '{name}'" if name else "it"
            raise OptionError(
                "module-in-training-mode",
                f"'{type(module).__name__}' would be captured with dropout and batch statistics "
                f"switched on: {which} is in training mode",
                hint="call .eval() on the module first",
            )
    return module


@dataclass
class _Call:
    """One call of ``forward``, and what the user said about its sizes.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments, in the order of the signature.
        dynamic_shapes: For every argument, as torch takes it; None when every size is fixed.
        specs: What was said about the axes of each leaf of (args, kwargs).
        leaves: The user's own leaves, before any copy.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dynamic_shapes: dict[str, Any] | None
    specs: list[AxisSpecs]
    leaves: list[Any]


def _bind(module: nn.Module, example_inputs: Any, dynamic_shapes: Any) -> _Call:
    """Bind the first sample to the arguments of ``forward``, and the shapes to both."""
    signature = inspect.signature(module.forward)
    args, kwargs = arguments_of(example_inputs)
    try:
        bound = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        unknown = [name for name in kwargs if name not in signature.parameters]
        near = difflib.get_close_matches(unknown[0], signature.parameters, n=1) if unknown else []
        raise OptionError(
            "example-inputs-mismatch",
            f"the example inputs do not fit {type(module).__name__}.forward{signature}: {error}",
            hint=f"did you mean '{near[0]}'?"
            if near
            else "give a tuple by position or a dictionary by name; a list is several samples",
        ) from error
    order = {name: index for index, name in enumerate(signature.parameters)}
    kwargs = dict(sorted(kwargs.items(), key=lambda item: order.get(item[0], len(order))))
    leaves, tree = pytree.tree_flatten((args, kwargs))
    leaves = [_as_tensor(one) if isinstance(one, np.ndarray) else one for one in leaves]
    shapes = _shapes_by_argument(dynamic_shapes, bound)
    specs: list[AxisSpecs] = []
    for name, value in bound.items():
        specs += _specs_of(value, shapes.get(name), f"argument '{name}'")
    args, kwargs = pytree.tree_unflatten(_distinct(leaves, specs), tree)
    # One entry for every argument: torch refuses a dictionary that leaves some out.
    complete = {name: shapes.get(name) for name in bound} if shapes else None
    return _Call(args, kwargs, complete, specs, leaves)


def _as_tensor(array: Any) -> torch.Tensor:
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise OptionError(
            "example-inputs-type",
            f"example inputs of data type {array.dtype}, which torch does not have",
            hint="pass numbers or booleans",
        ) from error


def arguments_of(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword arguments of the first sample."""
    if isinstance(example_inputs, list) and example_inputs:
        example_inputs = example_inputs[0]
    if example_inputs is None:
        raise OptionError(
            "example-inputs-missing",
            "a torch module is captured by running it once: it needs example inputs",
            hint="pass example_inputs=(tensor, ...) or {'name': tensor, ...}",
        )
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple):
        return example_inputs, {}
    if isinstance(example_inputs, (torch.Tensor, np.ndarray)):
        return (example_inputs,), {}
    raise OptionError(
        "example-inputs-type",
        f"example inputs of type {type(example_inputs).__name__}",
        hint="pass a tuple, a dictionary or one tensor",
    )


def _distinct(leaves: list[Any], specs: list[AxisSpecs]) -> list[Any]:
    """Return the leaves as torch must see them: no tensor twice, no size 1 on an open axis.

    torch.export makes one input of a tensor that stands for two, and a constant of a size of 1.
    """
    seen: set[int] = set()
    result: list[Any] = []
    for leaf, axes in zip(leaves, specs, strict=True):
        if not isinstance(leaf, torch.Tensor):
            result.append(leaf)
            continue
        tensor = leaf.clone() if id(leaf) in seen else leaf
        seen.add(id(leaf))
        for axis, spec in axes.items():
            if tensor.shape[axis] == 1 and _may_be_two(spec):
                tensor = tensor.repeat_interleave(2, axis)
        result.append(tensor)
    return result


def _may_be_two(spec: Any) -> bool:
    # A derived dimension follows its root; DimHint.AUTO leaves the choice to torch.
    return isinstance(spec, Dim) and not hasattr(spec, "root") and bool(spec.min <= 2 <= spec.max)


def _shapes_by_argument(dynamic_shapes: Any, bound: Mapping[str, Any]) -> dict[str, Any]:
    """Return the dynamic shapes by argument name, with every name and triple made a ``Dim``."""
    if not dynamic_shapes:
        return {}
    if isinstance(dynamic_shapes, Mapping):
        unknown = [str(name) for name in dynamic_shapes if name not in bound]
        if unknown:
            near = difflib.get_close_matches(unknown[0], bound, n=1)
            raise OptionError(
                "dynamic-shapes-invalid",
                f"dynamic_shapes names '{unknown[0]}', which is no argument of this call",
                hint=f"did you mean '{near[0]}'?" if near else f"arguments: {', '.join(bound)}",
            )
        shapes = dict(dynamic_shapes)
    elif isinstance(dynamic_shapes, (tuple, list)):
        if len(dynamic_shapes) != len(bound):
            raise OptionError(
                "dynamic-shapes-invalid",
                f"dynamic_shapes has {len(dynamic_shapes)} entries for {len(bound)} arguments",
                hint=f"one for each of {', '.join(bound)}; None for an argument of fixed size",
            )
        shapes = dict(zip(bound, dynamic_shapes, strict=True))
    else:
        raise OptionError(
            "dynamic-shapes-invalid",
            f"dynamic_shapes of type {type(dynamic_shapes).__name__}",
            hint="pass a dictionary by argument, or a tuple with one entry per argument",
        )
    made: dict[str, Any] = {}
    return {name: _with_dims(spec, made) for name, spec in shapes.items()}


def _with_dims(spec: Any, made: dict[str, Any]) -> Any:
    """Return ``spec`` with each ``"batch"`` and ``("batch", 1, 64)`` on an axis made a ``Dim``."""
    if isinstance(spec, Mapping):
        if all(isinstance(axis, int) for axis in spec):
            return {axis: _as_dim(one, made) for axis, one in spec.items()}
        return {name: _with_dims(one, made) for name, one in spec.items()}
    if isinstance(spec, (tuple, list)):
        # ("batch", 1, 64) is a range on an axis of a dictionary, and three axes here.
        inner = [
            _as_dim(one, made) if isinstance(one, str) else _with_dims(one, made) for one in spec
        ]
        return inner if isinstance(spec, list) else tuple(inner)
    return spec


def _as_dim(spec: Any, made: dict[str, Any]) -> Any:
    name, lower, upper = spec if isinstance(spec, tuple) and len(spec) == 3 else (spec, None, None)
    if not isinstance(name, str):
        return spec
    if name not in made:
        try:
            made[name] = Dim(name, min=lower, max=upper)
        except (AssertionError, ValueError, TypeError) as error:
            raise OptionError(
                "dynamic-shapes-invalid",
                f"dynamic_shapes has the dimension {spec!r}: {error}",
                hint='write "name" or ("name", smallest, largest)',
            ) from error
    return made[name]


def _specs_of(value: Any, spec: Any, where: str) -> list[AxisSpecs]:
    """Return what ``spec`` says about each leaf of ``value``, in the order of its leaves."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return [_axes_of(value, spec, where)]
    if isinstance(value, Mapping) and (spec is None or isinstance(spec, Mapping)):
        inner = [(key, value[key], None if spec is None else spec.get(key)) for key in value]
    elif isinstance(value, (tuple, list)) and (spec is None or isinstance(spec, (tuple, list))):
        padded = (None,) * len(value) if spec is None else spec
        if len(padded) != len(value):
            raise OptionError(
                "dynamic-shapes-invalid",
                f"dynamic_shapes has {len(padded)} entries for the {len(value)} parts of {where}",
            )
        inner = list(zip(range(len(value)), value, padded, strict=True))
    else:
        return [{} for _ in pytree.tree_leaves(value)]
    return [axes for key, one, own in inner for axes in _specs_of(one, own, f"{where}, '{key}'")]


def _axes_of(value: Any, spec: Any, where: str) -> AxisSpecs:
    if not (spec is None or isinstance(spec, (Mapping, tuple, list))):
        raise OptionError(
            "dynamic-shapes-invalid",
            f"dynamic_shapes has {spec!r} for {where}",
            hint="write a dictionary {axis: dimension}, or None for a fixed size",
        )
    axes = dict(enumerate(spec)) if isinstance(spec, (tuple, list)) else dict(spec or {})
    wrong = [a for a in axes if not (isinstance(a, int) and 0 <= a < len(value.shape))]
    if wrong:
        raise OptionError(
            "dynamic-shapes-invalid",
            f"dynamic_shapes names axis {wrong[0]!r} of {where}, whose shape is "
            f"{list(value.shape)}",
            hint="axes count from 0",
        )
    return axes


def _export(module: nn.Module, call: _Call, owner: str) -> tuple[ExportedProgram, list[str]]:
    """Return the exported program, and notes on what it leaves out."""
    try:
        with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            exported = torch.export.export(
                module,
                call.args,
                call.kwargs,
                dynamic_shapes=call.dynamic_shapes,
                strict=False,
            )
    except (GraphoptError, MemoryError):
        raise
    except Exception as error:
        raise capture_error(owner, error) from error
    return exported, check_assignments(exported, [str(one.message) for one in caught], owner)


def _specs_by_name(exported: ExportedProgram, dynamic_shapes: Any) -> list[AxisSpecs]:
    inputs = dict(_user_inputs(exported))
    shapes = _shapes_by_argument(dynamic_shapes, inputs)
    return [
        _axes_of(value, shapes.get(name), f"input '{name}'")
        if isinstance(value, torch.Tensor)
        else {}
        for name, value in inputs.items()
    ]


def _leaves_for(exported: ExportedProgram, example_inputs: Any) -> list[Any]:
    """Return the leaves of the samples of an exported program; none when there are no samples."""
    if example_inputs is None:
        return pytree.tree_leaves(exported.example_inputs or ())
    args, kwargs = arguments_of(example_inputs)
    names = [name for name, _ in _user_inputs(exported)]
    if sorted(kwargs) == sorted(names):
        return [kwargs[name] for name in names]
    return pytree.tree_leaves((args, kwargs))


def _user_inputs(exported: ExportedProgram) -> list[tuple[str, Any]]:
    """Return the name and fake value of every input of the caller, constants included."""
    values = {n.name: n.meta.get("val") for n in exported.graph.nodes if n.op == "placeholder"}
    specs = exported.graph_signature.input_specs
    return [(s.arg.name, values.get(s.arg.name)) for s in specs if s.kind is InputKind.USER_INPUT]


def _translate(
    exported: ExportedProgram, owner: str
) -> tuple[ir.Model, ExportedProgram, list[State]]:
    """Return the ONNX model, the decomposed program behind it, and the states."""
    program = _to_onnx(exported, owner)
    decomposed = program.exported_program
    outputs = decomposed.graph_signature.output_specs
    for output in outputs:
        if output.kind is OutputKind.USER_INPUT_MUTATION:
            raise _written_input(decomposed, output, owner)
    written = [output for output in outputs if output.kind in _STATES]
    if not written:
        return program.model, decomposed, []
    # The exporter drops what is written to buffers. The graph is translated again, as it is after
    # decomposition, with these buffers declared as inputs and outputs of the caller.
    pairs = [(str(output.target), output.arg.name) for output in written]
    reads: dict[str, str] = {}
    for spec in decomposed.graph_signature.input_specs:
        if spec.target in dict(pairs):
            reads[str(spec.target)] = spec.arg.name
            spec.kind, spec.target, spec.persistent = InputKind.USER_INPUT, None, None
    for output in written:
        output.kind, output.target = OutputKind.USER_OUTPUT, None
    decomposed.run_decompositions = lambda *_: decomposed
    model = _to_onnx(decomposed, owner).model
    return model, decomposed, declare_states(model, pairs, reads)


def _to_onnx(exported: ExportedProgram, owner: str) -> Any:
    try:
        with torch.no_grad():
            return torch.onnx.export(
                exported, (), dynamo=True, optimize=False, verbose=False, opset_version=OPSET
            )
    except (GraphoptError, MemoryError):
        raise
    except Exception as error:
        raise translation_error(owner, error) from error


def _written_input(decomposed: ExportedProgram, output: OutputSpec, owner: str) -> UnsupportedError:
    node = next(n for n in decomposed.graph.nodes if n.name == output.arg.name)
    line = source_of(node.meta.get("stack_trace"))
    return UnsupportedError(
        "torch-input-written",
        f"{owner} writes into its input '{output.target}', which an ONNX model cannot do"
        + (f"\n  {line}" if line else ""),
        hint="use the operation that returns a new tensor (x = x + y, not x += y), or clone first",
        node=node.name,
    )


def _feeds(
    exported: ExportedProgram,
    decomposed: ExportedProgram,
    states: list[State],
    leaves: list[Any],
) -> dict[str, Any]:
    """Return the sample by input name, with the first value of every state; empty for no sample."""
    inputs = _user_inputs(exported)
    if len(leaves) != len(inputs):
        return {}
    feeds = {
        name: leaf if isinstance(leaf, torch.Tensor) else np.asarray(leaf)
        for (name, value), leaf in zip(inputs, leaves, strict=True)
        if isinstance(value, (torch.Tensor, torch.SymInt))
    }
    buffers = {**decomposed.constants, **decomposed.state_dict}
    return {**feeds, **{state.reads: buffers[state.target] for state in states}}


def _finish(model: ir.Model, naming: Naming, states: list[State], notes: list[str]) -> Program:
    rename_symbols(model, naming)
    separate_outputs(model.graph)
    separate_initializers(model.graph)
    stated = {
        name
        for value in model.graph.inputs
        for dim in dims_of(value) or ()
        for name in symbols_of(dim)
    }
    program = load_onnx(model, bounds={n: b for n, b in naming.bounds.items() if n in stated})
    for name, bounds in naming.bounds.items():
        program.bounds.setdefault(name, bounds)
    program.source = replace(program.source, kind="torch")
    program.states = tuple((state.reads, state.writes) for state in states)
    program.notes[:0] = [
        *notes,
        *naming.notes,
        *(
            f"forward writes the buffer '{state.target}': it is input '{state.reads}' and output "
            f"'{state.writes}', and must first be given the value it has in the module"
            for state in states
        ),
    ]
    return program
