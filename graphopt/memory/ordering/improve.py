"""Lowers the peak of an order: part by part, rule by rule, then by exact search.

Where every order has run the same steps, the order falls into parts that do not touch each other.
The part with the highest peak is improved until it is no longer the highest, or until it is proven
or known to be stuck; then its peak is the peak of the whole. Parts below the final peak keep the
order in which they came.
"""

import heapq
from dataclasses import dataclass, field

from graphopt.memory.ordering.board import Board
from graphopt.memory.ordering.contract import UnitGraph, unit_graph
from graphopt.memory.ordering.heuristics import HEURISTICS
from graphopt.memory.ordering.masks import MaskGraph
from graphopt.memory.ordering.regions import Region, cut_positions
from graphopt.memory.ordering.search import Effort, beam_order, find_order

# Masks are as wide as a region has units: beyond this their arithmetic is no longer cheap.
_MOST_MASKED_UNITS = 4000
# A unit is simulated again with every step that joins it, so long ones are for small regions.
_UNIT_STEPS_SMALL, _UNIT_STEPS_LARGE = 256, 24
_LARGE_REGION = 4000
_BEAM_WIDTH = 24
_MOST_BEAM_UNITS = 400
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
    if len(graph.units) <= _MOST_MASKED_UNITS:
        attempt.use_masks()
    attempt.try_rules()
    attempt.search()
    attempt.search_windows()
    attempt.finish()


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
        self.masks: MaskGraph | None = None

    @property
    def peak(self) -> int:
        """Peak of the part as it is on the board."""
        return max(self.board.runs[self.part.start : self.part.end])

    @property
    def is_done(self) -> bool:
        """Whether the part is low enough, or as low as it gets."""
        return self.peak <= max(self.enough, self.part.bound)

    def use_masks(self) -> None:
        """Prepare the exact search and take its static lower bound."""
        self.masks = MaskGraph(self.graph)
        order = list(range(len(self.graph.units)))
        bound = self.masks.lower_bound(order, self.masks.runs_of(order))
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

    def search(self) -> None:
        """Search downwards until the peak is proven, low enough, or the effort is spent."""
        if self.masks is None or self.is_done:
            return
        share = max(1, self.effort.nodes_left // 4)
        while not self.is_done and not self.effort.is_spent:
            answer = find_order(self.masks, self.peak - 1, self.effort, share)
            if answer.needed_bytes is not None:
                self.part.bound = self.peak
            elif answer.order is None or not self.take(answer.order, "exact search"):
                break
        if not self.is_done and len(self.graph.units) <= _MOST_BEAM_UNITS:
            self.effort.spend(len(self.graph.units) * _BEAM_WIDTH // 8)
            self.take(beam_order(self.masks, _BEAM_WIDTH), "beam search")
        self._bisect(share)

    def _bisect(self, share: int) -> None:
        """Close the gap between bound and peak from the inside, where searches end sooner."""
        assert self.masks is not None
        low = self.part.bound
        while not self.is_done and not self.effort.is_spent:
            high = self.peak - 1
            low = max(low, self.part.bound)
            if low >= high:
                break
            middle = (low + high) // 2
            answer = find_order(self.masks, middle, self.effort, share)
            if answer.needed_bytes is not None:
                self.part.bound = min(answer.needed_bytes, self.peak)
            elif answer.order is not None:
                self.take(answer.order, "exact search")
            else:
                # Undecided here: harder above it, so the rest of the gap is worth one try only.
                share //= 2
                low = middle + 1
            if share < 8:
                break

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

    def finish(self) -> None:
        """Decide whether to come back to this part."""
        peak = self.peak
        self.part.bound = min(self.part.bound, peak)
        self.part.is_finished = peak <= self.part.bound or peak > self.enough
