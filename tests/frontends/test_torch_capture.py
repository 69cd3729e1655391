import logging
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

import models
from graphopt.errors import GraphoptError, InvalidModelError, OptionError, UnsupportedError
from graphopt.frontends.onnx_loader import load_onnx
from graphopt.frontends.torch_capture import EXAMPLE_INPUTS_KEY, OPSET, capture_torch
from graphopt.ir.dims import Bounds
from graphopt.ir.program import Program, dims_of

pytestmark = pytest.mark.torch

BATCH = Dim("batch", min=1, max=64)
QUICK = ("digits_cnn", "espcn", "mlp", "tcn")

Array = np.ndarray[Any, Any]


def run(program: Program, feed: Mapping[str, Any] | None = None) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        ir.to_proto(program.model).SerializeToString(), options, ["CPUExecutionProvider"]
    )
    feed = program.model.meta[EXAMPLE_INPUTS_KEY] if feed is None else feed
    arrays = {k: v.detach().numpy() if isinstance(v, Tensor) else v for k, v in feed.items()}
    return list(session.run(None, arrays))


def assert_close(got: list[Array], expected: Any) -> None:
    wanted = [expected] if isinstance(expected, Tensor) else list(expected)
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        reference = other.detach().numpy()
        assert one.shape == reference.shape
        assert one.dtype == reference.dtype
        scale = max(1.0, float(np.abs(reference).max()))
        assert float(np.abs(one - reference).max()) <= 1e-4 * scale


def inputs_of(program: Program) -> dict[str, str]:
    return {str(value.name): str(value.shape) for value in program.graph.inputs}


def outputs_of(program: Program) -> list[str]:
    return [str(value.name) for value in program.graph.outputs]


def line_of(code: str) -> str:
    """Return ``code`` with its place in this file, as messages show it."""
    path = Path(__file__)
    lines = path.read_text(encoding="utf-8").splitlines()
    number = next(i for i, line in enumerate(lines, 1) if line.strip() == code)
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"{shown}:{number}: {code}"


def refusal(model: Any, inputs: Any = None, **keywords: Any) -> GraphoptError:
    with pytest.raises(GraphoptError) as caught:
        capture_torch(model, inputs, **keywords)
    assert len(str(caught.value)) < 700, "the pages that torch prints must not be shown"
    return caught.value


class Add(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x * 2 + y


class Function(nn.Module):
    """A module of one function."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def module_of(function: Any) -> nn.Module:
    return Function(function).eval()


# Every builder: the program computes what the module computes, also at another batch size.


def check_builder(name: str) -> None:
    sample = models.build(name, **models.SMALL[name])
    program = capture_torch(
        sample.module, sample.example_inputs, dynamic_shapes=sample.dynamic_shapes
    )
    names = list(inputs_of(program))
    assert len(program.graph.outputs) == len(sample.output_names)
    assert program.bounds["batch"] == Bounds(1, 64)
    assert program.opset == OPSET
    assert program.source.kind == "torch"
    assert not program.notes
    assert not program.states
    onnx.checker.check_model(ir.to_proto(program.model))
    for repeats in (1, 2):
        inputs = [torch.cat([one] * repeats) for one in sample.example_inputs]
        with torch.no_grad():
            expected = sample.module(*inputs)
        assert_close(run(program, dict(zip(names, inputs, strict=True))), expected)


@pytest.mark.parametrize("name", QUICK)
def test_quick_builder_equals_torch(name: str) -> None:
    check_builder(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in models.REGISTRY if name not in QUICK])
def test_builder_equals_torch(name: str) -> None:
    check_builder(name)


# The kinds of model that are accepted


def test_all_kinds_of_torch_models_give_the_same_program() -> None:
    x, y = torch.randn(3, 8), torch.randn(3, 8)
    module = Add().eval()
    exported = torch.export.export(module, (x, y), dynamic_shapes=({0: BATCH}, {0: BATCH}))
    for model in (
        torch.fx.symbolic_trace(module),
        exported,
        exported.module(),
        cast(nn.Module, torch.compile(module)),
    ):
        program = capture_torch(model, (x, y), dynamic_shapes={"x": {0: BATCH}, "y": {0: BATCH}})
        assert inputs_of(program) == {"x": "[batch,8]", "y": "[batch,8]"}, type(model)
        assert program.bounds == {"batch": Bounds(1, 64)}
        assert_close(run(program), module(x, y))


def test_exported_program_without_names_gets_clean_ones() -> None:
    example = (torch.randn(3, 8), torch.randn(3, 8))
    exported = torch.export.export(Add(), example, dynamic_shapes=({0: BATCH}, {0: BATCH}))
    program = capture_torch(exported, None)
    assert inputs_of(program) == {"x": "[x_dim0,8]", "y": "[x_dim0,8]"}
    assert program.bounds == {"x_dim0": Bounds(1, 64)}
    narrowed = capture_torch(exported, None, dynamic_shapes={"y": {0: ("rows", 2, 8)}})
    assert inputs_of(narrowed) == {"x": "[rows,8]", "y": "[rows,8]"}
    assert narrowed.bounds == {"rows": Bounds(2, 8)}
    empty = refusal(exported, dynamic_shapes={"x": {0: ("rows", 65, 80)}})
    assert (type(empty), empty.code) == (OptionError, "dynamic-shapes-refused")
    assert empty.message == (
        "the exported program accepts 'rows' from 1 to 64, dynamic_shapes says 65 to 80"
    )
    fixed = refusal(exported, dynamic_shapes={"x": {1: "columns"}})
    assert fixed.message == "'columns' is axis 1 of input 'x', whose size is always 8 here"


class Nested(nn.Module):
    def forward(self, batch: dict[str, Any], scale: Tensor, times: int = 2) -> dict[str, Any]:
        total = batch["a"] + batch["b"][0] * times * scale
        return {"total": total, "nothing": None}


def test_nested_arguments_become_named_inputs() -> None:
    a, b, scale = (torch.randn(3, 8) for _ in range(3))
    program = capture_torch(
        Nested().eval(),
        {"times": 3, "scale": scale.numpy(), "batch": {"a": a, "b": [b]}},
        dynamic_shapes={
            "batch": {"a": {0: ("rows", 2, 9)}, "b": [{0: "rows"}]},
            "scale": ("rows", None),
        },
    )
    assert inputs_of(program) == {
        "batch_a": "[rows,8]",
        "batch_b_0": "[rows,8]",
        "scale": "[rows,8]",
    }
    assert program.bounds == {"rows": Bounds(2, 9)}
    assert program.notes == ["argument 'times' is fixed at 3", "output 1 is None and was left out"]
    assert_close(run(program), a + b * 3 * scale)


def test_dimensions_that_torch_names_get_names_from_values() -> None:
    example = (torch.randn(3, 8), torch.randn(3, 8))
    program = capture_torch(
        Add().eval(), example, dynamic_shapes=({0: Dim.AUTO}, {0: Dim.DYNAMIC, 1: Dim.AUTO})
    )
    assert inputs_of(program) == {"x": "[x_dim0,8]", "y": "[x_dim0,8]"}
    assert program.bounds == {"x_dim0": Bounds(2, None)}
    assert program.notes == ["axis 1 of input 'y' always has size 8"]


def test_sizes_that_depend_on_data_have_bounds() -> None:
    program = capture_torch(module_of(lambda x: x[x > 0]), (torch.ones(2, 8),))
    assert str(program.graph.outputs[0].shape) == "[index_dim0]"
    assert program.bounds == {"index_dim0": Bounds(0, 16)}
    # The exporter loses track of the size when it promotes types: no size is better than a new one.
    program = capture_torch(module_of(lambda x: x[x > 0] + 1), (torch.ones(2, 8),))
    assert dims_of(program.graph.outputs[0]) is None


def test_derived_dimension_is_an_expression_of_its_root() -> None:
    x = torch.randn(8, 3)
    even = ({0: 2 * Dim("pairs", max=9)},)
    program = capture_torch(module_of(lambda x: x[::2] + 1), (x,), dynamic_shapes=even)
    assert inputs_of(program) == {"x": "[2*pairs,3]"}
    assert program.bounds == {"pairs": Bounds(2, 9)}
    assert str(program.graph.outputs[0].shape) == "[pairs,3]"
    exported = torch.export.export(module_of(lambda x: x + 1), (x,), dynamic_shapes=even)
    assert inputs_of(capture_torch(exported, None)) == {"x": "[2*x_dim0_root,3]"}


def test_bounds_survive_a_saved_file() -> None:
    sample = models.build("tcn", **models.SMALL["tcn"])
    program = capture_torch(
        sample.module, sample.example_inputs, dynamic_shapes=sample.dynamic_shapes
    )
    again = load_onnx(ir.to_proto(program.model))
    assert again.bounds == program.bounds == {"batch": Bounds(1, 64), "sequence": Bounds(1, 4096)}


# What torch does without a word


def test_weights_share_memory_with_the_module() -> None:
    module = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).eval()
    program = capture_torch(module, (torch.randn(2, 64),))
    for name, parameter in module.named_parameters():
        tensor = program.graph.initializers[name].const_value
        assert tensor is not None
        assert tensor.numpy().__array_interface__["data"][0] == parameter.data_ptr(), name


def test_one_tensor_given_twice_stays_two_inputs() -> None:
    x = torch.randn(2, 8)
    program = capture_torch(Add().eval(), (x, x))
    other = torch.randn(2, 8)
    assert_close(run(program, {"x": x, "y": other}), x * 2 + other)


def test_example_of_size_one_leaves_the_dimension_open() -> None:
    x, y = torch.randn(1, 8), torch.randn(1, 8)
    program = capture_torch(Add().eval(), (x, y), dynamic_shapes=({0: BATCH}, {0: BATCH}))
    assert program.bounds == {"batch": Bounds(1, 64)}
    assert program.model.meta[EXAMPLE_INPUTS_KEY]["x"] is x
    wide = torch.randn(5, 8)
    assert_close(run(program, {"x": wide, "y": wide}), wide * 3)


class Clash(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((8,), 3.0))
        self.register_buffer("mul", torch.full((8,), 5.0))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.weight + self.get_buffer("mul")


def test_weights_called_like_inputs_and_nodes_are_renamed() -> None:
    x = torch.randn(2, 8)
    program = capture_torch(Clash().eval(), (x,))
    assert list(inputs_of(program)) == ["weight"]
    assert list(program.graph.initializers) == ["weight_2", "mul_2"]
    assert_close(run(program), x * 3 + 5)


def test_tied_weights_are_stored_once() -> None:
    module = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 10, bias=False)).eval()
    module[1].weight = module[0].weight
    program = capture_torch(module, (torch.tensor([1, 2]),))
    assert len(program.graph.initializers) == 1
    assert_close(run(program), module(torch.tensor([1, 2])))


def test_inputs_and_repeated_values_are_copied_to_be_outputs() -> None:
    class Returns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            y = x + 1
            return y, y, x, self.w

    x = torch.randn(2, 8)
    program = capture_torch(Returns().eval(), (x,))
    assert outputs_of(program) == ["add", "add_out", "x_out", "w_out"]
    assert_close(run(program), (x + 1, x + 1, x, torch.ones(8)))


class Stream(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("memory", torch.full((2, 8), 4.0))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        own = self.get_buffer("memory")
        own.mul_(0.5).add_(x + memory)
        self.count: Tensor = self.get_buffer("count") + 1
        return own, self.count * 2.0


def test_written_buffers_become_states() -> None:
    module = Stream().eval()
    x, memory = torch.randn(2, 8), torch.randn(2, 8)
    program = capture_torch(module, (x, memory))
    assert program.states == (("memory_2", "memory_next"), ("count", "count_next"))
    assert list(inputs_of(program)) == ["x", "memory", "memory_2", "count"]
    assert outputs_of(program) == ["add_1", "mul_1", "memory_next", "count_next"]
    assert program.notes[0] == (
        "forward writes the buffer 'memory': it is input 'memory_2' and output 'memory_next', and "
        "must first be given the value it has in the module"
    )
    assert torch.equal(module.get_buffer("memory"), torch.full((2, 8), 4.0)), "module was changed"
    feed = {k: v.detach().numpy().copy() for k, v in program.model.meta[EXAMPLE_INPUTS_KEY].items()}
    for _ in range(3):
        outputs = dict(zip(outputs_of(program), run(program, feed), strict=True))
        expected = module(x, memory)
        assert_close([outputs["add_1"], outputs["mul_1"]], expected)
        feed.update({reads: outputs[writes] for reads, writes in program.states})


def test_states_of_an_exported_program() -> None:
    example = (torch.randn(2, 8), torch.randn(2, 8))
    exported = torch.export.export(Stream().eval(), example).run_decompositions({})
    before = str(exported.graph_signature)
    first, second = capture_torch(exported, None), capture_torch(exported, None)
    assert first.states == second.states == (("memory_2", "memory_next"), ("count", "count_next"))
    assert str(exported.graph_signature) == before, "the exported program was changed"


class Keeps(nn.Module):
    """State in a plain attribute: read and assigned, written in place, or only assigned."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.memory = torch.zeros(2, 8)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "assigns":
            self.memory = self.memory * 0.5 + x
        elif self.how == "writes":
            self.memory.add_(x)
        else:
            self.seen.append(x)
        return self.memory * x


@pytest.mark.parametrize("how", ["assigns", "writes"])
def test_state_in_plain_attributes_is_refused(how: str) -> None:
    error = refusal(Keeps(how).eval(), (torch.ones(2, 8),))
    assert (type(error), error.code) == (UnsupportedError, "torch-unregistered-state")
    assert error.message == (
        "'Keeps' keeps state in 'self.memory', which is no buffer: it would be frozen"
    )


def test_tensors_that_are_only_kept_are_noted() -> None:
    module = Keeps("collects").eval()
    program = capture_torch(module, (torch.ones(2, 8),))
    assert program.notes == ["forward assigns a tensor to 'self.seen[0]', which is not kept"]
    assert module.seen == []


def test_capture_leaves_no_trace(capfd: pytest.CaptureFixture[str]) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            print("seen")  # noqa: T201
            warnings.warn("noise", stacklevel=1)
            logging.getLogger("torch.noise").error("noise")
            result: Tensor = self.lstm(x)[0]
            return result

    module = Noisy().eval()
    weights = [id(one) for one in module.lstm._flat_weights]
    logger = logging.getLogger("torch.onnx")
    before = (logger.level, list(warnings.filters), sys.stdout)
    with warnings.catch_warnings(record=True) as caught:
        filters = list(warnings.filters)
        capture_torch(module, (torch.randn(2, 3, 4),))
        assert list(warnings.filters) == filters
    assert not caught
    assert capfd.readouterr() == ("", "")
    assert (logger.level, list(warnings.filters), sys.stdout) == before
    assert weights == [id(one) for one in module.lstm._flat_weights]
    assert all(one.grad_fn is None for one in module.parameters())


# Refusals


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x + 1
        return x - 1


class Items(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        count = int(x[0, 0].item())
        return x[:count]


class Numpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy() + 1)


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.ones(3, 3)


@pytest.mark.parametrize(
    ("module", "reason", "line", "advice"),
    [
        (
            Branches(),
            "what runs next depends on the values of a tensor",
            "if x.sum() > 0:",
            "torch.cond",
        ),
        (
            Items(),
            "the value of a tensor is needed as a Python number",
            "count = int(x[0, 0].item())",
            "torch._check",
        ),
        (
            Numpy(),
            "a tensor is turned into numpy",
            "return torch.from_numpy(x.numpy() + 1)",
            "use torch operations only",
        ),
        (
            Broken(),
            "RuntimeError: a and b must have same reduction dim, but got [2, 8] X [3, 3].",
            "return x @ torch.ones(3, 3)",
            "run the module on the example inputs",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_uncapturable_code_is_shown(module: nn.Module, reason: str, line: str, advice: str) -> None:
    error = refusal(module.eval(), (torch.randn(2, 8),))
    assert (type(error), error.code) == (UnsupportedError, "torch-not-capturable")
    name = type(module).__name__
    assert error.message == f"torch.export cannot capture '{name}': {reason}\n  {line_of(line)}"
    assert advice in str(error.hint)
    assert error.__cause__ is not None
    assert error.details["source"] == line


class Distances(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(x, x)


def test_operator_without_onnx_form_is_named() -> None:
    error = refusal(Distances().eval(), (torch.randn(2, 8),))
    assert (type(error), error.code) == (UnsupportedError, "torch-operator-unsupported")
    assert error.message == (
        "'Distances': operator aten._cdist_forward.default has no ONNX form\n  "
        + line_of("return torch.cdist(x, x)")
    )


class WritesInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x += 1
        return x * 2


def test_written_input_is_refused() -> None:
    x = torch.zeros(2, 8)
    error = refusal(WritesInput().eval(), (x,))
    assert (type(error), error.code) == (UnsupportedError, "torch-input-written")
    assert error.message == (
        "'WritesInput' writes into its input 'x', which an ONNX model cannot do\n  "
        + line_of("x += 1")
    )
    assert torch.equal(x, torch.zeros(2, 8)), "the example was changed"


class Drops(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, 0.5)


def test_training_mode_is_refused() -> None:
    x = torch.randn(2, 8)
    whole = nn.Sequential(nn.Linear(8, 8), nn.Dropout())
    error = refusal(whole, (x,))
    assert (type(error), error.code) == (OptionError, "module-in-training-mode")
    assert error.message.endswith("switched on: it is in training mode")
    assert error.hint == "call .eval() on the module first"
    assert whole.training, "the module was changed"
    whole.eval()[1].train()
    assert refusal(whole, (x,)).message.endswith("its part '1' is in training mode")
    exported = torch.export.export(nn.Sequential(nn.Dropout()), (x,))
    assert refusal(exported).code == "module-in-training-mode"
    assert refusal(Drops().eval(), (x,)).message == (
        "'Drops': aten.dropout.default runs as it does in training\n  "
        + line_of("return functional.dropout(x, 0.5)")
    )
    statistics = torch.export.export(nn.Sequential(nn.BatchNorm1d(8)), (x,))
    assert "batch_norm" in refusal(statistics).message
    capture_torch(nn.Sequential(nn.BatchNorm1d(8, track_running_stats=False)).eval(), (x,))


CASES: list[tuple[Any, dict[str, Any], type[GraphoptError], str, str]] = [
    ((None,), {}, OptionError, "example-inputs-missing", "a torch module is captured by running"),
    (("text",), {}, OptionError, "example-inputs-type", "example inputs of type str"),
    (
        ((torch.ones(2),),),
        {},
        OptionError,
        "example-inputs-mismatch",
        "missing a required argument: 'y'",
    ),
    (
        ({"x": torch.ones(2), "yy": torch.ones(2)},),
        {},
        OptionError,
        "example-inputs-mismatch",
        "did you mean 'y'?",
    ),
    (
        ((torch.ones(2, 3), torch.ones(2, 3)),),
        {"dynamic_shapes": {"xs": {0: "b"}}},
        OptionError,
        "dynamic-shapes-invalid",
        "dynamic_shapes names 'xs', which is no argument of this call\n  did you mean 'x'?",
    ),
    (
        ((torch.ones(2, 3), torch.ones(2, 3)),),
        {"dynamic_shapes": ({0: "b"},)},
        OptionError,
        "dynamic-shapes-invalid",
        "dynamic_shapes has 1 entries for 2 arguments",
    ),
    (
        ((torch.ones(2, 3), torch.ones(2, 3)),),
        {"dynamic_shapes": {"x": {2: "b"}}},
        OptionError,
        "dynamic-shapes-invalid",
        "dynamic_shapes names axis 2 of argument 'x', whose shape is [2, 3]",
    ),
    (
        ((torch.ones(2, 3), torch.ones(2, 3)),),
        {"dynamic_shapes": {"x": 4}},
        OptionError,
        "dynamic-shapes-invalid",
        "dynamic_shapes has 4 for argument 'x'",
    ),
    (
        ((torch.ones(2, 3), torch.ones(2, 3)),),
        {"dynamic_shapes": {"x": {0: "my batch"}}},
        OptionError,
        "dynamic-shapes-invalid",
        "Dim name must be a valid identifier, got my batch",
    ),
    (
        ((torch.ones(2, 3), torch.ones(2, 3)),),
        {"dynamic_shapes": 7},
        OptionError,
        "dynamic-shapes-invalid",
        "dynamic_shapes of type int",
    ),
    (
        ((torch.ones(2, 3), torch.ones(2, 3)),),
        {"dynamic_shapes": {"x": {0: BATCH}}},
        OptionError,
        "dynamic-shapes-refused",
        "You marked batch as dynamic but your code specialized it to be a constant (2)",
    ),
    (
        ((torch.ones(2, 3), torch.ones(2, 3)),),
        {"dynamic_shapes": {"x": {0: ("b", 4, 8)}, "y": {0: "b"}}},
        OptionError,
        "dynamic-shapes-refused",
        "'Add' does not accept these dynamic_shapes: 2 not in range [4, 8]",
    ),
]


@pytest.mark.parametrize(("inputs", "keywords", "kind", "code", "text"), CASES)
def test_wrong_calls_are_explained(
    inputs: Any, keywords: dict[str, Any], kind: type[GraphoptError], code: str, text: str
) -> None:
    error = refusal(Add().eval(), *inputs, **keywords)
    assert (type(error), error.code) == (kind, code)
    assert text in str(error)


def test_what_is_no_real_tensor_is_refused() -> None:
    x = torch.randn(2, 2)
    constant = refusal(module_of(lambda x: (x + 1, 3)), (x,))
    assert (type(constant), constant.code) == (UnsupportedError, "torch-no-onnx-form")
    assert constant.message == "'Function' cannot become an ONNX model: output 1 is the constant 3"
    assert "'x' is complex" in refusal(module_of(lambda x: x * 2), (x.to(torch.complex64),)).message
    assert "output" in refusal(module_of(torch.view_as_complex), (x,)).message


def test_what_is_no_module_is_refused() -> None:
    x = torch.randn(2, 8)
    with torch.device("meta"):
        empty = nn.Linear(8, 8).eval()
    error = refusal(empty, (x,))
    assert (type(error), error.code) == (InvalidModelError, "torch-weights-without-data")
    assert error.message.startswith("'weight' of 'Linear' is on the meta device")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(nn.ReLU())
    assert refusal(scripted, (x,)).code == "torch-script-module"
    assert refusal(torch.relu, (x,)).code == "torch-model-type"


def test_shape_conflict_names_both_dimensions() -> None:
    example = (torch.randn(3, 8), torch.randn(3, 8))
    error = refusal(Add().eval(), example, dynamic_shapes=({0: BATCH}, {0: Dim("rows")}))
    assert error.code == "dynamic-shapes-refused"
    assert "must always be equal" in error.message
    assert error.hint == "torch suggests: rows = batch"
