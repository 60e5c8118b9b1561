"""What a parser may cost for one input. What costs more ends with an exception that no parser lets through unseen."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Iterator
from types import FrameType

ROOM = 256 << 20
"""Bytes of address space that a parser may take beside what there is: inputs are of some KiB, and what is read beside
them of a MiB."""

SECONDS = 20.0
"""For one input; what it takes is milliseconds."""


class Hang(BaseException):
    """It took too long. No Exception, so that no parser takes it for a fault of its input."""


def _size() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def less_memory(room: int = ROOM) -> Iterator[None]:
    """Whoever takes more address space than this gets a MemoryError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    least = _size() + room
    resource.setrlimit(resource.RLIMIT_AS, (least if soft == resource.RLIM_INFINITY else min(soft, least), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextlib.contextmanager
def less_time(seconds: float = SECONDS) -> Iterator[None]:
    """Whoever takes longer is interrupted by a Hang. In the main thread only."""

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise Hang(f"more than {seconds} s for one input")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
