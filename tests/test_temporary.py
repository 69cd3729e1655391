"""Temporary folders go with their process, and one that was killed is cleaned up after."""

import fcntl
import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from graphopt import temporary
from graphopt.temporary import OWNER_FILE, TemporaryFolder, remove_abandoned


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make ``tmp_path`` the temporary folder of the system."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def abandoned(place: Path, name: str = "graphopt-old-1") -> Path:
    """Make a folder as a killed process leaves it."""
    folder = place / name
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "weights.data").write_bytes(b"1" * 100)
    (folder / OWNER_FILE).touch()
    return folder


def test_a_folder_is_private_and_goes_when_it_is_closed(place: Path) -> None:
    with TemporaryFolder("test") as folder:
        assert folder.parent == place
        assert folder.name.startswith("graphopt-test-")
        assert folder.stat().st_mode & 0o777 == 0o700
        assert os.listdir(folder) == [OWNER_FILE]
        (folder / "sub").mkdir()
        (folder / "sub" / "file").touch()
        (folder / "link").symlink_to(place)
    assert os.listdir(place) == []


def test_a_folder_goes_with_its_owner_and_twice_does_no_harm(place: Path) -> None:
    owner = TemporaryFolder("test")
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    owner.close()
    owner.close()
    assert os.listdir(place) == []
    if before:
        assert len(os.listdir("/proc/self/fd")) == before - 1
    owner = TemporaryFolder("test")
    del owner
    gc.collect()
    assert os.listdir(place) == []


def test_abandoned_folders_go_and_those_in_use_stay(place: Path) -> None:
    first, second = abandoned(place), abandoned(place, "graphopt-old-2")
    with TemporaryFolder("test") as folder:
        (folder / "file").write_text("kept")
        assert remove_abandoned() == [first, second]
        assert (folder / "file").read_text() == "kept"
        assert os.listdir(place) == [folder.name]
    assert remove_abandoned(place / "missing") == []


def test_what_is_not_a_temporary_folder_of_ours_stays(place: Path) -> None:
    (place / "graphopt-results").mkdir()
    (place / "graphopt-results" / "model.onnx").touch()
    (place / "graphopt-file").touch()
    abandoned(place, "other-tool-1")
    target = abandoned(place / "elsewhere", "graphopt-old-1")
    (place / "graphopt-link").symlink_to(target)
    hidden = abandoned(place, "graphopt-hidden")
    (hidden / OWNER_FILE).unlink()
    (hidden / OWNER_FILE).symlink_to(target / OWNER_FILE)
    (place / "graphopt-odd" / OWNER_FILE).mkdir(parents=True)
    assert remove_abandoned() == []
    assert (target / "deep" / "er" / "weights.data").exists()
    assert (hidden / "deep" / "er" / "weights.data").exists()
    assert (place / "graphopt-results" / "model.onnx").exists()


def test_a_link_inside_is_not_followed(place: Path) -> None:
    outside = place / "mine"
    outside.mkdir()
    (outside / "precious").touch()
    folder = abandoned(place)
    (folder / "link").symlink_to(outside)
    (folder / "deep" / "link").symlink_to(outside)
    assert remove_abandoned() == [folder]
    assert (outside / "precious").exists()


def test_folders_of_other_users_stay(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = abandoned(place)
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    assert remove_abandoned() == []
    monkeypatch.undo()
    assert remove_abandoned(place) == [folder]


def test_a_folder_that_is_made_just_now_stays(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every step of making one, somebody else cleans up."""
    found = []
    for name in ("open", "rename"):
        real = getattr(os, name)

        def between(*args: object, _real: object = real, **kwargs: object) -> object:
            monkeypatch.undo()
            monkeypatch.setattr(tempfile, "tempdir", str(place))
            found.extend(remove_abandoned())
            result = _real(*args, **kwargs)  # type: ignore[operator]  # a function of os
            found.extend(remove_abandoned())
            return result

        monkeypatch.setattr(os, name, between)
        with TemporaryFolder("test") as folder:
            assert (folder / OWNER_FILE).exists()
    assert found == []


def test_a_folder_made_anew_under_the_same_name_stays(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = abandoned(place)
    real = fcntl.flock

    def replaced_meanwhile(descriptor: int, how: int) -> None:
        real(descriptor, how)
        os.rename(folder / OWNER_FILE, place / "moved")
        (folder / OWNER_FILE).touch()

    monkeypatch.setattr(fcntl, "flock", replaced_meanwhile)
    assert remove_abandoned() == []
    assert (folder / "deep" / "er" / "weights.data").exists()


def test_many_that_clean_up_and_make_folders_at_once(place: Path) -> None:
    for number in range(40):
        abandoned(place, f"graphopt-old-{number}")
    problems: list[str] = []
    removed: list[Path] = []

    def work() -> None:
        for _ in range(20):
            with TemporaryFolder("busy") as folder:
                (folder / "file").write_text("kept")
                removed.extend(remove_abandoned())
                if (folder / "file").read_text() != "kept":
                    problems.append(str(folder))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert os.listdir(place) == []
    assert sum(path.name.startswith("graphopt-busy") for path in removed) == 0


OWNER = """
import os, sys, time
from graphopt.temporary import TemporaryFolder
owner = TemporaryFolder("owned")
if sys.argv[1] == "child" and os.fork() == 0:
    owner.close()  # the folder of the parent: nothing happens
    time.sleep(600)
print(owner.path, flush=True)
time.sleep(600)
"""


def test_the_folder_of_a_living_process_stays_and_of_a_killed_one_goes(place: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, "alone"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        assert folder.parent == place
        assert remove_abandoned() == []
        assert folder.exists()
        process.kill()
        process.wait()
    assert folder.exists()
    assert remove_abandoned() == [folder]
    assert os.listdir(place) == []


def test_a_child_that_inherits_the_lock_keeps_the_folder(place: Path) -> None:
    owner = TemporaryFolder("shared")
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                          pass_fds=(owner.lock,)) as child:  # fmt: skip
        os.close(owner.lock)  # what the end of the owner does to its lock
        assert remove_abandoned() == []
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert remove_abandoned() == [owner.path]
    owner._end.detach()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_does_not_remove_the_folder_of_its_parent(place: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, "child"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        assert folder.exists()
        process.kill()
        process.wait()
        assert remove_abandoned() == []  # the copy of the process holds the lock
        os.killpg(process.pid, signal.SIGKILL)
    for _ in range(1000):
        if remove_abandoned() == [folder]:
            break
    assert not folder.exists()


@pytest.mark.parametrize("broken", ["no locks", "no fcntl"])
def test_without_locks_nothing_is_taken_for_abandoned(
    place: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    folder = abandoned(place)
    if broken == "no fcntl":
        monkeypatch.setattr(temporary, "fcntl", None)
    else:

        def refuse(descriptor: int, how: int) -> None:
            raise OSError(37, "no locks available")

        monkeypatch.setattr(fcntl, "flock", refuse)
    with TemporaryFolder("test") as made:
        assert os.listdir(made) == []
        (made / "file").touch()
        assert remove_abandoned() == []
    assert os.listdir(place) == [folder.name]
