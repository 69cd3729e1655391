"""If, Loop and Scan: bodies are modules that take the values they read from outside last.

With numbers that are known when torch traces, a body is chosen or repeated there. A condition that
depends on the inputs becomes the operator ``cond`` under ``torch.export``; for TorchScript the
emitter replaces the node by a scripted module (``torch_control``).

Note [cond]: the operator, not the function ``torch.cond``. That one has dynamo capture the bodies
first, which makes sizes of the weights symbolic once it sees two networks of the same form, and
asks sizes of an inner ``If`` where nothing can be assumed about them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from graphopt.backends.torch_ops.small import (
    Small,
    is_tracing,
    numbers_of,
    opposite,
    require,
    shape_numbers,
    tensor_of,
)
from graphopt.errors import UnsupportedError

Body = Callable[..., tuple[Any, ...]]


def if_(
    condition: Any,
    then_body: Body,
    else_body: Body,
    *captures: Any,
    node: str = "",
    assumed: bool | None = None,
) -> tuple[Any, ...]:
    """Run one of two bodies.

    Args:
        condition: Which.
        then_body: The first.
        else_body: The second.
        captures: What the bodies take.
        node: Names the ONNX node in errors.
        assumed: What the condition is taken to be where it depends on open sizes; the file checks
            that when it runs. None: torch narrows the sizes to those of the sample.
    """
    if assumed is not None and _is_open(condition):
        held = condition.items[0] if assumed else opposite(condition.items[0])
        require(held, f"node '{node}': no sample took the branch that these sizes choose")
        return _called(then_body if assumed else else_body, captures)
    picked = _known(condition)
    if picked is not None:
        return _called(then_body if picked else else_body, captures)
    if is_tracing():
        raise UnsupportedError(
            "torch-control-flow", "a condition that depends on the inputs cannot be traced"
        )
    operands = tuple(value for value in captures if isinstance(value, Tensor))
    first, second = _of_tensors(then_body, captures), _of_tensors(else_body, captures)
    choose: Callable[..., tuple[Any, ...]] = torch.ops.higher_order.cond  # Note [cond]
    try:
        return tuple(choose(tensor_of(condition).reshape([]), first, second, operands))
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise UnsupportedError(
            "torch-branch-sizes",
            f"operator If of node '{node}': torch.export captures both branches at the same sizes, "
            f"and one does not take them: {reason[:200]}",
            hint="put fix-dimensions{sizes=[NAME=SIZE;NAME=SIZE]} before the passes, or save as "
            ".onnx or .ts",
            node=node,
        ) from error


def _of_tensors(body: Body, captures: tuple[Any, ...]) -> Body:
    """Return the body as a function of those captures that are tensors; numbers are bound."""

    def run(*tensors: Tensor) -> tuple[Any, ...]:
        left = iter(tensors)
        given = [next(left) if isinstance(value, Tensor) else value for value in captures]
        return tuple(value.clone() for value in _called(body, tuple(given)))

    return run


def _known(condition: Any) -> bool | None:
    """Return the condition where it is known while torch traces, else None."""
    if isinstance(condition, Small):
        item = condition.items[0]
        return None if isinstance(item, Tensor) else bool(item)
    if is_tracing() or torch.compiler.is_compiling():
        return None
    return bool(numbers_of(condition)[0])


def _is_open(condition: Any) -> bool:
    return isinstance(condition, Small) and isinstance(condition.items[0], torch.SymBool)


def _called(body: Body, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    result = body(*inputs)
    return result if isinstance(result, tuple) else (result,)


def loop(
    trips: Any, condition: Any, body: Body, states: int, outputs: int, *values: Any
) -> tuple[Any, ...]:
    """Run a body again and again, the number of times known while torch traces.

    Args:
        trips: How often at most; None for no limit.
        condition: Whether to go on at first; None for yes.
        body: Takes the number of the round, the condition, the states, the captures; returns the
            condition, the states, and one element for each collected output.
        states: How many of ``values`` are states; the others are captures.
        outputs: How many outputs are collected.
        values: States and captures.
    """
    current, captures = list(values[:states]), values[states:]
    collected: list[list[Any]] = [[] for _ in range(outputs)]
    going = condition
    limit = None if trips is None else numbers_of(trips)[0]
    tracing = is_tracing() or torch.compiler.is_compiling()
    if tracing and not isinstance(limit, int):
        raise UnsupportedError(
            "torch-control-flow", "a Loop whose number of rounds depends on the inputs"
        )
    number = 0
    while limit is None or number < limit:
        go = True if going is None else _known(going)
        if go is None:
            raise UnsupportedError(
                "torch-control-flow", "a Loop whose condition depends on the inputs"
            )
        if not go:
            break
        first = going if going is not None else Small((True,), torch.bool, scalar=True)
        found = _called(
            body, (Small((number,), torch.int64, scalar=True), first, *current, *captures)
        )
        going, current = found[0], list(found[1 : 1 + states])
        for place, element in zip(collected, found[1 + states :], strict=True):
            place.append(tensor_of(element))
        number += 1
    return (*current, *(_stacked(elements) for elements in collected))


def _stacked(elements: list[Any]) -> Any:
    if not elements:
        return torch.zeros([0], dtype=torch.float32)
    return torch.stack(elements)


def scan(
    body: Body,
    states: int,
    scanned: int,
    outputs: int,
    input_axes: list[int],
    input_reversed: list[int],
    output_axes: list[int],
    output_reversed: list[int],
    *values: Any,
) -> tuple[Any, ...]:
    """Run a body over the slices of some inputs; their number is that of the sample."""
    current = list(values[:states])
    slices = [tensor_of(v) for v in values[states : states + scanned]]
    captures = values[states + scanned :]
    length = int(shape_numbers(slices[0])[input_axes[0]])
    collected: list[list[Any]] = [[] for _ in range(outputs)]
    for number in range(length):
        parts = [
            x.select(axis, length - 1 - number if back else number)
            for x, axis, back in zip(slices, input_axes, input_reversed, strict=True)
        ]
        found = _called(body, (*current, *parts, *captures))
        current = list(found[:states])
        for place, element in zip(collected, found[states:], strict=True):
            place.append(tensor_of(element))
    stacked = [
        torch.stack(elements[::-1] if back else elements, axis)
        for elements, axis, back in zip(collected, output_axes, output_reversed, strict=True)
    ]
    return (*current, *stacked)
