"""TorchScript with an arena: every intermediate lies at its planned offset, written by ``out=``.

In: a program, sizes fixed by samples. Out: one ``.ts`` file that ``torch.jit.load`` runs without
graphopt. Its ``forward`` takes and returns what the ordinary module takes and returns. What always
holds: the arenas (one per data type, of the bytes that ``graphopt_arena.json`` states) are made
once, when the file is loaded, and are no part of it; a call writes intermediates nowhere else, but
for operators that torch offers no way to direct, which the same list names with their bytes.

Results never lie in an arena: the next call would overwrite them. ``forward`` returns new tensors;
``run_into(inputs..., outputs)`` writes into the tensors of the caller and allocates nothing itself.
A module is not reentrant: threads take a copy each (``copy.deepcopy``, or load again); a copy has
arenas of its own. Inputs of other sizes than those planned are refused.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from graphopt.backends.emit_torchscript import PLAN_FILE, SIGNATURE_FILE
from graphopt.backends.torch_arena import ArenaPlan, is_row_major, plan_arena
from graphopt.backends.torch_arena_code import script_of
from graphopt.backends.torch_counts import SMALL_BYTES
from graphopt.backends.torch_device import (
    CPU,
    device_of_target,
    name_of,
    require_device,
    working_on,
)
from graphopt.backends.torch_lowering import lower_to_torch
from graphopt.backends.torch_tape import Tape, record
from graphopt.backends.torch_trace import (
    Check,
    Feed,
    refused,
    runner,
    running,
    signature,
    torch_quiet,
)
from graphopt.ir.program import Program
from graphopt.memory.plan import MemoryPlan
from graphopt.safe_files import OutputTransaction

ARENA_FILE = "graphopt_arena.json"


@dataclass(frozen=True)
class NotEnforced:
    """An operator that takes memory outside of the arenas, by ``bytes`` a call."""

    node: str
    operator: str
    bytes: int
    holds_result: bool


@dataclass(frozen=True)
class ArenaReport:
    """What an arena module takes; ``graphopt_arena.json`` holds it.

    Attributes:
        torch: Version of torch that was probed.
        device: Where it was probed: "cpu" or "cuda".
        device_name: The chip.
        arena_bytes: Bytes of all arenas.
        lower_bound_bytes: Proven least bytes for this order and these tensors.
        arenas: Bytes by data type.
        outputs: Bytes of the results, which the caller owns, by name.
        buffers: Every tensor of an arena: data type, bytes, offset, first call, end.
        num_calls: Operators that a run calls.
        not_enforced: Operators that take memory besides, with 4096 bytes or more a request.
        small: Operators whose results, smaller than that, torch allocates.
    """

    torch: str
    device: str
    device_name: str
    arena_bytes: int
    lower_bound_bytes: int
    arenas: dict[str, int]
    outputs: dict[str, int]
    buffers: tuple[dict[str, Any], ...]
    num_calls: int
    not_enforced: tuple[NotEnforced, ...]
    small: tuple[NotEnforced, ...]

    @property
    def loose_bytes(self) -> int:
        """Bytes a call takes outside of arenas and results, as the operators ask for them."""
        return sum(entry.bytes for entry in self.not_enforced)

    def warnings(self) -> tuple[str, ...]:
        """Return what a user should read: who takes memory outside of the arenas."""
        if not self.not_enforced:
            return ()
        largest = max(self.not_enforced, key=lambda entry: entry.bytes)
        held = sum(entry.holds_result for entry in self.not_enforced)
        kind = f"{held} of them also for their results" if held else "none for its result"
        text = (
            f"arena: {len(self.not_enforced)} of {self.num_calls} operators ask torch for memory "
            f"of their own, {kind}; largest: {largest.operator} of node '{largest.node}', "
            f"{largest.bytes:,} bytes; {ARENA_FILE} in the file lists all"
        )
        return (text,)


def emit_torch_arena(
    program: Program,
    path: Path,
    *,
    feeds: Sequence[Feed],
    plan: MemoryPlan | None = None,
    check: Check | None = None,
    inputs: Iterable[Path] = (),
) -> tuple[list[Path], ArenaReport]:
    """Write ``program`` as TorchScript with an arena; return the files written, and the figures.

    The arena is planned on the device of the target of ``plan``, by trying operators there, and the
    file is for this device.

    Args:
        program: The model.
        path: The file.
        feeds: Samples of the sizes to plan for.
        plan: Says the target, without one the CPU; written into the archive.
        check: Called with a function that runs the file as read back; when it raises, nothing is
            written.
        inputs: Files that must not be touched.

    Raises:
        UnsupportedError: the target is a GPU and torch sees none, an operator has no torch form, or
            its result depends on more than sizes.
        OutputError: nothing could be written; what was there before is still there.
    """
    device = CPU if plan is None else device_of_target(plan.target)
    require_device(device, f"an arena for target '{'' if plan is None else plan.target['name']}'")
    module: Any = lower_to_torch(program).to(device)
    names = signature(module)
    with torch_quiet():
        with working_on(device):
            tape = _recorded(module, running(module, feeds, device)[0], device)
        planned = plan_arena(tape)
        report = _report(planned, names["outputs"])
        try:
            made = script_of(planned, _argument_names(module))
        except RuntimeError as error:
            raise refused("TorchScript with an arena", error) from error
    extra = {SIGNATURE_FILE: json.dumps(names), ARENA_FILE: json.dumps(asdict(report), indent=1)}
    if plan is not None:
        extra[PLAN_FILE] = plan.model_dump_json(indent=1)
    with OutputTransaction(inputs=inputs) as transaction:
        pending = transaction.path_for(path)
        with torch_quiet():
            torch.jit.save(made, str(pending), _extra_files=extra)
            del made, module
            if check is not None:
                jit: Any = torch.jit
                loaded = jit.load(str(pending))
                check(runner(loaded, names["inputs"], names["outputs"], device))
    return [path], report


def _recorded(module: fx.GraphModule, sample: tuple[Tensor, ...], device: torch.device) -> Tape:
    """Return the tape that takes fewest bytes besides: as it is, or with pixels side by side.

    oneDNN convolves tensors whose channels lie innermost without copies of input and output, and
    writes where it is told to. What follows a convolution takes its layout over.
    """
    tape = record(module, sample, device)
    if _turn_recurrent(module, tape):
        tape = record(module, sample, device)
    kernels = _kernels(tape)
    if not kernels or not tape.loose_bytes:
        return tape
    before = {name: module.get_parameter(name).data for name in kernels}
    for name, data in before.items():
        # Not contiguous(): with one channel or one pixel it keeps the strides of the other layout.
        swapped = torch.empty_like(data, memory_format=torch.channels_last)
        module.get_parameter(name).data = swapped.copy_(data)
    try:
        other = record(module, sample, device)
    except RuntimeError:
        # A view of the model does not exist in this layout.
        other = tape
    if other.loose_bytes < tape.loose_bytes:
        return other
    for name, data in before.items():
        module.get_parameter(name).data = data
    return tape


def _turn_recurrent(module: fx.GraphModule, tape: Tape) -> bool:
    """Lay down by columns what every step of a recurrent layer multiplies one row by.

    The product of a row reads such a matrix in half the time; with more rows it does not.
    """
    names = set()
    for call in tape.calls:
        if call.op._schema.name == "aten::addmm_" and call.writes[0].size[0] == 1:
            place = call.reads[-1]
            storage = tape.storages[place.storage]
            if storage.kind == "weight" and storage.name and place.stride[0] == 1:
                names.add(storage.name)
    for name in sorted(names):
        parameter = module.get_parameter(name)
        parameter.data = parameter.data.t().contiguous().t()
    return bool(names)


def _kernels(tape: Tape) -> list[str]:
    """Return the names of the two-dimensional kernels of convolutions."""
    found: dict[str, None] = {}
    for call in tape.calls:
        if "conv" in call.op._schema.name:
            for place in call.reads:
                storage = tape.storages[place.storage]
                is_kernel = storage.kind == "weight" and len(place.size) == 4
                if is_kernel and place == storage.whole and is_row_major(place):
                    found[storage.name] = None
    return [name for name in found if name]


def _argument_names(module: fx.GraphModule) -> list[str]:
    return [str(node.target) for node in module.graph.nodes if node.op == "placeholder"]


def _report(plan: ArenaPlan, outputs: Sequence[str]) -> ArenaReport:
    tape = plan.tape
    loose, small = [], []
    for call in tape.calls:
        entry = NotEnforced(call.node, str(call.op), call.bytes, bool(call.makes))
        if call.bytes >= SMALL_BYTES:
            loose.append(entry)
        elif call.makes:
            small.append(entry)
    buffers = [
        {
            "dtype": str(arena.dtype).removeprefix("torch."),
            "bytes": item.size,
            "offset": offset,
            "start": item.start,
            "end": item.end,
        }
        for arena in plan.arenas
        for item, offset in zip(arena.problem.items, arena.placement.offsets, strict=True)
    ]
    return ArenaReport(
        torch=torch.__version__,
        device=tape.device.type,
        device_name=name_of(tape.device),
        arena_bytes=plan.arena_bytes,
        lower_bound_bytes=plan.lower_bound_bytes,
        arenas={
            str(arena.dtype).removeprefix("torch."): arena.placement.height for arena in plan.arenas
        },
        outputs={
            name: place.dtype.itemsize * math.prod(place.size)
            for name, place in zip(outputs, tape.outputs, strict=True)
        },
        buffers=tuple(buffers),
        num_calls=len(tape.calls),
        not_enforced=tuple(loose),
        small=tuple(small),
    )
