"""The solver of integer programmes, kept from printing."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet"]

_FLUSH = ctypes.CDLL(None if os.name == "posix" else "ucrtbase").fflush
_NOISE = b"HighsMip"  # begins a line that HiGHS prints now and then, whatever it is told: jump-dev/HiGHS.jl issue 312


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what HiGHS prints from the standard output, where a script may expect something else.

    It prints from compiled code, so the descriptor is turned aside. What anyone else writes there in the meantime comes
    through at the end.
    """
    try:
        kept = os.dup(1)
    except OSError:  # there is none
        yield
        return
    with tempfile.TemporaryFile() as caught:
        _flush()
        os.dup2(caught.fileno(), 1)
        try:
            yield
        finally:
            _flush()
            os.dup2(kept, 1)
            os.close(kept)
            caught.seek(0)
            for line in caught:
                if not line.startswith(_NOISE):
                    os.write(1, line)


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()
    _FLUSH(None)
