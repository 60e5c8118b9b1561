"""How much memory processes have: what a dump of them will hold, and what a migration takes of the target at its peak.

Owns /proc/PID/smaps_rollup and the memory lines of /proc/PID/status.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

INTERVAL = 0.25
"""Seconds between two looks while memory is filled. Counters only: the pages of a gigabyte are not walked each time."""


def shared_since_fork(pid: int) -> int:
    """Bytes of anonymous memory that a process has in common with others since a fork, in its share of them.

    What it has resident (Anonymous) less its proportional part (Pss_Anon, since Linux 5.2): pages that n processes
    share count 1/n for each, so the sum over a tree is what n copies of them would take more than one.
    """
    try:
        rollup = _read(f"/proc/{pid}/smaps_rollup")
    except OSError:
        return 0
    if not re.search(rb"^Pss_Anon:", rollup, re.MULTILINE):
        return 0
    return max(0, _kilobytes(rollup, b"Anonymous") - _kilobytes(rollup, b"Pss_Anon"))


def private_memory(pid: int) -> int:
    """Bytes of a process that a dump will hold, shared segments apart: anonymous, swapped and huge pages.

    smaps_rollup counts pages one by one. The counters of /proc/PID/status, taken where it is missing, may lag behind
    by some hundred pages a CPU.
    """
    try:
        rollup = _read(f"/proc/{pid}/smaps_rollup")
        names = (b"Anonymous", b"Swap", b"Private_Hugetlb", b"Shared_Hugetlb")
        return sum(_kilobytes(rollup, name) for name in names)
    except OSError:
        pass
    try:
        status = _read(f"/proc/{pid}/status")
    except OSError:
        return 0
    return sum(_kilobytes(status, name) for name in (b"RssAnon", b"VmSwap", b"HugetlbPages"))


def taken(images: Path, pids: Iterable[int], *, shared: bool) -> int:
    """Bytes that images (those on a tmpfs of their own) and tree take now.

    `shared`: what its processes share counts once, for which the kernel walks every page.
    """
    used = 0
    if images.is_mount():
        room = os.statvfs(images)
        used = (room.f_blocks - room.f_bfree) * room.f_frsize
    return used + sum((_share if shared else _resident)(pid) for pid in pids)


async def peak_until(act: Awaitable[T], images: Path, pids: Callable[[], Iterable[int]]) -> tuple[T, int]:
    """What an act gives, and the most that was taken while it was at work."""
    waiting = asyncio.ensure_future(act)
    most = 0
    try:
        while not waiting.done():
            most = max(most, taken(images, pids(), shared=False))
            await asyncio.wait({waiting}, timeout=INTERVAL)
    finally:
        if not waiting.done():
            waiting.cancel()
    return waiting.result(), max(most, taken(images, pids(), shared=False))


def _share(pid: int) -> int:
    """Bytes of a process's own memory, what it shares with others counted in parts."""
    try:
        return sum(_kilobytes(_read(f"/proc/{pid}/smaps_rollup"), name) for name in (b"Pss_Anon", b"Pss_Shmem"))
    except OSError:
        return 0


def _resident(pid: int) -> int:
    """Bytes of a process's own memory, from counters that may lag behind a little."""
    try:
        return sum(_kilobytes(_read(f"/proc/{pid}/status"), name) for name in (b"RssAnon", b"RssShmem"))
    except OSError:
        return 0


def _kilobytes(text: bytes, name: bytes) -> int:
    found = re.search(rb"^" + name + rb":[ \t]*(\d+)", text, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else 0


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.readall() or b""
