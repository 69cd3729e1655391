"""Weights in files beside the model: which of them may be opened.

A model names its data files, so a model from a stranger names whatever it likes. The rules, each
of which closes a hole that ONNX readers have had (CVE-2022-25882, CVE-2024-27318, CVE-2026-27489,
CVE-2026-34445):

1. Only the keys ``location``, ``offset``, ``length`` and ``checksum``, each at most once.
2. The location is relative, has no ``..``, and after resolution is exactly the folder of the model
   followed by the location.
3. No component of it is a symbolic link; the file is a regular file with one name.
4. ``offset`` and ``length`` are numbers of any size, checked before any arithmetic that could
   wrap, and lie within the file.
5. ``length`` is what the element type and the shape need; two tensors share either all of their
   bytes or none.

Nothing is read here, only looked at. Between the look and the later memory map another process
with write access to the folder could swap the file; whoever has that access can also change the
model itself.
"""

import os
import stat
from pathlib import Path
from typing import NamedTuple

from graphopt.errors import InvalidModelError

_KEYS = ("location", "offset", "length", "checksum")


class Range(NamedTuple):
    """The bytes of one tensor in a data file, ``[start, end)``."""

    start: int
    end: int
    tensor: str


class ExternalFiles:
    """Checks the external tensors of one model.

    Args:
        folder: The folder of the model file, None for a model that came from no file.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = None if folder is None else Path(os.path.realpath(folder))
        self._sizes: dict[str, int] = {}
        self._ranges: dict[str, list[Range]] = {}

    def check_entries(self, tensor: str, entries: list[tuple[str, str]], needed_bytes: int) -> None:
        """Check the ``external_data`` entries of a tensor.

        Args:
            tensor: Its name.
            entries: Keys and values as they stand in the model.
            needed_bytes: Bytes that its type and shape need.

        Raises:
            InvalidModelError: a rule is broken.
        """
        values: dict[str, str] = {}
        for key, value in entries:
            if key not in _KEYS or key in values:
                what = "is given twice" if key in values else "is unknown"
                raise InvalidModelError(
                    "external-data-key",
                    f"external data of '{tensor}': the key {key[:80]!r} {what}",
                    hint=f"the keys are {', '.join(_KEYS)}",
                    node=tensor,
                )
            values[key] = value
        offset = _number(tensor, "offset", values.get("offset", "0"))
        length = _number(tensor, "length", values["length"]) if "length" in values else None
        self.check_range(tensor, values.get("location", ""), offset, length, needed_bytes)

    def check_range(
        self, tensor: str, location: str, offset: int, length: int | None, needed_bytes: int
    ) -> None:
        """Check where the bytes of a tensor lie.

        Args:
            tensor: Its name.
            location: Path relative to the folder of the model.
            offset: First byte in that file.
            length: Bytes stated in the model, None when it states none.
            needed_bytes: Bytes that its type and shape need.

        Raises:
            InvalidModelError: a rule is broken.
        """
        if length is not None and length != needed_bytes:
            raise InvalidModelError(
                "external-data-length",
                f"external data of '{tensor}' has {length} bytes, its type and shape need "
                f"{needed_bytes}",
                node=tensor,
            )
        key = self._key(tensor, location)
        size = self._sizes[key]
        if offset < 0 or offset > size or needed_bytes > size - offset:
            raise InvalidModelError(
                "external-data-range",
                f"external data of '{tensor}' lies at bytes {offset} to {offset + needed_bytes} of "
                f"'{location}', which has {size}",
                hint="the data file is cut short or belongs to another model",
                node=tensor,
            )
        if needed_bytes:
            self._ranges[key].append(Range(offset, offset + needed_bytes, tensor))

    def finish(self) -> tuple[Path, ...]:
        """Return the data files, resolved and sorted.

        Raises:
            InvalidModelError: two tensors overlap in part.
        """
        for key, ranges in self._ranges.items():
            ranges.sort()
            reach = ranges[0] if ranges else None
            for current in ranges[1:]:
                assert reach is not None
                if current.start < reach.end and current[:2] != reach[:2]:
                    raise InvalidModelError(
                        "external-data-overlap",
                        f"'{reach.tensor}' and '{current.tensor}' overlap in '{Path(key).name}': "
                        f"bytes {reach.start} to {reach.end} and {current.start} to {current.end}",
                        hint="two tensors may share all of their bytes or none",
                        node=current.tensor,
                    )
                reach = current
        return tuple(Path(key) for key in sorted(self._sizes))

    def _key(self, tensor: str, location: str) -> str:
        """Return the checked absolute path of ``location``; looks at each file once."""
        if self._folder is None:
            raise InvalidModelError(
                "external-data-no-folder",
                f"the weights of '{tensor}' are in the file {location[:200]!r}, but the model was "
                "not read from a file, so it is not known in which folder",
                hint="pass the path of the .onnx file, or load its external data first",
                node=tensor,
            )
        parts = _relative_parts(tensor, location)
        path = os.path.join(self._folder, *parts)
        if path not in self._sizes:
            self._sizes[path] = self._look(tensor, location, parts)
            self._ranges[path] = []
        return path

    def _look(self, tensor: str, location: str, parts: list[str]) -> int:
        """Return the size of a data file after looking at every component of its path."""
        assert self._folder is not None
        path = str(self._folder)
        for part in parts:
            path = os.path.join(path, part)
            try:
                status = os.lstat(path)
            except (OSError, ValueError) as error:
                raise InvalidModelError(
                    "external-data-missing",
                    f"the data file {location[:200]!r} of '{tensor}' cannot be read: "
                    f"{getattr(error, 'strerror', None) or error}",
                    hint="the data file must lie beside the .onnx file, as it was saved",
                    node=tensor,
                ) from error
            if stat.S_ISLNK(status.st_mode):
                raise _refused(
                    tensor, location, f"'{part}' is a symbolic link", "external-data-link"
                )
        if not stat.S_ISREG(status.st_mode):
            raise _refused(tensor, location, "it is not a regular file", "external-data-not-a-file")
        if status.st_nlink > 1:
            raise _refused(
                tensor, location, f"the file has {status.st_nlink} names", "external-data-link"
            )
        if os.path.realpath(path) != path:
            raise _refused(tensor, location, "it resolves to another path", "external-data-path")
        return status.st_size


def _relative_parts(tensor: str, location: str) -> list[str]:
    """Return the components of a location that stays below its folder."""
    if not isinstance(location, str) or not location or "\0" in location:
        raise _refused(tensor, str(location), "it is no file name", "external-data-path")
    if location.startswith("/") or "\\" in location or (location[1:2] == ":"):
        raise _refused(tensor, location, "it is not a relative path", "external-data-path")
    parts = [part for part in location.split("/") if part not in ("", ".")]
    if ".." in parts or not parts:
        raise _refused(tensor, location, "it leaves the folder of the model", "external-data-path")
    return parts


def _refused(tensor: str, location: str, reason: str, code: str) -> InvalidModelError:
    return InvalidModelError(
        code,
        f"the data file {location[:200]!r} of '{tensor}' is refused: {reason}",
        hint="copy the data files as plain files into the folder of the model",
        node=tensor,
    )


def _number(tensor: str, key: str, text: str) -> int:
    """Return a whole number that is not negative; Python's integers do not wrap."""
    if not (isinstance(text, str) and text.isascii() and text.isdigit() and len(text) <= 100):
        raise InvalidModelError(
            "external-data-range",
            f"external data of '{tensor}': {key} is {str(text)[:80]!r}, expected a whole number "
            "that is not negative",
            node=tensor,
        )
    return int(text)
