"""Temporary folders that go with the process that made them.

A folder is removed when it is closed, when its owner is garbage, and when the process ends. A
process that is killed does none of that, so the folder says whose it is: the file ``OWNER_FILE`` in
it is locked (``flock``) as long as the owner lives, and the kernel gives the lock back whatever the
end. ``remove_abandoned`` removes the folders of this user whose lock nobody holds.

Why it is safe:

1. The file gets its name when it is locked already, so one without a lock belonged to a process
   that is gone. A folder without the file is left alone: somebody else's, or one just being made.
2. Who removes holds the lock meanwhile, and looks again whether it is still the file of that name:
   two that clean up do not meet, and a folder that was made anew under the same name stays.
3. Nothing is followed: neither a link in the place of the folder nor one in the place of the file
   is opened, and folders of other users are passed over.
4. The file is removed last, so that a removal that is killed can be finished by the next one.

Without ``flock`` (Windows, some network file systems) folders have no such file, and nothing is
removed but what the process itself made.
"""

import contextlib
import os
import shutil
import stat
import tempfile
import weakref
from pathlib import Path
from types import TracebackType

try:
    import fcntl
except ImportError:  # not on this system
    fcntl = None  # type: ignore[assignment]  # None where there are no locks

PREFIX = "graphopt-"
OWNER_FILE = ".graphopt-owner"

_UNLOCKED = ".graphopt-owner-new"


class TemporaryFolder:
    """A private folder in the temporary folder of the system.

    Args:
        kind: What it is for; a part of its name.

    Attributes:
        path: The folder.
        lock: Descriptor that holds the lock, -1 without one. A child process that inherits it keeps
            the folder while it lives.
    """

    def __init__(self, kind: str) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{kind}-"))
        try:
            self.lock = _claim(self.path)
        except BaseException:
            shutil.rmtree(self.path, ignore_errors=True)
            raise
        self._end = weakref.finalize(self, _end, self.path, self.lock, os.getpid())

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the folder and what is in it."""
        self._end()


def remove_abandoned(parent: Path | None = None) -> list[Path]:
    """Remove the folders of this user whose processes are gone; return those that went.

    Args:
        parent: Where to look; None: the temporary folder of the system.
    """
    removed: list[Path] = []
    if fcntl is None:
        return removed
    where = Path(tempfile.gettempdir()) if parent is None else parent
    try:
        with os.scandir(where) as entries:
            names = sorted(e.name for e in entries if e.name.startswith(PREFIX))
    except OSError:
        return removed  # no folder that can be listed, nothing to tidy
    for name in names:
        with contextlib.suppress(OSError):  # another process may be quicker
            if _remove_if_abandoned(where / name):
                removed.append(where / name)
    return removed


def _claim(folder: Path) -> int:
    """Put a locked owner's file into ``folder``; return its descriptor, -1 without locks."""
    if fcntl is None:
        return -1
    new = folder / _UNLOCKED
    descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(new, folder / OWNER_FILE)
    except OSError:
        # A file system without locks: nobody can tell whether the owner lives.
        os.close(descriptor)
        new.unlink(missing_ok=True)
        return -1
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _end(path: Path, lock: int, owner: int) -> None:
    if os.getpid() != owner:
        return  # a copy of the process, by fork: the folder is not its own
    _remove(path)
    if lock >= 0:
        os.close(lock)


def _remove_if_abandoned(folder: Path) -> bool:
    inside = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(inside).st_uid != os.geteuid():
            return False
        file = os.open(OWNER_FILE, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=inside)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                return False
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            now = os.stat(folder / OWNER_FILE, follow_symlinks=False)
            if not os.path.samestat(now, status):
                return False
            _remove(folder)
            return not folder.exists()
        finally:
            os.close(file)
    finally:
        os.close(inside)


def _remove(folder: Path) -> None:
    """Remove a folder, its owner's file last."""
    if fcntl is None:
        shutil.rmtree(folder, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        inside = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _empty(inside)
            os.unlink(OWNER_FILE, dir_fd=inside)
        finally:
            os.close(inside)
            os.rmdir(folder)


def _empty(folder: int) -> None:
    """Remove what is in an open folder, but its owner's file."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name == OWNER_FILE:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.name, ignore_errors=True, dir_fd=folder)
            else:
                os.unlink(entry.name, dir_fd=folder)
