"""Standard output of a service: a unix stream to journald. criu can't dump half of a connection; another half is made.

The socket of the tree is called external in the dump, by its inode, and the restore is handed one that leads to this
host's journal (criu/sk-unix.c, files.c: `--external unix[INODE]`, `--inherit-fd fd[N]:socket:[INODE]`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

from agent.protocol import Logged

SOCKET = "/run/systemd/journal/stdout"
_LEVEL = 30
"""daemon.info, as systemd has it for a service that says nothing else (systemd.exec(5), SyslogFacility=)."""
_FIRST = 20
"""Lower descriptors are the terminal's (protocol.TERMINAL_DESCRIPTORS)."""


def there() -> bool:
    """Whether this host has a journal that takes such streams."""
    return os.path.exists(SOCKET)


def identifier(pid: int) -> str:
    """Under what systemd shows what a process prints, more or less: its program's name (systemd.exec(5))."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip("\n")
    except OSError:
        return str(pid)


@contextlib.contextmanager
def opened(logged: Iterable[Logged], unit: str) -> Iterator[tuple[tuple[int, ...], list[str]]]:
    """A stream for each of these, for a criu to inherit: descriptors, and criu's arguments. Raises OSError.

    `unit` is whose lines they are said to be; "" leaves that to journald.
    """
    descriptors: list[int] = []
    arguments: list[str] = []
    try:
        for one in logged:
            descriptors.append(_stream(one.identifier, unit))
            arguments += ["--inherit-fd", f"fd[{descriptors[-1]}]:socket:[{one.inode}]"]
        yield tuple(descriptors), arguments
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _stream(name: str, unit: str) -> int:
    """As sd_journal_stream_fd(3) makes it: seven lines first, of which the last four say "journal only"."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.connect(SOCKET)
        stream.shutdown(socket.SHUT_RD)
        lines = (name.replace("\n", " "), unit, str(_LEVEL), "1", "0", "0", "0")
        stream.sendall("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))
        return fcntl.fcntl(stream.fileno(), fcntl.F_DUPFD_CLOEXEC, _FIRST)
