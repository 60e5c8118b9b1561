"""A tree that lives in a PID namespace of our making, seen from outside: who its init is, its numbers in there, and how
criu gets in when it moves on. It makes no namespace (`namespace.py` does).

Two facts name a namespace as ours: its first process is our `init`, and the kernel's word (NSpid) that it is the first.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from agent.descriptors import namespace, same_namespace, status_field
from agent.init import MARK
from agent.protocol import Numbers, TaskFacts

KINDS = ("mnt", "pid")
"""The namespaces that the trees which we put into one have of their own."""


def identity(pid: int) -> str:
    """What names the PID namespace that a process lives in; "" when it is gone."""
    return namespace(pid, "pid")


def own_namespace(pid: int, kind: str, home: int) -> bool:
    """Whether a process, if it is there, has a namespace that neither this host nor, in KINDS, its `home` has."""
    return namespace(pid, kind) not in ("", namespace(home if home and kind in KINDS else "self", kind))


def home_of(pid: int) -> int:
    """The init of ours in whose namespace a process lives, or is to be entered; 0 where it lives in this host's.

    Also 0 in a namespace that somebody else has made, and where there is no nsenter(1) to enter ours with.
    """
    theirs = identity(pid)
    if same_namespace(pid, "pid") or not shutil.which("nsenter"):
        return 0
    while (pid := int(status_field(_status(pid), b"PPid") or 0)) and identity(pid) == theirs:
        if _innermost(pid, b"NSpid") == 1:
            return pid if MARK.encode() in _read(f"/proc/{pid}/cmdline").split(b"\0") else 0
    return 0


def numbers(task: TaskFacts) -> Numbers:
    """A process's numbers as its own namespace has them; 0 for a group or session that is led from outside of it."""
    pid = task.pid
    tids = (_innermost(pid, b"NSpid", f"task/{tid}/") for tid in task.tids)
    pgid, sid = _innermost(pid, b"NSpgid"), _innermost(pid, b"NSsid")
    return Numbers(_innermost(pid, b"NSpid"), pgid, sid, tuple(tid for tid in tids if tid))


class Home:
    """Where a tree lives on the host that it leaves: with everybody else, or in the namespace of an init of ours."""

    def __init__(self, init: int) -> None:
        self._init = init
        self.init = (init,) if init else ()
        """Its PID, if it has one."""

    @classmethod
    def of(cls, pid: int) -> Home:
        """That of a process."""
        return cls(home_of(pid))

    @property
    def way(self) -> list[str]:
        """What is to stand before a command that has to run there."""
        return ["nsenter", "-t", str(self._init), "-m", "-p"] if self._init else []

    def number(self, pid: int) -> int:
        """A process's PID in there. One that has gone has none any more: it is given back as it is."""
        return (_innermost(pid, b"NSpid") if self._init else 0) or pid

    @contextlib.contextmanager
    def view(self, directory: Path) -> Iterator[tuple[Path, tuple[int, ...]]]:
        """A path by which a program that runs there finds a directory of ours, and what it has to inherit for that.

        What was mounted on this host since that namespace was made may not be in it.
        """
        if not self._init:
            yield directory, ()
            return
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield Path(f"/proc/self/fd/{descriptor}"), (descriptor,)
        finally:
            os.close(descriptor)


def _innermost(pid: int, name: bytes, thread: str = "") -> int:
    """The last number of a line of /proc/PID/status: that of the namespace that the process itself lives in."""
    words = status_field(_status(pid, thread), name).split()
    return int(words[-1]) if words else 0


def _status(pid: int, thread: str = "") -> bytes:
    return _read(f"/proc/{pid}/{thread}status")


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""
