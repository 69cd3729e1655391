"""Files for torch run on the device of their inputs: shown on fake tensors of CUDA, without a GPU.

Fake tensors have sizes, types and a device, and torch refuses what would mix devices as it does for
real ones. Tensors on the host, sizes and what is computed from these alone, are real.
"""

from pathlib import Path
from typing import Any

import pytest

import graphopt

torch = pytest.importorskip("torch")

from torch import fx  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode  # noqa: E402
from torch.utils._pytree import tree_leaves, tree_map  # noqa: E402

from graphopt.backends.emit_pt2 import export  # noqa: E402
from graphopt.backends.torch_follow import follow_inputs, overload_of  # noqa: E402
from graphopt.backends.torch_lowering import NamingInterpreter, lower_to_torch  # noqa: E402
from graphopt.backends.torch_trace import running, torch_quiet  # noqa: E402
from graphopt.numerics.verify import user_feeds  # noqa: E402
from models import REGISTRY, SMALL, build  # noqa: E402

pytestmark = pytest.mark.torch
# torch compares devices with their number, in what an exported program asserts.
CUDA = torch.device("cuda:0")
# Those that compute with sizes.
QUICK = ("bert", "fpn_detector", "llama_prefill", "lstm_tagger", "mlp", "squeezenet1_1")


class FakeCuda:
    """Runs the graph of a TorchScript file as CUDA would, on tensors without values.

    Attributes:
        moved: Operators that bring a tensor from the host to the device, by the value they make.
        mixed: Operators that read numbers of the host beside tensors of the device.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.moved: list[str] = []
        self.mixed: list[str] = []

    def fake(self, tensor: Any) -> Any:
        """Return a tensor of CUDA that lies as ``tensor`` does."""
        with self._mode:
            size, stride = tuple(tensor.shape), tensor.stride()
            return torch.empty_strided(size, stride, dtype=tensor.dtype, device=CUDA)

    def run(self, *inputs: Any) -> Any:
        """Return what the module returns."""
        graph = self._module.inlined_graph
        names = [value.debugName() for value in graph.inputs()]
        values = dict(zip(names, [self._module, *map(self.fake, inputs)], strict=True))
        for node in graph.nodes():
            given = [values[value.debugName()] for value in node.inputs()]
            found = self._node(node, given)
            outputs = [value.debugName() for value in node.outputs()]
            values.update(zip(outputs, [found] if len(outputs) == 1 else found, strict=True))
        return [values[value.debugName()] for value in graph.outputs()]

    def _node(self, node: Any, given: list[Any]) -> Any:
        match node.kind():
            case "prim::Constant":
                if node.hasAttribute("value") and node.kindOf("value") == "t":
                    return self.fake(node.t("value"))  # map_location moves constants
                return node.output().toIValue()
            case "prim::GetAttr":
                found = getattr(given[0], node.s("name"))
                return self.fake(found) if isinstance(found, torch.Tensor) else found
            case "prim::ListConstruct":
                return given
            case "prim::TupleConstruct":
                return tuple(given)
            case "prim::ListUnpack" | "prim::TupleUnpack":
                return given[0] if node.outputsSize() != 1 else given[0][0]
            case "prim::device":
                return given[0].device
            case "prim::NumToTensor":
                return torch.tensor(given[0])
        return self._operator(node, given)

    def _operator(self, node: Any, given: list[Any]) -> Any:
        op = overload_of(node)
        assert op is not None, node
        positional = [a for a in op._schema.arguments if not a.kwarg_only]
        named = op._schema.arguments[len(positional) :]
        args = given[: len(positional)]
        kwargs = {a.name: v for a, v in zip(named, given[len(positional) :], strict=True)}
        tensors = [x for x in tree_leaves(given) if isinstance(x, torch.Tensor)]
        on_host = [x for x in tensors if not isinstance(x, FakeTensor)]
        devices = [x for x in tree_leaves(given) if isinstance(x, torch.device)]
        if len(on_host) == len(tensors) and all(d.type == "cpu" for d in devices):
            return op(*args, **kwargs)
        if on_host and node.kind() == "aten::to":
            self.moved.append(node.output().debugName())
        elif on_host:
            assert torch.Tag.pointwise in op.tags, node
            assert all(x.dim() == 0 for x in on_host), node
            self.mixed.append(node.kind())

        def prepared(x: Any) -> Any:
            on_cpu = isinstance(x, torch.Tensor) and not isinstance(x, FakeTensor)
            return self._mode.from_tensor(x) if on_cpu else x

        with self._mode:
            args, kwargs = tree_map(prepared, (args, kwargs))
            found = op(*args, **kwargs)
        assert all(x.device.type == "cuda" for x in tree_leaves(found) if hasattr(x, "device"))
        return found


def lowered(name: str) -> tuple[Any, Any, Any]:
    """Return the result of a small model, the lowered module and samples."""
    sample = build(name, **SMALL[name])
    result = graphopt.compile(
        sample.module, sample.example_inputs, dynamic_shapes=sample.dynamic_shapes, verify=False
    )
    module = lower_to_torch(result.program)
    feeds = user_feeds(result.program, sample.example_inputs)
    return result, module, running(module, feeds)


def moved_to_cuda(module: Any) -> None:
    """Change devices in the graph of an exported program as torch's own pass for this does.

    That pass needs a GPU for the weights.
    """
    for part in module.modules():
        for node in part.graph.nodes if isinstance(part, fx.GraphModule) else ():
            if "device" in node.kwargs:
                node.kwargs = {**node.kwargs, "device": CUDA}
            if node.target is torch.ops.aten.to.device:
                node.args = (node.args[0], CUDA, *node.args[2:])
            left = [x for x in tree_leaves((node.args, node.kwargs)) if x == torch.device("cpu")]
            assert not left, node.format_node()
        part.recompile() if isinstance(part, fx.GraphModule) else None


def moved_outputs(exported: Any, sample: tuple[Any, ...]) -> list[Any]:
    """Return what an exported program gives on CUDA."""
    graph_module = exported.graph_module
    moved_to_cuda(graph_module)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    setattr(mode, "may_turn_const", lambda _: False)  # noqa: B010 - constants are on a GPU
    signature = exported.graph_signature
    known = {
        **{k: exported.state_dict[v] for k, v in signature.inputs_to_parameters.items()},
        **{
            k: {**exported.state_dict, **exported.constants}[v]
            for k, v in signature.inputs_to_buffers.items()
        },
        **{
            k: exported.constants[v] for k, v in signature.inputs_to_lifted_tensor_constants.items()
        },
    }
    given = iter(sample)
    places = [n.name for n in graph_module.graph.nodes if n.op == "placeholder"]
    tensors = [known[name] if name in known else next(given) for name in places]
    with mode:
        fakes = [
            torch.empty_strided(tuple(x.shape), x.stride(), dtype=x.dtype, device=CUDA)
            for x in tensors
        ]
        return tree_leaves(fx.Interpreter(graph_module).run(*fakes))


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in sorted(REGISTRY)],
)
def test_every_builder_follows_its_inputs(name: str, tmp_path: Path) -> None:
    result, module, samples = lowered(name)
    expected = NamingInterpreter(module).run(*samples[0])
    sizes = [(x.shape, x.dtype) for x in expected]

    result.save(tmp_path / "m.ts")
    jit: Any = torch.jit
    loaded = jit.load(str(tmp_path / "m.ts"))
    cuda = FakeCuda(loaded)
    outputs = tree_leaves(cuda.run(*samples[0]))
    assert [(x.shape, x.dtype) for x in outputs] == sizes
    assert {x.device.type for x in outputs} == {"cuda"}
    # Computed shapes that become data are brought over; nothing larger crosses in a call.
    assert len(cuda.moved) <= 1, cuda.moved

    outputs = moved_outputs(export(module, samples, result.program), samples[0])
    assert [(x.shape, x.dtype) for x in outputs] == sizes
    assert {x.device.type for x in outputs} == {"cuda"}


def test_a_trace_as_torch_makes_it_mixes_devices() -> None:
    _, module, samples = lowered("bert")
    jit: Any = torch.jit
    with torch_quiet():
        traced = jit.trace(module, samples[0], check_trace=False)
    with pytest.raises(AssertionError, match="index_select"):
        FakeCuda(traced).run(*samples[0])
    follow_inputs(traced.graph)
    FakeCuda(traced).run(*samples[0])
