"""A PID namespace of its own for a tree whose PIDs are taken on this host: made here, empty, for criu to restore into.

A maker process leaves for a new PID and a new mount namespace, starts the namespace's `init` there and, behind it, the
criu that waits for its images; it passes criu's exit status on and is gone with it. Only the init stays. What is
mounted stays as it is, but for /proc, and later mounts of the host come through where they are shared. The tmpfs of our
images needs no care: the kernel unmounts it in every namespace when the host removes the directory under it.

Everything of ours but criu counts in the host's PIDs. `outside` translates, by what the kernel says of each process.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import pkgutil
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn, Optional

from agent import criu, init, inside, process, program

WORD = "init"
"""File beside the journal: PID and start time of the namespace's first process, or why there is none."""

_CLONE_NEWNS, _CLONE_NEWPID = 0x00020000, 0x20000000  # linux/sched.h
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_SLAVE = 2, 4, 8, 0x4000, 1 << 19  # linux/mount.h
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_libc = ctypes.CDLL(None, use_errno=True)


class NamespaceError(Exception):
    """This host does not give a tree a PID namespace."""


# --- the agent's side ------------------------------------------------------------------------------------------------


def maker(journal: Path, root: int, last: int) -> list[str]:
    """The command that makes a namespace and runs in it what follows. `root` is the tree's PID inside; criu and its
    helpers get the numbers above `last`."""
    (journal / WORD).unlink(missing_ok=True)
    return program.command("namespace", str(journal), str(root), str(last))


async def made(journal: Path, running: criu.Running) -> None:
    """Wait until the namespace stands. Raises NamespaceError."""
    while not (journal / WORD).exists():
        if running.process.returncode is not None:
            raise NamespaceError("what should have made the PID namespace has ended")
        await asyncio.sleep(0.005)
    if init_of(journal) is None:
        raise NamespaceError(f"no PID namespace: {(journal / WORD).read_text().strip()}")


def init_of(journal: Path) -> Optional[tuple[int, int]]:
    """(PID, start time) of the first process of the namespace that this migration has made; None where it made none."""
    with contextlib.suppress(OSError, ValueError):
        pid, start = map(int, (journal / WORD).read_text().split())
        return pid, start
    return None


def outside(journal: Path, inner: Iterable[int], *, below: int = 0) -> list[int]:
    """This host's PIDs of processes in the namespace that this migration has made; the same numbers where it made none.
    Those that are gone are left out.

    They are looked for `below` a process, which is faster on a host that has many, or everywhere.
    """
    first = init_of(journal)
    if first is None:
        return list(inner)
    home, place = inside.Home(first[0]), inside.identity(first[0])
    pids = process.tree_pids(below) if below else process.pids()
    known = {home.number(pid): pid for pid in pids if inside.identity(pid) == place}
    return [known[pid] for pid in inner if pid in known]


def restored(journal: Path, pidfile: Path) -> int:
    """This host's PID of the root that criu names in its pidfile; 0 where there is none."""
    try:
        return next(iter(outside(journal, [int(pidfile.read_text())])), 0)
    except (FileNotFoundError, ValueError):
        return 0


# --- the maker -------------------------------------------------------------------------------------------------------


def main(journal: Path, root: int, last: int, command: Sequence[str]) -> int:
    """Make the namespace and run criu in it; its status, or the signal that has ended it."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    try:
        _call("unshare", _CLONE_NEWNS | _CLONE_NEWPID)
        _call("mount", b"none", b"/", None, _MS_REC | _MS_SLAVE, None)
        # the host's, as long as it can be seen: in the namespace's own /proc we are not
        proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        first = _start_init(root, last)
        with open(os.open(f"{first}/stat", os.O_RDONLY, dir_fd=proc), "rb") as stat:
            started = process.parse_stat(stat.read()).start_time
    except OSError as error:
        _say(journal, error.strerror or str(error))
        return 1
    _say(journal, f"{first} {started}")
    status = _run(command)
    if os.WIFSIGNALED(status):
        with contextlib.suppress(OSError):  # of SIGKILL there is nothing to say
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    # not by way of the interpreter's end, which takes a while: the agent says that the tree runs once we are gone
    os._exit(os.WEXITSTATUS(status))


def _call(name: str, *arguments: object) -> None:
    """A call of the C library's. Raises OSError."""
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _say(journal: Path, line: str) -> None:
    whole = journal / f"{WORD}.new"
    whole.write_text(f"{line}\n")
    whole.rename(journal / WORD)


def _start_init(root: int, last: int) -> int:
    """The first process of the namespace, with /proc mounted and nobody of the tree yet; its PID out here. Raises
    OSError."""
    ready, done = os.pipe()
    pid = os.fork()
    if pid == 0:
        _become_init(done, root, last)
    os.close(done)
    with open(ready, "rb") as answer:
        words = answer.read().decode(errors="replace")
    if words != "ready":
        raise OSError(0, words or "its first process has ended")
    return pid


def _become_init(done: int, root: int, last: int) -> NoReturn:
    try:
        os.setsid()
        os.chdir("/")
        # the mask is kept by what we become: no signal gets lost on the way
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        _call("prctl", _PR_SET_PDEATHSIG, init.CRIU_LEFT, 0, 0, 0)
        _call("mount", b"proc", b"/proc", b"proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, None)
        for path, number in (("sys/kernel/ns_last_pid", last), ("self/oom_score_adj", -1000)):
            with contextlib.suppress(OSError):
                (Path("/proc") / path).write_text(str(number))
        text = pkgutil.get_data("agent", "init.py") or b""
        source, sink = os.pipe()
        os.write(sink, text)  # a pipe holds more than that
        os.close(sink)
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor, standard in ((source, 0), (null, 1), (null, 2)):
            os.dup2(descriptor, standard)
        os.write(done, b"ready")
        os.execve(sys.executable, [sys.executable, "-IS", "-", init.MARK, str(root)], {})  # noqa: S606
    except OSError as error:
        os.write(done, (error.strerror or str(error)).encode())
    finally:
        os._exit(1)


def _run(command: Sequence[str]) -> int:
    """criu, in a session of the namespace's: from outside its number would be 0. Returns its wait status."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.execvp(command[0], list(command))  # noqa: S606
        finally:
            os._exit(127)
    return os.waitpid(pid, 0)[1]
