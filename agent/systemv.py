"""Which System V semaphores, queues and segments a tree uses, as far as the kernel can tell. Looks only.

Nothing in /proc/PID names them, but for segments that are attached. But each of them remembers the process that used it
last, and a segment the one that has made it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from pathlib import Path

from agent.protocol import Peculiarity

_TABLES = Path("/proc/sysvipc")
_GETPID = 11  # semctl(2), linux/sem.h
_MOST = 256
"""Semaphores of one set that are asked about; a set that is in use has been used at its beginning before long."""
_libc = ctypes.CDLL(None, use_errno=True)


def used(pids: Iterable[int]) -> Iterator[Peculiarity]:
    """Each set, queue and unattached segment of this host's that one of these processes was the last to use."""
    tree = set(pids)
    for row in _rows("sem"):
        for number in range(min(row["nsems"], _MOST)):
            pid = int(_libc.semctl(row["semid"], number, _GETPID))
            if pid in tree:
                yield Peculiarity("sysv-ipc", pid, str(row["semid"]), "semaphores")
                break
    for row in _rows("msg"):
        for name in ("lspid", "lrpid"):
            if row[name] in tree:
                yield Peculiarity("sysv-ipc", row[name], str(row["msqid"]), "queue")
    for row in _rows("shm"):
        user = next((row[name] for name in ("cpid", "lpid") if row[name] in tree), 0)
        if user and not row["nattch"]:  # what is attached is seen among the mappings
            yield Peculiarity("sysv-ipc", user, str(row["shmid"]), "segment")


def _rows(name: str) -> Iterator[dict[str, int]]:
    """A table of /proc/sysvipc: names of columns in its first line, numbers below (perms in octal)."""
    try:
        head, *lines = (_TABLES / name).read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        yield {column: int(word) for column, word in zip(head.split(), line.split())}
