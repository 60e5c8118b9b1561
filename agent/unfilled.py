"""Trees whose memory is still being filled on this host after a migration to it. It waits, and ends nothing.

A tree that moves on can't be dumped, nor even measured, while pages of it are missing: its pager is waited for first.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from pathlib import Path
from typing import Callable

from agent import process
from agent.journal import Journal, JournalError, Record
from agent.warden import LOCK

LONGEST = 800.0
"""Seconds until a fill is not waited for any longer: under the time that a request has (protocol.Pace.WORK)."""
_PAUSE = 0.05


class StillFilling(Exception):
    """A process's memory is still being filled on this host."""


async def whole(state: Path, root: int, tell: Callable[[str], None]) -> None:
    """Wait until no pager fills memory of this tree any more. Raises StillFilling after LONGEST seconds."""
    end = time.monotonic() + LONGEST
    told = ""
    while name := _filled_by(state, root):
        if name != told:
            tell(f"the memory of process {root} is still being filled, after migration {name}: waiting for that")
            told = name
        if time.monotonic() > end:
            raise StillFilling(f"the memory of process {root} is still being filled, after migration {name}")
        await asyncio.sleep(_PAUSE)


def _filled_by(state: Path, root: int) -> str:
    """The id of a migration whose pager is at work on this tree; "" where there is none."""
    pagers = {name: tasks for name in _at_work(state) if (tasks := _tasks(state, name))}
    if not pagers:
        return ""
    tree = process.tasks_of(root)
    ours = {(task.pid, task.start_time) for task in tree}
    for name, tasks in pagers.items():
        if ours & tasks:
            return name
    # what the restored tree has forked since is in no journal, but its memory is watched all the same
    return next(iter(pagers)) if any(_watched(task.pid) for task in tree) else ""


def _at_work(state: Path) -> list[str]:
    """The migrations to this host whose pager or warden lives."""
    found = []
    for path in state.glob(f"*/{LOCK}"):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            found.append(path.parent.name)
        finally:
            os.close(descriptor)
    return sorted(found)


def _tasks(state: Path, migration: str) -> set[tuple[int, int]]:
    """(PID, start time) of what it restored; none before it did."""
    try:
        journal = Journal.load(state, migration)
    except (JournalError, ValueError):
        return set()
    try:
        return {(pid, start) for pid, start in journal.facts(Record.HELD.value).get("tasks", ())}
    finally:
        journal.close()


def _watched(pid: int) -> bool:
    """Whether a userfaultfd watches any memory of a process (`um` of VmFlags, proc_pid_smaps(5))."""
    try:
        with open(f"/proc/{pid}/smaps", "rb") as smaps:
            return any(b" um" in line for line in smaps if line.startswith(b"VmFlags:"))
    except (FileNotFoundError, ProcessLookupError):
        return False
