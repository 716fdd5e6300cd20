"""What the readers of hostile files may take: time and memory."""

from __future__ import annotations

import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

MEMORY = 256 << 20  # bytes beyond what the process holds already
SECONDS = 10.0  # an alarm for what hangs; hostile files are refused in milliseconds


@contextmanager
def limited(memory: int = MEMORY, seconds: float = SECONDS) -> Iterator[None]:
    """A block that ends in a MemoryError or TimeoutError if it takes more than it may."""
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    handler = signal.signal(signal.SIGALRM, _late)
    others = signal.setitimer(signal.ITIMER_REAL, seconds)  # of pytest's own time limit
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (_held() + memory, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)
        signal.setitimer(signal.ITIMER_REAL, *others)
        signal.signal(signal.SIGALRM, handler)


def _late(*_: object) -> None:
    raise TimeoutError("a hostile file takes too long")


def _held() -> int:
    """Bytes of writable memory that the process has mapped, as RLIMIT_DATA counts them."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmData"))
