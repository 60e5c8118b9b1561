"""Who the processes of a tree are: PIDs, start times, states, ancestors; and `inspect`, which gathers everything else.

Owns /proc/PID/{stat,status,task}. What a process holds open is `descriptors.py`, whom it talks to `sockets.py`, what is
odd about it `peculiar.py`. Refuses to change anything: every function only looks.

Processes end while they are looked at. A root that is gone raises NoSuchProcess; what else is gone is left out.
Names are text with `surrogateescape`, so that any bytes survive.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Optional

from agent import accounts, conditions, descriptors, inside, peculiar, terminals
from agent.protocol import Peculiarity, TaskFacts, TreeFacts

PROC = Path("/proc")

_KERNEL_THREAD = 0x00200000
"""PF_KTHREAD of include/linux/sched.h."""
_EXITING = 0x00000004
"""PF_EXITING of include/linux/sched.h: set first of all in do_exit (kernel/exit.c), and never taken back."""
_DEAD = "ZXx"
_SETTLING = 5
"""So often a tree that forks while it is listed is listed anew, before what was seen last counts."""


class NoSuchProcess(ProcessLookupError):
    """There is no process of this number on this host."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"there is no process {pid}")
        self.pid = pid


@dataclasses.dataclass(frozen=True)
class Stat:
    """What /proc/PID/stat says, as far as it matters here (proc_pid_stat(5))."""

    pid: int
    name: str
    state: str
    ppid: int
    pgid: int
    sid: int
    flags: int
    start_time: int  # clock ticks since boot


def parse_stat(data: bytes) -> Stat:
    """The content of a stat file. The name may hold anything, `) ` and newlines too: the last `)` ends it.

    Raises ValueError when it is none.
    """
    opening, closing = data.find(b"("), data.rfind(b")")
    fields = data[closing + 1 :].split()
    if opening < 0 or closing < opening or len(fields) < 20:
        raise ValueError("not the content of /proc/PID/stat")
    return Stat(
        pid=int(data[:opening]),
        name=os.fsdecode(data[opening + 1 : closing]),
        state=fields[0].decode("ascii"),
        ppid=int(fields[1]),
        pgid=int(fields[2]),
        sid=int(fields[3]),
        flags=int(fields[6]),
        start_time=int(fields[19]),
    )


def read_stat(pid: int) -> Stat:
    """Stat of a process, or of a thread by its TID. Raises NoSuchProcess."""
    try:
        return parse_stat((PROC / str(pid) / "stat").read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        raise NoSuchProcess(pid) from None


def start_time(pid: int) -> int:
    """When it started, in clock ticks since boot. Raises NoSuchProcess."""
    return read_stat(pid).start_time


def identity(pid: int) -> Optional[list[int]]:
    """[PID, start time] of a process, as journals keep it; None where there is none of this number."""
    try:
        return [pid, start_time(pid)]
    except NoSuchProcess:
        return None


def boot_id() -> str:
    """Another one after each boot."""
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def threads(pid: int) -> tuple[int, ...]:
    """TIDs, ascending. Raises NoSuchProcess."""
    try:
        return tuple(sorted(int(name) for name in os.listdir(PROC / str(pid) / "task")))
    except (FileNotFoundError, ProcessLookupError):
        raise NoSuchProcess(pid) from None


def is_zombie(pid: int) -> bool:
    """Whether it has ended and waits to be reaped. Raises NoSuchProcess.

    A process whose first thread has ended shows state Z while the others live: that one is no zombie.
    """
    if read_stat(pid).state not in _DEAD:
        return False
    for tid in threads(pid):
        try:
            if parse_stat((PROC / str(pid) / "task" / str(tid) / "stat").read_bytes()).state not in _DEAD:
                return False
        except (FileNotFoundError, ProcessLookupError):
            continue
    return True


def alive(pid: int, started: int) -> bool:
    """Whether the process of this number *and* this start time lives. A zombie counts as dead."""
    try:
        return start_time(pid) == started and not is_zombie(pid)
    except NoSuchProcess:
        return False


def never_runs_again(pid: int, started: int) -> bool:
    """Whether it is dead, or every one of its threads is on its way out: none of them executes its program any more.

    Meant for one that has been sent a SIGKILL: then no thread can be added. What is left to the kernel, above all to
    give the memory back, takes some 0.1 s a GiB.
    """
    try:
        if start_time(pid) != started:
            return True
        for tid in threads(pid):
            try:
                if not parse_stat((PROC / str(pid) / "task" / str(tid) / "stat").read_bytes()).flags & _EXITING:
                    return False
            except (FileNotFoundError, ProcessLookupError):
                continue
    except NoSuchProcess:
        return True
    return True


def pidfd_open(pid: int) -> int:
    """A descriptor that means this process for ever; the caller closes it. Raises NoSuchProcess."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise NoSuchProcess(pid) from None


def task_facts(pid: int) -> TaskFacts:
    """One process. Raises NoSuchProcess."""
    stat = read_stat(pid)
    try:
        status = (PROC / str(pid) / "status").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        raise NoSuchProcess(pid) from None
    return TaskFacts(
        pid=stat.pid, ppid=stat.ppid, pgid=stat.pgid, sid=stat.sid, tids=threads(pid), name=stat.name,
        state=stat.state, start_time=stat.start_time, uid=int(descriptors.status_field(status, b"Uid").split()[0]),
    )  # fmt: skip


def pids() -> list[int]:
    """Every process of this host that /proc shows."""
    return [int(name) for name in os.listdir(PROC) if name.isdigit()]


_NEAR = 2000


def step_over(ids: Iterable[int]) -> None:
    """Make sure that the next processes of this host do not take one of these IDs.

    The kernel numbers processes in turn, so an ID just above the last one would soon go, most likely to a process of
    our own. Where that is near, the numbering is moved past it (what criu does itself to get the PID that it wants).
    """
    counter = PROC / "sys/kernel/ns_last_pid"
    try:
        last = int(counter.read_text())
        if (free := clear_of(ids, last)) != last:
            counter.write_text(str(free))
    except OSError:
        return  # no root, or a kernel without it: the restore will tell if an ID was taken


def clear_of(ids: Iterable[int], last: int) -> int:
    """The lowest number from `last` on behind which a long row of numbers is none of these IDs."""
    for number in sorted(ids):
        if last < number <= last + _NEAR:
            last = number
    return last


def tree_pids(root: int) -> list[int]:
    """The root and all its descendants, parents before children. Raises NoSuchProcess.

    Exact for a tree that is frozen. One that runs may fork and exit meanwhile; what has gone is left out.
    """
    read_stat(root)
    children = _children_listed if _lists_children(root) else _Parents().children
    tree = [root]
    for pid in tree:  # grows while it is walked
        tree += (child for child in children(pid) if child not in tree)
    return tree


def _lists_children(pid: int) -> bool:
    """Whether this kernel has task/TID/children (CONFIG_PROC_CHILDREN): it spares a walk of /proc in the freeze."""
    return os.path.exists(PROC / str(pid) / "task" / str(pid) / "children")


def _children_listed(pid: int) -> list[int]:
    found = []
    try:
        for tid in threads(pid):
            found += [int(word) for word in (PROC / f"{pid}/task/{tid}/children").read_bytes().split()]
    except (FileNotFoundError, ProcessLookupError):
        pass  # this process, or a thread of it, has just gone
    return sorted(found)


def children(pid: int) -> list[int]:
    """Its children now; none when it is gone."""
    return _children_listed(pid) if _lists_children(pid) else _Parents().children(pid)


class _Parents:
    """All processes by their parent, read once."""

    def __init__(self) -> None:
        self._children: dict[int, list[int]] = {}
        for pid in sorted(pids()):
            try:
                self._children.setdefault(read_stat(pid).ppid, []).append(pid)
            except NoSuchProcess:
                continue

    def children(self, pid: int) -> list[int]:
        return self._children.get(pid, [])


def ancestors(pid: int) -> list[int]:
    """Its parent, that one's parent and so on; empty when it is gone."""
    line: list[int] = []
    try:
        while (pid := read_stat(pid).ppid) > 0:
            line.append(pid)
    except NoSuchProcess:
        pass
    return line


def inspect(pid: int) -> TreeFacts:
    """Everything about a tree that decides whether and how it can be moved. Raises NoSuchProcess.

    This very process, its ancestors, init and kernel threads are recognised and not looked into.
    """
    untouchable = _untouchable(read_stat(pid))
    if untouchable is not None:
        return TreeFacts(pid, (task_facts(pid),), (), (untouchable,), 0)
    tasks = tasks_of(pid)
    holdings = descriptors.collect([task.pid for task in tasks if task.state not in _DEAD])
    oddities = peculiar.of_tasks(tasks, holdings)
    living = [task.pid for task in tasks]
    return TreeFacts(
        pid, tuple(tasks), tuple(holdings.files()), tuple(oddities), holdings.memory, holdings.copied_on_write,
        accounts=accounts.of_tasks(living), limits=conditions.limits(living),
        inside=tuple(map(inside.numbers, tasks)) if inside.home_of(pid) else (),
        terminals=tuple(one.facts for one in terminals.outside(holdings)),
    )  # fmt: skip


def _untouchable(root: Stat) -> Optional[Peculiarity]:
    me = os.getpid()
    if root.pid == me:
        return Peculiarity("self", root.pid, str(root.pid), root.name)
    if root.pid == 1:
        return Peculiarity("init", root.pid, str(root.pid), root.name)
    if root.pid in ancestors(me):
        return Peculiarity("ancestor", root.pid, str(root.pid), root.name)
    if root.flags & _KERNEL_THREAD:
        return Peculiarity("kernel-thread", root.pid, str(root.pid), root.name)
    return None


def tasks_of(root: int) -> list[TaskFacts]:
    """The tasks of a running tree, once two listings in a row agree, or as seen last when it never comes to rest.

    Raises NoSuchProcess for the root; others that have ended are left out.
    """
    seen: list[int] = []
    for _ in range(_SETTLING):
        found = tree_pids(root)
        if found == seen:
            break
        seen = found
    tasks = []
    for pid in seen:
        try:
            tasks.append(task_facts(pid))
        except NoSuchProcess:
            if pid == root:
                raise
    return tasks
