"""What a target descriptor holds, and the physics that every descriptor must obey.

Field names carry their unit (``_bytes``, ``_gbps``, ``_ns``) and are the keys of the TOML file. The
models are frozen and strict: a key that no field reads, or a value of another type, is refused.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    field_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from graphopt.errors import OptionError
from graphopt.units import parse_bytes

SCHEMA_VERSION = 1

Kind = Literal["cpu", "gpu", "npu", "mcu"]
Role = Literal["weight", "input", "output", "activation", "state", "scratch"]
Layout = Literal["NCHW", "NHWC"]
DType = Literal[
    "float32",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "int32",
    "int16",
    "uint16",
    "int8",
    "uint8",
    "int4",
    "uint4",
    "nf4",
]
ROLES: tuple[Role, ...] = get_args(Role)

# Type of the one pydantic error that carries all violated rules of a descriptor in its context.
PHYSICS_ERROR = "target_physics"

_Items = TypeVar("_Items", bound=Collection[object])

# Offsets and sizes end up in signed 64-bit integers of the emitted plan.
_MAX_BYTES = 2**63 - 1


def _read_size(value: object) -> object:
    """Return the bytes that text names; what is no text is left for pydantic to take or refuse."""
    if not isinstance(value, str):
        return value
    try:
        return parse_bytes(value)
    except (OptionError, ValueError, OverflowError):
        raise PydanticCustomError(
            "size", "Input should be a size in bytes, such as 65536 or '320KiB'"
        ) from None


def _power_of_two(value: int) -> int:
    if value < 1 or value & (value - 1):
        raise PydanticCustomError("power_of_two", "Input should be a power of two, at least 1")
    return value


def _not_empty(value: _Items) -> _Items:
    # Not min_length: pydantic counts valid items only, and calls a list of wrong ones too short.
    if not value:
        raise PydanticCustomError("empty", "Input should be a list with at least one item")
    return value


def _expand_io(value: object) -> object:
    """Replace the shorthand ``io`` by the two roles it stands for."""
    if not isinstance(value, (list, tuple, set, frozenset)):
        return value
    roles: list[object] = []
    for role in value:
        roles += ["input", "output"] if role == "io" else [role]
    return roles


Name = Annotated[str, Field(min_length=1)]
# Names of targets and pools are typed on the command line and written into plans and reports.
Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Size = Annotated[int, BeforeValidator(_read_size), Field(ge=0, le=_MAX_BYTES)]
PoolSize = Annotated[int, BeforeValidator(_read_size), Field(gt=0, le=_MAX_BYTES)]
Alignment = Annotated[
    int, BeforeValidator(_read_size), AfterValidator(_power_of_two), Field(le=_MAX_BYTES)
]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# TOML has lists only, so the containers (not their items) convert from a list.
Names = Annotated[tuple[Name, ...], Strict(False)]
DTypes = Annotated[tuple[DType, ...], Strict(False), AfterValidator(_not_empty)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Pool(_Part):
    """One memory of the device, with what it may hold.

    Attributes:
        name: Unique in the target.
        size_bytes: Physical size; None where the description does not bound it (host DRAM).
        budget_bytes: What this model may use of it; None means all of `size_bytes`.
        alignment: Every offset in this pool is a multiple of this power of two, in bytes.
        access: ``ro`` for memory that an inference cannot write (flash); it holds weights only.
        volatile: Whether the contents are lost without power.
        read_gbps: Peak read rate in 10^9 bytes per second; None where no source states one.
        write_gbps: Peak write rate in the same unit.
        latency_ns: Time to the first byte of a read, in nanoseconds.
        holds: Roles of the buffers that may live here; ``io`` in the file means input and output.
        source: Where the numbers come from.
    """

    name: Identifier
    size_bytes: PoolSize | None = None
    budget_bytes: PoolSize | None = None
    alignment: Alignment
    access: Literal["rw", "ro"]
    volatile: bool
    read_gbps: Rate | None = None
    write_gbps: Rate | None = None
    latency_ns: Rate | None = None
    holds: Annotated[
        frozenset[Role], Strict(False), BeforeValidator(_expand_io), AfterValidator(_not_empty)
    ]
    source: Names = ()

    @property
    def limit_bytes(self) -> int | None:
        """Bytes that a plan may use: the budget, else the size, else None (not bounded)."""
        return self.size_bytes if self.budget_bytes is None else self.budget_bytes

    @field_serializer("holds")
    def _holds_in_order(self, holds: frozenset[Role]) -> list[Role]:
        # A set has no order, and digest and TOML text must not depend on the hash seed.
        return [role for role in ROLES if role in holds]


class Runtime(_Part):
    """What executes the result, and what the plan may assume about it.

    Attributes:
        name: Runtime that plans are made for; ``arena`` executes a plan literally.
        executes_with: Runtime that the emitted file is fused for; ``none`` when the device's own
            compiler takes the file and fuses for itself.
        io_in_arena: True: graph inputs and outputs live inside the arena and their bytes may be
            reused after the last use. False: the caller owns them and they are accounted apart.
        in_place: Whether a step may write its result over an input that dies there.
        stream_weights: Whether weights are copied into the arena one step ahead of their use and
            forgotten after it, because kernels read fast memory only.
        fused_activations: ONNX operator types that `executes_with` computes inside the kernel of
            the Conv before; the pairs with other producers are in `Compute.fused`.
        max_opset: Highest ai.onnx opset that `executes_with` loads; None when no limit is known.
        static_shapes_only: Whether every dimension must be a number.
        max_rank: Highest tensor rank; None when no limit is known.
    """

    name: Literal["arena"] = "arena"
    executes_with: Literal["onnxruntime", "torch", "none"]
    io_in_arena: bool
    in_place: bool = True
    stream_weights: bool = False
    fused_activations: Names = ()
    max_opset: Annotated[int, Field(ge=1)] | None = None
    static_shapes_only: bool = False
    max_rank: Annotated[int, Field(ge=1)] | None = None


class Compute(_Part):
    """What the arithmetic units take.

    Attributes:
        activation_dtypes: Types with native kernels, preferred first.
        weight_dtypes: The same for weights; narrower ones may be stored only and widened on use.
        accumulate: Type in which the main matrix kernels add up; None where no source states it.
        native_layout: Layout of images that the kernels take without a transpose.
        blocked_layouts: Other layouts that the runtime or compiler uses inside.
        channel_multiple: Channels are padded to a multiple of this; 1 means no padding.
        fused: Chains that one kernel computes, as operator types joined by ``+`` ("Conv+Relu").
        in_place_ops: Operator types that may write over an input; None: all that the facts about
            the operators allow, which are facts about floats: no integer kernel of a target with
            `full_integer` is taken to do so unless it is named.
    """

    activation_dtypes: DTypes
    weight_dtypes: DTypes
    accumulate: DType | None = None
    native_layout: Layout
    blocked_layouts: Names = ()
    channel_multiple: Annotated[int, Field(ge=1)] = 1
    fused: Names = ()
    in_place_ops: Names | None = None


class Quantization(_Part):
    """The integer scheme whose kernels the target really has.

    Attributes:
        activation: Storage type of quantized activations.
        weight: Storage type of quantized weights.
        per_channel: Whether weights may have one scale per output channel.
        symmetric_activation: Whether the zero point of activations must be 0.
        symmetric_weight: Whether the zero point of weights must be 0.
        reduce_range: Whether weights must use 7 of their 8 bits, for kernels that add pairs of
            products in 16 bits and would saturate.
        full_integer: Whether every operator must be integer: the device has no float kernels, or
            none that a model in integers may call.
        integer_interface: With `full_integer`, whether graph inputs and outputs are integers, too;
            False: they stay float, with a conversion right behind and right in front of them.
        operators: Operator types with integer kernels that pay; empty for all that the rule table
            knows (``graphopt.quantization.rules``, ``device_rules`` with `full_integer`).
        per_tensor_operators: Operator types whose weights have one scale although `per_channel`.
        quantize_results: Whether what an integer operator makes is quantized at once, as runtimes
            want that fuse quantization around each node. False: only what an integer operator
            reads, for compilers that fuse what follows an operator into it.
        integer_bias: Whether biases are 32-bit integers in the file; False: they stay float.
        dynamic_recurrent: Whether a kernel multiplies the weights of ``LSTM`` as integers and finds
            the ranges of what they are multiplied with by itself, in each run.
    """

    activation: Literal["uint8", "int8", "uint16", "int16"]
    weight: Literal["uint8", "int8", "int4"]
    per_channel: bool
    symmetric_activation: bool
    symmetric_weight: bool
    reduce_range: bool = False
    full_integer: bool = False
    integer_interface: bool = False
    operators: Names = ()
    per_tensor_operators: Names = ()
    quantize_results: bool = True
    integer_bias: bool = True
    dynamic_recurrent: bool = False

    @model_validator(mode="after")
    def _agrees(self) -> "Quantization":
        if self.integer_interface and not self.full_integer:
            raise PydanticCustomError(
                "integer_interface", "integer_interface needs full_integer = true"
            )
        if self.full_integer and not (self.quantize_results and self.integer_bias):
            raise PydanticCustomError(
                "full_integer", "full_integer needs quantize_results = true and integer_bias = true"
            )
        return self


class Sparsity(_Part):
    """What zeros in the weights buy on this target.

    Attributes:
        structured: Patterns with kernels of their own, such as ``2:4``.
        unstructured_gain: Whether scattered zeros make anything faster or smaller.
        compressed_weights: Whether weights are stored compressed and expanded on the fly.
    """

    structured: Names = ()
    unstructured_gain: bool = False
    compressed_weights: bool = False


class Overhead(_Part):
    """Bytes that the runtime takes beside the planned buffers; stated beside a plan, never in it.

    Attributes:
        fixed_bytes: For the process, context or runtime itself.
        per_tensor_bytes: For each tensor's bookkeeping.
        per_op_bytes: For each operator's bookkeeping.
        runtime_copy_of_weights: Further copies of the weights held while the model runs, as a
            multiple of the weight bytes; 0.0 when the planned copy is the only one.
    """

    fixed_bytes: Size = 0
    per_tensor_bytes: Size = 0
    per_op_bytes: Size = 0
    runtime_copy_of_weights: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class Target(_Part):
    """One device: its memories, its runtime and what its arithmetic takes.

    Attributes:
        name: Name in plans and reports.
        description: One line for people.
        kind: Class of device.
        source: Where the numbers outside the pools come from.
        pools: Memories in order of preference: a buffer goes to the first pool that holds its role.
        runtime: What executes the result.
        compute: Types, layouts and fusions.
        quantization: The integer scheme; None when the target has no integer kernels to aim at.
        sparsity: What zeros buy; None when nothing is known.
        overhead: What the runtime takes beside the plan.
    """

    name: Identifier
    description: str = ""
    kind: Kind
    source: Names = ()
    pools: Annotated[tuple[Pool, ...], Strict(False), AfterValidator(_not_empty)]
    runtime: Runtime
    compute: Compute
    quantization: Quantization | None = None
    sparsity: Sparsity | None = None
    overhead: Overhead = Overhead()

    @model_validator(mode="after")
    def _obeys_physics(self) -> "Target":
        violations = [*pool_violations(self.pools), *role_violations(self.pools)]
        if violations:
            raise PydanticCustomError(
                PHYSICS_ERROR,
                "{text}",
                {"text": "; ".join(f"{f}: {t}" for f, t in violations), "violations": violations},
            )
        return self

    def pool_for(self, role: Role) -> Pool:
        """Return the preferred pool for buffers of ``role``; every valid target has one."""
        return next(pool for pool in self.pools if role in pool.holds)

    def to_toml(self) -> str:
        """Return the whole descriptor as TOML text that loads to an equal target by itself."""
        return _toml_document({"schema_version": SCHEMA_VERSION, **self._canonical()})

    def digest(self) -> str:
        """Return the sha256 of the canonical form, in hexadecimal: equal for equal targets."""
        canonical = {"schema_version": SCHEMA_VERSION, **self._canonical()}
        text = json.dumps(canonical, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _canonical(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_none=True)


def pool_violations(pools: Sequence[Pool]) -> list[tuple[str, str]]:
    """Return the rules that single pools or their names break, as (field path, what is wrong)."""
    violations = []
    for pool in pools:
        field = f"pools[{pool.name}]"
        beyond = [role for role in ROLES if role in pool.holds and role != "weight"]
        if pool.access == "ro" and beyond:
            violations.append(
                (f"{field}.holds", f"a read-only pool holds weights only, not {_quoted(beyond)}")
            )
        if (
            pool.size_bytes is not None
            and pool.budget_bytes is not None
            and pool.budget_bytes > pool.size_bytes
        ):
            violations.append(
                (
                    f"{field}.budget_bytes",
                    f"{pool.budget_bytes} bytes exceed the size of {pool.size_bytes} bytes",
                )
            )
    for name, count in Counter(pool.name for pool in pools).items():
        if count > 1:
            violations.append(("pools", f"{count} pools are named {name!r}"))
    return violations


def role_violations(pools: Sequence[Pool]) -> list[tuple[str, str]]:
    """Return what the pools together lack, as (field path, what is wrong)."""
    violations = []
    if all(pool.access == "ro" for pool in pools):
        violations.append(("pools", "no pool can be written"))
    missing = [role for role in ROLES if not any(role in pool.holds for pool in pools)]
    if missing:
        violations.append(("pools", f"no pool holds {_quoted(missing)}"))
    return violations


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _toml_document(table: dict[str, Any]) -> str:
    """Return ``table`` as TOML: plain keys, then its tables, then its lists of tables."""
    plain = {k: v for k, v in table.items() if not isinstance(v, dict) and k != "pools"}
    blocks = [_toml_keys(plain)]
    blocks += [f"[{k}]\n{_toml_keys(v)}" for k, v in table.items() if isinstance(v, dict)]
    blocks += [f"[[pools]]\n{_toml_keys(pool)}" for pool in table["pools"]]
    return "\n".join(blocks)


def _toml_keys(table: dict[str, Any]) -> str:
    return "".join(f"{key} = {_toml_value(value)}\n" for key, value in table.items())


def _toml_value(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, str):
        # A JSON string is a TOML basic string, except that TOML wants DEL escaped too.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)
