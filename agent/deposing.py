"""Taking a migration over from the agent that had it, dead or alive, so that one agent at a time decides.

Who takes over holds a lock on the migration's journal meanwhile (another one than its owner's, and than `claim`'s): it
looks for the former agents, stops them, reads the journal, decides, and is named in the journal as the next owner
before anybody else may look. Without that, of two who come at the same time the second would decide by what stood there
before the first did. The lock is let go when the owner has changed, not when its work is done: an owner that hangs can
be deposed in its turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import os
import signal
import struct
from collections.abc import AsyncIterator
from typing import Callable

from agent import process
from agent.boot import lines_of_this_boot
from agent.journal import Journal, JournalError

PATIENCE = 60.0
"""Seconds for a criu that was let go to end, for killed tasks to die, for another who takes over to be done with it."""


async def depose(journal: Journal, decide: Callable[[], None]) -> None:
    """Take a migration over from its agent, and write what `decide` makes of the journal.

    An agent that lives is stopped first, so that it decides nothing more while we do; then it is killed: its hook sees
    the end of its input and asks the journal. When `decide` raises, the agent goes on as if nothing had been.
    """
    async with _turn(journal):
        journal.reload()  # its owner may have changed while we waited
        owners = _owners(journal)
        if not owners:
            journal.take_over()
            decide()
        else:
            try:
                for owner in owners:
                    send(owner, signal.SIGSTOP)
                    await until(functools.partial(_stopped, *owner), "the former agent does not stop")
                journal.reload()
                decide()
            except BaseException:
                for owner in owners:
                    send(owner, signal.SIGCONT)
                raise
            for owner in owners:
                send(owner, signal.SIGKILL)
                await until(functools.partial(_gone, *owner), "the former agent does not die")
            journal.take_over()
        agent = [os.getpid(), process.start_time(os.getpid())]
        journal.note("owner", agent=agent, boot=process.boot_id())


@contextlib.asynccontextmanager
async def _turn(journal: Journal) -> AsyncIterator[None]:
    """The lock. Raises JournalError when somebody else is taking over, and does not get done with it."""
    descriptor = os.open(journal.path, os.O_RDWR | os.O_CLOEXEC)
    try:
        await until(functools.partial(_locked, descriptor), "somebody else is taking it over")
        yield
    finally:
        os.close(descriptor)


_WHOLE = struct.pack("@hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
"""struct flock of fcntl(2), with off_t of 64 bits as Python has it: all of the file, for writing."""


def _locked(descriptor: int) -> bool:
    """Take the lock: one of ranges of the open file (F_OFD_SETLK), which the owner's, of flock(2), does not meet."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _WHOLE)
    except (BlockingIOError, PermissionError):
        return False
    return True


def at_work(journal: Journal) -> bool:
    """Whether a living agent owns this migration, or is taking it over. One that stands still is not at work: who was
    to take over from it has died over that."""
    descriptor = os.open(journal.path, os.O_RDWR | os.O_CLOEXEC)
    try:
        (kind,) = struct.unpack_from("@h", fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _WHOLE))
        if kind != fcntl.F_UNLCK:
            return True
        return journal.owned_elsewhere and not _left_stopped(journal)
    finally:
        os.close(descriptor)


def send(who: tuple[int, int], number: int) -> None:
    """Signal a process, (PID, start time), if it is still there."""
    if process.alive(*who):
        with contextlib.suppress(ProcessLookupError):
            os.kill(who[0], number)


async def until(done: Callable[[], bool], message: str) -> None:
    """Wait for it. Raises JournalError with this message after PATIENCE seconds."""
    for _ in range(int(PATIENCE / 0.01)):
        if done():
            return
        await asyncio.sleep(0.01)
    raise JournalError(message)


def _owners(journal: Journal) -> list[tuple[int, int]]:
    """The agents, beside us, that have owned it and live: (PID, start time)."""
    lines = [line for line in lines_of_this_boot(journal) if "agent" in line]
    agents = [line["agent"] for line in lines[:1] + lines[-1:]]
    known = {(pid, start) for pid, start in agents if pid != os.getpid()}
    return [owner for owner in known if process.alive(*owner)]


def _left_stopped(journal: Journal) -> bool:
    owners = _owners(journal)
    return bool(owners) and all(_stopped(*owner) for owner in owners)


def _stopped(pid: int, start: int) -> bool:
    try:
        return _gone(pid, start) or process.read_stat(pid).state == "T"
    except process.NoSuchProcess:
        return True


def _gone(pid: int, start: int) -> bool:
    return not process.alive(pid, start)
