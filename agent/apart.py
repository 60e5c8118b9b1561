"""What of a tree is a thread's alone, and which threads cannot be stopped. Looks only.

criu takes descriptors, directories and namespaces from a process's first thread and gives them to all of its threads.
It waits ten seconds, with the tree half frozen, for a thread that sleeps where no signal wakes it.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from agent.descriptors import namespace, status_field
from agent.protocol import Peculiarity, TaskFacts

_KCMP = {"x86_64": 312, "aarch64": 272, "riscv64": 272, "ppc64le": 354, "s390x": 343}
_FILES, _FS = 2, 3
"""KCMP_FILES and KCMP_FS of include/uapi/linux/kcmp.h."""
_NAMESPACES = ("mnt", "net", "ipc", "uts", "cgroup")
"""Those that a thread may have of its own (unshare(2), setns(2))."""
_LOOKS, _PAUSE = 10, 0.02
"""How often, and with how many seconds between, a thread that seems stuck is looked at: most only wait for a disk."""


def of_threads(tasks: Sequence[TaskFacts]) -> Iterator[Peculiarity]:
    """`thread-apart` and `uninterruptible`, each process once."""
    asleep = {(task, tid): _sleep(task.pid, tid) for task in tasks for tid in task.tids}
    stuck = {thread: sleep for thread, sleep in asleep.items() if sleep}
    for _ in range(_LOOKS):
        if not stuck:
            break
        time.sleep(_PAUSE)
        stuck = {(task, tid): sleep for (task, tid), sleep in stuck.items() if _sleep(task.pid, tid) == sleep}
    for task, tid in stuck:
        where = _text(task.pid, tid, "wchan")
        yield Peculiarity("uninterruptible", task.pid, str(tid), where if where not in ("", "0") else task.name)
    for task in tasks:
        usual = [namespace(task.pid, kind) for kind in _NAMESPACES]
        for tid in task.tids:
            own = [] if tid == task.pid else list(_own(task.pid, tid, usual))
            if own:
                yield Peculiarity("thread-apart", task.pid, str(tid), ", ".join(own))
                break


def _own(pid: int, tid: int, usual: Sequence[str]) -> Iterator[str]:
    """What a thread does not share with the first one of its process, whose namespaces are the usual ones."""
    for table, words in ((_FILES, "descriptors"), (_FS, "directories")):
        if _differ(pid, tid, table):
            yield words
    for kind, expected in zip(_NAMESPACES, usual):
        if len({namespace(f"{pid}/task/{tid}", kind), expected} - {""}) > 1:
            yield f"{kind} namespace"


def _differ(pid: int, tid: int, kind: int) -> bool:
    """Whether two threads have different tables of this kind, by kcmp(2); false where the kernel does not say."""
    number = _KCMP.get(os.uname().machine)
    return number is not None and ctypes.CDLL(None).syscall(number, pid, tid, kind, 0, 0) > 0


def _sleep(pid: int, tid: int) -> str:
    """What tells one uninterruptible sleep of a thread from the next: how often it slept before; "" when it does not.

    A thread that reads a busy disk is in state D whenever one looks, and yet comes back from it all the time.
    """
    status = _text(pid, tid, "status").encode(errors="replace")
    return status_field(status, b"voluntary_ctxt_switches") if status_field(status, b"State")[:1] == "D" else ""


def _text(pid: int, tid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/task/{tid}/{name}").read_text(errors="replace").strip()
    except OSError:
        return ""
