import io
import json
import logging
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor, nn

from graphopt.errors import GraphoptError, InvalidModelError, UnsupportedError
from graphopt.frontends.pt2 import load_pt2
from graphopt.frontends.torch_capture import EXAMPLE_INPUTS_KEY, capture_torch
from graphopt.ir.dims import Bounds

pytestmark = pytest.mark.torch


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(x) + torch.tensor([1.0, 2.0, 3.0, 4.0])
        return result


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "small.pt2"
    exported = torch.export.export(Small().eval(), (torch.randn(2, 4),))
    torch.export.save(exported, path, extra_files={"notes.txt": "a note"})
    return path


Change = Callable[[str, bytes], tuple[str, bytes] | None]


def rewritten(
    archive: Path, target: Path, change: Change, *, compression: int = zipfile.ZIP_STORED
) -> Path:
    """Write ``archive`` again with each member changed, or left out for None."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            changed = change(name, old.read(name))
            if changed is not None:
                new.writestr(*changed)
    return target


def refusal(path: Path | str, *, trust: bool = True) -> GraphoptError:
    with pytest.raises(GraphoptError) as caught:
        load_pt2(path, trust=trust)
    return caught.value


# What is loaded


def test_plain_archive_loads_when_trusted(archive: Path) -> None:
    exported = load_pt2(archive, trust=True)
    program = capture_torch(exported, None)
    feed = {name: one.numpy() for name, one in program.model.meta[EXAMPLE_INPUTS_KEY].items()}
    assert list(feed) == ["x"]
    session = onnxruntime.InferenceSession(ir.to_proto(program.model).SerializeToString())
    expected = exported.module()(torch.from_numpy(feed["x"])).detach().numpy()
    np.testing.assert_allclose(session.run(None, feed)[0], expected, atol=1e-5)


def test_archive_without_example_inputs_loads(tmp_path: Path) -> None:
    exported = torch.export.export(Small().eval(), (torch.randn(2, 4),))
    exported.example_inputs = None
    path = tmp_path / "small.pt2"
    torch.export.save(exported, path)
    assert capture_torch(load_pt2(path, trust=True), None).model.meta[EXAMPLE_INPUTS_KEY] == {}


@pytest.mark.assets
@pytest.mark.parametrize(
    ("name", "shape", "bounds"),
    [
        ("resnet20_cifar10", "[x_dim0,3,32,32]", {"x_dim0": Bounds(1, 64)}),
        ("stories260k_prefill", "[1,tokens_dim1]", {"tokens_dim1": Bounds(2, 512)}),
    ],
)
def test_trained_archives_keep_their_bounds(
    assets: Path, name: str, shape: str, bounds: dict[str, Bounds]
) -> None:
    exported = load_pt2(assets / "models" / f"{name}.pt2", trust=True)
    program = capture_torch(exported, None)
    assert str(program.graph.inputs[0].shape) == shape
    assert program.bounds == bounds
    sample = program.model.meta[EXAMPLE_INPUTS_KEY]
    session = onnxruntime.InferenceSession(ir.to_proto(program.model).SerializeToString())
    got = session.run(None, {key: one.numpy() for key, one in sample.items()})[0]
    with torch.no_grad():
        expected = exported.module()(*sample.values()).numpy()
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()


# What is refused


def test_nothing_loads_without_trust(archive: Path) -> None:
    error = refusal(archive, trust=False)
    assert (type(error), error.code) == (InvalidModelError, "pt2-needs-trust")
    assert error.message == (
        f"'{archive}' is not loaded: loading a .pt2 archive can run code that is in it"
    )
    assert error.hint == "if you know who made it, allow it with trust=True (--trust)"


@pytest.mark.parametrize("trust", [False, True])
def test_what_is_no_archive(tmp_path: Path, trust: bool) -> None:
    cases = {"empty.pt2": (b"", "file-empty"), "text.pt2": (b"hello", "not-pt2")}
    for name, (data, code) in cases.items():
        (tmp_path / name).write_bytes(data)
        assert refusal(tmp_path / name, trust=trust).code == code
    assert refusal(tmp_path / "missing.pt2", trust=trust).code == "file-not-found"
    assert refusal(tmp_path, trust=trust).code == "not-a-file"
    os.mkfifo(tmp_path / "pipe.pt2")
    assert refusal(tmp_path / "pipe.pt2", trust=trust).code == "not-a-file"
    torch.save({"weight": torch.ones(2)}, tmp_path / "weights.pt2")
    error = refusal(tmp_path / "weights.pt2", trust=trust)
    assert error.code == "not-pt2"
    assert error.message.endswith("is no .pt2 archive but a file of torch.save or torch.jit.save")
    with zipfile.ZipFile(tmp_path / "old.pt2", "w") as old:
        old.writestr("serialized_exported_program.json", "{}")
        old.writestr("version", "8.0")
    assert refusal(tmp_path / "old.pt2", trust=trust).code in ("pt2-layout", "pt2-unsafe-archive")


def test_every_truncation_is_refused(archive: Path, tmp_path: Path) -> None:
    data = archive.read_bytes()
    for size in range(1, len(data), len(data) // 40):
        (tmp_path / "cut.pt2").write_bytes(data[:size])
        assert refusal(tmp_path / "cut.pt2").code in ("pt2-damaged", "not-pt2"), size


def test_flipped_bit_in_a_weight_is_noticed(archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(archive) as zipped:
        info = zipped.getinfo("small/data/weights/weight_0")
        weight = zipped.read(info)
    data = bytearray(archive.read_bytes())
    data[data.index(weight) + 3] ^= 1
    (tmp_path / "bad.pt2").write_bytes(data)
    error = refusal(tmp_path / "bad.pt2")
    assert (type(error), error.code) == (InvalidModelError, "pt2-damaged")
    assert "the check sum of 'small/data/weights/weight_0' is wrong" in error.message


def test_damage_anywhere_is_typed_or_harmless(archive: Path, tmp_path: Path) -> None:
    data = archive.read_bytes()
    chance = random.Random(0)
    table = data.index(b"PK\x01\x02")
    codes = set()
    for _ in range(40):
        damaged = bytearray(data)
        damaged[chance.randrange(table, len(data))] ^= 1 << chance.randrange(8)
        (tmp_path / "bad.pt2").write_bytes(damaged)
        try:
            load_pt2(tmp_path / "bad.pt2", trust=True)
        except GraphoptError as error:
            codes.add(error.code)
    assert {"pt2-damaged", "pt2-unsafe-archive"} <= codes


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "/absolute",
        "small/../../outside",
        "small/data\\weights",
        "C:/windows",
        "small/line\nbreak",
        "other/folder",
        "small",
    ],
)
@pytest.mark.parametrize("trust", [False, True])
def test_members_that_lead_outside(archive: Path, tmp_path: Path, name: str, trust: bool) -> None:
    target = tmp_path / "bad.pt2"
    rewritten(archive, target, lambda *member: member)
    with zipfile.ZipFile(target, "a") as zipped:
        zipped.writestr(name, "x")
    error = refusal(target, trust=trust)
    assert (type(error), error.code) == (InvalidModelError, "pt2-unsafe-archive")
    assert "lies outside of its one folder" in error.message


def test_repeated_compressed_and_overlapping_members(archive: Path, tmp_path: Path) -> None:
    target = tmp_path / "bad.pt2"
    rewritten(archive, target, lambda *m: m, compression=zipfile.ZIP_DEFLATED)
    assert "is compressed or encrypted" in refusal(target, trust=False).message
    rewritten(archive, target, lambda *member: member)
    with zipfile.ZipFile(target, "a") as zipped, pytest.warns(UserWarning, match="Duplicate name"):
        zipped.writestr("small/archive_format", "pt2")
    assert "'small/archive_format' is there twice" in refusal(target, trust=False).message
    # Forty names for one megabyte of zeros: what a zip bomb of overlapping members does.
    rewritten(archive, target, lambda *member: member)
    with zipfile.ZipFile(target, "a") as zipped:
        zipped.writestr("small/extra/zeros", bytes(1 << 20))
        first = zipped.getinfo("small/extra/zeros")
        for index in range(40):
            copied = zipfile.ZipInfo(f"small/extra/{index}")
            for key in ("header_offset", "CRC", "compress_size", "file_size"):
                setattr(copied, key, getattr(first, key))
            zipped.filelist.append(copied)
    assert "its members claim" in refusal(target, trust=False).message


class RunsCode:
    def __reduce__(self) -> Any:
        return (os.mkdir, (str(Path(os.environ["GRAPHOPT_TEST_PROOF"])),))


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_code_in_the_example_inputs_does_not_run(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proof = tmp_path / "proof"
    monkeypatch.setenv("GRAPHOPT_TEST_PROOF", str(proof))
    evil = pickled((RunsCode(),))

    def change(name: str, data: bytes) -> tuple[str, bytes]:
        return name, evil if "sample_inputs" in name else data

    target = rewritten(archive, tmp_path / "evil.pt2", change)
    error = refusal(target)
    assert (type(error), error.code) == (InvalidModelError, "pt2-holds-pickles")
    assert not proof.exists()
    # The check is needed: torch itself runs it (and then fails to log that it did).
    logging.disable(logging.CRITICAL)
    try:
        torch.export.load(target)
    finally:
        logging.disable(logging.NOTSET)
    assert proof.exists()


def with_pickled_weight(name: str, data: bytes) -> tuple[str, bytes]:
    if not name.endswith("_weights_config.json"):
        return name, data
    table = json.loads(data)
    next(iter(table["config"].values()))["use_pickle"] = True
    return name, json.dumps(table).encode()


CASES: list[tuple[str, Change, type[GraphoptError], str, str]] = [
    (
        "pickled weight",
        with_pickled_weight,
        InvalidModelError,
        "pt2-holds-pickles",
        "the tensor 'linear.weight' is stored as a pickle",
    ),
    (
        "bare pickle as example inputs",
        lambda n, d: (n, b"\x80\x02." if "sample_inputs" in n else d),
        InvalidModelError,
        "pt2-holds-pickles",
        "the example inputs are a bare pickle",
    ),
    (
        "custom object",
        lambda n, d: (n.replace("tensor_0", "custom_obj_0"), d),
        InvalidModelError,
        "pt2-holds-pickles",
        "'data/constants/custom_obj_0' is a pickle",
    ),
    (
        "opaque object",
        lambda n, d: (n.replace("tensor_0", "opaque_obj_0"), d),
        InvalidModelError,
        "pt2-holds-pickles",
        "'data/constants/opaque_obj_0' is a pickle",
    ),
    (
        "weights of an older layout",
        lambda n, d: (n.replace("data/weights/weight_0", "data/weights/model.pt"), d),
        InvalidModelError,
        "pt2-holds-pickles",
        "'data/weights/model.pt' is a pickle",
    ),
    (
        "table that is none",
        lambda n, d: (n, b"[]" if n.endswith("_weights_config.json") else d),
        InvalidModelError,
        "pt2-damaged",
        "is no table of weights",
    ),
    (
        "compiled code",
        lambda n, d: (n.replace("extra/", "data/aotinductor/model/"), d),
        UnsupportedError,
        "pt2-layout",
        "holds compiled code of AOTInductor",
    ),
    (
        "two programs",
        lambda n, d: (n.replace("extra/notes.txt", "models/other.json"), d),
        UnsupportedError,
        "pt2-layout",
        "holds 2 programs, expected one",
    ),
    (
        "graph that is none",
        lambda n, d: (n, b"{}" if "models/" in n else d),
        InvalidModelError,
        "pt2-unreadable",
        "cannot load",
    ),
    (
        "weight cut short",
        lambda n, d: (n, d[:8] if n.endswith("weight_0") else d),
        InvalidModelError,
        "pt2-unreadable",
        "cannot load",
    ),
    (
        "other version",
        lambda n, d: (n, b"99" if n.endswith("archive_version") else d),
        InvalidModelError,
        "pt2-unreadable",
        "archive version 99 does not match",
    ),
]


@pytest.mark.parametrize(
    ("change", "kind", "code", "text"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_archives_that_torch_does_not_write(
    archive: Path,
    tmp_path: Path,
    change: Change,
    kind: type[GraphoptError],
    code: str,
    text: str,
) -> None:
    error = refusal(rewritten(archive, tmp_path / "changed.pt2", change))
    assert (type(error), error.code) == (kind, code)
    assert text in error.message


def test_failing_load_prints_nothing(
    archive: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    target = rewritten(
        archive, tmp_path / "bad.pt2", lambda n, d: (n, b"{" if "models/" in n else d)
    )
    assert refusal(target).code == "pt2-unreadable"
    assert capfd.readouterr() == ("", "")
