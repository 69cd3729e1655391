"""An order under improvement: positions, and the bytes alive at every step of it."""

from collections.abc import Sequence

from graphopt.memory.ordering.costs import Costs
from graphopt.memory.ordering.regions import Region, region_of


class Board:
    """An order of all steps with its bytes; stretches of it can be replaced.

    Attributes:
        costs: The costs of the flow.
        order: The steps.
        runs: Bytes alive while each step of ``order`` runs.
        levels: Bytes alive before each step of ``order``; one more for the end.
    """

    def __init__(self, costs: Costs, order: Sequence[int]) -> None:
        self.costs = costs
        self.order = list(order)
        self._position = [0] * len(self.order)
        for place, step in enumerate(self.order):
            self._position[step] = place
        self.levels = [costs.start_bytes]
        whole = self.region(0, len(self.order))
        runs, levels = whole.run(self.order)
        self.runs = [costs.start_bytes + bytes_ for bytes_ in runs]
        self.levels += [costs.start_bytes + bytes_ for bytes_ in levels]
        if self.runs:
            self.runs[0] += costs.first_bytes

    @property
    def peak(self) -> int:
        """Most bytes alive at any step."""
        return max(self.runs, default=0)

    def region(self, start: int, end: int) -> Region:
        """Return the steps at the positions ``[start, end)`` as a region."""
        return region_of(self.costs, self.order, start, end, self._position, self.levels[start])

    def replace(self, start: int, region: Region, order: Sequence[int]) -> None:
        """Put the steps of ``region``, which starts at position ``start``, in ``order``."""
        runs, levels = region.run(order)
        end = start + len(order)
        self.order[start:end] = order
        for place in range(start, end):
            self._position[self.order[place]] = place
        base = self.levels[start]
        self.runs[start:end] = [base + bytes_ for bytes_ in runs]
        if not start and runs:
            self.runs[0] += region.first_bytes
        self.levels[start + 1 : end + 1] = [base + bytes_ for bytes_ in levels]
