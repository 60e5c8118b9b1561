"""What a restore has made that no record names: criu and its agent were killed before the tasks stood there.

HELD names the tasks of the first restore that came to its hold. One that was killed before that, or a second one from
the kept images, leaves tasks that stay blocked for ever (CRIU.md) and hold the PIDs that the next restore needs. They
are known by criu's own log, which names each PID right before the fork (criu/cr-restore.c, fork_with_pid), and by
having started later than this criu. In a PID namespace of its own the tree ends with the namespace's init instead.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Optional

from agent import namespace, process
from agent.boot import lines_of_this_boot
from agent.journal import Journal

_FORKING = re.compile(rb"Forking task with (\d+) pid")
_TAKEN = re.compile(rb"Can't fork for (\d+):")


def found(journal: Journal) -> list[tuple[int, int]]:
    """(PID, start time) of each that lives."""
    criu = [line for line in lines_of_this_boot(journal) if line["record"] == "criu"]
    if not criu or namespace.init_of(journal.directory) is not None:
        return []
    since = max(line["start"] for line in criu)
    tasks = ((pid, _start(pid)) for pid in sorted(_forked(journal.directory / "restore.log")))
    return [(pid, start) for pid, start in tasks if start is not None and start >= since]


def _forked(log: Path) -> set[int]:
    """The PIDs that a restore has given out, those that it did not get left out."""
    try:
        text = log.read_bytes()
    except OSError:
        return set()
    return set(map(int, _FORKING.findall(text))) - set(map(int, _TAKEN.findall(text)))


def _start(pid: int) -> Optional[int]:
    try:
        start = process.start_time(pid)
    except ProcessLookupError:
        return None
    return start if process.alive(pid, start) else None
