"""Hybrid integers: values up to 2**32 - 1 as an 8-bit token, which is entropy-coded, and raw bits.

A value below 128 is its own token. Above, with n = floor(log2 value), the token holds n and the two
bits behind the leading one, and the n - 2 bits below those follow raw::

    token = 128 + 4 * (n - 7) + (value >> (n - 2) & 3)        128 to 227

so a token covers values that differ by at most a quarter, among which smooth distributions are all
but uniform. (The idea is that of the hybrid integers of JPEG XL, ISO/IEC 18181-1, with one fixed
configuration.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deepcomp.entropy.bits import pack_variable, read_variable, take_bits
from deepcomp.wire import Cursor

__all__ = ["DIRECT", "EXTRA_BITS", "FIRST_OF", "LAST_UINT16", "TOKENS", "WIDE", "join", "split"]

TOKENS = 228
WIDE = 132  # the token of 256: a stream without this or a higher one need not be wide
LAST_UINT16 = 163  # the token of 65,535

DIRECT = 128
_OCTAVE, _QUARTER = np.divmod(np.arange(TOKENS) - DIRECT, 4)

EXTRA_BITS: NDArray[np.uint8] = np.where(_OCTAVE < 0, 0, _OCTAVE + 5).astype(np.uint8)
"""Raw bits behind each token."""

FIRST_OF: NDArray[np.uint32] = np.where(
    _OCTAVE < 0, np.arange(TOKENS), (4 + _QUARTER) << EXTRA_BITS.astype(np.int64)
).astype(np.uint32)
"""The smallest value of each token."""

# A float64 holds the exponent and the bits behind the leading one side by side, from bit 50 up.
_MANTISSA = np.uint64(50)
_BIAS = 4 * 1023 - (DIRECT - 4 * 7)


def split(values: NDArray[np.uint32], fast: bool) -> tuple[NDArray[np.uint8], bytes]:
    """Split values into tokens and the packed raw bits."""
    if fast:
        from deepcomp.entropy import kernels

        tokens = np.empty(len(values), np.uint8)
        extras = np.empty(4 * len(values) + 8, np.uint8)
        size = kernels.split_tokens(kernels.frozen(values), EXTRA_BITS, tokens, extras)
        return tokens, extras[:size].tobytes()
    tokens = values.astype(np.uint8)
    large = np.flatnonzero(values >= DIRECT)
    high = values[large]
    tokens[large] = (high.astype(np.float64).view(np.uint64) >> _MANTISSA) - np.uint64(_BIAS)
    widths = EXTRA_BITS[tokens[large]]
    return tokens, pack_variable(high - FIRST_OF[tokens[large]], widths)


def join(tokens: NDArray[np.uint8], cursor: Cursor, fast: bool) -> NDArray[np.uint32]:
    """Join valid tokens with the raw bits that the cursor stands at.

    Raises
    ------
    FormatError
        If the raw bits are cut short or a pad bit is set.
    """
    if fast:
        from deepcomp.entropy import kernels

        bits = int(kernels.histogram(kernels.frozen(tokens))[:TOKENS] @ EXTRA_BITS.astype(np.int64))
        values = np.empty(len(tokens), np.uint32)
        kernels.join_tokens(kernels.frozen(tokens), take_bits(cursor, bits), FIRST_OF, EXTRA_BITS, values)
        return values
    values = FIRST_OF[tokens]
    large = np.flatnonzero(tokens >= DIRECT)
    values[large] += read_variable(cursor, EXTRA_BITS[tokens[large]])
    return values
