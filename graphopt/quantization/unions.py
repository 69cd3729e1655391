"""Values in groups that only grow: union-find."""

import onnx_ir as ir


class Unions:
    """Groups of values; each has one value that stands for it."""

    def __init__(self) -> None:
        self._parents: dict[ir.Value, ir.Value] = {}

    def root(self, value: ir.Value) -> ir.Value:
        """Return the value that stands for the group of ``value``."""
        while True:
            parent = self._parents.get(value, value)
            if parent is value:
                return value
            self._parents[value] = self._parents.get(parent, parent)
            value = parent

    def unite(self, source: ir.Value, result: ir.Value) -> None:
        """Put both into one group, for which the root of ``source`` stands."""
        a, b = self.root(source), self.root(result)
        if a is not b:
            self._parents[b] = a
