"""Values that must have one scale and zero point, where nothing may be left at another one.

Operators that copy elements share between input and result; operators that join several inputs
share between all of them. What cannot share (a scale that the operator before dictates, a clamp
that saturation replaces) is brought to the common scale in front of the reader.
"""

from collections.abc import Mapping

import onnx_ir as ir

from graphopt.quantization.ranges import Params, Scheme, params_for
from graphopt.quantization.unions import Unions

Range = tuple[float, float]
# A value that others read, too, keeps its own scale when its range is narrower than this part of
# the common one: sharing would cost its other readers more than two of their eight bits.
_NARROW = 0.25


class SharedScales(Unions):
    """Union-find over values, with the range, the clamp and the dictated scale of each group.

    Args:
        limits: Ranges that a value must not leave, because saturation clamps it.
    """

    def __init__(self, limits: Mapping[ir.Value, Range]) -> None:
        super().__init__()
        self._ranges: dict[ir.Value, Range] = {}
        self._limits = dict(limits)
        self._fixed: dict[ir.Value, Params] = {}

    def add(self, value: ir.Value, known: Range) -> None:
        """Tell what range ``value`` needs."""
        root = self.root(value)
        self._ranges[root] = hull(self._ranges.get(root, known), known)
        if value in self._limits:
            own = self._limits[value]
            self._limits[root] = cut(self._limits.get(root), own) or own

    def fix(self, value: ir.Value, params: Params) -> None:
        """Tell what scale ``value`` has, whatever its range."""
        self._fixed[self.root(value)] = params

    def is_known(self, value: ir.Value) -> bool:
        """Return whether a range or a scale of the group of ``value`` was told."""
        root = self.root(value)
        return root in self._ranges or root in self._fixed

    def join_all(self, values: list[ir.Value], result: ir.Value) -> list[int]:
        """Let ``values`` share with ``result``; return the places of those that cannot."""
        dictated = {self._fixed.get(self.root(value)) for value in values}
        if len(dictated) == 1 and None not in dictated and self.root(result) not in self._fixed:
            self.unite(values[0], result)
        own = self.root(result)
        return [place for place, value in enumerate(values) if not self._join(value, own)]

    def _join(self, value: ir.Value, own: ir.Value) -> bool:
        other = self.root(value)
        if other is own:
            return True
        if other in self._fixed or own in self._fixed:
            return self._fixed.get(other) == self._fixed.get(own)
        mine, common = self._ranges[other], hull(self._ranges[other], self._ranges[own])
        shared = len(value.uses()) > 1 or value.is_graph_output()
        narrow = mine[1] - mine[0] < _NARROW * (common[1] - common[0])
        if narrow and shared and not value.is_initializer():
            return False
        limit = cut(self._limits.get(other), self._limits.get(own))
        if limit is not None and (common[0] < limit[0] or common[1] > limit[1]):
            return False
        self._parents[other] = own
        self._ranges[own] = common
        if limit is not None:
            self._limits[own] = limit
        return True

    def params_of(self, value: ir.Value, scheme: Scheme) -> Params:
        """Return scale and zero point of ``value``."""
        root = self.root(value)
        return self._fixed.get(root) or params_for(*self._ranges[root], scheme)


def hull(a: Range, b: Range) -> Range:
    """Return the smallest range that holds both."""
    return min(a[0], b[0]), max(a[1], b[1])


def cut(a: Range | None, b: Range | None) -> Range | None:
    """Return the range that both allow; None allows everything."""
    if a is None or b is None:
        return b if a is None else a
    return max(a[0], b[0]), min(a[1], b[1])
