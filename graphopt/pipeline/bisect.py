"""Find the pass that breaks the numbers or raises the peak, then the nodes it rewrote there.

In: a way to load the model afresh, the passes, and a verdict on a program. Out: the first pass
after which the verdict is bad, and the rewritten nodes that differ. The verdict need not be
monotone: the search finds a pass before which it is good and after which it is bad, which is what
a user looks for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from graphopt.errors import OptionError
from graphopt.ir.program import Program
from graphopt.ir.text import diff_lines, program_lines
from graphopt.pipeline.base import Pass
from graphopt.pipeline.options import pass_to_text
from graphopt.pipeline.pipeline import PassPipeline


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
        changed: Lines of the graph that it removed and added.
        runs: How many times the pipeline ran.
    """

    index: int
    options: str
    before: Verdict
    after: Verdict
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
    program = load()
    PassPipeline(tuple(passes[:good])).run(program)
    before_lines = program_lines(program)
    PassPipeline((passes[good],)).run(program)
    changed = diff_lines(before_lines, program_lines(program))
    return Culprit(
        index=bad,
        options=pass_to_text(passes[good]),
        before=verdicts[good],
        after=verdicts[bad],
        changed=tuple(changed),
        runs=runs + 1,
    )
