"""A binary arithmetic coder: bits of known chances to the digits of one number, and back.

An interval of the numbers from 0 to 1 is narrowed with every bit (Rissanen & Langdon 1979); the code is a number in
the last one. Its lower end is kept to 48 bits, a carry runs back into the bytes written, and 16 bits leave at a time.

As all that `kernels` compiles, these functions need no more than 64 bits, and only index and compute with integers.
"""

from __future__ import annotations

from deepcomp.entropy.context.memory import Memory

__all__ = ["ENCODING", "LOW", "PLACE", "WIDTH", "carry", "code"]

LOW, WIDTH, PLACE, ENCODING = range(4)  # the registers


def put(digits: int, m: Memory) -> None:
    """Write 16 bits, if there is room."""
    at = m.registers[PLACE]
    if at + 2 <= len(m.data):
        m.data[at] = digits >> 8
        m.data[at + 1] = digits & 255
    m.registers[PLACE] = at + 2


def carry(m: Memory) -> None:
    """Add one to the number written so far."""
    at = m.registers[PLACE] - 1
    if at < len(m.data):
        while m.data[at] == 255:
            m.data[at] = 0
            at -= 1
        m.data[at] += 1


def take(m: Memory) -> int:
    """Read 16 bits; behind the end there are zeros."""
    at = m.registers[PLACE]
    m.registers[PLACE] = at + 2
    digits = 0
    if at < len(m.data):
        digits = m.data[at] * 256
    if at + 1 < len(m.data):
        digits += m.data[at + 1]
    return digits


def code(bit: int, chance: int, m: Memory) -> int:
    """Encode a bit that is 1 with a chance of so many in 65,536, or decode it."""
    low = m.registers[LOW]  # where the interval begins; in decoding, how far the number read lies above that
    width = m.registers[WIDTH]
    bound = (width >> 16) * chance
    if m.registers[ENCODING]:
        if bit:
            width = bound
        else:
            width -= bound
            low += bound
            if low >= 1 << 48:
                low -= 1 << 48
                carry(m)
        if width < 1 << 32:
            put(low >> 32, m)
            low = (low & 0xFFFFFFFF) << 16
            width <<= 16
    else:
        if low < bound:
            bit = 1
            width = bound
        else:
            bit = 0
            width -= bound
            low -= bound
        if width < 1 << 32:
            low = low << 16 | take(m)
            width <<= 16
    m.registers[LOW] = low
    m.registers[WIDTH] = width
    return bit
