"""Writing outputs: whole or not at all, and never over an input.

Every file is written under its final name into a private folder beside the target, on the same file
system, and moved into place when all of them are complete. The file that was added last is moved
last: it is the one that names the others, so until then a reader finds the old model. A process
that is killed leaves such a folder behind; the next writer in the same place removes it when it
is a day old.
"""

import contextlib
import errno
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from graphopt.errors import OutputError

FOLDER_PREFIX = ".graphopt-unfinished-"
STALE_SECONDS = 24 * 3600

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_WRITE = (errno.EACCES, errno.EPERM, errno.EROFS)
_BACKUP_PREFIX = "old-"


class _Folder:
    """A target folder, held open, with the private folder inside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        _remove_stale(path)
        self.descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.private = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=path))
        except BaseException:
            os.close(self.descriptor)
            raise

    def close(self) -> None:
        shutil.rmtree(self.private, ignore_errors=True)
        if self.descriptor >= 0:
            descriptor, self.descriptor = self.descriptor, -1
            os.close(descriptor)


class OutputTransaction:
    """Files that appear together when the ``with`` block ends without an exception.

    Args:
        inputs: Files that must not be written to: the model and its data files.
        overwrite: Whether a target may exist already.

    Raises:
        OutputError: a target is refused, or a file cannot be written; what was there before is
            still there.
    """

    def __init__(self, *, inputs: Iterable[Path] = (), overwrite: bool = True) -> None:
        self._overwrite = overwrite
        self._inputs = {i for path in inputs if (i := _identity(path)) is not None}
        self._folders: dict[Path, _Folder] = {}
        self._targets: dict[Path, Path] = {}
        self._open_files: list[BinaryIO] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._commit()
        except OSError as failure:
            raise _output_error(failure, self._some_target()) from failure
        finally:
            self._clean_up()
        if isinstance(error, OSError) and error.errno in (*_NO_SPACE, errno.EROFS):
            raise _output_error(error, self._some_target()) from error

    def open(self, path: Path | str) -> BinaryIO:
        """Return a file to write the contents of ``path`` to; closed by the transaction."""
        private = self.path_for(path)
        try:
            file = open(private, "xb", opener=_open_new)  # noqa: SIM115 - closed at the end
        except OSError as error:
            raise _output_error(error, Path(path)) from error
        self._open_files.append(file)
        return file

    def path_for(self, path: Path | str) -> Path:
        """Return the private path under which to write the contents of ``path``.

        Files of one folder lie beside each other there too, so one may name the other.

        Raises:
            OutputError: ``path`` may not be written.
        """
        target = _resolved(Path(path))
        self._check_target(target)
        if target in self._targets:
            raise OutputError("output-repeated", f"two outputs have the path '{target}'")
        try:
            if target.parent not in self._folders:
                self._folders[target.parent] = _Folder(target.parent)
        except OSError as error:
            raise _output_error(error, target) from error
        private = self._folders[target.parent].private / target.name
        self._targets[target] = private
        return private

    def retarget(self, old: Path | str, new: Path | str) -> Path:
        """Give a file, already written or not, another final name in the same folder.

        For names that depend on the contents. The file keeps its place in the order.

        Raises:
            OutputError: ``new`` may not be written, or lies in another folder.
        """
        before, after = _resolved(Path(old)), _resolved(Path(new))
        self._check_target(after)
        if before not in self._targets or after in self._targets or before.parent != after.parent:
            raise OutputError("output-repeated", f"'{before}' cannot become '{after}'")
        private = self._targets[before]
        renamed = private.with_name(after.name)
        if private.exists():
            private.rename(renamed)
        self._targets = {
            (after if target == before else target): (renamed if target == before else path)
            for target, path in self._targets.items()
        }
        return renamed

    def _check_target(self, target: Path) -> None:
        try:
            status = os.lstat(target)
        except FileNotFoundError:
            if not target.parent.is_dir():
                raise OutputError(
                    "output-folder-missing",
                    f"cannot write '{target}': the folder does not exist",
                    hint="make the folder first",
                ) from None
            return
        except (OSError, ValueError) as error:
            raise _output_error(error, target) from error
        if stat.S_ISLNK(status.st_mode):
            raise OutputError(
                "output-is-link",
                f"will not write '{target}': it is a symbolic link",
                hint="name the file that it points to, or remove the link",
            )
        if not stat.S_ISREG(status.st_mode):
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "a device, pipe or socket"
            raise OutputError("output-not-a-file", f"cannot write '{target}': it is {what}")
        if (status.st_dev, status.st_ino) in self._inputs:
            raise OutputError(
                "output-is-input",
                f"will not write '{target}': it is an input of this run",
                hint="choose another output path",
            )
        if not self._overwrite:
            raise OutputError("output-exists", f"'{target}' exists already")

    def _commit(self) -> None:
        for file in self._open_files:
            file.close()
        for target, private in self._targets.items():
            _finish_file(private, target)
        moved: list[tuple[Path, Path | None]] = []
        try:
            for number, (target, private) in enumerate(self._targets.items()):
                self._check_target(target)
                moved.append((target, self._keep_old(number, target)))
                self._move(private, target)
        except BaseException:
            for target, old in reversed(moved):
                self._put_back(target, old)
            raise
        for folder in self._folders.values():
            os.fsync(folder.descriptor)

    def _keep_old(self, number: int, target: Path) -> Path | None:
        """Give the present file a second name in the private folder, to put it back on failure."""
        if len(self._targets) == 1 or not target.exists():
            return None
        old = self._folders[target.parent].private / f"{_BACKUP_PREFIX}{number}-{target.name}"
        # Not every file system has hard links; then a failure between two moves cannot be undone.
        with contextlib.suppress(OSError):
            os.link(target, old, follow_symlinks=False)
            return old
        return None

    def _move(self, private: Path, target: Path) -> None:
        into = self._folders[target.parent].descriptor
        if self._overwrite:
            os.replace(private, target.name, dst_dir_fd=into)
            return
        try:
            # A link, unlike a rename, fails when somebody else made the file in the meantime.
            os.link(private, target.name, dst_dir_fd=into)
        except FileExistsError as error:
            raise OutputError("output-exists", f"'{target}' exists already") from error
        os.unlink(private)

    def _put_back(self, target: Path, old: Path | None) -> None:
        private = self._targets[target]
        if private.exists():
            return  # this one was never moved
        with contextlib.suppress(OSError):
            if old is not None:
                os.replace(old, target)
            else:
                os.unlink(target)

    def _some_target(self) -> Path:
        return next(reversed(self._targets), Path())

    def _clean_up(self) -> None:
        try:
            self._remove_private()
        except KeyboardInterrupt:
            self._remove_private()
            raise

    def _remove_private(self) -> None:
        while self._open_files:
            with contextlib.suppress(OSError):
                self._open_files.pop().close()
        for folder in self._folders.values():
            folder.close()


def write_file(path: Path | str, data: bytes, inputs: Iterable[Path] = ()) -> Path:
    """Write ``data`` to ``path`` whole or not at all; returns the path.

    Args:
        path: The file; replaced when it exists.
        data: All its contents.
        inputs: Files that must not be touched.

    Raises:
        OutputError: the file may not or cannot be written.
    """
    with OutputTransaction(inputs=inputs) as transaction:
        transaction.open(path).write(data)
    return Path(path)


def write_text(path: Path | str, text: str, inputs: Iterable[Path] = ()) -> Path:
    """Write ``text`` in UTF-8; see ``write_file``."""
    return write_file(path, text.encode("utf-8"), inputs)


def _resolved(path: Path) -> Path:
    """Return ``path`` with its folder resolved and its own name kept."""
    if not path.name or path.name == "..":
        raise OutputError("output-not-a-file", f"'{path}' names no file")
    try:
        return Path(os.path.realpath(path.parent)) / path.name
    except (OSError, ValueError) as error:
        raise _output_error(error, path) from error


def _open_new(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _finish_file(private: Path, target: Path) -> None:
    """Bring one file to the disk with the access that a new file gets, and check its size."""
    try:
        descriptor = os.open(private, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise OutputError("output-not-written", f"nothing was written to '{target}'") from error
    try:
        os.fchmod(descriptor, _new_file_mode(private.parent))
        size = os.fstat(descriptor).st_size
        os.fsync(descriptor)
        if os.fstat(descriptor).st_size != size or os.lseek(descriptor, 0, os.SEEK_END) != size:
            raise OutputError("output-not-written", f"'{target}' changed while it was written")
    finally:
        os.close(descriptor)


def _new_file_mode(folder: Path) -> int:
    """Return the mode of a new file: 0666 without the umask, which only a new file can tell."""
    probe = folder / f"{_BACKUP_PREFIX}mode"
    descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)
        os.unlink(probe)


def _remove_stale(folder: Path) -> None:
    """Remove private folders that a killed process left here more than a day ago."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(FOLDER_PREFIX):
                continue
            status = entry.stat(follow_symlinks=False)
            old = time.time() - status.st_mtime > STALE_SECONDS
            if old and stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
                shutil.rmtree(entry.path, ignore_errors=True)


def _output_error(error: OSError | ValueError, target: Path) -> OutputError:
    """Return the error for a failed call of the operating system."""
    number = getattr(error, "errno", None)
    reason = getattr(error, "strerror", None) or str(error)
    if number in _NO_SPACE:
        return OutputError(
            "output-no-space",
            f"cannot write '{target}': {reason}",
            hint="make room on the disk; what was there before is still there",
        )
    if number in _NO_WRITE:
        return OutputError(
            "output-not-writable",
            f"cannot write '{target}': {reason}",
            hint="choose a folder that you may write to",
        )
    return OutputError("output-not-written", f"cannot write '{target}': {reason}")
