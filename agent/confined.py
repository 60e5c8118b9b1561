"""A program that may write to a few files of this host and to nothing else, whatever it is told from outside.

That is rsync's server, for which another host chooses what it does. It runs in a mount namespace of its own, in which
everything is read-only but an own directory, and that is too, once it has a file `0`, `1`, … for each of those that
may be written: these are mounted there. Without capabilities it can take none of that back.
"""

from __future__ import annotations

import ctypes
import os
import stat
import sys
from collections.abc import Sequence

from agent import anchor

FAILED = 125
"""Exit status where it could not be confined, and so was not started; why, stands on standard error."""

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_READ_ONLY, _NO_SETUID, _NO_DEVICES = 1, 2, 4
"""MOUNT_ATTR_* (linux/mount.h)."""
_MOUNT_SETATTR = 442
"""The number of mount_setattr(2), Linux 5.12, on every architecture; the C library has no function for it."""
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_CAPABILITIES = 64
_libc = ctypes.CDLL(None, use_errno=True)


class _Attributes(ctypes.Structure):
    """struct mount_attr."""

    _fields_ = (
        ("set", ctypes.c_uint64), ("clear", ctypes.c_uint64), ("propagation", ctypes.c_uint64),
        ("user", ctypes.c_uint64),
    )  # fmt: skip


def main(room: str, listed: int, command: Sequence[str]) -> int:
    """Become `command`, in `room`. The descriptor `listed` gives the paths of its files, each ended by a zero byte.

    The paths are settled (`anchor`), the files are there, and empty. Returns only where that fails.
    """
    try:
        with open(listed, "rb") as file:
            paths = [os.fsdecode(path) for path in file.read().split(b"\0")[:-1]]
        _confine(room, paths)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"rsync cannot be kept to the files that come along: {where}{error.strerror}\n")
        return FAILED
    try:
        os.execvp(command[0], list(command))  # noqa: S606
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        sys.stderr.write("rsync is not installed\n" if missing else f"{command[0]}: {error.strerror}\n")
    return FAILED


def _confine(room: str, paths: Sequence[str]) -> None:
    user, group = os.geteuid(), os.getegid()
    _call("unshare", _CLONE_NEWNS | (_CLONE_NEWUSER if user else 0))
    if user:
        _map(user, group)
    _call("mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
    _change("/", _READ_ONLY | _NO_DEVICES | _NO_SETUID, 0, _AT_RECURSIVE)
    options = f"mode=0700,size=1m,nr_inodes={len(paths) + 16}".encode()
    _call("mount", b"migrate", os.fsencode(room), b"tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, options)
    os.chdir(room)
    for number, path in enumerate(paths):
        os.close(os.open(str(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            with anchor.at(path) as here:
                file = os.open(here, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(0, "is no regular file any more", path)
        _call("mount", f"/proc/self/fd/{file}".encode(), str(number).encode(), None, _MS_BIND, None)
        os.close(file)
        _change(str(number), 0, _READ_ONLY, 0)
    _change(".", _READ_ONLY, 0, 0)
    for capability in range(_CAPABILITIES):
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # fails for what this kernel does not know
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _map(user: int, group: int) -> None:
    """Be root in a user namespace of our own: who is not root here may mount nothing else."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _change(path: str, to_set: int, to_clear: int, flags: int) -> None:
    attributes = _Attributes(to_set, to_clear, 0, 0)
    _call(
        "syscall", _MOUNT_SETATTR, _AT_FDCWD, os.fsencode(path), flags, ctypes.byref(attributes),
        ctypes.sizeof(attributes),
    )  # fmt: skip


def _call(name: str, *arguments: object) -> None:
    """A call of the C library's. Raises OSError."""
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
