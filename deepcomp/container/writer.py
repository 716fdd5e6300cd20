"""Writes a `.dcz` file front to back: one record in memory at a time, nothing half-written on disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from deepcomp.container.layout import (
    CHUNK,
    CRC,
    HEADER,
    MAGIC,
    MAJOR,
    MINOR,
    TRAILER,
    pack_index,
)
from deepcomp.container.record import LONGEST_NAME, MOST_RECORDS, Record
from deepcomp.errors import InputError, UsageError

_JOINED = 1 << 16  # bytes that are copied together rather than written part by part

__all__ = ["Writer", "check_target", "move", "place"]


class Writer:
    """A file that appears at its path, whole, when the `with` block ends without an error.

    The bytes go to a temporary file beside the target, which is synced and then renamed. Until then
    whatever stands at the path stays as it is, whether the process fails, is interrupted or killed.

    Parameters
    ----------
    path : path-like
        The target.
    force : bool
        Whether an existing target is replaced.

    Raises
    ------
    InputError
        If the target exists and `force` is not set, or its folder does not exist or is not writable.
    """

    def __init__(self, path: str | os.PathLike[str], force: bool = False) -> None:
        self.path = Path(path)
        self.force = force
        self.records: list[Record] = []
        self.sha256 = ""
        self.size = 0
        self._hash = hashlib.sha256()
        self._open: list[bytes | memoryview] = []  # what stands in the chunk not yet closed …
        self._open_size = 0  # … and its bytes

    def __enter__(self) -> Self:
        self._temporary, self._file = _begin(self.path, self.force)
        self._put(HEADER.pack(MAGIC, MAJOR, MINOR))
        return self

    def add(self, kind: int, name: str, head: bytes, body: Iterable[bytes | memoryview] = ()) -> None:
        """Write one record.

        Parameters
        ----------
        kind, name, head : see `Record`
        body : iterable of bytes-like
            The parts of the body, written one after another.

        Raises
        ------
        InputError
            If the name, or the number of records, is more than a reader accepts.
        """
        if len(name.encode()) > LONGEST_NAME or len(self.records) == MOST_RECORDS:
            limits = f"names of {LONGEST_NAME} bytes and {MOST_RECORDS} records"
            raise InputError(f"{self.path}: a file holds {limits} at most, more found at {name[:40]!r}")
        parts = list(body)
        record = Record(kind, name, head, sum(map(len, parts)), last=False)
        if record.length >= CHUNK:
            self._close_chunk()  # small neighbours are read without this one
        self.records.append(record)
        self._open += parts
        self._open_size += record.length
        if self._open_size >= CHUNK:
            self._close_chunk()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._file.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._temporary)

    def _put(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.size += len(data)

    def _close_chunk(self) -> None:
        if self.records:
            self.records[-1].last = True
        crc = 0
        for part in self._open if self._open_size > _JOINED else (b"".join(self._open),):
            crc = zlib.crc32(part, crc)
            self._put(part)
        if self._open_size:
            self._put(CRC.pack(crc))
        self._open, self._open_size = [], 0

    def _finish(self) -> None:
        index = b"".join([pack_index(self.records), *self._open])
        self._put(index)
        length = CRC.pack(len(index))
        self._put(length)
        digest = self._hash.digest()
        crc = zlib.crc32(HEADER.pack(MAGIC, MAJOR, MINOR) + index + length + digest)
        self._put(digest + CRC.pack(crc))
        assert TRAILER.size == len(length) + len(digest) + CRC.size
        self.sha256 = self._hash.hexdigest()
        self._file.flush()
        os.fsync(self._file.fileno())
        move(self._temporary, self.path, self.force)


def place(path: str | os.PathLike[str], data: bytes, force: bool = False) -> None:
    """Put a small file at `path` under the same promise: all of it or nothing."""
    temporary, file = _begin(Path(path), force)
    try:
        with file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        move(temporary, Path(path), force)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def check_target(path: Path, force: bool, others: Iterable[Path] = ()) -> None:
    """Insist that a file may be put at `path`, before any work is done for it.

    Parameters
    ----------
    others : iterable of Path
        What is read, or written too: `path` must be none of them, whether forced or not.
    """
    real = _real(path)
    if path.is_dir():
        raise InputError(f"{path}: a folder stands there, a file expected")
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: a device or a pipe stands there, a regular file expected")
    if real in map(_real, others):
        raise UsageError(f"{path}: is read, or written for something else; another name expected")
    if path.exists() and not force:
        raise InputError(f"{path}: exists already; --force replaces it")
    if not os.access(real.parent, os.W_OK):
        raise InputError(f"{path}: cannot be written: {real.parent} is not a folder one can write to")


def _real(path: Path) -> Path:
    """Where a path leads, links followed: a link stays one, what it points to is replaced."""
    return Path(os.path.realpath(path))


def _begin(path: Path, force: bool) -> tuple[str, BinaryIO]:
    """A temporary file beside `path`, open for writing."""
    check_target(path, force)
    path = _real(path)
    try:
        number, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror} ({path.parent})") from None
    return name, os.fdopen(number, "wb")


def move(temporary: str, path: Path, force: bool) -> None:
    """Rename a finished file to its target, replacing one only if `force` is set."""
    path = _real(path)
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(temporary, 0o666 & ~mask)  # mkstemp's files are private
    if force:
        os.replace(temporary, path)
    else:
        try:
            os.link(temporary, path)  # fails where something has appeared meanwhile
        except FileExistsError:
            raise InputError(f"{path}: exists already; --force replaces it") from None
        except OSError:  # a file system without hard links
            os.replace(temporary, path)
    with contextlib.suppress(OSError):  # make the new name last, where folders can be synced
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
