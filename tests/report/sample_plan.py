"""Plans made by hand for the tests of the report: a MobileNet-like network, and extreme cases."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

from graphopt.memory.plan import (
    Alias,
    MemoryPlan,
    ModelFacts,
    Peak,
    PeakOwner,
    PlannedBuffer,
    PlannedStep,
    PoolPlan,
    RuntimeFacts,
    Unplanned,
)
from graphopt.pipeline.base import Skip
from graphopt.pipeline.pipeline import PassReport
from graphopt.report.html import ReportData

ALIGNMENT = 32
Kind = Literal["input", "output", "activation", "weight", "state", "scratch"]


@dataclass
class Draft:
    """A buffer before it has a place."""

    name: str
    kind: Kind
    producer: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    start: int
    end: int
    values: list[Alias] = field(default_factory=list)
    offset: int = 0

    @property
    def padded(self) -> int:
        return -(-self.bytes // ALIGNMENT) * ALIGNMENT


@dataclass
class Net:
    """Collects steps and buffers in execution order; ``plan`` places them first fit by size."""

    dtype: str = "float32"
    bytes_per_element: int = 4
    steps: list[tuple[str, str, int, str | None]] = field(default_factory=list)
    drafts: list[Draft] = field(default_factory=list)
    holder: dict[str, Draft] = field(default_factory=dict)
    weights: list[tuple[str, tuple[int, ...], int]] = field(default_factory=list)

    def add_input(self, name: str, shape: tuple[int, ...]) -> str:
        self._open(name, "input", "", shape, 0)
        return name

    def _open(
        self, name: str, kind: Kind, producer: str, shape: tuple[int, ...], start: int
    ) -> None:
        size = prod(shape) * self.bytes_per_element
        draft = Draft(name, kind, producer, self.dtype, shape, size, start, start + 1)
        draft.values.append(Alias(value=name, relation="", of=name))
        self.drafts.append(draft)
        self.holder[name] = draft

    def step(
        self,
        op: str,
        node: str,
        reads: list[str],
        shape: tuple[int, ...],
        *,
        over: Literal["", "view", "in-place"] = "",
        scratch: int = 0,
        weight: tuple[int, ...] = (),
        kind: Kind = "activation",
        recompute_of: str | None = None,
    ) -> str:
        """Add a step that writes one value, over its first input when ``over`` says how."""
        number = len(self.steps)
        self.steps.append((node, op, scratch, recompute_of))
        for read in reads:
            self.holder[read].end = number + 1
        name = f"{node}_output_0"
        if over:
            draft = self.holder[reads[0]]
            draft.values.append(Alias(value=name, relation=over, of=reads[0]))
            self.holder[name] = draft
            if kind != "activation":
                draft.kind = kind
        else:
            self._open(name, kind, node, shape, number)
        if scratch:
            self.drafts.append(
                Draft(f"scratch of {node}", "scratch", node, "", (), scratch, number, number + 1)
            )
        if weight:
            self.weights.append((f"{node}.weight", weight, prod(weight) * self.bytes_per_element))
        return name

    def place(self) -> int:
        """Give every draft the lowest offset free of earlier, larger ones; return the height."""
        placed: list[Draft] = []
        for draft in sorted(self.drafts, key=lambda d: (-d.padded, d.start, d.name)):
            blocks = sorted(
                (d.offset, d.offset + d.padded)
                for d in placed
                if d.start < draft.end and draft.start < d.end and d.padded
            )
            offset = 0
            for low, high in blocks:
                if low - offset >= draft.padded:
                    break
                offset = max(offset, high)
            draft.offset = offset
            placed.append(draft)
        return max((d.offset + d.padded for d in placed), default=0)

    def plan(self, name: str) -> MemoryPlan:
        for draft in self.drafts:
            if draft.kind == "output":
                draft.end = len(self.steps)
        height = self.place()
        live = [0] * len(self.steps)
        for draft in self.drafts:
            for number in range(draft.start, draft.end):
                live[number] += draft.padded
        return _assemble(name, self, live, height)


def _assemble(name: str, net: Net, live: list[int], height: int) -> MemoryPlan:
    peak_step = max(range(len(live)), key=lambda i: (live[i], -i), default=0)
    buffers = [*_arena_buffers(net), *_weight_buffers(net)]
    weights = sum(b.padded_bytes for b in buffers if b.segment == "weights")
    by_kind = dict.fromkeys(("input", "output", "activation", "weight", "state", "scratch"), 0)
    for buffer in buffers:
        by_kind[buffer.kind] += buffer.bytes
    by_kind["scratch"] = max((s[2] for s in net.steps), default=0)
    peak = _peak(net, live, peak_step)
    return MemoryPlan(
        tool="graphopt",
        version="0.1.0",
        model=_model(name, net),
        target=TARGET,
        target_sha256="5f" * 32,
        runtime=RuntimeFacts(
            name="arena",
            description="an executor that keeps every buffer at its offset",
            options={"in_place": True, "io_in_arena": True},
        ),
        pools=(
            _pool("axi-sram", 512 << 10, arena=height, bound=peak.bytes, peak_step=peak_step),
            _pool("flash", 2 << 20, weights=weights),
        ),
        buffers=tuple(buffers),
        steps=tuple(
            PlannedStep(
                node=node, op=op, live_bytes=live[i], scratch_bytes=scratch, recompute_of=again
            )
            for i, (node, op, scratch, again) in enumerate(net.steps)
        ),
        peak=peak,
        bytes_by_kind=by_kind,
        naive_bytes=by_kind["activation"],
        assumptions=("'batch', the first dimension of input 'image', is planned at 1",),
    )


def _peak(net: Net, live: list[int], step: int) -> Peak:
    owners = sorted(
        (d for d in net.drafts if d.start <= step < d.end and d.bytes),
        key=lambda d: (-d.padded, d.name),
    )
    return Peak(
        bytes=live[step] if live else 0,
        step=step,
        node=net.steps[step][0] if net.steps else "",
        owners=tuple(
            PeakOwner(name=d.name, kind=d.kind, producer=d.producer, bytes=d.padded) for d in owners
        ),
    )


def _arena_buffers(net: Net) -> list[PlannedBuffer]:
    return [
        PlannedBuffer(
            name=d.name,
            kind=d.kind,
            values=tuple(d.values),
            dtype=d.dtype,
            shape=d.shape,
            bytes=d.bytes,
            padded_bytes=d.padded,
            pool="axi-sram",
            segment="arena",
            offset=d.offset,
            start=d.start,
            end=d.end,
            producer=d.producer,
        )
        for d in net.drafts
    ]


def _weight_buffers(net: Net) -> list[PlannedBuffer]:
    buffers: list[PlannedBuffer] = []
    at = 0
    for name, shape, size in net.weights:
        padded = -(-size // ALIGNMENT) * ALIGNMENT
        buffers.append(
            PlannedBuffer(
                name=name,
                kind="weight",
                values=(Alias(value=name, relation="", of=name),),
                dtype=net.dtype,
                shape=shape,
                bytes=size,
                padded_bytes=padded,
                pool="flash",
                segment="weights",
                offset=at,
                start=0,
                end=max(1, len(net.steps)),
                producer="",
            )
        )
        at += padded
    return buffers


def _pool(
    name: str, size: int, *, arena: int = 0, weights: int = 0, bound: int = 0, peak_step: int = 0
) -> PoolPlan:
    return PoolPlan(
        name=name,
        capacity_bytes=size,
        limit_bytes=size,
        alignment=ALIGNMENT,
        arena_bytes=arena,
        weight_bytes=weights,
        io_bytes=0,
        overhead_bytes=0,
        total_bytes=arena + weights,
        lower_bound_bytes=bound,
        fragmentation=round(arena / bound, 6) if bound else 1.0,
        optimal=arena == bound,
        planner="" if weights else "first-fit by size",
        peak_step=peak_step,
    )


def _model(name: str, net: Net) -> ModelFacts:
    def described(kind: str) -> dict[str, str]:
        return {
            d.name: f"{d.dtype}[{','.join(map(str, d.shape))}]"
            for d in net.drafts
            if d.kind == kind
        }

    return ModelFacts(
        name=name,
        sha256="a3" * 32,
        opset=18,
        nodes=len(net.steps),
        inputs=described("input"),
        outputs=described("output"),
        bindings={"batch": 1},
        bounds={"batch": (1, 8)},
    )


TARGET: dict[str, Any] = {
    "name": "stm32h743",
    "description": "STM32H743xI: Cortex-M7 at 480 MHz, 512 KiB AXI SRAM, 2 MiB flash",
    "kind": "mcu",
    "source": ["ST RM0433 reference manual and STM32H743xI data sheet: memories and clock"],
    "pools": [
        {
            "name": "axi-sram",
            "size_bytes": 512 << 10,
            "alignment": ALIGNMENT,
            "source": ["ST RM0433, memory map: AXI SRAM, 512 KiB at 0x24000000"],
        },
        {
            "name": "flash",
            "size_bytes": 2 << 20,
            "alignment": ALIGNMENT,
            "source": ["ST RM0433, memory map: flash, 2 MiB at 0x08000000"],
        },
    ],
}

# Expansion, channels, repeats, first stride of each stage of MobileNetV2.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _multiple_of_8(channels: float) -> int:
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class _MobileNet:
    """MobileNetV2 as its exporter writes it, or as it is after fusion and quantization."""

    def __init__(self, resolution: int, width: float, *, optimized: bool) -> None:
        self.net = Net("int8", 1) if optimized else Net()
        self.optimized = optimized
        self.width = width
        self.size = resolution
        self.index = 0

    def conv(
        self, node: str, value: str, channels: int, stride: int, kernel: int, act: bool
    ) -> str:
        self.size = -(-self.size // stride)
        inputs = self.net.holder[value].shape[1]
        depthwise = kernel > 1 and inputs == channels
        shape = (1, channels, self.size, self.size)
        scratch = 4 * kernel * kernel * channels if self.optimized and kernel > 1 else 0
        value = self.net.step(
            "QLinearConv" if self.optimized else "Conv",
            f"{node}/Conv",
            [value],
            shape,
            scratch=scratch,
            weight=(channels, kernel, kernel, 1 if depthwise else inputs),
        )
        if self.optimized:
            return value
        value = self.net.step("BatchNormalization", f"{node}/BatchNormalization", [value], shape)
        return self.net.step("Clip", f"{node}/Clip", [value], shape) if act else value

    def block(self, value: str, channels: int, out: int, stride: int, expand: int) -> str:
        name = f"/features/features.{self.index}/conv"
        source, hidden = value, channels * expand
        if expand > 1:
            value = self.conv(f"{name}/conv.0", value, hidden, 1, 1, True)
        value = self.conv(f"{name}/conv.1", value, hidden, stride, 3, True)
        value = self.conv(f"{name}/conv.2", value, out, 1, 1, False)
        if stride == 1 and channels == out:
            shape = (1, out, self.size, self.size)
            how: Literal["", "in-place"] = "in-place" if self.optimized else ""
            op = "QLinearAdd" if self.optimized else "Add"
            value = self.net.step(
                op, f"/features/features.{self.index}/Add", [value, source], shape, over=how
            )
        return value

    def build(self) -> Net:
        net = self.net
        value = net.add_input("image", (1, 3, self.size, self.size))
        channels = _multiple_of_8(32 * self.width)
        value = self.conv("/features/features.0", value, channels, 2, 3, True)
        for expand, base, repeats, first_stride in _STAGES:
            out = _multiple_of_8(base * self.width)
            for repeat in range(repeats):
                self.index += 1
                stride = first_stride if repeat == 0 else 1
                value = self.block(value, channels, out, stride, expand)
                channels = out
        value = self.conv("/features/features.18", value, 1280, 1, 1, True)
        value = net.step("GlobalAveragePool", "/GlobalAveragePool", [value], (1, 1280, 1, 1))
        value = net.step("Flatten", "/Flatten", [value], (1, 1280), over="view")
        net.step(
            "Gemm",
            "/classifier/classifier.1/Gemm",
            [value],
            (1, 1000),
            kind="output",
            weight=(1000, 1280),
        )
        return net


def mobilenet_plan(*, optimized: bool) -> MemoryPlan:
    net = _MobileNet(160, 0.35, optimized=optimized).build()
    return net.plan("mobilenet_v2")


def pass_reports(before: MemoryPlan, after: MemoryPlan) -> tuple[PassReport, ...]:
    nodes, peak, weights = before.model.nodes, before.peak_bytes, before.bytes_by_kind["weight"]
    fused = nodes - 52
    middle = peak * 7 // 10
    return (
        PassReport(
            1, "fold-constants", "fold-constants", False, 0, (), 0.0123,
            nodes, nodes, weights, weights, peak, peak, 0.0,
        ),
        PassReport(
            2, "fuse-batch-norm", "fuse-batch-norm", True, 52, (), 0.0841,
            nodes, fused, weights, weights - 9000, peak, peak, 1.2e-06,
        ),
        PassReport(
            3, "reuse-in-place", "reuse-in-place", True, 35,
            (
                Skip("read-later", "/features/features.3/Add", "also read by step 31"),
                Skip("read-later", "/features/features.5/Add"),
                Skip("size-differs", "/Flatten"),
            ),
            0.0031, fused, fused, weights - 9000, weights - 9000, peak, middle, 1.2e-06,
        ),
        PassReport(
            4, "insert-qdq", "insert-qdq{scheme=int8,per-channel=true}", True, 62,
            (Skip("no-kernel", "/GlobalAveragePool"),),
            1.904, fused, after.model.nodes, weights - 9000, after.bytes_by_kind["weight"],
            middle, after.peak_bytes, 0.0213,
        ),
    )  # fmt: skip


def verification(*, passed: bool = True) -> dict[str, Any]:
    return {
        "compared": 1,
        "samples": 8,
        "inputs": "seeded",
        "max_abs_error": 0.0213,
        "max_rel_error": 0.00871,
        "tolerance": {"absolute": 0.05, "relative": 0.01, "cosine": 0.999},
        "passed": passed,
        "outputs": [
            {
                "name": "/classifier/classifier.1/Gemm_output_0",
                "max_abs_error": 0.0213,
                "max_rel_error": 0.00871,
            }
        ],
    }


def mobilenet_report(**changes: Any) -> ReportData:
    before, after = mobilenet_plan(optimized=False), mobilenet_plan(optimized=True)
    fields: dict[str, Any] = {
        "title": "mobilenet_v2 on stm32h743",
        "plan": after,
        "baseline": before,
        "passes": pass_reports(before, after),
        "verification": verification(),
        "limit_bytes": 320 << 10,
        "warnings": ("calibrated on 64 samples; fewer than 100 can misjudge rare ranges",),
        "file_bytes": (6_671_902, 1_702_118),
    }
    return ReportData(**(fields | changes))


def plan_only(plan: MemoryPlan, **changes: Any) -> ReportData:
    fields: dict[str, Any] = {
        "title": plan.model.name,
        "plan": plan,
        "baseline": None,
        "passes": (),
        "verification": None,
        "limit_bytes": None,
        "warnings": (),
        "file_bytes": None,
    }
    return ReportData(**(fields | changes))


def altered(plan: MemoryPlan, **changes: Any) -> MemoryPlan:
    """Return a copy with other fields and without what the original has cached."""
    fields = {name: getattr(plan, name) for name in MemoryPlan.model_fields}
    return MemoryPlan.model_construct(**(fields | changes))


def empty_plan() -> MemoryPlan:
    return Net().plan("empty")


def one_step_plan() -> MemoryPlan:
    net = Net()
    net.step("Relu", "relu", [net.add_input("x", (4, 4))], (4, 4), kind="output")
    return net.plan("one step")


def chain_plan(steps: int, *, seed: int = 7, name: str = "") -> MemoryPlan:
    """Return a plan of ``steps`` steps and as many buffers, with names as exporters write them.

    Offsets are stacked in four slots per lifetime class, which keeps the construction linear.
    """
    state = seed
    ops = ("Conv", "Clip", "Add", "MatMul", "Reshape", "Softmax", "LayerNormalization", "Gather")
    slots, slot_bytes = 24, 1 << 16
    buffers, rows, live = [], [], [0] * (steps + 1)
    for number in range(steps):
        state = (state * 1103515245 + 12345) % (1 << 31)
        op = ops[(state >> 8) % len(ops)]
        node = name or f"/model/layers.{number // 12}/block.{number % 12 // 4}/{op}_{number}"
        size = 64 + (state >> 12) % (slot_bytes // 64) * 64
        end = min(steps, number + 2 + (state >> 20) % (slots - 2))
        buffers.append(
            PlannedBuffer.model_construct(
                name=f"{node}_output_0",
                kind="activation",
                values=(
                    Alias.model_construct(value=f"{node}_output_0", relation="", of=f"{node}"),
                ),
                dtype="float32",
                shape=(1, 16, size // 64),
                bytes=size,
                padded_bytes=size,
                pool="axi-sram",
                segment="arena",
                offset=number % slots * slot_bytes,
                start=number,
                end=end,
                producer=node,
            )
        )
        live[number] += size
        live[end] -= size
        rows.append((node, op))
    for number in range(steps):
        live[number] += live[number - 1] if number else 0
    live.pop()
    net = Net(steps=[(node, op, 0, None) for node, op in rows])
    plan = _assemble("chain", net, live, slots * slot_bytes)
    peak = plan.peak.step
    owners = sorted(
        (b for b in buffers if b.start <= peak < b.end), key=lambda b: (-b.bytes, b.name)
    )
    return altered(
        plan,
        buffers=tuple(buffers),
        peak=Peak(
            bytes=plan.peak.bytes,
            step=peak,
            node=plan.peak.node,
            owners=tuple(
                PeakOwner(name=b.name, kind=b.kind, producer=b.producer, bytes=b.bytes)
                for b in owners
            ),
        ),
    )


def with_unplanned(plan: MemoryPlan) -> MemoryPlan:
    missing = (
        Unplanned(
            name="boxes", producer="/NonMaxSuppression", reason="size of 'n' has no upper bound"
        ),
        Unplanned(name="labels", producer="/Gather_9", reason="shape is unknown"),
    )
    return altered(plan, not_planned=missing)
