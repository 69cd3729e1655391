"""Names and bounds of the dimensions of an exported program.

torch calls an open dimension ``s77``; the user called it ``batch``, or did not name it. In: the
exported program and what the user said about each axis. Out: a name and bounds per symbol of
torch, and the same names in the shapes of the ONNX model. Imports nothing of torch.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from graphopt.errors import OptionError
from graphopt.ir.dims import Bounds, parse_dim, symbols_of
from graphopt.ir.program import RANGES_KEY, fresh_symbol, graphs_of

AxisSpecs = Mapping[int, Any]
_WORD = re.compile(r"[A-Za-z_]\w*")


@dataclass
class Naming:
    """What the symbols of torch are called, and between which sizes they lie.

    Attributes:
        names: Name by symbol of torch, in order of appearance.
        bounds: Bounds by name.
        notes: Sentences for the report.
    """

    names: dict[str, str] = field(default_factory=dict)
    bounds: dict[str, Bounds] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def name_symbols(
    exported: Any, inputs: Sequence[tuple[str, Any]], specs: Sequence[AxisSpecs]
) -> Naming:
    """Name every symbol of an exported program.

    A symbol takes the name of the first ``Dim`` that stands for it; one without a ``Dim`` is called
    after the first value and axis that has it alone, ``tokens_dim1``; one that is nowhere alone,
    the half of an even size, after the first expression that it is in, ``tokens_dim1_root``.

    Args:
        exported: The ``ExportedProgram`` after decomposition.
        inputs: Name and fake tensor (or number) of each input, in order.
        specs: For each input, what the user said about its axes: ``Dim``, hint or number.

    Raises:
        OptionError: a named axis has a fixed size, or its bounds exclude those of the program.
    """
    naming = Naming()
    ranges = _ranges(exported)
    for (name, value), axes in zip(inputs, specs, strict=True):
        for axis, spec in axes.items():
            _take_name(naming, ranges, name, value, axis, spec)
    inside: dict[str, str] = {}
    for name, value in _values(exported, inputs):
        for axis, dim in enumerate(getattr(value, "shape", ())):
            place = f"{name}_dim{axis}"
            for symbol in _symbols(dim):
                if symbol in ranges and symbol not in naming.names:
                    inside.setdefault(symbol, f"{place}_root")
                    if symbol == _expression(dim):
                        _add(naming, symbol, place, ranges)
    for symbol, place in inside.items():
        if symbol not in naming.names:
            _add(naming, symbol, place, ranges)
    return naming


def _add(naming: Naming, symbol: str, wanted: str, ranges: Mapping[str, Bounds]) -> None:
    naming.names[symbol] = str(fresh_symbol(naming.bounds, wanted, ranges[symbol]))


def _ranges(exported: Any) -> dict[str, Bounds]:
    """Return the bounds of each integer symbol of torch."""
    return {
        str(symbol): Bounds(max(0, _number(limits.lower) or 0), _number(limits.upper))
        for symbol, limits in exported.range_constraints.items()
        if symbol.is_Symbol and limits.is_int
    }


def _number(limit: Any) -> int | None:
    text = str(limit)
    return int(text) if text.lstrip("-").isdigit() else None


def _expression(dim: Any) -> str:
    return str(dim) if isinstance(dim, int) else str(dim.node.expr)


def _symbols(dim: Any) -> list[str]:
    return [] if isinstance(dim, int) else sorted(str(one) for one in dim.node.expr.free_symbols)


def _values(exported: Any, inputs: Sequence[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yield name and fake value of the inputs, then of everything computed from them."""
    yield from inputs
    for node in exported.graph.nodes:
        value = node.meta.get("val") if node.op == "call_function" else None
        for one in value if isinstance(value, (tuple, list)) else (value,):
            yield node.name, one


def _take_name(
    naming: Naming, ranges: Mapping[str, Bounds], name: str, value: Any, axis: int, spec: Any
) -> None:
    """Use what the user said about one axis of one input."""
    dim = value.shape[axis]
    wanted = getattr(getattr(spec, "root", spec), "__name__", None)
    # A number may still be wrapped as a symbolic integer.
    if _expression(dim).isdigit():
        if wanted is not None:
            raise OptionError(
                "dynamic-shapes-refused",
                f"'{wanted}' is axis {axis} of input '{name}', whose size is always {dim} here",
                hint="leave this axis out of dynamic_shapes",
            )
        if spec is not None and not isinstance(spec, int):
            naming.notes.append(f"axis {axis} of input '{name}' always has size {dim}")
        return
    symbols = _symbols(dim)
    if wanted is None or len(symbols) != 1 or symbols[0] not in ranges:
        return
    symbol = symbols[0]
    if symbol not in naming.names:
        _add(naming, symbol, wanted, ranges)
    if not hasattr(spec, "root"):
        _narrow(naming, naming.names[symbol], spec)


def _narrow(naming: Naming, name: str, spec: Any) -> None:
    """Intersect the bounds of a symbol with those of the user's ``Dim``."""
    here = naming.bounds[name]
    lower, upper = max(here.lower, _number(spec.min) or 0), _number(spec.max)
    if upper is None or (here.upper is not None and here.upper < upper):
        upper = here.upper
    if upper is not None and upper < lower:
        raise OptionError(
            "dynamic-shapes-refused",
            f"the exported program accepts '{name}' from {here.lower} to {here.upper}, "
            f"dynamic_shapes says {spec.min} to {spec.max}",
            hint="export the module again with the range that is needed",
        )
    naming.bounds[name] = Bounds(lower, upper)


def rename_symbols(model: ir.Model, naming: Naming) -> None:
    """Write the names into every shape of the model, and the bounds where torch keeps its own.

    The loader of ONNX files reads the bounds back from there, so they survive a saved file.
    """
    cache: dict[str, int | str | None] = {}
    for graph in graphs_of(model.graph):
        values = [*graph.inputs, *graph.initializers.values()]
        for node in graph:
            values.extend(node.outputs)
            # The exporter leaves its own graph here, which would live as long as the program.
            node.meta.clear()
        for value in values:
            value.meta.clear()
            _rename_shape(value, naming.names, cache)
    ranges = (f"{name}: {_range(bounds)}" for name, bounds in naming.bounds.items())
    model.graph.metadata_props[RANGES_KEY] = f"{{{', '.join(ranges)}}}"


def _range(bounds: Bounds) -> str:
    return f"VR[{bounds.lower}, {'int_oo' if bounds.upper is None else bounds.upper}]"


def _rename_shape(
    value: ir.Value, names: Mapping[str, str], cache: dict[str, int | str | None]
) -> None:
    shape = value.shape
    if shape is None or shape.is_static():
        return
    dims: list[int | str | None] = []
    for dim in shape.dims:
        text = None if isinstance(dim, int) else dim.value
        if text is None:
            dims.append(dim if isinstance(dim, int) else None)
            continue
        if text not in cache:
            cache[text] = _renamed(text, names)
        dims.append(cache[text])
    value.shape = ir.Shape(dims)


def _renamed(text: str, names: Mapping[str, str]) -> int | str | None:
    """Return a dimension in the user's names; None when torch itself does not say what it is.

    Its type promotion runs operators again, which gives sizes that depend on data new symbols
    without bounds: ``u3`` for what is ``u0`` elsewhere.
    """
    parsed = parse_dim(text)
    if parsed is None or not symbols_of(parsed) <= names.keys():
        return None
    renamed = parse_dim(_WORD.sub(lambda word: names.get(word[0], word[0]), text))
    return renamed if renamed is None or isinstance(renamed, int) else str(renamed)
