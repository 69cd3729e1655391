"""The .pt2 front end: an archive that ``torch.export.save`` wrote in, an exported program out.

What is safe and what is not (torch 2.13). A .pt2 file is a zip archive of weights as plain bytes
and of the graph as JSON; for a plain program its only pickle is that of the example inputs.
Loading it can still run code that is in it, in three ways: ``torch.export.load`` falls back to
unrestricted unpickling where the restricted one fails, sympy evaluates the size expressions in the
JSON, and operators are looked up in torch by the names written there. The first way is closed
here. The other two cannot be closed from outside, so no archive is safe to load from a stranger,
and none is loaded unless the caller trusts it.

Before that, whether trusted or not, the archive must be what torch writes: a regular file, a zip
whose members lie in one folder, once each, uncompressed (which rules out zip bombs) and without
paths that lead out of it. Trusted archives are then refused for pickles other than example inputs
made of tensors and containers, for compiled code, and for damage: torch does not notice a flipped
bit in a weight, the check sums of the archive do.
"""

import io
import json
import os
import posixpath
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from torch.export import ExportedProgram

from graphopt.errors import InvalidModelError, UnsupportedError
from graphopt.frontends.text import shown
from graphopt.frontends.torch_capture import quiet

# A member per weight: far more than any model has, far less than fills the memory.
MAX_MEMBERS = 1_000_000

_ZIP_START = b"PK\x03\x04"
_SAMPLES = "data/sample_inputs/"
# Members that the loader unpickles without restriction.
_PICKLES = ("data/constants/custom_obj_", "data/constants/opaque_obj_")
_TABLES = ("_weights_config.json", "_constants_config.json")
_SAVE_AGAIN = "save it again with torch.export.save of a recent torch"


def load_pt2(path: str | os.PathLike[str], *, trust: bool) -> ExportedProgram:
    """Return the exported program in a .pt2 archive; its weights are read into memory.

    Args:
        path: The archive.
        trust: Whether the caller trusts whoever made it; see above for what that means.

    Raises:
        InvalidModelError: it is not trusted, is no such archive, is damaged, or holds pickles.
        UnsupportedError: it holds compiled code, several programs, or has the layout of old torch.
    """
    path = Path(path)
    with _open(path) as file, _open_zip(file, path) as archive:
        members = _members(archive, path, os.fstat(file.fileno()).st_size)
        _check_layout(archive, members, path)
        if not trust:
            raise InvalidModelError(
                "pt2-needs-trust",
                f"'{path}' is not loaded: loading a .pt2 archive can run code that is in it",
                hint="if you know who made it, allow it with trust=True (--trust)",
            )
        _check_pickles(archive, members, path)
        damaged = archive.testzip()
        if damaged is not None:
            raise _damaged(path, f"the check sum of {shown(damaged)} is wrong")
        file.seek(0)
        return _load(file, path)


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file that is not empty."""
    try:
        # O_NONBLOCK: opening a pipe must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise InvalidModelError("file-not-found", f"no such file: '{path}'") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidModelError("file-unreadable", f"cannot read '{path}': {reason}") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise InvalidModelError("not-a-file", f"'{path}' is no regular file")
    with os.fdopen(descriptor, "rb") as file:
        if not status.st_size:
            raise InvalidModelError("file-empty", f"'{path}' is empty")
        yield file


def _damaged(path: Path, what: str) -> InvalidModelError:
    return InvalidModelError(
        "pt2-damaged",
        f"'{path}' is damaged: {what}",
        hint="copy or download it again",
    )


def _open_zip(file: BinaryIO, path: Path) -> zipfile.ZipFile:
    if file.read(len(_ZIP_START)) != _ZIP_START:
        raise InvalidModelError(
            "not-pt2",
            f"'{path}' is no .pt2 archive: it does not start like a zip file",
            hint="write one with torch.export.save(torch.export.export(module, inputs), path)",
        )
    file.seek(0)
    try:
        return zipfile.ZipFile(file)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _damaged(path, f"the table of the zip archive is unreadable ({error})") from error


def _refused(path: Path, what: str) -> InvalidModelError:
    return InvalidModelError(
        "pt2-unsafe-archive",
        f"'{path}' is refused: {what}",
        hint=f"torch writes no such archive; {_SAVE_AGAIN}",
    )


def _members(archive: zipfile.ZipFile, path: Path, file_bytes: int) -> dict[str, zipfile.ZipInfo]:
    """Return the members by their path inside the one folder of the archive."""
    infos = archive.infolist()
    if len(infos) > MAX_MEMBERS:
        raise _refused(path, f"it has {len(infos)} members, at most {MAX_MEMBERS} are allowed")
    members: dict[str, zipfile.ZipInfo] = {}
    total = 0
    root = infos[0].filename.partition("/")[0] if infos else ""
    for info in infos:
        name = info.filename
        folder, _, rest = name.partition("/")
        if not _is_plain(name) or folder != root or not rest:
            raise _refused(path, f"the member {shown(name)} lies outside of its one folder")
        if rest in members:
            raise _refused(path, f"the member {shown(name)} is there twice")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise _refused(path, f"the member {shown(name)} is compressed or encrypted")
        members[rest] = info
        total += info.file_size
    if total > file_bytes:
        raise _refused(path, f"its members claim {total} bytes, the file has {file_bytes}")
    return members


def _is_plain(name: str) -> bool:
    """Return whether a member name stays inside the archive, however it is read."""
    return (
        name.isprintable()
        and not name.startswith("/")
        and not set(name) & {"\\", ":"}
        and posixpath.normpath(name) == name
        and ".." not in name.split("/")
    )


def _check_layout(
    archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], path: Path
) -> None:
    """Refuse zip archives that are no .pt2, and those that hold something else than one graph."""
    if "serialized_exported_program.json" in {*members, *archive.namelist()}:
        raise UnsupportedError(
            "pt2-layout",
            f"'{path}' has the layout of torch 2.7 and older, which holds pickles",
            hint=_SAVE_AGAIN,
        )
    info = members.get("archive_format")
    if info is None or _read(archive, info, path) != b"pt2":
        other = " but a file of torch.save or torch.jit.save" if "data.pkl" in members else ""
        raise InvalidModelError(
            "not-pt2",
            f"'{path}' is no .pt2 archive{other}",
            hint="write one with torch.export.save(torch.export.export(module, inputs), path)",
        )
    if any(name.startswith("data/aotinductor/") for name in members):
        raise UnsupportedError(
            "pt2-layout",
            f"'{path}' holds compiled code of AOTInductor",
            hint="save the exported program itself: torch.export.save(exported, path)",
        )
    programs = [name for name in members if name.startswith("models/")]
    if len(programs) != 1:
        raise UnsupportedError(
            "pt2-layout",
            f"'{path}' holds {len(programs)} programs, expected one",
            hint="save each in an archive of its own",
        )


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> bytes:
    try:
        return archive.read(info)
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        raise _damaged(
            path, f"the member {shown(info.filename)} is unreadable ({error})"
        ) from error


def _check_pickles(
    archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], path: Path
) -> None:
    """Refuse every pickle but example inputs of tensors, which unpickle without running code."""
    for name, info in members.items():
        if name.startswith(_SAMPLES):
            _check_samples(_read(archive, info, path), path)
        elif name.startswith(_PICKLES) or (name.startswith("data/") and name.endswith(".pt")):
            raise _pickled(path, f"{shown(name)} is a pickle")
        elif name.endswith(_TABLES):
            _check_table(archive, info, path)


def _pickled(path: Path, what: str) -> InvalidModelError:
    return InvalidModelError(
        "pt2-holds-pickles",
        f"'{path}' is refused even when trusted: {what}",
        hint="graphopt uses plain tensors only; save the program with example inputs made of "
        "tensors, lists, tuples and dictionaries, and without custom objects",
    )


def _check_table(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> None:
    """Refuse a table of weights or constants that says that one of them is a pickle."""
    try:
        entries = json.loads(_read(archive, info, path))["config"]
        pickled = [name for name, entry in entries.items() if entry["use_pickle"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"{shown(info.filename)} is no table of weights") from error
    if pickled:
        raise _pickled(path, f"the tensor {shown(pickled[0])} is stored as a pickle")


def _check_samples(data: bytes, path: Path) -> None:
    if not data:
        return
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as inner:
            _members(inner, path, len(data))
    except zipfile.BadZipFile as error:
        raise _pickled(path, "the example inputs are a bare pickle") from error
    try:
        torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        raise _pickled(path, "the example inputs hold more than tensors and containers") from error


def _load(file: BinaryIO, path: Path) -> ExportedProgram:
    # torch.export.load hides why it fails: it logs the reason and then tries the old layout.
    from torch.export.pt2_archive._package import load_pt2 as load_archive

    try:
        with quiet():
            programs = load_archive(file).exported_programs
    except MemoryError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise InvalidModelError(
            "pt2-unreadable",
            f"torch {torch.__version__} cannot load '{path}': {type(error).__name__}: "
            f"{lines[0][:300]}",
            hint=f"it may come from another version of torch: {_SAVE_AGAIN}",
        ) from error
    return next(iter(programs.values()))
