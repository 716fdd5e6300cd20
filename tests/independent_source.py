"""The conventions of `docs/format.md`, for `independent_decoder`."""

from __future__ import annotations

import io


def need(true: object, message: str) -> None:
    if not true:
        raise ValueError(message)


def unfold(value: int) -> int:
    return -(value + 1 >> 1) if value & 1 else value >> 1


class Source(io.BytesIO):
    """Conventions: some bytes, and what is read from there; `read` is the one of files."""

    def take(self, count: int) -> bytes:
        data = self.read(min(count, 2**62))
        need(len(data) == count, "a length beyond what is there")
        return data

    def end(self) -> None:
        need(not self.read(), "something follows")

    def number(self, size: int = 1) -> int:
        return int.from_bytes(self.take(size), "little")

    def varint(self) -> int:
        value, shift, byte = 0, 0, 128
        while byte & 128:
            byte = self.number()
            value, shift = value | (byte & 127) << shift, shift + 7
            need(value < 2**64 and (byte or shift == 7), "a varint too great or not in its shortest spelling")
        return value

    def signed(self) -> int:
        return unfold(self.varint())

    def text(self, most: int) -> str:
        length = self.varint()
        need(length <= most, "a text above the limit")
        return self.take(length).decode()

    def fields(self, widths: list[int]) -> list[int]:
        count, found = sum(widths), []
        bits = f"{self.number((count + 7) // 8):0{count}b}"  # the highest first
        need(len(bits) == max(count, 1), "bits that must be zero")
        for width in widths:
            count -= width
            found.append(int(bits[count : count + width] or "0", 2))
        return found
