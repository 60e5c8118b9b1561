"""Children, sessions, groups, and how they are related."""

from __future__ import annotations

import os as _os
import signal as _signal
import time as _time
from collections.abc import Iterator as _Iterator

_Found = _Iterator[dict[str, tuple[object, object]]]


def _stat(pid: int) -> list[str]:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()


def _until(pid: int, state: str) -> None:
    while _stat(pid)[0] != state:
        _time.sleep(0.01)


def zombie() -> _Found:
    """A child that has ended, whose exit status nobody has asked for yet."""
    found: dict[str, tuple[object, object]] = {}
    while True:
        child = _os.fork()
        if child == 0:
            _os._exit(3)
        _until(child, "Z")
        yield found
        state = _stat(child)[0]
        status = _os.waitstatus_to_exitcode(_os.waitpid(child, 0)[1])
        found = {"state": (state, "Z"), "status": (status, 3)}


def stopped() -> _Found:
    """A child that is stopped stays so, and goes on when told."""
    child = _os.fork()
    if child == 0:
        while True:
            _signal.pause()
    found: dict[str, tuple[object, object]] = {}
    while True:
        _os.kill(child, _signal.SIGSTOP)
        _until(child, "T")
        yield found
        found = {"state": (_stat(child)[0], "T")}
        _os.kill(child, _signal.SIGCONT)
        _until(child, "S")


def sessions_and_groups() -> _Found:
    """A child with a session of its own, one with a group of its own, one in that group."""

    def start(act: object, *arguments: int) -> int:
        reading, writing = _os.pipe()
        child = _os.fork()
        if child == 0:
            act(*arguments)  # type: ignore[operator]
            _os.write(writing, b".")
            _os.close(reading)
            _os.close(writing)
            while True:
                _signal.pause()
        _os.read(reading, 1)
        _os.close(reading)
        _os.close(writing)
        return child

    session = start(_os.setsid)
    group = start(_os.setpgid, 0, 0)
    member = start(_os.setpgid, 0, group)
    while True:
        yield {
            "session": ((_os.getsid(session), _os.getpgid(session)), (session, session)),
            "group": ((_os.getsid(group), _os.getpgid(group)), (_os.getsid(0), group)),
            "member": (_os.getpgid(member), group),
            "parents": ({_stat(child)[1] for child in (session, group, member)}, {str(_os.getpid())}),
        }


def pid_file_descriptor() -> _Found:
    """pidfd_open(2) of a child: it can be signalled through it."""
    child = _os.fork()
    if child == 0:
        while True:
            _signal.pause()
    descriptor = _os.pidfd_open(child)
    while True:
        _signal.pidfd_send_signal(descriptor, _signal.SIGSTOP)
        _until(child, "T")
        _signal.pidfd_send_signal(descriptor, _signal.SIGCONT)
        _until(child, "S")
        yield {}
