"""Lowers the peak of an order: part by part, rule by rule, then by exact search.

Where every order has run the same steps, the order falls into parts that do not touch each other.
The part with the highest peak is improved until it is no longer the highest, or until it is proven
or known to be stuck; then its peak is the peak of the whole. Parts below the final peak keep the
order in which they came.
"""

import heapq
from dataclasses import dataclass, field

from graphopt.memory.ordering.board import Board
from graphopt.memory.ordering.bounds import lower_bound
from graphopt.memory.ordering.contract import UnitGraph, unit_graph
from graphopt.memory.ordering.heuristics import HEURISTICS, as_given
from graphopt.memory.ordering.hills import hills_and_valleys
from graphopt.memory.ordering.masks import MaskGraph
from graphopt.memory.ordering.regions import Region, cut_positions
from graphopt.memory.ordering.search import Effort, beam_order, find_order

# Masks are as wide as a region has units: beyond this their arithmetic is no longer cheap.
_MOST_MASKED_UNITS = 4000
# A unit is simulated again with every step that joins it, so long ones are for small regions.
_UNIT_STEPS_SMALL, _UNIT_STEPS_LARGE = 256, 24
_LARGE_REGION = 4000
_MANY_UNITS = 60
_BEAM_WIDTH = 24
_MOST_BEAM_UNITS = 400
_LEAST_SHARE = 8
_WINDOW_STEPS = 64
_MOST_WINDOW_STEPS = 1024


@dataclass
class _Part:
    """Positions ``[start, end)`` that every order fills with the same steps.

    Attributes:
        start: First position.
        end: First position after it.
        bound: Bytes that every order needs somewhere in the part.
        is_finished: Nothing more is tried: proven, or given up.
        method: What found its order, "" for the order in which it came.
    """

    start: int
    end: int
    bound: int = field(default=0)
    is_finished: bool = field(default=False)
    method: str = field(default="")


@dataclass(frozen=True)
class Improved:
    """What came out.

    Attributes:
        order: The steps.
        peak_bytes: Most bytes alive, by the costs that were searched.
        bound_bytes: Bytes that every order needs, by these costs.
        method: What found the order of the part with the highest peak that was changed.
    """

    order: list[int]
    peak_bytes: int
    bound_bytes: int
    method: str


def improve(board: Board, effort: Effort, *, enough: int = 0) -> Improved:
    """Return the lowest order found, starting from the order on ``board``.

    Args:
        board: The order; it is changed.
        effort: What may be spent on search. The rules always run.
        enough: Nothing is gained below this peak.
    """
    cuts = cut_positions(board.costs, board.order)
    parts = [_Part(start, end) for start, end in zip(cuts, cuts[1:], strict=False)]
    for part in parts:
        if part.end - part.start == 1:
            part.bound, part.is_finished = board.runs[part.start], True
    heap = [(-max(board.runs[p.start : p.end]), p.start, p) for p in parts]
    heapq.heapify(heap)
    methods: list[tuple[int, str]] = []
    while heap:
        top, _, part = heap[0]
        enough = max(enough, max(part.bound for part in parts))
        if part.is_finished or -top <= enough:
            break
        heapq.heappop(heap)
        next_peak = -heap[0][0] if heap else 0
        _improve_part(board, part, effort, max(enough, next_peak - 1))
        peak = max(board.runs[part.start : part.end])
        if part.method:
            methods.append((peak, part.method))
        heapq.heappush(heap, (-peak, part.start, part))
    bound = max((part.bound for part in parts), default=0)
    method = max(methods, default=(0, "given"))[1]
    return Improved(board.order, board.peak, bound, method)


def _improve_part(board: Board, part: _Part, effort: Effort, enough: int) -> None:
    """Lower the peak of ``part`` to ``enough`` or as far as it goes."""
    start, end = part.start, part.end
    region = board.region(start, end)
    is_large = end - start > _LARGE_REGION
    graph = unit_graph(region, _UNIT_STEPS_LARGE if is_large else _UNIT_STEPS_SMALL)
    attempt = _Attempt(board, part, region, graph, effort, enough)
    attempt.take_bound()
    attempt.try_rules()
    if len(graph.units) > _MANY_UNITS:
        attempt.search_windows()
    attempt.search()
    part.bound = min(part.bound, attempt.peak)
    # What is low enough for now comes back when it is the highest part again.
    part.is_finished = attempt.peak <= part.bound or attempt.peak > enough


class _Attempt:
    """One part while it is improved: its best order so far is on the board."""

    def __init__(
        self,
        board: Board,
        part: _Part,
        region: Region,
        graph: UnitGraph,
        effort: Effort,
        enough: int,
    ) -> None:
        self.board = board
        self.part = part
        self.region = region
        self.graph = graph
        self.effort = effort
        self.enough = enough

    @property
    def peak(self) -> int:
        """Peak of the part as it is on the board."""
        return max(self.board.runs[self.part.start : self.part.end])

    @property
    def is_done(self) -> bool:
        """Whether the part is low enough, or as low as it gets."""
        return self.peak <= max(self.enough, self.part.bound)

    def take_bound(self) -> None:
        """Take the static lower bound."""
        order = as_given(self.graph)
        bound = lower_bound(self.graph, order, self.graph.runs_of(order))
        self.part.bound = max(self.part.bound, bound)

    def take(self, units: list[int], method: str) -> bool:
        """Put an order of the units on the board when it is lower; return whether it was."""
        steps = self.graph.steps_of(units)
        if max(self.region.runs_of(steps)) >= self.peak:
            return False
        self.board.replace(self.part.start, self.region, steps)
        self.part.method = method
        return True

    def try_rules(self) -> None:
        """Try every simple rule."""
        for name, rule in HEURISTICS:
            if self.is_done:
                return
            self.take(rule(self.graph), name)
        if not self.is_done:
            tree = hills_and_valleys(self.graph)
            self.take(tree.order, "hills and valleys")
            if tree.is_optimal:
                self.part.bound = self.peak

    def search(self) -> None:
        """Search downwards until the peak is proven, low enough, or the effort is spent."""
        if self.is_done or self.effort.is_spent or len(self.graph.units) > _MOST_MASKED_UNITS:
            return
        masks = MaskGraph(self.graph)
        share = max(1, self.effort.nodes_left // 4)
        while not self.is_done and not self.effort.is_spent:
            answer = find_order(masks, self.peak - 1, self.effort, share)
            if answer.needed_bytes is not None:
                self.part.bound = self.peak
            elif answer.order is None or not self.take(answer.order, "exact search"):
                break
        if not self.is_done and len(self.graph.units) <= _MOST_BEAM_UNITS:
            self.effort.spend(len(self.graph.units) * _BEAM_WIDTH // 8)
            self.take(beam_order(masks, _BEAM_WIDTH), "beam search")
        self._close_gap(masks, share)

    def _close_gap(self, masks: MaskGraph, share: int) -> None:
        """Search between bound and peak, where failures come sooner and successes gain more."""
        low = self.part.bound
        while not self.is_done and not self.effort.is_spent and share >= _LEAST_SHARE:
            low = max(low, self.part.bound)
            middle = (low + self.peak - 1) // 2
            if middle <= low:
                break
            answer = find_order(masks, middle, self.effort, share)
            if answer.needed_bytes is not None:
                self.part.bound = min(answer.needed_bytes, self.peak)
            elif answer.order is None or not self.take(answer.order, "exact search"):
                # Undecided: it is no easier above, so what is left of the gap gets less.
                share //= 2
                low = middle

    def search_windows(self) -> None:
        """Search in stretches around the highest step, wider and wider while they do not help."""
        width = _WINDOW_STEPS
        start, end = self.part.start, self.part.end
        while not self.is_done and not self.effort.is_spent:
            peak = self.peak
            place = self.board.runs.index(peak, start, end)
            low = max(start, min(place - width // 2, end - width))
            high = min(end, low + width)
            if self._search_window(low, high, peak):
                width = _WINDOW_STEPS
            elif width >= _MOST_WINDOW_STEPS or high - low >= end - start:
                break
            else:
                width *= 2

    def _search_window(self, low: int, high: int, peak: int) -> bool:
        region = self.board.region(low, high)
        masks = MaskGraph(unit_graph(region, _UNIT_STEPS_SMALL))
        self.effort.spend((high - low) // 4)
        answer = find_order(masks, peak - 1, self.effort, max(1, self.effort.nodes_left // 8))
        if answer.order is None:
            return False
        self.board.replace(low, region, masks.graph.steps_of(answer.order))
        self.part.method = "search in windows"
        return True
