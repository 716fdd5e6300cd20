"""Reads a `.dcz` file: the index in three reads, then any record without the others."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import zlib
from pathlib import Path
from types import TracebackType
from typing import Self

from deepcomp.container.layout import CRC, HEADER, INDEX_LIMIT, MAGIC, MAJOR, TRAILER, unpack_index
from deepcomp.container.record import Record
from deepcomp.errors import FormatError, InputError

__all__ = ["Reader"]

_BLOCK = 1 << 20  # bytes read at a time while the whole file is hashed


class Reader:
    """An open `.dcz` file whose header, index and trailer have been checked.

    Parameters
    ----------
    path : path-like

    Attributes
    ----------
    records : list of Record
        In the order of the file.
    size : int
        Bytes of the file.
    index_size : int
        Bytes of the index as it stands in the file, without the chunk behind it.

    Raises
    ------
    InputError
        If the file cannot be opened.
    FormatError
        If it is not a `.dcz` file, is of a newer major version, or is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._kept: tuple[int, memoryview] | None = None  # the last small chunk read
        try:
            if not stat.S_ISREG(os.stat(self.path).st_mode):  # opening a pipe would wait for its other end
                raise InputError(f"{self.path}: cannot be read: not a regular file")
            self._file = open(self.path, "rb")  # noqa: SIM115 (closed by close())
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
            raise InputError(f"{self.path}: cannot be read: {getattr(error, 'strerror', error)}") from None
        try:
            self._read_index()
        except BaseException:
            self._file.close()
            raise

    def _read_index(self) -> None:
        self.size = os.fstat(self._file.fileno()).st_size
        if self.size < HEADER.size + TRAILER.size:
            raise FormatError(
                f"{self.path}: not a .dcz file: {self.size} bytes, at least {HEADER.size + TRAILER.size} expected"
            )
        header = self._pread(0, HEADER.size)
        magic, major, minor = HEADER.unpack(header)
        if magic != MAGIC:
            raise FormatError(f"{self.path}: not a .dcz file: it starts with {magic!r}, {MAGIC!r} expected")
        if major != MAJOR:
            newer = ": a newer one is needed" if major > MAJOR else ""
            raise FormatError(f"{self.path}: format {major}.{minor} found, this deepcomp reads {MAJOR}.x{newer}")
        self.version = (major, minor)
        trailer = self._pread(self.size - TRAILER.size, TRAILER.size)
        self.index_size, self._sha256, crc = TRAILER.unpack(trailer)
        self.index_offset = self.size - TRAILER.size - self.index_size
        if self.index_offset < HEADER.size or self.index_size > INDEX_LIMIT:
            raise FormatError(
                f"{self.path}: index of {self.index_size} bytes found in a file of {self.size} (truncated?)"
            )
        index = self._pread(self.index_offset, self.index_size)
        if zlib.crc32(bytes(header) + bytes(index) + bytes(trailer[: -CRC.size])) != crc:
            raise FormatError(
                f"{self.path}: checksum of the index does not match, at byte {self.index_offset} (damaged or truncated)"
            )
        self.records, self._behind = unpack_index(bytes(index), self.index_offset, str(self.path))
        self.index_size -= len(self._behind)
        self._chunk_sizes: dict[int, int] = {}
        for record in self.records:
            self._chunk_sizes[record.chunk] = max(self._chunk_sizes.get(record.chunk, 0), record.offset + record.length)

    @property
    def checksum_bytes(self) -> int:
        """Bytes of all chunks' checksums."""
        return CRC.size * sum(size > 0 for start, size in self._chunk_sizes.items() if start < self.index_offset)

    def body(self, record: Record) -> memoryview:
        """The body of a record, once its chunk's checksum has been found right."""
        if record.length == 0:
            return memoryview(b"")
        kept = self._kept
        chunk = kept[1] if kept is not None and kept[0] == record.chunk else self._chunk(record.chunk)
        self._kept = None if record.last else (record.chunk, chunk)
        return chunk[record.offset : record.offset + record.length]

    def offset(self, record: Record) -> int:
        """Where the body of a record starts in the file."""
        return record.chunk + record.offset

    def check(self) -> None:
        """Check every byte of the file against its checksums.

        Raises
        ------
        FormatError
            Naming the first chunk, or the whole file, that does not match.
        """
        whole, left, position = hashlib.sha256(), self.size - TRAILER.size + CRC.size, 0
        while left:
            block = self._pread(position, min(left, _BLOCK))
            whole.update(block)
            position += len(block)
            left -= len(block)
        for start, size in self._chunk_sizes.items():
            if size:
                self._chunk(start)
        if whole.digest() != self._sha256:
            raise FormatError(f"{self.path}: SHA-256 of the file does not match")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _chunk(self, start: int) -> memoryview:
        if start > self.index_offset:
            return memoryview(self._behind)  # checked with the index
        size = self._chunk_sizes[start]
        raw = self._pread(start, size + CRC.size)
        if zlib.crc32(raw[:size]) != CRC.unpack(raw[size:])[0]:
            names = ", ".join(repr(record.name) for record in self.records if record.chunk == start and record.length)
            raise FormatError(
                f"{self.path}: checksum of {names[:200]} does not match, in bytes {start} to {start + size}"
            )
        return raw[:size]

    def _pread(self, offset: int, count: int) -> memoryview:
        with self._lock:
            try:
                self._file.seek(offset)
                data = self._file.read(count)
            except OSError as error:
                raise InputError(f"{self.path}: cannot be read: {error.strerror}") from None
        if len(data) != count:
            raise FormatError(f"{self.path}: {count} bytes expected at byte {offset}, {len(data)} found")
        return memoryview(data)
