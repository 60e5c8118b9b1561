"""TCP sockets that a criu, killed in its hold, has left in repair mode: out of it again, from outside the tree.

In repair mode a socket sends nothing and acknowledges nothing. criu ends it before it lets a tree go; when criu is dead
it is done through copies of the tree's descriptors (pidfd_getfd(2), Linux 5.6), while the tasks are still stopped.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from collections.abc import Iterable, Iterator

_PIDFD_GETFD = 438
"""The same on all architectures (include/uapi/asm-generic/unistd.h)."""
_TCP_REPAIR, _OFF = 19, 0
"""include/uapi/linux/tcp.h. Off with a window probe: whatever the peer has sent meanwhile comes at once."""


def end(pids: Iterable[int]) -> int:
    """Take every TCP socket of these processes out of repair mode; how many were in it. Skips what has gone."""
    ended = 0
    for pid in pids:
        for copy in _sockets(pid):
            with contextlib.closing(copy), contextlib.suppress(OSError):
                if copy.getsockopt(socket.IPPROTO_TCP, _TCP_REPAIR):
                    copy.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, _OFF)
                    ended += 1
    return ended


def _sockets(pid: int) -> Iterator[socket.socket]:
    """Copies of the process's TCP sockets, for the caller to close."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if not os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
                    continue
                number = ctypes.CDLL(None).syscall(_PIDFD_GETFD, handle, int(name), 0)
                if number < 0:
                    continue
                copy = socket.socket(fileno=number)
                if copy.family in (socket.AF_INET, socket.AF_INET6) and copy.type == socket.SOCK_STREAM:
                    yield copy
                else:
                    copy.close()
    except OSError:
        return
    finally:
        os.close(handle)
