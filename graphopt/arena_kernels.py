"""One node at a time: a model of one node, run by onnxruntime, or by onnx's reference evaluator.

In: a node, its inputs. Out: its outputs, in memory of their own. Sessions are kept by the content
of the one-node model: operator, attributes, element types and ranks, so equal nodes share one.

onnxruntime comes first, its optimizations off. Some of its kernels ask for weights that are
constants: a node that is refused is tried again with its weights as initializers. What is still
refused goes to the reference evaluator. Types that numpy has not are initializers on the way in,
since onnxruntime takes no such array; a node that returns one goes to the reference evaluator.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

Array = npt.NDArray[Any]
# A dense tensor, or whatever onnxruntime returns for a sequence, a map or an optional.
Value = Any

_MAX_SESSIONS = 512
_MAX_KEPT_BYTES = 1 << 20
_RUNTIME_TENSORS = frozenset(
    f"tensor({name})"
    for name in (
        *("bool", "string", "float16", "float", "double", "complex64", "complex128"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    )
)
_PACKED_TYPES = tuple(
    getattr(onnx.TensorProto, name)
    for name in ("INT2", "UINT2", "INT4", "UINT4", "FLOAT4E2M1")
    if hasattr(onnx.TensorProto, name)
)


class KernelMissingError(Exception):
    """Nobody can execute a node; the text names every refusal."""


def onnx_type(dtype: np.dtype[Any]) -> int:
    """Return the ONNX element type of ``dtype``."""
    return int(onnx.helper.np_dtype_to_tensor_dtype(dtype))


def bytes_of(array: Array) -> npt.NDArray[np.uint8]:
    """Return the bytes of ``array`` as ONNX stores them: types below one byte are packed."""
    if not _is_native(array.dtype) and onnx_type(array.dtype) in _PACKED_TYPES:
        return np.frombuffer(onnx.numpy_helper.from_array(array).raw_data, np.uint8)
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def array_of(data: npt.NDArray[np.uint8], dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """Return ``data`` as an array: a view, but a copy where it is packed or misaligned."""
    if not _is_native(dtype) and onnx_type(dtype) in _PACKED_TYPES:
        tensor = onnx.TensorProto(data_type=onnx_type(dtype), dims=shape, raw_data=data.tobytes())
        return onnx.numpy_helper.to_array(tensor)
    array = data.view(dtype).reshape(shape)
    return array if array.flags.aligned else array.copy()


def _is_native(dtype: np.dtype[Any]) -> bool:
    return dtype.isbuiltin == 1


class Kernels:
    """Executes the nodes of one model.

    Args:
        model: The model; its opsets and the types of its values are what counts.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._ir_version = model.ir_version
        self._opsets = list(model.opset_import)
        graph = model.graph
        self._types = {
            info.name: info.type for info in (*graph.input, *graph.value_info, *graph.output)
        }

    def run(
        self, node: onnx.NodeProto, inputs: Mapping[str, Value], weights: Iterable[str]
    ) -> tuple[dict[str, Value], str]:
        """Return the outputs of ``node`` by name and who computed them.

        Args:
            node: The node.
            inputs: Its inputs and what its bodies read from outside, by name.
            weights: Names among ``inputs`` that are constants of the model.

        Raises:
            KernelMissingError: nobody can execute the node.
        """
        narrow = {
            name
            for name, value in inputs.items()
            if isinstance(value, np.ndarray) and not _is_native(value.dtype) and value.dtype != "O"
        }
        refusals: list[str] = []
        for constant in (narrow, narrow | set(weights)):
            if refusals and constant == narrow:
                continue
            single = _Single(self, node, inputs, constant)
            try:
                return single.run_in_onnxruntime(), "onnxruntime"
            except MemoryError:
                raise
            except Exception as error:
                refusals.append(f"onnxruntime: {_first_line(error)}")
        single = _Single(self, node, inputs, set())
        try:
            return single.run_in_reference(), "reference"
        except MemoryError:
            raise
        except Exception as error:
            refusals.append(f"reference evaluator: {_first_line(error)}")
        raise KernelMissingError("; ".join(refusals))

    def type_of(self, name: str, value: Value) -> onnx.TypeProto:
        """Return the type to declare for an input: of the array, else the one in the model."""
        if not isinstance(value, np.ndarray):
            if name not in self._types:
                raise KernelMissingError(f"the type of '{name}' is not stated")
            stated: onnx.TypeProto = self._types[name]
            return stated
        kind = onnx.TensorProto.STRING if value.dtype == "O" else onnx_type(value.dtype)
        # The length of a list of sizes or axes is what onnxruntime infers ranks from.
        is_list = value.ndim == 1 and value.dtype.kind == "i"
        return onnx.helper.make_tensor_type_proto(
            kind, value.shape if is_list else [None] * value.ndim
        )

    def dtype_of(self, name: str) -> np.dtype[Any] | None:
        """Return the element type that the model states for a value, None when it states none."""
        kind = self._types[name].tensor_type.elem_type if name in self._types else 0
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)) if kind else None

    def model_of(self, graph: onnx.GraphProto) -> onnx.ModelProto:
        """Return a model of ``graph`` with the operator sets of this one."""
        return onnx.ModelProto(ir_version=self._ir_version, opset_import=self._opsets, graph=graph)


class _Single:
    """A model of one node. Names are numbered unless bodies refer to them."""

    def __init__(
        self,
        kernels: Kernels,
        node: onnx.NodeProto,
        inputs: Mapping[str, Value],
        constant: set[str],
    ) -> None:
        self._kernels = kernels
        has_body = any(a.HasField("g") or a.graphs for a in node.attribute)
        outputs = [name for name in node.output if name]
        new = {name: f"i{at}" for at, name in enumerate(inputs)}
        new |= {name: f"o{at}" for at, name in enumerate(outputs)}
        rename = {name: name for name in new} if has_body else new
        copy = onnx.NodeProto(op_type=node.op_type, domain=node.domain, overload=node.overload)
        copy.input.extend(rename.get(name, "") for name in node.input)
        copy.output.extend(rename.get(name, "") for name in node.output)
        copy.attribute.extend(node.attribute)
        graph = onnx.GraphProto(name="single", node=[copy])
        for name, value in inputs.items():
            if name in constant:
                tensor = onnx.TensorProto(
                    name=rename[name],
                    data_type=onnx_type(value.dtype),
                    dims=value.shape,
                    raw_data=bytes_of(value).tobytes(),
                )
                graph.initializer.append(tensor)
            else:
                graph.input.add(name=rename[name], type=kernels.type_of(name, value))
        graph.output.extend(onnx.ValueInfoProto(name=rename[name]) for name in outputs)
        self._model = kernels.model_of(graph)
        self._feed = {rename[n]: value for n, value in inputs.items() if n not in constant}
        self._outputs = outputs
        self._keep = not constant

    def run_in_onnxruntime(self) -> dict[str, Value]:
        """Run the node in a session, a kept one where there is one."""
        session = _session(self._model.SerializeToString(deterministic=True), keep=self._keep)
        for output in session.get_outputs():
            if output.type.startswith("tensor(") and output.type not in _RUNTIME_TENSORS:
                raise KernelMissingError(f"numpy has no type for {output.type}")
        return dict(zip(self._outputs, session.run(None, self._feed), strict=True))

    def run_in_reference(self) -> dict[str, Value]:
        """Run the node in the evaluator that the ONNX project specifies operators with."""
        from onnx.reference import ReferenceEvaluator

        results = ReferenceEvaluator(self._model).run(None, self._feed)
        found = {}
        for name, value in zip(self._outputs, results, strict=True):
            dtype = self._kernels.dtype_of(name)
            # It computes some operators in a wider type, and returns numbers for scalars.
            tensor = isinstance(value, (np.ndarray, np.generic)) and dtype not in (None, "O")
            # A copy: Identity and its like return their input itself.
            found[name] = np.array(value, dtype) if tensor else value
        return found


_SESSIONS: OrderedDict[bytes, Any] = OrderedDict()


def _session(serialized: bytes, *, keep: bool) -> Any:
    keep = keep and len(serialized) <= _MAX_KEPT_BYTES
    key = hashlib.sha256(serialized).digest()
    if key in _SESSIONS:
        _SESSIONS.move_to_end(key)
        return _SESSIONS[key]
    session = _make_session(serialized)
    if keep:
        while len(_SESSIONS) >= _MAX_SESSIONS:
            _SESSIONS.popitem(last=False)
        _SESSIONS[key] = session
    return session


def _make_session(serialized: bytes) -> Any:
    import onnxruntime

    fatal = 4
    onnxruntime.set_default_logger_severity(fatal)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = fatal
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # As in the ordinary run: packed weights are summed in another order.
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    return onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]
