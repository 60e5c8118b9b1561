"""The tasks of a tree, pinned: pidfds that can't be mistaken for a later process of the same number.

Stops, continues and kills them, and proves their death (DESIGN: the commit, rules 4, 7 and 8).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import dataclasses
import os
import select
import signal
import time
from collections.abc import Iterable
from typing import Optional

from agent import process
from agent.protocol import TaskFacts

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_libc = ctypes.CDLL(None, use_errno=True)


def adopt_orphans() -> None:
    """From now on we become the parent of every descendant whose parent dies (PR_SET_CHILD_SUBREAPER).

    So what a killed criu leaves of a half-made tree is known to be ours, by descent, and can be cleared away.
    """
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


class NotRunning(Exception):
    """Past the point of no return the tree does not run here; its images are kept."""


class TreeChanged(Exception):
    """The tree is not the one that was pinned."""


@dataclasses.dataclass(frozen=True)
class Pinned:
    """One process, named for ever."""

    pid: int
    start_time: int
    descriptor: int


class Tasks:
    """Pinned processes. Close it when done."""

    def __init__(self) -> None:
        self._pinned: dict[int, Pinned] = {}

    def pin(self, facts: Iterable[TaskFacts], *, running: bool = False) -> None:
        """Pin these tasks too. Raises TreeChanged when one is not what its facts say.

        In a `running` tree tasks come and go: those that have ended are passed over, since the hold looks again.
        """
        for task in facts:
            known = self._pinned.get(task.pid)
            if known is not None:
                if known.start_time != task.start_time:
                    raise TreeChanged(f"process {task.pid} ended, and another one has its number now")
                continue
            descriptor = _open(task)
            if descriptor is not None:
                self._pinned[task.pid] = Pinned(task.pid, task.start_time, descriptor)
            elif not running:
                raise TreeChanged(f"process {task.pid} ended")

    def pin_descendants(self, besides: int) -> None:
        """Pin whatever descends from us, the session `besides` apart (see `adopt_orphans`)."""
        for pid in process.tree_pids(os.getpid())[1:]:
            with contextlib.suppress(process.NoSuchProcess, TreeChanged):  # gone by itself
                task = process.task_facts(pid)
                if task.sid != besides:
                    self.pin([task])

    def forget_dead(self) -> None:
        """Drop those that ended by themselves before the freeze."""
        for pid in [pid for pid, task in self._pinned.items() if _ended(task.descriptor)]:
            os.close(self._pinned.pop(pid).descriptor)

    def __len__(self) -> int:
        return len(self._pinned)

    @property
    def pids(self) -> tuple[int, ...]:
        """Their PIDs."""
        return tuple(self._pinned)

    @property
    def identities(self) -> list[list[int]]:
        """[PID, start time] of each, for the journal."""
        return [[task.pid, task.start_time] for task in self._pinned.values()]

    def signal(self, number: int, pids: Optional[Iterable[int]] = None) -> None:
        """Send a signal to all, or to these of them; the dead are passed over."""
        for pid in self.pids if pids is None else pids:
            task = self._pinned.get(pid)
            if task is None:
                continue
            try:
                signal.pidfd_send_signal(task.descriptor, number)
            except ProcessLookupError:
                continue

    @property
    def ended(self) -> bool:
        """Whether all are dead: a pidfd is readable once its whole thread group has exited; zombies count."""
        return all(_ended(task.descriptor) for task in self._pinned.values())

    async def never_run_again(self) -> None:
        """Wait until no thread of theirs, after a SIGKILL, can execute its program any more: some of them may still be
        giving memory back (see `process.never_runs_again`)."""
        for task in self._pinned.values():
            while not process.never_runs_again(task.pid, task.start_time):
                await asyncio.sleep(0.0005)

    def reap(self) -> None:
        """Take the dead among our own children off the process table, which frees their PIDs."""
        for pid in self._pinned:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                continue  # not our child: its parent does it

    async def cleared(self) -> None:
        """Kill what a dead criu left blocked: it never ran. Raises NotRunning when something is left of it."""
        self.signal(signal.SIGKILL)
        end = time.monotonic() + 10
        while not self.ended:
            # the first process of a namespace is not dead before all the others are reaped
            self.reap()
            if time.monotonic() > end:
                raise NotRunning("tasks of the tree are still here, blocked")
            await asyncio.sleep(0.001)
        self.reap()
        # a PID is free slightly after its task is gone (CRIU.md)
        await asyncio.sleep(0.1)

    @property
    def living(self) -> set[int]:
        """The PIDs of those that live. By their state: the pidfd of a traced task with threads is late in telling."""
        return {task.pid for task in self._pinned.values() if process.alive(task.pid, task.start_time)}

    def close(self) -> None:
        """Let go of all."""
        for task in self._pinned.values():
            os.close(task.descriptor)
        self._pinned.clear()


def _ended(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def _open(task: TaskFacts) -> Optional[int]:
    """A pidfd of this very process; None when it has ended."""
    try:
        descriptor = os.pidfd_open(task.pid)
    except ProcessLookupError:
        return None
    # opened, then compared: had the number been reused before the open, the start time would tell
    try:
        if process.start_time(task.pid) == task.start_time:
            return descriptor
    except ProcessLookupError:
        pass
    os.close(descriptor)
    return None
