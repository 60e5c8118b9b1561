"""Locks on tasks: no two migrations touch the same process at once. A lock dies with the agent that holds it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from pathlib import Path


class TaskLocked(Exception):
    """Another migration holds this task; `migration` is its id where that is known."""

    def __init__(self, pid: int, migration: str = "", hint: str = "") -> None:
        super().__init__(f"{'migration ' + migration if migration else 'another migration'} holds process {pid}")
        self.pid = pid
        self.hint = hint or (f"wait for it, or stop it: migrate abort {migration}" if migration else "")


class TaskLocks:
    """Locks on tasks by PID, as files in the run directory; the holder's name stands in them. All or none are taken."""

    def __init__(self, directory: Path, migration: str = "") -> None:
        self._directory = directory
        self._migration = migration
        self._held: dict[int, int] = {}

    def take(self, pids: Iterable[int]) -> None:
        """Lock every one of these tasks that is not ours yet. Raises TaskLocked, and then holds none."""
        self._directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # `parents` alone would leave it open
        self._directory.mkdir(mode=0o700, exist_ok=True)
        for pid in pids:
            if pid in self._held:
                continue
            descriptor = self._lock(pid)
            if descriptor < 0:
                self.release()
                raise TaskLocked(pid, self._holder(pid))
            os.ftruncate(descriptor, 0)
            os.write(descriptor, self._migration.encode())
            self._held[pid] = descriptor

    def _holder(self, pid: int) -> str:
        try:
            return (self._directory / str(pid)).read_text()
        except OSError:
            return ""

    def _lock(self, pid: int) -> int:
        path = self._directory / str(pid)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return -1
            try:
                if path.stat().st_ino == os.fstat(descriptor).st_ino:
                    return descriptor
            except FileNotFoundError:
                pass  # its last holder removed it between our open and our lock: once more
            os.close(descriptor)

    def sweep(self, pids: Iterable[int]) -> None:
        """Remove the files of locks whose holder died."""
        for pid in pids:
            if (self._directory / str(pid)).exists() and (descriptor := self._lock(pid)) >= 0:
                self._held[pid] = descriptor
        self.release()

    def release(self) -> None:
        """Give all of them back and leave nothing."""
        for pid, descriptor in self._held.items():
            (self._directory / str(pid)).unlink(missing_ok=True)
            os.close(descriptor)
        self._held.clear()
        try:
            self._directory.rmdir()
        except OSError:
            return  # another migration's locks are in there, or it is gone
