"""Names for the dimensions that a model leaves open.

Every dimension of a graph input that is no number becomes an expression over symbols with bounds.
Names that are identifiers are kept; an anonymous dimension, a negative one, ``?`` or any other text
gets a name of its own, and the same text gets the same name everywhere in the model.
"""

import difflib
import keyword
import re
from collections.abc import Mapping

import onnx_ir as ir

from graphopt.errors import OptionError
from graphopt.ir.dims import Bounds, Expr, parse_dim, symbols_of
from graphopt.ir.program import RANGES_KEY, Program, fresh_symbol, graphs_of

_RANGE = re.compile(r"(\w+): VR\[([^,\[\]]+), ([^,\[\]]+)\]")
_NAMELESS = re.compile(r"\?*|-?\d+|None")
_MANY = 20


def name_dimensions(program: Program, given: Mapping[str, Bounds] | None) -> None:
    """Name every open dimension of the graph inputs and enter the bounds of all symbols.

    Args:
        program: Its model, bounds and notes are changed.
        given: Bounds by the name of a dimension, as it stands in the file or as it is called here.

    Raises:
        OptionError: ``given`` names no dimension, or its bounds are no interval.
    """
    renamed: dict[str, str] = {}
    taken = dict.fromkeys(_symbols_in(program.model), Bounds())
    for value in program.graph.inputs:
        _name_axes(program, value, taken, renamed)
    if renamed:
        _rename_everywhere(program.model, renamed)
    _read_ranges(program)
    _apply(program, given or {}, renamed)


def _symbols_in(model: ir.Model) -> list[str]:
    """Return the names of all symbols in shapes of the model, in order of appearance."""
    texts: dict[str, None] = {}
    for value in _values(model):
        if value.shape is not None:
            for dim in value.shape.dims:
                if not isinstance(dim, int) and dim.value is not None:
                    texts[dim.value] = None
    names: dict[str, None] = {}
    for text in texts:
        parsed = _expression(text)
        if parsed is not None:
            names.update(dict.fromkeys(sorted(symbols_of(parsed))))
    return list(names)


def _values(model: ir.Model) -> list[ir.Value]:
    found: list[ir.Value] = []
    for graph in graphs_of(model.graph):
        # extend, not +=: the containers of onnx_ir refuse to be added.
        found.extend(graph.inputs)
        found.extend(graph.initializers.values())
        for node in graph:
            found.extend(node.outputs)
    return found


def _expression(text: str) -> Expr | None:
    """Return the expression that ``text`` is; None when it needs another name."""
    if not text.isascii():
        return None
    parsed = parse_dim(text)
    if not isinstance(parsed, Expr):
        return None
    return None if any(keyword.iskeyword(name) for name in symbols_of(parsed)) else parsed


def _name_axes(
    program: Program, value: ir.Value, taken: dict[str, Bounds], renamed: dict[str, str]
) -> None:
    """Give every open axis of one input an expression."""
    if value.shape is None:
        return
    dims: list[int | ir.SymbolicDim] = []
    for axis, dim in enumerate(value.shape.dims):
        text = None if isinstance(dim, int) else dim.value
        parsed = None if text is None else _expression(text)
        if isinstance(dim, int) and dim >= 0:
            dims.append(dim)
        elif parsed is not None:
            dims.append(ir.SymbolicDim(str(parsed)))
            for name in sorted(symbols_of(parsed)):
                program.bounds.setdefault(name, Bounds())
        else:
            dims.append(ir.SymbolicDim(_new_name(program, value, axis, dim, taken, renamed)))
    value.shape = ir.Shape(dims)


def _new_name(
    program: Program,
    value: ir.Value,
    axis: int,
    dim: int | ir.SymbolicDim,
    taken: dict[str, Bounds],
    renamed: dict[str, str],
) -> str:
    text = str(dim) if isinstance(dim, int) else (dim.value or "")
    if text in renamed:
        name = renamed[text]
    else:
        name = str(fresh_symbol(taken, f"{value.name}_{axis}", Bounds()))
        if not _NAMELESS.fullmatch(text):
            renamed[text] = name
    program.bounds.setdefault(name, Bounds())
    was = f"called {text!r}" if text else "without a name"
    program.notes.append(
        f"dimension {axis} of input '{value.name}', {was}, is called '{name}' here"
    )
    return name


def _rename_everywhere(model: ir.Model, renamed: Mapping[str, str]) -> None:
    """Use the names of ``renamed`` in every other shape that has one of its texts."""
    for value in _values(model):
        shape = value.shape
        if shape is None:
            continue
        names = [None if isinstance(d, int) else renamed.get(d.value or "") for d in shape.dims]
        if any(names):
            value.shape = ir.Shape(
                [name or dim for name, dim in zip(names, shape.dims, strict=True)]
            )


def _read_ranges(program: Program) -> None:
    """Take over the ranges that torch.export left in the graph, or our backend in the model."""
    text = program.graph.metadata_props.get(RANGES_KEY, "")
    text += program.model.metadata_props.get(RANGES_KEY, "")
    for name, lower, upper in _RANGE.findall(text):
        if name in program.bounds:
            low = int(lower) if lower.lstrip("-").isdigit() else 0
            high = int(upper) if upper.isdigit() else None
            if high is None or high >= max(0, low):
                program.bounds[name] = Bounds(max(0, low), high)


def _apply(program: Program, given: Mapping[str, Bounds], renamed: Mapping[str, str]) -> None:
    for name, limits in given.items():
        here = renamed.get(name, name)
        if here not in program.bounds:
            near = difflib.get_close_matches(name, list(program.bounds), n=1)
            known = ", ".join(list(program.bounds)[:_MANY]) or "none"
            raise OptionError(
                "dimension-unknown",
                f"the model has no dimension '{name}'",
                hint=f"did you mean '{near[0]}'?" if near else f"its dimensions: {known}",
            )
        lower, upper = limits
        if lower < 0 or (upper is not None and upper < lower):
            raise OptionError(
                "bounds-empty", f"no size of '{name}' is from {lower} to {upper}, both included"
            )
        program.bounds[here] = Bounds(lower, upper)
