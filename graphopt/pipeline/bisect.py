"""Find the pass that breaks the numbers or raises the peak, then the rewrite in it that does.

In: a way to load the model afresh, the passes, and a verdict on a program. Out: a pass before which
the verdict is good and after which it is bad, and the fewest nodes that it must be allowed to touch
for that. The verdict need not be monotone over the passes.

The rewrite is found by freezing: nodes get a domain that no pass knows for as long as the pass
runs, so every pass leaves them alone without being told. Halves of the nodes that the pass changed
are frozen in turn, as in delta debugging (Zeller, Hildebrandt, IEEE TSE 28(2), 2002).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from graphopt.errors import OptionError
from graphopt.ir.program import Program, graphs_of
from graphopt.ir.text import diff_lines, program_lines
from graphopt.pipeline.base import Pass
from graphopt.pipeline.options import pass_to_text
from graphopt.pipeline.pipeline import PassPipeline

_FROZEN = "graphopt.frozen"
# More parts are not tried: a rewrite touches a few neighbouring nodes.
_MOST_PARTS = 16


@dataclass(frozen=True)
class Verdict:
    """What was measured after some passes.

    Attributes:
        bad: Whether the property is lost.
        value: The measured figure, for people.
        text: The figure with its unit.
    """

    bad: bool
    value: float
    text: str


@dataclass(frozen=True)
class Culprit:
    """The pass after which the property is lost.

    Attributes:
        index: Position in the pipeline, from 1.
        options: The pass as text.
        before: Verdict before it; after likewise.
        nodes: Names of the nodes, as they were before the pass, that it must touch to be guilty.
        changed: Lines of the graph that it removed and added when it may touch only these.
        runs: How many times the pipeline ran.
    """

    index: int
    options: str
    before: Verdict
    after: Verdict
    nodes: tuple[str, ...]
    changed: tuple[str, ...]
    runs: int


def bisect_passes(
    load: Callable[[], Program], passes: Sequence[Pass], judge: Callable[[Program], Verdict]
) -> Culprit | None:
    """Return the guilty pass, None when the result of all passes is good.

    Args:
        load: Returns the model as it comes in, a fresh one each time.
        passes: The pipeline.
        judge: Measures a program.

    Raises:
        OptionError: the model is bad before any pass.
    """
    runs = 0

    def after(count: int) -> tuple[Verdict, Program]:
        nonlocal runs
        runs += 1
        program = load()
        PassPipeline(tuple(passes[:count])).run(program)
        return judge(program), program

    first, _ = after(0)
    if first.bad:
        raise OptionError(
            "bisect-bad-input", f"the model is bad before any pass runs: {first.text}"
        )
    last, _ = after(len(passes))
    if not last.bad:
        return None
    good, bad = 0, len(passes)
    verdicts = {0: first, len(passes): last}
    while bad - good > 1:
        middle = (good + bad) // 2
        verdicts[middle], _ = after(middle)
        good, bad = (good, middle) if verdicts[middle].bad else (middle, bad)

    def alone(free: Sequence[str] | None) -> tuple[Verdict, list[str], list[str]]:
        """Run the guilty pass where it may touch only the nodes ``free``; None for all."""
        nonlocal runs
        runs += 1
        program = load()
        PassPipeline(tuple(passes[:good])).run(program)
        lines = program_lines(program)
        touched = _node_texts(program)
        with _frozen(program, () if free is None else [n for n in touched if n not in set(free)]):
            PassPipeline((passes[good],)).run(program)
        changed = diff_lines(lines, program_lines(program))
        kept = _node_texts(program)
        gone = [name for name, text in touched.items() if kept.get(name) != text]
        return judge(program), changed, gone

    _, changed, sites = alone(None)
    nodes = _fewest(sites, lambda free: alone(free)[0].bad)
    if len(nodes) < len(sites):
        _, changed, _ = alone(nodes)
    return Culprit(
        index=bad,
        options=pass_to_text(passes[good]),
        before=verdicts[good],
        after=verdicts[bad],
        nodes=tuple(nodes),
        changed=tuple(changed),
        runs=runs,
    )


def _node_texts(program: Program) -> dict[str, str]:
    """Return operator, inputs and outputs of every node, by name."""
    return {
        node.name or "": f"{node.domain}.{node.op_type} {[v and v.name for v in node.inputs]} "
        f"{[v.name for v in node.outputs]} {sorted(node.attributes)}"
        for graph in graphs_of(program.graph)
        for node in graph
    }


@contextmanager
def _frozen(program: Program, names: Sequence[str]) -> Iterator[None]:
    """Hide nodes from every pass: for as long as this lasts, nobody knows their operator."""
    chosen = set(names)
    nodes = [n for g in graphs_of(program.graph) for n in g if n.name in chosen]
    domains = [node.domain for node in nodes]
    imports = program.graph.opset_imports
    if nodes:
        imports[_FROZEN] = 1
    for node in nodes:
        node.domain = _FROZEN
    try:
        yield
    finally:
        for node, domain in zip(nodes, domains, strict=True):
            node.domain = domain
        imports.pop(_FROZEN, None)


def _fewest(sites: list[str], is_bad: Callable[[list[str]], bool]) -> list[str]:
    """Return a small part of ``sites`` that is still bad when only it may be touched."""
    parts = 2
    while len(sites) > 1:
        size = -(-len(sites) // parts)
        pieces = [sites[i : i + size] for i in range(0, len(sites), size)]
        smaller = next((piece for piece in pieces if is_bad(piece)), None)
        if smaller is not None:
            sites, parts = smaller, 2
        elif size > 1 and parts < _MOST_PARTS:
            parts *= 2
        else:
            break
    return sites
