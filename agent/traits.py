"""What the kernel keeps of a thread and criu leaves behind: processors, I/O priority, timer slack, core dump filter.

criu 4.2 writes none of these into its images (images/core.proto), so a restored tree has those of the agent. They can
be set from outside: `carry` writes them into a file of its own beside criu's images while the tree stands still, and
`bring_back` sets them on the target while it is held. What can only be set from inside, and what criu gets wrong, is
found by `of_tasks`, for an obstacle to be made of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from agent import images, wire
from agent.descriptors import Opened, status_field
from agent.protocol import Peculiarity, TaskFacts

FILE = "traits.img"
"""Beside criu's images, and so sent, verified, kept and removed with them."""
_LARGEST = 64 * 1024 * 1024
"""Bytes of that file at most."""
MOST_CPUS = 1 << 16
"""No kernel can have so many (CONFIG_NR_CPUS)."""
_PROC = Path("/proc")
_ONLINE = Path("/sys/devices/system/cpu/online")
_USUAL_SLACK = {"0", "50000"}
"""timerslack_ns of threads that never asked for another one; real-time threads have none (prctl(2))."""
_USUAL_PRIORITIES = {0, 2 << 13 | 4}
"""ioprio_get(2) where nothing was set: no class, or (Linux before 5.15) best effort, level 4."""
_IOPRIO_CALLS = {
    "x86_64": (251, 252), "aarch64": (30, 31), "riscv64": (30, 31), "loongarch64": (30, 31), "ppc64le": (273, 274),
    "s390x": (282, 283),
}  # fmt: skip
"""Numbers of ioprio_set(2) and ioprio_get(2), for which the C library has no function."""
_IOPRIO_WHO_PROCESS = 1
_POLICIES = {6: "SCHED_DEADLINE", 7: "SCHED_EXT"}
"""Scheduling policies (linux/sched.h) that criu dumps and then refuses to restore: "Inconsistent sched params received"
(criu/cr-restore.c)."""
_RESET_ON_FORK = 0x40000000
_THREAD_CORE, _DEATH_SIGNAL = 5, 8
"""core_entry.thread_core, and its pdeath_sig (images/core.proto)."""
_libc = ctypes.CDLL(None, use_errno=True)


def cpus(text: str) -> frozenset[int]:
    """Numbers in the kernel's list format: `0-3,8`, none above MOST_CPUS. What is no list holds none."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        numbers = [int(one) for one in (first, last or first) if one.isascii() and one.isdigit() and len(one) < 7]
        if len(numbers) == 2:
            found |= set(range(numbers[0], min(numbers[1], MOST_CPUS) + 1))
    return frozenset(found)


def cpu_list(numbers: Iterable[int]) -> str:
    """The other way round."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def online() -> str:
    """The processors of this host that run, as a list; "" where the kernel does not say."""
    return _text(_ONLINE)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


# --- what can be set from outside ------------------------------------------------------------------------------------


def of_thread(tid: int, everywhere: frozenset[int]) -> dict[str, Any]:
    """What of a thread is not as usual: `cpus`, `io`, `slack`. Empty for one that is gone."""
    found: dict[str, Any] = {}
    with contextlib.suppress(OSError):
        allowed = os.sched_getaffinity(tid)
        if not allowed >= everywhere:
            found["cpus"] = cpu_list(allowed)
    priority = _ioprio(tid)
    if priority >= 0 and priority not in _USUAL_PRIORITIES:
        found["io"] = priority
    slack = _text(_PROC / str(tid) / "timerslack_ns")
    if slack.isdigit() and slack not in _USUAL_SLACK:
        found["slack"] = int(slack)
    return found


def _ioprio(tid: int) -> int:
    number = _IOPRIO_CALLS.get(os.uname().machine, (0, 0))[1]
    return int(_libc.syscall(number, _IOPRIO_WHO_PROCESS, tid)) if number else -1


def carry(directory: Path, tasks: Iterable[TaskFacts]) -> None:
    """Write down, beside a dump's images, what criu has left out of them, if anything. The tasks stand still.

    By the numbers that criu's images have: those of the innermost PID namespace.
    """
    everywhere, usual = cpus(online()), _text(_PROC / "self/coredump_filter")
    threads: dict[int, dict[str, Any]] = {}
    filters: dict[int, str] = {}
    for task in tasks:
        threads.update({_inner(tid): found for tid in task.tids if (found := of_thread(tid, everywhere))})
        mask = _text(_PROC / str(task.pid) / "coredump_filter")
        if mask not in ("", usual):
            filters[_inner(task.pid)] = mask
    if threads or filters:
        (directory / FILE).write_text(json.dumps({"threads": threads, "filters": filters}))


def _inner(tid: int) -> int:
    try:
        status = (_PROC / str(tid) / "status").read_bytes()
    except OSError:
        return tid
    return int((status_field(status, b"NSpid").split() or [str(tid)])[-1])


@dataclasses.dataclass(frozen=True)
class Thread:
    """What of a thread comes along: "" and -1 leave it as it is."""

    cpus: str = ""
    io: int = -1
    slack: int = -1


@dataclasses.dataclass(frozen=True)
class Carried:
    """What `carry` wrote down, by the numbers that the images have."""

    threads: dict[int, Thread]
    filters: dict[int, int]


def carried(directory: Path) -> Carried:
    """That of a dump; nothing where nothing was written. Raises ImageError for what `carry` does not write."""
    path = directory / FILE
    try:
        if path.stat().st_size > _LARGEST:
            raise images.ImageError(f"{FILE} is too large")
        said = wire.loads(path.read_bytes())
        threads = {int(tid): wire.decode(Thread, of) for tid, of in said["threads"].items()}
        filters = {int(pid): int(mask, 16) for pid, mask in said["filters"].items()}
    except FileNotFoundError:
        return Carried({}, {})
    except (wire.WireError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise images.ImageError(f"{FILE} is damaged: {error}") from error
    if not all(0 <= mask < 1 << 32 for mask in filters.values()):
        raise images.ImageError(f"{FILE} has a core dump filter that is none")
    if not all(one.io < 1 << 16 and one.slack < 1 << 63 for one in threads.values()):
        raise images.ImageError(f"{FILE} has a number that is too large")
    return Carried(threads, filters)


def bring_back(directory: Path, pids: Iterable[int]) -> tuple[str, ...]:
    """Give these restored processes what `carry` wrote down; what could not be set comes back in words.

    Processors that this host does not have are left out; a thread of which none remain may run on all of them.
    """
    found, here, failed = carried(directory), cpus(online()), []
    for pid in pids:
        try:
            tids = [int(name) for name in os.listdir(_PROC / str(pid) / "task")]
            mask = found.filters.get(_inner(pid))
            if mask is not None:
                (_PROC / str(pid) / "coredump_filter").write_text(f"{mask:#x}")
        except OSError:
            continue  # it has ended
        for tid in tids:
            try:
                _set(tid, found.threads.get(_inner(tid), Thread()), here)
            except (FileNotFoundError, ProcessLookupError):
                continue
            except OSError as error:
                failed.append(f"thread {tid}: {error.strerror}")
    return tuple(failed)


def _set(tid: int, wanted: Thread, here: frozenset[int]) -> None:
    allowed = cpus(wanted.cpus) & here
    if allowed:
        os.sched_setaffinity(tid, allowed)
    if wanted.io >= 0:
        _set_ioprio(tid, wanted.io)
    if wanted.slack >= 0:
        (_PROC / str(tid) / "timerslack_ns").write_text(str(wanted.slack))


def _set_ioprio(tid: int, priority: int) -> None:
    number = _IOPRIO_CALLS.get(os.uname().machine, (0, 0))[0]
    if number and _libc.syscall(number, _IOPRIO_WHO_PROCESS, tid, priority) < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


# --- what nobody can carry -------------------------------------------------------------------------------------------


def of_tasks(tasks: Iterable[TaskFacts], opened: Iterable[Opened]) -> Iterator[Peculiarity]:
    """`affinity` (CPUs), `personality`, `scheduling` (policy) and `eventfd-semaphore` of these tasks."""
    everywhere = cpus(online())
    for task in tasks:
        for tid in task.tids:
            with contextlib.suppress(OSError):
                allowed = os.sched_getaffinity(tid)
                if not allowed >= everywhere:
                    yield Peculiarity("affinity", task.pid, cpu_list(allowed))
                policy = os.sched_getscheduler(tid) & ~_RESET_ON_FORK
                if policy in _POLICIES:
                    yield Peculiarity("scheduling", task.pid, _POLICIES[policy])
        persona = _text(_PROC / str(task.pid) / "personality").lstrip("0")
        if persona:
            yield Peculiarity("personality", task.pid, f"0x{persona}")
    for one in opened:
        if one.link == "anon_inode:[eventfd]":
            try:
                information = (_PROC / f"{one.pid}/fdinfo/{one.fd}").read_bytes()
            except OSError:
                continue
            # said from Linux 6.5 on; criu makes it anew without EFD_SEMAPHORE (criu/eventfd.c)
            if status_field(information, b"eventfd-semaphore") == "1":
                yield Peculiarity("eventfd-semaphore", one.pid, "eventfd")


# --- what is better left behind --------------------------------------------------------------------------------------


def forget_parent(directory: Path, tids: Iterable[int]) -> bool:
    """Take the parent-death signal of the root's threads out of a dump; whether there was one.

    Their parent stays behind. On the target it would be criu, and then the agent, which both leave: the signal would
    come at once (criu/cr-restore.c, maybe_clone_parent). Nothing but criu's image tells that there is one.
    """
    found = False
    for tid in tids:
        path = directory / f"core-{tid}.img"
        if not path.exists():
            continue
        core = images.core_entry(path)
        for outer in images.spans(core):
            if outer.number != _THREAD_CORE or outer.varint:
                continue
            for inner in images.spans(core[outer.start : outer.stop]):
                if inner.number == _DEATH_SIGNAL and inner.value:
                    found = True
                    # as long as before, so that no length around it changes: the number of a signal is one byte, and
                    # 0 is none
                    with path.open("r+b") as file:
                        file.seek(images.CORE_HEAD + outer.start + inner.start)
                        file.write(b"\0")
    return found
