"""What a tree watches with inotify(7) and fanotify(7), by path.

The kernel tells a watch by file handle only. criu opens the handle, keeps the path that this gives, and watches that
path on restore (criu/fsnotify.c); so does this file, with open_by_handle_at(2), to know the paths beforehand.
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from agent import mounts
from agent.descriptors import Opened
from agent.protocol import Peculiarity

_KINDS = ("anon_inode:inotify", "anon_inode:[fanotify]")
_WATCH = re.compile(
    rb"^(?:inotify|fanotify) .*?ino:([0-9a-f]+) sdev:([0-9a-f]+) .*?"
    rb"fhandle-bytes:([0-9a-f]+) fhandle-type:([0-9a-f]+) f_handle:([0-9a-f]*)",
    re.MULTILINE,
)
_O_PATH = 0o10000000


def watched(opened: Sequence[Opened]) -> Iterator[Peculiarity]:
    """`watch` with its path for each watched file or directory; `watch-lost` where no path leads to it."""
    held = [one for one in opened if one.link in _KINDS]
    if not held:
        return
    points: dict[int, list[str]] = {}
    for mount in mounts.parse(mounts.mountinfo()):
        points.setdefault(mount.device, []).append(mount.point)
    for one in held:
        try:
            information = Path(f"/proc/{one.pid}/fdinfo/{one.fd}").read_bytes()
        except OSError:
            continue
        for inode, device, handle_type, handle in parse(information):
            path = _path(points.get(device, []), inode, handle_type, handle)
            name = one.link.partition(":")[2].strip("[]")
            if path:
                yield Peculiarity("watch", one.pid, path, name)
            else:
                yield Peculiarity("watch-lost", one.pid, f"inode {inode}", name)


def parse(information: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Inode, device as stat gives it, type and bytes of the handle, of each watch in an fdinfo (proc_pid_fdinfo(5))."""
    for inode, device, size, handle_type, handle in _WATCH.findall(information):
        number = int(device, 16)  # the kernel's own encoding, MAJOR and MINOR of include/linux/kdev_t.h
        data = bytes.fromhex(handle.decode())[: int(size, 16)]
        yield int(inode, 16), os.makedev(number >> 20, number & 0xFFFFF), int(handle_type, 16), data


def _path(points: Sequence[str], inode: int, handle_type: int, handle: bytes) -> str:
    """The path of a handle on one of these mounts; "" where none leads to it any more."""
    for point in points:
        try:
            mount = os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            descriptor = _open_by_handle(mount, handle_type, handle)
            if descriptor < 0:
                continue
            try:
                path = os.readlink(f"/proc/self/fd/{descriptor}")
            finally:
                os.close(descriptor)
            if os.stat(path, follow_symlinks=False).st_ino == inode:
                return path
        except OSError:
            continue
        finally:
            os.close(mount)
    return ""


def _open_by_handle(mount: int, handle_type: int, handle: bytes) -> int:
    """open_by_handle_at(2); -1 on any error."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "open_by_handle_at"):
        return -1
    head = struct.pack("=Ii", len(handle), handle_type)
    return int(libc.open_by_handle_at(mount, ctypes.create_string_buffer(head + handle), _O_PATH | os.O_CLOEXEC))
