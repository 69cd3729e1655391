"""Every hostile file becomes the typed error it deserves, by absolute and by relative path."""

import hashlib
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import onnx
import pytest

from graphopt.errors import GraphoptError, InvalidModelError
from graphopt.frontends import structure, wire
from graphopt.frontends.onnx_loader import load_onnx
from tests.frontends.hostile import HOSTILE, Maker
from tests.frontends.hostile_base import parse, plain, written


def snapshot(folder: Path) -> dict[str, str]:
    """Return what is in a folder: kind, size and digest of each entry, links not followed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        text = f"{status.st_mode:o} {status.st_size} {status.st_mtime_ns}"
        if stat.S_ISREG(status.st_mode) and status.st_size < 1 << 27:
            text += hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(folder))] = text
    return found


def load_refused(source: Path, error: type[GraphoptError], code: str) -> GraphoptError:
    started = time.monotonic()
    with pytest.raises(GraphoptError) as caught:
        load_onnx(source)
    assert (type(caught.value), caught.value.code) == (error, code), caught.value.message
    assert time.monotonic() - started < 10
    assert len(caught.value.message) < 2000, "a message is for a person"
    printable = caught.value.message.replace("\n", "")
    assert printable.isprintable(), "nothing from the file reaches the terminal raw"
    return caught.value


def test_there_are_enough_and_their_names_differ() -> None:
    names = [name for name, *_ in HOSTILE]
    assert len(names) >= 120
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("maker", "error", "code"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE]
)
def test_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    maker: Maker,
    error: type[GraphoptError],
    code: str,
) -> None:
    path = maker(tmp_path)
    before = snapshot(tmp_path)
    first = load_refused(path, error, code)
    monkeypatch.chdir(path.parent)
    second = load_refused(Path(path.name), error, code)
    assert first.message == second.message
    assert error.exit_code in (3, 4)
    assert snapshot(tmp_path) == before, "nothing was written or opened"


def test_a_node_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, plain())
    monkeypatch.setattr(structure, "MAX_NODES", 1)
    load_refused(path, InvalidModelError, "too-many-nodes")


def test_the_parser_never_sees_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = plain()
    model.graph.node[0].MergeFromString(b"\x2a\x00" * 100_000)
    path = written(tmp_path, model)
    monkeypatch.setattr(wire, "COUNT_FROM_BYTES", 1000)
    monkeypatch.setattr(wire, "MAX_MESSAGES", 50_000)
    load_refused(path, InvalidModelError, "too-many-parts")
    path = written(tmp_path, plain().SerializeToString() + b"\x42\x00" * 1000)
    monkeypatch.setattr(wire, "MAX_TOP_FIELDS", 900)
    load_refused(path, InvalidModelError, "too-many-parts")


def test_a_graph_in_two_pieces_is_one_graph(tmp_path: Path) -> None:
    # Protobuf merges fields that are given twice; a checker that looked at one would miss half.
    model = plain()
    first, second = onnx_halves(model)
    path = written(tmp_path, first + second)
    assert [n.op_type for n in load_onnx(path).graph] == ["Abs", "Neg"]
    duplicate = written(tmp_path, model.SerializeToString() * 2, "twice.onnx")
    load_refused(duplicate, InvalidModelError, "duplicate-value-name")


def onnx_halves(model: onnx.ModelProto) -> tuple[bytes, bytes]:
    first, second = onnx.ModelProto(), onnx.ModelProto()
    first.CopyFrom(model)
    del first.graph.node[1:]
    del first.graph.output[:]
    second.graph.node.append(model.graph.node[1])
    second.graph.output.extend(model.graph.output)
    return first.SerializeToString(), second.SerializeToString()


HARMLESS = {
    "fold bomb": "g () => (float[20000, 20000] y)"
    "<int64[2] s = {20000, 20000}> { y = ConstantOfShape (s) }",
    "expand bomb": "g (float[1] x) => (float[1000000, 1000000] y)"
    "<int64[2] s = {1000000, 1000000}> { y = Expand (x, s) }",
    "range bomb": "g () => (int64[n] y)"
    "<int64 a = {0}, int64 b = {4611686018427387904}, int64 c = {1}> { y = Range (a, b, c) }",
    "tile bomb": "g (float[1] x) => (float[n] y)<int64[1] r = {1000000000000}> { y = Tile (x, r) }",
    "texts": "g (string[2] x) => (string[2] y) { y = Identity (x) }",
    "optional": "g (optional(float[2]) x) => (float[2] y) { y = OptionalGetElement (x) }",
    "sequence": "g (seq(float[2]) x) => (int64 y) { y = SequenceLength (x) }",
    "unused loop of nothing": "g (float[1] x) => (float[1] y) { y = Abs (x)  z = Abs (y) }",
}


@pytest.mark.parametrize("text", HARMLESS.values(), ids=HARMLESS.keys())
def test_what_is_only_odd_is_loaded(tmp_path: Path, text: str) -> None:
    model = parse(text)
    model.graph.node[0].name = "<script>alert(1)</script>"
    started = time.monotonic()
    program = load_onnx(written(tmp_path, model))
    assert len(program.graph) == len(model.graph.node)
    assert program.graph[0].name == "<script>alert(1)</script>", "the report escapes it"
    assert time.monotonic() - started < 20


def test_a_long_chain_needs_no_recursion(tmp_path: Path) -> None:
    model = plain()
    del model.graph.node[:]
    count = 100_000
    for index in range(count):
        model.graph.node.add(
            op_type="Abs",
            input=[f"v{index}" if index else "x"],
            output=[f"v{index + 1}" if index < count - 1 else "y"],
        )
    program = load_onnx(written(tmp_path, model))
    assert len(program.graph) == count


LOAD_ALL = textwrap.dedent(
    """
    import resource, sys
    from pathlib import Path
    from graphopt.errors import GraphoptError
    from graphopt.frontends.onnx_loader import load_onnx
    load_onnx(sys.argv[1])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in sys.stdin.read().splitlines():
        try:
            load_onnx(path)
        except GraphoptError:
            continue
        raise SystemExit(f"loaded {path}")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
)


def test_reading_hostile_files_needs_little_memory(tmp_path: Path) -> None:
    paths = []
    for number, (_, maker, _, _) in enumerate(HOSTILE):
        folder = tmp_path / str(number)
        folder.mkdir()
        paths.append(str(maker(folder)))
    found = subprocess.run(
        [sys.executable, "-c", LOAD_ALL, str(written(tmp_path, plain()))],
        input="\n".join(paths),
        capture_output=True,
        text=True,
        check=True,
    )
    unit = 1 if sys.platform == "darwin" else 1024
    # A million messages of two bytes each are the most, at about 200 bytes in memory.
    assert int(found.stdout) * unit < 300 << 20
