"""Seeded structure mutations of small ONNX models.

Byte flips are stopped by the parser; what reaches the code behind it are well-formed messages that
make no sense. Each mutation changes one thing of that kind.
"""

import contextlib
import copy
import random
import warnings
from collections.abc import Callable, Iterator
from functools import cache

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # no stubs
from onnx import AttributeProto, TensorProto

EXTREMES = (0, 1, -1, 2, 7, 2**31 - 1, 2**31, -(2**31), 2**62, 2**63 - 1, -(2**63))
NAMES = ("", "x", "\0", "a\nb", "é", "n" * 70_000, "../x", "<b>", "\u202e", "0", "None")
Mutation = Callable[[random.Random, onnx.ModelProto], None]

# Starts of names of node tests: operators with bodies, sequences, texts, small types, plain ones.
_PARTS = (
    "test_abs", "test_add", "test_and2d", "test_argmax_default", "test_averagepool_2d_default",
    "test_basic_conv", "test_batchnorm_example", "test_cast_FLOAT_to_FLOAT16", "test_clip_default",
    "test_concat_1d", "test_constant", "test_constantofshape", "test_dequantizelinear",
    "test_einsum_sum", "test_expand_dim", "test_gather_0", "test_gelu_default_1",
    "test_gemm_all", "test_gru_default", "test_identity_opt", "test_identity_sequence", "test_if",
    "test_if_opt", "test_if_seq", "test_layer_normalization_2d", "test_loop11", "test_loop13_seq",
    "test_loop16_seq", "test_lstm_default", "test_matmul_2d", "test_maxpool_2d_default",
    "test_optional_get_element", "test_optional_has", "test_pad", "test_range_float",
    "test_reshape_neg", "test_scan9", "test_scan_sum", "test_sequence_insert", "test_sequence_map",
    "test_slice", "test_softmax_axis_0", "test_split_to_sequence", "test_string_concat",
    "test_tfidfvectorizer", "test_top_k", "test_where",
)  # fmt: skip


@cache
def seeds() -> list[onnx.ModelProto]:
    """Return about forty models of the ONNX node tests, one per entry of the list above."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = sorted(load_model_tests(kind="node"), key=lambda case: case.name)
    models: list[onnx.ModelProto] = []
    for part in _PARTS:
        for case in cases:
            model = case.model
            if model is None or not case.name.startswith(part) or "expanded" in case.name:
                continue
            if max(opset.version for opset in model.opset_import) <= 26:
                models.append(model)
                break
    return models


def graphs(model: onnx.ModelProto) -> list[onnx.GraphProto]:
    """Return all graphs of a model."""
    found = [model.graph]
    for graph in found:
        for node in graph.node:
            found.extend(a.g for a in node.attribute if a.type == AttributeProto.GRAPH)
    return found


def some_graph(rng: random.Random, model: onnx.ModelProto) -> onnx.GraphProto:
    return rng.choice(graphs(model))


def some_node(rng: random.Random, model: onnx.ModelProto) -> onnx.NodeProto:
    nodes = [node for graph in graphs(model) for node in graph.node]
    chosen: onnx.NodeProto = rng.choice(nodes or [model.graph.node.add(op_type="Abs")])
    return chosen


def some_info(rng: random.Random, model: onnx.ModelProto) -> onnx.ValueInfoProto:
    graph = some_graph(rng, model)
    infos = [*graph.input, *graph.output, *graph.value_info]
    chosen: onnx.ValueInfoProto = rng.choice(infos or [graph.value_info.add(name="x")])
    return chosen


def change_dimension(rng: random.Random, model: onnx.ModelProto) -> None:
    shape = some_info(rng, model).type.tensor_type.shape
    dim = rng.choice(shape.dim) if shape.dim else shape.dim.add()
    if rng.random() < 0.7:
        dim.dim_value = rng.choice(EXTREMES)
    else:
        dim.dim_param = rng.choice((*NAMES, "a*b", "a//0", "-1", "2**99999", "(" * 500))


def change_rank(rng: random.Random, model: onnx.ModelProto) -> None:
    shape = some_info(rng, model).type.tensor_type.shape
    for _ in range(rng.choice((1, 5, 70))):
        shape.dim.add().dim_value = rng.choice((1, 2, 2**20))


def change_type(rng: random.Random, model: onnx.ModelProto) -> None:
    info = some_info(rng, model)
    kind = rng.randrange(5)
    if kind == 0:
        info.type.tensor_type.elem_type = rng.choice((0, 1, 7, 8, 22, 28, 29, 99, -1))
    elif kind == 1:
        info.type.sequence_type.SetInParent()
    elif kind == 2:
        info.type.map_type.key_type = 7
    elif kind == 3:
        inner = info.type
        for _ in range(rng.choice((1, 3, 40))):
            inner = inner.optional_type.elem_type
        inner.tensor_type.elem_type = 1
    else:
        info.ClearField("type")


def change_attribute(rng: random.Random, model: onnx.ModelProto) -> None:
    node = some_node(rng, model)
    attribute = rng.choice(node.attribute) if node.attribute else node.attribute.add(name="axis")
    kind = rng.randrange(6)
    if kind == 0:
        attribute.i = rng.choice(EXTREMES)
    elif kind == 1:
        attribute.ints[:] = [rng.choice(EXTREMES) for _ in range(rng.choice((0, 1, 9)))]
    elif kind == 2:
        attribute.type = rng.choice(list(AttributeProto.AttributeType.values()))
    elif kind == 3:
        attribute.s = rng.choice((b"", b"\xff\xfe", b"x" * 100_000))
    elif kind == 4:
        attribute.f = rng.choice((float("nan"), float("inf"), -0.0, 1e38))
    else:
        attribute.ref_attr_name = rng.choice(NAMES)


def drop_attribute(rng: random.Random, model: onnx.ModelProto) -> None:
    node = some_node(rng, model)
    if node.attribute:
        del node.attribute[rng.randrange(len(node.attribute))]


def swap_operator(rng: random.Random, model: onnx.ModelProto) -> None:
    node = some_node(rng, model)
    node.op_type = rng.choice(("Add", "If", "Loop", "Scan", "Conv", "Foo", "Split", "Constant", ""))
    if rng.random() < 0.2:
        node.domain = rng.choice(("com.microsoft", "ai.onnx", "ai.onnx.ml", "\0"))


def change_input(rng: random.Random, model: onnx.ModelProto) -> None:
    node = some_node(rng, model)
    names = [name for graph in graphs(model) for n in graph.node for name in (*n.input, *n.output)]
    kind = rng.randrange(4)
    if kind == 0 and node.input:
        del node.input[rng.randrange(len(node.input))]
    elif kind == 1:
        node.input.append(rng.choice([*names, ""]))
    elif kind == 2 and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice([*names, "", "ghost"])
    elif node.output:
        node.output[rng.randrange(len(node.output))] = rng.choice([*names, ""])


def change_name(rng: random.Random, model: onnx.ModelProto) -> None:
    target = rng.choice((some_node(rng, model), some_info(rng, model), some_graph(rng, model)))
    target.name = rng.choice(NAMES)


def change_tensor(rng: random.Random, model: onnx.ModelProto) -> None:
    tensors = [t for graph in graphs(model) for t in graph.initializer]
    for graph in graphs(model):
        tensors += [a.t for n in graph.node for a in n.attribute if a.type == AttributeProto.TENSOR]
    if not tensors:
        tensors = [model.graph.initializer.add(name="x", data_type=TensorProto.FLOAT)]
    tensor = rng.choice(tensors)
    kind = rng.randrange(5)
    if kind == 0:
        tensor.dims.append(rng.choice(EXTREMES))
    elif kind == 1:
        tensor.data_type = rng.choice((0, 1, 7, 8, 16, 22, 26, 28, 99))
    elif kind == 2:
        tensor.raw_data = b"x" * rng.choice((0, 1, 4, 5000))
    elif kind == 3:
        tensor.data_location = TensorProto.EXTERNAL
        key = rng.choice(("location", "offset", "__class__"))
        tensor.external_data.add(key=key, value=rng.choice(("../x", "/etc/passwd", "-1", "w")))
    else:
        tensor.name = rng.choice(NAMES)


def change_versions(rng: random.Random, model: onnx.ModelProto) -> None:
    kind = rng.randrange(4)
    if kind == 0:
        model.ir_version = rng.choice((*EXTREMES, 3, 4, 13, 14))
    elif kind == 1 and model.opset_import:
        model.opset_import[0].version = rng.choice((*EXTREMES, 6, 7, 26, 27))
    elif kind == 2:
        model.opset_import.add(domain=rng.choice(("", "d", "ai.onnx")), version=13)
    else:
        model.ClearField("opset_import")


def shuffle_nodes(rng: random.Random, model: onnx.ModelProto) -> None:
    graph = some_graph(rng, model)
    nodes = list(graph.node)
    rng.shuffle(nodes)
    copies = [copy.deepcopy(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies * rng.choice((1, 1, 2)))


def nest(rng: random.Random, model: onnx.ModelProto) -> None:
    node = some_node(rng, model)
    body = copy.deepcopy(some_graph(rng, model))
    node.attribute.add(name="body", type=AttributeProto.GRAPH, g=body)


def make_function(rng: random.Random, model: onnx.ModelProto) -> None:
    graph = some_graph(rng, model)
    model.functions.add(
        domain=rng.choice(("d", "")),
        name=rng.choice(("f", some_node(rng, model).op_type)),
        input=[i.name for i in graph.input],
        output=[o.name for o in graph.output],
        node=list(graph.node),
        opset_import=list(model.opset_import),
    )
    node = some_node(rng, model)
    node.domain, node.op_type = "d", "f"


def make_input_of_initializer(rng: random.Random, model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        model.graph.input.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    if model.graph.input and rng.random() < 0.5:
        name = rng.choice(model.graph.input).name
        model.graph.initializer.add(name=name, data_type=1, dims=[1], raw_data=bytes(4))


MUTATIONS: tuple[Mutation, ...] = (
    change_dimension,
    change_rank,
    change_type,
    change_attribute,
    drop_attribute,
    swap_operator,
    change_input,
    change_name,
    change_tensor,
    change_versions,
    shuffle_nodes,
    nest,
    make_function,
    make_input_of_initializer,
)


def mutants(models: list[onnx.ModelProto], count: int, seed: int) -> Iterator[onnx.ModelProto]:
    """Yield ``count`` mutants with one to three mutations each."""
    rng = random.Random(seed)
    for _ in range(count):
        model = copy.deepcopy(rng.choice(models))
        for _ in range(rng.choice((1, 1, 2, 3))):
            # Copying inside protobuf goes through its parser, which gives up on deep nesting.
            with contextlib.suppress(DecodeError):
                rng.choice(MUTATIONS)(rng, model)
        yield model
