"""Small integers, texts and byte runs as they stand in a file: write helpers and a checked cursor.

Everything that parses bytes from outside reads them through `Cursor`, so that a truncated or
hostile input ends in a `FormatError` that names the byte offset, never in an overrun.
"""

from __future__ import annotations

from typing import NoReturn

from deepcomp.errors import FormatError

__all__ = ["Cursor", "fold", "text", "unfold", "varint", "zigzag"]

_LONGEST_VARINT = 63  # shift of the last of ten groups of seven bits


def varint(value: int) -> bytes:
    """Unsigned LEB128: seven bits a byte, low group first, the top bit set on all but the last."""
    if not 0 <= value < 1 << 64:
        raise ValueError(f"{value} does not fit an unsigned 64-bit varint")
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def fold(value: int) -> int:
    """A signed integer as an unsigned one: 0, -1, 1, -2, … become 0, 1, 2, 3, …"""
    return value << 1 if value >= 0 else (-value << 1) - 1


def unfold(value: int) -> int:
    """`fold` backwards."""
    return value >> 1 if not value & 1 else -(value + 1 >> 1)


def zigzag(value: int) -> bytes:
    """A signed integer as the varint of what it folds to."""
    return varint(fold(value))


def text(value: str) -> bytes:
    """UTF-8 behind its length in bytes."""
    raw = value.encode()
    return varint(len(raw)) + raw


class Cursor:
    """Reads a run of bytes front to back.

    Parameters
    ----------
    data : bytes-like
        What is read; never copied.
    offset : int
        Where `data` starts in its file, for error messages.
    what : str
        What the bytes are, for error messages.
    """

    def __init__(self, data: bytes | bytearray | memoryview, offset: int = 0, what: str = "data") -> None:
        self.data = memoryview(data).cast("B")
        self.position = 0
        self._offset = offset
        self._what = what

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return len(self.data) - self.position

    def fail(self, found: str) -> NoReturn:
        """Raise a `FormatError` that names the place."""
        raise FormatError(f"{self._what}: {found} at byte {self._offset + self.position}")

    def take(self, count: int) -> memoryview:
        """The next `count` bytes, without a copy."""
        if count > self.left:
            self.fail(f"{count} bytes expected, {self.left} left")
        run = self.data[self.position : self.position + count]
        self.position += count
        return run

    def part(self, start: int, stop: int) -> Cursor:
        """A cursor over some of the bytes, from `start` up to `stop`."""
        return Cursor(self.data[start:stop], self._offset + start, self._what)

    def byte(self) -> int:
        """The next byte."""
        if self.position == len(self.data):
            self.fail("1 bytes expected, 0 left")
        self.position += 1
        return self.data[self.position - 1]

    def varint(self, limit: int = (1 << 64) - 1) -> int:
        """An unsigned integer of at most `limit`; only its shortest spelling is accepted."""
        value = byte = self.byte()
        shift = 0
        while byte > 0x7F:
            byte = self.byte()
            shift += 7
            if shift > _LONGEST_VARINT:
                self.fail("a number longer than 64 bits")
            value += (byte - 1) << shift  # the 1 is the bit that said that this byte follows
        if byte == 0 and shift:
            self.fail("a number with needless leading zeros")
        if value > limit:
            self.fail(f"{value} found, at most {limit} expected")
        return value

    def zigzag(self) -> int:
        return unfold(self.varint())

    def text(self, limit: int = 1 << 16) -> str:
        """A UTF-8 text of at most `limit` bytes."""
        raw = bytes(self.take(self.varint(limit)))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.fail("a text that is not UTF-8")

    def end(self) -> None:
        """Insist that everything was read."""
        if self.left:
            self.fail(f"{self.left} bytes left over")
