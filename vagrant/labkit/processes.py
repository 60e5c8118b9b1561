"""Processes of this machine, told apart from later ones with the same number."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import signal
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclasses.dataclass(frozen=True)
class Identity:
    """A process for good: its number, when it started, and on which boot of the machine."""

    pid: int
    start: int
    boot: str


def identity(pid: int) -> Identity:
    """Who has this number now."""
    return Identity(pid, _start(pid), BOOT_ID.read_text().strip())


def _start(pid: int) -> int:
    # The second field is the program's name in parentheses, and may itself hold spaces and parentheses.
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def is_alive(who: Identity) -> bool:
    """Is it still the same process, and not only its unreaped remains?"""
    try:
        fields = Path(f"/proc/{who.pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return fields[0] not in "ZX" and int(fields[19]) == who.start and BOOT_ID.read_text().strip() == who.boot


def kill(who: Identity, timeout: float = 10.0) -> bool:
    """Ends the process and waits until it is gone; False if it is still there when time is up."""
    try:
        descriptor = os.pidfd_open(who.pid)
    except ProcessLookupError:
        return True
    try:
        if not is_alive(who):
            return True
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        gone, _, _ = select.select([descriptor], [], [], timeout)
        return bool(gone)
    finally:
        os.close(descriptor)


def with_argument(argument: str) -> list[Identity]:
    """The processes that have this among their arguments."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if argument.encode() in (folder / "cmdline").read_bytes().split(b"\0"):
                found.append(identity(int(folder.name)))
    return found
