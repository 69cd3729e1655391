"""Lowers the peak of an order: part by part, rule by rule, then by exact search.

Where every order has run the same steps, the order falls into parts that do not touch each other.
The part with the highest peak is improved until it is no longer the highest, or until it is proven
or known to be stuck; then its peak is the peak of the whole. Parts below the final peak keep the
order in which they came.
"""

import heapq
from dataclasses import dataclass
from itertools import pairwise

from graphopt.memory.ordering.board import Board
from graphopt.memory.ordering.bounds import lower_bound
from graphopt.memory.ordering.contract import unit_graph
from graphopt.memory.ordering.heuristics import HEURISTICS, as_given
from graphopt.memory.ordering.hills import hills_and_valleys
from graphopt.memory.ordering.masks import MaskGraph
from graphopt.memory.ordering.regions import cut_positions
from graphopt.memory.ordering.search import Effort, beam_order, find_order

# Masks are as wide as a part has units: beyond this their arithmetic is no longer cheap.
_MOST_MASKED_UNITS = 4000
# A unit is simulated again with every step that joins it, so long ones are for small parts.
_UNIT_STEPS_SMALL, _UNIT_STEPS_LARGE = 256, 24
_LARGE_PART = 4000
# Above this, searching in windows first finds in little time what the search of all would not.
_MANY_UNITS = 60
_BEAM_WIDTH = 24
_MOST_BEAM_UNITS = 400
_WINDOW_STEPS = 64
_MOST_WINDOW_STEPS = 1024
# A search that may visit fewer nodes than this is not worth its start.
_LEAST_SHARE = 8


@dataclass(frozen=True)
class Improved:
    """What came out.

    Attributes:
        order: The steps.
        bound_bytes: Bytes that every order needs, by the costs that were searched.
        method: What found the order of the highest part that was changed, "given" for none.
    """

    order: tuple[int, ...]
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
    parts = [_Part(board, start, end) for start, end in pairwise(cuts)]
    bound = max((part.bound for part in parts), default=0)
    heap = [(-part.peak, number) for number, part in enumerate(parts)]
    heapq.heapify(heap)
    while heap:
        top, number = heapq.heappop(heap)
        part = parts[number]
        if part.is_finished or -top <= max(bound, enough):
            break
        next_peak = -heap[0][0] if heap else 0
        part.improve(effort, max(bound, enough, next_peak - 1))
        bound = max(bound, part.bound)
        heapq.heappush(heap, (-part.peak, number))
    changed = [(part.peak, part.method) for part in parts if part.method]
    return Improved(tuple(board.order), bound, max(changed, default=(0, "given"))[1])


class _Part:
    """Positions ``[start, end)`` that every order fills with the same steps.

    Its best order so far is on the board.

    Attributes:
        bound: Bytes that every order needs somewhere in the part.
        is_finished: Nothing more is tried: proven, or given up.
        method: What found its order, "" for the order in which it came.
    """

    def __init__(self, board: Board, start: int, end: int) -> None:
        self.board = board
        self.start = start
        self.end = end
        self.is_finished = end - start == 1
        self.bound = board.runs[start] if self.is_finished else 0
        self.method = ""
        self._prepared = False

    @property
    def peak(self) -> int:
        """Most bytes alive at a step of the part."""
        return max(self.board.runs[self.start : self.end])

    def improve(self, effort: Effort, enough: int) -> None:
        """Lower the peak to ``enough``, or as far as it goes within ``effort``.

        What is low enough for now comes back when it is the highest part again.
        """
        self.effort = effort
        self.enough = enough
        if not self._prepared:
            self._prepare()
        if len(self.graph.units) > _MANY_UNITS:
            self._search_windows()
        self._search()
        self.bound = min(self.bound, self.peak)
        self.is_finished = self.peak <= self.bound or self.peak > enough

    def _prepare(self) -> None:
        """Join steps to units, take the static bound and try every simple rule."""
        self._prepared = True
        self.region = self.board.region(self.start, self.end)
        is_large = self.end - self.start > _LARGE_PART
        self.graph = unit_graph(self.region, _UNIT_STEPS_LARGE if is_large else _UNIT_STEPS_SMALL)
        order = as_given(self.graph)
        self.bound = lower_bound(self.graph, order, self.graph.runs_of(order))
        for name, rule in HEURISTICS:
            if self.peak <= self.bound:
                return
            self._take(rule(self.graph), name)
        tree = hills_and_valleys(self.graph)
        self._take(tree.order, "hills and valleys")
        if tree.is_optimal:
            self.bound = self.peak

    @property
    def _is_done(self) -> bool:
        return self.peak <= max(self.enough, self.bound)

    def _take(self, units: list[int], method: str) -> bool:
        """Put an order of the units on the board when it is lower; return whether it was."""
        steps = self.graph.steps_of(units)
        if max(self.region.runs_of(steps)) >= self.peak:
            return False
        self.board.replace(self.start, self.region, steps)
        self.method = method
        return True

    def _search(self) -> None:
        """Search downwards until the peak is proven, low enough, or the effort is spent."""
        if self._is_done or self.effort.is_spent or len(self.graph.units) > _MOST_MASKED_UNITS:
            return
        masks = MaskGraph(self.graph)
        share = max(1, self.effort.nodes_left // 4)
        while not self._is_done and not self.effort.is_spent:
            answer = find_order(masks, self.peak - 1, self.effort, share)
            if answer.needed_bytes is not None:
                self.bound = self.peak
            elif answer.order is None or not self._take(answer.order, "exact search"):
                break
        if not self._is_done and len(self.graph.units) <= _MOST_BEAM_UNITS:
            self.effort.spend(len(self.graph.units) * _BEAM_WIDTH // 8)
            self._take(beam_order(masks, _BEAM_WIDTH), "beam search")
        self._close_gap(masks, share)

    def _close_gap(self, masks: MaskGraph, share: int) -> None:
        """Search between bound and peak, where failures come sooner and successes gain more."""
        low = self.bound
        while not self._is_done and not self.effort.is_spent and share >= _LEAST_SHARE:
            low = max(low, self.bound)
            middle = (low + self.peak - 1) // 2
            if middle <= low:
                break
            answer = find_order(masks, middle, self.effort, share)
            if answer.needed_bytes is not None:
                self.bound = min(answer.needed_bytes, self.peak)
            elif answer.order is None or not self._take(answer.order, "exact search"):
                # Undecided: it is no easier above, so what is left of the gap gets less.
                share //= 2
                low = middle

    def _search_windows(self) -> None:
        """Search in stretches around the highest step, wider and wider while they do not help."""
        width = _WINDOW_STEPS
        while not self._is_done and not self.effort.is_spent:
            peak = self.peak
            place = self.board.runs.index(peak, self.start, self.end)
            low = max(self.start, min(place - width // 2, self.end - width))
            high = min(self.end, low + width)
            if self._search_window(low, high, peak):
                width = _WINDOW_STEPS
            elif width >= _MOST_WINDOW_STEPS or high - low == self.end - self.start:
                break
            else:
                width *= 2

    def _search_window(self, low: int, high: int, peak: int) -> bool:
        region = self.board.region(low, high)
        masks = MaskGraph(unit_graph(region, _UNIT_STEPS_SMALL))
        # Building the window costs about as much as this many nodes.
        self.effort.spend((high - low) // 4)
        answer = find_order(masks, peak - 1, self.effort, max(1, self.effort.nodes_left // 8))
        if answer.order is None:
            return False
        self.board.replace(low, region, masks.graph.steps_of(answer.order))
        self.method = "search in windows"
        return True
