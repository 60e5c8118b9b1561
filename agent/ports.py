"""What only a socket itself can say: whether it lets others have its port, and where its file lies. Looks only.

No table says either: the socket is asked, by a copy of the descriptor (pidfd_getfd(2), Linux 5.6) that is closed at
once. criu binds every restored socket with SO_REUSEADDR and SO_REUSEPORT (criu/sk-inet.c, open_inet_sk), as root, and
sets the options as they were afterwards. So another program's socket is in the way unless it has set the same.
It binds a unix socket to the path that it was bound to once, wherever its file was moved since (criu/sk-unix.c).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import stat
from typing import Optional

_SIOCUNIXFILE = 0x89E0  # linux/un.h
_PIDFD_GETFD = 438
"""The same number on every architecture (arch/*/entry/syscalls/syscall*.tbl)."""


def shared(pid: int, fd: int) -> bool:
    """Whether a bound socket shares its port with one that criu binds; false where it can't be asked.

    SO_REUSEPORT does, when the socket was made by root as well; SO_REUSEADDR for UDP, not for TCP that listens
    (net/ipv4/inet_connection_sock.c, inet_bind_conflict; net/ipv4/udp.c, udp_lib_lport_inuse).
    """
    copy = _copy(pid, fd)
    if copy is None:
        return False
    with copy:
        try:
            ours = os.fstat(copy.fileno()).st_uid == 0
            if ours and copy.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT):
                return True
            reused = bool(copy.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR))
            return reused and copy.type == socket.SOCK_DGRAM
        except OSError:
            return False


def moved_to(pid: int, fd: int, name: str) -> str:
    """Where the file of a unix socket lies that was bound to the path `name`, if that is elsewhere; else "".

    "" as well where it has no file any more, or can't be asked.
    """
    copy = _copy(pid, fd)
    if copy is None:
        return ""
    with copy:
        try:
            file = fcntl.ioctl(copy.fileno(), _SIOCUNIXFILE)
        except OSError:
            return ""
    try:
        found = os.stat(f"/proc/self/fd/{file}")
        path = os.readlink(f"/proc/self/fd/{file}")
    finally:
        os.close(file)
    try:
        bound = os.stat(name)
    except OSError:
        return path if found.st_nlink else ""
    return "" if (bound.st_dev, bound.st_ino) == (found.st_dev, found.st_ino) or not found.st_nlink else path


def descriptor(pid: int, inode: int) -> int:
    """The descriptor by which a process holds this socket; -1 where it does not."""
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            found = os.stat(f"/proc/{pid}/fd/{name}")
            if stat.S_ISSOCK(found.st_mode) and found.st_ino == inode:
                return int(name)
    except OSError:
        pass
    return -1


def _copy(pid: int, fd: int) -> Optional[socket.socket]:
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        number = int(ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, process, fd, 0))
    finally:
        os.close(process)
    if number < 0:
        return None
    try:
        return socket.socket(fileno=number)
    except OSError:
        os.close(number)
        return None
