"""Outputs appear whole or not at all, whatever happens while they are written."""

# ruff: noqa: PT012 - what raises is the end of a with block, so the block is part of the test

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from graphopt.errors import OutputError
from graphopt.safe_files import (
    FOLDER_PREFIX,
    STALE_SECONDS,
    OutputTransaction,
    write_file,
    write_text,
)


def left_behind(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(FOLDER_PREFIX)]


def refused(code: str, path: Path, **options: Any) -> None:
    with pytest.raises(OutputError) as caught, OutputTransaction(**options) as out:
        out.path_for(path)
    assert caught.value.code == code
    assert caught.value.exit_code == 7


def test_files_appear_together_at_the_end(tmp_path: Path) -> None:
    with OutputTransaction() as out:
        out.open(tmp_path / "m.data").write(b"data")
        out.path_for(tmp_path / "m.onnx").write_bytes(b"model")
        assert not (tmp_path / "m.data").exists()
        assert not (tmp_path / "m.onnx").exists()
        assert len(left_behind(tmp_path)) == 1
    assert (tmp_path / "m.data").read_bytes() == b"data"
    assert (tmp_path / "m.onnx").read_bytes() == b"model"
    assert sorted(os.listdir(tmp_path)) == ["m.data", "m.onnx"]


def test_while_written_files_are_private_and_beside_each_other(tmp_path: Path) -> None:
    with OutputTransaction() as out:
        first, second = out.path_for(tmp_path / "a"), out.path_for(tmp_path / "b")
        assert first.parent == second.parent
        assert first.name == "a"
        assert first.parent.stat().st_mode & 0o777 == 0o700
        first.write_bytes(b"1")
        assert first.stat().st_dev == tmp_path.stat().st_dev
        second.write_bytes(b"2")


def test_the_last_file_is_moved_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    real = os.replace

    def spy(source: Any, target: Any, **options: Any) -> None:
        order.append(os.path.basename(target))
        real(source, target, **options)

    monkeypatch.setattr(os, "replace", spy)
    with OutputTransaction() as out:
        for name in ("w2.data", "w1.data", "model.onnx"):
            out.open(tmp_path / name).write(b"x")
    assert order == ["w2.data", "w1.data", "model.onnx"]


def test_retarget_renames_before_and_after_writing(tmp_path: Path) -> None:
    with OutputTransaction() as out:
        out.path_for(tmp_path / "m.data").write_bytes(b"data")
        moved = out.retarget(tmp_path / "m.data", tmp_path / "m-1234.data")
        assert moved.read_bytes() == b"data"
        out.path_for(tmp_path / "m.onnx").write_bytes(b"model")
    assert sorted(os.listdir(tmp_path)) == ["m-1234.data", "m.onnx"]


def test_retarget_obeys_the_same_rules(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    for new, code in (("sub", "output-not-a-file"), ("link", "output-is-link")):
        with pytest.raises(OutputError) as caught, OutputTransaction() as out:
            out.path_for(tmp_path / "a")
            out.retarget(tmp_path / "a", tmp_path / new)
        assert caught.value.code == code
    with pytest.raises(OutputError), OutputTransaction() as out:
        out.path_for(tmp_path / "a")
        out.retarget(tmp_path / "a", tmp_path / "sub" / "a")


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_mode_is_that_of_a_new_file(tmp_path: Path, umask: int) -> None:
    old = os.umask(umask)
    try:
        with OutputTransaction() as out:
            private = out.path_for(tmp_path / "a")
            private.write_bytes(b"x")
            private.chmod(0o600)
            out.open(tmp_path / "b").write(b"x")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~umask
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_everything_as_it_was(
    tmp_path: Path, error: type[BaseException]
) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(error), OutputTransaction() as out:
        out.open(tmp_path / "a").write(b"new")
        out.open(tmp_path / "b").write(b"new")
        raise error
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_targets_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    refused("output-not-a-file", tmp_path / "folder")
    refused("output-is-link", tmp_path / "link")
    refused("output-is-link", tmp_path / "dangling")
    refused("output-not-a-file", tmp_path / "pipe")
    refused("output-not-a-file", Path("/dev/null"))
    refused("output-not-a-file", Path("/"))
    refused("output-not-a-file", tmp_path / "..")
    refused("output-folder-missing", tmp_path / "none" / "x")
    refused("output-not-written", tmp_path / "file" / "x")
    refused("output-not-written", tmp_path / ("x" * 300))
    refused("output-not-written", tmp_path / "a\0b")
    assert (tmp_path / "file").read_bytes() == b"x"
    assert left_behind(tmp_path) == []


def test_inputs_are_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(b"input")
    (tmp_path / "folder").symlink_to(tmp_path)
    os.link(model, tmp_path / "hard")
    for path in (model, tmp_path / "hard", tmp_path / "folder" / "m.onnx"):
        refused("output-is-input", path, inputs=[model])
    monkeypatch.chdir(tmp_path)
    refused("output-is-input", Path("m.onnx"), inputs=[model.resolve()])
    refused("output-is-input", model, inputs=[Path("m.onnx")])
    refused("output-is-input", model, inputs=[tmp_path / "folder" / "m.onnx"])
    assert model.read_bytes() == b"input"
    write_file(tmp_path / "other.onnx", b"x", inputs=[model, tmp_path / "none"])


def test_the_same_target_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(tmp_path)
    with pytest.raises(OutputError) as caught, OutputTransaction() as out:
        out.open(tmp_path / "a")
        out.open(tmp_path / "alias" / "a")
    assert caught.value.code == "output-repeated"
    assert os.listdir(tmp_path) == ["alias"]


def test_without_overwrite_nothing_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    refused("output-exists", tmp_path / "a", overwrite=False)
    with OutputTransaction(overwrite=False) as out:
        out.open(tmp_path / "b").write(b"new")
    assert (tmp_path / "b").read_bytes() == b"new"
    with pytest.raises(OutputError) as caught, OutputTransaction(overwrite=False) as out:
        out.open(tmp_path / "c").write(b"mine")
        (tmp_path / "c").write_bytes(b"theirs")
    assert caught.value.code == "output-exists"
    assert (tmp_path / "c").read_bytes() == b"theirs"
    assert left_behind(tmp_path) == []


def test_a_link_put_there_meanwhile_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    with pytest.raises(OutputError) as caught, OutputTransaction() as out:
        out.open(tmp_path / "a").write(b"new")
        (tmp_path / "a").symlink_to(victim)
    assert caught.value.code == "output-is-link"
    assert victim.read_bytes() == b"precious"


def test_a_file_that_was_never_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught, OutputTransaction() as out:
        out.open(tmp_path / "a").write(b"new")
        out.path_for(tmp_path / "b")
    assert caught.value.code == "output-not-written"
    assert os.listdir(tmp_path) == []


def test_a_failure_between_two_moves_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").write_bytes(b"old data")
    (tmp_path / "model").write_bytes(b"old model")
    real = os.replace

    def fail_on_model(source: Any, target: Any, **options: Any) -> None:
        if target == "model":
            raise OSError(errno.EIO, "broken disk")
        real(source, target, **options)

    monkeypatch.setattr(os, "replace", fail_on_model)
    with pytest.raises(OutputError, match="broken disk") as caught, OutputTransaction() as out:
        out.open(tmp_path / "data").write(b"new data")
        out.open(tmp_path / "fresh").write(b"new")
        out.open(tmp_path / "model").write(b"new model")
    assert caught.value.code == "output-not-written"
    assert (tmp_path / "data").read_bytes() == b"old data"
    assert (tmp_path / "model").read_bytes() == b"old model"
    assert sorted(os.listdir(tmp_path)) == ["data", "model"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError) as caught:
        write_file(tmp_path / "a", b"new")
    assert caught.value.code == "output-no-space"
    assert (tmp_path / "a").read_bytes() == b"old"
    assert left_behind(tmp_path) == []


def test_a_file_beyond_the_limit_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OutputError) as caught:
            write_file(tmp_path / "a", b"x" * (2 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.code == "output-no-space"
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    (small_disk / "a").write_bytes(b"old")
    with pytest.raises(OutputError) as caught, OutputTransaction() as out:
        file = out.open(small_disk / "a")
        for _ in range(32):
            file.write(b"x" * (1 << 16))
    assert caught.value.code == "output-no-space"
    assert os.listdir(small_disk) == ["a"]
    assert (small_disk / "a").read_bytes() == b"old"


def test_a_file_system_that_is_read_only(small_disk: Path) -> None:
    (small_disk / "a").write_bytes(b"old")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    refused("output-not-writable", small_disk / "a")
    assert (small_disk / "a").read_bytes() == b"old"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_access(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    refused("output-not-writable", tmp_path / "a")
    tmp_path.chmod(0o700)


def test_stale_folders_are_removed_and_young_ones_kept(tmp_path: Path) -> None:
    old, young = tmp_path / f"{FOLDER_PREFIX}old", tmp_path / f"{FOLDER_PREFIX}young"
    precious = tmp_path / "precious"
    for folder in (old, young, precious):
        folder.mkdir()
        (folder / "file").write_bytes(b"x")
    trap = tmp_path / f"{FOLDER_PREFIX}link"
    trap.symlink_to(precious)
    long_ago = time.time() - STALE_SECONDS - 60
    os.utime(old, (long_ago, long_ago))
    os.utime(precious, (long_ago, long_ago))
    os.utime(trap, (long_ago, long_ago), follow_symlinks=False)
    write_file(tmp_path / "a", b"x")
    assert not old.exists()
    assert young.exists()
    assert (precious / "file").exists()
    assert trap.is_symlink()


def test_two_writers_do_not_disturb_each_other(tmp_path: Path) -> None:
    with OutputTransaction() as first, OutputTransaction() as second:
        first.open(tmp_path / "a").write(b"first")
        second.open(tmp_path / "a").write(b"second")
    assert (tmp_path / "a").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["a"]


def test_several_folders_in_one_transaction(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    with OutputTransaction() as out:
        out.open(tmp_path / "x" / "a").write(b"1")
        out.open(tmp_path / "y" / "a").write(b"2")
    assert [os.listdir(tmp_path / name) for name in "xy"] == [["a"], ["a"]]


def test_helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert write_text("a.txt", "ä\n") == Path("a.txt")
    assert (tmp_path / "a.txt").read_bytes() == "ä\n".encode()
    assert write_file(tmp_path / "empty", b"").read_bytes() == b""


def test_no_descriptors_leak(tmp_path: Path) -> None:
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        write_file(tmp_path / "a", b"x")
        refused("output-not-a-file", tmp_path)
        with pytest.raises(RuntimeError), OutputTransaction() as out:
            out.open(tmp_path / "b")
            raise RuntimeError
    assert len(os.listdir("/proc/self/fd")) == before


# What is started in the background ignores Ctrl-C, unless it says otherwise.
WRITER = textwrap.dedent(
    """
    import signal
    import sys
    from pathlib import Path
    from graphopt.safe_files import OutputTransaction
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder, size = Path(sys.argv[1]), int(sys.argv[2])
    print("ready", flush=True)
    for round in range(1, 10**6):
        byte = bytes([round % 256])
        with OutputTransaction() as out:
            data = out.open(folder / f"m-{round % 256:02x}.data")
            model = out.open(folder / "m.onnx")
            for _ in range(16):
                data.write(byte * (size // 16))
                model.write(byte * (size // 16))
    """
)


def test_a_killed_save_leaves_the_old_or_the_new_model(tmp_path: Path) -> None:
    size = 1 << 20
    generator = random.Random(7)
    script = tmp_path / "writer.py"
    script.write_text(WRITER)
    folder = tmp_path / "out"
    folder.mkdir()
    seen: set[bytes] = set()
    for _ in range(20):
        process = subprocess.Popen(
            [sys.executable, str(script), str(folder), str(size)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.01 + generator.random() * 0.15)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        for path in folder.glob("m*"):
            content = path.read_bytes()
            assert len(content) == size, f"{path.name} is partial"
            assert content == content[:1] * size, f"{path.name} is mixed"
        if (folder / "m.onnx").exists():
            # The model never names a data file that is not there.
            first = (folder / "m.onnx").read_bytes()[0]
            assert (folder / f"m-{first:02x}.data").exists()
            seen.add(bytes([first]))
    assert len(seen) > 3, "the kills came too early to mean anything"
    long_ago = time.time() - STALE_SECONDS - 60
    for name in left_behind(folder):
        os.utime(folder / name, (long_ago, long_ago))
    write_file(folder / "next", b"x")
    assert left_behind(folder) == []


def test_interrupt_by_signal_removes_what_was_begun(tmp_path: Path) -> None:
    script = tmp_path / "writer.py"
    script.write_text(WRITER)
    folder = tmp_path / "out"
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder), str(1 << 22)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=30)
    process.stdout.close()
    assert left_behind(folder) == []


def test_every_failing_system_call_becomes_an_output_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def broken(number: int) -> Callable[..., Any]:
        def call(*_: Any, **__: Any) -> Any:
            raise OSError(number, os.strerror(number))

        return call

    cases = [
        (tempfile, "mkdtemp", errno.EROFS, "output-not-writable"),
        (tempfile, "mkdtemp", errno.ENOSPC, "output-no-space"),
        (os, "fchmod", errno.EPERM, "output-not-writable"),
        (os, "replace", errno.EIO, "output-not-written"),
        (os, "open", errno.EMFILE, "output-not-written"),
    ]
    for module, name, number, code in cases:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, broken(number))
            with pytest.raises(OutputError) as caught:
                write_file(tmp_path / "a", b"new")
        assert caught.value.code == code, name
        assert os.listdir(tmp_path) == ["a"]
        assert (tmp_path / "a").read_bytes() == b"old"
