"""Named dimensions become numbers, for runtimes that take fixed shapes only."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.errors import OptionError
from graphopt.ir.dims import Dim, substitute
from graphopt.ir.program import bounds_in, dims_of, graphs_of, set_dims
from graphopt.pipeline.base import Pass, PassResult


@dataclass(frozen=True)
class FixDimensions(Pass):
    """Give named dimensions the sizes they are bound to, in every shape of the model.

    Fires when:
        1. A shape names a dimension that has a size in ``sizes``.

    Leaves alone:
        1. Dimensions without a size.
        2. Shapes that are not known yet: inference finds them from the inputs.

    Preserves:
        Nodes, values, names and weights. The shapes of inputs and outputs change, which is what it
        is for: what depends on a size only can then be folded.

    Options:
        sizes: Sizes of named dimensions as ``name=size``.

    Example:
        With ``sizes=[batch=4]`` the input ``float[batch,3] x`` becomes ``float[4,3] x``.
    """

    name: ClassVar[str] = "fix-dimensions"
    changes_signature: ClassVar[bool] = True

    sizes: tuple[str, ...] = ()

    def call(self, model: ir.Model) -> PassResult:
        """Substitute the sizes in every shape of ``model``.

        Raises:
            OptionError: a size is none, or is outside the bounds of its dimension.
        """
        sizes = parse_sizes(self.sizes)
        bounds = bounds_in(model)
        for name, size in sizes.items():
            limits = bounds.get(name)
            if limits is not None and (
                size < limits.lower or (limits.upper is not None and size > limits.upper)
            ):
                raise OptionError(
                    "dimension-out-of-bounds",
                    f"dimension '{name}' = {size} is outside its bounds "
                    f"{limits.lower}..{'' if limits.upper is None else limits.upper}",
                )
        replacements: dict[str, Dim] = dict(sizes)
        changed = 0
        for graph in graphs_of(model.graph):
            values = [*graph.inputs, *graph.initializers.values()]
            values += [value for node in graph for value in node.outputs]
            for value in values:
                dims = dims_of(value)
                if dims is None:
                    continue
                fixed = tuple(substitute(dim, replacements) for dim in dims)
                if fixed != dims:
                    set_dims(value, fixed)
                    changed += 1
        return PassResult(model, changed > 0, rewrites=changed)


def parse_sizes(texts: tuple[str, ...]) -> dict[str, int]:
    """Return ``{"batch": 4}`` from ``("batch=4",)``.

    Raises:
        OptionError: a text is no ``name=size``.
    """
    sizes = {}
    for text in texts:
        name, _, size = text.partition("=")
        if not name or not size.isdecimal():
            raise OptionError(
                "dim-unreadable", f"not a size: '{text}'", hint="write sizes=[batch=4]"
            )
        sizes[name] = int(size)
    return sizes
