"""What a restore has made that no record names: criu and its agent were killed before the tasks stood there.

HELD names the tasks of the first restore that came to its hold. One that was killed before that, or a second one from
the kept images, leaves tasks that stay blocked for ever (CRIU.md) and hold the PIDs that the next restore needs. They
are known by criu's own log, which names each PID right before the fork (criu/cr-restore.c, fork_with_pid), and by
having started later than this criu. In a PID namespace of its own the tree ends with the namespace's init instead.

In that log stand the tree's own file names too, which its user has chosen, with newlines if he likes: what looks like
such a line is not believed of a task that the images do not name, unless it still is criu's own program, as criu's
helpers for sessions are that nobody leads any more.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Optional

from agent import images, namespace, process
from agent.boot import lines_of_this_boot
from agent.journal import Journal, Record

_LINE = rb"^\(\d+\.\d+\) +(?:\d+: )?"
_FORKING = re.compile(_LINE + rb"Forking task with (\d{1,9}) pid \(", re.MULTILINE)
_TAKEN = re.compile(_LINE + rb"Error \([^)]*\): Can't fork for (\d{1,9}):", re.MULTILINE)


def found(journal: Journal) -> list[tuple[int, int]]:
    """(PID, start time) of each that lives."""
    criu = [line for line in lines_of_this_boot(journal) if line["record"] == "criu"]
    if not criu or namespace.init_of(journal.directory) is not None:
        return []
    since = max(line["start"] for line in criu)
    tasks = ((pid, _start(pid)) for pid in sorted(_forked(journal.directory / "restore.log")))
    named = _named(journal)
    return [
        (pid, start) for pid, start in tasks if start is not None and start >= since and (pid in named or _is_criu(pid))
    ]


def _named(journal: Journal) -> set[int]:
    """The PIDs of the tree, as the images of the last round have them."""
    place, number = journal.facts(Record.PREPARED.value).get("images", ""), journal.facts("round").get("number", 0)
    try:
        names = os.listdir(images.round_directory(Path(place), number))
    except OSError:
        return set()
    return {int(name[5:-4]) for name in names if re.fullmatch(r"core-\d{1,9}\.img", name, re.ASCII)}


def _is_criu(pid: int) -> bool:
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe")).startswith("criu")
    except OSError:
        return False


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
