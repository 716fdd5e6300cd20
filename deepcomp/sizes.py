"""Sizes as people write them."""

from __future__ import annotations

from deepcomp.errors import UsageError

__all__ = ["parse_size"]

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_size(text: str) -> int:
    """`300kB`, `1.5MiB`, `4096` as bytes.

    Raises
    ------
    UsageError
        If the text is no size of a byte or more.
    """
    number = text.rstrip("kKmMgGiIbB")
    try:
        value = float(number) * _UNITS[text[len(number) :].lower()]
    except (ValueError, KeyError):
        raise UsageError(f"size {text!r}: a number with kB, MB, GB, KiB, MiB or GiB expected, such as 300kB") from None
    if not 1 <= value < 1 << 60:
        raise UsageError(f"size {text!r}: a byte or more expected")
    return int(value)
