"""The terminals that a tree is attached to while their other ends are elsewhere: what criu is to call external.

Owns which device is which terminal. /dev/tty is another name of a task's controlling terminal (tty(4)); criu knows it
as a terminal of its own (criu/tty.c, get_tty_driver), so it has a key of its own.
"""

from __future__ import annotations

import dataclasses
import os
import stat
from pathlib import Path

from agent.descriptors import DELETED, Holdings, is_pty_slave
from agent.protocol import Terminal

_TTY_MAJOR, _AUXILIARY_MAJOR, _PTY_MAJOR = 4, 5, 136
_CONTROLLING, _CONSOLE = os.makedev(_AUXILIARY_MAJOR, 0), os.makedev(_AUXILIARY_MAJOR, 1)
_MINORS_OF_CONSOLES = range(1, 64)


@dataclasses.dataclass
class Outside:
    """A terminal whose other end is not in the tree."""

    number: int  # its device's
    path: str
    devices: set[tuple[int, int]]
    """(rdev, dev) of each file that leads to it."""
    pids: list[int]
    """Who holds it."""

    @property
    def words(self) -> str:
        """What it is: a terminal, a console, with its numbers."""
        kind = "console" if _is_console(self.number) else "terminal"
        return f"the {kind} {os.major(self.number)}:{os.minor(self.number)}"

    @property
    def facts(self) -> Terminal:
        """It as the protocol has it."""
        return Terminal(self.path, tuple(f"tty[{rdev:x}:{dev:x}]" for rdev, dev in sorted(self.devices)))


def is_terminal(status: os.stat_result) -> bool:
    """Whether criu takes a character device for the slave's end of a terminal that it carries."""
    return is_pty_slave(status) or _is_console(status.st_rdev) or status.st_rdev == _CONTROLLING


def outside(holdings: Holdings) -> list[Outside]:
    """Those of what these processes hold, each once. A pty whose master is held too is none."""
    masters = {os.makedev(_PTY_MAJOR + one.pty // 256, one.pty % 256) for one in holdings.opened if one.pty is not None}
    found: dict[int, Outside] = {}
    for one in holdings.opened:
        if not stat.S_ISCHR(one.status.st_mode) or not is_terminal(one.status):
            continue
        device = one.status.st_rdev
        number = (controlling(one.pid) or device) if device == _CONTROLLING else device
        if number in masters:
            continue
        path = one.link[: -len(DELETED)] if one.link.endswith(DELETED) else one.link
        known = found.setdefault(number, Outside(number, path, set(), []))
        if device == number:
            known.path = path
        known.devices.add((device, one.status.st_dev))
        if one.pid not in known.pids:
            known.pids.append(one.pid)
    if len(found) == 1 and not masters:
        # by the time of the dump a child may have opened it by that name
        next(iter(found.values())).devices |= _controlling_device()
    return list(found.values())


def controlling(pid: int) -> int:
    """The device number of a process's controlling terminal (proc_pid_stat(5), tty_nr); 0 for none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[4])
    except (OSError, IndexError):
        return 0


def _is_console(number: int) -> bool:
    return number == _CONSOLE or (os.major(number) == _TTY_MAJOR and os.minor(number) in _MINORS_OF_CONSOLES)


def _controlling_device() -> set[tuple[int, int]]:
    try:
        status = os.stat("/dev/tty")
    except OSError:
        return set()
    return {(status.st_rdev, status.st_dev)}
